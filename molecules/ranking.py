"""Conformers of one molecule in order: by energy, with the RMSD to the best, and without those that are there already.

Distances are over the heavy atoms and those hydrogens that can make a difference, over rotations and relabellings. Like
those of `work`, these are jobs for processes beside the network's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from .work import with_conformers

__all__ = ["Order", "order", "pairwise_rmsd"]

MOST_MATCHES = 2000
"""Relabellings of equal atoms that RMSDs look at; hydrogens on carbon, which have the most, are left out of them."""


@dataclass(frozen=True)
class Order:
    """An ensemble, best first.

    Attributes:
        places: of the conformers that are kept, among those given.
        rmsd: of each to the first, symmetric, without hydrogens on carbon, Angstrom.
        seconds: taken.
    """

    places: tuple[int, ...]
    rmsd: tuple[float, ...]
    seconds: float


def order(mol: Chem.Mol, positions: np.ndarray, energies: np.ndarray, keep_duplicates: bool, threshold: float) -> Order:
    """Rank conformers by energy, as they come where there is none, and leave out those that are there already."""
    began = time.perf_counter()
    ranked = np.argsort(energies, kind="stable").tolist()  # NaN last, in order
    small = without_carbon_hydrogens(mol, positions[ranked])
    places, rmsd = [0], [0.0]
    for k in range(1, len(ranked)):
        distance = best_rmsd(small, k, 0)
        if keep_duplicates or (
            distance > threshold and all(best_rmsd(small, k, kept) > threshold for kept in places[1:])
        ):
            places.append(k)
            rmsd.append(distance)
    return Order(tuple(ranked[k] for k in places), tuple(rmsd), time.perf_counter() - began)


def pairwise_rmsd(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray:
    """Symmetric RMSDs (K, K) in Angstrom between conformers (K, N, 3), without hydrogens on carbon."""
    small, count = without_carbon_hydrogens(mol, positions), len(positions)
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            found[i, j] = found[j, i] = best_rmsd(small, i, j)
    return found


def without_carbon_hydrogens(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """The heavy atoms and those hydrogens that can make a difference, at positions (K, N, 3)."""
    made = Chem.RWMol(with_conformers(mol, positions))
    gone = [
        atom.GetIdx()
        for atom in made.GetAtoms()
        if atom.GetAtomicNum() == 1 and any(other.GetAtomicNum() == 6 for other in atom.GetNeighbors())
    ]
    if len(gone) == made.GetNumAtoms():
        gone = []
    made.BeginBatchEdit()
    for i in gone:
        made.RemoveAtom(i)
    made.CommitBatchEdit()
    return made.GetMol()


def best_rmsd(mol: Chem.Mol, i: int, j: int) -> float:
    """Between two conformers, over rotations and relabellings; conformer i comes to lie on j."""
    if mol.GetNumAtoms() == 1:
        return 0.0
    return rdMolAlign.GetBestRMS(mol, mol, i, j, maxMatches=MOST_MATCHES)
