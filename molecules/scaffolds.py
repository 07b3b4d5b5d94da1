"""Parts of a molecule whose coordinates are given: a scaffold, a docked core."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from rdkit.Geometry import Point3D

from ..core.errors import ArgumentError
from . import drafts
from .stereo import keeps_stereo
from .symmetry import rotation
from .work import canonical

__all__ = ["Core", "Known", "core_of", "drafts_on"]

Core: TypeAlias = Mapping[int, Sequence[float]] | Chem.Mol
"""{atom of the molecule: (x, y, z)}, or a molecule with a conformer that is a part of it."""

Known: TypeAlias = dict[int, np.ndarray]

SPARE = 4
"""Drafts that are embedded for each that is wanted."""

ATTEMPTS = 5
"""Of distance geometry around the core, for each draft: where that is hard, more rarely help and take minutes."""


def core_of(mol: Chem.Mol, core: Core) -> Known:
    """{atom: position (3,)} of the given part.

    Of a molecule as core the first match counts, hydrogens only where the core has them as atoms.

    Raises:
        ArgumentError: atoms that are not there, coordinates that are none, a core that is no part or has no conformer.
    """
    size = mol.GetNumAtoms()
    if isinstance(core, Chem.Mol):
        if core.GetNumConformers() == 0:
            raise ArgumentError("core", core, "a molecule with a conformer")
        match = mol.GetSubstructMatch(core, useChirality=True)
        if not match:
            raise ArgumentError("core", Chem.MolToSmiles(core), f"a part of {canonical(mol)}")
        known = dict(zip(match, core.GetConformer().GetPositions(), strict=True))
    elif isinstance(core, Mapping) and core:
        known = {i: np.asarray(place, dtype=np.float64) for i, place in core.items()}
    else:
        raise ArgumentError("core", core, "atoms with their coordinates, or a molecule with a conformer")
    for i, place in known.items():
        if not isinstance(i, int) or not 0 <= i < size:
            raise ArgumentError("core", i, f"numbers of the atoms, 0 ... {size - 1}")
        if place.shape != (3,) or not np.isfinite(place).all():
            raise ArgumentError(f"core[{i}]", place, "three finite coordinates")
    return known


def drafts_on(mol: Chem.Mol, known: Known, count: int, number: int, timeout: float) -> np.ndarray:
    """Drafts (D, N, 3) around the given atoms, which lie at their places; D is 0 only where none can be embedded.

    Distances do not tell a conformation of the core from its mirror image, so more are embedded and the nearest kept.
    Distance geometry finds nothing around coordinates whose bonds are a little too long or short. Free drafts are then
    bent onto the core.
    """
    found = embedded(mol, known, SPARE * count, number, timeout)
    if not found:
        free = drafts.embed(mol, SPARE * count, number, max(1, round(timeout)))
        made = () if isinstance(free, drafts.Problem) else free.GetConformers()
        found = [bent(mol, one.GetPositions(), known) for one in made]
    found = [placed for placed, _ in sorted(found, key=lambda pair: pair[1])[:count]]
    return np.stack(found) if found else np.zeros((0, mol.GetNumAtoms(), 3))


def embedded(mol: Chem.Mol, known: Known, count: int, number: int, timeout: float) -> list[tuple[np.ndarray, float]]:
    """Conformers of the asked stereochemistry by distance geometry with the distances of the core; see `laid`."""
    options = rdDistGeom.ETKDGv3()
    options.randomSeed = number
    options.useRandomCoords = True
    options.timeout = max(1, round(timeout))
    options.maxIterations = ATTEMPTS
    options.SetCoordMap({i: Point3D(*place.tolist()) for i, place in known.items()})  # pyright: ignore[reportCallIssue]
    made = Chem.Mol(mol)
    with rdBase.BlockLogs():
        try:
            rdDistGeom.EmbedMultipleConfs(made, count, options)
        except (RuntimeError, ValueError):
            made.RemoveAllConformers()
    atoms = list(known)
    target = np.stack([known[i] for i in atoms])
    found = (one.GetPositions() for one in made.GetConformers())
    return [laid(x, atoms, target) for x in found if keeps_stereo(mol, x)]


def bent(mol: Chem.Mol, positions: np.ndarray, known: Known) -> tuple[np.ndarray, float]:
    """A free draft (N, 3) with the given atoms put where they were given; and the squared distance they had to go.

    It is laid on the core as a whole. What hangs on an atom of the core then follows that atom rigidly, turned as the
    core around it; what hangs on several follows the nearer ones more.
    """
    atoms = list(known)
    target = np.stack([known[i] for i in atoms])
    placed, far = laid(positions, atoms, target)
    hops = Chem.GetDistanceMatrix(mol)
    rows = {i: k for k, i in enumerate(atoms)}
    moved = placed.copy()
    moved[atoms] = target
    for part in hanging(mol, rows):
        ends = sorted({other.GetIdx() for i in part for other in mol.GetAtomWithIdx(i).GetNeighbors()} & rows.keys())
        if not ends:
            continue
        ways: list[np.ndarray] = []
        for end in ends:
            weights = np.exp2(-2 * hops[end, atoms])[:, None]
            turn = rotation((placed[atoms] - placed[end]) * weights, (target - known[end]) * weights)
            ways.append((placed[part] - placed[end]) @ turn.T + known[end])
        shares = np.stack([hops[end, part] for end in ends]) ** -2.0
        moved[part] = np.einsum("ep,epd->pd", shares / shares.sum(0), np.stack(ways))
    return moved, far


def hanging(mol: Chem.Mol, core: Container[int]) -> list[list[int]]:
    """The connected parts of what is not the core."""
    found: list[list[int]] = []
    seen: set[int] = set()
    for first in range(mol.GetNumAtoms()):
        if first in core or first in seen:
            continue
        part = [first]
        seen.add(first)
        for i in part:  # grows on the way
            for other in mol.GetAtomWithIdx(i).GetNeighbors():
                k = other.GetIdx()
                if k not in core and k not in seen:
                    seen.add(k)
                    part.append(k)
        found.append(part)
    return found


def laid(positions: np.ndarray, atoms: Sequence[int], target: np.ndarray) -> tuple[np.ndarray, float]:
    """Positions moved so that the given atoms come closest to the target, and the squared distance that is left."""
    x, centre = positions[atoms].mean(0), target.mean(0)
    turn = rotation(positions[atoms] - x, target - centre)
    placed = (positions - x) @ turn.T + centre
    return placed, float(((placed[atoms] - target) ** 2).sum())
