"""Symmetric distances of conformers: RDKit's GetBestRMS, enumeration, invariances."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdMolAlign
from scipy.spatial.transform import Rotation

from polydiff.core.errors import ArgumentError
from polydiff.molecules import rmsd as module
from polydiff.molecules.automorphisms import Symmetry, symmetry
from polydiff.molecules.rmsd import matched, positions, rmsd

SMILES = (
    "CC(C)C",  # three methyls: 1296 maps
    "c1ccccc1C(=O)O",  # the oxygens of the acid are alike without hydrogens, not with them
    "[O-][N+](=O)c1ccccc1",
    "CC(=O)[O-]",
    "NC(=[NH2+])C",
    "FC(F)(F)C(C)C",
    "C[C@H](N)C(=O)O",
    "[2H]C([2H])C",
    "C1CCCC1",
    "C#N",  # on a line
    "C",
    "[H][H]",
)


def ensemble(smiles: str, count: int = 4, noise: float = 0.3, seed: int = 0) -> Chem.Mol:
    """Noisy conformers, whose best maps differ."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=seed + 1)
    rng = np.random.default_rng(seed)
    for conformer in mol.GetConformers():
        conformer.SetPositions(conformer.GetPositions() + noise * rng.standard_normal((mol.GetNumAtoms(), 3)))
    return mol


def oracle(mol: Chem.Mol, heavy: bool) -> np.ndarray:
    """RDKit pair by pair; it moves the probe, so that each gets a copy."""
    mol = Chem.RemoveAllHs(mol) if heavy else mol
    ids = range(mol.GetNumConformers())
    return np.array([[rdMolAlign.GetBestRMS(Chem.Mol(mol), Chem.Mol(mol), i, j) for j in ids] for i in ids])


@pytest.mark.parametrize("smiles", SMILES)
@pytest.mark.parametrize("heavy", [True, False])
def test_it_is_the_least_over_all_maps(smiles: str, heavy: bool) -> None:
    mol = ensemble(smiles)
    x = positions(mol)
    if smiles == "[H][H]" and heavy:
        with pytest.raises(ArgumentError, match="heavy atoms"):
            symmetry(mol)
        return
    found = symmetry(mol, heavy=heavy)
    assert found.exact and not found.groups
    before = x.copy()
    assert np.allclose(rmsd(x, x, found), oracle(mol, heavy), rtol=0, atol=1e-6)
    assert np.array_equal(x, before) and np.array_equal(positions(mol), before)


def test_maps_are_counted_by_hand() -> None:
    def count(smiles: str, heavy: bool) -> int:
        return len(symmetry(ensemble(smiles, 1), heavy=heavy).maps)

    assert [count("CC(C)C", heavy) for heavy in (True, False)] == [6, 6 * 6**3]
    assert [count("c1ccccc1C(=O)O", heavy) for heavy in (True, False)] == [4, 2]
    assert [count("[2H]C([2H])C", heavy) for heavy in (True, False)] == [2, 2 * 6]  # not 6 * 6: deuterium differs
    assert [count("C1CCCCC1", heavy) for heavy in (True, False)] == [12, 12 * 2**6]


def test_it_returns_the_map_it_used() -> None:
    mol = ensemble("CC(C)C")
    x, found = positions(mol), symmetry(mol, heavy=False)
    distances, maps = matched(x[:2], x[2:], found)
    assert distances.shape == (2, 2) and maps.shape == (2, 2, 14)
    for i in range(2):
        for j in range(2):
            one, other = x[i, found.atoms], x[2 + j, maps[i, j]]
            one, other = one - one.mean(0), other - other.mean(0)
            residual = Rotation.align_vectors(other, one)[1]
            assert residual / 14**0.5 == pytest.approx(distances[i, j], abs=1e-9)


@pytest.mark.parametrize("limit", [4096, 1])
def test_motion_and_renaming_of_equivalent_atoms_change_nothing(limit: int) -> None:
    mol = ensemble("CC(C)(C)CO", 3)
    x = positions(mol)
    for heavy in (True, False):
        everything = symmetry(mol, heavy=heavy, limit=10**6)
        found = symmetry(mol, heavy=heavy, limit=limit)
        rng = np.random.default_rng(1)
        moved = x @ Rotation.random(rng=rng).as_matrix().T + rng.standard_normal(3) * 100
        assert np.allclose(rmsd(x, moved, found), rmsd(x, x, found), atol=1e-6)
        if not found.exact and heavy:
            continue  # one map alone cannot see that atoms were renamed
        renamed = x.copy()
        renamed[:, everything.atoms] = x[:, everything.maps[-1]]
        if found.exact:
            assert np.allclose(rmsd(x, renamed, found), rmsd(x, x, found), atol=1e-6)
            assert np.allclose(np.diag(rmsd(x, renamed, found)), 0, atol=1e-6)


def test_mirror_images_are_not_alike() -> None:
    mol = ensemble("C[C@H](N)C(=O)O", 1, noise=0)
    x = positions(mol)
    assert rmsd(x, x, symmetry(mol))[0, 0] < 1e-6
    assert rmsd(x, -x, symmetry(mol))[0, 0] > 0.2


@pytest.mark.parametrize("smiles", ["CC(C)(C)CO", "CCCCCC", "CC(C)C(C)C"])
def test_beyond_the_limit_hydrogens_are_matched_by_turns(smiles: str) -> None:
    mol = ensemble(smiles, 6, noise=0.15)
    x = positions(mol)
    every = symmetry(mol, heavy=False, limit=10**6)
    few = symmetry(mol, heavy=False, limit=100)
    assert every.exact and not few.exact and len(few.maps) < 100 and few.groups
    least, found = rmsd(x[:3], x[3:], every), rmsd(x[:3], x[3:], few)
    assert (found > least - 1e-7).all()  # an upper bound
    assert found.mean() < 1.02 * least.mean()
    shuffled = x.copy()
    for group in few.groups:
        atoms = few.atoms[group]
        shuffled[:, atoms] = x[:, np.roll(atoms, 1)]
    assert np.allclose(rmsd(x[:3], shuffled[3:], few), found, atol=1e-6)
    assert np.allclose(np.diag(rmsd(x, shuffled, few)), 0, atol=1e-6)
    distances, maps = matched(x[:3], x[3:], few)
    assert sorted(maps[0, 0]) == list(range(mol.GetNumAtoms()))
    one, other = (z - z.mean(0) for z in (x[0, few.atoms], x[3, maps[0, 0]]))
    assert Rotation.align_vectors(other, one)[1] / len(one) ** 0.5 == pytest.approx(distances[0, 0], abs=1e-9)


def test_symmetry_does_not_explode() -> None:
    mol = ensemble("CC(C)(C)c1cc(C(C)(C)C)cc(C(C)(C)C)c1", 2)
    found = symmetry(mol, heavy=False)
    assert not found.exact and len(found.maps) == 1296  # 6 of the ring, 6 of each tert-butyl's methyls
    assert not symmetry(mol, limit=100).exact and len(symmetry(mol, limit=100).maps) == 100
    assert symmetry(mol, limit=1296).exact


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mol = ensemble("CC(C)C", 5)
    x = positions(mol)
    for limit in (4096, 10):
        found = symmetry(mol, heavy=False, limit=limit)
        whole = matched(x, x[:3], found)
        monkeypatch.setattr("polydiff.molecules.rmsd.CHUNK", 200)
        parts = matched(x, x[:3], found)
        monkeypatch.undo()
        assert np.allclose(whole[0], parts[0], atol=1e-7)
        assert parts[0].shape == (5, 3)


def test_bounds_are_above_eigenvalues_and_near_them() -> None:
    rng = np.random.default_rng(0)
    covariance = rng.standard_normal((3000, 3, 3)) * rng.choice([1e-3, 1, 30], (3000, 1, 1))
    covariance[:1000, 2] = 0  # flat molecules
    covariance[:500, 1] = 0  # and those on a line, whose eigenvalues are in pairs
    largest, bound = module._largest(covariance), module._at_most(covariance)
    assert (bound >= largest * (1 - 1e-12)).all()
    assert (bound <= largest * 1.02).all() and np.median(bound / largest) < 1 + 1e-6
    assert module._at_most(np.zeros((1, 3, 3))) == 0
    # The eigenvalue is the best overlap over proper rotations: Kabsch by singular values.
    left, values, right = np.linalg.svd(covariance)
    values[:, 2] *= np.sign(np.linalg.det(left @ right))
    assert np.allclose(largest, values.sum(1), rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    mol = ensemble("CCO", 2)
    x, found = positions(mol), symmetry(mol)
    assert isinstance(found, Symmetry)
    with pytest.raises(ArgumentError, match="limit"):
        symmetry(mol, limit=0)
    with pytest.raises(ArgumentError, match="x: got"):
        rmsd(x[:, :-1], x, found)
    with pytest.raises(ArgumentError, match="y: got"):
        rmsd(x, x[0], found)
    with pytest.raises(ArgumentError, match="finite"):
        rmsd(x, np.full_like(x, np.nan), found)
    assert rmsd(x, x[:0], found).shape == (2, 0) and rmsd(x[:0], x, found).shape == (0, 2)
