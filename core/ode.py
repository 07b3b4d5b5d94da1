r"""Euler and Heun for the probability-flow ODE, in coordinates that are finite wherever they are used.

Along the flow x_t = alpha_t x_0 + sigma_t x_1 with the belief in place of x_0 and eps = (x_t - alpha_t x_0)/sigma_t in
place of x_1. Divide by k and use a clock u in which the weights a = alpha/k of data and b = sigma/k of noise are
simple:

    flow       k = alpha + sigma,  u = sigma/(alpha + sigma)    d(x/k)/du = eps - x_0    straight paths
    exploding  k = alpha,          u = sigma/alpha              d(x/k)/du = eps          Karras et al. 2022, eq. 4

`flow` is finite at alpha = 0 and at sigma = 0 alike and hence the default; Heun in `exploding` coordinates on a Karras
grid is EDM's algorithm 1 without churn, and Euler in them is DDIM. At the final time, where sigma = 0, Heun's
correction would divide by it and is left out: n intervals cost 2 n - 1 network calls.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief
from .kernel import Path, Time
from .randomness import Randomness
from .sampling import Step, Steps, columns, prepared, walk

__all__ = ["euler", "exploding", "flow", "heun"]

Coordinates: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, float]]
"""(alpha, sigma) -> (k, u, da/du); db/du = 1 in both."""


def flow(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, float]:
    """Straight-path coordinates, finite everywhere."""
    return alpha + sigma, sigma / (alpha + sigma), -1.0


def exploding(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, float]:
    """x/alpha over sigma/alpha; needs alpha > 0 on the whole grid."""
    if bool((alpha == 0).any()):
        raise ArgumentError("coordinates", "exploding", "alpha_t > 0 on the grid; use `flow` or start below t = 1")
    return alpha, sigma / alpha, 0.0


def euler(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    coordinates: Coordinates = flow,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Order 1; one network call per interval.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: Gaussian, or any path.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        coordinates: in which lines are straight: `flow` or `exploding`.
        generator: not used; all samplers are called alike.
    """
    times, alpha, sigma = prepared(kernel, times)
    k, u, da = coordinates(alpha, sigma)
    of_x, of_mean = line(k[1:], u[1:] - u[:-1], 1 / k[:-1], da, alpha[:-1], sigma[:-1])
    yield from walk(denoise, kernel, x, times, of_x, of_mean)


def heun(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    coordinates: Coordinates = flow,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Order 2: the trapezoidal rule with Euler's prediction; 2 n - 1 network calls. Arguments as `euler`."""
    times, alpha, sigma = prepared(kernel, times)
    k, u, da = coordinates(alpha, sigma)
    step, k_s = u[1:] - u[:-1], k[1:]
    whole = line(k_s, step, 1 / k[:-1], da, alpha[:-1], sigma[:-1])
    half = line(k_s, step / 2, 1 / k[:-1], da, alpha[:-1], sigma[:-1])
    # The predicted state enters only through its slope, hence weight 0 of the state itself.
    inner = slice(1, -1)
    slope = line(k[inner], step[:-1] / 2, torch.zeros_like(k[inner]), da, alpha[inner], sigma[inner])
    table = columns(times[:-1], times[1:], *whole)
    # The predicted state is itself a sum of x and the first belief, so its weight is shared out to these.
    carried = (weight[:-1] + slope[0] * first[:-1] for weight, first in zip(half, whole, strict=True))
    corrections = columns(*carried, slope[1])
    for (t, s, a, b), correction in zip_longest(zip(*table, strict=True), zip(*corrections, strict=True)):
        belief = denoise(x, t)
        predicted = kernel.combine((a, x), *belief.times(b))
        if correction is None:
            x = predicted
        else:
            c, d, e = correction
            corrected = denoise(predicted, s)
            x = kernel.combine((c, x), *belief.times(d), *corrected.times(e))
        sent = yield Step(s, x, belief)
        x = x if sent is None else sent


def line(k_s: Tensor, step: Tensor, kept: Tensor, da: float, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """k_s (kept x + step (da mean + eps)) with eps = (x - alpha mean)/sigma, as (weight of x, weight of mean)."""
    return k_s * (kept + step / sigma), k_s * step * (da - alpha / sigma)
