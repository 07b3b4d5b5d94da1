"""The image commands, end to end on the digits: train, resume, sample, evaluate, demo; own files; bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polydiff.cli.main import main
from polydiff.vision.pipeline import ImagePipeline

SMALL = ["--width", "8", "--multipliers", "1", "1", "--blocks", "1", "--batch-size", "8", "--no-progress"]


def polydiff(*words: object) -> int:
    """Run the command in this process; its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert polydiff("train", "vision", *SMALL, "--steps", 4, "--out", folder) == 0
    return folder


def test_train_writes_all_that_is_promised(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {".lock", "config.json", "checkpoints", "metrics.jsonl", "logs", "model"}
    card = (run / "model" / "README.md").read_text()
    assert "polydiff train vision --width 8 --multipliers 1 1 --blocks 1 --steps 4 --batch-size 8" in card
    config = json.loads((run / "config.json").read_text())
    assert (config["format_version"], config["command"], config["domain"]) == (1, "train", "vision")


def test_config_of_a_run_gives_the_same_run_and_flags_win(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert polydiff("train", "vision", "--config", run / "config.json", "--out", out, "--no-progress") == 0
    first, again = (ImagePipeline.from_pretrained(folder / "model").model.state_dict() for folder in (run, out))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert json.loads((out / "config.json").read_text())["options"]["network"]["width"] == 8


def test_resume_goes_on_and_a_second_start_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    assert polydiff("train", "vision", *SMALL, "--steps", 2, "--out", out) == 0
    assert polydiff("train", "vision", *SMALL, "--steps", 2, "--out", out) == 2
    assert "resume" in capsys.readouterr().err
    assert polydiff("train", "vision", "--out", out, "--resume", "--steps", 4) == 0
    whole, parts = (ImagePipeline.from_pretrained(folder / "model").model.state_dict() for folder in (run, out))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_sample_writes_named_images_and_a_grid(run: Path, tmp_path: Path) -> None:
    words = ["sample", "vision", "--model", run, "--label", "3", "seven", "--count", 3, "--steps", 2]
    assert polydiff(*words, "--out", tmp_path / "bad") == 2  # the digits' names are numerals
    words[6] = "7"
    assert polydiff(*words, "--out", tmp_path) == 0
    names = sorted(p.name for p in tmp_path.glob("0*.png"))
    assert names == ["000000-3.png", "000001-7.png", "000002-3.png"]
    assert Image.open(tmp_path / names[0]).size == (8, 8)
    assert Image.open(tmp_path / "grid.png").size[0] > 3 * 64


def test_sample_keeps_results_of_other_options_apart(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["sample", "vision", "--model", run, "--count", 1, "--steps", 1, "--out", tmp_path / "a b"]
    assert polydiff(*words) == 0
    assert polydiff(*words) == 0
    assert polydiff(*words, "--seed", 1) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_that_cannot_be_made_is_named(command: str, run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert polydiff(command, "vision", "--model", run, *(["--data", "digits"] * (command == "evaluate")),
                    "--out", tmp_path / "file" / "out") == 2  # fmt: skip
    assert "no folder" in capsys.readouterr().err


def test_evaluate_takes_the_data_of_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "vision", "--count", 10, "--steps", 1, "--bits", 0, "--features", "classifier"]
    assert polydiff(*words, "--model", run, "--out", tmp_path / "whole") == 0
    assert "on digits, dpm-solver++, 1 steps" in capsys.readouterr().out
    assert json.loads((tmp_path / "whole" / "results.json").read_text())["options"]["data"] == "digits"
    assert polydiff(*words, "--model", run / "model", "--out", tmp_path / "part") == 2
    assert "--data" in capsys.readouterr().err


def test_evaluate_refuses_other_data_before_it_draws(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", x_train=images, x_test=images[:12])
    words = ["evaluate", "vision", "--model", run, "--data", tmp_path / "own.npz", "--out", tmp_path / "e"]
    assert polydiff(*words) == 2
    assert "17 levels" in capsys.readouterr().err


def test_processes_change_no_pixel(run: Path, tmp_path: Path) -> None:
    for processes in (1, 2):
        out = tmp_path / str(processes)
        words = ["--model", run, "--count", 4, "--batch-size", 2, "--steps", 2, "--out", out]
        command = [sys.executable, "-m", "polydiff.vision.sample", *words, "--processes", processes]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for image in (tmp_path / "1").glob("0*.png"):
        assert np.array_equal(np.asarray(Image.open(image)), np.asarray(Image.open(tmp_path / "2" / image.name)))


@pytest.mark.slow
def test_two_processes_train_the_same_model(run: Path, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "polydiff.vision.train"]
    command = [sys.executable, *launch, *SMALL, "--steps", 4, "--cpu", "--out", tmp_path / "run"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = (
        ImagePipeline.from_pretrained(folder / "model").model.state_dict() for folder in (run, tmp_path / "run")
    )
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-4), name


def test_own_images_train_and_unconditional_sampling(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{i}.png")
    words = ["--data", tmp_path / "pictures", "--size", 8, "--out", tmp_path / "run", "--steps", 2]
    assert polydiff("train", "vision", *SMALL, *words) == 0
    assert (
        polydiff("sample", "vision", "--model", tmp_path / "run", "--count", 2, "--steps", 2, "--out", tmp_path / "s")
        == 0
    )
    assert Image.open(tmp_path / "s" / "000001.png").size == (8, 8)
    assert Image.open(tmp_path / "s" / "000001.png").mode == "RGB"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "vision", "--data", "/nowhere/at/all"], "nowhere"),
        (["train", "vision", *SMALL, "--batch-size", "0"], "--batch-size"),
        (["train", "vision", *SMALL, "--width", "7"], "width"),
        (["train", "vision", "--width", "16384", "--multipliers", "64", "64"], "network size"),
        (["sample", "vision", "--model", "no-such-model"], "no-such-model"),
        (["sample", "vision", "--model", "../.."], "missing"),
        (["train", "vision", "--config", "/nowhere/config.json"], "config.json"),
        (["train", "vision", *SMALL, "--resume"], "--resume"),
    ],
)
def test_bad_input_is_one_line_that_names_it(words: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert polydiff(*words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_unfinished_run_says_how_to_go_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert polydiff("sample", "vision", "--model", tmp_path / "run", "--out", tmp_path / "out") == 2
    assert "--resume" in capsys.readouterr().err


def test_demo_page_has_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick demo; its classifiers, here of one epoch, are trained in place."""
    from polydiff.vision import evaluate
    from polydiff.vision.classifier import Options

    monkeypatch.setenv("POLYDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "judge_options", lambda: Options(seed=1, width=8, epochs=1))
    monkeypatch.setattr(evaluate, "extractor_options", lambda: Options(seed=2, width=12, epochs=1))
    assert polydiff("demo", "vision", "--quick", "--out", tmp_path / "demo") == 0
    page = (tmp_path / "demo" / "index.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    for part in ("FID", "recall", "coverage", "class agreement", "bits per dimension", "nearest", "Training loss"):
        assert part in page
    assert polydiff("demo", "vision", "--quick", "--out", tmp_path / "demo") == 0  # a second time over the first
