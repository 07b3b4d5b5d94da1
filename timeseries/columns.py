"""Columns of tables: which are features and which hold the stamps, and their cells as numbers and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import ArgumentError, DataError, describe
from .dates import of_values
from .stamps import NAMES

__all__ = ["column", "continued", "floats", "looks_numeric", "refilled", "roles", "stamp_index"]


def roles(
    columns: Sequence[str], keep: Sequence[str], time: str | None, guess: int | None, label: str, *, named: bool
) -> tuple[int | None, list[int]]:
    """Which column holds the stamps, and which the features."""
    if doubled := [name for k, name in enumerate(columns) if name in columns[:k]]:
        raise DataError(f"{label}: two columns are called {doubled[0]!r}")
    for argument, wanted in [("time", [time] if time is not None else []), ("keep", list(keep))]:
        if lost := [name for name in wanted if name not in columns]:
            raise ArgumentError(argument, lost[0], f"a column of {label}: {', '.join(columns)}")
    if time is not None:
        place = columns.index(time)
    else:
        called = (k for k, name in enumerate(columns) if name.lower() in NAMES and name not in keep)
        place = next(called, guess) if named else guess
        place = None if place is not None and columns[place] in keep else place
    features = [k for k, name in enumerate(columns) if k != place and name not in keep]
    if not features:
        raise DataError(f"{label}: no columns of values; it has {', '.join(map(repr, columns)) or 'none'}")
    return place, features


def stamp_index(column: pd.Series, name: str, label: str, day_first: bool | None = None) -> pd.Index:
    index = of_values(column, label, day_first)
    if index is None:
        raise DataError(f"{label}: column {name!r} is to hold the time stamps, and has {column.iloc[0]!r} in row 1")
    return index


def looks_numeric(column: pd.Series) -> bool:
    try:
        pd.to_numeric(column)
    except (ValueError, TypeError):
        return False
    return True


def column(column: pd.Series, label: str) -> np.ndarray:
    """A column of a table as float64 (L,), NaN = missing."""
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        array = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        array = np.array(column.array, dtype=object)
        array[column.isna().to_numpy()] = None
    return floats(array, lambda place: f"{label}, row {place[0] + 1}")


def floats(array: np.ndarray, where: Callable[[tuple[int, ...]], str]) -> np.ndarray:
    """Any array as float64, NaN = missing; what is no number, or infinite, is an error that says where."""
    if array.dtype.kind in "fiub":
        values = array.astype(np.float64)
    else:
        values = np.full(array.shape, np.nan)
        for place in np.ndindex(array.shape):
            cell = array[place]
            if isinstance(cell, int | float | np.number | np.bool_ | Decimal) and not isinstance(
                cell, np.complexfloating
            ):
                values[place] = float(cell)
            elif cell is not None and cell is not pd.NA and cell is not pd.NaT:
                raise DataError(f"{where(place)}: {describe(cell)} is no number; name columns to carry along in keep")
    if (infinite := np.isinf(values)).any():
        place = tuple(int(k) for k in np.argwhere(infinite)[0])
        raise DataError(f"{where(place)}: {values[place]}; values must be finite, or missing")
    return values


def refilled(column: pd.Series, write: np.ndarray, new: np.ndarray) -> Any:
    """The array of a column with cells written, of the same dtype."""
    made = column.array.copy()
    if pd.api.types.is_bool_dtype(column.dtype):
        made[write] = new >= 0.5
    else:
        whole = pd.api.types.is_integer_dtype(column.dtype)
        # Brought to the type here: pandas refuses numbers that lose digits in it.
        floating: Any = getattr(column.dtype, "numpy_dtype", column.dtype)
        kind: Any = np.int64 if whole else floating if pd.api.types.is_float_dtype(column.dtype) else np.float64
        made[write] = (np.round(new) if whole else new).astype(kind)
    return made


def continued(column: pd.Series, new: np.ndarray, index: pd.Index) -> pd.Series:
    """New values as a column of the same dtype: rounded where it is of integers."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return pd.Series(new >= 0.5, index).astype(column.dtype)
    whole = pd.api.types.is_integer_dtype(column.dtype)
    return pd.Series(np.round(new) if whole else new, index).astype(column.dtype)
