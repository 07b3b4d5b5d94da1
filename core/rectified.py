r"""Rectified flow's second round: pairs from the flow itself, on which the paths are straighter (Liu et al. 2023).

A flow that was learned on independent pairs carries every noise x_1 to an end x_0. `couple` makes such pairs; a path
between them, x_t = alpha_t x_0 + sigma_t x_1, no longer crosses itself where the flow is exact, so a denoiser trained
on them (`Denoising` on batches {"x_0", "x_1"} or on a `Coupled` path, weight `flow_velocity`) sees x_0 in x_t: its flow
is straight, and one Euler step follows it to the end. `straightness` measures how far that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, TensorPath
from .grids import check_times
from .kernel import Path, Time
from .noise import Noise
from .ode import flow
from .randomness import Randomness
from .sampling import Step, last
from .schedules import Schedule

__all__ = ["Coupled", "couple", "straightness"]


class Coupled(TensorPath):
    """A path between paired ends without densities (Liu et al. 2023; Albergo et al. 2023).

    Args:
        schedule: alpha_t, sigma_t.
        partner: `partner(x_0, generator)` -> x_1: other data, or an ODE's end.
        noise: the law that knows the layout of the states and the metric of errors; nothing is drawn from it.
    """

    def __init__(self, schedule: Schedule, partner: Callable[[Tensor, Randomness], Tensor], noise: Noise | None = None):
        super().__init__(schedule, noise)
        self.partner = partner

    def pair(self, x_0: Tensor, generator: Randomness = None) -> Tensor:
        return self.partner(x_0, generator)


@torch.no_grad()
def couple(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    sampler: Callable[..., Iterator[Step[Tensor]]],
    like: Tensor,
    times: Tensor,
    generator: Randomness = None,
) -> dict[str, Tensor]:
    """A batch of pairs {"x_0": the flow's end, "x_1": where it began}: reflow's data.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: Gaussian, or any path; `kernel.pair(like)` gives x_1.
        sampler: a deterministic solver.
        like: states of the shape wanted; on a path from other data, those whose partners are carried over.
        times: grid (n + 1,) or (n + 1, B) that begins at 1.
        generator: one, or a list with one per example; draws x_1.
    """
    times = check_times(times)
    if not bool((times[0] == 1).all()):
        raise ArgumentError("times", times, "a grid that begins at 1, where x_1 is")
    _, sigma_1 = kernel.schedule(torch.ones((), dtype=torch.float64))
    x_1 = kernel.pair(like, generator)
    # The state at t = 1 is sigma_1 x_1: what little data is left there where alpha_1 > 0 is taken to be 0.
    end = last(sampler(denoise, kernel, kernel.combine((float(sigma_1), x_1)), times))
    return {"x_0": end, "x_1": x_1}


@torch.no_grad()
def straightness(path: Path[Tensor], x: Tensor, t: Time, steps: Iterable[Step[Tensor]]) -> Tensor:
    """Integral of |dy/du - (y_end - y_start)/(u_end - u_start)|^2 over a trajectory, summed over dimensions, (B,).

    y = x/(alpha + sigma) and u = sigma/(alpha + sigma) are the coordinates in which pairs are joined by lines on every
    schedule; where alpha = 1 - t, sigma = t they are x and t, and the number is S of Liu et al. 2023, eq. 4.
    0 if and only if the trajectory is a line run at constant speed: then one Euler step is exact.

    Args:
        path: whose flow it is; squares are in the metric of its noise law.
        x, t: the state and the time at which the trajectory begins.
        steps: of a deterministic sampler from there on; fine steps measure the flow, coarse ones the sampler.
    """
    y_0, u_0 = located(path, x, t)
    y, u, total = y_0, u_0, None
    for step in steps:
        y_next, u_next = located(path, step.x, step.t)
        squares = path.error(y, Belief(y_next), step.t) / (u - u_next).to(y)
        total = squares if total is None else total + squares
        y, u = y_next, u_next
    if total is None:
        raise ArgumentError("steps", steps, "a sampler with at least one step")
    return total - path.error(y_0, Belief(y), 0.0) / (u_0 - u).to(y)


def located(path: Path[Tensor], x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """(y, u) of a state."""
    k, u, _ = flow(*path.schedule(torch.as_tensor(t, dtype=torch.float64)))
    return path.combine((1 / k, x)), u
