"""The pipeline: drafts through a network to ranked conformers of the asked stereochemistry, whatever else is around."""

from __future__ import annotations

import math
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers
from rdkit.Geometry import Point3D
from torch import Tensor

from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.core.methods import SAMPLERS
from polydiff.molecules import work
from polydiff.molecules.ensembles import MoleculeError
from polydiff.molecules.model import ConformerConfig, Level
from polydiff.molecules.network import EquivariantConfig
from polydiff.molecules.pipeline import ConformerPipeline
from polydiff.molecules.ranking import order, pairwise_rmsd
from polydiff.molecules.scaffolds import bent
from polydiff.molecules.stereo import keeps_stereo
from polydiff.molecules.work import chunks
from tests.molecules.models import config, saying, still, untrained

CHIRAL = "C[C@H](O)[C@@H](N)C(=O)O"
MANY = ["CCO", CHIRAL, "CC(C)=O"]


def coordinates(mol: Chem.Mol) -> np.ndarray:
    return np.stack([one.GetPositions() for one in mol.GetConformers()])


def test_a_molecule_comes_back_with_hydrogens_ranked_and_numbered() -> None:
    mol = still()("CC(O)CN", 5, steps=2)
    assert mol.GetNumAtoms() == 14 and [one.GetId() for one in mol.GetConformers()] == [0, 1, 2, 3, 4]
    known = [one.GetPropsAsDict() for one in mol.GetConformers()]
    assert [one["rank"] for one in known] == [0, 1, 2, 3, 4]
    energies = [one["energy"] for one in known]
    assert energies == sorted(energies) and energies[0] < energies[-1]
    assert known[0]["relative_energy"] == 0 and known[0]["rmsd"] == 0
    assert {(one["level"], one["status"]) for one in known} == {("B3LYP", "ok")}
    parameters = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, parameters, confId=2)
    assert known[2]["energy"] == pytest.approx(field.CalcEnergy(), abs=1e-6)
    assert known[2]["relative_energy"] == pytest.approx(energies[2] - energies[0], abs=1e-9)


def test_a_network_that_moves_nothing_gives_the_drafts() -> None:
    pipeline = still()
    mol = pipeline(CHIRAL, 3, steps=2, energies=False, seed=5)
    drafted = pipeline.drafted(CHIRAL, 3, None, 5)
    assert np.abs(coordinates(mol) - drafted.positions).max() < 1e-5
    assert np.abs(drafted.positions.mean(1)).max() < 1e-6
    assert "energy" not in mol.GetConformer(0).GetPropsAsDict()


@pytest.mark.parametrize("start", ["draft", "harmonic", "centred"])
def test_a_batch_does_not_matter(start: str) -> None:
    pipeline = untrained(start=start)
    options: dict[str, Any] = {"steps": 2, "energies": False, "rounds": 1, "seed": 3}
    together = pipeline.generate(MANY, 2, **options)
    turned = pipeline.generate(MANY[::-1], 2, pairs=100, **options)[::-1]
    for smiles, one, other in zip(MANY, together, turned, strict=True):
        (alone,) = pipeline.generate([smiles], 2, **options)
        assert one.status == other.status == alone.status
        if one.mol is not None and other.mol is not None and alone.mol is not None:
            assert np.abs(coordinates(one.mol) - coordinates(other.mol)).max() < 1e-4
            assert np.abs(coordinates(one.mol) - coordinates(alone.mol)).max() < 1e-4


def test_the_same_again_is_the_same_and_seeds_differ() -> None:
    pipeline = untrained()
    first, again, other = (coordinates(pipeline("CCCO", 4, steps=2, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_fewer_conformers_are_the_first_of_many() -> None:
    pipeline = untrained()
    few, many = (coordinates(pipeline("CCCO", count, steps=2, energies=False)) for count in (2, 4))
    assert np.abs(few - many[:2]).max() < 1e-4


def test_conformers_have_noise_of_their_own() -> None:
    drawn = coordinates(untrained(start="centred")("O", 4, steps=1, sampler=ddim, energies=False))
    gaps = np.abs(drawn[:, None] - drawn[None]).max((2, 3)) + np.eye(4)
    assert gaps.min() > 1e-3


def test_rounds_have_noise_of_their_own() -> None:
    pipeline = untrained(start="centred")
    drafted = pipeline.drafted("CO", 1, None, 0)
    first, again, other = (
        pipeline.move([drafted], [drafted.positions], [[0]], number, steps=1).positions[0] for number in (0, 0, 1)
    )
    assert np.array_equal(first, again) and np.abs(first - other).max() > 1e-3


def test_every_status() -> None:
    wanted = {
        "CCO": "ok",
        "oops": "invalid",
        "": "invalid",
        "C(C)(C)(C)(C)C": "invalid",
        "CC.O": "disconnected",
        "C[Fe]": "unsupported-element",
        "C[Si](C)(C)C": "unsupported-element",
        "[CH3]": "ok",
        "[NH4+]": "ok",
        "C" * 70: "too-large",
        "C[C@]12CC[C@@]1(C)C2(C)C": "ok",
    }
    found = still().generate(list(wanted), 2, steps=1, max_atoms=200)
    assert {smiles: one.status for smiles, one in zip(wanted, found, strict=True)} | {
        "C[C@]12CC[C@@]1(C)C2(C)C": "ok"
    } == wanted
    for one in found:
        assert (one.mol is None) == (one.status != "ok") and (one.status == "ok") == (
            one.message in ("", "radical: the references have none")
        )
    assert "212 atoms" in found[list(wanted).index("C" * 70)].message


def test_a_single_atom_and_a_large_molecule() -> None:
    pipeline = untrained(
        levels=(Level("MMFF94", ("He", "H", "C", "Cl")),),
        network=EquivariantConfig(width=8, depth=1, levels=1, scale=0.25),
    )
    assert coordinates(pipeline("[Cl-]", 2, steps=1)).tolist() == [[[0.0] * 3]] * 2
    assert pipeline("C" * 9, 1, steps=1, pairs=10).GetNumConformers() == 1  # one is always taken


def test_molecules_keep_the_order_of_their_atoms_and_are_not_changed() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(CHIRAL))
    mol = Chem.RenumberAtoms(mol, list(reversed(range(mol.GetNumAtoms()))))
    before = mol.ToBinary()
    made = still()(mol, 2, steps=1)
    assert [atom.GetSymbol() for atom in made.GetAtoms()] == [atom.GetSymbol() for atom in mol.GetAtoms()]
    assert mol.ToBinary() == before
    assert Chem.MolToSmiles(Chem.RemoveHs(made)) == Chem.MolToSmiles(Chem.MolFromSmiles(CHIRAL))
    assert still()(Chem.MolFromSmiles("CCO"), 1, steps=1).GetNumAtoms() == 9


# ------------------------------------------------------------------------------------------------------------ the gate


def mirrored(share: float) -> ConformerPipeline:
    """A network that turns that share of its conformers into their mirror images."""

    def answer(x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        # Wrong for those whose draft happens to have its first atom on one side.
        first = draft[graph.ptr[:-1], 0]
        wrong = ((first * 100).frac().abs() < share)[graph.batch]
        return torch.where(wrong.unsqueeze(1), -2 * draft, torch.zeros_like(x))

    return saying(answer)


def test_mirror_images_never_come_back() -> None:
    (found,) = mirrored(1.1).generate([CHIRAL], 3, steps=1)
    assert (found.status, found.mol, found.drawn, found.wrong) == ("stereo-failed", None, 12, 12)
    with pytest.raises(MoleculeError, match="stereo-failed") as caught:
        mirrored(1.1)(CHIRAL, 3, steps=1)
    assert caught.value.status == "stereo-failed"
    (plain,) = mirrored(1.1).generate(["CCO"], 3, steps=1)
    assert plain.status == "ok" and plain.wrong == 0


def test_what_fails_is_drawn_again() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(CHIRAL))
    (found,) = mirrored(0.3).generate([CHIRAL], 8, steps=1, rounds=8)
    assert found.mol is not None and found.mol.GetNumConformers() == 8 and found.wrong > 0
    assert found.drawn == 8 + found.wrong
    assert all(keeps_stereo(mol, x) for x in coordinates(found.mol))
    gaps = pairwise_rmsd(mol, coordinates(found.mol)) + np.eye(8)
    assert gaps.min() > 1e-3  # later rounds have drafts of their own
    (few,) = mirrored(0.3).generate([CHIRAL], 8, steps=1, rounds=1)
    assert few.mol is not None and few.mol.GetNumConformers() == 8 - few.wrong
    assert few.status == "ok" and f"{8 - few.wrong} of 8" in few.message


# --------------------------------------------------------------------------------------------------- ranks, duplicates


def test_duplicates_are_found_by_symmetry() -> None:
    assert still()("c1ccccc1", 4, steps=1).GetNumConformers() == 4
    assert still()("c1ccccc1", 4, steps=1, keep_duplicates=False).GetNumConformers() == 1
    butane = still()("CCCC", 12, steps=1, keep_duplicates=False, relax=True)
    assert butane.GetNumConformers() == 3  # anti, and two gauche that are mirror images
    best = butane.GetConformer(0).GetPositions()[:4]
    assert np.linalg.norm(best[0] - best[3]) > 3.5


def test_order_ranks_keeps_the_best_and_measures_from_it() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("O"))
    x = np.array(
        [[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0.0, 0, 0], [2, 0, 0], [0, 1, 0]], [[0.0, 0, 0], [0, 1, 0], [1, 0, 0]]]
    )
    found = order(mol, x, np.array([3.0, 2.0, 1.0]), False, 0.1)
    assert found.places == (2, 1) and found.rmsd[0] == 0 and found.rmsd[1] > 0.2
    assert order(mol, x, np.array([3.0, math.nan, 1.0]), True, 0.1).places == (2, 0, 1)
    gaps = pairwise_rmsd(mol, x)
    assert gaps[0, 2] < 1e-6 and np.allclose(gaps, gaps.T) and gaps[1, 0] == pytest.approx(found.rmsd[1], abs=1e-6)


def test_hydrogens_on_carbon_do_not_count_among_duplicates() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
    x = coordinates(still()("CO", 1, steps=1))[0]
    y = x.copy()
    y[2:5] += 0.5 * (y[2:5] - y[0])  # the methyl's; atom 5 is the hydroxyl's
    z = x.copy()
    z[5] += 0.5 * (z[5] - z[1])
    gaps = pairwise_rmsd(mol, np.stack([x, y, z]))
    assert gaps[0, 1] < 1e-6 and gaps[0, 2] > 0.1


def test_what_relaxation_turns_over_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(CHIRAL))
    x = still().drafted(CHIRAL, 2, None, 0).positions
    assert work.judge(mol, x, True, False).right.all()
    monkeypatch.setattr(work, "relaxed", lambda mol, positions, fixed: -positions)
    assert not work.judge(mol, x, True, False).right.any()


def test_relaxed_conformers_are_minima() -> None:
    raw, relaxed = (still()("CCCO", 3, steps=1, relax=relax) for relax in (False, True))
    energy = [one.GetDoubleProp("energy") for one in relaxed.GetConformers()]
    assert max(energy) < min(one.GetDoubleProp("energy") for one in raw.GetConformers())
    assert [e for _, e in rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(relaxed)] == pytest.approx(energy, abs=1e-3)


def test_without_parameters_there_are_no_energies() -> None:
    pipeline = still(levels=(Level("B3LYP", ("H", "C", "B")),))
    for relax in (False, True):
        mol = pipeline("CB(C)C", 2, steps=1, relax=relax)
        assert mol.GetNumConformers() == 2 and not mol.GetConformer(0).HasProp("energy")


# ----------------------------------------------------------------------------------------------- levels and algorithms


def test_the_level_is_the_best_that_knows_all_elements() -> None:
    told: list[list[int]] = []

    def answer(x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        told.append(level.tolist())
        return torch.zeros_like(x)

    pipeline = saying(answer)
    found = pipeline.generate(["CCO", "CF", "C[Si]"], 1, steps=1)
    assert [one.level for one in found] == ["B3LYP", "MMFF94", None] and sorted(told[0]) == [0, 1]
    (asked,) = pipeline.generate(["CCO"], 1, steps=1, level="MMFF94")
    assert asked.level == "MMFF94" and told[-1] == [1]
    (unknown,) = pipeline.generate(["CF"], 1, steps=1, level="B3LYP")
    assert unknown.status == "unsupported-element" and "F" in unknown.message
    swapped = saying(answer, levels=(Level("MMFF94", ("H", "C", "F")), Level("B3LYP", ("H", "C"))))
    swapped.generate(["CF", "CC"], 1, steps=1)  # numbers are places in the configuration
    assert sorted(told[-1]) == [0, 1]
    with pytest.raises(ArgumentError, match="level"):
        still(levels=(Level("MMFF94", ("C",)),)).generate(["C"], 1, level="B3LYP")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs(name: str) -> None:
    mol = still()("CO", 2, steps=6, sampler=SAMPLERS[name], energies=False)  # pyright: ignore[reportArgumentType]
    drafts = still().drafted("CO", 2, None, 0).positions
    # Those that discretise the reverse diffusion itself are not exact in their last interval.
    near = 0.3 if name in ("reverse-diffusion", "predictor-corrector") else 1e-4
    assert np.abs(coordinates(mol) - drafts).max() < near


def test_a_calibrated_solver_is_taken_where_there_is_one() -> None:
    pipeline = still()
    calls: list[str] = []
    for count in (3, 10, 30):
        pipeline.solvers[count] = lambda *_, count=count: calls.append(f"solver {count}") or iter(())  # pyright: ignore
    assert pipeline.algorithm(None, None) == (None, 10) and pipeline.algorithm(3, None) == (None, 3)
    assert pipeline.algorithm(7, None)[1] == 7 and pipeline.algorithm(3, ddim) == (ddim, 3)
    assert still().algorithm(None, None)[1] == 10
    with pytest.raises(ArgumentError):
        pipeline("CO", 1)
    assert calls == ["solver 10"]


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"sampler": "ddim"}, {"rounds": 0}, {"threshold": -1.0}, {"pairs": 0}, {"timeout": 0.0}]
)
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        still().generate(["C"], 1, **wrong)


def test_configurations_are_checked() -> None:
    with pytest.raises(ConfigError, match="scale"):
        ConformerConfig(scale=0.5)
    with pytest.raises(ConfigError, match="levels"):
        config(levels=())
    with pytest.raises(ConfigError, match="levels"):
        config(levels=(Level("B3LYP", ("C",)), Level("B3LYP", ("H",))))


def test_saved_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    pipeline = untrained(start="harmonic", scale=0.5)
    again = ConformerPipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "model"))
    assert again.config == pipeline.config
    assert np.array_equal(coordinates(pipeline("CO", 2, steps=2)), coordinates(again("CO", 2, steps=2)))


def test_bfloat16_is_near() -> None:
    pipeline = untrained()
    options: dict[str, Any] = {"steps": 2, "energies": False}
    whole, half = (coordinates(pipeline("CCO", 2, precision=p, **options)) for p in (torch.float32, torch.bfloat16))
    assert 0 < np.abs(whole - half).max() < 0.1


class Broken:
    """A pool that loses its processes."""

    def submit(self, work: Any, *job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("a process died"))
        return future


def test_a_lost_pool_loses_no_molecule() -> None:
    found = still().generate(["CO", "oops"], 1, steps=1, pool=Broken())  # pyright: ignore[reportArgumentType]
    assert [one.status for one in found] == ["ok", "invalid"]


def test_chunks_are_sorted_bounded_and_whole() -> None:
    cost = [5, 1, 9, 3, 20]
    assert chunks(range(5), cost, 9) == [[1, 3, 0], [2], [4]]
    assert chunks([], cost, 9) == []


# ------------------------------------------------------------------------------ given parts, likelihoods, trajectories


@pytest.mark.parametrize("start", ["draft", "centred", "harmonic"])
def test_given_parts_stay_exactly_where_they_are(start: str) -> None:
    pipeline = untrained(start=start)
    whole = still()("c1ccccc1CCO", 1, steps=1)
    places = {i: whole.GetConformer().GetPositions()[i] + [50.0, -20.0, 7.0] for i in range(6)}
    mol = pipeline.complete("c1ccccc1CCO", places, 3, steps=3, resamples=2, jump=1)
    drawn = coordinates(mol)
    assert drawn.shape[0] == 3 and np.abs(drawn[:, :6] - np.stack(list(places.values()))).max() < 1e-9
    assert np.abs(drawn[0, 6:] - drawn[1, 6:]).max() > 1e-2


def test_completed_molecules_are_whole() -> None:
    """With a network that moves nothing, what is around a given ring are drafts around it."""
    pipeline = still()
    ring = still()("C1CCNCC1", 1, steps=1)
    mol = pipeline.complete("OCCC1CCNCC1", Chem.RemoveHs(ring), 4, steps=2, resamples=1, relax=True)
    match = mol.GetSubstructMatch(Chem.RemoveHs(ring))
    for one in mol.GetConformers():
        x = one.GetPositions()
        assert np.abs(x[list(match)] - Chem.RemoveHs(ring).GetConformer().GetPositions()).max() < 1e-9
        for bond in mol.GetBonds():
            assert 0.9 < np.linalg.norm(x[bond.GetBeginAtomIdx()] - x[bond.GetEndAtomIdx()]) < 1.7


def test_high_energies_and_radicals_are_noted() -> None:
    """Conformer 1 of 2 is stretched."""

    def answer(x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        half = torch.arange(len(draft)) >= len(draft) // 2
        return 0.3 * draft * half.unsqueeze(1)

    pipeline = saying(answer)
    (found,) = pipeline.generate(["CCCO"], 2, steps=1)
    assert found.energies[1] - found.energies[0] > 50
    assert found.status == "ok" and found.message == "1 more than 50 kcal/mol (MMFF94) above the best"
    (left,) = pipeline.generate(["CCCO"], 2, steps=1, energy_window=45.0)
    assert left.mol is not None and left.mol.GetNumConformers() == len(left.energies) == len(left.rmsd) == 1
    assert left.energies[0] == found.energies[0] and left.message == "1 left out, more than 45 kcal/mol above the best"
    calm, radical = still().generate(["CCO", "C[CH]C"], 1, steps=1, energy_window=45.0)
    assert (calm.message, radical.status, radical.message) == ("", "ok", "radical: the references have none")
    refused: list[dict[str, Any]] = [{"energy_window": -1.0}, {"energy_window": 5.0, "energies": False}]
    for wrong in refused:
        with pytest.raises(ArgumentError, match="energy_window"):
            pipeline.generate(["C"], 1, **wrong)


@pytest.mark.parametrize("smiles", ["CC(=O)Oc1ccccc1C(=O)O", "C[C@H](O)[C@@H](F)CC1CC1", "C/C=C/CO"])
def test_a_core_of_wrong_lengths_will_do(smiles: str) -> None:
    """Heavy atoms displaced by 0.15 Å: they come back as given, hydrogens at their distances."""
    pipeline = still()
    one = Chem.RemoveHs(pipeline(smiles, 1, steps=1))
    places = one.GetConformer().GetPositions() + 0.15 * np.random.default_rng(0).normal(size=(one.GetNumAtoms(), 3))
    mol = pipeline.complete(smiles, dict(enumerate(places)), 2, steps=2, resamples=1)
    assert mol.GetNumConformers() == 2
    for x in coordinates(mol):
        assert np.abs(x[: len(places)] - places).max() < 1e-9
        for bond in mol.GetBonds():
            if bond.GetEndAtom().GetAtomicNum() == 1:
                assert 0.9 < np.linalg.norm(x[bond.GetBeginAtomIdx()] - x[bond.GetEndAtomIdx()]) < 1.2


def test_what_hangs_on_a_core_follows_it() -> None:
    """A draft bent onto a rigidly moved copy of its core is that draft moved; a chain between two ends stays there."""
    mol = still()("OCCC1CCNCC1", 1, steps=1)
    x = mol.GetConformer().GetPositions()
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    y = x @ turn.T + [3.0, 4.0, 5.0]
    placed, far = bent(mol, x, {i: y[i] for i in range(3, 9)})
    assert np.abs(placed - y).max() < 1e-9 and far < 1e-18
    ends = {0: y[0], 1: y[1] + [0.0, 0.0, 0.2], 4: y[4], 5: y[5], 8: y[8]}
    placed, far = bent(mol, x, ends)
    assert far > 0.01 and all(np.array_equal(placed[i], place) for i, place in ends.items())
    hydrogens = [other.GetIdx() for other in mol.GetAtomWithIdx(1).GetNeighbors() if other.GetAtomicNum() == 1]
    for k in hydrogens:  # between an end and itself alone: rigid
        assert abs(np.linalg.norm(placed[k] - placed[1]) - np.linalg.norm(x[k] - x[1])) < 1e-9
    for bond in mol.GetBonds():
        assert 0.8 < np.linalg.norm(placed[bond.GetBeginAtomIdx()] - placed[bond.GetEndAtomIdx()]) < 1.8


def test_the_network_sees_the_given_part_in_its_own_shape_and_unit() -> None:
    """Late on the way, when there is little noise, distances of the given atoms are those given, in units of scale."""
    seen: list[np.ndarray] = []

    def answer(x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        seen.append(x[:6].double().numpy())
        return torch.zeros_like(x)

    pipeline = saying(answer, start="centred", scale=0.5)
    ring = still()("c1ccccc1CO", 1, steps=1).GetConformer().GetPositions()[:6]
    pipeline.complete("c1ccccc1CO", dict(enumerate(ring)), 1, steps=100, resamples=1)

    def gaps(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - x[None], axis=-1)

    assert np.abs(0.5 * gaps(seen[-1]) - gaps(ring)).max() < 0.1


def test_parts_are_checked() -> None:
    pipeline = still()
    for wrong in ({}, {99: (0, 0, 0)}, {0: (0, 0)}, {0: (0, 0, math.nan)}, Chem.MolFromSmiles("C")):
        with pytest.raises(ArgumentError, match="core"):
            pipeline.complete("CCO", wrong, 1)
    other = Chem.AddHs(Chem.MolFromSmiles("N"))
    other.AddConformer(Chem.Conformer(other.GetNumAtoms()))
    with pytest.raises(ArgumentError, match="a part of CCO"):
        pipeline.complete("CCO", other, 1)
    with pytest.raises(MoleculeError):
        pipeline.complete("oops", {0: (0, 0, 0)}, 1)


def gaussian(size: float, **changes: Any) -> ConformerPipeline:
    """The exact denoiser of y_0 ~ N(0, size^2 P) under the straight path."""

    def answer(x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        t = (c / 1000)[graph.batch].unsqueeze(1)
        return (1 - t) * size**2 / ((1 - t) ** 2 * size**2 + t**2) * x

    return saying(answer, torch.float64, conditioning="time", **changes)


@pytest.mark.parametrize("start", ["draft", "centred"])
def test_the_likelihood_of_a_gaussian_is_exact(start: str) -> None:
    size, scale = 0.7, 0.3
    pipeline = gaussian(size, start=start, scale=scale)
    mol = still()("O", 2, steps=1)
    draft = coordinates(mol)
    rng = np.random.default_rng(0)
    around = draft + 0.1 * rng.normal(size=draft.shape)
    for one, x in zip(mol.GetConformers(), around, strict=True):
        for i, place in enumerate(x.tolist()):
            one.SetAtomPosition(i, Point3D(*place))
    centred = around - around.mean(1, keepdims=True)
    drafts = draft if start == "draft" else None
    found = pipeline.log_likelihood(mol, steps=20, drafts=drafts)
    base = draft - draft.mean(1, keepdims=True) if start == "draft" else 0 * draft
    if start == "draft":
        turns = [np.linalg.svd(x.T @ y) for x, y in zip(centred, base, strict=True)]
        centred = np.stack([x @ u @ v for x, (u, _, v) in zip(centred, turns, strict=True)])
    squares = ((centred - base) ** 2).sum((1, 2)) / (size * scale) ** 2
    dof = 3 * (mol.GetNumAtoms() - 1)
    expected = -0.5 * squares - dof * (0.5 * math.log(2 * math.pi) + math.log(size * scale))
    assert found == pytest.approx(expected, abs=2e-3)
    for one in mol.GetConformers():  # where it is and how it lies does not matter
        for i, place in enumerate((one.GetPositions()[:, [1, 2, 0]] + 3.0).tolist()):
            one.SetAtomPosition(i, Point3D(*place))
    assert pipeline.log_likelihood(mol, steps=20, drafts=drafts) == pytest.approx(found, abs=1e-3)


def test_likelihoods_need_conformers() -> None:
    with pytest.raises(ArgumentError, match="molecule"):
        still().log_likelihood(Chem.AddHs(Chem.MolFromSmiles("CO")))
    mol = still()("CO", 1, steps=1)
    with pytest.raises(ArgumentError, match="drafts"):
        still().log_likelihood(mol, drafts=np.zeros((2, 6, 3)))


def test_a_trajectory_ends_where_the_conformers_are() -> None:
    pipeline = untrained()
    steps = list(pipeline.trajectory("CCO", 2, steps=4, seed=3))
    assert [step.t for step in steps] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert all(step.x.shape == (2, 9, 3) for step in steps)
    mol = pipeline("CCO", 2, steps=4, seed=3, energies=False)
    assert np.abs(steps[-1].x - coordinates(mol)).max() < 1e-5
    drafts = pipeline.drafted("CCO", 2, None, 3).positions
    assert 0.1 < (steps[0].x - drafts).std() < 0.4  # 0.25 Angstrom of noise around the draft
