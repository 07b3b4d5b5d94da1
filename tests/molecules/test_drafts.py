"""Drafts: the reasons of failure, the stereochemistry, and energies against RDKit's own force field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from polydiff.core.errors import ArgumentError
from polydiff.molecules import drafts
from polydiff.molecules.drafts import Problem, keep, prepare, right_stereo
from polydiff.molecules.graphs import arrays

# Their results are a molecule or a problem; which one is what the tests are about.
embed: Any = drafts.embed
parse: Any = drafts.parse
relax: Any = drafts.relax


def energy_of(mol, identity):
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    return rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=identity).CalcEnergy()


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "invalid"),
        ("  ", "invalid"),
        ("C1CC", "invalid"),
        ("C(C)(C)(C)(C)C", "invalid"),
        ("not a molecule", "invalid"),
        ("CC.O", "disconnected"),
        ("[Na+].[Cl-]", "disconnected"),
        ("C[Sn](C)(C)C", "unsupported-element"),
    ],
)
def test_what_is_no_usable_molecule_has_a_reason(smiles, reason):
    found = parse(smiles)
    assert isinstance(found, Problem)
    assert found.reason == reason
    assert isinstance(prepare(smiles), Problem)


def test_parsed_molecules_have_their_hydrogens_and_charges():
    mol = parse("C[NH+](C)CC(=O)[O-]")
    assert [atom.GetNumImplicitHs() + atom.GetNumExplicitHs() for atom in mol.GetAtoms()] == [0] * mol.GetNumAtoms()
    assert mol.GetNumAtoms() == 7 + 9
    assert isinstance(parse("[CH3]"), Chem.Mol)


def test_a_seed_means_the_same_conformers():
    mol = parse("C[C@H](O)CC(=O)N")
    a, b, c = embed(mol, 3, 11), embed(mol, 3, 11), embed(mol, 3, 12)
    x, y, z = ([k.GetPositions() for k in made.GetConformers()] for made in (a, b, c))
    assert len(x) == 3
    np.testing.assert_array_equal(x, y)
    assert np.abs(np.array(x) - np.array(z)).max() > 0.1
    assert np.abs(x[0] - x[1]).max() > 0.1
    assert mol.GetNumConformers() == 0
    assert [k.GetId() for k in a.GetConformers()] == [0, 1, 2]


STRAINED = ["C#C[C@@]12C[C@H](OC)[C@@H]1O2", "N#CC[C@H]1[C@@H]2[C@H]1N1C[C@H]21"]


@pytest.mark.parametrize(
    "smiles", [*STRAINED, "C[C@H](F)/C=C\\[C@@H](C)O", "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O"]
)
def test_every_draft_has_the_asked_stereochemistry(smiles):
    """Also in cages, of which RDKit's own enforcement makes nothing."""
    mol = parse(smiles)
    made = embed(mol, 4, 1)
    assert made.GetNumConformers() == 4
    expected = Chem.MolToSmiles(Chem.MolFromSmiles(smiles))
    for k in range(4):
        one = Chem.Mol(made, confId=k)
        Chem.AssignStereochemistryFrom3D(one)
        assert Chem.MolToSmiles(Chem.RemoveHs(one)) == expected


def test_wrong_geometries_are_told():
    for smiles, other in (("C[C@H](F)Cl", None), ("C[S@](=O)CC", None), ("C/C=C/F", "C/C=C\\F")):
        x = embed(parse(smiles), 1, 3).GetConformer().GetPositions()
        graph = arrays(parse(smiles))
        assert right_stereo(graph, x)
        assert right_stereo(graph, x @ [[0, 1, 0], [0, 0, 1], [1, 0, 0]] + 5)
        if other is None:
            assert not right_stereo(graph, -x)
        else:
            assert right_stereo(graph, -x)
            assert not right_stereo(arrays(parse(other)), x)


def test_impossible_stereochemistry_is_a_problem():
    found = embed(parse("C1C[C@H]2CC[C@H]1C2"), 2, 0, timeout=2)  # norbornane bridged across
    assert isinstance(found, Problem)
    assert found.reason in ("stereo-failed", "no-embedding")


def test_when_time_runs_out_that_is_a_problem(monkeypatch):
    """RDKit then returns ids of -1 and no conformers."""
    monkeypatch.setattr("rdkit.Chem.rdDistGeom.EmbedMultipleConfs", lambda mol, count, options: [-1] * count)
    found = embed(parse("CCO"), 2)
    assert isinstance(found, Problem)
    assert found.reason == "no-embedding"


def test_single_atoms_lie_at_the_origin():
    made = embed(parse("[Cl-]"), 2)
    assert [k.GetPositions().tolist() for k in made.GetConformers()] == [[[0, 0, 0]]] * 2


def test_relaxed_conformers_are_minima_with_their_energies():
    mol = embed(parse("CCCCO"), 3, 2)
    before = [energy_of(mol, k) for k in range(3)]
    energies = relax(mol)
    after = [energy_of(mol, k) for k in range(3)]
    np.testing.assert_allclose(energies, after, atol=1e-6)
    assert (energies < np.array(before) - 1).all()
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    for k in range(3):
        force = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=k).CalcGrad()
        assert np.abs(force).max() < 0.1


def test_what_has_not_converged_has_no_energy(monkeypatch):
    monkeypatch.setattr(drafts, "_STEPS", 1)
    assert np.isnan(relax(embed(parse("CCCCO"), 2, 2))).all()


def test_without_parameters_nothing_moves():
    mol = embed(parse("CB(C)C"), 1, 2)
    x = mol.GetConformer().GetPositions()
    found = relax(mol)
    assert isinstance(found, Problem)
    assert found.reason == "no-parameters"
    np.testing.assert_array_equal(mol.GetConformer().GetPositions(), x)


def test_the_window_is_above_the_best_and_best_come_first():
    assert keep([5.0, np.nan, 1.0, 11.0, 11.1, 1.5]) == [2, 5, 0, 3]
    assert keep([3.0, 4.0], window=0.5) == [0]
    assert keep([np.nan]) == []


def test_arguments_are_checked():
    mol = parse("CC")
    with pytest.raises(ArgumentError, match="count"):
        embed(mol, 0)
    with pytest.raises(ArgumentError, match="seed"):
        embed(mol, 1, -1)
