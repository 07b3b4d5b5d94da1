"""Parts of a molecule whose coordinates are given: a scaffold, a docked core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from rdkit.Geometry import Point3D

from ..core.errors import ArgumentError
from .symmetry import rotation
from .work import canonical

__all__ = ["Core", "Known", "core_of", "drafts_on"]

Core: TypeAlias = Mapping[int, Sequence[float]] | Chem.Mol
"""{atom of the molecule: (x, y, z)}, or a molecule with a conformer that is a part of it."""

Known: TypeAlias = dict[int, np.ndarray]

SPARE = 4
"""Drafts that are embedded for each that is wanted."""


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
    """Drafts (D, N, 3) whose given atoms lie as near to their places as distance geometry can; D may be 0.

    Distances do not tell a conformation of the core from its mirror image, so more are embedded and the nearest kept.
    """
    options = rdDistGeom.ETKDGv3()
    options.randomSeed = number
    options.useRandomCoords = True
    options.timeout = max(1, round(timeout))
    options.SetCoordMap({i: Point3D(*place.tolist()) for i, place in known.items()})  # pyright: ignore[reportCallIssue]
    made = Chem.Mol(mol)
    with rdBase.BlockLogs():
        try:
            rdDistGeom.EmbedMultipleConfs(made, SPARE * count, options)
        except (RuntimeError, ValueError):
            made.RemoveAllConformers()
    atoms = list(known)
    target = np.stack([known[i] for i in atoms])
    found = sorted((laid(one.GetPositions(), atoms, target) for one in made.GetConformers()), key=lambda pair: pair[1])
    return np.stack([placed for placed, _ in found[:count]]) if found else np.zeros((0, mol.GetNumAtoms(), 3))


def laid(positions: np.ndarray, atoms: Sequence[int], target: np.ndarray) -> tuple[np.ndarray, float]:
    """Positions moved so that the given atoms come closest to the target, and the squared distance that is left."""
    x, centre = positions[atoms].mean(0), target.mean(0)
    turn = rotation(positions[atoms] - x, target - centre)
    placed = (positions - x) @ turn.T + centre
    return placed, float(((placed[atoms] - target) ** 2).sum())
