"""What all samplers share: they are plain generators of steps.

A sampler takes a bound denoiser, a kernel, the state at the grid's first time, and the grid; it yields a `Step` after
every update. There is no `no_grad` inside: the caller decides, since purification needs the gradient. A progress bar, a
callback or a movie is a loop over the generator; `last` runs it to the end. One family of samplers is one file.
Samplers annotated as `Steps` go on from another state when one is sent to them (`steps.send(x)`): correctors do that.

Coefficients are computed for the whole grid at once, in float64, before the first step. Solvers whose step is a sum of
the state, the belief's mean and fresh noise are such coefficients and one loop, `walk`; those that look back or ahead
are tables (see `tableau`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .grids import check_times
from .kernel import Path, Time
from .randomness import Randomness

__all__ = ["Step", "Steps", "columns", "last", "noisy", "prepared", "walk"]

X = TypeVar("X")


class Step(NamedTuple, Generic[X]):
    """The state after one update."""

    t: Time
    """the time reached; 0 at the end"""
    x: X
    """the state at that time"""
    belief: Any
    """the belief about x_0 that the update used"""


Steps: TypeAlias = Generator[Step[X], X | None, None]
"""Steps of a sampler that takes a state sent to it for the one it has just yielded."""


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


def noisy(kernel: Gaussian, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`prepared` for samplers that draw noise, or an ArgumentError unless the kernel has a noise law."""
    if not isinstance(kernel, Gaussian):
        raise ArgumentError("kernel", kernel, "a Gaussian kernel, whose noise law the sampler draws from")
    return prepared(kernel, times)


def walk(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    of_x: Tensor,
    of_mean: Tensor,
    of_noise: Tensor | None = None,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """One network call and one sum per interval; no noise in the last one, which ends at data.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: any path; with noise, the Gaussian whose law it is drawn from.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        of_x, of_mean, of_noise: the weights, (n,) or (n, B); without `of_noise` none is drawn at all.
        generator: one, or a list with one per example.
    """
    scales = [None] * len(of_x) if of_noise is None else [*columns(of_noise[:-1])[0], None]
    for t, s, a, b, c in zip(*columns(times[:-1], times[1:], of_x, of_mean), scales, strict=True):
        belief = denoise(x, t)
        if c is None:
            x = kernel.combine((a, x), *belief.times(b))
        else:
            assert isinstance(kernel, Gaussian)
            x = kernel.noise.perturbed(c, generator, (a, x), *belief.times(b))
        sent = yield Step(s, x, belief)
        x = x if sent is None else sent
