"""Graphs against RDKit, geometry, an own breadth-first search, and PyTorch Geometric's batches."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from torch_geometric.data import Batch

from polydiff.core.errors import ArgumentError
from polydiff.molecules import graphs as module
from polydiff.molecules.graphs import (
    ATOM_SIZES,
    EDGE_SIZES,
    ELEMENTS,
    UnsupportedElementError,
    arrays,
    elements_of,
    structure,
)
from polydiff.molecules.smiles import SMILES

# A Data and a Batch get their attributes at run time.
graph: Any = module.graph
batch: Any = module.batch
assemble: Any = module.assemble
library: Any = Batch.from_data_list

CENTRES = [
    ("N[C@@H](C)C(=O)O", 1),
    ("N[C@H](C)C(=O)O", 1),
    ("[C@H](F)(Cl)Br", 1),
    ("F[C@](Cl)(Br)I", 1),
    ("C[S@](=O)CC", 1),
    ("C[S@@](=O)CC", 1),
    ("CC[S@@+]([O-])c1ccccc1", 1),
    ("C[P@](CC)c1ccccc1", 1),
    ("C[P@](=O)(O)CC", 1),
    ("OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O", 5),
    ("CC1(C)[C@@H]2CC[C@@]1(C)C(=O)C2", 2),
    ("C[C@H]1CC[C@@H](C)CC1", 2),
]


def mol_of(smiles):
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def placed(mol, seed=7):
    """Positions by RDKit itself, with its own enforcement of the stereochemistry."""
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=seed) == 0
    return torch.from_numpy(mol.GetConformer().GetPositions())


def volumes(x, chiral):
    _, a, b, c, d = chiral
    return torch.linalg.det(torch.stack([x[a] - x[d], x[b] - x[d], x[c] - x[d]], 1))


@pytest.mark.parametrize(("smiles", "count"), CENTRES)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_asked_handedness_has_positive_volume(smiles, count, order):
    """Also after renumbering, which changes the order of bonds and so RDKit's tags."""
    mol = mol_of(smiles)
    mol = Chem.RenumberAtoms(mol, np.random.default_rng(order).permutation(mol.GetNumAtoms()).tolist())
    chiral = graph(mol).chiral_index
    x = placed(mol)
    assert chiral.shape == (5, count)
    assert (volumes(x, chiral) > 0.5).all()
    assert (volumes(x * torch.tensor([1.0, -1.0, 1.0]), chiral) < -0.5).all()


@pytest.mark.parametrize("smiles", ["C/C=C/C", "C/C=C\\C", "C/C(F)=C/C", "C/C(Br)=C(/C)Cl", "C/C=N/O", "C/N=N\\C"])
def test_sides_of_double_bonds_are_those_of_the_geometry(smiles):
    mol = mol_of(smiles)
    g, x = graph(mol), placed(mol).numpy()
    i, j = mol.GetSubstructMatch(Chem.MolFromSmarts("[C,N]=[C,N]"))
    substituents = [
        [n.GetIdx() for n in mol.GetAtomWithIdx(k).GetNeighbors() if n.GetIdx() not in (i, j)] for k in (i, j)
    ]
    expected = {}
    for a in substituents[0]:
        for b in substituents[1]:
            axis = x[j] - x[i]
            cis = np.cross(axis, x[a] - x[i]) @ np.cross(axis, x[b] - x[j]) > 0
            expected[a, b] = expected[b, a] = 1 if cis else 2
    found = {tuple(pair): int(kind) for pair, kind in zip(g.edge_index.T.tolist(), g.edge[:, 2], strict=True) if kind}
    assert found == expected
    assert found


def test_unspecified_stereochemistry_is_none():
    g = graph(mol_of("CC(O)C=CC"))
    assert g.chiral_index.shape == (5, 0)
    assert not g.edge[:, 2].any()


def test_atoms_are_described_column_by_column():
    g = graph(mol_of("C[N+](=O)[O-]"))
    hydrogen, carbon, nitrogen, oxygen = (ELEMENTS.index(e) for e in "HCNO")
    assert g.atom.tolist() == [
        [carbon, 3, 4, 3, 4, 0, 0],
        [nitrogen, 4, 3, 0, 3, 0, 0],
        [oxygen, 3, 1, 0, 3, 0, 0],
        [oxygen, 2, 1, 0, 3, 0, 0],
        *[[hydrogen, 3, 1, 0, 1, 0, 0]] * 3,
    ]
    pyrrole = graph(mol_of("c1cc[nH]c1"))
    assert pyrrole.atom[:5, 5:].tolist() == [[1, 3]] * 5
    bicycle = graph(mol_of("C1CC2CCC1C2"))  # each atom of norbornane counts its smallest ring
    assert sorted(bicycle.atom[:7, 6].tolist()) == [3] * 7
    assert graph(mol_of("C1CCCCCCCCCCC1")).atom[0, 6] == 8


def test_every_value_is_below_its_size_in_all_embedded_molecules():
    for smiles in SMILES[::3]:
        made = arrays(mol_of(smiles))
        assert (made.atom < ATOM_SIZES).all()
        assert (made.edge < EDGE_SIZES).all()


def test_edges_are_all_pairs_with_bonds_and_hops():
    mol = mol_of("C#CC=CCCc1ccccc1")
    size, g = mol.GetNumAtoms(), graph(mol)
    assert g.edge_index.T.tolist() == [[i, j] for i in range(size) for j in range(size) if i != j]
    kinds = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
    for (i, j), (bond, hops, _) in zip(g.edge_index.T.tolist(), g.edge.tolist(), strict=True):
        between = mol.GetBondBetweenAtoms(i, j)
        assert bond == (kinds[between.GetBondType()] if between else 0)
        assert hops == min(search(mol, i)[j], 6)
    assert sorted(map(sorted, g.bond_index.T.tolist())) == sorted(
        sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()
    )


def search(mol, start):
    """Bonds from `start` to every atom it reaches."""
    reached, queue = {start: 0}, deque([start])
    while queue:
        i = queue.popleft()
        for n in mol.GetAtomWithIdx(i).GetNeighbors():
            if n.GetIdx() not in reached:
                reached[n.GetIdx()] = reached[i] + 1
                queue.append(n.GetIdx())
    return reached


def test_parts_do_not_reach_each_other():
    g = graph(mol_of("[Na+].[Cl-]".replace("Na", "NH4")))
    ion = 1  # chloride
    touching = (g.edge_index == ion).any(0)
    assert (g.edge[touching, 1] == 0).all()
    assert (g.edge[~touching, 1] > 0).all()


def test_only_the_graph_counts():
    mol = mol_of("C[C@H](N)C(=O)O")
    before = graph(mol)
    placed(mol)
    after = graph(mol)
    assert all(torch.equal(before[key], after[key]) for key in before.keys() if key != "num_nodes")  # noqa: SIM118


def test_renumbering_renumbers():
    mol = mol_of("C[C@H](N)/C=C/C(=O)O")
    order = np.random.default_rng(3).permutation(mol.GetNumAtoms())
    a, b = graph(mol), graph(Chem.RenumberAtoms(mol, order.tolist()))
    assert torch.equal(a.atom[order], b.atom)
    size = mol.GetNumAtoms()
    dense = []
    for g in (a, b):
        full = torch.zeros(size, size, 3, dtype=torch.long)
        full[g.edge_index[0], g.edge_index[1]] = g.edge
        dense.append(full)
    assert torch.equal(dense[0][order][:, order], dense[1])


@pytest.mark.parametrize("join", [batch, lambda graphs: assemble([arrays(mol_of(s)) for s in MIXED])])
def test_batches_are_those_of_the_library(join):
    graphs = [graph(mol_of(smiles)) for smiles in MIXED]
    ours, theirs = join(graphs), library(graphs)
    assert set(ours.keys()) == set(theirs.keys())
    for key in theirs.keys():  # noqa: SIM118
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])), key
    assert ours.num_graphs == theirs.num_graphs == len(MIXED)
    for one, original in zip(ours.to_data_list(), graphs, strict=True):
        assert one.num_nodes == original.num_nodes
        for key in ("atom", "edge", "edge_index", "bond_index", "chiral_index"):
            assert torch.equal(one[key], original[key])
    assert torch.equal(ours.to("cpu").clone().batch, theirs.batch)


MIXED = ["C[C@H](N)C(=O)O", "[Cl-]", "CC", "OC[C@H]1O[C@@H](O)C[C@@H]1O", "[H][H]"]


def test_structure_and_elements():
    both = batch([graph(mol_of("CO")), graph(mol_of("[Br-]"))])
    assert elements_of(both).tolist() == [6, 8, 1, 1, 1, 1, 35]
    plain, full = structure(both), structure(both, bonds=True)
    assert set(plain) == {"index", "num_graphs"}
    assert plain["index"].tolist() == [0] * 6 + [1]
    assert plain["num_graphs"] == 2
    assert torch.equal(full["bonds"], both.bond_index)


def test_what_cannot_be_a_graph_is_named():
    with pytest.raises(UnsupportedElementError, match="Sn") as caught:
        graph(mol_of("C[Sn](C)(C)C"))
    assert caught.value.element == "Sn"
    with pytest.raises(ArgumentError, match="AddHs"):
        graph(Chem.MolFromSmiles("CC"))
    with pytest.raises(ArgumentError, match="atoms"):
        graph(Chem.Mol())
    with pytest.raises(ArgumentError, match="graphs"):
        batch([])


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_listed_element_is_known(element):
    assert element in {"H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "As", "Se", "Br", "I"}
    g = graph(Chem.MolFromSmiles(f"[{element}]"))
    assert elements_of(g).tolist() == [Chem.GetPeriodicTable().GetAtomicNumber(element)]
