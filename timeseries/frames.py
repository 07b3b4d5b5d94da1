"""Series in and out: arrays, tables and files are read, checked, and given back as they came with their gaps filled.

What is given back has exactly the rows, columns, index, order and dtypes that came, and the observed cells are the
same bits, or in CSV the same text; only missing cells are written. (A filled cell of an integer column is rounded, for
the column must stay one.) Missing is NaN, None, NA or NaT; in CSV an empty cell or one of `csv_text.MISSING`.

Errors name the column and the row, which counts from 1 without the heading. A string in a column of numbers, an
infinity, a stamp that is missing, repeated or out of order (`stamps`), a column name that occurs twice, a table without
rows or columns, are errors. One single row is a series of length 1; rows, windows or columns without any observed cell
are read, since an existing model can fill them. Columns that are no numbers can be kept, untouched, by name.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core.errors import ArgumentError, DataError, describe
from .checks import TABLES
from .columns import column, continued, floats, looks_numeric, refilled, roles, stamp_index
from .csv_text import Grid, forms, numbers, parse, print_grid, with_points
from .dates import of_values, texts
from .reading import Extra, Reading
from .series import Series
from .stamps import NAMES, following, of_index

__all__ = ["Reading", "Series", "read", "read_file"]


def read(
    data: Any,
    *,
    keep: Sequence[str] = (),
    time: str | None = None,
    day_first: bool | None = None,
    label: str = "X",
) -> Reading:
    """Series from memory.

    Args:
        data: an array or tensor (L, K) or (N, L, K); a DataFrame, or a Series of pandas, its index the stamps (else a
            column of dates, see `time`); or a list of such, which need not be equally long.
        keep: columns of tables that are carried through and are no features.
        time: the column of a table that holds the stamps; default: the first that is called date, time, datetime,
            timestamp or ds, or is of dates, unless the index is of dates.
        day_first: whether dates in text have the day before the month; None to see it from them, see `dates`.
        label: of the data in messages.

    Raises:
        DataError: see the module. ArgumentError: what this cannot be, or columns that are not there.
    """
    if isinstance(data, list | tuple):
        if not data:
            raise DataError(f"{label}: an empty list, expected at least one series")
        if all(isinstance(one, np.ndarray | Tensor | pd.DataFrame | pd.Series) for one in data):
            parts = [
                read(one, keep=keep, time=time, day_first=day_first, label=f"{label}[{i}]")
                for i, one in enumerate(data)
            ]
            return _joined(parts, type(data), label)
        data = _rectangular(data, label)
    if isinstance(data, pd.DataFrame):
        return _table(data, keep, time, day_first, label)
    if isinstance(data, pd.Series):
        inner = _table(data.to_frame(name="value" if data.name is None else data.name), (), None, None, label)

        def back(filled: Sequence[np.ndarray], extra: Extra, ahead: Sequence[np.ndarray], step: float) -> Any:
            made = inner.written(filled, extra, ahead, step)
            return made if extra else made.iloc[:, 0].rename(data.name)

        return Reading(inner.series, inner.index, back)
    if isinstance(data, np.ndarray | Tensor):
        return _array(data, label)
    raise ArgumentError(label, data, "an array (L, K) or (N, L, K), a DataFrame, or a list of them")


def read_file(
    path: str | os.PathLike[str],
    *,
    keep: Sequence[str] = (),
    time: str | None = None,
    day_first: bool | None = None,
) -> Reading:
    """A series from a CSV (`.csv`, `.tsv`; UTF-8; comma, semicolon, tab or bar; a heading) or parquet file.

    In CSV a first column without a name, as pandas writes its index, is the index: stamps, if of dates or numbers.
    `Reading.written` gives the bytes of a file of the same kind; a CSV's differ from it in missing cells only.
    Arguments as of `read`.

    Raises:
        DataError: naming the file, and the column and row at fault. ArgumentError: `keep` or `time` is not there.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(TABLES):
        raise DataError(f"{path}: expected one of {', '.join(TABLES)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not data.strip():
        raise DataError(f"{path}: empty")
    if name.endswith((".csv", ".tsv")):
        return _text(parse(data, str(path), tab=name.endswith(".tsv")), keep, time, day_first, str(path))
    try:
        table = pd.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise DataError(f"{path}: parquet needs the library pyarrow: pip install 'polydiff[timeseries]'") from error
    except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are these
        raise DataError(f"{path}: cannot be read as parquet ({error})") from error
    inner = _table(table, keep, time, day_first, str(path))

    def back(filled: Sequence[np.ndarray], extra: Extra, ahead: Sequence[np.ndarray], step: float) -> bytes:
        buffer = io.BytesIO()
        inner.written(filled, extra, ahead, step).to_parquet(buffer)
        return buffer.getvalue()

    return Reading(inner.series, inner.index, back)


def _joined(parts: Sequence[Reading], kind: type, label: str) -> Reading:
    for i, part in enumerate(parts):
        if part.names != parts[0].names:
            raise DataError(f"{label}[{i}] has columns {part.names}, {label}[0] has {parts[0].names}")
    sizes = np.cumsum([len(part.series) for part in parts])[:-1].tolist()

    def back(filled: Sequence[np.ndarray], extra: Extra, ahead: Sequence[np.ndarray], step: float) -> Any:
        starts, stops = [0, *sizes], [*sizes, len(filled)]
        return kind(
            part.written(
                filled[start:stop], {key: values[start:stop] for key, values in extra.items()}, ahead[start:stop], step
            )
            for part, start, stop in zip(parts, starts, stops, strict=True)
        )

    series = tuple(one for part in parts for one in part.series)
    return Reading(series, tuple(index for part in parts for index in part.index), back)


def _rectangular(data: Sequence[Any], label: str) -> np.ndarray:
    """Nested lists of numbers as an array."""
    try:
        return np.array(data, dtype=None if _has_text(data) else np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{label}: nested lists of different lengths or of no numbers ({error})") from error


def _has_text(data: Any) -> bool:
    return any(_has_text(one) for one in data) if isinstance(data, list | tuple) else isinstance(data, str)


def _array(data: np.ndarray | Tensor, label: str) -> Reading:
    array = data.detach().cpu().double().numpy() if isinstance(data, Tensor) else np.asarray(data)
    if isinstance(data, np.ma.MaskedArray):
        raise ArgumentError(label, "a masked array", "NaN where values are missing: X.filled(numpy.nan)")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{label}: got {describe(data)}, expected (L, K) or (N, L, K), all at least 1")
    values = floats(array, lambda place: f"{label}[{', '.join(map(str, place))}]")
    names = tuple(f"feature {k}" for k in range(array.shape[-1]))
    pieces = values if values.ndim == 3 else values[None]
    stamps = np.arange(pieces.shape[1], dtype=np.float64)
    labels = [f"{label}[{i}]" for i in range(len(pieces))] if values.ndim == 3 else [label]
    series = tuple(Series(one, stamps, names, 0.0, own) for one, own in zip(pieces, labels, strict=True))
    missing = np.isnan(values)

    def back(
        filled: Sequence[np.ndarray], extra: Extra, ahead: Sequence[np.ndarray], step: float
    ) -> np.ndarray | Tensor:
        if extra:
            raise ArgumentError("extra", list(extra), "none: an array has no names for more columns")
        if len({len(one) for one in ahead}) > 1:
            raise ArgumentError(
                "ahead", [one.shape for one in ahead[:4]], "equally many rows for all series of an array"
            )
        new = np.stack(filled).reshape(values.shape)
        later = np.stack(ahead).reshape(*values.shape[:-2], -1, values.shape[-1])
        if array.dtype.kind in "iub":
            later = np.round(later)
        write = missing & ~np.isnan(new)
        if isinstance(data, Tensor):
            made = torch.clone(data.detach())
            made[torch.from_numpy(write)] = torch.from_numpy(new[write]).to(made)
            return torch.cat([made, torch.from_numpy(later).to(made)], -2)
        made = np.array(data, copy=True)
        made[write] = new[write].astype(made.dtype)
        return np.concatenate([made, later.astype(made.dtype)], -2)

    return Reading(series, (None,) * len(series), back)


def _table(table: pd.DataFrame, keep: Sequence[str], time: str | None, day_first: bool | None, label: str) -> Reading:
    columns = [str(name) for name in table.columns]
    dated = isinstance(table.index, pd.DatetimeIndex | pd.PeriodIndex | pd.TimedeltaIndex)
    guess = None if dated else next(
        (k for k, name in enumerate(columns) if pd.api.types.is_datetime64_any_dtype(table.dtypes.iloc[k])), None
    )  # fmt: skip
    place, features = roles(columns, keep, time, guess, label, named=not dated)
    if not len(table):
        raise DataError(f"{label}: no rows")
    index = table.index if place is None else stamp_index(table.iloc[:, place], columns[place], label, day_first)
    stamps, step = of_index(index, label)
    values = np.stack([column(table.iloc[:, k], f"{label}: column {columns[k]!r}") for k in features], 1)
    names = tuple(columns[k] for k in features)

    def back(filled: Sequence[np.ndarray], extra: Extra, ahead: Sequence[np.ndarray], pace: float) -> pd.DataFrame:
        made, (new,), (later,) = table.copy(), filled, ahead
        for j, k in enumerate(features):
            write = np.isnan(values[:, j]) & ~np.isnan(new[:, j])
            if write.any():
                made.isetitem(k, refilled(table.iloc[:, k], write, new[write, j]))
        if len(later):
            rows = following(table.index, len(later), pace)
            own = {table.columns[k]: continued(table.iloc[:, k], later[:, j], rows) for j, k in enumerate(features)}
            if place is not None:
                stamps_ahead = following(index, len(later), pace)
                as_text = pd.api.types.is_string_dtype(table.iloc[:, place].dtype)
                told = texts(stamps_ahead, index, table.iloc[:, place].tolist(), day_first) if as_text else stamps_ahead
                own[table.columns[place]] = pd.Series(told, rows)
            made = pd.concat([made, pd.DataFrame(own, index=rows)])
        more = {f"{name}@{key}": one[:, j] for key, (one,) in extra.items() for j, name in enumerate(names)}
        return pd.concat([made, pd.DataFrame(more, index=made.index)], axis=1) if more else made

    return Reading((Series(values, stamps, names, step, label),), (index,), back)


def _text(grid: Grid, keep: Sequence[str], time: str | None, day_first: bool | None, label: str) -> Reading:
    """A CSV, whose cells stay text until they are numbers."""
    columns = [name or ("" if k == 0 else f"column {k + 1}") for k, name in enumerate(grid.names)]
    first = 0 if not columns[0] and len(columns) > 1 else None
    if first is None and time is None and not any(name.lower() in NAMES for name in columns):
        # A first column that is no number but a date throughout is the stamps, whatever its name.
        head = pd.Series(with_points(grid.column(0), grid.separator), dtype=object)
        if columns[0] not in keep and len(columns) > 1 and not looks_numeric(head):
            first = 0 if isinstance(of_values(head, label, day_first), pd.DatetimeIndex) else None
    place, features = roles(columns, keep, time, first, label, named=True)
    index: pd.Index = pd.RangeIndex(len(grid.rows))
    if place is not None:
        column = pd.Series(
            [cell if cell.strip() else None for cell in with_points(grid.column(place), grid.separator)], dtype=object
        )
        unnamed = place == 0 and not columns[0]
        found = (
            of_values(column, label, day_first) if unnamed else stamp_index(column, columns[place], label, day_first)
        )
        index = index if found is None else found
    stamps, step = of_index(index, label)
    cells_of = [grid.column(k) for k in features]
    form = dict(zip(features, forms(cells_of, grid.separator), strict=True))
    values = np.stack(
        [numbers(own, f"{label}: column {columns[k]!r}", form[k]) for k, own in zip(features, cells_of, strict=True)], 1
    )
    names = tuple(columns[k] for k in features)

    def back(filled: Sequence[np.ndarray], extra: Extra, ahead: Sequence[np.ndarray], pace: float) -> bytes:
        write = np.isnan(values) & ~np.isnan(filled[0])
        new = [(k, write[:, j], filled[0][:, j]) for j, k in enumerate(features)]
        more = [
            (f"{name}@{key}", k, np.isnan(values[:, j]), one[:, j])
            for key, (one,) in extra.items()
            for j, (name, k) in enumerate(zip(names, features, strict=True))
        ]
        cells = [["" for _ in columns] for _ in ahead[0]]
        told = [""] * len(cells)
        if place is not None:
            told = texts(following(index, len(cells), pace), index, grid.column(place), day_first)
            if with_points(grid.column(place), grid.separator) != grid.column(place):
                told = [stamp.replace(".", ",") for stamp in told]
        quote = '"' if place is not None and grid.rows[-1][place].strip().startswith('"') else ""
        for row, values_ahead, stamp in zip(cells, ahead[0].tolist(), told, strict=True):
            for k, value in zip(features, values_ahead, strict=True):
                row[k] = form[k].text(value)
            if place is not None:
                row[place] = f"{quote}{stamp}{quote}"
        return print_grid(grid, new, more, form, cells)

    return Reading((Series(values, stamps, names, step, label),), (index,), back)
