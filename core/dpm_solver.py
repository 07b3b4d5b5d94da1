r"""DPM-Solver++: exponential integrators of the belief in half-log-SNR (Lu et al. 2022b).

With h = (lambda_s - lambda_t)/2 (half-log-SNR steps) and D a belief for the whole step,

    x_s = sigma_s/sigma_t x_t - alpha_s (e^(-h) - 1) D.

    1S    D = m_t: DDIM                                                                order 1, n calls
    2S    D = m at the middle of the step in half-log-SNR, reached by a step of 1S      order 2, at most 2 n - 1 calls
    2M    D = m_t + (m_t - m_previous)/(2 r), r = h_previous/h: its middle, extrapolated    order 2, n calls
    3M    the parabola through the last three beliefs, m_t + D_1 tau + D_2 tau^2 for tau in [0, 1], integrated exactly

(algorithms 1 and 2; 3M is the authors' code.) That code weighs D_2 by half of its integral, and so do its descendants:
the order is then 2. `curvature=0.5`, the default, is that published solver; 1 is the exact integral, of order 3.

The first step has order 1 and the second at most 2, and the last one to sigma = 0, where h is infinite, has order 1; so
has one that begins at alpha = 0, and beliefs from there are used no more. e^(-h) = alpha_t sigma_s / (alpha_s sigma_t)
stays finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .gaussian import Belief
from .grids import unstack
from .kernel import Path, Time
from .multistep import gauss_legendre, history, lagged, lagged_rows, terms
from .randomness import Randomness
from .sampling import Steps, columns, prepared
from .schedules import Schedule
from .spaces import ddim_step
from .tableau import Row, follow

__all__ = ["dpm_solver_pp_1s", "dpm_solver_pp_2m", "dpm_solver_pp_2s", "dpm_solver_pp_3m"]


def dpm_solver_pp_1s(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """DDIM as a table: order 1, one network call per interval. Arguments as `dpm_solver_pp_2m`."""
    times, alpha, sigma = prepared(kernel, times)
    yield from follow(belief_rows(times, alpha, sigma, []), denoise, kernel, x)


def dpm_solver_pp_2s(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Order 2 without history: two network calls per interval, one in the last and where all begin at alpha = 0.

    Arguments as `dpm_solver_pp_2m`.
    """
    times, alpha, sigma = prepared(kernel, times)
    yield from follow(singlestep_rows(times, alpha, sigma, kernel.schedule), denoise, kernel, x)


def dpm_solver_pp_2m(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    taper: bool = True,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Order 2 with one network call per interval.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, or any path.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B); uniform log-SNR suits it.
        taper: whether the last intervals fall in order to 1; the very last has order 1 anyway.
        generator: not used; all samplers are called alike.
    """
    times, alpha, sigma = prepared(kernel, times)
    half, usable = past(times, alpha, sigma, 2, taper)
    h = half[1:] - half[:-1]
    lean = torch.zeros_like(h)
    lean[1:] = torch.where(usable[1][1:], h[1:] / (2 * h[:-1]), 0)
    change = ddim_step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])[1]
    yield from follow(belief_rows(times, alpha, sigma, [change * lean, -change * lean]), denoise, kernel, x)


def dpm_solver_pp_3m(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    curvature: float = 0.5,
    taper: bool = True,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Three beliefs, one network call per interval.

    Args:
        curvature: the share of the parabola's curvature that counts: 0.5 as published (order 2), 1 for order 3.
        taper: whether the last intervals fall in order to 1; the very last has order 1 anyway.

    Other arguments as `dpm_solver_pp_2m`.
    """
    times, alpha, sigma = prepared(kernel, times)
    half, usable = past(times, alpha, sigma, 3, taper)
    weights = parabola(half, alpha, usable, curvature)
    yield from follow(belief_rows(times, alpha, sigma, weights), denoise, kernel, x)


def past(times: Tensor, alpha: Tensor, sigma: Tensor, order: int, taper: bool) -> tuple[Tensor, list[Tensor]]:
    """The half-log-SNRs of a grid, and lag -> which intervals use the belief of that lag, for lags below `order`."""
    half = alpha.log() - sigma.log()
    known = torch.isfinite(half)
    usable = history(times, order, taper, known, known[:-1] & known[1:])
    return half, usable + [torch.zeros_like(usable[0])] * (order - len(usable))


def parabola(half: Tensor, alpha: Tensor, usable: list[Tensor], curvature: float) -> list[Tensor]:
    """What 3M adds to the weights of the last three beliefs, each (n, ...); where there are two, what 2M adds."""
    h = half[1:] - half[:-1]
    before, earlier = lagged(h, 1, 0), lagged(h, 2, 0)
    nodes, measure = gauss_legendre()
    decay = h.unsqueeze(-1) * torch.exp(-h.unsqueeze(-1) * (1 - nodes)) * measure
    slope_moment, square_moment = (decay * nodes).sum(-1), (decay * nodes**2).sum(-1)
    span = before + earlier
    # D_2 = h/span (d - e) and D_1 = d + before/span (d - e), d = h/before (m_0 - m_1), e = h/earlier (m_1 - m_2)
    both = (before * slope_moment + curvature * h * square_moment) / span
    of_d, of_e = (slope_moment + both) * h / before, -both * h / earlier
    middle = -torch.expm1(-h) * h / (2 * before)
    zero = torch.zeros_like(h)
    two, three = usable[1], usable[2]
    weights = [
        torch.where(three, of_d, torch.where(two, middle, zero)),
        torch.where(three, of_e - of_d, torch.where(two, -middle, zero)),
        torch.where(three, -of_e, zero),
    ]
    return [alpha[1:] * weight for weight in weights]


def belief_rows(times: Tensor, alpha: Tensor, sigma: Tensor, extra: list[Tensor]) -> list[Row]:
    """DDIM plus multiples of the last beliefs: lag -> weight (n, ...) that comes on top of DDIM's."""
    of_x, of_mean = ddim_step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    return lagged_rows(times, [of_x], [of_mean + extra[0], *extra[1:]] if extra else [of_mean])


@torch.no_grad()
def singlestep_rows(times: Tensor, alpha: Tensor, sigma: Tensor, schedule: Schedule) -> list[Row]:
    """2S: two rows per interval, one where no example has a middle in half-log-SNR."""
    half = alpha.log() - sigma.log()
    fit = torch.isfinite(half[:-1]) & torch.isfinite(half[1:])
    # Where there is no middle the time between serves as one, and its belief gets no weight.
    between = (times[:-1] + times[1:]) / 2
    middle = torch.where(fit, schedule.inverse(torch.where(fit, half[:-1] + half[1:], 0)), between)
    alpha_m, sigma_m = schedule(middle)
    to_middle = ddim_step(alpha[:-1], sigma[:-1], alpha_m, sigma_m)
    of_x, of_mean = ddim_step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    first, second = torch.where(fit, 0, of_mean), torch.where(fit, of_mean, 0)
    grid, inner, rows, calls = unstack(times), unstack(middle), [], 0
    table = zip(*columns(*to_middle, of_x, first, second), strict=True)
    for i, (a, b, c, d, e) in enumerate(table):
        start, call = len(rows), calls
        if bool(fit[i].any()):
            rows.append(Row(grid[i], [(start, a)], [(call, b)], None))
            rows.append(Row(inner[i], [(start, c)], terms([(call, d), (call + 1, e)]), grid[i + 1]))
        else:
            rows.append(Row(grid[i], [(start, c)], [(call, d)], grid[i + 1]))
        calls = call + 1 + bool(fit[i].any())
    return rows
