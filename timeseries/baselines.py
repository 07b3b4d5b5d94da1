"""Filling gaps without a model: what every figure of one should stand beside.

Each takes values (N, L, K) with NaN at the cells to fill, and gives them back with these filled and the others as they
were, float64. Only cells of the same feature in the same window are used; a feature without any observation in a
window takes the `fallback`, its mean over the training data (by default 0, which that is in normalised units).
Arguments, what comes back and errors are those of `linear`.

Forecasts are no case of their own: rows after the last observation repeat it (`last`, `linear`) or the period before
(`seasonal`), as the naive forecasts of Hyndman & Athanasopoulos, "Forecasting", sec. 5.2.

As one sample, `filled[None]`, they go into `metrics.figures`; the CRPS of such a point forecast is sum |error| /
sum |truth|, see there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import ArgumentError

__all__ = ["Baseline", "last", "linear", "mean", "median", "overall", "seasonal"]

Floats: TypeAlias = NDArray[np.float64]

Baseline: TypeAlias = Callable[..., Floats]
"""`baseline(values, stamps=None, *, fallback=0.0)` -> filled; `partial(seasonal, period=24)` is one."""


def overall(values: ArrayLike, stamps: ArrayLike | None = None, *, fallback: ArrayLike = 0.0) -> Floats:
    """The fallback everywhere: the mean of the training data."""
    cells, _, spare = _checked(values, stamps, fallback)
    return np.where(np.isnan(cells), spare, cells)


def mean(values: ArrayLike, stamps: ArrayLike | None = None, *, fallback: ArrayLike = 0.0) -> Floats:
    """The mean of the feature's observations in the window."""
    return _constant(np.ma.mean, values, stamps, fallback)


def median(values: ArrayLike, stamps: ArrayLike | None = None, *, fallback: ArrayLike = 0.0) -> Floats:
    """The median of the feature's observations in the window; the middle of two for an even number."""
    return _constant(np.ma.median, values, stamps, fallback)


def last(values: ArrayLike, stamps: ArrayLike | None = None, *, fallback: ArrayLike = 0.0) -> Floats:
    """The last observation before, carried forward; ahead of the first one, that, carried backward."""
    cells, _, spare = _checked(values, stamps, fallback)
    before, after = _neighbours(cells)
    found = _at(cells, np.where(before >= 0, before, after))
    return np.where(np.isnan(found), spare, found)


def linear(values: ArrayLike, stamps: ArrayLike | None = None, *, fallback: ArrayLike = 0.0) -> Floats:
    """The straight line between the observations on both sides, in the stamps; flat beyond the first and last.

    Args:
        values: (N, L, K), NaN where missing.
        stamps: (N, L) or (L,), rising along each window as far as anything is observed, in steps of the series; absent
            = 0, 1, 2, …
        fallback: (K,) or one number, for features without an observation in the window.

    Returns:
        float64 (N, L, K), without NaN.

    Raises:
        ArgumentError: shapes that do not fit, infinite values or stamps, stamps that do not rise.
    """
    cells, times, spare = _checked(values, stamps, fallback)
    before, after = _neighbours(cells)
    low, high = np.where(before >= 0, before, after), np.where(after < cells.shape[1], after, before)
    start, stop = _at(cells, low), _at(cells, high)
    rows = np.broadcast_to(times[..., None], cells.shape)
    since, gap = rows - _at(rows, low), _at(rows, high) - _at(rows, low)
    share = np.divide(since, gap, out=np.zeros_like(gap), where=gap > 0)
    found = np.where(np.isnan(cells), start + share * (stop - start), cells)
    return np.where(np.isnan(found), spare, found)


def seasonal(values: ArrayLike, stamps: ArrayLike | None = None, *, period: float, fallback: ArrayLike = 0.0) -> Floats:
    """The observation a period before, else two periods before, …; without one in the past, a period after, ….

    A row counts as a period away if it is the nearest row to there and less than half a step off. Cells whose phase was
    never observed in the window are filled by `linear`.

    Args:
        period: in the unit of the stamps, at least 1.

    The others are those of `linear`.
    """
    cells, times, _ = _checked(values, stamps, fallback)
    if not (math.isfinite(period) and period >= 1):
        raise ArgumentError("period", period, "a number of steps from 1")
    found = linear(values, stamps, fallback=fallback)
    for n, rows in enumerate(times):
        open_cells = np.isnan(cells[n])
        if not open_cells.any():
            continue
        used = np.flatnonzero(~open_cells.all(1))  # rows with an observation: only they can be taken from
        if not len(used):
            continue
        reach = int((rows[open_cells.any(1)].max() - rows[used].min()) // period + 1)
        back = int((rows[used].max() - rows[open_cells.any(1)].min()) // period + 1)
        for lag in (*range(1, reach + 1), *range(-1, -back - 1, -1)):
            goal = rows - lag * period
            right = np.searchsorted(rows[used], goal).clip(0, len(used) - 1)
            left = (right - 1).clip(0)
            nearest = np.where(np.abs(rows[used[left]] - goal) <= np.abs(rows[used[right]] - goal), left, right)
            origin = used[nearest]
            near = np.abs(rows[origin] - goal) < 0.5
            taken = open_cells & near[:, None] & ~np.isnan(cells[n, origin])
            found[n][taken] = cells[n, origin][taken]
            open_cells &= ~taken
    return found


def _constant(average: Callable[..., Any], values: ArrayLike, stamps: ArrayLike | None, fallback: ArrayLike) -> Floats:
    cells, _, spare = _checked(values, stamps, fallback)
    level = np.ma.filled(average(np.ma.masked_invalid(cells), axis=1, keepdims=True), np.nan)
    return np.where(np.isnan(cells), np.where(np.isnan(level), spare, level), cells)


def _neighbours(cells: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the nearest observations at or before each cell (-1: none) and at or after it (L: none)."""
    length = cells.shape[1]
    rows = np.arange(length)[:, None]
    seen = ~np.isnan(cells)
    before = np.maximum.accumulate(np.where(seen, rows, -1), axis=1)
    after = np.minimum.accumulate(np.where(seen, rows, length)[:, ::-1], axis=1)[:, ::-1]
    return before, after


def _at(cells: Floats, rows: NDArray[np.intp]) -> Floats:
    """Cells of these rows; any for a row that is not there, since a feature without observations has NaN alone."""
    return np.take_along_axis(cells, rows.clip(0, max(0, cells.shape[1] - 1)), axis=1)


def _checked(values: ArrayLike, stamps: ArrayLike | None, fallback: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Values (N, L, K), stamps (N, L) and fallback, checked."""
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim != 3 or 0 in cells.shape:
        raise ArgumentError("values", cells, "shape (N, L, K), none of them 0")
    if np.isinf(cells).any():
        raise ArgumentError("values", cells, "finite values, NaN where missing")
    times = np.arange(cells.shape[1], dtype=np.float64) if stamps is None else np.asarray(stamps, dtype=np.float64)
    if times.shape not in (cells.shape[:2], cells.shape[1:2]):
        raise ArgumentError("stamps", times, f"shape {cells.shape[:2]} or {cells.shape[1:2]}")
    times = np.broadcast_to(times, cells.shape[:2])
    spare = np.asarray(fallback, dtype=np.float64)
    if spare.shape not in ((), cells.shape[2:]) or not np.isfinite(spare).all():
        raise ArgumentError("fallback", spare, f"finite, one number or shape {cells.shape[2:]}")
    used = np.isfinite(cells).any(axis=-1)
    until = ((np.arange(cells.shape[1]) + 1) * used).max(axis=1)  # rows as far as anything is observed
    rising = (np.diff(times, axis=1) > 0) | (np.arange(1, cells.shape[1]) >= until[:, None])
    if not (np.isfinite(times).all() and rising.all()):
        raise ArgumentError("stamps", times, "finite stamps that rise along each window")
    return cells, times, spare
