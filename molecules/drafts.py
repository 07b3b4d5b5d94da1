"""From SMILES to draft conformers: distance geometry, then, where wanted, a force field.

`embed` draws conformers by ETKDGv3 (Riniker and Landrum 2015, J. Chem. Inf. Model. 55, 2562; Wang et al. 2020, J.
Chem. Inf. Model. 60, 2044); `relax` brings them to minima of MMFF94 (Halgren 1996, J. Comput. Chem. 17, 490). Both
are RDKit's.

What a molecule may fail at is expected in any large list and no exception: the functions return a `Problem` that
names the reason, and callers count them.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from ..core.errors import ArgumentError
from .graphs import Arrays, UnsupportedElementError, arrays

__all__ = ["WINDOW", "Problem", "Reason", "embed", "keep", "parse", "prepare", "relax", "right_stereo"]

Reason = Literal["invalid", "disconnected", "unsupported-element", "no-embedding", "stereo-failed", "no-parameters"]

WINDOW = 10.0
"""kcal/mol above the best conformer, beyond which a minimum counts as of no interest."""

_ATTEMPTS = (
    {"maxIterations": 10},
    # RDKit bounds the volumes of centres, which no cage of small rings can meet: the right ones are picked out after.
    {"maxIterations": 10, "enforceChirality": False},
    {"maxIterations": 50, "enforceChirality": False, "useRandomCoords": True},
)

_STEPS = 2000  # of the minimiser: small molecules need less than 500


@dataclass(frozen=True)
class Problem:
    """Why nothing was made.

    Attributes:
        reason: invalid (not a molecule: syntax, valence, nothing at all), disconnected (more than one part),
            unsupported-element, no-embedding (distance geometry found nothing in its time), stereo-failed (conformers
            came, none with the asked stereochemistry), no-parameters (the force field does not know an atom).
        detail: in words.
    """

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def parse(smiles: str) -> Chem.Mol | Problem:
    """A molecule with all hydrogens as atoms, or why not; radicals and charges are fine."""
    if not smiles.strip():
        return Problem("invalid", "an empty text")
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return Problem("invalid", f"{smiles} is not SMILES of a possible molecule")
    if mol.GetNumAtoms() == 0:
        return Problem("invalid", f"{smiles} has no atoms")
    parts = len(Chem.GetMolFrags(mol))
    if parts > 1:
        return Problem("disconnected", f"{smiles} has {parts} parts")
    mol = Chem.AddHs(mol)
    try:
        arrays(mol)
    except UnsupportedElementError as error:
        return Problem("unsupported-element", f"{smiles} has {error.element}")
    return mol


def embed(mol: Chem.Mol, count: int, seed: int = 0, timeout: int = 30) -> Chem.Mol | Problem:
    """A copy of the molecule with up to `count` ETKDGv3 conformers of the asked stereochemistry, ids from 0.

    For those that lack after the first attempt a second one leaves out RDKit's own bounds on chiral volumes, which
    strained cages cannot meet, and takes what is right, or is after reflection; only if there is still none, a third
    one starts from random coordinates. A seed gives the same conformers always, unless time runs out.

    Args:
        mol: with hydrogens; conformers that it has are dropped.
        count: of conformers, at least 1.
        seed: 0 … 2^31 - 1.
        timeout: seconds per attempt.

    Returns:
        at least one conformer, or the Problem no-embedding or stereo-failed.
    """
    if count < 1:
        raise ArgumentError("count", count, "at least 1")
    if not 0 <= seed < 1 << 31:
        raise ArgumentError("seed", seed, "0 … 2^31 - 1")
    made = Chem.Mol(mol)
    made.RemoveAllConformers()
    if mol.GetNumAtoms() == 1:
        for k in range(count):
            made.AddConformer(Chem.Conformer(1), assignId=True)
            made.GetConformer(k).Set3D(True)
        return made
    graph, found, wrong = arrays(mol), [], 0
    for attempt, choice in enumerate(_ATTEMPTS):
        lacking = count - len(found)
        if lacking <= 0 or (found and attempt == len(_ATTEMPTS) - 1):
            break
        trial = Chem.Mol(made)
        options = rdDistGeom.ETKDGv3()
        options.randomSeed = (seed + attempt * 0x2545F491) & 0x7FFFFFFF
        options.timeout = timeout
        options.numThreads = 1
        for name, value in choice.items():
            setattr(options, name, value)
        with rdBase.BlockLogs():
            try:
                rdDistGeom.EmbedMultipleConfs(trial, lacking if not attempt else 2 * lacking, options)
            except (RuntimeError, ValueError):
                trial.RemoveAllConformers()
        for conformer in trial.GetConformers():  # not by the ids returned, which are -1 when time has run out
            x = _as_asked(graph, conformer.GetPositions())
            if x is None:
                wrong += 1
            elif len(found) < count:
                conformer.SetPositions(x)
                found.append(Chem.Conformer(conformer))
    if not found:
        if wrong:
            return Problem("stereo-failed", f"{wrong} conformers, none with the asked stereochemistry")
        return Problem("no-embedding", "distance geometry found no conformer")
    for conformer in found:
        made.AddConformer(conformer, assignId=True)
    return made


def prepare(smiles: str, count: int = 1, seed: int = 0, timeout: int = 30) -> Chem.Mol | Problem:
    """`parse` and `embed` in one."""
    mol = parse(smiles)
    return mol if isinstance(mol, Problem) else embed(mol, count, seed, timeout)


def relax(mol: Chem.Mol) -> np.ndarray | Problem:
    """Every conformer to its own MMFF94 minimum, in place.

    Returns:
        energies in kcal/mol (C,), NaN where the minimiser did not converge; or the Problem no-parameters, and nothing
        has moved.
    """
    with rdBase.BlockLogs():
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        if properties is None:
            return Problem("no-parameters", "MMFF94 does not know an atom of this molecule")
        found = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, numThreads=1, maxIters=_STEPS)
    return np.array([energy if state == 0 else np.nan for state, energy in found])


def right_stereo(graph: Arrays, positions: np.ndarray) -> bool:
    """Whether a geometry (N, 3) has every specified centre and double bond as the graph asks."""
    centre, a, b, c, d = graph.chiral
    frames = np.stack([positions[a] - positions[d], positions[b] - positions[d], positions[c] - positions[d]], 1)
    if len(centre) and not (np.linalg.det(frames) > 0).all():
        return False
    if not graph.edge[:, 2].any():
        return True
    size = len(graph.atom)
    relation = np.zeros((size, size), dtype=np.uint8)
    relation[~np.eye(size, dtype=bool)] = graph.edge[:, 2]
    double = np.zeros((size, size), dtype=bool)
    double[~np.eye(size, dtype=bool)] = graph.edge[:, 0] == 2
    bonded = np.zeros((size, size), dtype=bool)
    bonded[graph.bond[0], graph.bond[1]] = bonded[graph.bond[1], graph.bond[0]] = True
    for p, q in np.argwhere(np.triu(relation)):
        # The double bond between: its ends are neighbours of p and of q.
        i, j = np.argwhere(double & bonded[p][:, None] & bonded[q][None, :])[0]
        axis = positions[j] - positions[i]
        left, right = positions[p] - positions[i], positions[q] - positions[j]
        same = np.cross(axis, left) @ np.cross(axis, right)
        if (same > 0) != (relation[p, q] == 1):
            return False
    return True


def _as_asked(graph: Arrays, x: np.ndarray) -> np.ndarray | None:
    """A geometry, or its mirror image, whichever has the asked stereochemistry; None if neither has."""
    if not np.isfinite(x).all():
        return None
    return next((y for y in (x, x * (1.0, 1.0, -1.0)) if right_stereo(graph, y)), None)


def keep(energies: Sequence[float] | np.ndarray, window: float = WINDOW) -> list[int]:
    """Places of the conformers within `window` of the best, best first; those that did not converge are left out."""
    energies = np.asarray(energies, dtype=np.float64)
    order = [int(k) for k in np.argsort(energies, kind="stable") if np.isfinite(energies[k])]
    return [k for k in order if energies[k] <= energies[order[0]] + window]
