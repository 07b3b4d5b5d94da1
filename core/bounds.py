r"""The evidence lower bound, the same for every kernel.

For a grid 1 = t_n > ... > t_1 > 0,

    -log p(x_0) <= KL(q(x_1 | x_0) || p(x_1))                                              prior
                 + sum_i E_q KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  s = t_(i-1), t = t_i   gaps
                 + E_q -log p(x_0 | x_(t_1))                                               reconstruction

(Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5; Austin et al. 2021, eq. 1). Each expectation is estimated with one
draw of x_t from its marginal, so the estimate is unbiased for the bound. All three parts are kept apart: bounds that
drop the prior or truncate the time are not bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .grids import check_times, unstack
from .kernel import Kernel, Time
from .randomness import Randomness

__all__ = ["Bound", "Start", "bits_per_dim", "elbo"]


class Start(Protocol):
    """The law that a generative process starts from, where that is not the kernel's prior (see `truncation`)."""

    def kl_from(self, law: Any, generator: Randomness = None) -> Tensor:
        """KL(law || self) in nats, or an unbiased estimate, (B,); law a marginal of the kernel."""
        ...


class Bound(NamedTuple):
    """The negative ELBO in nats, by parts."""

    prior: Tensor
    """(B,)"""
    gaps: Tensor
    """(n - 1, B), in the order of the grid, from noise to data"""
    reconstruction: Tensor
    """(B,)"""

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x_0), (B,)."""
        return self.prior + self.gaps.sum(0) + self.reconstruction


def elbo(
    denoise: Callable[[Any, Time], Any],
    kernel: Kernel,
    x_0: Any,
    times: Tensor,
    *,
    prior: Start | None = None,
    generator: Randomness = None,
) -> Bound:
    """The full bound on a grid, one network call per time.

    Args:
        denoise: (x_t, t) -> belief, from `Denoiser.given`.
        kernel: of the forward process; its `likelihood` decides whether the bound is on a density or a probability.
        x_0: data of B examples.
        times: grid (n + 1,) or (n + 1, B), see grids.
        prior: of the state at times[0], for truncated processes; the kernel's by default.
        generator: draws x_t.
    """
    grid = unstack(check_times(times))
    first = kernel.marginal(x_0, grid[0])
    mismatch = first.kl(kernel.prior(x_0)) if prior is None else prior.kl_from(first, generator)
    gaps: list[Tensor] = []
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        x_t = kernel.marginal(x_0, t).sample(generator)
        gaps.append(kernel.gap(x_t, x_0, denoise(x_t, t), s, t))
    t = grid[-2]
    x_t = kernel.marginal(x_0, t).sample(generator)
    reconstruction = -kernel.likelihood(denoise(x_t, t), t).log_prob(x_0)
    return Bound(mismatch, torch.stack(gaps) if gaps else mismatch.new_zeros(0, len(mismatch)), reconstruction)


def bits_per_dim(nats: Tensor, dims: Tensor, log_det: float | Tensor = 0.0) -> Tensor:
    """Nats per example as bits per dimension, (B,).

    Args:
        nats: -log p, (B,).
        dims: dimensions per example, (B,).
        log_det: for densities, log |dz/dx| in nats per dimension of the map from the data's scale x to the model's z:
            log(1/127.5) for 0 ... 255 to [-1, 1]. Probabilities of discrete data need none.
    """
    return (nats / dims.to(nats) - log_det) / math.log(2)
