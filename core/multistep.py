r"""Exponential Adams-Bashforth: multistep solvers of the probability-flow ODE in any prediction space and any clock.

Along the flow dx = m d alpha + eps d sigma with eps = (x - alpha m)/sigma. Divide x by k and what remains is the
integral of one linear reading p of (x, m) over one variable phi of the half-log-SNR l = log(alpha/sigma):

    space     k                       phi                     p
    data      sigma                   alpha/sigma             m                                  DPM-Solver++
    noise     alpha                   sigma/alpha             eps                                DEIS, DPM-Solver
    straight  alpha + sigma           sigma/(alpha + sigma)   eps - m                            flow matching
    angular   sqrt(alpha^2+sigma^2)   atan(sigma/alpha)       (alpha eps - sigma m)/k            v-prediction

    x_s/k_s = x_t/k_t + int_t^s p d phi,    p ~ sum_j L_j(c) p_j

with L_j the Lagrange polynomials of the last `order` predictions in a clock c: the half-log-SNR itself (DPM-Solver; Lu
et al. 2022; in noise space what libraries call DEIS), t (tAB-DEIS: Zhang & Chen 2022), sigma/alpha (their rhoAB), or
sigma/(alpha + sigma). Order 1 is DDIM in `data` and `noise`, Euler's method in the others.

The weights are int L_j d phi by Gauss-Legendre quadrature over l, which integrates polynomials times e^(+-l) to
rounding and without the cancellation of the closed forms for small steps. An interval with an end at alpha = 0 or
sigma = 0, where l is infinite, is integrated over sigma/(alpha + sigma) instead; where phi or the clock is infinite at
that end its order is 1, and a prediction whose clock is infinite serves no later polynomial. An order above 2 needs
short first intervals to show: each has only the predictions so far, and the first, of order 1, errs by its square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy
import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief
from .grids import unstack
from .kernel import Path, Time
from .randomness import Randomness
from .sampling import Steps, columns, prepared
from .schedules import Schedule
from .spaces import Clock, Space, half_log_snr, noise, time
from .tableau import Row, follow

__all__ = ["deis", "exponential_adams_bashforth", "multistep_rows"]

NODES = 24
"""Of the quadrature: rounding error for every interval of l up to 10."""


def exponential_adams_bashforth(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    space: Space = noise,
    clock: Clock = half_log_snr,
    order: int = 2,
    taper: bool = True,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Multistep of the given order; one network call per interval.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, or any path.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        space: `data`, `noise`, `straight` or `angular`: what is extrapolated.
        clock: `half_log_snr`, `time`, `ratio` or `share`: the variable in which it is a polynomial.
        order: how many predictions are used; the first intervals have fewer.
        taper: whether the last intervals fall in order to 1, which makes short grids robust.
        generator: not used; all samplers are called alike.
    """
    times, _, _ = prepared(kernel, times)
    yield from follow(multistep_rows(times, kernel.schedule, space, clock, order, taper=taper), denoise, kernel, x)


def deis(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    clock: Clock = time,
    order: int = 3,
    taper: bool = False,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """tAB-DEIS (Zhang & Chen 2022): the noise prediction as a polynomial of t. Arguments as the general method.

    With `clock=half_log_snr` it is the DEIS of common libraries, with `ratio` the paper's rhoAB.
    """
    yield from exponential_adams_bashforth(
        denoise, kernel, x, times, space=noise, clock=clock, order=order, taper=taper
    )


@torch.no_grad()
def multistep_rows(
    times: Tensor, schedule: Schedule, space: Space, clock: Clock, order: int, *, taper: bool = True
) -> list[Row]:
    """The rows of exponential Adams-Bashforth, one per interval: state i and belief i belong to times[i].

    Args:
        times: strictly monotone float64 grid (n + 1,) or (n + 1, B), falling to generate or rising to encode;
            sigma > 0 at all but the last.
        schedule: alpha_t, sigma_t.
        space, clock, order, taper: see `exponential_adams_bashforth`.
    """
    if not isinstance(order, int) or order < 1:
        raise ArgumentError("order", order, "an integer >= 1")
    alpha, sigma = schedule(times)
    half = alpha.log() - sigma.log()
    tick, phi = clock(schedule, half), space.phi(half)
    sound = torch.isfinite(tick) & torch.isfinite(phi)
    fit = sound[:-1] & sound[1:]
    usable = history(times, order, taper, torch.isfinite(tick), fit)
    places, measure = quadrature(half[:-1], half[1:])
    measure = measure * space.rate(places)
    weights = integrals(clock(schedule, places), measure, [lagged(tick, lag) for lag in range(len(usable))], usable)
    of_x, of_mean = space.step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    in_x, in_mean = space.reading(alpha[:-1], sigma[:-1])
    k_s = space.divisor(alpha[1:], sigma[1:])
    states, beliefs = [], []
    for lag, weight in enumerate(weights):
        # What the polynomial adds to a constant; the constant's step is known in closed form.
        extra = torch.where(fit, k_s * (weight - measure.sum(-1) if lag == 0 else weight), 0)
        states.append(extra * lagged(in_x, lag, 0) + (of_x if lag == 0 else 0))
        beliefs.append(extra * lagged(in_mean, lag, 0) + (of_mean if lag == 0 else 0))
    return lagged_rows(times, states, beliefs)


def lagged_rows(
    times: Tensor, states: list[Tensor], beliefs: list[Tensor], places: Sequence[int] | None = None, first: int = 0
) -> list[Row]:
    """One row per interval, with one call at its beginning; weights of 0 are left out.

    Args:
        times: grid (n + 1,) or (n + 1, B).
        states, beliefs: lag -> the weights (n, ...) of the state and of the belief of that many intervals before.
        places: for each time, where its state and its belief stand in the table; the i-th at i by default.
        first: the interval to begin with.
    """
    grid, places = unstack(times), range(len(times)) if places is None else places
    of_states, of_beliefs = columns(*states), columns(*beliefs)

    def known(weights: list[list[Time]], i: int) -> list[tuple[int, Time]]:
        return terms((places[i - lag], weight[i]) for lag, weight in enumerate(weights[: i + 1]))

    return [Row(grid[i], known(of_states, i), known(of_beliefs, i), grid[i + 1]) for i in range(first, len(times) - 1)]


def history(times: Tensor, order: int, taper: bool, known: Tensor, fit: Tensor) -> list[Tensor]:
    """lag -> which intervals use the prediction of that lag, bool, shape of `fit`; lag 0 always.

    Args:
        times: the grid.
        order: the most predictions.
        taper: whether interval n - i uses at most i.
        known: where a prediction's clock is finite, (n + 1, ...).
        fit: which intervals may have an order above 1, (n, ...).
    """
    n = len(times) - 1
    index = torch.arange(n).reshape(-1, *(1,) * (times.ndim - 1))
    most = torch.minimum(index + 1, n - index) if taper else index + 1
    return [torch.ones_like(fit)] + [(lag < most) & fit & lagged(known, lag) for lag in range(1, min(order, n))]


def lagged(values: Tensor, lag: int, last: int = 1) -> Tensor:
    """values[i - lag] for the intervals i, the first one where there is none, without the `last` entries of values."""
    values = values[: len(values) - last]
    lag = min(lag, len(values))
    return torch.cat([values[:1].expand(lag, *values.shape[1:]), values[: len(values) - lag]])


def integrals(now: Tensor, measure: Tensor, ticks: list[Tensor], usable: list[Tensor]) -> list[Tensor]:
    """int L_j d phi for each node j; 0 for nodes that are not usable.

    Args:
        now: the clock at the quadrature's places, (n, ..., NODES).
        measure: the quadrature's weights of d phi, likewise.
        ticks: the clock at each node, (n, ...).
        usable: which nodes there are, bool, likewise.
    """
    results = []
    for j, own in enumerate(ticks):
        basis = torch.ones_like(now)
        for m, (other, there) in enumerate(zip(ticks, usable, strict=True)):
            if m != j:
                factor = (now - other.unsqueeze(-1)) / (own - other).unsqueeze(-1)
                basis = torch.where(there.unsqueeze(-1), basis * factor, basis)
        results.append(torch.where(usable[j], (basis * measure).sum(-1), 0))
    return results


def quadrature(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Half-log-SNRs inside each interval and their weights dl, each (n, ..., NODES).

    Over l itself, or where an end is infinite over u = sigma/(alpha + sigma), dl = -du/(u (1 - u)).
    """
    nodes, weights = gauss_legendre()
    finite = torch.isfinite(start) & torch.isfinite(end)

    def over(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        length = (b - a).unsqueeze(-1)
        return a.unsqueeze(-1) + length * nodes, length * weights

    places, measure = over(torch.where(finite, start, 0), torch.where(finite, end, 0))
    u, du = over(torch.sigmoid(-start), torch.sigmoid(-end))
    finite = finite.unsqueeze(-1)
    return (
        torch.where(finite, places, torch.log1p(-u) - u.log()),
        torch.where(finite, measure, -du / (u * (1 - u))),
    )


def gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = numpy.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def terms(pairs: Iterable[tuple[int, Time]]) -> list[tuple[int, Time]]:
    """The pairs whose weight is not 0."""
    return [(j, weight) for j, weight in pairs if (bool((weight != 0).any()) if isinstance(weight, Tensor) else weight)]
