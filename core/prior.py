r"""The far end of the process: how far q(x_1) is from the prior, and schedules that close the gap.

What remains of the data at t = 1 is paid for in the bound and starts samplers from the wrong place. `mismatch` reports

    KL(q(x_1 | x_0) || p(x_1))    nats per example,

for any kernel; for Gaussian ones it is alpha_1^2 |x_0|^2 / (2 sigma_1^2) in the metric of the noise law. With
alpha_1 = 0 it vanishes: `zero_terminal_snr` moves the array of alphas of a published model (Lin et al. 2024, "Common
Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1), `ZeroTerminal` does it to any schedule. A network
that predicts eps says nothing at alpha = 0; use v or x_0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError
from .kernel import Kernel
from .schedules import Schedule, Tabulated, as_float64

__all__ = ["Mismatch", "ZeroTerminal", "mismatch", "zero_terminal_snr"]


class Mismatch(NamedTuple):
    """KL(q(x_1 | x_0) || p(x_1)) of every example of a data set."""

    nats: Tensor
    """(N,) float64, in the order of the data"""

    @property
    def mean(self) -> float:
        """What the prior adds to the bound, in nats per example."""
        return float(self.nats.mean())

    @property
    def most(self) -> float:
        """The worst example's, in nats."""
        return float(self.nats.max())

    def quantile(self, share: float) -> float:
        """The nats that a share of the examples does not exceed (linear between two examples)."""
        if not 0 <= share <= 1:
            raise ArgumentError("share", share, "a number in [0, 1]")
        return float(torch.quantile(self.nats, share))


def mismatch(batches: Iterable[tuple[Kernel, Any]]) -> Mismatch:
    """The report for any kernel and data set.

    Args:
        batches: (kernel bound to the batch's structure, x_0).
    """
    found = []
    for kernel, x_0 in batches:
        found.append(kernel.marginal(x_0, 1.0).kl(kernel.prior(x_0)).detach().to("cpu", torch.float64))
    if not found:
        raise ArgumentError("batches", batches, "at least one batch")
    return Mismatch(torch.cat(found))


def zero_terminal_snr(betas: Sequence[float] | Tensor) -> Tabulated:
    """The table with sqrt(alpha_bar) moved linearly so that its last entry is 0 and its first unchanged.

    Args:
        betas: beta_1 ... beta_T, at least two numbers in (0, 1], as for `Tabulated.from_betas`.
    """
    alpha = torch.tensor(Tabulated.from_betas(betas).alphas_bar, dtype=torch.float64).sqrt()
    if len(alpha) < 2:
        raise ArgumentError("betas", betas, "at least two numbers")
    kept = (alpha - alpha[-1]) / (alpha[0] - alpha[-1])
    table = (kept * alpha[0]) ** 2
    table[0] = alpha[0] ** 2
    return Tabulated(table)


class ZeroTerminal(Schedule):
    """Any schedule whose alpha falls, with alpha moved linearly to end at 0; the first step, t_min, keeps its alpha.

    alpha' = (alpha - alpha_1) alpha_min/(alpha_min - alpha_1); sigma'^2 = alpha^2 + sigma^2 - alpha'^2 keeps the power,
    so variance-preserving schedules stay so. Where t_min = 0, alpha_min = 1. Below t_min nothing changes.

    Args:
        base: the schedule; alpha_1 < alpha at t_min (not an exploding one).
    """

    def __init__(self, base: Schedule):
        super().__init__()
        first, last = base(torch.tensor([base.t_min, 1.0], dtype=torch.float64))[0].tolist()
        if not last < first:
            raise ArgumentError("base", type(base).__name__, "a schedule whose alpha_t falls")
        self.base, self.t_min = base, base.t_min

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        alpha, sigma = self.base(t)
        first, last = self.base(torch.tensor([self.t_min, 1.0], dtype=torch.float64, device=t.device))[0].unbind()
        # What alpha loses, written so that it is 0 at the first step and small beside sigma^2 near it.
        lost = (last * (first - alpha) / (first - last)).clamp_min(0)
        moved = torch.where(t < self.t_min, alpha, (alpha - last) * (first / (first - last)))
        return moved, (sigma**2 + lost * (alpha + moved)).sqrt()
