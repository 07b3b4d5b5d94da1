"""What all samplers share: they are plain generators of steps.

A sampler takes a bound denoiser, a kernel, the state at the grid's first time, and the grid; it yields a `Step` after
every update. There is no `no_grad` inside: the caller decides, since purification needs the gradient. A progress bar, a
callback or a movie is a loop over the generator; `last` runs it to the end. One family of samplers is one file.

Coefficients are computed for the whole grid at once, in float64, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from .errors import ArgumentError
from .grids import check_times
from .kernel import Path, Time

__all__ = ["Step", "columns", "last", "prepared"]

X = TypeVar("X")


class Step(NamedTuple, Generic[X]):
    """The state after one update."""

    t: Time
    """the time reached; 0 at the end"""
    x: X
    """the state at that time"""
    belief: Any
    """the belief about x_0 that the update used"""


def last(steps: Iterable[Step[X]]) -> X:
    """The state after the final step."""
    step = None
    for step in steps:
        pass
    if step is None:
        raise ArgumentError("steps", steps, "a sampler with at least one step")
    return step.x


def columns(*tables: Tensor) -> list[list[Any]]:
    """Tables of coefficients over the grid, (n,) or (n, B), as lists of floats or of tensors (B,)."""
    return [table.tolist() if table.ndim == 1 else list(table.unbind(0)) for table in tables]


def prepared(path: Path, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(times, alpha, sigma) of a checked grid, float64, each of the grid's shape."""
    if not isinstance(path, Path):
        raise ArgumentError("kernel", path, "a Gaussian kernel or a path; `ancestral` serves every kernel")
    times = check_times(times)
    alpha, sigma = path.schedule(times)
    return times, alpha.detach(), sigma.detach()
