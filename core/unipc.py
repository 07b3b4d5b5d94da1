r"""UniPC-p: predictor and corrector of one table, the corrector without calls of its own (Zhao et al. 2023).

In half-log-SNR and belief space, with h the step and r_1 = h_previous/h,

    predict    x_s = DDIM + alpha_s int e^(-h (1 - tau)) h (P(tau) - m_t) d tau,   P through m_t and the p - 1 before
    call       m_s = m(x_s, s)
    correct    the same from the same x_t with P through m_s too; m_s is not called again at the corrected state

Solving the paper's linear systems for its coefficients is integrating those polynomials, whatever B(h) is, except where
it sets a lone coefficient to 1/2: the predictor of order 2 adds alpha_s B(h)/2 (m_t - m_previous)/r_1 to DDIM and the
corrector of order 1 alpha_s B(h)/2 (m_s - m_t), with B = h (`bh1`) or 1 - e^(-h) (`bh2`).

The corrected solution has order p + 1, apart from the error of the first intervals, which have fewer beliefs. A grid of
n intervals costs n calls. Steps are corrected states; the last, at sigma = 0, is predicted with order 1. A step that
begins at alpha = 0 is DDIM and is not corrected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .dpm_solver import past
from .errors import ArgumentError
from .gaussian import Belief
from .grids import unstack
from .kernel import Path, Time
from .multistep import integrals, lagged, quadrature, terms
from .randomness import Randomness
from .sampling import Steps, columns, prepared
from .spaces import data, ddim_step
from .tableau import Row, follow

__all__ = ["bh1", "bh2", "unipc"]

Scale: TypeAlias = Callable[[Tensor], Tensor]
"""h -> B(h)."""


def bh1(h: Tensor) -> Tensor:
    """B(h) = h."""
    return h


def bh2(h: Tensor) -> Tensor:
    """B(h) = 1 - e^(-h)."""
    return -torch.expm1(-h)


def unipc(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    order: int = 2,
    scale: Scale = bh2,
    taper: bool = True,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """n network calls; the first step is yielded after two of them.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, or any path.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        order: p, the number of beliefs that the predictor uses.
        scale: B(h): `bh1` or `bh2`.
        taper: whether the last intervals fall in order to 1; the very last has order 1 anyway.
        generator: not used; all samplers are called alike.
    """
    if not isinstance(order, int) or order < 1:
        raise ArgumentError("order", order, "an integer >= 1")
    times, alpha, sigma = prepared(kernel, times)
    yield from follow(predictor_corrector_rows(times, alpha, sigma, order, scale, taper), denoise, kernel, x)


def predictor_corrector_rows(
    times: Tensor, alpha: Tensor, sigma: Tensor, order: int, scale: Scale, taper: bool
) -> list[Row]:
    """Two rows per interval, one for the last. State 2 i and belief i belong to times[i]; odd states are predicted."""
    half, usable = past(times, alpha, sigma, order, taper)
    usable = usable[:order]
    start, end = half[:-1], half[1:]
    fit = torch.isfinite(start) & torch.isfinite(end)
    h = end - start
    places, measure = quadrature(start, end)
    measure = measure * data.rate(places)
    whole = measure.sum(-1)
    ticks = [lagged(half, lag) for lag in range(len(usable))]

    def extra(weight: Tensor) -> Tensor:
        return torch.where(fit, sigma[1:] * weight, 0)

    of_x, of_mean = ddim_step(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
    predicted = integrals(places, measure, ticks, usable)
    predicted = [extra(predicted[0] - whole), *map(extra, predicted[1:])]
    corrected = integrals(places, measure, [end, *ticks], [fit, *usable])
    corrected = [extra(corrected[0]), extra(corrected[1] - whole), *map(extra, corrected[2:])]

    halved = torch.where(fit, alpha[1:] * scale(h) / 2, 0)
    count = torch.stack(usable).sum(0)
    if order > 1:
        lean = halved * h / torch.where(usable[1], lagged(half, 0) - lagged(half, 1), 1)
        for lag, sign in ((0, 1), (1, -1)):
            predicted[lag] = torch.where(count == 2, sign * lean, predicted[lag])
    for place, sign in ((0, 1), (1, -1)):
        corrected[place] = torch.where(count == 1, sign * halved, corrected[place])

    predicted[0], corrected[1] = of_mean + predicted[0], of_mean + corrected[1]
    grid, rows = unstack(times), []
    predictors, correctors = columns(of_x, *predicted), columns(*corrected)
    for i, (a, *weights) in enumerate(zip(*predictors, strict=True)):
        final = i == len(grid) - 2
        beliefs = terms((i - lag, b) for lag, b in enumerate(weights[: i + 1]))
        rows.append(Row(grid[0] if i == 0 else None, [(2 * i, a)], beliefs, grid[-1] if final else None))
        if not final:
            beliefs = terms((i + 1 - lag, column[i]) for lag, column in enumerate(correctors[: i + 2]))
            rows.append(Row(grid[i + 1], [(2 * i, a)], beliefs, grid[i + 1]))
    return rows
