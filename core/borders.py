r"""Where the probability flow tears noise apart: starts close to the border between two modes.

The flow carries a start x_1 to an end Phi(x_1). Between two modes its derivative is huge: a solver's error on the way,
small anywhere else, is multiplied by it and may put the end into the other mode. Such ends rule the root mean square
error of a solver, and they are rare, so a fit of solvers learns of them only if its starts are chosen. The measure is

    A(x_1) = sqrt(sum of |Phi(x_1 + h z) - Phi(x_1)|^2 over some directions z ~ N(0, I) / sum of |h z|^2),

about the root mean square of the Jacobian's singular values: s on normal data of deviation s, 0 at a point mass. In one
dimension it is p_1(x_1)/p_0(Phi(x_1)), for Phi maps quantiles to quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ArgumentError
from .fitting import Trajectories, dots, trajectories

__all__ = ["at_borders", "sensitivities"]


def sensitivities(
    batch: Trajectories,
    *,
    directions: int = 2,
    width: float = 1e-4,
    steps: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A of every start, (B,) float64; 4 steps (directions + 1) network calls.

    Args:
        batch: starts with what binds their flow; the ends are solved again, with the same errors as their neighbours'.
        directions: >= 1, each drawn anew.
        width: h > 0; in float32 not below 1e-3, and 1e-2 for networks in less.
        steps: of the fine solver.
        generator: draws the directions.
    """
    if directions < 1 or not width > 0:
        raise ArgumentError("directions, width", (directions, width), "at least one direction, a width above 0")
    path = batch.kernel

    def ends(x: Tensor) -> Tensor:
        return trajectories(batch.denoise, path, x, start=batch.start, steps=steps).target

    here = ends(batch.x)
    far = near = torch.zeros(path.examples(batch.x), dtype=torch.float64)
    for _ in range(directions):
        z = torch.randn(batch.x.shape, generator=generator, dtype=torch.float64).to(batch.x)
        z = path.project(z)
        moved = path.combine((1.0, ends(path.combine((1.0, batch.x), (width, z)))), (-1.0, here))
        far, near = far + dots(path, moved, moved), near + dots(path, z, z)
    return torch.sqrt(far / near) / width


def at_borders(found: Tensor, count: int) -> Tensor:
    """The numbers of the `count` starts with the largest sensitivities, largest first."""
    return found.argsort(descending=True, stable=True)[:count]
