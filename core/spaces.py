"""Prediction spaces and clocks of exponential integrators: what is extrapolated, and in which variable.

A space is a divisor k, a variable phi of the half-log-SNR and a linear reading p of (x, m) with d(x/k) = p d phi along
the probability-flow ODE; their table and use are in `multistep`. A clock maps the half-log-SNR to the variable in
which p is taken for a polynomial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .schedules import Schedule

__all__ = [
    "Clock",
    "Space",
    "angular",
    "data",
    "ddim_step",
    "half_log_snr",
    "noise",
    "ratio",
    "share",
    "straight",
    "time",
]

Clock: TypeAlias = Callable[[Schedule, Tensor], Tensor]
"""(schedule, half-log-SNR) -> the variable in which predictions are polynomials."""


class Space(NamedTuple):
    """A reading p of (x, m) with d(x/k) = p d phi. All functions are elementwise on float64 tensors."""

    divisor: Callable[[Tensor, Tensor], Tensor]
    """(alpha, sigma) -> k"""
    phi: Callable[[Tensor], Tensor]
    """half-log-SNR -> phi; infinite where the integral is"""
    rate: Callable[[Tensor], Tensor]
    """half-log-SNR l -> d phi/d l"""
    reading: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(alpha, sigma) -> weights of x and of m in p, sigma > 0"""
    step: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(alpha_t, sigma_t, alpha_s, sigma_s) -> weights of x_t and m_t in x_s if p were constant, sigma_t > 0"""


def ddim_step(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
    """Constant m and constant eps give the same step, finite at both ends."""
    return sigma_s / sigma_t, alpha_s - alpha_t * sigma_s / sigma_t


def straight_step(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
    k_t, k_s = alpha_t + sigma_t, alpha_s + sigma_s
    change = sigma_s - sigma_t * k_s / k_t
    return k_s / k_t + change / sigma_t, -change * k_t / sigma_t


def angular_step(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
    k_t, k_s = torch.hypot(alpha_t, sigma_t), torch.hypot(alpha_s, sigma_s)
    change = k_s * (torch.atan2(sigma_s, alpha_s) - torch.atan2(sigma_t, alpha_t))
    return k_s / k_t + change * alpha_t / (k_t * sigma_t), -change * k_t / sigma_t


data = Space(
    lambda alpha, sigma: sigma,
    torch.exp,
    torch.exp,
    lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    ddim_step,
)
"""p = m."""

noise = Space(
    lambda alpha, sigma: alpha,
    lambda half: torch.exp(-half),
    lambda half: -torch.exp(-half),
    lambda alpha, sigma: (1 / sigma, -alpha / sigma),
    ddim_step,
)
"""p = eps."""

straight = Space(
    lambda alpha, sigma: alpha + sigma,
    lambda half: torch.sigmoid(-half),
    lambda half: -torch.sigmoid(half) * torch.sigmoid(-half),
    lambda alpha, sigma: (1 / sigma, -(alpha + sigma) / sigma),
    straight_step,
)
"""p = eps - m, the velocity of straight paths."""

angular = Space(
    torch.hypot,
    lambda half: torch.atan(torch.exp(-half)),
    lambda half: -0.5 / torch.cosh(half),
    lambda alpha, sigma: (alpha / (sigma * torch.hypot(alpha, sigma)), -torch.hypot(alpha, sigma) / sigma),
    angular_step,
)
"""p = (alpha eps - sigma m)/sqrt(alpha^2 + sigma^2), the v of variance-preserving schedules."""


def half_log_snr(schedule: Schedule, half: Tensor) -> Tensor:
    """l = log(alpha/sigma); infinite at both ends."""
    return half


def time(schedule: Schedule, half: Tensor) -> Tensor:
    """t; finite at both ends."""
    return schedule.inverse(2 * half)


def ratio(schedule: Schedule, half: Tensor) -> Tensor:
    """sigma/alpha; infinite at alpha = 0."""
    return torch.exp(-half)


def share(schedule: Schedule, half: Tensor) -> Tensor:
    """sigma/(alpha + sigma); finite at both ends."""
    return torch.sigmoid(-half)
