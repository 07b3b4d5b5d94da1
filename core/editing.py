"""Editing by partial noising (SDEdit, Meng et al. 2022): noise a given state up to a time, then sample back to data.

The later the time the stronger the edit: more of x_0 is forgotten, and what is drawn anew follows the model. For any
kernel and any of its samplers: tokens are edited by ancestral sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from .ancestral import ancestral
from .errors import ArgumentError
from .grids import check_times, unstack
from .kernel import Kernel, Time
from .randomness import Randomness
from .sampling import Step

__all__ = ["edit"]

X = TypeVar("X")


def edit(
    denoise: Callable[[X, Time], Any],
    kernel: Kernel[X, Any],
    x_0: X,
    times: Tensor,
    strength: float,
    *,
    sampler: Callable[..., Iterator[Step[Any]]] = ancestral,
    generator: Randomness = None,
) -> Iterator[Step[X]]:
    """Yields the noised state and then the sampler's steps over the rest of the grid.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: any that the sampler takes.
        x_0: what is edited.
        times: grid (n + 1,) or (n + 1, B).
        strength: share of the grid's intervals that are run, in [0, 1], to the nearest: 0 gives x_0 back, 1 starts
            from q(x_1 | x_0), which is noise alone where alpha_1 = 0.
        sampler: `sampler(denoise, kernel, x, times, generator=...)`; bind its options with `functools.partial`.
        generator: one, or a list with one per example.
    """
    times = check_times(times)
    if not 0 <= strength <= 1:
        raise ArgumentError("strength", strength, "a number in [0, 1]")
    rest = times[round((1 - strength) * (len(times) - 1)) :]
    start = unstack(rest)[0]
    x = kernel.marginal(x_0, start).sample(generator) if len(rest) > 1 else x_0
    yield Step(start, x, kernel.certain(x_0))
    if len(rest) > 1:
        yield from sampler(denoise, kernel, x, rest, generator=generator)
