r"""The continuous bound as a training objective, and its weighted cross-entropy for absorbing chains.

One time per example estimates the bound without its prior, which does not learn. With u uniform in [0, 1]

    L = gap_rate at the kernel's pace, times dt/du,    for u > low
        reconstruction(low) / low                      for u <= low

so that diffusion ends at `low` and the reconstruction takes over there, at no second call of the network: nothing is
cut off, and the mean is the bound for every low. For tokens gap_rate is the score entropy (Lou et al. 2024, "Discrete
Diffusion Modeling by Estimating the Ratios of the Data Distribution", eq. 9).

For absorbing chains it equals -alpha'/(1 - alpha) times the cross-entropy of the masked tokens (Sahoo et al. 2024,
"Simple and Effective Masked Diffusion Language Models", eq. 10). `unmasking` is that weight, for `objectives.Denoising`
with a reading that is certain of tokens that are not masked, as both are. Its integral converges at t = 0, so that
`times=low_discrepancy(0.0)` there gives the whole bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .denoisers import Denoiser
from .errors import ArgumentError
from .kernel import Kernel, interior
from .objectives import Denoising, plain
from .randomness import Randomness, rand, standing, stratified
from .schedules import Schedule
from .structure import opened

__all__ = ["ScoreEntropy", "antithetic", "half_unmasking", "stratified", "unmasking"]

Shares: TypeAlias = Callable[[int, Randomness], Tensor]
"""(B, generator) -> u, (B,) float64, each uniform in [0, 1]."""


def unmasking(schedule: Schedule, t: Tensor) -> Tensor:
    """-alpha'(t)/(1 - alpha_t), the rate at which masked tokens appear, finite at every t; shape of t."""
    t = interior(t)
    alpha_t, _ = schedule(t)
    # Where alpha_t rounds to 1 no token is masked, and the number weighs nothing.
    return -alpha_t * schedule.drift(t) / (1 - alpha_t).clamp_min(2.0**-53)


def half_unmasking(schedule: Schedule, t: Tensor) -> Tensor:
    """The square root of `unmasking`, half way from the bound to plain cross-entropy; shape of t.

    The bound weighs every masked token by one over their number, so that it learns from few; plain cross-entropy weighs
    all alike and neglects states that are nearly whole. Short trainings reach a better bound in between.
    """
    return unmasking(schedule, t).sqrt()


def antithetic(count: int, generator: Randomness = None) -> Tensor:
    """u and 1 - u in turn: pairs of the whole batch that err in opposite directions, independent of the other pairs."""
    positions, size, common = standing(count, generator)
    u = rand(((size + 1) // 2,), common, dtype=torch.float64)[positions // 2]
    return torch.where(positions % 2 == 0, u, 1 - u)


class ScoreEntropy(nn.Module):
    """Train a denoiser on the continuous bound per dimension.

    Args:
        denoiser: the module that learns.
        kernel: any in continuous time. (Where the reconstruction is a density, as for Gaussians, its share is noisy.)
        low: where diffusion ends, > 0; it bounds the weights, 1/low at most for absorbing tokens.
        shares: the law of u: `stratified`, `antithetic`.
        drop: as in `Denoising`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kernel: Kernel,
        low: float = 1e-3,
        shares: Shares = stratified,
        drop: Mapping[str, tuple[float, Any]] | None = None,
    ):
        super().__init__()
        if not 0 < low < 1:
            raise ArgumentError("low", low, "a time in (0, 1)")
        self.denoising = Denoising(denoiser, kernel, plain, drop=drop)
        self.low, self.shares = float(low), shares

    @property
    def denoiser(self) -> Denoiser:
        return self.denoising.denoiser

    @property
    def kernel(self) -> Any:
        return self.denoising.kernel

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,) in nats per dimension; batch and generator as in `Denoising`."""
        own = opened(self.kernel, batch)
        kernel, x_0 = own.kernel, own.x_0
        u = self.shares(kernel.examples(x_0), generator)
        # Share 0 is where diffusion ends.
        t, stretch = kernel.pace(((u - self.low) / (1 - self.low)).clamp_min(0), self.low)
        _, _, x_t, t, belief = self.denoising.look(own, generator, t)
        rate = kernel.gap_rate(x_t, x_0, belief, t)
        reconstruction = -kernel.likelihood(belief, t).log_prob(x_0) / self.low
        diffusion = (stretch / (1 - self.low)).to(rate) * rate
        loss = torch.where((u <= self.low).to(rate.device), reconstruction, diffusion)
        return loss / kernel.dims(x_0).to(loss).clamp_min(1)
