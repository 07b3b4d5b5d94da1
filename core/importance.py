r"""Importance-sampled times: the likelihood weighting without its variance.

The continuous ELBO weighs the error of the noise by -lambda'(t)/2 = g(t)^2 / (2 sigma_t^2). That weight explodes near
the data, so with uniform t a few examples near t = 0 rule the gradient. If t is drawn with a density p(t) proportional
to g^2/sigma^2 = -lambda'(t), that is with lambda_t uniform between its two ends, and the weight is divided by the
density, the expectation stays what it was and the weight of the noise's error becomes constant (Song et al. 2021,
"Maximum Likelihood Training of Score-Based Diffusion Models", sec. 4.3; Vahdat et al. 2021, "Score-based Generative
Modeling in Latent Space", sec. 3.3):

    law = LogSnrUniform(); Denoising(denoiser, kernel, law.weight(likelihood), law)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ArgumentError
from .objectives import Times, Weight, low_discrepancy, uniform
from .randomness import Randomness
from .schedules import Schedule

__all__ = ["LogSnrUniform"]


class LogSnrUniform:
    """The law of t in [max(low, t_min), high] under which lambda_t is uniform: density proportional to -lambda'(t).

    Args:
        low: > 0, or 0 with schedules whose t_min is positive: lambda must be finite at both ends.
        high: below 1 for schedules whose alpha_1 is 0.
        spread: lambda_i = (u + i/B) mod 1 of the way, one u per batch, instead of independent draws: still less
            variance, examples not independent.
    """

    def __init__(self, low: float = 1e-4, high: float = 1 - 1e-4, spread: bool = False):
        if not 0 <= low < high <= 1:
            raise ArgumentError("low, high", (low, high), "0 <= low < high <= 1")
        self.low, self.high = low, high
        self.unit: Times = low_discrepancy(0.0, 1.0) if spread else uniform(0.0, 1.0)

    def __call__(self, schedule: Schedule, count: int, generator: Randomness = None) -> Tensor:
        """t, (B,) float64."""
        most, least = self.log_snrs(schedule)
        low = max(self.low, schedule.t_min)
        # `unit` gives [t_min, 1] to schedules that start there.
        u = (self.unit(schedule, count, generator) - schedule.t_min) / (1 - schedule.t_min)
        with torch.no_grad():
            return schedule.inverse(most + (least - most) * u.to(most)).clamp(low, self.high)

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        """p(t) relative to the uniform law on the same interval, shape of t; its mean over the interval is 1."""
        most, least = self.log_snrs(schedule)
        low = max(self.low, schedule.t_min)
        return -schedule.log_snr_rate(t) * (self.high - low) / (most - least).to(t.device)

    def weight(self, weight: Weight) -> Weight:
        """The weight divided by the density: its loss has the expectation here that it had under uniform t."""
        return lambda schedule, t: weight(schedule, t) / self.density(schedule, t)

    def log_snrs(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """lambda at both ends, or an ArgumentError where one is infinite."""
        ends = torch.tensor([max(self.low, schedule.t_min), self.high], dtype=torch.float64)
        if not float(ends[0]) < self.high:
            raise ArgumentError("high", self.high, f"a time above the schedule's t_min = {schedule.t_min}")
        most, least = schedule.log_snr(ends).unbind()
        if not bool(most.isfinite() & least.isfinite()):
            raise ArgumentError("low, high", (self.low, self.high), "times with 0 < alpha_t and 0 < sigma_t")
        return most, least
