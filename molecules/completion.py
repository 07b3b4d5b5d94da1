"""Conformers around a part whose coordinates are given: RePaint on displacements from drafts around that part.

Noise has no place in space, so what is known of the given atoms is their shape; a last shift, which is exact, brings
that where it was given. See `core.inpainting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from ..core import grids
from ..core.gaussian import Gaussian
from ..core.inpainting import repaint
from ..core.randomness import mix
from ..core.sampling import Step
from .ensembles import MoleculeError, Moved, Settings, ensembles_of
from .options import LevelName
from .scaffolds import Core, core_of, drafts_on
from .work import Failure, Rules, check_positive, draft, key_of

if TYPE_CHECKING:
    from .pipeline import ConformerPipeline

__all__ = ["complete"]

Grid = Callable[[int, Any], Tensor]


@torch.no_grad()
def complete(
    pipeline: ConformerPipeline,
    molecule: str | Chem.Mol,
    core: Core,
    num_conformers: int = 10,
    *,
    level: LevelName | None = None,
    steps: int = 20,
    grid: Grid = grids.uniform,
    jump: int = 5,
    resamples: int = 3,
    seed: int = 0,
    relax: bool = False,
    energies: bool = True,
    keep_duplicates: bool = True,
    threshold: float = 0.1,
    rounds: int = 4,
    pairs: int = 150_000,
    timeout: float = 60.0,
) -> Chem.Mol:
    """Conformers around a part whose coordinates are given, by RePaint: a scaffold, a docked core.

    The given atoms come back exactly where they were given. Drafts are embedded around them, with them fixed; where
    that finds none, because bonds or angles of the core are off, free drafts are bent onto the core.

    Args:
        pipeline: the model.
        molecule: SMILES or a molecule.
        core: {atom of the molecule: (x, y, z)}, or a molecule with a conformer that is a part of it.
        jump, resamples: of `core.inpainting.repaint`.
        relax: the other atoms only; the given ones do not move.
        num_conformers, level, steps, grid, seed, energies, keep_duplicates, threshold, rounds, pairs, timeout: as
            for `ConformerPipeline.generate`.

    Raises:
        MoleculeError: with the status that says why there are none. ArgumentError: a core that is
            no part of the molecule.
    """
    rules = Rules(pipeline.levels(level), False, 10**9, timeout, seed)
    check_positive(pairs=pairs, timeout=timeout)
    first = draft(molecule, 1, 0, rules)
    if isinstance(first, Failure):
        raise MoleculeError(first.status, first.message)
    known = core_of(first.mol, core)
    atoms = list(known)
    centre = np.stack(list(known.values())).mean(0)  # far from the origin float32 has few digits left
    known = {i: place - centre for i, place in known.items()}
    settings = Settings(num_conformers, relax, energies, keep_duplicates, threshold, rounds, tuple(atoms))
    place = np.zeros((len(first.graph.atom), 3))
    place[atoms] = np.stack(list(known.values()))
    mask = torch.zeros(len(place), dtype=torch.bool)
    mask[atoms] = True

    def run(denoise: Any, kernel: Gaussian, x: Tensor, drafts: Tensor, generators: Any) -> Iterator[Step[Tensor]]:
        count = len(drafts) // len(mask)
        rows = mask.to(x.device).repeat(count)
        target = (torch.from_numpy(place).to(drafts).repeat(count, 1) - drafts) / pipeline.config.scale
        target, times = target * rows.unsqueeze(1), grid(steps, kernel.schedule)
        walk = {"jump": jump, "resamples": resamples}
        return repaint(denoise, kernel, x, times, known=target, mask=rows, generator=generators, **walk)

    def move(drafted: Any, starts: Any, numbers: Any, round_: int) -> Moved:
        (one,), (these,), (begin,) = drafted, numbers, starts
        if pipeline.config.start == "draft":
            number = mix(seed, key_of(one.smiles), round_, 1) & 0x7FFFFFFF
            begin = drafts_on(one.mol, known, len(these), number, timeout)
            if not len(begin):
                raise MoleculeError("no-embedding", "distance geometry found no conformer around the core")
        (moved,), seconds = pipeline.move(drafted, [begin], numbers, round_, seed=seed, pairs=pairs, run=run)
        moved = moved + (place[atoms] - moved[:, atoms]).mean(1, keepdims=True) + centre
        moved[:, atoms] = place[atoms] + centre
        return Moved([moved], seconds)

    (found,) = ensembles_of([molecule], settings, rules, move)
    if found.mol is None:
        raise MoleculeError(found.status, found.message)
    return found.mol
