"""Grids of times, and the maps from published index conventions to t.

A grid is one descending float64 tensor (1, ..., t_1, 0) of shape (n + 1,) for n network calls, or (n + 1, B) with one
column per example, the same for every algorithm. The interval t_1 -> 0 is never a posterior step: samplers take the
belief's mean (Gaussian) or a draw (tokens) there. Schedules with t_min > 0 get grids that end (..., t_min, 0).

Index i - 1 of a published T-step model is t = i/T. The three published spacings (`leading`, `trailing`, `linspace`)
name those indices; the previous time of each is simply the next entry of the grid, never "t - T // n".
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ArgumentError
from .schedules import Schedule

__all__ = [
    "Time",
    "check_times",
    "from_index",
    "karras",
    "leading",
    "linspace",
    "log_snr",
    "quadratic",
    "trailing",
    "uniform",
    "unstack",
]

Time: TypeAlias = float | Tensor
"""One time for the whole batch, or a float64 tensor (B,)."""


def uniform(steps: int, schedule: Schedule | None = None) -> Tensor:
    """`steps` equal intervals of t; with a schedule, down to its t_min. Shape (steps + 1,)."""
    return power(steps, 1.0, schedule)


def quadratic(steps: int, schedule: Schedule | None = None) -> Tensor:
    """sqrt(t) in equal intervals: finer near the data, as DDIM's CIFAR-10 figures (Song et al. 2021, D.2)."""
    return power(steps, 2.0, schedule)


def power(steps: int, exponent: float, schedule: Schedule | None = None) -> Tensor:
    """t^(1/exponent) in equal intervals from 1 to the schedule's t_min, then 0."""
    check_steps(steps)
    t_min = schedule.t_min if schedule is not None else 0.0
    if t_min == 0:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** exponent
    return closed(torch.linspace(1, t_min ** (1 / exponent), steps, dtype=torch.float64) ** exponent)


def log_snr(steps: int, schedule: Schedule, low: float = -10.0, high: float = 10.0) -> Tensor:
    """lambda in equal intervals (Lu et al. 2022) from lambda_1, at least `low`, to lambda at t_min (or `high`).

    The first time is 1 and the last 0, whatever the limits. Shape (steps + 1,).
    """
    check_steps(steps)
    first, last = ends(schedule, low, high)
    return closed(schedule.inverse(torch.linspace(first, last, steps, dtype=torch.float64)))


def karras(steps: int, schedule: Schedule, rho: float = 7.0, low: float = -10.0, high: float = 10.0) -> Tensor:
    """(sigma/alpha)^(1/rho) in equal intervals (Karras et al. 2022, eq. 5), for any schedule; limits as `log_snr`."""
    check_steps(steps)
    if not (math.isfinite(rho) and rho > 0):
        raise ArgumentError("rho", rho, "a positive number")
    first, last = (torch.exp(torch.tensor(-end / (2 * rho), dtype=torch.float64)) for end in ends(schedule, low, high))
    spread = first + (last - first) * torch.linspace(0, 1, steps, dtype=torch.float64)
    return closed(schedule.inverse(-2 * rho * spread.log()))


def leading(steps: int, T: int, offset: int = 0) -> Tensor:
    """Indices 0, k, 2k, ... (+ offset), k = T // steps, descending, as times; then 0. Shape (steps + 1,)."""
    check_steps(steps, T)
    return from_index((torch.arange(steps, dtype=torch.float64) * (T // steps)).flip(0) + offset, T)


def trailing(steps: int, T: int) -> Tensor:
    """Indices round(T - i T/steps) - 1 as times: starts at pure noise; then 0 (Lin et al. 2024)."""
    check_steps(steps, T)
    return from_index((T - torch.arange(steps, dtype=torch.float64) * T / steps).round() - 1, T)


def linspace(steps: int, T: int) -> Tensor:
    """Indices linspace(T - 1, 0, steps), rounded, as times; then 0."""
    check_steps(steps, T)
    return from_index(torch.linspace(T - 1, 0, steps, dtype=torch.float64).round(), T)


def from_index(index: Tensor, T: int) -> Tensor:
    """Published indices (0 ... T - 1, descending) as a grid: t = (index + 1)/T, then 0."""
    index = torch.as_tensor(index).to(torch.float64)
    if bool((index < 0).any()) or bool((index > T - 1).any()):
        raise ArgumentError("index", index.tolist(), f"indices in 0 ... {T - 1}")
    return check_times(torch.cat([(index + 1) / T, index.new_zeros(1)]))


def check_times(times: Tensor) -> Tensor:
    """The grid itself as float64 on the CPU, or an ArgumentError unless it descends strictly within [0, 1] to 0."""
    if not isinstance(times, Tensor) or times.ndim not in (1, 2) or times.shape[0] < 2:
        raise ArgumentError("times", times, "a tensor of shape (n,) or (n, B) with n >= 2")
    times = times.detach().to("cpu", torch.float64)
    if not bool((times[:-1] > times[1:]).all() and (times[0] <= 1).all() and (times[-1] == 0).all()):
        raise ArgumentError(
            "times", times if times.ndim > 1 else times.tolist(), "times in [0, 1], falling strictly to 0"
        )
    return times


def unstack(times: Tensor) -> list[Time]:
    """A checked grid as a list of floats (n,), or of (B,) tensors (n, B)."""
    return times.tolist() if times.ndim == 1 else list(times.unbind(0))


def closed(times: Tensor) -> Tensor:
    """The grid with its first time set to exactly 1 and a final 0."""
    return check_times(torch.cat([times.new_ones(1), times[1:], times.new_zeros(1)]))


def ends(schedule: Schedule, low: float, high: float) -> tuple[float, float]:
    """lambda at t = 1, but at least low, and at t_min, or high where t_min = 0."""
    first, last = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).tolist()
    first, last = max(first, low), last if schedule.t_min > 0 else high
    if not first < last:
        raise ArgumentError(
            "low, high", (low, high), f"log-SNRs with low < high, and {first} < {last} on this schedule"
        )
    return first, last


def check_steps(steps: int, T: int | None = None) -> None:
    """An ArgumentError unless 1 <= steps (<= T)."""
    if not isinstance(steps, int) or steps < 1 or (T is not None and steps > T):
        raise ArgumentError("steps", steps, "an integer >= 1" + (f" and <= T = {T}" if T is not None else ""))
