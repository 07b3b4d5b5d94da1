"""The text commands, end to end on Python's own documentation: train, resume, sample, infill, calibrate; bad input."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from polydiff.cli.main import main
from polydiff.core.methods import TOKEN_SAMPLERS
from polydiff.core.objectives import Denoising
from polydiff.text import options
from polydiff.text.autoregressive import AutoregressivePipeline
from polydiff.text.loading import load_model
from polydiff.text.options import Sample
from polydiff.text.pipeline import TextPipeline
from polydiff.text.sample import FOR_EVERY_KERNEL
from polydiff.text.train import objective_of

SMALL = ["--width", 8, "--blocks", 1, "--heads", 2, "--length", 16, "--batch-size", 4, "--no-progress", "--cpu"]


def polydiff(*words: object) -> int:
    """Run the command in this process; its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def trained(folder: Path, *words: object, steps: int = 2) -> Path:
    assert polydiff("train", "text", *SMALL, *words, "--steps", steps, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    return trained(tmp_path_factory.mktemp("runs") / "first", steps=4)


def states(*folders: Path) -> list[dict[str, torch.Tensor]]:
    return [load_model(str(folder)).model.state_dict() for folder in folders]


def test_train_writes_all_that_is_promised(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {".lock", "config.json", "checkpoints", "metrics.jsonl", "logs", "model"}
    card = (run / "model" / "README.md").read_text()
    assert "polydiff train text --length 16 --width 8 --blocks 1 --heads 2 --steps 4 --batch-size 4\n" in card
    config = json.loads((run / "config.json").read_text())
    assert (config["format_version"], config["command"], config["domain"]) == (1, "train", "text")
    pipeline = load_model(str(run))
    assert isinstance(pipeline, TextPipeline)
    assert pipeline.config.kernel == "absorbing"
    assert bool((pipeline.model.state_dict()["denoiser.network.bias"] != 0).any())  # it starts at 0


def test_train_tells_what_the_alphabet_lacks(tmp_path: Path, capsys) -> None:
    (tmp_path / "own.txt").write_text("the year 1815 in the Stra\u00dfe\n" * 40)
    trained(tmp_path / "run", "--data", tmp_path / "own.txt")
    said = capsys.readouterr().out
    assert "letters, digits or signs that the vocabulary lacks became spaces" in said and "\u00df" in said
    trained(tmp_path / "bytes", "--data", tmp_path / "own.txt", "--vocabulary", "bytes")
    assert "became spaces" not in capsys.readouterr().out


def test_losses_of_absorbing_models_differ_in_their_weight(run: Path) -> None:
    pipeline, t = TextPipeline.from_pretrained(run), torch.tensor([0.25, 0.5], dtype=torch.float64)
    weights = {"weighted": 1 / t, "half-weighted": t**-0.5, "cross-entropy": torch.ones_like(t)}
    for name, expected in weights.items():
        objective = objective_of(pipeline, options.Train(loss=name))  # pyright: ignore[reportArgumentType]
        assert isinstance(objective, Denoising)
        torch.testing.assert_close(objective.weight(pipeline.kernel.schedule, t), expected)


def test_a_stopped_run_goes_on_and_a_second_start_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    out = trained(tmp_path / "run", steps=2)
    assert polydiff("train", "text", *SMALL, "--steps", 2, "--out", out) == 2
    assert "resume" in capsys.readouterr().err
    assert polydiff("train", "text", "--out", out, "--resume", "--steps", 4) == 0
    whole, parts = states(run, out)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("kernel", "loss"),
    [
        ("absorbing", "hybrid"),
        ("absorbing", "score-entropy"),
        ("uniform", None),
        ("uniform", "bound"),
        ("marginal", "cross-entropy"),
        ("band", None),
        ("gaussian", None),
        ("neighbours", None),
    ],
)
def test_every_kernel_and_loss_trains_and_writes(kernel: str, loss: str | None, tmp_path: Path) -> None:
    words = ["--kernel", kernel, *(["--loss", loss] if loss else []), "--reading", "context", "--bound-steps", 10]
    folder = trained(tmp_path / "run", *words)
    pipeline = load_model(str(folder))
    assert isinstance(pipeline, TextPipeline)
    assert (pipeline.config.kernel, pipeline.config.reading) == (kernel, "context")
    again = TextPipeline.from_pretrained(folder)  # of a finished run, its model
    assert torch.equal(pipeline.kernel.log_pi, again.kernel.log_pi)
    assert again.infill("the [MASK:2] end", steps=2)[0][:4] == "the "
    if kernel == "marginal":
        law = pipeline.kernel.log_pi.exp()
        assert float(law.max() / law.min()) > 10  # counted, not assumed


def test_the_baseline_trains_by_the_same_command(tmp_path: Path, capsys) -> None:
    folder = trained(tmp_path / "run", "--kernel", "autoregressive")
    assert isinstance(load_model(str(folder)), AutoregressivePipeline)
    out = tmp_path / "texts.txt"
    words = ["sample", "text", "--model", folder, "--count", 2, "--prompt", "the ", "--length", 6]
    assert polydiff(*words, "--out", out) == 0
    texts = out.read_text().split("=" * 20 + "\n")
    assert [(text[:4], len(text)) for text in texts] == [("the ", 11)] * 2
    assert polydiff("sample", "text", "--model", folder, "--infill", "a[MASK]") == 2
    assert polydiff("calibrate", "text", "--model", folder) == 2
    assert "autoregressive" in capsys.readouterr().err


def test_sample_prints_and_writes_the_same_texts(run: Path, tmp_path: Path, capsys) -> None:
    words = ["sample", "text", "--model", run, "--count", 3, "--length", 40, "--steps", 2]
    assert polydiff(*words, "-o", tmp_path / "a.txt") == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "a.txt").read_text() in shown
    assert polydiff(*words, "--out", tmp_path / "b.json", "--batch-size", 1) == 0
    texts = json.loads((tmp_path / "b.json").read_text())["texts"]
    assert ("=" * 20 + "\n").join(text + "\n" for text in texts) == (tmp_path / "a.txt").read_text()
    assert [len(text) for text in texts] == [40] * 3
    assert texts == load_model(str(run))(3, 40, steps=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("sampler", ["first-hitting", "cached", "confidence", "any-order", "tau-leaping"])
def test_every_sampler_has_its_name(sampler: str, run: Path, tmp_path: Path, capsys) -> None:
    words = ["--sampler", sampler, "--infill", "the [MASK:4] of", "--count", 2, "--steps", 3]
    assert polydiff("sample", "text", "--model", run, *words, "--out", tmp_path / "t.json") == 0
    printed = capsys.readouterr().out
    assert f"{sampler}, 3 steps" in printed
    assert "2 texts in" in printed
    for text in json.loads((tmp_path / "t.json").read_text())["texts"]:
        assert (text[:4], text[8:], len(text)) == ("the ", " of", 11)


def test_calibrated_steps_are_kept_and_used(run: Path, tmp_path: Path, capsys) -> None:
    pipeline = load_model(str(run))
    folder = pipeline.save_pretrained(tmp_path / "model")
    words = ["calibrate", "text", "--model", folder, "--calls", 3, 5, "--windows", 3, "--batch-size", 2]
    assert polydiff(*words) == 2
    assert "--data" in capsys.readouterr().err
    assert polydiff(*words, "--data", "python-docs") == 0
    assert "3 calls: " in capsys.readouterr().out
    again = load_model(str(folder))
    assert isinstance(again, TextPipeline)
    assert isinstance(pipeline, TextPipeline)
    assert {calls: (len(counts), sum(counts)) for calls, counts in again.unmasking.items()} == {3: (3, 16), 5: (5, 16)}
    assert polydiff("sample", "text", "--model", folder, "--steps", 3, "--out", tmp_path / "t.txt") == 0
    assert "calibrated" in capsys.readouterr().out
    assert again(2, steps=4) == pipeline(2, steps=4)
    kept = TextPipeline.from_pretrained(again.save_pretrained(tmp_path / "copy"))
    assert kept.unmasking == again.unmasking
    # Without steps to keep, those of the weights that were there are gone.
    pipeline.save_pretrained(tmp_path / "copy")
    assert TextPipeline.from_pretrained(tmp_path / "copy").unmasking == {}


def test_a_run_calibrates_on_its_own_data(run: Path, tmp_path: Path) -> None:
    import shutil

    own = shutil.copytree(run, tmp_path / "run")
    assert polydiff("calibrate", "text", "--model", own, "--calls", 2, "--windows", 1) == 0
    assert (own / "model" / "unmasking.json").is_file()


def test_only_absorbing_models_are_calibrated(tmp_path: Path, capsys) -> None:
    folder = trained(tmp_path / "run", "--kernel", "uniform")
    assert polydiff("calibrate", "text", "--model", folder) == 2
    assert "absorbing" in capsys.readouterr().err


def test_samplers_are_held_against_the_kernel(tmp_path: Path, capsys) -> None:
    folder = trained(tmp_path / "run", "--kernel", "uniform")
    sample = ["sample", "text", "--model", folder, "--steps", 2, "--count", 1, "--out", tmp_path / "t.txt"]
    for name, sampler in TOKEN_SAMPLERS.items():
        capsys.readouterr()
        status = polydiff(*sample, "--sampler", name)
        printed = capsys.readouterr()
        assert status == (0 if sampler in FOR_EVERY_KERNEL else 2)
        if status:
            assert (
                f"--sampler: got '{name}', expected ancestral, tau-leaping: the model's kernel is uniform"
                in printed.err
            )
        else:
            assert "\n1 text in " in printed.out
    for words in (["--infill", "a [MASK]"], ["--prompt", "a"], ["--length", 17]):
        assert polydiff(*sample, "--sampler", "ancestral", *words) == 2
        assert "--sampler: got 'ancestral', expected None" in capsys.readouterr().err
    words = ["--model", folder, "--sampler", "first-hitting", "--out", tmp_path / "evaluation"]
    assert polydiff("evaluate", "text", *words) == 2
    assert "--sampler: got 'first-hitting'" in capsys.readouterr().err


def test_helps_do_not_begin_with_a_value() -> None:
    source = inspect.getsource(options)
    assert not re.findall(r'"""(?:Of:|Python-docs|Text8).*', source)


def test_json_is_what_the_help_says(run: Path, tmp_path: Path) -> None:
    assert polydiff("sample", "text", "--model", run, "--steps", 1, "-o", tmp_path / "t.json") == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert found.keys() == {"texts", "options"}
    assert len(found["texts"]) == 4
    assert all(f'"{name}"' in str(Sample.__doc__) for name in found)


def test_own_files_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Ä file of one's own, 1 line.\n" * 40)
    folder = trained(tmp_path / "run", "--data", tmp_path / "own.txt", "--vocabulary", "bytes")
    (text,) = load_model(str(folder)).infill("Ä [MASK:3]!", steps=2)  # type: ignore[union-attr]
    assert (text[:2], text[-1]) == ("Ä ", "!")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data", "/nowhere/at/all"], "nowhere"),
        (["train", "--kernel", "uniform", "--loss", "weighted"], "--loss"),
        (["train", "--kernel", "autoregressive", "--loss", "bound"], "--loss"),
        (["train", "--kernel", "autoregressive", "--near", 3], "--near"),
        (["train", "--near", 3], "near"),
        (["train", "--kernel", "band", "--near", 27], "near"),
        (["train", "--vocabulary", "/nowhere/at/all"], "nowhere"),
        (["train", "--heads", 3, "--width", 8], "heads"),
        (["train", "--schedule", "linear"], "alpha_1"),
        (["train", "--kernel", "uniform", "--schedule", "ve"], "schedule: got 've'"),
        (["train", "--resume"], "--resume"),
        (["sample", "--model", "RUN", "--infill", "no gap"], "[MASK]"),
        (["sample", "--model", "RUN", "--infill", "a [MASK:0] b"], "[MASK:0]"),
        (["sample", "--model", "RUN", "--infill", "A [MASK] b"], "'A'"),
        (["sample", "--model", "RUN", "--infill", "a [MASK]", "--prompt", "b"], "--infill"),
        (["sample", "--model", "RUN", "--infill", "a [MASK]", "--length", 3], "--length"),
        (["sample", "--model", "RUN", "--prompt", ""], "prompt"),
        (["sample", "--model", "RUN", "--prompt", "Ä"], "position 0"),
        (["sample", "--model", "RUN", "--prompt", "The cat, "], "--normalise"),
        (["sample", "--model", "RUN", "--particles", 3], "--particles"),
        (["sample", "--model", "RUN", "--prompt", "a", "--sampler", "cached", "--particles", 3], "--sampler"),
        (["sample", "--model", "RUN", "--count", 0], "count"),
        (["sample", "--model", "RUN", "--steps", 0], "steps"),
        (["sample", "--model", "/nowhere/at/all"], "nowhere"),
        (["calibrate", "--model", "/nowhere/at/all"], "nowhere"),
        (["calibrate", "--model", "RUN", "--calls", 17], "--calls"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words: list[object], said: str, run: Path, tmp_path: Path, capsys) -> None:
    words = [run if word == "RUN" else word for word in words]
    place = [] if words[0] == "calibrate" else ["--out", tmp_path / "out"]
    assert polydiff(words[0], "text", *words[1:], *place) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("polydiff: error: ")
    assert error.count("\n") == 1


def test_gaps_of_other_kernels_are_filled_by_particles_too(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "--kernel", "uniform")
    words = ["sample", "text", "--model", folder, "--infill", "The [MASK:4] of", "--normalise", "--particles", 2]
    assert polydiff(*words, "--steps", 3, "--count", 2, "--out", tmp_path / "t.json") == 0
    for text in json.loads((tmp_path / "t.json").read_text())["texts"]:
        assert (text[:4], text[8:]) == ("the ", " of")
