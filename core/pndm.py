r"""Pseudo-numerical methods: classical solvers whose step is DDIM's transfer (Liu et al. 2022).

The transfer takes x from t to s as if the noise prediction e were constant (eq. 11, in exact form),

    phi(x, e, t, s) = alpha_s/alpha_t x + (sigma_s - sigma_t alpha_s/alpha_t) e,

and the method supplies e: the pseudo linear multistep method from the last predictions,

    e = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24,

the pseudo Runge-Kutta method from four calls, at t, twice half-way and at s, in the classical weights 1, 2, 2, 1.
`f_pndm` is the paper's F-PNDM: three steps of the latter, then the former; n + 9 calls. `pndm` starts more cheaply, as
libraries do: an improved Euler step, (e(t) + e(s))/2, and then the multistep formulas of 2 and 3 predictions; n + 1.

The weights are those of equal steps, and the transfer spreads an average over t evenly over sigma/alpha, so the order
is 2 on grids whose steps are equal in t or change smoothly, and 1 on others. A step that begins at alpha = 0, where
only DDIM's own e is finite, is DDIM; predictions from there serve later steps as others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief
from .grids import unstack
from .kernel import Path, Time
from .multistep import lagged, lagged_rows, terms
from .randomness import Randomness
from .sampling import Steps, prepared
from .schedules import Schedule
from .spaces import ddim_step, noise
from .tableau import Row, follow

__all__ = ["f_pndm", "pndm"]

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the last 1 ... 4 predictions at equal steps."""


def pndm(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Pseudo linear multistep of four predictions after an improved Euler step; n + 1 network calls (n = 1: one).

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, or any path.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B), of equal or smoothly changing steps.
        generator: not used; all samplers are called alike.
    """
    times, alpha, sigma = prepared(kernel, times)
    yield from follow(improved_euler_rows(times, alpha, sigma), denoise, kernel, x)


def f_pndm(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """The paper's F-PNDM; n + 9 network calls, n >= 4. Arguments as `pndm`."""
    times, alpha, sigma = prepared(kernel, times)
    if len(times) < 5:
        raise ArgumentError("times", times, "a grid of at least 4 intervals: three are the Runge-Kutta warm-up")
    yield from follow(runge_kutta_rows(times, alpha, sigma, kernel.schedule), denoise, kernel, x)


class Point(NamedTuple):
    """A state with its belief, by their numbers in the table, and its place on the schedule."""

    state: int
    belief: int
    alpha: Tensor
    sigma: Tensor


def improved_euler_rows(times: Tensor, alpha: Tensor, sigma: Tensor) -> list[Row]:
    """Rows of `pndm`: one step of two calls, then the multistep formulas of rising order."""
    n = len(times) - 1
    if n == 1:
        return adams_bashforth_rows(times, alpha, sigma, 0, [0])
    grid = unstack(times)
    here, ahead = Point(0, 0, alpha[0], sigma[0]), Point(1, 1, alpha[1], sigma[1])
    rows = [
        transfer(grid[0], here, alpha[1], sigma[1], [(1.0, here)], None),
        transfer(grid[1], here, alpha[1], sigma[1], [(0.5, here), (0.5, ahead)], grid[1]),
    ]
    return rows + adams_bashforth_rows(times, alpha, sigma, 1, [0, *range(2, n + 1)])


@torch.no_grad()
def runge_kutta_rows(times: Tensor, alpha: Tensor, sigma: Tensor, schedule: Schedule) -> list[Row]:
    """Rows of `f_pndm`: three steps of four calls, then the multistep formula of four predictions."""
    middles = (times[:3] + times[1:4]) / 2
    alpha_m, sigma_m = schedule(middles)
    grid, inner, rows = unstack(times), unstack(middles), []
    for i in range(3):
        k = 4 * i
        middle, end = (alpha_m[i], sigma_m[i]), (alpha[i + 1], sigma[i + 1])
        a, d = Point(k, k, alpha[i], sigma[i]), Point(k + 3, k + 3, *end)
        b, c = Point(k + 1, k + 1, *middle), Point(k + 2, k + 2, *middle)
        rows += [
            transfer(grid[i], a, *middle, [(1.0, a)], None),
            transfer(inner[i], a, *middle, [(1.0, b)], None),
            transfer(inner[i], a, *end, [(1.0, c)], None),
            transfer(grid[i + 1], a, *end, [(1 / 6, a), (1 / 3, b), (1 / 3, c), (1 / 6, d)], grid[i + 1]),
        ]
    return rows + adams_bashforth_rows(times, alpha, sigma, 3, [0, 4, 8, *range(12, 12 + len(times) - 4)])


def transfer(
    call: Time, start: Point, alpha_s: Tensor, sigma_s: Tensor, parts: list[tuple[float, Point]], time: Time | None
) -> Row:
    """One transfer from `start` with e = sum of weight times the prediction at each point; weights sum to 1."""
    of_x, of_mean = ddim_step(start.alpha, start.sigma, alpha_s, sigma_s)
    gain = leverage(start.alpha, start.sigma, alpha_s, sigma_s)
    states, beliefs = {start.state: of_x}, {start.belief: of_mean}
    for weight, point in [(-1.0, start), *parts]:
        in_x, in_mean = noise.reading(point.alpha, point.sigma)
        states[point.state] = states.get(point.state, 0) + weight * gain * in_x
        beliefs[point.belief] = beliefs.get(point.belief, 0) + weight * gain * in_mean
    return Row(call, terms(plain(states)), terms(plain(beliefs)), time)


def plain(weights: dict[int, Tensor]) -> Iterator[tuple[int, Time]]:
    """Weights of one example as floats."""
    return ((j, weight if weight.ndim else weight.item()) for j, weight in weights.items())


def leverage(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """The weight of e in the transfer; 0 at alpha_t = 0, where only DDIM's own e is finite."""
    return torch.where(alpha_t > 0, sigma_s - sigma_t * alpha_s / alpha_t, 0)


def adams_bashforth_rows(times: Tensor, alpha: Tensor, sigma: Tensor, first: int, places: list[int]) -> list[Row]:
    """One row per interval from the interval `first` on.

    Args:
        places: for each time, where its state and its belief stand in the table.
    """
    n = len(times) - 1
    of_x, of_mean = ddim_step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    gain = leverage(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    in_x, in_mean = noise.reading(alpha[:-1], sigma[:-1])
    states, beliefs = [], []
    for lag in range(4):
        weights = [ADAMS_BASHFORTH[min(i, 3)] for i in range(n)]
        numbers = torch.tensor([row[lag] if lag < len(row) else 0.0 for row in weights], dtype=torch.float64)
        extra = gain * (numbers - float(lag == 0)).reshape(-1, *(1,) * (times.ndim - 1))
        states.append(extra * lagged(in_x, lag, 0) + (of_x if lag == 0 else 0))
        beliefs.append(extra * lagged(in_mean, lag, 0) + (of_mean if lag == 0 else 0))
    return lagged_rows(times, states, beliefs, places, first)
