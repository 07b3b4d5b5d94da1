"""The commands, end to end on a file of three molecules: train, resume, sample, calibrate; and bad input."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from polydiff.core.commands import run as run_command
from polydiff.molecules import data
from polydiff.molecules import options as module
from polydiff.molecules.data import load
from polydiff.molecules.dual import DualConfig
from polydiff.molecules.model import LEVELS, kernel_of
from polydiff.molecules.options import Train
from polydiff.molecules.pipeline import ConformerPipeline
from polydiff.molecules.train import data_of, train

SMALL = ["--width", "8", "--blocks", "1", "--batch-size", "2", "--no-progress", "--drafts", "1", "--cpu"]


def polydiff(command: str, *words: object) -> int:
    """Run the command in this process; its exit status."""
    main, kind = import_module(f"polydiff.molecules.{command}").main, getattr(module, command.capitalize())
    arguments = [str(word) for word in words]
    with pytest.raises(SystemExit) as ended:
        run_command(kind, main, command=command, domain="molecules", arguments=arguments)
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "three.smi").write_text("CCO\nCC=O\nC[C@H](O)F\nCO\nCCC\nC=C\nCN\nCF\nOO\nCC\n")
    return folder / "three.smi"


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYDIFF_CACHE", str(source.parent / "cache"))
        folder = tmp_path_factory.mktemp("runs") / "first"
        assert polydiff("train", "--data", source, *SMALL, "--steps", 4, "--out", folder) == 0
    return folder


@pytest.fixture(autouse=True)
def cache(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDIFF_CACHE", str(source.parent / "cache"))


def test_train_writes_all_that_is_promised(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {".lock", "config.json", "checkpoints", "metrics.jsonl", "logs", "model"}
    card = (trained / "model" / "README.md").read_text()
    assert "polydiff train molecules" in card and "--width 8" in card and "ETKDGv3 drafts" in card
    config = json.loads((trained / "config.json").read_text())
    assert (config["format_version"], config["command"], config["domain"]) == (1, "train", "molecules")
    pipeline = ConformerPipeline.from_pretrained(trained)
    assert [level.name for level in pipeline.config.levels] == ["MMFF94"]
    assert {"H", "C", "O"} <= pipeline.config.elements("MMFF94") and pipeline.config.elements("B3LYP") == frozenset()
    assert pipeline.config.network.scale == pipeline.config.scale == 0.25


def test_resume_goes_on_as_if_never_stopped(trained: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--data", source, *SMALL]
    assert polydiff("train", *words, "--steps", 2, "--out", out) == 0
    assert polydiff("train", *words, "--steps", 2, "--out", out) == 2
    assert polydiff("train", "--out", out, "--resume", "--steps", 4) == 0
    whole, parts = (ConformerPipeline.from_pretrained(folder).model.state_dict() for folder in (trained, out))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_sample_and_calibrate(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.sdf"
    words = ["--smiles", "CCO", "C[C@H](O)F", "--model", trained, "-o", out, "--num-conformers", 2, "--no-progress"]
    assert polydiff("sample", *words, "--steps", 2, "--sampler", "ddim") == 0
    assert "ddim, 2 steps" in capsys.readouterr().out
    assert len(Chem.SDMolSupplier(str(out))) >= 2
    small = ["--count", 8, "--fine", 10, "--iterations", 1, "--calls", 2, "--input"]
    (tmp_path / "more.csv").write_text("smiles\nCO\nCC\noops\n")
    assert polydiff("calibrate", "--model", trained, *small, tmp_path / "more.csv") == 0
    assert "2 calls: root mean square error" in capsys.readouterr().out
    assert set(ConformerPipeline.from_pretrained(trained).solvers) == {2}
    assert polydiff("sample", *words) == 0
    assert "calibrated for 2 calls" in capsys.readouterr().out
    (tmp_path / "none.smi").write_text("[Fe]\n")
    assert polydiff("calibrate", "--model", trained, *small, tmp_path / "none.smi") == 2
    assert polydiff("calibrate", "--model", tmp_path) == 2


def test_bad_commands_say_what_is_wrong(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, why in (
        (["sample"], "a file of SMILES"),
        (["sample", tmp_path / "missing.smi", "--model", trained], "missing.smi"),
        (["sample", "--smiles", "C", "--model", tmp_path / "nothing"], "no such folder"),
        (["sample", "--smiles", "C", "--model", trained, "--level", "B3LYP"], "MMFF94"),
        (["train", "--data", tmp_path / "missing", "--out", tmp_path / "x"], "missing"),
        (["train", "--out", tmp_path / "x", "--resume"], "--resume"),
        (["train", "--out", trained], "--resume to go on"),
    ):
        command, *rest = words
        assert polydiff(str(command), *rest) == 2, words
        assert why in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("start", ["draft", "harmonic"])
@pytest.mark.parametrize("objective", ["denoising", "aligned", "aligned-target", "chain-rule"])
def test_every_objective_learns_from_every_start(source: Path, tmp_path: Path, start: str, objective: str) -> None:
    options = train_options(source, tmp_path, start=start, objective=objective)
    pipeline, trained = train(data_of(options, "train"), options)
    assert trained.history[-1]["step"] == 1 and trained.history[-1]["loss"] > 0
    (found,) = pipeline.generate(["CCO"], 1, steps=1)
    assert found.status == "ok"


def test_the_dual_encoder_is_kept_as_what_it_is(source: Path, tmp_path: Path) -> None:
    options = train_options(source, tmp_path, network=module.Network(kind="dual", width=8, blocks=1))
    pipeline, _ = train(data_of(options, "train"), options)
    again = ConformerPipeline.from_pretrained(tmp_path / "run" / "model")
    assert isinstance(again.config.network, DualConfig) and again.config == pipeline.config


def train_options(source: Path, folder: Path, **changes: object) -> Train:
    network = changes.pop("network", module.Network(width=8, blocks=1))
    training = module.TrainingOptions(steps=1, batch_size=4, progress=False, cpu=True, log_every=1)
    return Train(data=(str(source),), drafts=1, out=folder / "run", network=network, training=training, **changes)  # pyright: ignore


def test_training_reduces_the_loss(source: Path, tmp_path: Path) -> None:
    options = train_options(source, tmp_path)
    longer = module.TrainingOptions(
        steps=100, batch_size=8, progress=False, cpu=True, log_every=20, warmup=5, learning_rate=5e-3, ema=0.9
    )
    _, trained = train(data_of(options, "train"), Train(**{**vars(options), "training": longer}))
    assert trained.history[-1]["loss"] < 0.8 * trained.history[0]["loss"]


def test_levels_are_those_of_the_data() -> None:
    assert data.LEVELS == LEVELS


def test_the_frame_of_the_kernel_is_that_of_the_data(source: Path) -> None:
    """What the data hand over is what the kernel takes: y_0 centred, its likelihood finite."""
    for start in ("draft", "harmonic", "centred"):
        rows = load(source, "train", start=start, drafts=1, scale=0.5)  # pyright: ignore[reportArgumentType]
        batch = rows.batch(range(len(rows)))
        config = ConformerPipeline.config_class(start=start, scale=0.25)
        kernel = kernel_of(config).given(**batch["structure"])
        assert torch.allclose(kernel.project(batch["x_0"]), batch["x_0"], atol=1e-5)
        assert kernel.prior(batch["x_0"]).log_prob(kernel.project(batch["x_0"])).isfinite().all()
