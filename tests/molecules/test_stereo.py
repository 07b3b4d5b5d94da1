"""The gate: turning senses of centres and sides of double bonds, as asked, and no more than asked."""

from __future__ import annotations

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

from polydiff.molecules.stereo import asked, conformer, has_stereo, keeps_stereo, read_smiles

CENTRES = [
    "C[C@H](O)F",
    "C[C@@H](O)[C@@H](O)[C@H](C)O",
    "O[C@H]([C@H](O)C(=O)O)C(=O)O",  # meso
    "C[C@H]1CC[C@@H](C)CC1",  # pseudo-asymmetric
    "C[S@](=O)CC",  # a lone pair
    "C[P@](CC)c1ccccc1",  # RDKit's labels leave phosphines out
    "C[C@H]1C[N@]1C",  # RDKit reads no turning sense of this nitrogen off positions
    "C[N@+](CC)(CCC)CCCC",
]
BONDS = ["F/C=C/F", "F/C=C\\F", "C/C=C/C=C\\C", "C/C(Cl)=C(/F)Br", "C/C=N/O"]


def molecule(smiles: str) -> Chem.Mol:
    mol = Chem.MolFromSmiles(smiles)
    assert mol is not None, smiles
    return Chem.AddHs(mol)


def positions(mol: Chem.Mol, count: int = 1) -> np.ndarray:
    made = Chem.Mol(mol)
    options = rdDistGeom.ETKDGv3()
    options.randomSeed = 11
    assert len(rdDistGeom.EmbedMultipleConfs(made, count, options)) == count
    return np.stack([one.GetPositions() for one in made.GetConformers()])


@pytest.mark.parametrize("smiles", CENTRES)
def test_a_mirror_image_does_not_pass(smiles: str) -> None:
    mol = molecule(smiles)
    x = positions(mol)[0]
    assert has_stereo(mol) and keeps_stereo(mol, x)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    assert keeps_stereo(mol, x @ turn.T + 100.0)
    assert not keeps_stereo(mol, -x)


@pytest.mark.parametrize("smiles", CENTRES[:5] + BONDS)
def test_it_agrees_with_labels_read_off_the_positions(smiles: str) -> None:
    """Conformers of every isomer, judged by turning senses here and by canonical SMILES of RDKit there."""
    mol = molecule(smiles)
    plain = Chem.AddHs(Chem.MolFromSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)))
    assert not has_stereo(plain)
    isomers = list(EnumerateStereoisomers(plain, options=StereoEnumerationOptions(unique=True, onlyUnassigned=False)))
    assert len(isomers) > 1
    passed = 0
    for isomer in isomers:
        order = isomer.GetSubstructMatch(mol, useChirality=False)
        x = positions(isomer)[0][list(order)]
        probe = Chem.Mol(mol)
        probe.AddConformer(conformer(x), assignId=True)
        right = read_smiles(probe) == Chem.MolToSmiles(Chem.RemoveHs(mol))
        if keeps_stereo(mol, x):
            assert right
            passed += 1
        elif right:  # labels may agree where equal atoms have changed places
            assert Chem.MolToSmiles(Chem.RemoveHs(isomer)) == Chem.MolToSmiles(Chem.RemoveHs(mol))
    assert passed <= 1


def test_a_meso_compound_is_judged_atom_by_atom() -> None:
    """Its mirror image is the same substance, with the names of two atoms exchanged: not what was asked of them."""
    mol = molecule("O[C@H]([C@H](O)C(=O)O)C(=O)O")
    x = positions(mol)[0]
    probe = Chem.Mol(mol)
    probe.AddConformer(conformer(-x), assignId=True)
    assert read_smiles(probe) == Chem.MolToSmiles(Chem.RemoveHs(mol))
    assert not keeps_stereo(mol, -x)


@pytest.mark.parametrize("smiles", BONDS)
def test_double_bonds_on_the_wrong_side_do_not_pass(smiles: str) -> None:
    mol = molecule(smiles)
    x = positions(mol)[0]
    assert keeps_stereo(mol, x) and keeps_stereo(mol, -x)
    for i in asked(mol)[1]:
        bond = mol.GetBondWithIdx(i)
        a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        cut = Chem.FragmentOnBonds(mol, [i], addDummies=False)
        side = next(part for part in Chem.GetMolFrags(cut) if b in part)
        axis = (x[b] - x[a]) / np.linalg.norm(x[b] - x[a])
        for angle, passes in ((180.0, False), (90.0, False), (75.0, False), (45.0, True), (20.0, True)):
            c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
            cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
            turn = c * np.eye(3) + s * cross + (1 - c) * np.outer(axis, axis)
            y = x.copy()
            y[list(side)] = (x[list(side)] - x[b]) @ turn.T + x[b]
            assert keeps_stereo(mol, y) == passes, angle


def test_what_is_not_specified_may_be_anything() -> None:
    mol = molecule("CC(O)C(F)C=CC")
    x = positions(mol)[0]
    assert not has_stereo(mol) and keeps_stereo(mol, x) and keeps_stereo(mol, -x)


def test_one_wrong_centre_of_two_is_enough() -> None:
    asked_for, other = molecule("C[C@H](O)[C@H](C)F"), molecule("C[C@H](O)[C@@H](C)F")
    assert keeps_stereo(asked_for, positions(asked_for)[0])
    assert not keeps_stereo(asked_for, positions(other)[0])


def test_a_hydrogen_among_the_other_neighbours_does_not_pass() -> None:
    """Each of the four neighbours in turn: three of them alone may still turn as asked."""
    mol = molecule("C[C@H](O)F")
    x = positions(mol)[0]
    centre = mol.GetAtomWithIdx(1)
    around = [atom.GetIdx() for atom in centre.GetNeighbors()]
    assert len(around) == 4 and keeps_stereo(mol, x)
    for slipped in around:
        others = x[[i for i in around if i != slipped]] - x[1]
        wrong = x.copy()
        wrong[slipped] = x[1] + 0.4 * others.mean(0)
        assert not keeps_stereo(mol, wrong), slipped


def test_flat_and_broken_positions_do_not_pass() -> None:
    mol = molecule("C[C@H](O)F")
    x = positions(mol)[0]
    assert not keeps_stereo(mol, x * np.array([1.0, 1.0, 0.0]))
    assert not keeps_stereo(mol, np.full_like(x, np.nan))
    assert not keeps_stereo(molecule("CCO"), np.full((9, 3), np.nan))
