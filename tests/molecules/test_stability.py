"""Bonds from lengths, stability and validity, on molecules that everybody knows."""

from __future__ import annotations

import math

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from polydiff.core.errors import ArgumentError
from polydiff.molecules.stability import (
    Atoms,
    bond_orders,
    by_lengths,
    determined,
    figures,
    name_of,
    skeleton,
    stable_atoms,
)


def made(smiles: str) -> Atoms:
    """A geometry from distance geometry and MMFF94."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    assert rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=2000) == 0
    elements = tuple(atom.GetSymbol() for atom in mol.GetAtoms())
    return Atoms(elements, torch.from_numpy(mol.GetConformer().GetPositions()))


def pair(one: str, other: str, angstrom: float) -> Atoms:
    return Atoms((one, other), torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, angstrom]], dtype=torch.float64))


STABLE = {
    "methane": "C",
    "ammonia": "N",
    "water": "O",
    "ethene": "C=C",
    "ethyne": "C#C",
    "hydrogen cyanide": "C#N",
    "formaldehyde": "C=O",
    "dimethyl ether": "COC",
    "ethanol": "CCO",
    "acetamide": "CC(N)=O",
    "cyclopropane": "C1CC1",
    "acetone oxime": "CC(C)=NO",
    "chloromethane": "CCl",
}


@pytest.mark.parametrize("smiles", STABLE.values(), ids=STABLE)
def test_known_molecules_are_stable_and_read_right(smiles: str) -> None:
    atoms = made(smiles)
    assert bool(stable_atoms(atoms).all())
    expected = Chem.MolFromSmiles(smiles)
    for perceive in (by_lengths, determined):
        mol = perceive(atoms)
        assert mol is not None and mol.GetNumConformers() == 1
        assert Chem.MolToSmiles(Chem.RemoveHs(mol)) == Chem.MolToSmiles(expected)


def test_the_rule_does_not_know_aromatic_bonds_and_charges_but_rdkit_does() -> None:
    """C-C in benzene is longer than C=C + 5 pm, so the published rule leaves its carbons with three bonds."""
    benzene = made("c1ccccc1")
    orders = bond_orders(benzene)
    assert orders[:6].sum(1).tolist() == [3] * 6
    assert stable_atoms(benzene).tolist() == [False] * 6 + [True] * 6
    found = determined(benzene)
    assert found is not None and Chem.MolToSmiles(Chem.RemoveHs(found)) == "c1ccccc1"
    nitro = made("C[N+](=O)[O-]")
    assert stable_atoms(nitro).tolist() == [True, False, True, True, True, True, True]  # five bonds of a nitrogen
    found = determined(nitro)
    assert found is not None and Chem.MolToSmiles(Chem.RemoveHs(found)) == "C[N+](=O)[O-]"


@pytest.mark.parametrize(
    ("one", "other", "limits"),
    [
        ("C", "C", (1.64, 1.39, 1.23)),
        ("C", "N", (1.57, 1.34, 1.19)),
        ("O", "C", (1.53, 1.25, 1.16)),
        ("N", "N", (1.55, 1.30, 1.13)),
        ("O", "O", (1.58, 1.26, 0.0)),
        ("C", "H", (1.19, 0.0, 0.0)),
        ("H", "H", (0.84, 0.0, 0.0)),
        ("N", "O", (1.50, 1.26, 0.0)),
        ("F", "C", (1.45, 0.0, 0.0)),
    ],
)
def test_orders_change_at_the_published_limits(one: str, other: str, limits: tuple[float, ...]) -> None:
    """Typical length plus 10, 5 and 3 pm."""
    for order, limit in enumerate(limits, start=1):
        if limit:
            assert int(bond_orders(pair(one, other, limit - 1e-6))[0, 1]) == order
            assert int(bond_orders(pair(one, other, limit + 1e-6))[0, 1]) == order - 1
            assert torch.equal(bond_orders(pair(one, other, limit)), bond_orders(pair(other, one, limit)))
    highest = sum(limit > 0 for limit in limits)
    assert int(bond_orders(pair(one, other, 0.3))[0, 1]) == highest


def test_bonds_do_not_depend_on_the_frame_or_the_order() -> None:
    atoms = made("CC(=O)NC#N")
    orders = bond_orders(atoms)
    assert torch.equal(orders, orders.T) and not bool(orders.diagonal().any())
    order = torch.randperm(len(orders), generator=torch.Generator().manual_seed(0))
    shuffled = Atoms(tuple(atoms.elements[i] for i in order), atoms.positions[order].flip(1) + 1e5)
    assert torch.equal(bond_orders(shuffled), orders[order][:, order])


def test_what_is_missing_is_unstable() -> None:
    methane = made("C")
    radical = Atoms(methane.elements[:-1], methane.positions[:-1])
    assert stable_atoms(radical).tolist() == [False, True, True, True]
    assert by_lengths(radical) is not None  # the missing hydrogen counts as implicit
    assert determined(radical) is None
    apart = Atoms(methane.elements, methane.positions * 3)
    assert not bool(stable_atoms(apart).any()) and determined(apart) is None
    crowded = Atoms(("C", *["H"] * 5), torch.cat([methane.positions, methane.positions[1:2] * 0.9]))
    assert not bool(stable_atoms(crowded)[0]) and by_lengths(crowded) is None and determined(crowded) is None


def test_stereochemistry_is_that_of_the_geometry() -> None:
    atoms = made("C[C@H](N)C(=O)O")
    mirrored = Atoms(atoms.elements, atoms.positions * torch.tensor([1.0, 1.0, -1.0]))
    names = []
    for one in (atoms, mirrored):
        mol = determined(one)
        assert mol is not None
        names.append(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    assert sorted(names) == ["C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O"]
    assert names[0] == Chem.CanonSmiles("C[C@H](N)C(=O)O")


def test_figures_are_counted_by_hand() -> None:
    methane, water, benzene = made("C"), made("O"), made("c1ccccc1")
    radical = Atoms(methane.elements[:-1], methane.positions[:-1])
    crowded = Atoms(("C", *["H"] * 5), torch.cat([methane.positions, methane.positions[1:2] * 0.9]))
    both = Atoms(water.elements * 2, torch.cat([water.positions, water.positions + 50]))
    water_name, methane_name = (name_of(mol) for mol in (by_lengths(water), by_lengths(methane)) if mol is not None)
    mine = figures([methane, methane, radical, crowded, both, benzene, None], known=[water_name])
    # Stable: 5, 5, 3 of 4, the crowded one's hydrogens or some of them, 6, 6 of 12.
    hydrogens = int(stable_atoms(crowded).sum())
    assert mine.count == 7
    assert mine.atoms_stable == pytest.approx((5 + 5 + 3 + hydrogens + 6 + 6) / (5 + 5 + 4 + 6 + 6 + 12))
    assert mine.molecules_stable == pytest.approx(3 / 7)
    assert mine.valid == pytest.approx(5 / 7)
    assert mine.connected == pytest.approx(4 / 7)
    # Names: methane twice, its radical (whose carbon has an implicit hydrogen, another name), water, benzene's reading.
    assert mine.unique == pytest.approx(4 / 5)
    assert mine.novel == pytest.approx(3 / 4)
    assert methane_name == "[H]C([H])([H])[H]" and water_name == "[H]O[H]"


def test_nothing_is_no_figure() -> None:
    none = figures([])
    assert none.count == 0 and math.isnan(none.atoms_stable) and math.isnan(none.valid) and math.isnan(none.novel)
    failed = figures([None, None], known=[])
    assert failed.valid == failed.molecules_stable == 0 and math.isnan(failed.unique) and math.isnan(failed.novel)


def test_only_the_largest_fragment_has_a_name() -> None:
    water, ethane = made("O"), made("CC")
    both = Atoms(water.elements + ethane.elements, torch.cat([water.positions, ethane.positions + 20]))
    mol, alone = by_lengths(both), by_lengths(ethane)
    assert mol is not None and alone is not None and name_of(mol) == name_of(alone)


def test_bad_atoms_are_named() -> None:
    one = torch.zeros(1, 3)
    for atoms, name in (
        (Atoms(("Xx",), one), "elements"),
        (Atoms(("*",), one), "elements"),
        (Atoms((), torch.zeros(0, 3)), "elements"),
        (Atoms(("H",), torch.zeros(2, 3)), "positions"),
        (Atoms(("H",), one * math.nan), "positions"),
    ):
        for function in (bond_orders, stable_atoms, by_lengths, determined):
            with pytest.raises(ArgumentError, match=f"^{name}"):
                function(atoms)


def test_a_skeleton_keeps_atoms_and_positions() -> None:
    atoms = made("CO")
    mol = skeleton(atoms)
    assert tuple(atom.GetSymbol() for atom in mol.GetAtoms()) == atoms.elements and mol.GetNumBonds() == 0
    torch.testing.assert_close(torch.from_numpy(mol.GetConformer().GetPositions()), atoms.positions)
    assert mol.GetConformer().Is3D()
