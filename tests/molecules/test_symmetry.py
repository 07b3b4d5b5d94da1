"""Relabellings against RDKit's substructure matches, best matches against every relabelling and GetBestRMS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdMolAlign
from scipy.spatial.transform import Rotation

from polydiff.core.errors import ArgumentError
from polydiff.molecules import drafts
from polydiff.molecules.drafts import right_stereo
from polydiff.molecules.graphs import arrays
from polydiff.molecules.symmetry import best_match, rotation, symmetry

embed: Any = drafts.embed


def mol_of(smiles):
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def conformers(smiles, count=2):
    mol = embed(mol_of(smiles), count, 5)
    return mol, [c.GetPositions() for c in mol.GetConformers()]


def left_over(x, y):
    """RMSD after the best proper rotation, by scipy."""
    x, y = x - x.mean(0), y - y.mean(0)
    return Rotation.align_vectors(y, x)[1] / np.sqrt(len(x)) if len(x) > 1 else 0.0


PLAIN = [
    "C",
    "O",
    "CC",
    "CCO",
    "CCC",
    "c1ccccc1",
    "C1CC1",
    "CS(C)(=O)=O",
    "CC#CC",
    "N#N",
    "[H][H]",
    "Fc1ccccc1",
    "CC(=O)[O-]",
]


@pytest.mark.parametrize("smiles", PLAIN)
def test_relabellings_are_all_automorphisms(smiles):
    mol = mol_of(smiles)
    of = symmetry(mol)
    # RDKit lets a neutral atom match a charged one, so the charges are compared here.
    charges = np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()])
    matches = np.array(mol.GetSubstructMatches(mol, uniquify=False, maxMatches=100_000))
    expected = {tuple(m) for m in matches.tolist() if (charges[m] == charges).all()}
    every = of.every
    assert len(every) == of.order == len(expected)
    assert {tuple(row) for row in every.tolist()} == expected
    assert of.complete
    assert of.core[0].tolist() == list(range(mol.GetNumAtoms()))


@pytest.mark.parametrize(
    ("smiles", "core"),
    [
        ("C[C@H](F)[C@@H](F)C", 2),  # turned about an axis
        ("C[C@H](F)[C@H](F)C", 1),  # only reflected: no relabelling keeps the handedness
        ("F/C=C/F", 2),
        ("C[C@H](F)Cl", 1),
        ("O[C@H]1C[C@@H](O)C1", 2),
        ("CC(C)[C@H](F)Cl", 2),  # the methyl groups
        ("C/C=C/C(/C=C/C)C", 2),
        ("C/C=C/C(/C=C\\C)C", 1),  # different sides
        ("[2H]C([2H])C", 2),
        ("C[C@H](F)OC(=O)O[C@@H](C)F", 1),
        ("C[C@H](F)OC(=O)O[C@H](C)F", 2),
    ],
)
def test_no_relabelling_breaks_the_stereochemistry(smiles, core):
    mol, (x, _) = conformers(smiles)
    of, graph = symmetry(mol), arrays(mol)
    assert len(of.core) == core
    for row in of.every:
        assert right_stereo(graph, x[row])


@pytest.mark.parametrize("smiles", [*PLAIN, "CCCCC", "OC[C@H](O)CO", "c1ccc(cc1)c1ccccc1", "C[N+](C)(C)CC(=O)[O-]"])
def test_best_match_is_best_among_all(smiles):
    """Exact where few relabellings are tried one by one; beyond, where geometries are as near as drafts mostly are."""
    mol, (x, *_) = conformers(smiles, 1)
    of = symmetry(mol)
    every = of.every
    rng = np.random.default_rng(1)
    for noise in (0.0, 0.1, 0.25):
        y = (x + noise * rng.standard_normal(x.shape))[every[rng.integers(len(every))]]
        y = y @ Rotation.random(rng=np.random.default_rng(2)).as_matrix().T + 3
        match = best_match(of, x, y)
        some = every if len(every) < 200 else every[rng.permutation(len(every))[:200]]
        assert match.rmsd <= min(left_over(x[row], y) for row in some) + 1e-7
        assert tuple(match.permutation) in {tuple(row) for row in every.tolist()}
        if not noise:
            assert match.rmsd < 1e-7
        np.testing.assert_allclose(np.sqrt(((match.positions - y) ** 2).sum(1).mean()), match.rmsd, atol=1e-9)
        np.testing.assert_allclose(match.rotation @ match.rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(match.rotation) > 0
        centred = (x - x.mean(0))[match.permutation] @ match.rotation.T
        np.testing.assert_allclose(match.positions, centred + y.mean(0), atol=1e-12)


@pytest.mark.parametrize(
    "smiles", ["CCO", "C[C@H](N)C(=O)O", "CS(C)(=O)=O", "Oc1ccc(O)cc1", "C1CCNCC1", "C[C@H]1CC[C@@H](C)O1"]
)
def test_rdkit_agrees(smiles):
    mol, (x, y) = conformers(smiles)
    expected = rdMolAlign.GetBestRMS(Chem.Mol(mol), Chem.Mol(mol), 0, 1)
    assert best_match(mol, x, y).rmsd == pytest.approx(expected, abs=2e-3)
    expected = rdMolAlign.AlignMol(Chem.Mol(mol), Chem.Mol(mol), 0, 1)
    x, y = x - x.mean(0), y - y.mean(0)
    assert np.sqrt(((x @ rotation(x, y).T - y) ** 2).sum(1).mean()) == pytest.approx(expected, abs=1e-6)


def test_a_mirror_image_is_no_match():
    """Reflection is no rotation; where it is a relabelling too (no handedness), the match is found."""
    mirror = np.array([1.0, 1.0, -1.0])
    mol, (x, _) = conformers("C[C@](F)(Cl)C#N")
    assert best_match(mol, x * mirror, x).rmsd > 0.3
    mol, (x, _) = conformers("FCCl")
    assert best_match(mol, x * mirror, x).rmsd < 0.05


def test_tert_butyl_beyond_every_single_trial():
    mol, (x, *_) = conformers("CC(C)(C)C(C)(C)C", 1)
    of = symmetry(mol)
    assert of.order == 2 * 6**2 * 6**6
    rng = np.random.default_rng(0)
    order = of.core[5].copy()
    for group in of.groups:
        for row in group:
            order[row] = order[rng.permutation(row)]
    assert best_match(of, x, x[order] @ Rotation.random(rng=np.random.default_rng(1)).as_matrix().T).rmsd < 1e-7


def test_the_list_is_bounded_and_says_so():
    mol = mol_of("CC(C)(C)C")
    assert len(symmetry(mol, limit=5).core) <= 5
    assert not symmetry(mol, limit=5).complete


def test_positions_must_fit():
    mol = mol_of("CO")
    with pytest.raises(ArgumentError, match="moving"):
        best_match(mol, np.zeros((3, 3)), np.zeros((6, 3)))
    with pytest.raises(ArgumentError, match="fixed"):
        best_match(mol, np.zeros((6, 3)), np.zeros((6, 2)))


def test_embedding_of_rdkit_is_matched_whatever_the_order_of_hydrogens():
    mol = mol_of("CCCCCC")
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    x = mol.GetConformer().GetPositions()
    of = symmetry(mol)
    rng = np.random.default_rng(2)
    order = np.arange(of.size)
    for group in of.groups:
        for row in group:
            order[row] = rng.permutation(row)
    assert best_match(of, x, x[order]).rmsd < 1e-7
