"""How conformers come about: the sampler's steps in Angstrom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from ..core.randomness import seeded
from ..core.sampling import Step
from .options import LevelName
from .work import key_of

if TYPE_CHECKING:
    from .pipeline import ConformerPipeline

__all__ = ["trajectory"]


@torch.no_grad()
def trajectory(
    pipeline: ConformerPipeline,
    molecule: str | Chem.Mol,
    num_conformers: int = 1,
    *,
    level: LevelName | None = None,
    seed: int = 0,
    **options: Any,
) -> Iterator[Step[np.ndarray]]:
    """The sampler's steps as positions (num_conformers, N, 3) in Angstrom, the start first, no gate behind them.

    Args:
        pipeline: the model.
        molecule, num_conformers, level, seed: as for `ConformerPipeline.generate`.
        options: `steps`, `sampler` and `grid` of that.
    """
    drafted = pipeline.drafted(molecule, num_conformers, level, seed)
    starts = drafted.positions[np.arange(num_conformers) % len(drafted.positions)]
    generators = [seeded(seed, key_of(drafted.smiles), 0, k) for k in range(num_conformers)]
    denoise, kernel, drafts = pipeline.given([drafted.graph] * num_conformers, list(starts), [drafted.level])
    x = kernel.prior(torch.zeros_like(drafts)).sample(generators)

    def placed(x: Tensor) -> np.ndarray:
        whole = drafts.double() + pipeline.config.scale * x.double()
        return whole.cpu().numpy().reshape(num_conformers, -1, 3)

    steps = pipeline.steps(denoise, kernel, x, generators, **options)
    yield Step(1.0, placed(x), None)
    for step in steps:
        belief = None if step.belief is None else placed(step.belief.mean)
        yield Step(step.t, placed(step.x), belief)
