r"""The kernel of images: Gaussian noise on pixels, and the exact probability of 8-bit (or 17-level) values.

Pixels are integers 0 ... L - 1 at v_k = 2 k/(L - 1) - 1. The ELBO's last term is a probability of those integers, not
a density: the mass that N(mean, (sigma_t/alpha_t)^2), the belief's neighbourhood under a flat prior, puts into each bin
of width 2/(L - 1), with open outermost bins (Ho et al. 2020, eq. 13). So the bound is on bits of the data and needs
no dequantisation, no change of variables and no truncation of time.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..core.distributions import Discrete, masked_terms
from ..core.errors import ArgumentError
from ..core.gaussian import Belief, Gaussian
from ..core.kernel import Time
from ..core.layout import DENSE
from ..core.noise import Noise
from ..core.randomness import Randomness
from ..core.schedules import Schedule

__all__ = ["Binned", "Pixels"]


class Pixels(Gaussian):
    """The Gaussian kernel on images (B, C, H, W) in [-1, 1] whose pixels take `levels` values.

    Args:
        schedule: alpha_t, sigma_t.
        levels: L, 2 ... 256.
        noise: the law of x_1; isotropic by default.
    """

    def __init__(self, schedule: Schedule, levels: int = 256, noise: Noise | None = None):
        super().__init__(schedule, noise)
        if not 2 <= levels <= 256:
            raise ArgumentError("levels", levels, "a number of grey levels from 2 to 256")
        self.levels = levels

    def likelihood(self, belief: Belief, t: Time) -> Binned:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The probability of the integers given the belief; x_0 holds their values v_k."""
        alpha_t, sigma_t = self.schedule(torch.as_tensor(t, dtype=torch.float64))
        deviation = self.noise.spread((sigma_t / alpha_t).reshape(-1), belief.mean)
        return Binned(belief.mean, deviation, self.levels)


class Binned:
    """N(mean, deviation^2) collected into L bins around v_k, the outermost open: a law of independent pixels.

    Args:
        mean: (B, ...).
        deviation: > 0, broadcastable to mean.
        levels: L.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, levels: int):
        self.centre, self.deviation, self.levels = mean, deviation, levels

    @property
    def mean(self) -> Tensor:
        """Expected value of each pixel, like the state."""
        values = torch.linspace(-1, 1, self.levels, dtype=torch.float64, device=self.centre.device)
        return (self.discrete().mean @ values).to(self.centre.dtype)

    def sample(self, generator: Randomness = None) -> Tensor:
        return self.discrete().sample(generator).to(self.centre.dtype) * (2 / (self.levels - 1)) - 1

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """log P of the bin that holds x, in nats, summed over pixels (of the mask), (B,); computed in float64."""
        k = ((x.to(torch.float64) + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)
        return DENSE.total(masked_terms(self.log_mass(k), mask))

    def kl(self, other: Binned) -> Tensor:
        return self.discrete().kl(other.discrete())

    def discrete(self) -> Discrete:
        """The same law on indices k, with all L probabilities of each pixel written out."""
        k = torch.arange(self.levels, dtype=torch.float64, device=self.centre.device)
        spread = Binned(self.centre.unsqueeze(-1), self.deviation.unsqueeze(-1), self.levels)
        return Discrete(spread.log_mass(k).log_softmax(-1))

    def log_mass(self, k: Tensor) -> Tensor:
        """log P(bin k), float64; far tails stay finite."""
        centre, deviation = self.centre.to(torch.float64), self.deviation.to(torch.float64)
        value, half = k * (2 / (self.levels - 1)) - 1, 1 / (self.levels - 1)
        low = torch.where(k > 0, (value - half - centre) / deviation, -torch.inf)
        high = torch.where(k < self.levels - 1, (value + half - centre) / deviation, torch.inf)
        # Phi(high) - Phi(low) = Phi(-low) - Phi(-high): use the side on which both are small, so nothing cancels.
        flip = low > 0
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return upper + torch.log(-torch.expm1(cast(Tensor, lower - upper)))
