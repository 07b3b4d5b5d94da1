r"""Classical multistep tables over a family of spaces, clocks, orders and grids: where calibration starts.

Each is an exponential Adams-Bashforth method (`multistep`) whose predictions are polynomials in a clock

    tau = arcsinh(w/c),

linear in the noise w below c, logarithmic above, so that both ends of the grid are finite; w is sigma/alpha or, where
alpha = 0 somewhere, sigma/(alpha + sigma). A grid that is uniform in a clock is as good as that clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .multistep import multistep_rows
from .schedules import Schedule
from .spaces import Clock, Space, data, noise, ratio, share, straight

__all__ = ["Candidate", "bent", "candidates"]

OF_RATIO, OF_SHARE = (0.05, 0.1, 0.2, 0.4), (0.1, 0.2, 0.4, 1.0, 10.0)
"""Noise levels c at which clocks turn from linear to logarithmic, for data of about unit scale."""
ORDERS = (2, 3, 4, 5)
SPACES: dict[str, Space] = {"noise": noise, "data": data, "straight": straight}


class Candidate(NamedTuple):
    """A table before it is tuned."""

    name: str
    times: Tensor
    """(n + 1,) falling to 0"""
    states: Tensor
    """(n, n), row i weighs y_0 ... y_i"""
    beliefs: Tensor
    """(n, n), row i weighs m_0 ... m_i"""


class Bent(NamedTuple):
    """arcsinh(w/c) as a clock, and its inverse."""

    name: str
    clock: Clock
    half: Callable[[Tensor], Tensor]
    """tau -> half-log-SNR"""


def bent(level: Clock, c: float) -> Bent:
    """The clock arcsinh(w/c) of w = `ratio` or `share`."""

    def half(tau: Tensor) -> Tensor:
        w = c * torch.sinh(tau)
        return -w.log() if level is ratio else torch.log1p(-w) - w.log()

    return Bent(f"{level.__name__} {c}", lambda schedule, half: torch.asinh(level(schedule, half) / c), half)


def candidates(schedule: Schedule, start: float, calls: int) -> Iterator[Candidate]:
    """Every table of the family with `calls` network calls from time `start` to 0."""
    first = torch.tensor(start, dtype=torch.float64)
    alpha, sigma = (number.detach() for number in schedule(first))
    levels = [bent(share, c) for c in OF_SHARE]
    if float(alpha) > 0:
        levels += [bent(ratio, c) for c in OF_RATIO]
    for grid in levels:
        top = float(grid.clock(schedule, alpha.log() - sigma.log()))
        inner = grid.half(torch.linspace(top, 0.0, calls + 1, dtype=torch.float64)[1:-1])
        times = torch.cat([first.reshape(1), schedule.inverse(2 * inner).detach(), inner.new_zeros(1)])
        if not bool((times[:-1] > times[1:]).all()):
            continue  # too fine for the schedule
        for name, space in SPACES.items():
            if space is noise and float(alpha) == 0:
                continue
            for clock in {clock.name: clock for clock in (grid, bent(share, 0.4), bent(share, 10.0))}.values():
                for order in [order for order in ORDERS if order <= calls] or [1]:
                    label = f"{name}, order {order}, polynomial in {clock.name}, grid uniform in {grid.name}"
                    states, beliefs = multistep(times, schedule, space, clock.clock, order)
                    yield Candidate(label, times, states, beliefs)


def multistep(times: Tensor, schedule: Schedule, space: Space, clock: Clock, order: int) -> tuple[Tensor, Tensor]:
    """(weights of the states, of the beliefs), each (n, n), of exponential Adams-Bashforth with a rising start."""
    rows = multistep_rows(times, schedule, space, clock, order, taper=False)
    tables = torch.zeros(2, len(rows), len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        for table, terms in zip(tables, (row.states, row.beliefs), strict=True):
            for j, weight in terms:
                table[i, j] += weight
    return tables[0], tables[1]
