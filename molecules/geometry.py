"""Bonds, angles and the shape of an ensemble: figures of coordinates alone.

Errors of bonds and angles are taken to the nearest reference conformer, its atoms renamed by the symmetry that brings
it nearest (`rmsd.matched`), so that they are those of the same bonds. A model may also be right on average and wrong
in every molecule, or the other way round: the distributional errors compare, kind by kind, all values of the drawn
with all of the reference conformers, by the Wasserstein-1 distance, in the unit of the value. Kinds of bonds are two
elements and an order, kinds of angles three elements. Every molecule has the same weight on either side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem
from scipy.stats import wasserstein_distance

from ..core.errors import ArgumentError
from .automorphisms import Symmetry
from .rmsd import matched

__all__ = [
    "angle_sizes",
    "angles",
    "bond_lengths",
    "bonds",
    "distributional_errors",
    "diversity",
    "local_errors",
    "radius_of_gyration",
]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def bonds(mol: Chem.Mol) -> Indices:
    """The atoms of every bond, (M, 2)."""
    return np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in mol.GetBonds()], dtype=np.int64).reshape(-1, 2)


def angles(mol: Chem.Mol) -> Indices:
    """The atoms (i, j, k) of every angle i-j-k between two bonds of j, each angle once, (A, 3)."""
    found = []
    for atom in mol.GetAtoms():
        around = sorted(other.GetIdx() for other in atom.GetNeighbors())
        found += [(i, atom.GetIdx(), k) for n, i in enumerate(around) for k in around[n + 1 :]]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def bond_lengths(x: Floats, pairs: Indices) -> Floats:
    """Distances of pairs of atoms (M, 2) in conformers (..., N, 3): (..., M), Å."""
    return np.linalg.norm(x[..., pairs[:, 0], :] - x[..., pairs[:, 1], :], axis=-1)


def angle_sizes(x: Floats, triples: Indices) -> Floats:
    """Angles at the middle atoms of triples (A, 3) in conformers (..., N, 3): (..., A), degrees, 0 to 180."""
    middle = x[..., triples[:, 1], :]
    left, right = x[..., triples[:, 0], :] - middle, x[..., triples[:, 2], :] - middle
    # The arc tangent keeps its digits near 0 and 180 degrees, where the arc cosine loses half of them.
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(left, right), axis=-1), (left * right).sum(-1)))


def local_errors(mol: Chem.Mol, x: Floats, references: Floats, symmetry: Symmetry) -> dict[str, Floats]:
    """Mean absolute errors of bonds and angles of each drawn conformer to its nearest reference.

    Args:
        mol: the molecule.
        x, references: (G, N, 3) and (R, N, 3), Å.
        symmetry: of all its atoms (`heavy=False`).

    Returns:
        {"bond lengths, Å": (G,), "bond angles, °": (G,)}; NaN where a molecule has none.

    Raises:
        ArgumentError: no references, or the symmetry of heavy atoms only.
    """
    if len(references) == 0:
        raise ArgumentError("references", references, "a conformer or more")
    if len(symmetry.atoms) != mol.GetNumAtoms():
        raise ArgumentError("symmetry", symmetry.atoms, "that of all atoms")
    distances, maps = matched(x, references, symmetry)
    nearest = distances.argmin(1)
    renamed = np.empty_like(np.asarray(x, dtype=np.float64))
    for i, j in enumerate(nearest):
        renamed[i, symmetry.atoms] = references[j, maps[i, j]]
    pairs, triples = bonds(mol), angles(mol)
    found = {
        "bond lengths, Å": np.abs(bond_lengths(x, pairs) - bond_lengths(renamed, pairs)),
        "bond angles, °": np.abs(angle_sizes(x, triples) - angle_sizes(renamed, triples)),
    }
    return {name: error.mean(1) if error.shape[1] else np.full(len(x), np.nan) for name, error in found.items()}


def distributional_errors(ensembles: Iterable[tuple[Chem.Mol, Floats, Floats]]) -> dict[str, dict[str, Any]]:
    """Wasserstein-1 distances between drawn and reference values, over kinds of bonds and of angles.

    Args:
        ensembles: (molecule, drawn (G, N, 3), references (R, N, 3)); those without any of either are left out.

    Returns:
        {"bond lengths, Å": {"mean", "kinds"}, "bond angles, °": …}: the mean over kinds, each weighted by how often it
        occurs (None without any), and {kind: distance}.
    """
    values: dict[str, dict[str, list[tuple[Floats, Floats]]]] = {
        "bond lengths, Å": defaultdict(list),
        "bond angles, °": defaultdict(list),
    }
    for mol, x, references in ensembles:
        if not (len(x) and len(references)):
            continue
        pairs, triples = bonds(mol), angles(mol)
        for name, kinds, measure, atoms in (
            ("bond lengths, Å", [_kind_of_bond(bond) for bond in mol.GetBonds()], bond_lengths, pairs),
            ("bond angles, °", [_kind_of_angle(mol, *map(int, row)) for row in triples], angle_sizes, triples),
        ):
            drawn, real = measure(x, atoms), measure(references, atoms)
            for i, kind in enumerate(kinds):
                values[name][kind].append((drawn[:, i], real[:, i]))
    found = {}
    for name, kinds in values.items():
        distances = {kind: _wasserstein(kinds[kind]) for kind in sorted(kinds)}
        weights = [len(kinds[kind]) for kind in distances]
        mean = float(np.average(list(distances.values()), weights=weights)) if distances else None
        found[name] = {"mean": mean, "kinds": distances}
    return found


def radius_of_gyration(mol: Chem.Mol, x: Floats) -> Floats:
    """Root of the mass-weighted mean square distance from the centre of mass, for (C, N, 3): (C,), Å."""
    masses = np.array([atom.GetMass() for atom in mol.GetAtoms()])
    weights = masses / masses.sum()
    centre = np.einsum("n,cni->ci", weights, x)
    return np.sqrt(np.einsum("n,cni->c", weights, (x - centre[:, None]) ** 2))


def diversity(distances: Floats) -> float:
    """Mean distance between two different conformers of an ensemble, from its own matrix (C, C); NaN for one alone."""
    count = len(distances)
    return float(distances[~np.eye(count, dtype=bool)].mean()) if count > 1 else float("nan")


def _wasserstein(each: list[tuple[Floats, Floats]]) -> float:
    """Distance of pooled values, every pair of arrays weighing the same on both sides."""
    drawn, real = ([pair[side] for pair in each] for side in (0, 1))
    weights = [np.concatenate([np.full(len(part), 1 / len(part)) for part in parts]) for parts in (drawn, real)]
    return float(wasserstein_distance(np.concatenate(drawn), np.concatenate(real), *weights))


def _kind_of_bond(bond: Chem.Bond) -> str:
    ends = sorted((bond.GetBeginAtom().GetSymbol(), bond.GetEndAtom().GetSymbol()))
    return f"{ends[0]}-{ends[1]} {str(bond.GetBondType()).lower()}"


def _kind_of_angle(mol: Chem.Mol, i: int, j: int, k: int) -> str:
    first, middle, last = (mol.GetAtomWithIdx(atom).GetSymbol() for atom in (i, j, k))
    return f"{min(first, last)}-{middle}-{max(first, last)}"
