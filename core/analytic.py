r"""Analytic-DPM: the optimal reverse variance of a trained denoiser, in closed form (Bao et al. 2022, theorem 1).

Take the process that draws x_s from a normal law around w_x x_t + w_0 x_0 with variance v Sigma when x_0 is known
(DDPM: the posterior; DDIM(eta): v = eta^2 (1 - c) sigma_s^2). With the belief in the place of x_0, the isotropic
variance that minimises KL(q || p), and hence the bound, adds what the belief leaves open,

    v* = v + w_0^2 Gamma_t,    Gamma_t = E |x_0 - E[x_0 | x_t]|^2 / d,

the mean posterior variance per degree of freedom, in the metric of the noise law. It depends on the log-SNR alone, so
one table serves every sub-grid. Two statistics estimate it, equal in expectation for the exact denoiser:

    residual     |x_0 - x_0_hat|^2 / d                        optimal for an imperfect mean too (Bao et al. 2022b)
    score_norm   (sigma_t/alpha_t)^2 (1 - |eps_hat|^2 / d)    the paper's: needs the score alone, cancels at alpha -> 0

Bounds (theorem 2): 0 <= Gamma_t <= (sigma_t/alpha_t)^2, and Gamma_t <= ((b - a)/2)^2 for data in [a, b]; what is
estimated is clipped to them. Interpolation is linear in log Gamma over lambda, exact where Gamma ~ (sigma/alpha)^2.

For DDPM the variance travels as the belief's `spread`, its place between "fixed small" and "fixed large", so that
`ancestral` and `elbo` use it unchanged; it may lie above 1. `analytic_ddim` is the sampler for every eta.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .grids import check_times
from .kernel import Time
from .randomness import Randomness
from .sampling import Steps, noisy, prepared, walk

__all__ = ["Analytic", "PosteriorVariance", "analytic_ddim", "ceiling", "measure", "residual", "score_norm"]

Statistic: TypeAlias = Callable[[Gaussian, Tensor, Tensor, Belief, float], Tensor]
"""(kernel, x_0, x_t, belief, t) -> an estimate of d Gamma_t per example, (B,)."""

LIMIT = 80.0
"""|lambda| beyond which the table is constant or on its asymptote: stands for infinity."""


def residual(kernel: Gaussian, x_0: Tensor, x_t: Tensor, belief: Belief, t: float) -> Tensor:
    """|x_0 - x_0_hat|^2, (B,)."""
    return kernel.error(x_0, belief, t)


def score_norm(kernel: Gaussian, x_0: Tensor, x_t: Tensor, belief: Belief, t: float) -> Tensor:
    """(sigma_t/alpha_t)^2 (d - |eps_hat|^2), (B,); needs alpha_t > 0."""
    alpha_t, sigma_t = (float(number) for number in kernel.schedule(torch.tensor(t, dtype=torch.float64)))
    if alpha_t == 0:
        raise ArgumentError("times", t, "times with alpha_t > 0 for the statistic `score_norm`")
    eps = kernel.combine((1 / sigma_t, x_t), *belief.times(-alpha_t / sigma_t))
    return (sigma_t / alpha_t) ** 2 * (kernel.dims(x_0) - kernel.noise.squares(eps))


def ceiling(low: float, high: float) -> float:
    """((b - a)/2)^2, the largest variance of numbers in [a, b] (isotropic noise laws on dense states)."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError("low, high", (low, high), "finite numbers, low < high")
    return ((high - low) / 2) ** 2


@dataclass(frozen=True)
class PosteriorVariance:
    """A table of Gamma by log-SNR; fields are plain numbers, so `dataclasses.asdict` gives JSON."""

    log_snr: tuple[float, ...]
    """lambda, rising strictly"""
    squares: tuple[float, ...]
    """the statistic's sum over all examples, one per lambda"""
    dims: float
    """degrees of freedom in that sum"""

    def __post_init__(self) -> None:
        for name in ("log_snr", "squares"):
            object.__setattr__(self, name, tuple(float(number) for number in getattr(self, name)))
        rising = all(a < b for a, b in zip(self.log_snr[:-1], self.log_snr[1:], strict=True))
        if not self.log_snr or not rising or len(self.squares) != len(self.log_snr):
            raise ArgumentError("log_snr", self.log_snr, "numbers that rise strictly, as many as squares")
        if not self.dims > 0:
            raise ArgumentError("dims", self.dims, "a positive number")

    def __add__(self, other: PosteriorVariance) -> PosteriorVariance:
        """Both samples pooled."""
        if self.log_snr != other.log_snr:
            raise ArgumentError("other", other.log_snr, "a table of the same log-SNRs")
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return PosteriorVariance(self.log_snr, squares, self.dims + other.dims)

    def at(self, log_snr: Tensor, most: float = math.inf) -> Tensor:
        """Gamma at any lambda, clipped to the paper's bounds; float64, of the shape of log_snr.

        Args:
            log_snr: lambda, infinite ends included.
            most: a bound known of the data, from `ceiling`.
        """
        wanted = log_snr.to("cpu", torch.float64).clamp(-LIMIT, LIMIT)
        known = torch.tensor(self.log_snr, dtype=torch.float64).clamp(-LIMIT, LIMIT)
        values = torch.tensor(self.squares, dtype=torch.float64) / self.dims
        logs = torch.minimum(values, torch.exp(-known)).clamp(1e-300, most).log()
        if len(known) > 1:
            right = torch.searchsorted(known, wanted.contiguous()).clamp(1, len(known) - 1)
            share = ((wanted - known[right - 1]) / (known[right] - known[right - 1])).clamp(0, 1)
            logs = torch.lerp(logs[right - 1], logs[right], share)
        else:
            logs = logs.expand_as(wanted)
        # Beyond the last entry Gamma follows its asymptote, a constant share of (sigma/alpha)^2.
        logs = logs - (wanted - known[-1]).clamp_min(0)
        return torch.minimum(logs.exp(), torch.exp(-wanted)).clamp(max=most)


def measure(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x_0: Tensor,
    times: Tensor,
    *,
    statistic: Statistic = residual,
    generator: Randomness = None,
) -> PosteriorVariance:
    """Gamma at every time of a grid but 0, from one draw of x_t per example; add the tables of several batches.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: Gaussian, bound to the batch.
        x_0: data.
        times: grid (n + 1,); n network calls.
        statistic: `residual` or `score_norm`.
        generator: draws x_t.
    """
    times = check_times(times)
    if times.ndim != 1:
        raise ArgumentError("times", times, "one grid for all examples, (n + 1,)")
    squares = []
    for t in times[:-1].tolist():
        x_t = kernel.marginal(x_0, t).sample(generator)
        squares.append(float(statistic(kernel, x_0, x_t, denoise(x_t, t), t).detach().double().sum()))
    log_snr = kernel.schedule.log_snr(times[:-1]).detach().tolist()
    return PosteriorVariance(tuple(log_snr), tuple(squares), float(kernel.dims(x_0).double().sum()))


class Analytic:
    """A bound denoiser whose beliefs carry the spread of the optimal variance on one grid.

    Call it at the grid's own times: the variance of a step depends on where the step ends.

    Args:
        denoise: (x_t, t) -> belief; its own spread is replaced.
        kernel: Gaussian, any noise law.
        times: grid (n + 1,) or (n + 1, B), any sub-grid.
        table: from `measure`.
        most: a bound on Gamma known of the data, from `ceiling`.
    """

    def __init__(
        self,
        denoise: Callable[[Tensor, Time], Belief],
        kernel: Gaussian,
        times: Tensor,
        table: PosteriorVariance,
        most: float = math.inf,
    ):
        self.denoise, self.kernel = denoise, kernel
        self.times, alpha, sigma = prepared(kernel, times)
        log_snr = kernel.schedule.log_snr(self.times).detach()
        kept = -torch.expm1(log_snr[:-2] - log_snr[1:-1])
        open_ = kept * (alpha[1:-1] / sigma[1:-1]) ** 2 * table.at(log_snr[:-2], most)
        log_ratio = 2 * (sigma[:-2] / sigma[1:-1]).log()
        spread = torch.where(log_ratio > 0, torch.log1p(open_) / log_ratio, 0)
        # The last interval is never a posterior step.
        self.spread = torch.cat([spread, torch.zeros_like(self.times[-1:])])
        flat = self.times.ndim == 1
        self.by_time = dict(zip(self.times[:-1].tolist(), self.spread.tolist(), strict=True)) if flat else {}

    def __call__(self, x_t: Tensor, t: Time) -> Belief:
        spread = self._spread(t)
        belief = copy.copy(self.denoise(x_t, t))
        belief.spread = spread
        return belief

    def _spread(self, t: Time) -> float | Tensor:
        if not isinstance(t, Tensor):
            if t not in self.by_time:
                raise ArgumentError("t", t, "a time of the grid")
            return self.by_time[t]
        rows = self.times[:-1] if self.times.ndim > 1 else self.times[:-1, None]
        here = rows == t.to("cpu", torch.float64)
        if not bool(here.any(0).all()):
            raise ArgumentError("t", t, "times of the grid")
        return torch.where(here, self.spread.reshape(rows.shape), 0).sum(0)


def analytic_ddim(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    table: PosteriorVariance,
    eta: float = 0.0,
    most: float = math.inf,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """DDIM(eta) with the optimal variance; eta = 1 is ancestral sampling with `Analytic`.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B); n network calls.
        table: from `measure`.
        eta: in [0, 1].
        most: a bound on Gamma known of the data, from `ceiling`.
        generator: one, or a list with one per example.
    """
    if not 0 <= eta <= 1:
        raise ArgumentError("eta", eta, "a number in [0, 1]")
    times, alpha, sigma = noisy(kernel, times)
    alpha_t, alpha_s, sigma_t, sigma_s = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    variance = eta**2 * sigma_s**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).clamp_min(0)
    of_x = (sigma_s**2 - variance).sqrt() / sigma_t
    of_mean = alpha_s - of_x * alpha_t
    of_noise = (variance + of_mean**2 * table.at(kernel.schedule.log_snr(times[:-1]).detach(), most)).sqrt()
    yield from walk(denoise, kernel, x, times, of_x, of_mean, of_noise, generator)
