"""Molecules from nothing: what the pipeline promises, a coupled toy with a closed form, training end to end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rdkit import Chem
from torch import Tensor

from polydiff.core import grids
from polydiff.core.bounds import elbo
from polydiff.core.categorical import absorbing
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError, ConfigError, DataError
from polydiff.core.estimates import continuous_elbo
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.options import TrainingOptions
from polydiff.core.product import Product
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.molecules.generation import MoleculePipeline
from polydiff.molecules.generation_data import Molecules
from polydiff.molecules.generation_drawing import STATUS, Likelihood, atoms_of
from polydiff.molecules.generation_model import LARGEST, MoleculeConfig, kernel_of, structure_of
from polydiff.molecules.generation_network import GeneratorConfig
from polydiff.molecules.generation_options import (
    AtomTypes,
    Drawing,
    GenerationSample,
    GenerationTrain,
    GeneratorNetwork,
)
from polydiff.molecules.generation_sample import main as sample_main
from polydiff.molecules.generation_sample import sdf
from polydiff.molecules.generation_sources import load
from polydiff.molecules.generation_train import train
from polydiff.molecules.stability import Atoms, by_lengths, stable_atoms

METHANE = Atoms(
    ("C", "H", "H", "H", "H"),
    0.629 * torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64),
)
WATER = Atoms(("O", "H", "H"), torch.tensor([[0, 0, 0], [0.757, 0.586, 0], [-0.757, 0.586, 0]], dtype=torch.float64))
SIZES = (0, 0, 1, 3, 0, 4)  # 2, 3 and 5 atoms


def config(**changes: Any) -> MoleculeConfig:
    network = GeneratorConfig(types=3, width=16, vectors=8, depth=1, radial=8, scale=1.3)
    known: dict[str, Any] = {"elements": ("H", "C", "O"), "counts": (6, 2, 1), "sizes": SIZES, "network": network}
    return MoleculeConfig(**{**known, **changes})


def pipeline(**changes: Any) -> MoleculePipeline:
    """Untrained, in float64, every weight different from zero."""
    wanted = config(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MoleculePipeline.build(wanted).double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return MoleculePipeline(wanted, model.eval())


@pytest.fixture(scope="module")
def untrained() -> MoleculePipeline:
    return pipeline()


def same(mine: Atoms, other: Atoms) -> None:
    assert mine.elements == other.elements
    torch.testing.assert_close(mine.positions, other.positions, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------ a closed form


class Coupled:
    """Pairs of atoms of two kinds, a = (0, 0) or (1, 1), whose distance tells: x | a ~ N(0, s_a^2 P). Exact beliefs."""

    P = torch.tensor([0.35, 0.65], dtype=torch.float64)
    S = torch.tensor([0.4, 1.5], dtype=torch.float64)

    def __init__(self, count: int):
        self.rows = {"index": torch.arange(count).repeat_interleave(2), "num_graphs": count}
        self.positions, self.types = Cosine(), RectifiedFlow()
        parts = [Gaussian(self.positions, Centred()), absorbing(self.types, 3, 2)]
        self.kernel = Product(parts).given(part_0=self.rows, part_1=self.rows)
        self.count = count

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        kind = torch.multinomial(self.P, self.count, True, generator=generator)
        x = Centred().given(**self.rows).draw(torch.zeros(2 * self.count, 3, dtype=torch.float64), generator)
        return self.S[kind].repeat_interleave(2)[:, None] * x, kind.repeat_interleave(2)

    def log_prob(self, x_0: tuple[Tensor, Tensor]) -> Tensor:
        kind = x_0[1][::2]
        squares = x_0[0].square().sum(1).view(-1, 2).sum(1)
        variance = self.S[kind] ** 2
        return self.P[kind].log() - squares / (2 * variance) - 1.5 * (2 * math.pi * variance).log()

    def denoise(self, x_t: tuple[Tensor, Tensor], t: Any) -> tuple[Belief, Tensor]:
        alpha, sigma = (u.reshape(-1, 1) for u in self.positions(torch.as_tensor(t, dtype=torch.float64)))
        variance = (alpha * self.S) ** 2 + sigma**2  # (B or 1, 2)
        squares = x_t[0].square().sum(1).view(-1, 2).sum(1)[:, None]
        weight = self.P.log() - squares / (2 * variance) - 1.5 * variance.log()
        seen = x_t[1].view(-1, 2)
        for k in range(2):
            shown = (seen == k).any(1)
            weight[:, 1 - k] = weight[:, 1 - k].masked_fill(shown, -math.inf)
        belief = weight.log_softmax(1)
        gain = (belief.exp() * alpha * self.S**2 / variance).sum(1)
        mean = gain.repeat_interleave(2)[:, None] * x_t[0]
        types = torch.nn.functional.pad(belief, (0, 1), value=-math.inf)
        return Belief(mean), types.repeat_interleave(2, 0)


def test_the_continuous_bound_of_a_coupled_law_is_its_density() -> None:
    """In infinitely many steps factorised ones lose nothing (5 standard errors)."""
    toy = Coupled(4_000)
    x_0 = toy.sample(seeded(0))
    bound = continuous_elbo(toy.denoise, toy.kernel, x_0, terms=6, low=1e-2, generator=seeded(1))
    slack = bound.total + toy.log_prob(x_0)
    error = float(slack.std()) / toy.count**0.5
    assert error < 0.08
    assert abs(float(slack.mean())) < 5 * error


def test_coarse_bounds_of_a_coupled_law_lose_by_factorising() -> None:
    toy = Coupled(2_000)
    x_0 = toy.sample(seeded(0))
    slack = elbo(toy.denoise, toy.kernel, x_0, grids.uniform(4), generator=seeded(1)).total + toy.log_prob(x_0)
    assert float(slack.mean()) > 5 * float(slack.std()) / toy.count**0.5


def test_the_likelihood_counts_in_angstrom(untrained: MoleculePipeline) -> None:
    """The core's bound of centred positions over `scale`, 3 (N - 1) times its logarithm away; labelled atoms."""
    molecules = [METHANE, WATER, Atoms(("H",), torch.zeros(1, 3))]
    found = untrained.log_likelihood(molecules, steps=20, terms=None)
    kernel, denoise = untrained.bound_to([5, 3, 1])
    scale = untrained.config.network.scale
    x = torch.cat([one.positions - one.positions.mean(0) for one in molecules]) / scale
    types = torch.tensor([1, 0, 0, 0, 0, 2, 0, 0, 0])
    nats = elbo(denoise, kernel, (x, types), grids.uniform(20), generator=example_generators(0, 0, range(3))).total
    for one, value, n, size in zip(
        found, nats.tolist(), (5, 3, 1), (math.log(2), math.log(8 / 3), math.inf), strict=True
    ):
        assert one.atoms == n and one.dof == 3 * (n - 1)
        assert one.nats == pytest.approx(value + 3 * (n - 1) * math.log(scale), rel=1e-9)
        assert one.size == pytest.approx(size)
        assert one.bits == pytest.approx(one.nats / math.log(2))
        assert one.unlabelled == pytest.approx(one.nats - math.log(math.factorial(n)))


def test_the_likelihood_does_not_depend_on_neighbours_or_the_frame(untrained: MoleculePipeline) -> None:
    both = untrained.log_likelihood([METHANE, WATER], steps=10, terms=3)
    apart = untrained.log_likelihood([METHANE, WATER], steps=10, terms=3, batch_size=1)
    moved = untrained.log_likelihood([METHANE._replace(positions=METHANE.positions + 7)], steps=10, terms=3)
    for mine, other in ((both[0], apart[0]), (both[1], apart[1]), (both[0], moved[0])):
        assert mine.nats == pytest.approx(other.nats, rel=1e-9)
    few, every = (
        torch.tensor([one.nats for one in untrained.log_likelihood([WATER] * 200, steps=8, terms=terms)])
        for terms in (2, None)
    )
    assert abs(float(few.mean() - every.mean())) < 5 * float((few.var() + every.var()).sqrt()) / 200**0.5


# ------------------------------------------------------------------------------------------------ drawing


def test_a_molecule_depends_on_its_seed_and_number_alone(untrained: MoleculePipeline) -> None:
    whole = untrained.generate(7, steps=4, seed=3)
    for batch_size in (1, 3):
        for mine, other in zip(untrained.generate(7, steps=4, seed=3, batch_size=batch_size), whole, strict=True):
            same(mine, other)
    same(untrained.generate(1, steps=4, seed=3, first=5)[0], whole[5])
    assert untrained.generate(7, steps=4, seed=4)[0].positions.tolist() != whole[0].positions.tolist()


def test_sizes_are_those_of_the_training_set(untrained: MoleculePipeline) -> None:
    """Chi-square with two degrees of freedom below 13.8 (0.1 %), seed fixed."""
    drawn = torch.tensor(untrained._sizes(800, None, {}))
    counts = torch.bincount(drawn, minlength=6).double()
    expected = 800 * torch.tensor(SIZES, dtype=torch.float64) / 8
    assert not bool(counts[expected == 0].any())
    assert float(((counts - expected) ** 2 / expected.clamp_min(1))[expected > 0].sum()) < 13.8
    given = untrained.generate(3, [4, 1, 2], steps=2)
    assert [len(one.elements) for one in given] == [4, 1, 2]
    assert [len(one.elements) for one in untrained.generate(2, 6, steps=2)] == [6, 6]
    for one in given:
        assert one.positions.dtype == torch.float64 and one.positions.shape == (len(one.elements), 3)
        assert set(one.elements) <= {"H", "C", "O"}
        torch.testing.assert_close(one.positions.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_bad_numbers_are_named(untrained: MoleculePipeline) -> None:
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("count", lambda: untrained.generate(0)),
        ("count", lambda: untrained.generate(True)),
        ("sizes", lambda: untrained.generate(1, 0)),
        ("sizes", lambda: untrained.generate(1, LARGEST + 1)),
        ("sizes", lambda: untrained.generate(2, [3])),
        ("sizes", lambda: untrained.generate(2, [3, -1])),
        ("steps", lambda: untrained.generate(1, steps=0)),
        ("stops", lambda: untrained.generate(1, stops=5)),  # pyright: ignore
        ("batch_size", lambda: untrained.generate(1, batch_size=0)),
        ("size", lambda: untrained.complete(WATER, 3, 1)),
        ("sampler", lambda: untrained.complete(WATER, 5, 1, sampler=lambda *a, **k: iter(()))),
        (r"molecules\[0\]", lambda: untrained.complete(METHANE._replace(elements=("N", *"HHHH")), 9, 1)),
        (r"molecules\[1\]", lambda: untrained.log_likelihood([WATER, WATER._replace(elements=("S", "H", "H"))])),
        ("mol", lambda: untrained.log_likelihood([Chem.MolFromSmiles("C")])),
    ]
    for name, call in calls:
        with pytest.raises(ArgumentError, match=f"^{name}"):
            call()


def test_every_molecule_comes_back_with_its_status(untrained: MoleculePipeline) -> None:
    found = untrained(3, steps=3)
    atoms = untrained.generate(3, steps=3)
    for mol, one in zip(found, atoms, strict=True):
        assert mol.GetProp(STATUS) in ("ok", "invalid") and mol.GetNumConformers() == 1
        same(atoms_of(mol), one)
    made = untrained(1, 2, bonds=lambda atoms: by_lengths(WATER), steps=2)[0]
    assert made.GetProp(STATUS) == "ok" and made.GetNumBonds() == 2
    broken = untrained(1, 2, bonds=lambda atoms: None, steps=2)[0]
    assert broken.GetProp(STATUS) == "invalid" and broken.GetNumBonds() == 0
    text = sdf([broken, made])
    assert text.count("$$$$") == 1 and text.startswith("1\n") and ">  <status>\nok\n" in text
    assert sdf([broken, made], keep_invalid=True).count("$$$$") == 2


def test_a_trajectory_ends_in_the_molecule(untrained: MoleculePipeline) -> None:
    shown = untrained.trajectory(5, count=3, steps=6, seed=2, first=1)
    assert len(shown) == 3 and "*" in shown[0].elements and "*" not in shown[-1].elements
    same(shown[-1], untrained.generate(1, 5, steps=6, seed=2, first=1)[0])


@pytest.mark.parametrize("noise", ["absorbing", "uniform", "marginal"])
def test_a_fragment_stays_to_the_letter(noise: Any) -> None:
    own = pipeline(noise=noise)
    moved = WATER._replace(positions=WATER.positions + torch.tensor([5.0, -3.0, 1.0]))
    found = own.complete(moved, [5, 4, 7], 3, steps=6, jump=2, resamples=2, seed=1)
    assert [len(one.elements) for one in found] == [5, 4, 7]
    for one in found:
        assert one.elements[:3] == WATER.elements
        assert torch.equal(one.positions[:3], moved.positions)
        assert bool(one.positions.isfinite().all())
    assert not torch.allclose(found[0].positions[3:4], found[1].positions[3:4], atol=1e-3)
    alone = own.complete(moved, 4, 1, steps=6, jump=2, resamples=2, seed=1, first=1)[0]
    same(alone, found[1])
    same(own.complete(sanitised(moved), 4, 1, steps=6, jump=2, resamples=2, seed=1, first=1)[0], found[1])


def sanitised(atoms: Atoms) -> Chem.Mol:
    mol = by_lengths(atoms)
    assert mol is not None
    return mol


@torch.no_grad()
def test_drawing_commutes_with_rotations_of_the_noise(untrained: MoleculePipeline) -> None:
    """The whole reverse chain is equivariant: turned noise, turned molecule."""
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=seeded(8), dtype=torch.float64))
    turn = q * r.diagonal().sign()
    kernel, denoise = untrained.bound_to([5, 3])
    x = kernel.prior((torch.zeros(8, 3, dtype=torch.float64), torch.zeros(8, dtype=torch.long))).sample(seeded(0))
    t, types = 0.6, torch.tensor([0, 1, 3, 3, 2, 0, 3, 1])
    mine, other = denoise((x[0], types), t), denoise((x[0] @ turn.T, types), t)
    torch.testing.assert_close(other[0].mean, mine[0].mean @ turn.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other[1], mine[1], rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ model and data


def test_configurations_that_cannot_be_are_refused() -> None:
    for changes in (
        {"elements": ("H", "C", "C")},
        {"elements": ("H", "C", "Xx")},
        {"counts": (1, 2)},
        {"counts": (0, 0, 0)},
        {"sizes": (1, 2)},
        {"sizes": (0, 0)},
        {"sizes": (0,) * LARGEST + (0, 1)},
        {"network": GeneratorConfig(types=4)},
        {"type_schedule": "linear"},
        {"type_schedule": "ve", "noise": "uniform"},
    ):
        with pytest.raises(ConfigError):
            config(**changes)
    assert config(noise="uniform", type_schedule="linear").noise == "uniform"


@pytest.mark.parametrize("noise", ["absorbing", "uniform", "marginal"])
def test_types_end_where_their_noise_says(noise: Any) -> None:
    wanted = config(noise=noise)
    kernel = kernel_of(wanted, MoleculePipeline.build(wanted)).given(**structure_of([2, 3]))
    law: Any = kernel.prior((torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))).parts[1]
    expected = {"absorbing": [0, 0, 0, 1], "uniform": [1 / 3] * 3, "marginal": [6 / 9, 2 / 9, 1 / 9]}[noise]
    torch.testing.assert_close(law.mean[4], torch.tensor(expected, dtype=law.mean.dtype))
    assert kernel.dims((torch.zeros(5, 3), torch.zeros(5, dtype=torch.long))).tolist() == [3 + 2, 6 + 3]


def test_data_come_back_as_they_were() -> None:
    data = Molecules([METHANE, WATER, METHANE], "three")
    assert len(data) == 3 and data.elements == ("H", "C", "O") and data.counts == (10, 2, 1)
    assert data.sizes == (0, 0, 0, 1, 0, 2)
    for i, one in enumerate((METHANE, WATER, METHANE)):
        assert data.atoms(i).elements == one.elements
        centred = one.positions - one.positions.mean(0)
        torch.testing.assert_close(data.atoms(i).positions, centred, rtol=0, atol=1e-6)
    batch = data.batch(torch.tensor([1, 0]))
    x, types = batch["x_0"]
    assert types.tolist() == [2, 0, 0, 1, 0, 0, 0, 0] and x.dtype == torch.float32
    assert batch["index"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert batch["structure"]["part_0"]["num_graphs"] == batch["structure"]["part_1"]["num_graphs"] == 2
    whole = data.batch(range(3))["x_0"][0]
    assert float(whole.double().square().sum()) / (12 + 6 + 12) == pytest.approx(1, rel=1e-5)
    assert data.names == {"[H]C([H])([H])[H]", "[H]O[H]"}
    other = Molecules([METHANE, WATER, WATER], "three")
    again = Molecules([METHANE, WATER, METHANE], "another name")
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    assert Molecules([WATER], "one", elements=("O", "H"), scale=2.0).batch([0])["x_0"][1].tolist() == [0, 1, 1]


def test_bad_data_are_refused() -> None:
    for molecules in ([], [Atoms((), torch.zeros(0, 3))], [WATER._replace(positions=WATER.positions * math.nan)]):
        with pytest.raises(DataError):
            Molecules(molecules, "bad")
    with pytest.raises(DataError, match="elements O"):
        Molecules([WATER], "bad", elements=("H", "C"))


# ------------------------------------------------------------------------------------------------ end to end


def options(folder: Path, **changes: Any) -> GenerationTrain:
    training = TrainingOptions(
        steps=12, batch_size=8, learning_rate=3e-3, warmup=2, ema=0.5, log_every=4, cpu=True, progress=False
    )
    network = GeneratorNetwork(width=16, vectors=8, blocks=1)
    return replace(GenerationTrain(out=folder, network=network, training=training), **changes)


def test_training_drawing_and_keeping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Molecules([METHANE, WATER] * 8, "two")
    asked = options(tmp_path / "run")
    made, trained = train(data, asked)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    read = MoleculePipeline.from_pretrained(tmp_path / "run")
    assert read.config == made.config and read.card is not None and "two" in read.card
    for mine, other in zip(made.generate(3, steps=3), read.generate(3, steps=3), strict=True):
        same(mine, other)
    again, _ = train(data, options(tmp_path / "again"))
    for mine, other in zip(made.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(ArgumentError, match="^folder"):
        train(data, asked)
    out = tmp_path / "out.sdf"
    drawing = Drawing(count=4, keep_invalid=True)
    sample_main(GenerationSample(model=str(tmp_path / "run"), drawing=drawing, steps=3, out=out))
    assert "4 of 4 molecules" in capsys.readouterr().out
    assert len([mol for mol in Chem.SDMolSupplier(str(out), removeHs=False, sanitize=False) if mol is not None]) == 4
    with pytest.raises(ArgumentError, match="^--out"):
        sample_main(GenerationSample(model=str(tmp_path / "run"), out=tmp_path))


@pytest.mark.parametrize("types", [AtomTypes(noise="uniform"), AtomTypes(noise="marginal", reading="context")], ids=str)
def test_other_noise_trains_too(tmp_path: Path, types: AtomTypes) -> None:
    data = Molecules([METHANE, WATER] * 4, "two")
    made, trained = train(data, options(tmp_path / "run", types=types))
    assert all(math.isfinite(entry["loss"]) for entry in trained.history)
    assert isinstance(made.log_likelihood([WATER], steps=5, terms=1)[0], Likelihood)


def test_sources_are_those_of_conformers(tmp_path: Path) -> None:
    """A user's SDF as it is, SMILES as minima of MMFF94, the embedded list without a download."""
    mol = sanitised(METHANE)
    mol.SetProp("_Name", "methane")
    file = tmp_path / "own.sdf"
    file.write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    names: tuple[Any, ...] = ("train", "valid", "test")
    splits = [split for split in names if is_there(file, split)]
    assert len(splits) == 1
    (one,) = [load(file, splits[0]).atoms(0)]
    assert one.elements == METHANE.elements
    torch.testing.assert_close(one.positions, METHANE.positions, rtol=0, atol=2e-4)
    (tmp_path / "own.smi").write_text("\n".join(["O", "C", "CC", "CO", "N"]))
    made = load(tmp_path / "own.smi", "train", scale=1.0)
    assert made.scale == 1.0 and all(bool(stable_atoms(made.atoms(i)).all()) for i in range(len(made)))
    small = load("small", count=3)
    assert len(small) == 3 and set(small.elements) <= {"H", *"BCNOFSPI", "Cl", "Br", "Si"}
    wrong: list[dict[str, Any]] = [{"split": "all"}, {"count": 0}]
    for bad in wrong:
        with pytest.raises(ArgumentError, match=f"^{next(iter(bad))}"):
            load("small", **bad)
    with pytest.raises(DataError, match="nowhere"):
        load("nowhere")


def is_there(file: Path, split: Any) -> bool:
    try:
        return len(load(file, split)) > 0
    except DataError:
        return False
