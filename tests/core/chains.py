"""Exact laws of linear stochastic samplers: run on states that are affine in the noise, symbol by symbol.

On independent normal data the exact denoiser is affine, so a sampler with fixed coefficients maps (1, z_0, z_1, ...)
linearly, z_0 the standard normal of the start and z_i that of the i-th draw. A state (B, D, K) holds the coefficients
of K such symbols, and the noise law hands out one new symbol per draw: the sampler's own code computes its law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.noise import Isotropic
from polydiff.core.randomness import Randomness, randn
from polydiff.core.sampling import last
from polydiff.core.schedules import Schedule

__all__ = ["DATA", "Independent", "Symbols", "law", "numbers"]


def numbers(schedule: Schedule, t: Any) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of times as they come."""
    return schedule(torch.as_tensor(t, dtype=torch.float64))


class Independent:
    """x_0 ~ N(mean, diag(deviation^2)), states (B, D); `noise` is the standard deviation of the noise law, (D,)."""

    def __init__(self, mean: list[float], deviation: list[float], noise: list[float] | None = None):
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.variance = torch.tensor(deviation, dtype=torch.float64) ** 2
        self.noise = torch.tensor(noise or [1.0] * len(mean), dtype=torch.float64)

    def moments(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_t along the axes, (D,)."""
        return alpha * self.mean, alpha**2 * self.variance + sigma**2 * self.noise**2

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """d belief / d x_t."""
        return alpha * self.variance / self.moments(alpha, sigma)[1]

    def sample(self, kernel: Gaussian, count: int, t: float, generator: Randomness) -> Tensor:
        """x_t."""
        mean, variance = self.moments(*numbers(kernel.schedule, t))
        return mean + variance.sqrt() * randn((count, len(mean)), generator, dtype=torch.float64)

    def denoise(self, kernel: Gaussian) -> Callable[[Tensor, Time], Belief]:
        """Exact, on states (B, D)."""

        def exact(x: Tensor, t: Time) -> Belief:
            alpha, sigma = (number.reshape(-1, 1) for number in numbers(kernel.schedule, t))
            return Belief(self.mean + self.gain(alpha, sigma) * (x - alpha * self.mean))

        return exact


class Symbols(Isotropic):
    """A noise law whose draws are new symbols, on states (B, D, K)."""

    def __init__(self):
        super().__init__()
        self.used = 2

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        z = torch.zeros_like(like)
        z[..., self.used] = 1.0
        self.used += 1
        return z


DATA = Independent([0.6, -0.3, 0.1], [0.4, 1.1, 0.8])


def law(
    sampler: Callable[..., Any],
    schedule: Schedule,
    times: Tensor,
    data: Independent = DATA,
    draws: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(mean, variance) of a sampler's result from the exact start, each (D,), or (B, D) for grids (n, B)."""
    kernel = Gaussian(schedule, Symbols())
    assert bool((data.noise == 1).all())
    first = times[0].reshape(-1)
    alpha, sigma = (number.reshape(-1, 1) for number in numbers(schedule, first))
    mean, variance = data.moments(alpha, sigma)
    x = torch.zeros(*mean.shape, 2 + (draws or len(times)), dtype=torch.float64)
    x[..., 0], x[..., 1] = mean, variance.sqrt()

    def exact(x: Tensor, t: Time) -> Belief:
        alpha, sigma = (number.reshape(-1, 1) for number in numbers(schedule, t))
        y = x.clone()
        y[..., 0] -= alpha * data.mean
        y = data.gain(alpha, sigma).unsqueeze(-1) * y
        y[..., 0] += data.mean
        return Belief(y)

    x = last(sampler(exact, kernel, x, times, **options))
    mean, variance = x[..., 0], (x[..., 1:] ** 2).sum(-1)
    return (mean[0], variance[0]) if times.ndim == 1 else (mean, variance)
