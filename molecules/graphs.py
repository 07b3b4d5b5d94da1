"""Molecules as graphs: what a network may know of a molecule besides its positions, from the graph alone.

A graph has an edge for every ordered pair of atoms, with what the bonds say of the pair: no cutoff, so nothing
depends on the order of the atoms or on a limit of neighbours, and the edges never change while positions move.

Stereochemistry. RDKit's tag of a tetrahedral centre is relative to the order of its bonds: looking from the first
neighbour, the others follow counter-clockwise ("@") or clockwise. Here it becomes an ordered tuple (centre, a, b, c,
d) with the law

    det[x_a - x_d, x_b - x_d, x_c - x_d] > 0

in every geometry of the asked configuration, and < 0 in its mirror image. Where a centre has three neighbours and a
lone pair (sulfoxides, phosphines), d is the centre itself. Only specified centres are listed. A specified double bond
puts "cis" or "trans" on every pair of substituents across it.

`batch` does what PyTorch Geometric's `Batch.from_data_list` does (Fey and Lenssen 2019, arXiv:1903.02428), faster.

"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor
from torch_geometric.data import Batch, Data

from ..core.errors import ArgumentError

__all__ = [
    "ATOM_SIZES",
    "EDGE_SIZES",
    "ELEMENTS",
    "Arrays",
    "UnsupportedElementError",
    "arrays",
    "assemble",
    "batch",
    "elements_of",
    "graph",
    "structure",
]

ELEMENTS = ("H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "As", "Se", "Br", "I")
"""Symbols of the supported elements; the first column of `atom` counts along them."""

ATOM_SIZES = (len(ELEMENTS), 7, 7, 5, 8, 2, 9)
"""Number of values of each column of `atom`: element; formal charge + 3 (-3 … 3); degree 0 … 6; hydrogens 0 … 4;
hybridisation (0 other, 1 s, 2 sp, 3 sp2, 4 sp3, 5 sp2d, 6 sp3d, 7 sp3d2); aromatic; smallest ring (0 none, size - 2 for
3 … 9, 8 for larger). What lies beyond counts as the last value."""

EDGE_SIZES = (6, 7, 3)
"""Number of values of each column of `edge`: bond (0 none, 1 single, 2 double, 3 triple, 4 aromatic, 5 other); hops
along bonds 1 … 6 (6 or more; 0 unreachable); stereo relation (0 none, 1 cis, 2 trans)."""

_NUMBERS = tuple(Chem.GetPeriodicTable().GetAtomicNumber(symbol) for symbol in ELEMENTS)
_PLACE = {number: place for place, number in enumerate(_NUMBERS)}
_KIND = Chem.HybridizationType
_HYBRIDISATIONS = {_KIND.S: 1, _KIND.SP: 2, _KIND.SP2: 3, _KIND.SP3: 4, _KIND.SP2D: 5, _KIND.SP3D: 6, _KIND.SP3D2: 7}
_BONDS = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.AROMATIC: 4}
_CIS = (Chem.BondStereo.STEREOCIS, Chem.BondStereo.STEREOZ)
_TRANS = (Chem.BondStereo.STEREOTRANS, Chem.BondStereo.STEREOE)
_CLOCKWISE, _COUNTER = Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW


class UnsupportedElementError(ArgumentError):
    """An atom whose element is not in `ELEMENTS`; `element` is its symbol."""

    def __init__(self, element: str, atom: int):
        self.element, self.atom = element, atom
        super().__init__("mol", f"{element} (atom {atom})", "only the elements " + " ".join(ELEMENTS))


class Arrays(NamedTuple):
    """A graph in small integers, without the pairs' indices, which N alone determines.

    Attributes:
        atom: uint8 (N, len(ATOM_SIZES)).
        edge: uint8 (N (N - 1), len(EDGE_SIZES)).
        bond: int32 (2, M).
        chiral: int32 (5, C).
    """

    atom: np.ndarray
    edge: np.ndarray
    bond: np.ndarray
    chiral: np.ndarray


def arrays(mol: Chem.Mol) -> Arrays:
    """The graph of a sanitised molecule whose hydrogens are atoms, as compact arrays; see `graph`."""
    size = mol.GetNumAtoms()
    if size == 0:
        raise ArgumentError("mol", "no atoms", "at least one")
    atoms = list(mol.GetAtoms())
    for atom in atoms:
        if atom.GetAtomicNum() not in _PLACE:
            raise UnsupportedElementError(atom.GetSymbol(), atom.GetIdx())
        if atom.GetNumImplicitHs() or atom.GetNumExplicitHs():
            raise ArgumentError("mol", f"hydrogens of atom {atom.GetIdx()} left implicit", "Chem.AddHs(mol)")
    rings = mol.GetRingInfo()
    features = np.array([_describe(atom, rings.MinAtomRingSize(atom.GetIdx())) for atom in atoms], dtype=np.uint8)

    kinds = np.zeros((size, size, len(EDGE_SIZES)), dtype=np.uint8)
    hops = Chem.GetDistanceMatrix(mol)
    kinds[..., 1] = np.where(hops < size, np.minimum(hops, 6), 0)
    bonds = np.zeros((2, mol.GetNumBonds()), dtype=np.int32)
    for k, bond in enumerate(mol.GetBonds()):
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[:, k] = i, j
        kinds[i, j, 0] = kinds[j, i, 0] = _BONDS.get(bond.GetBondType(), 5)
        relation = bond.GetStereo()
        if relation in _CIS or relation in _TRANS:
            for a, b, cis in _across(bond, relation in _CIS):
                kinds[a, b, 2] = kinds[b, a, 2] = 1 if cis else 2
    edges = kinds[~np.eye(size, dtype=bool)]
    centres = [_centre(atom) for atom in atoms if atom.GetChiralTag() in (_CLOCKWISE, _COUNTER)]
    chiral = np.array([c for c in centres if c is not None], dtype=np.int32).reshape(-1, 5).T
    return Arrays(features, edges, bonds, np.ascontiguousarray(chiral))


def graph(mol: Chem.Mol) -> Data:
    """The graph of a molecule.

    Args:
        mol: sanitised, all hydrogens atoms (`Chem.AddHs`); conformers are not looked at.

    Returns:
        `atom` long (N, len(ATOM_SIZES)); `edge_index` long (2, N (N - 1)), all ordered pairs, sorted by the receiver
        edge_index[0], the sender is edge_index[1]; `edge` long (N (N - 1), len(EDGE_SIZES)); `bond_index` long (2, M),
        every bond once; `chiral_index` long (5, C), the specified tetrahedral centres.

    Raises:
        UnsupportedElementError: an element beyond `ELEMENTS`. ArgumentError: no atoms, or implicit hydrogens.
    """
    made = arrays(mol)
    size = len(made.atom)
    return Data(
        atom=torch.from_numpy(made.atom).long(),
        edge_index=_pairs([size]),
        edge=torch.from_numpy(made.edge).long(),
        bond_index=torch.from_numpy(made.bond).long(),
        chiral_index=torch.from_numpy(made.chiral).long(),
        num_nodes=size,
    )


def assemble(graphs: Sequence[Arrays]) -> Batch:
    """Many graphs, given as arrays, as one `Batch`: as `batch([graph(mol), ...])`."""
    if not graphs:
        raise ArgumentError("graphs", "none", "at least one")
    sizes = [len(made.atom) for made in graphs]
    starts = np.cumsum([0, *sizes])
    shifted = {
        key: np.concatenate([getattr(made, key) + start for made, start in zip(graphs, starts, strict=False)], axis=1)
        for key in ("bond", "chiral")
    }
    return _batch(
        sizes,
        torch.from_numpy(np.concatenate([made.atom for made in graphs])).long(),
        torch.from_numpy(np.concatenate([made.edge for made in graphs])).long(),
        torch.from_numpy(shifted["bond"]).long(),
        torch.from_numpy(shifted["chiral"]).long(),
        [made.bond.shape[1] for made in graphs],
        [made.chiral.shape[1] for made in graphs],
    )


def batch(graphs: Sequence[Data]) -> Batch:
    """Many graphs as one with B parts, `batch.batch` (rows,) saying whose each atom is; `to_data_list` takes it apart.

    Raises:
        ArgumentError: no graphs.
    """
    if not graphs:
        raise ArgumentError("graphs", "none", "at least one")
    sizes = [cast(int, g.num_nodes) for g in graphs]
    starts = np.cumsum([0, *sizes]).tolist()
    return _batch(
        sizes,
        torch.cat([g.atom for g in graphs]),
        torch.cat([g.edge for g in graphs]),
        torch.cat([g.bond_index + start for g, start in zip(graphs, starts, strict=False)], 1),
        torch.cat([g.chiral_index + start for g, start in zip(graphs, starts, strict=False)], 1),
        [g.bond_index.shape[1] for g in graphs],
        [g.chiral_index.shape[1] for g in graphs],
    )


def structure(graphs: Batch, *, bonds: bool = False) -> dict[str, Any]:
    """What `kernel.given` takes: index (rows,) and num_graphs; with `bonds` also bonds (2, M), for harmonic noise."""
    found = cast(Any, graphs)  # a Batch gets its attributes at run time
    made: dict[str, Any] = {"index": found.batch, "num_graphs": found.num_graphs}
    return {**made, "bonds": found.bond_index} if bonds else made


def elements_of(graphs: Data | Batch) -> Tensor:
    """Atomic numbers, long (rows,), of a graph or a batch of graphs."""
    atom = cast(Tensor, cast(Any, graphs).atom)
    return torch.tensor(_NUMBERS, device=atom.device)[atom[:, 0]]


def _describe(atom: Chem.Atom, ring: int) -> tuple[int, ...]:
    """The features of one atom, in the order of ATOM_SIZES."""
    return (
        _PLACE[atom.GetAtomicNum()],
        min(max(atom.GetFormalCharge() + 3, 0), 6),
        min(atom.GetDegree(), 6),
        min(atom.GetTotalNumHs(includeNeighbors=True), 4),
        # RDKit leaves it open for hydrogens that were added after sanitising.
        1 if atom.GetAtomicNum() == 1 else _HYBRIDISATIONS.get(atom.GetHybridization(), 0),
        int(atom.GetIsAromatic()),
        min(max(ring - 2, 0), 8),
    )


def _centre(atom: Chem.Atom) -> tuple[int, ...] | None:
    """(centre, a, b, c, d) of a tagged atom with three or four neighbours."""
    centre = atom.GetIdx()
    around = [bond.GetOtherAtomIdx(centre) for bond in atom.GetBonds()]
    clockwise = atom.GetChiralTag() == _CLOCKWISE
    if len(around) == 4:
        # Clockwise from the first neighbour is a positive triple product from there, as z points at the eye.
        d, a, b, c = around
        return (centre, a, b, c, d) if clockwise else (centre, b, a, c, d)
    if len(around) == 3:
        # The lone pair counts as the last neighbour; seen from it, the sense of the three others is reversed.
        a, b, c = around
        return (centre, b, a, c, centre) if clockwise else (centre, a, b, c, centre)
    return None


def _across(bond: Chem.Bond, cis: bool) -> list[tuple[int, int, bool]]:
    """Every pair of substituents across a specified double bond, and whether it is cis."""
    ends = bond.GetBeginAtom(), bond.GetEndAtom()
    named = list(bond.GetStereoAtoms())
    if len(named) != 2:
        return []
    i, j = ends[0].GetIdx(), ends[1].GetIdx()
    sides = [[n.GetIdx() for n in end.GetNeighbors() if n.GetIdx() not in (i, j)] for end in ends]
    if named[0] not in sides[0]:
        named.reverse()
    return [(a, b, cis ^ (a != named[0]) ^ (b != named[1])) for a in sides[0] for b in sides[1]]


def _pairs(sizes: Sequence[int]) -> Tensor:
    """All ordered pairs (receiver, sender) within graphs of these sizes, receivers ascending, (2, sum N (N - 1))."""
    n = torch.tensor(sizes)
    starts = n.cumsum(0) - n
    rows = torch.arange(int(n.sum()))
    of = n.repeat_interleave(n)  # size of the graph of each row
    receiver = rows.repeat_interleave(of - 1)
    before = (of - 1).cumsum(0) - (of - 1)
    place = torch.arange(len(receiver)) - before.repeat_interleave(of - 1)
    sender = place + starts.repeat_interleave(n * (n - 1))
    return torch.stack([receiver, sender + (sender >= receiver)])


def _batch(
    sizes: Sequence[int],
    atom: Tensor,
    edge: Tensor,
    bond_index: Tensor,
    chiral_index: Tensor,
    bonds: Sequence[int],
    centres: Sequence[int],
) -> Batch:
    """A `Batch` with the book-keeping that lets it be indexed and taken apart."""
    n = torch.tensor(sizes)
    ptr = torch.cat([n.new_zeros(1), n.cumsum(0)])
    made: Any = Batch(_base_cls=Data, batch=torch.arange(len(sizes)).repeat_interleave(n), ptr=ptr)
    made.atom, made.edge_index, made.edge = atom, _pairs(sizes), edge
    made.bond_index, made.chiral_index, made.num_nodes = bond_index, chiral_index, int(ptr[-1])
    made._store._num_nodes = list(sizes)
    made._num_graphs = len(sizes)
    counts = {"atom": n, "edge_index": n * (n - 1), "edge": n * (n - 1)}
    counts |= {"bond_index": torch.tensor(bonds), "chiral_index": torch.tensor(centres)}
    made._slice_dict = {key: torch.cat([n.new_zeros(1), c.cumsum(0)]) for key, c in counts.items()}
    made._inc_dict = {key: ptr[:-1] if key.endswith("_index") else torch.zeros_like(n) for key in counts}
    return made
