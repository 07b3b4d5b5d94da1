"""Rows after the last one of a file: a forecast in the form of the table that it goes on from.

CSV stays text: the rows that came are not touched, new stamps are written as the old ones are. Parquet goes through a
table, whose types stay.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..core.errors import ArgumentError
from .csv_text import parse, print_grid
from .stamps import following

__all__ = ["appended", "next_index"]

FORMS = (
    "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S.%f", "%Y-%m", "%Y/%m/%d", "%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%m/%d/%Y", "%m/%d/%Y %H:%M",
    "%d.%m.%Y", "%d.%m.%Y %H:%M", "%d/%m/%Y", "%d/%m/%Y %H:%M", "%Y%m%d", "%Y",
)  # fmt: skip
"""Of dates in text; the first that gives back both ends of a column is taken."""


def next_index(index: pd.Index | None, length: int, horizon: int) -> pd.Index:
    """The index of the next rows; it counts on where there is none."""
    return pd.RangeIndex(length, length + horizon) if index is None else following(index, horizon)


def appended(path: Path, content: bytes, index: pd.Index, rows: int, values: Mapping[str, np.ndarray]) -> bytes:
    """The file with rows after its last one.

    Args:
        path: tells the kind of the file by its ending.
        content: its bytes.
        index: stamps of the rows that are there and, after them, of the new ones, (L + horizon,).
        rows: L.
        values: column -> (horizon,) float64; columns that are not named are left empty, but for that of the stamps.

    Raises:
        ArgumentError: stamps of a form that cannot be continued.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        return _text(path, content, index, rows, values)
    return _table(content, index, rows, values)


def _text(path: Path, content: bytes, index: pd.Index, rows: int, values: Mapping[str, np.ndarray]) -> bytes:
    grid = parse(content, str(path), tab=path.suffix.lower() == ".tsv")
    names = [name or ("" if k == 0 else f"column {k + 1}") for k, name in enumerate(grid.names)]
    others = [k for k, name in enumerate(names) if name not in values]
    place = next((k for k in others if _tells(grid.column(k), index[:rows])), None)
    stamps = None if place is None else _written(grid.column(place), index[:rows], index[rows:])
    new = []
    for i in range(len(index) - rows):
        cells = [repr(float(values[name][i])) if name in values else "" for name in names]
        if stamps is not None and place is not None:
            cells[place] = stamps[i]
        new.append(cells)
    end = grid.ends[0]
    ends = [*grid.ends[:-1], grid.ends[-1] or end, *[end] * (len(new) - 1), grid.ends[-1]] if new else grid.ends
    return print_grid(replace(grid, rows=[*grid.rows, *new], ends=ends), [], [])


def _tells(column: list[str], index: pd.Index) -> bool:
    """Whether a column of text is where the stamps come from."""
    try:
        return _written(column, index, index[:0]) is not None
    except ArgumentError:
        return False


def _written(column: list[str], index: pd.Index, new: pd.Index) -> list[str]:
    """New stamps in the form of a column's."""
    ends = [(column[0].strip(), index[0]), (column[-1].strip(), index[-1])]
    if isinstance(index, pd.DatetimeIndex):
        for form in FORMS:
            if all(stamp.strftime(form) == text for text, stamp in ends):
                return [stamp.strftime(form) for stamp in new]
        for text, _ in ends:  # any other form that is one of dates goes on as ISO 8601
            try:
                if pd.to_datetime(text) not in (index[0], index[-1]):
                    raise ArgumentError("stamps", text, "the stamps of the table")
            except (ValueError, TypeError) as error:
                raise ArgumentError("stamps", text, "dates") from error
        return [stamp.isoformat(sep=" ") for stamp in new]
    try:
        same = all(float(text) == float(stamp) for text, stamp in ends)
    except (ValueError, TypeError) as error:
        raise ArgumentError("stamps", column[0], "dates or numbers, to go on from") from error
    if not same:
        raise ArgumentError("stamps", column[0], "the stamps of the table")
    whole = all(text.lstrip("+-").isdigit() for text, _ in ends) and all(float(stamp).is_integer() for stamp in new)
    return [str(int(stamp)) if whole else repr(float(stamp)) for stamp in new]


def _table(content: bytes, index: pd.Index, rows: int, values: Mapping[str, np.ndarray]) -> bytes:
    table = pd.read_parquet(io.BytesIO(content))
    ahead = index[rows:]
    made: dict[str, object] = {}
    of_index = table.index.equals(index[:rows]) and not isinstance(table.index, pd.RangeIndex)
    for name in table.columns:
        column = table[name]
        if str(name) in values:
            new = values[str(name)]
            made[name] = np.round(new) if pd.api.types.is_integer_dtype(column.dtype) else new
        elif not of_index and len(column) and pd.Index(column).equals(pd.Index(index[:rows])):
            made[name] = ahead
        else:
            made[name] = pd.array([pd.NA] * len(ahead), dtype="object")
    below = pd.DataFrame(made, index=ahead if of_index else pd.RangeIndex(rows, rows + len(ahead)))
    for name in table.columns:
        if str(name) in values or bool(np.all(below[name].notna())):
            below[name] = below[name].astype(table[name].dtype)
    whole = pd.concat([table, below])
    whole.index.name = table.index.name
    buffer = io.BytesIO()
    whole.to_parquet(buffer)
    return buffer.getvalue()
