"""The commands for whole molecules, end to end on a file of small ones; and options of the other task."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from rdkit import Chem

from polydiff.core.errors import ArgumentError
from polydiff.molecules import generation_evaluate
from polydiff.molecules.generation import MoleculePipeline
from polydiff.molecules.generation_options import GenerationTrain
from polydiff.molecules.generation_sources import load
from polydiff.molecules.loading import task_of
from polydiff.molecules.options import Network, Train
from polydiff.molecules.stability import stable_atoms
from polydiff.molecules.tasks import chosen, refuse
from polydiff.molecules.train import generation_options, network_config
from tests.molecules.test_commands import polydiff
from tools import ship

SMALL = [
    "--task",
    "molecules",
    "--width",
    8,
    "--vectors",
    8,
    "--blocks",
    1,
    "--batch-size",
    2,
    "--no-progress",
    "--cpu",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Molecules with other ring systems or names for every part."""
    path = tmp_path_factory.mktemp("data") / "small.smi"
    rings = "C1CC1 C1CO1 C1CN1 C1CS1 c1ccoc1 C1CCC1 c1ccsc1 C1COC1 c1cc[nH]c1 C1CCO1 C1=CC1 C1CNC1 O=C1CC1 c1cocn1"
    path.write_text("\n".join(["O", "C", "CO", "N", "CC", *rings.split()]))
    return path


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert polydiff("train", "--data", source, *SMALL, "--steps", 4, "--noise", "marginal", "--out", folder) == 0
    return folder


def test_a_run_of_whole_molecules(trained: Path, source: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {"config.json", "checkpoints", "metrics.jsonl", "model"}
    kept = json.loads((trained / "config.json").read_text())["options"]
    assert kept["task"] == "molecules" and kept["types"]["noise"] == "marginal" and kept["schedule"] is None
    config = MoleculePipeline.from_pretrained(trained).config
    assert (config.schedule, config.parametrisation, config.noise) == ("cosine", "v", "marginal")
    assert (config.network.width, config.network.vectors, config.network.depth) == (8, 8, 1)
    card = (trained / "model" / "README.md").read_text()
    for word in ("polydiff train molecules", "--task molecules", "--noise marginal", "--width 8", str(source)):
        assert word in card
    assert task_of(str(trained)) == task_of(str(trained / "model")) == "molecules"


def test_resume_goes_on_as_if_never_stopped(trained: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert polydiff("train", "--data", source, *SMALL, "--steps", 2, "--noise", "marginal", "--out", out) == 0
    assert polydiff("train", "--out", out, "--resume", "--steps", 4) == 0
    whole, parts = (MoleculePipeline.from_pretrained(folder).model.state_dict() for folder in (trained, out))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_model_tells_what_sample_draws(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new.sdf"
    words = ["--model", trained, "--steps", 3, "--count", 5, "--keep-invalid", "-o", out, "--seed", 7]
    assert polydiff("sample", *words) == 0
    assert "5 of 5 molecules" in capsys.readouterr().out
    found = list(Chem.SDMolSupplier(str(out), removeHs=False, sanitize=False))
    expected = MoleculePipeline.from_pretrained(trained).generate(5, steps=3, seed=7)
    for mol, atoms in zip(found, expected, strict=True):
        assert tuple(atom.GetSymbol() for atom in mol.GetAtoms()) == atoms.elements
        there = torch.from_numpy(mol.GetConformer().GetPositions().copy())
        torch.testing.assert_close(there, atoms.positions, rtol=0, atol=1e-3)


def test_evaluate_sets_the_model_beside_held_out_molecules(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert polydiff("evaluate", "--model", trained, "--count", 4, "--steps", 3, "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "atoms stable, by bond lengths, %" in said and "held-out molecules" in said
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"].startswith("polydiff evaluate molecules --model ") and results["data"] == "small"
    real = load(source, "test", count=4)
    stable = torch.cat([stable_atoms(real.atoms(i)) for i in range(len(real))]).double().mean()
    shares = results["methods"]["held-out molecules"]["shares"]["by bond lengths"]
    assert shares["atoms_stable"]["mean"] == pytest.approx(float(stable))
    nats = results["methods"]["polydiff"]["nats"]["nats of a molecule, a bound"]
    pipeline = MoleculePipeline.from_pretrained(trained)
    mine = torch.tensor([one.nats for one in pipeline.log_likelihood([real.atoms(i) for i in range(len(real))])])
    assert nats["mean"] == pytest.approx(float(mine.double().mean()), rel=1e-4)
    assert nats["standard error"] == pytest.approx(float(mine.double().std() / len(mine) ** 0.5), rel=1e-3)
    assert results["training molecules"] == len(load(source, "train"))
    rows = generation_evaluate.table(results)
    assert {tuple(row) for row in rows} == {("figure", "polydiff", "held-out molecules")}
    # And the run can be shipped with these figures.
    monkeypatch.setattr(ship, "ROOT", tmp_path)
    words = ["molecules", str(trained), "tiny", "--licence", "MIT", "--results", str(tmp_path / "results.json")]
    monkeypatch.setattr("sys.argv", ["ship", *words])
    ship.main()
    card = (tmp_path / "molecules" / "pretrained" / "tiny" / "README.md").read_text()
    assert "--task molecules" in card and "nats of a molecule, a bound" in card


def test_options_of_the_other_task_are_named(
    trained: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", tmp_path / "x"]
    for command, words, flag in (
        ("train", [*SMALL, "--data", source, "--start", "harmonic", *out], "--start"),
        ("train", [*SMALL, "--data", source, "--kind", "dual", *out], "--kind"),
        ("train", [*SMALL, "--data", source, source, *out], "--data"),
        ("train", ["--data", source, "--noise", "uniform", *out], "--noise"),
        ("train", ["--data", source, "--type-share", 2.0, *out], "--type-share"),
        ("sample", ["--model", trained, "--smiles", "CCO"], "--smiles"),
        ("sample", ["--model", trained, "--relax"], "--relax"),
        ("sample", ["--model", tmp_path / "none", "--smiles", "C", "--count", 3], "--count"),
        ("evaluate", ["--model", trained, "--protocol", "P2", *out], "--protocol"),
    ):
        assert polydiff(command, *words) == 2, words
        assert f"error: {flag}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@dataclass(frozen=True)
class Group:
    a: int | None = None
    b: int = 1


@dataclass(frozen=True)
class Command:
    group: Group = field(default_factory=Group)
    c: int | None = None
    d: int = 5
    other: Group = field(default_factory=Group)


@dataclass(frozen=True)
class Part:
    a: int = 10


@dataclass(frozen=True)
class Task:
    group: Part = field(default_factory=Part)
    c: int = 30
    e: int = 50


def test_options_of_a_task_are_chosen_by_name() -> None:
    assert chosen(Task, Command(), "x") == Task()
    assert chosen(Task, Command(Group(a=0), c=0), "x", e=2) == Task(Part(0), 0, 2)
    assert chosen(Task, Command(d=6, c=1), "x", d=None) == Task(c=1)
    for wrong, flag in ((Command(d=6), "--d"), (Command(Group(b=2)), "--b"), (Command(other=Group(a=0)), "--a")):
        with pytest.raises(ArgumentError, match=f"^{flag}:? "):
            chosen(Task, wrong, "x")
    refuse(Command(d=6), ["other"], "x")


def test_what_is_left_open_has_the_task_s_default() -> None:
    assert generation_options(Train(task="molecules")) == replace(GenerationTrain(), out=Train().out)
    conformers = network_config(Network(), 2, 1.0)
    assert (conformers.width, conformers.depth) == (64, 4)
    with pytest.raises(ArgumentError, match="--vectors"):
        network_config(Network(kind="dual", vectors=8), 2, 1.0)
