"""Which atoms of a molecule are interchangeable, and the best match of two geometries under that.

Two geometries of one molecule may differ only in which of equal atoms has which number: the three hydrogens of a
methyl group, the two oxygens of a sulfone. `best_match` finds the relabelling and the proper rotation (Kabsch 1976,
Acta Cryst. A32, 922) that bring one closest to the other. Only relabellings that leave the labelled graph as it is
count: element, charge, bonds, and the specified stereochemistry (no swap may invert a centre or a double bond).

Automorphisms of the atoms that are no terminal hydrogens are listed (up to a bound); hydrogens follow the atom they
are bonded to, and those of one atom may be exchanged freely. If all relabellings are few, each is tried. Otherwise
rotation and assignment of the hydrogens improve each other in turn for every automorphism, until nothing changes, then
single exchanges are tried: that never increases the distance, and finds the best one where the geometries are near.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from math import factorial
from typing import NamedTuple

import numpy as np
from rdkit import Chem

from ..core.errors import ArgumentError
from .graphs import Arrays, arrays

__all__ = ["LIMIT", "Match", "Symmetry", "best_match", "rotation", "symmetry"]

LIMIT = 512
"""How many automorphisms without hydrogens are listed at most."""

_EXACT = 150  # so many relabellings are tried one by one
_TURNS = 8


class Match(NamedTuple):
    """How `moving` lies best on `fixed`.

    Attributes:
        permutation: (N,); row i of `fixed` is matched by row permutation[i] of `moving`.
        rotation: (3, 3), determinant 1.
        positions: (N, 3), the relabelled, rotated and shifted `moving`.
        rmsd: its distance from `fixed`, root mean square over atoms, in the unit of the positions.
    """

    permutation: np.ndarray
    rotation: np.ndarray
    positions: np.ndarray
    rmsd: float


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The relabellings of a molecule, in the form that `best_match` uses.

    Attributes:
        size: N.
        core: (A, N), the automorphisms without exchange of hydrogens; row 0 is the identity.
        groups: hydrogens of one atom, per number k >= 2 of them: (G, k) each.
        complete: False where the list was cut at its limit.
    """

    size: int
    core: np.ndarray
    groups: tuple[np.ndarray, ...]
    complete: bool

    @property
    def order(self) -> int:
        """The number of relabellings, exchanges of hydrogens included."""
        count = len(self.core)
        for group in self.groups:
            count *= factorial(group.shape[1]) ** len(group)
        return count

    @cached_property
    def every(self) -> np.ndarray:
        """All relabellings, (order, N): only for small molecules."""
        rows = [row for group in self.groups for row in group]
        exchanges = np.tile(np.arange(self.size), (self.order // len(self.core), 1))
        for k, choice in enumerate(product(*(permutations(row) for row in rows))):
            for row, chosen in zip(rows, choice, strict=True):
                exchanges[k, row] = chosen
        return self.core[:, exchanges].reshape(-1, self.size)


def symmetry(mol: Chem.Mol, limit: int = LIMIT, graph: Arrays | None = None) -> Symmetry:
    """The relabellings of a molecule that has its hydrogens as atoms.

    Args:
        mol: as `graphs.graph` takes it.
        limit: of automorphisms without hydrogens.
        graph: `graphs.arrays(mol)` if it is at hand.
    """
    graph = arrays(mol) if graph is None else graph
    size = mol.GetNumAtoms()
    atoms = list(mol.GetAtoms())
    hydrogens: dict[int, list[int]] = {}
    for atom in atoms:
        if atom.GetAtomicNum() == 1 and atom.GetDegree() == 1 and not atom.GetIsotope():
            other = atom.GetNeighbors()[0]
            if other.GetAtomicNum() != 1:
                hydrogens.setdefault(other.GetIdx(), []).append(atom.GetIdx())
    terminal = {h for group in hydrogens.values() for h in group}
    heavy = [atom.GetIdx() for atom in atoms if atom.GetIdx() not in terminal]
    small, codes = Chem.RWMol(), {}
    place = {i: k for k, i in enumerate(heavy)}
    for i in heavy:
        atom = atoms[i]
        what = (*graph.atom[i].tolist(), atom.GetFormalCharge(), atom.GetIsotope(), len(hydrogens.get(i, ())))
        label = Chem.Atom(0)
        label.SetIsotope(codes.setdefault((*what, atom.GetNumRadicalElectrons()), len(codes) + 1))
        small.AddAtom(label)
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        if i in place and j in place:
            small.AddBond(place[i], place[j], bond.GetBondType())
    plain = small.GetMol()
    plain.UpdatePropertyCache(strict=False)
    found = plain.GetSubstructMatches(plain, uniquify=False, maxMatches=limit)
    images = np.array(heavy)[np.array(found, dtype=np.int64).reshape(-1, len(heavy))]
    core = np.tile(np.arange(size), (len(images), 1))
    core[:, heavy] = images
    for i, group in hydrogens.items():
        for k, image in enumerate(core[:, i].tolist()):
            core[k, group] = hydrogens[image]
    core = core[_lawful(graph, core)]
    core = core[np.argsort((core != np.arange(size)).any(1), kind="stable")]  # the identity first
    by_number: dict[int, list[list[int]]] = {}
    for group in hydrogens.values():
        if len(group) > 1:
            by_number.setdefault(len(group), []).append(group)
    groups = tuple(np.array(rows) for _, rows in sorted(by_number.items()))
    return Symmetry(size, core, groups, len(found) < limit)


def best_match(of: Symmetry | Chem.Mol, moving: np.ndarray, fixed: np.ndarray) -> Match:
    """The relabelling and proper rotation that bring `moving` closest to `fixed`.

    Args:
        of: the molecule, or its `symmetry`, which saves time over many matches.
        moving, fixed: (N, 3), two geometries of it.

    Raises:
        ArgumentError: shapes.
    """
    of = symmetry(of) if isinstance(of, Chem.Mol) else of
    for name, x in (("moving", moving), ("fixed", fixed)):
        if np.shape(x) != (of.size, 3):
            raise ArgumentError(name, x, f"positions ({of.size}, 3)")
    centre = fixed.mean(0)
    x, y = np.asarray(moving - moving.mean(0), np.float64), np.asarray(fixed - centre, np.float64)
    if of.order <= _EXACT:
        chosen = of.every
        best = chosen[_kabsch(x[chosen], y)[1].argmin()]
    else:
        chosen = _alternate(of, x, y)
        best = _improve(of, x, y, chosen[_kabsch(x[chosen], y)[1].argmin()])
    turn = _kabsch(x[best], y)[0]
    positions = x[best] @ turn.T
    # Not from the singular values, whose difference loses half of the digits near 0.
    return Match(best.copy(), turn, positions + centre, float(np.sqrt(((positions - y) ** 2).sum() / of.size)))


def rotation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The proper rotations (..., 3, 3) that bring x (..., N, 3) closest to y, both centred: x R^T lies on y."""
    return _kabsch(x, y)[0]


def _kabsch(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations, and the sum of squared distances that is left, (...)."""
    u, s, v = np.linalg.svd(np.swapaxes(x, -1, -2) @ y)
    sign = np.where(np.linalg.det(u) * np.linalg.det(v) < 0, -1.0, 1.0)
    left = (x * x).sum((-1, -2)) + (y * y).sum((-1, -2)) - 2 * (s[..., 0] + s[..., 1] + sign * s[..., 2])
    v = v.copy()
    v[..., 2, :] *= sign[..., None]
    return np.swapaxes(u @ v, -1, -2), np.maximum(left, 0)


def _alternate(of: Symmetry, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For every automorphism the hydrogens' best exchange, by turns with the rotation, from two starts; (2 A, N)."""
    chosen = np.concatenate([of.core, of.core])
    half = chosen[: len(of.core)]
    # One start lays on each other what is certain, if that fixes the rotation; the other takes the labels as they are.
    certain = np.setdiff1d(np.arange(of.size), np.concatenate([group.ravel() for group in of.groups] or [[]]))
    if not _flat(x[certain]) and not _flat(y[certain]):
        about, target = x - x[certain].mean(0), y - y[certain].mean(0)
        turns = _kabsch(about[half[:, certain]], target[certain])[0]
        _exchange(of, half, about[half] @ np.swapaxes(turns, 1, 2), target)
    for _ in range(_TURNS):
        turns = _kabsch(x[chosen], y)[0]
        if not _exchange(of, chosen, x[chosen] @ np.swapaxes(turns, 1, 2), y):
            break
    return chosen


def _improve(of: Symmetry, x: np.ndarray, y: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Exchanges of the hydrogens of one atom, each with its own rotation, as long as one brings x nearer to y."""
    rows = [row for group in of.groups for row in group]
    least = float(_kabsch(x[best], y)[1])
    for _ in range(_TURNS):
        tried = np.concatenate([_reordered(best, row) for row in rows] or [best[None]])
        squares = _kabsch(x[tried], y)[1]
        if squares.min() > least - 1e-9:
            break
        best, least = tried[squares.argmin()], float(squares.min())
    return best


def _reordered(best: np.ndarray, row: np.ndarray) -> np.ndarray:
    """All other orders of the rows `row`, (k! - 1, N)."""
    orders = np.array(list(permutations(best[row])))[1:]
    tried = np.tile(best, (len(orders), 1))
    tried[:, row] = orders
    return tried


def _exchange(of: Symmetry, chosen: np.ndarray, placed: np.ndarray, y: np.ndarray) -> bool:
    """Exchange the hydrogens of each atom for the nearest assignment, in place; whether anything changed."""
    changed = False
    for group in of.groups:
        orders = np.array(list(permutations(range(group.shape[1]))))
        gaps = placed[:, group][:, :, :, None] - y[group][None, :, None]  # (A, G, k of x, k of y, 3)
        cost = (gaps * gaps).sum(-1)
        sums = cost[:, :, orders, np.arange(group.shape[1])].sum(-1)  # (A, G, orders)
        best = sums.argmin(-1)
        better = np.take_along_axis(sums, best[..., None], -1)[..., 0] < sums[..., 0] - 1e-12
        if better.any():
            changed = True
            order = orders[np.where(better, best, 0)]
            chosen[:, group] = np.take_along_axis(chosen[:, group], order, -1)
    return changed


def _flat(x: np.ndarray) -> bool:
    """Whether points lie on a line, nearly: their rotation is then not determined."""
    if len(x) < 3:
        return True
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    return s[1] < 0.1 * s[0]


def _lawful(graph: Arrays, core: np.ndarray) -> np.ndarray:
    """Which relabellings keep the specified stereochemistry, (A,)."""
    good = np.ones(len(core), dtype=bool)
    size = len(graph.atom)
    if graph.edge[:, 2].any():
        relation = np.zeros((size, size), dtype=np.uint8)
        relation[~np.eye(size, dtype=bool)] = graph.edge[:, 2]
        good &= (relation[core[:, :, None], core[:, None, :]] == relation).all((1, 2))
    asked = {int(column[0]): column[1:].tolist() for column in graph.chiral.T}
    for centre, around in asked.items():
        for k in np.flatnonzero(good):
            there = asked.get(int(core[k, centre]))
            if there is None:
                good[k] = False
                continue
            places = [there.index(int(core[k, i])) for i in around]
            odd = sum(places[i] > places[j] for i in range(4) for j in range(i + 1, 4)) % 2
            good[k] = not odd
    return good
