r"""Classical multistep tables over a family of spaces, clocks, orders and grids: where calibration starts.

With y = x/k the probability flow is dy = r dv for three pairs of a reading r of the belief m and a variable v:

    space     k            r                        v
    eps       alpha        (x - alpha m)/sigma      sigma/alpha
    x0        sigma        m                        alpha/sigma
    flow      alpha + sigma  eps - m                sigma/(alpha + sigma)

An exponential Adams-Bashforth rule of order q replaces r by the polynomial through its last q values (Zhang & Chen
2023, "DEIS", eq. 15; Lu et al. 2022b), a polynomial in some clock tau: weights are integrals of Lagrange polynomials
over v, here by Gauss-Legendre quadrature. Clocks are tau = arcsinh(w/c): linear in the noise w below c,
logarithmic above, so that both ends of the grid are finite; w is sigma/alpha or, where alpha = 0 somewhere,
sigma/(alpha + sigma). A grid that is uniform in a clock is as good as that clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .schedules import Schedule

__all__ = ["Candidate", "candidates"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)
OF_RATIO, OF_SHARE = (0.05, 0.1, 0.2, 0.4), (0.1, 0.2, 0.4, 1.0, 10.0)
"""Noise levels c at which clocks turn from linear to logarithmic, for data of about unit scale."""
ORDERS = (2, 3, 4, 5)


class Candidate(NamedTuple):
    """A table before it is tuned."""

    name: str
    times: Tensor
    """(n + 1,) falling to 0"""
    states: Tensor
    """(n, n), row i weighs y_0 ... y_i"""
    beliefs: Tensor
    """(n, n), row i weighs m_0 ... m_i"""


class Space(NamedTuple):
    """Coordinates, all as functions of u = sigma/(alpha + sigma)."""

    scale: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(alpha, sigma) -> k"""
    rate: Callable[[np.ndarray], np.ndarray]
    """dv/du"""
    of_state: Callable[[np.ndarray, np.ndarray], np.ndarray]
    of_belief: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """r = of_state x + of_belief m"""


SPACES = {
    "eps": Space(lambda a, b: a, lambda u: 1 / (1 - u) ** 2, lambda a, b: 1 / b, lambda a, b: -a / b),
    "x0": Space(lambda a, b: b, lambda u: -1 / u**2, lambda a, b: 0 * a, lambda a, b: 0 * a + 1),
    "flow": Space(lambda a, b: a + b, lambda u: 0 * u + 1, lambda a, b: 1 / b, lambda a, b: -a / b - 1),
}


class Clock(NamedTuple):
    """tau(u) with its inverse and the derivative of that."""

    name: str
    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]
    rate: Callable[[np.ndarray], np.ndarray]


def of_ratio(c: float) -> Clock:
    """arcsinh(s/c) with s = sigma/alpha = u/(1 - u)."""
    return Clock(
        f"ratio {c}",
        lambda u: np.arcsinh(u / (1 - u) / c),
        lambda tau: c * np.sinh(tau) / (1 + c * np.sinh(tau)),
        lambda tau: c * np.cosh(tau) / (1 + c * np.sinh(tau)) ** 2,
    )


def of_share(c: float) -> Clock:
    """arcsinh(u/c)."""
    return Clock(f"share {c}", lambda u: np.arcsinh(u / c), lambda tau: c * np.sinh(tau), lambda tau: c * np.cosh(tau))


def candidates(schedule: Schedule, start: float, calls: int) -> Iterator[Candidate]:
    """Every table of the family with `calls` network calls from time `start` to 0."""
    alpha, sigma = (float(number) for number in schedule(torch.tensor(start, dtype=torch.float64)))
    clocks = [of_share(c) for c in OF_SHARE]
    if alpha > 0:
        clocks += [of_ratio(c) for c in OF_RATIO]
    for grid in clocks:
        first = float(grid.there(np.array(sigma / (alpha + sigma))))
        u = grid.back(np.linspace(first, 0.0, calls + 1))
        u[-1] = 0.0
        inner = torch.tensor(u[1:-1])
        times = torch.cat(
            [torch.tensor([start], dtype=torch.float64), schedule.inverse(2 * torch.log1p(-inner) - 2 * inner.log())]
        )
        times = torch.cat([times, times.new_zeros(1)])
        if not bool((times[:-1] > times[1:]).all()):
            continue  # too fine for the schedule
        a, b = (number.numpy() for number in schedule(times))
        for name, space in SPACES.items():
            if name == "eps" and alpha == 0:
                continue
            for clock in {clock.name: clock for clock in (grid, of_share(0.4), of_share(10.0))}.values():
                for order in [order for order in ORDERS if order <= calls] or [1]:
                    states, beliefs = multistep(space, clock, order, a, b)
                    label = f"{name}, order {order}, polynomial in {clock.name}, grid uniform in {grid.name}"
                    yield Candidate(label, times, torch.from_numpy(states), torch.from_numpy(beliefs))


def multistep(
    space: Space, clock: Clock, order: int, alpha: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(weights of the states, of the beliefs), each (n, n), of exponential Adams-Bashforth with a rising start."""
    n, u = len(alpha) - 1, sigma / (alpha + sigma)
    tau, k = clock.there(u), space.scale(alpha, sigma)
    states, beliefs = np.zeros((n, n)), np.zeros((n, n))
    of_state, of_belief = space.of_state(alpha[:-1], sigma[:-1]), space.of_belief(alpha[:-1], sigma[:-1])
    for i in range(n):
        if k[i + 1] == 0:  # x0 space at sigma = 0, where v is infinite: the belief itself
            beliefs[i, i] = 1.0
            continue
        # Integrands are smooth in this variable at both ends of the grid, whatever the clock.
        smooth = of_ratio(0.1) if alpha[i] > 0 else of_share(0.1)
        first, last = smooth.there(u[i]), smooth.there(u[i + 1])
        nodes = (last + first) / 2 + (last - first) / 2 * NODES
        density = space.rate(smooth.back(nodes)) * smooth.rate(nodes) * (last - first) / 2 * WEIGHTS
        at = clock.there(smooth.back(nodes))
        used = range(max(0, i + 1 - order), i + 1)
        states[i, i] += k[i + 1] / k[i]
        for j in used:
            basis = np.ones_like(at)
            for other in used:
                if other != j:
                    basis *= (at - tau[other]) / (tau[j] - tau[other])
            weight = k[i + 1] * float((basis * density).sum())
            states[i, j] += weight * of_state[j]
            beliefs[i, j] += weight * of_belief[j]
    return states, beliefs
