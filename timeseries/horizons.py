"""Horizons, variables and levels of forecasts as sktime has them, as numbers of rows, tables and lists."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import ArgumentError
from .scoring import check_level

__all__ = ["following", "joined", "levels_of", "names_of", "steps_of", "timed"]


def joined(y: Any, X: Any) -> pd.DataFrame:
    """Variables and covariates side by side, checked, with names that are texts."""
    if not isinstance(y, pd.Series | pd.DataFrame) or len(y) == 0 or 0 in y.shape:
        raise ArgumentError("y", y, "a Series or DataFrame with rows and columns")
    table = y.to_frame() if isinstance(y, pd.Series) else y
    following(y.index, 1)
    names = [str(name) for name in names_of(y)]
    rows = table.set_axis(names, axis=1)
    if X is not None:
        if not isinstance(X, pd.DataFrame) or not X.index.equals(y.index):
            raise ArgumentError("X", X, "a DataFrame with the index of y")
        rows = pd.concat([rows, X.set_axis([str(name) for name in X.columns], axis=1)], axis=1)
    if not rows.columns.is_unique:
        raise ArgumentError("X" if X is not None else "y", list(rows.columns), "columns of different names")
    return rows.astype(np.float64)


def names_of(table: Any) -> list[Any]:
    """Names of variables as sktime's columns have them."""
    if isinstance(table, pd.Series):
        return [0 if table.name is None else table.name]
    return list(table.columns)


def timed(rows: pd.DataFrame, pipeline: Any) -> pd.DataFrame:
    """Rows with dates if the pipeline was trained on dates, else numbered, so that months and the like are one step."""
    dated = getattr(getattr(pipeline, "config", None), "step", 0)
    if not dated:
        return rows.reset_index(drop=True)
    return rows.to_timestamp() if isinstance(rows.index, pd.PeriodIndex) else rows


def following(index: pd.Index, count: int) -> pd.Index:
    """The next times after an index of equal steps.

    Raises:
        ArgumentError: an index of another kind, or steps that are not equal.
    """
    if isinstance(index, pd.PeriodIndex):
        if (index == pd.period_range(index[0], periods=len(index), freq=index.freq)).all():
            return pd.period_range(index[-1], periods=count + 1, freq=index.freq, name=index.name)[1:]
    elif isinstance(index, pd.DatetimeIndex):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a change of type that makes no difference to `date_range`
            frequency = index.freq or (pd.infer_freq(index) if len(index) > 2 else None)
        if frequency is not None and index.is_monotonic_increasing:
            return pd.date_range(index[-1], periods=count + 1, freq=frequency, name=index.name)[1:]
    elif pd.api.types.is_integer_dtype(index.dtype):
        steps = np.unique(np.diff(index.to_numpy())) if len(index) > 1 else np.array([1])
        if len(steps) == 1 and steps[0] > 0:
            return pd.Index(index[-1] + steps[0] * np.arange(1, count + 1), name=index.name)
    raise ArgumentError("y", index[:3].tolist(), "an index of integers, dates or periods that rises in equal steps")


def steps_of(fh: Any, index: pd.Index) -> np.ndarray:
    """A horizon as steps after the end of an index, int64 (H,), in its order."""
    if hasattr(fh, "to_relative") and hasattr(fh, "to_pandas"):
        fh = fh.to_relative(index[-1]).to_pandas()
    if isinstance(fh, pd.Timestamp | pd.Period):
        fh = pd.Index([fh])
    if isinstance(fh, pd.DatetimeIndex | pd.PeriodIndex):
        if len(fh) and type(fh) is type(index):
            count = 1
            while (ahead := following(index, count))[-1] < fh.max() and count < 1 << 24:
                count *= 2
            steps = ahead.get_indexer(fh) + 1
        else:
            steps = np.zeros(0)
    else:
        steps = np.atleast_1d(np.asarray(list(fh) if isinstance(fh, range) else fh))
    whole = steps.ndim == 1 and steps.size > 0 and steps.dtype.kind in "iu" and (steps >= 1).all()
    if not whole or len(np.unique(steps)) < len(steps):
        raise ArgumentError("fh", fh, "whole steps >= 1 after the last row, or times on the grid of y, none twice")
    return steps.astype(np.int64)


def levels_of(argument: str, levels: float | Sequence[float]) -> list[float]:
    found = [float(level) for level in np.atleast_1d(np.asarray(levels, dtype=np.float64))]
    if not found:
        raise ArgumentError(argument, levels, "one level or more")
    for level in found:
        check_level(argument, level)
    return found
