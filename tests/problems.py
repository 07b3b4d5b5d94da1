"""Laws of data whose denoisers have closed forms: what samplers, bounds and objectives are measured against.

Each problem gives `sample(count, generator) -> x_0` and `denoise(kernel) -> (x_t, t) -> belief`, the exact posterior
mean (or probabilities) under the kernel's schedule, t a float or (B,). Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polydiff.core.categorical import Tokens
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Path, Time
from polydiff.core.randomness import rand, randn
from polydiff.core.schedules import Schedule

__all__ = ["Clouds", "GaussianData", "MixtureData", "TokenData", "pair"]


def pair(schedule: Schedule, t: Time) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t) as (B or 1, 1)."""
    alpha_t, sigma_t = schedule(torch.as_tensor(t, dtype=torch.float64))
    return alpha_t.reshape(-1, 1), sigma_t.reshape(-1, 1)


class GaussianData:
    """x_0 ~ N(mean, covariance) on states (B, D)."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean, self.covariance = mean.double(), covariance.double()
        self.variances, self.axes = torch.linalg.eigh(self.covariance)

    @classmethod
    def standard(cls, D: int = 3) -> GaussianData:
        """A fixed case: means and standard deviations that differ per axis, axes rotated."""
        g = torch.Generator().manual_seed(7)
        rotation, _ = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))
        deviations = torch.linspace(0.3, 1.2, D, dtype=torch.float64)
        mean = torch.linspace(-0.5, 0.4, D, dtype=torch.float64)
        return cls(mean, rotation @ torch.diag(deviations**2) @ rotation.T)

    def sample(self, count: int, generator=None) -> Tensor:
        z = randn((count, len(self.mean)), generator, dtype=torch.float64)
        return self.mean + (z * self.variances.sqrt()) @ self.axes.T

    def spread(self, schedule: Schedule, t: Time) -> Tensor:
        """Variances of x_t along the axes, (B or 1, D)."""
        alpha_t, sigma_t = pair(schedule, t)
        return alpha_t**2 * self.variances + sigma_t**2

    def denoise(self, kernel: Path) -> Callable[[Tensor, Time], Belief]:
        def exact(x: Tensor, t: Time) -> Belief:
            alpha_t, _ = pair(kernel.schedule, t)
            y = (x - alpha_t * self.mean) @ self.axes
            return Belief(self.mean + (y * alpha_t * self.variances / self.spread(kernel.schedule, t)) @ self.axes.T)

        return exact

    def flow(self, schedule: Schedule, x: Tensor, t: Time, s: Time) -> Tensor:
        """The probability-flow ODE from t to s, exactly: the quantile map along each axis."""
        (alpha_t, _), (alpha_s, _) = pair(schedule, t), pair(schedule, s)
        stretch = (self.spread(schedule, s) / self.spread(schedule, t)).sqrt()
        return alpha_s * self.mean + ((x - alpha_t * self.mean) @ self.axes * stretch) @ self.axes.T

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of x_0 in nats, (B,)."""
        y = (x - self.mean) @ self.axes
        return -(y**2 / self.variances + (2 * math.pi * self.variances).log()).sum(1) / 2


class MixtureData:
    """Isotropic normals of one deviation around a few centres, states (B, D); by default three in the plane.

    Args:
        centres: (K, D).
        weights: (K,), positive, in any scale; equal by default.
        deviation: of every component.
    """

    def __init__(self, centres: Tensor | None = None, weights: Tensor | None = None, deviation: float = 0.25):
        if centres is None:
            centres = torch.tensor([[1.0, 0.2], [-0.8, 0.6], [0.1, -1.0]], dtype=torch.float64)
            weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64) if weights is None else weights
        self.centres = centres.double()
        weights = torch.ones(len(centres)) if weights is None else weights
        self.weights = weights.double() / weights.double().sum()
        self.deviation = deviation

    @classmethod
    def drawn(cls, D: int, seed: int, components: int = 8, deviation: float = 0.2) -> MixtureData:
        """Centres from N(0, I), equal weights."""
        g = torch.Generator().manual_seed(seed)
        return cls(torch.randn(components, D, generator=g, dtype=torch.float64), deviation=deviation)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self.centres[which] + self.deviation * randn(
            (count, self.centres.shape[1]), generator, dtype=torch.float64
        )

    def mean(self, x: Tensor, alpha_t: Time, sigma_t: Time) -> Tensor:
        """E[x_0 | x_t], for numbers or tensors (B or 1, 1).

        |x - alpha c|^2 is written out, its common part dropped, so that states meet centres in one product of matrices.
        """
        variance = alpha_t**2 * self.deviation**2 + sigma_t**2
        logits = x @ self.centres.T * (alpha_t / variance) - (self.centres**2).sum(1) * (alpha_t**2 / variance / 2)
        shares = (logits + self.weights.log()).softmax(-1)
        return shares @ self.centres * (sigma_t**2 / variance) + x * (alpha_t * self.deviation**2 / variance)

    def denoise(self, kernel: Path) -> Callable[[Tensor, Time], Belief]:
        def exact(x: Tensor, t: Time) -> Belief:
            return Belief(self.mean(x, *pair(kernel.schedule, t)))

        return exact

    def flow(self, schedule: Schedule, x: Tensor, t: Time, steps: int = 800) -> Tensor:
        """The probability-flow ODE from t, where alpha_t > 0, to 0, to about 1e-9: Runge-Kutta 4.

        d(x/alpha) = eps d(sigma/alpha) in the clock arcsinh(20 sigma/alpha), in which eps has no pole: with z = x/alpha
        and s = sigma/alpha, eps = s (z - sum of shares times centres)/(deviation^2 + s^2).
        """
        alpha_t, sigma_t = pair(schedule, t)

        def slope(z: Tensor, u: Tensor) -> Tensor:
            s = u.sinh() / 20
            variance = self.deviation**2 + s**2
            logits = (z @ self.centres.T - (self.centres**2).sum(1) / 2) / variance + self.weights.log()
            return u.cosh() / 20 * s / variance * (z - logits.softmax(-1) @ self.centres)

        z, u = x / alpha_t, (20 * sigma_t / alpha_t).asinh()
        h = -u / steps
        for i in range(steps):
            at = u + i * h
            k_1 = slope(z, at)
            k_2 = slope(z + h / 2 * k_1, at + h / 2)
            k_3 = slope(z + h / 2 * k_2, at + h / 2)
            k_4 = slope(z + h * k_3, at + h)
            z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        return z


class TokenData:
    """A joint law of L tokens by its table of K^L probabilities; beliefs by enumeration."""

    def __init__(self, table: Tensor):
        self.table = table.double() / table.double().sum()
        self.states = torch.cartesian_prod(*(torch.arange(size) for size in table.shape)).reshape(-1, table.ndim)

    @classmethod
    def standard(cls, L: int = 2, K: int = 3, without: int | None = None) -> TokenData:
        """A fixed dependent law; token `without` (a mask) never occurs."""
        table = torch.rand((K,) * L, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3
        if without is not None:
            for axis in range(L):
                table.index_fill_(axis, torch.tensor([without]), 0.0)
        return cls(table)

    @property
    def L(self) -> int:
        return self.table.ndim

    def sample(self, count: int, generator=None) -> Tensor:
        u = rand((count,), generator, dtype=torch.float64)
        place = torch.searchsorted(self.table.flatten().cumsum(0), u, right=True)
        return self.states[place.clamp(max=len(self.states) - 1)]

    def entropy(self) -> float:
        """H(x_0) in nats."""
        return float(-torch.xlogy(self.table, self.table).sum())

    def index(self, x: Tensor) -> Tensor:
        """Where each row of x (B, L) stands in `states`."""
        place = torch.zeros(len(x), dtype=torch.long)
        for axis, size in enumerate(self.table.shape):
            place = place * size + x[:, axis]
        return place

    def denoise(self, kernel: Tokens) -> Callable[[Tensor, Time], Tensor]:
        """Exact log p(x_0^l = k | x_t)."""
        return lambda x, t: self._belief(kernel.evidence(x, t), without_own=False)

    def others(self, kernel: Tokens) -> Callable[[Tensor, Time], Tensor]:
        """Exact log p(x_0^l = k | x_t except token l): what the `context` parametrisation reads."""
        return lambda x, t: self._belief(kernel.evidence(x, t), without_own=True)

    def _belief(self, evidence: Tensor, without_own: bool) -> Tensor:
        L, K = self.L, evidence.shape[-1]
        logs = torch.stack([evidence[:, axis, self.states[:, axis]] for axis in range(L)])
        beliefs = []
        for axis in range(L):
            used = [other for other in range(L) if not (without_own and other == axis)]
            weights = torch.exp(self.table.flatten().log() + logs[used].sum(0))
            hot = torch.nn.functional.one_hot(self.states[:, axis], K).double()
            beliefs.append((weights @ hot / weights.sum(1, keepdim=True)).log())
        return torch.stack(beliefs, 1)


class Clouds:
    """Ragged clouds of independent normal points of one deviation, centred: states (rows, 3)."""

    def __init__(self, sizes: list[int], deviation: float = 0.7):
        self.index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        self.structure: dict[str, Any] = {"index": self.index, "num_graphs": len(sizes)}
        self.deviation = deviation

    def sample(self, kernel: Gaussian, generator=None) -> Tensor:
        return self.deviation * kernel.noise.draw(torch.zeros(len(self.index), 3, dtype=torch.float64), generator)

    def denoise(self, kernel: Gaussian) -> Callable[[Tensor, Time], Belief]:
        def exact(x: Tensor, t: Time) -> Belief:
            alpha_t, sigma_t = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))
            gain = alpha_t * self.deviation**2 / ((alpha_t * self.deviation) ** 2 + sigma_t**2)
            return Belief(kernel.combine((gain, x)))

        return exact
