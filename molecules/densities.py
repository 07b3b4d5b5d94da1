"""How likely a conformer is to a model: the density of the probability flow, see `core.likelihood`.

Positions live in 3 (N - 1) centred dimensions. The states are y = (x - draft)/scale, so log p(x) = log p(y) minus
3 (N - 1) log scale. The density is over labelled atoms: equal atoms that change places make another point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from ..core import grids
from ..core.errors import ArgumentError
from ..core.likelihood import Probes, exact
from ..core.likelihood import log_likelihood as solve
from ..core.randomness import seeded
from .options import LevelName
from .symmetry import rotation
from .work import key_of

if TYPE_CHECKING:
    from .pipeline import ConformerPipeline

__all__ = ["log_likelihood"]

Grid = Callable[[int, Any], Tensor]


def log_likelihood(
    pipeline: ConformerPipeline,
    molecule: Chem.Mol,
    *,
    level: LevelName | None = None,
    steps: int = 20,
    grid: Grid = grids.uniform,
    probes: Probes = exact,
    drafts: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """log p of each conformer of a molecule, nats, with respect to Angstrom in its 3 (N - 1) centred dimensions.

    A model that starts from drafts has a law for each draft, N(draft, scale^2) carried by the flow; conformers are
    turned onto the draft first, as in training. It is then log p(conformer | draft).

    Args:
        pipeline: the model.
        molecule: with all hydrogens and at least one conformer.
        level: as for `ConformerPipeline.generate`.
        steps, grid: of the solve.
        probes: of the divergence; `exact` takes 3 N backward passes a step, `core.likelihood.rademacher()` one.
        drafts: one draft (N, 3) for each conformer; embedded with `seed` by default.
        seed: of drafts and probes.
    """
    shapes = np.stack([one.GetPositions() for one in molecule.GetConformers()] or [np.zeros((0, 3))])
    if shapes.shape[:2] != (molecule.GetNumConformers(), molecule.GetNumAtoms()) or not len(shapes):
        raise ArgumentError("molecule", molecule, "one with all hydrogens and at least one conformer")
    count, size = shapes.shape[:2]
    drafted = pipeline.drafted(molecule, count, level, seed)
    if len(drafted.graph.atom) != size:
        raise ArgumentError("molecule", molecule, "one with all its hydrogens as atoms")
    starts = drafted.positions[np.arange(count) % len(drafted.positions)] if drafts is None else np.asarray(drafts)
    if starts.shape != shapes.shape:
        raise ArgumentError("drafts", starts, f"positions {shapes.shape}")
    starts = starts - starts.mean(1, keepdims=True)
    shapes = shapes - shapes.mean(1, keepdims=True)
    if pipeline.config.start == "draft":
        shapes = shapes @ np.swapaxes(rotation(shapes, starts), 1, 2)
    denoise, kernel, begin = pipeline.given([drafted.graph] * count, list(starts), [drafted.level])
    y = (torch.from_numpy(shapes.reshape(-1, 3)).to(begin) - begin) / pipeline.config.scale
    generators = [seeded(seed, key_of(drafted.smiles), k) for k in range(count)]
    times = grid(steps, kernel.schedule)
    found = solve(denoise, kernel, kernel.project(y), times, probes=probes, generator=generators)
    nats = found.nats.double() - kernel.dims(y).double() * float(np.log(pipeline.config.scale))
    return nats.cpu().numpy()
