r"""The hybrid objective: a simple loss teaches the mean, the variational bound the reverse variance.

    L = L_simple + weight * L_vlb / dims

(Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 16, weight 0.001). L_vlb is the bound
on a grid of n network calls without its prior, which does not learn, in nats; one uniformly drawn term of it, times n,
is its unbiased estimate from the very x_t and belief that the simple loss sees, so it costs no call. The bound is to
teach the spread alone: its gradient is stopped at the belief's mean. D3PM's objective is the same sum without that stop
(Austin et al. 2021, eq. 5): cross-entropy and bound both teach one belief.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import Denoiser
from .errors import ArgumentError
from .gaussian import Belief
from .grids import check_times
from .kernel import Kernel
from .objectives import Denoising, Look, Times, Weight, simple
from .randomness import Randomness, rand
from .schedules import Schedule
from .structure import opened

__all__ = ["Hybrid", "on_grid", "spread_only"]


def on_grid(times: Tensor) -> Times:
    """The law of t uniform over the n positive times of a grid (n + 1,)."""
    times = check_times(times)
    if times.ndim != 1:
        raise ArgumentError("times", times, "one grid (n + 1,) for all examples")
    positive = times[:-1]

    def draw(schedule: Schedule, count: int, generator: Randomness = None) -> Tensor:
        place = (rand((count,), generator, dtype=torch.float64) * len(positive)).long()
        return positive[place.clamp(max=len(positive) - 1)]

    return draw


def spread_only(belief: Belief) -> Belief:
    """The belief with its mean cut from the graph."""
    if not isinstance(belief, Belief):
        raise ArgumentError("stop", "spread_only", "None for beliefs without a spread, such as those about tokens")
    return Belief(belief.mean.detach(), belief.spread)


class Hybrid(nn.Module):
    """A denoising loss and the variational bound on the same draw.

    Args:
        denoiser: such as `GaussianDenoiser(..., learned_range=True)`.
        kernel: any.
        times: grid (n + 1,) whose bound is trained; t is uniform over its n positive times.
        bound_weight: of the bound.
        weight: of the denoising loss.
        stop: what of the belief the bound may teach: `spread_only`; None for all of it. A product kernel's takes and
            returns a tuple.
        drop: as in `Denoising`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kernel: Kernel,
        times: Tensor,
        bound_weight: float = 1e-3,
        weight: Weight = simple,
        stop: Callable[[Any], Any] | None = spread_only,
        drop: Mapping[str, tuple[float, Any]] | None = None,
    ):
        super().__init__()
        if not (math.isfinite(bound_weight) and bound_weight >= 0):
            raise ArgumentError("bound_weight", bound_weight, "a finite number >= 0")
        self.denoising = Denoising(denoiser, kernel, weight, on_grid(times), drop)
        self.grid, self.bound_weight, self.stop = check_times(times), float(bound_weight), stop

    @property
    def denoiser(self) -> Denoiser:
        return self.denoising.denoiser

    @property
    def kernel(self) -> Any:
        return self.denoising.kernel

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,); batch and generator as in `Denoising`."""
        look = self.denoising.look(opened(self.kernel, batch), generator)
        loss = self.denoising.loss(look)
        return loss + self.bound_weight * self.bound(look) / look.kernel.dims(look.x_0).to(loss).clamp_min(1)

    def bound(self, look: Look) -> Tensor:
        """n times the bound's term at the look's t, in nats, (B,); t on the grid."""
        kernel, x_0, x_t, t, belief = look
        if self.stop is not None:
            belief = self.stop(belief)
        rising = self.grid.flip(0)
        s = rising[(torch.searchsorted(rising, t) - 1).clamp_min(0)]
        # Both kinds of term are computed for all; where s = 0, a time in between keeps the unused one finite.
        first = s == 0
        gap = kernel.gap(x_t, x_0, belief, torch.where(first, t / 2, s), t)
        reconstruction = -kernel.likelihood(belief, torch.full_like(t, float(rising[1]))).log_prob(x_0)
        return (len(rising) - 1) * torch.where(first.to(gap.device), reconstruction, gap)
