"""Ancestral sampling: draw x_s from p(x_s | x_t) along the grid, for any kernel (Ho et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from .grids import check_times, unstack
from .kernel import Kernel, Time
from .randomness import Randomness
from .sampling import Step, Steps

__all__ = ["ancestral"]

X = TypeVar("X")


def ancestral(
    denoise: Callable[[X, Time], Any],
    kernel: Kernel[X, Any],
    x: X,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Steps[X]:
    """One draw from the kernel's `reverse` per interval; the last interval concludes (mean, or a draw of tokens).

    Args:
        denoise: (x_t, t) -> belief.
        kernel: any.
        x: the state at times[0], usually `kernel.prior(like).sample(generator)`.
        times: grid (n + 1,) or (n + 1, B); n network calls.
        generator: one, or a list with one per example.
    """
    grid = unstack(check_times(times))
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        belief = denoise(x, t)
        x = kernel.reverse(x, belief, s, t).sample(generator)
        sent = yield Step(s, x, belief)
        x = x if sent is None else sent
    belief = denoise(x, grid[-2])
    yield Step(grid[-1], kernel.conclude(belief, generator), belief)
