"""When the rows of a series happened, in steps of the series.

Dates become seconds from the first row, divided by the step, the median distance of rows: 0, 1, 2, … where a series is
regular (also by the calendar: months, quarters), 0, 1, 3, … where a row is left out, any real numbers where it is not.
Numbers are taken likewise. Stamps must ascend: rows out of order or twice the same stamp are an error that names the
row, since what they mean only the owner of the data knows.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import DataError

__all__ = ["following", "frequency", "of_index", "span"]

NAMES = frozenset({"date", "time", "datetime", "timestamp", "ds"})
"""Columns so called, in any case, hold the stamps."""
_UNITS = ((604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_MONTH = 365.2425 * 86400 / 12


def of_index(index: pd.Index, label: str) -> tuple[np.ndarray, float]:
    """Stamps of the index of a table: dates, periods or durations; numbers; anything else just counts the rows.

    Args:
        index: of L rows.
        label: of the table in messages.

    Returns:
        (L,) float64 in steps, and the step in seconds, 0 if unknown.

    Raises:
        DataError: naming the first row that is missing, repeated or out of order.
    """
    if isinstance(index, pd.MultiIndex):
        raise DataError(
            f"{label}: an index of {index.nlevels} levels, expected one; unstack it, or give a list of tables"
        )
    if isinstance(index, pd.RangeIndex) and index.step > 0:
        return np.arange(len(index), dtype=np.float64), 0.0
    numbers = pd.api.types.is_numeric_dtype(index.dtype) and not pd.api.types.is_bool_dtype(index.dtype)
    dates = isinstance(index, pd.DatetimeIndex | pd.PeriodIndex | pd.TimedeltaIndex)
    if not (numbers or dates):
        return np.arange(len(index), dtype=np.float64), 0.0
    _check_order(index, label)
    if isinstance(index, pd.PeriodIndex):
        ordinals = index.asi8.astype(np.float64)
        ends = index.to_timestamp()
        return ordinals - ordinals[:1], _mean_step(ends) / max(
            1.0, (ordinals[-1] - ordinals[0]) / max(1, len(index) - 1)
        )
    if numbers:
        return _in_steps(index.to_numpy(np.float64))[0], 0.0
    if isinstance(index, pd.DatetimeIndex) and frequency(index) is not None:
        return np.arange(len(index), dtype=np.float64), _mean_step(index)
    return _in_steps(np.asarray(pd.TimedeltaIndex(index - index[0]).total_seconds(), dtype=np.float64))


def following(index: pd.Index, horizon: int, step: float = 0.0) -> pd.Index:
    """The index of the next `horizon` rows: of its frequency, where it has one, else in its median steps.

    Numbers go on in their median step, and anything else counts on from the number of rows.

    Args:
        index: of L >= 1 rows.
        horizon: rows to come.
        step: of the model in seconds, for a single date or duration, which has none of its own; a day if 0. About so
            many months are months by the calendar.
    """
    if isinstance(index, pd.PeriodIndex):
        return pd.period_range(index[-1] + 1, periods=horizon, freq=index.freq, name=index.name)
    if isinstance(index, pd.DatetimeIndex):
        regular = index.freq or frequency(index)
        if regular is not None:
            return pd.date_range(index[-1], periods=horizon + 1, freq=regular, name=index.name)[1:]
    if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex):
        if len(index) > 1:
            one = pd.Series(index).diff().quantile(interpolation="lower")
        elif (months := _months(step)) and isinstance(index, pd.DatetimeIndex):
            one = pd.DateOffset(months=months)
        else:
            one = pd.Timedelta(seconds=step or 86400.0)
        return pd.Index([index[-1] + one * k for k in range(1, horizon + 1)], name=index.name)
    if pd.api.types.is_integer_dtype(index.dtype) or pd.api.types.is_float_dtype(index.dtype):
        pace = _median(np.diff(index.to_numpy())) if len(index) > 1 else 1
        ahead = index[-1] + pace * np.arange(1, horizon + 1)
        whole = pd.api.types.is_integer_dtype(index.dtype) and (ahead == np.round(ahead)).all()
        return pd.Index(ahead.astype(index.dtype) if whole else ahead, name=index.name)
    return pd.RangeIndex(len(index), len(index) + horizon)


def frequency(index: pd.DatetimeIndex) -> Any:
    """That of a regular index of at least three dates, as pandas takes it; else None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be of another type some day
        return pd.infer_freq(index) if len(index) > 2 else None


def span(index: pd.Index | None, step: float) -> str:
    """From when to when the rows go and how far apart they are, for people; nothing if they have no dates.

    Args:
        index: of L >= 1 rows.
        step: in seconds, 0 if unknown.
    """
    if index is None or not isinstance(index, pd.DatetimeIndex | pd.PeriodIndex):
        return ""
    dates: Any = index.to_timestamp() if isinstance(index, pd.PeriodIndex) else index
    ends = [dates[0], dates[-1]]
    days = [str(one.strftime("%Y-%m-%d")) for one in ends]
    if days[0] == days[1] and len(index) > 1:
        days = [str(one.strftime("%Y-%m-%d %H:%M")) for one in ends]
    return days[0] if len(index) == 1 else f"{days[0]} to {days[1]}" + (f", every {_length(step)}" if step else "")


def _length(step: float) -> str:
    """Seconds in the largest unit that they are whole in: "hour", "15 minutes"."""
    if months := _months(step):
        number, unit = (months // 12, "year") if months % 12 == 0 else (months, "month")
    else:
        size, unit = next((s, u) for s, u in _UNITS if step % s == 0 or u == "second")
        number = step / size
    return unit if number == 1 else f"{number:g} {unit}s"


def _months(step: float) -> int:
    """How many months of the calendar so many seconds are about; 0 if none."""
    months = round(step / _MONTH)
    return months if months and abs(step / (months * _MONTH) - 1) < 0.04 else 0


def _check_order(index: pd.Index, label: str) -> None:
    missing = np.asarray(index.isna())
    if missing.any():
        raise DataError(f"{label}: row {int(missing.argmax()) + 1} has no time stamp")
    if pd.api.types.is_float_dtype(index.dtype) and np.isinf(index.to_numpy(np.float64)).any():
        row = int(np.isinf(index.to_numpy(np.float64)).argmax())
        raise DataError(f"{label}: row {row + 1} has the time stamp {index[row]}")
    if index.is_monotonic_increasing and index.is_unique:
        return
    doubled = np.asarray(index.duplicated())
    if doubled.any():
        row = int(doubled.argmax())
        first = int(np.asarray(index == index[row]).argmax())
        raise DataError(
            f"{label}: rows {first + 1} and {row + 1} have the same time stamp, {index[row]}; keep one of them, or give"
            " a table for each series"
        )
    row = next(k for k in range(1, len(index)) if index[k] < index[k - 1])
    raise DataError(f"{label}: row {row + 1} ({index[row]}) is before row {row} ({index[row - 1]}); sort by time first")


def _median(steps: np.ndarray) -> Any:
    """The lower median, which is one of the steps."""
    return np.sort(steps)[(len(steps) - 1) // 2]


def _mean_step(index: pd.DatetimeIndex) -> float:
    return pd.Timedelta(index[-1] - index[0]).total_seconds() / (len(index) - 1) if len(index) > 1 else 0.0


def _in_steps(position: np.ndarray) -> tuple[np.ndarray, float]:
    """Positions from the first in units of the median distance; whole numbers where they are up to rounding."""
    if len(position) < 2:
        return np.zeros(len(position)), 0.0
    step = float(_median(np.diff(position)))
    stamps = (position - position[0]) / step
    near = np.round(stamps)
    return np.where(np.abs(stamps - near) <= 1e-9 * np.maximum(near, 1), near, stamps), step
