"""Columns of dates, as text or not, read as an index, and written on in the form in which they came.

Which of day and month comes first, a column tells as a whole and never cell by cell: dots mean the day, a number above
12 is a day, and of two readings that are left that one holds whose rows are more evenly apart. What that leaves open
(1/2, 1/3, 1/4: days of January, or the firsts of three months) only the owner of the data knows, and is asked.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format

from ..core.errors import DataError
from .stamps import frequency

__all__ = ["of_values", "texts"]

_DATE = re.compile(r"\s*(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)", re.DOTALL)
"""First, mark, second, year, and the time of day: dates of which the form does not tell which is the day."""
_CENTURY = 69
"""Two digits of a year from here on are of the last century, as POSIX has it."""


def of_values(values: pd.Series, label: str, day_first: bool | None = None) -> pd.Index | None:
    """A column as an index of dates or numbers, if it is one.

    Args:
        values: a column. A missing stamp stays missing, so that `stamps.of_index` names its row.
        label: of the table in messages.
        day_first: whether the day comes before the month; None to see it from the column.

    Raises:
        DataError: the order of day and month cannot be told, or is not the one that was asked for.
    """
    if isinstance(values.dtype, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(values.dtype):
        return pd.Index(values)
    try:
        return pd.Index(pd.to_numeric(values)).astype("float64")
    except (ValueError, TypeError):
        pass
    # The parser of free forms takes the names of months and days, and single letters, for dates.
    if any(isinstance(cell, str) and cell.strip() and not re.search(r"\d", cell) for cell in values):
        return None
    known = values.dropna()
    found = [_DATE.fullmatch(cell) if isinstance(cell, str) else None for cell in known]
    matches = [match for match in found if match is not None]
    if len(matches) < len(known):
        return _parsed(values, day_first)
    return _in_order(values, matches, label, day_first)


def texts(ahead: pd.Index, known: pd.Index, written: Sequence[str], day_first: bool | None = None) -> list[str]:
    """Stamps as text in the form in which others were written, as far as that can be told; else dates by ISO 8601.

    Args:
        ahead: to write.
        known: an index of at least one row.
        written: its texts.
        day_first: as these were read.
    """
    if not isinstance(ahead, pd.DatetimeIndex) or not isinstance(known, pd.DatetimeIndex):
        whole = re.fullmatch(r"\s*[-+]?\d+\s*", written[-1]) is not None
        return [str(int(one)) if whole and float(one).is_integer() else str(one) for one in ahead]
    matches = [_DATE.fullmatch(text.rstrip()) for text in written]
    if all(matches):
        return _ordered(ahead, known, [match for match in matches if match is not None], day_first)
    ends = _ends(known, written)
    form = _form(ends[-1][1], ends) or _form(ends[0][1], ends)
    return [one.isoformat(sep=" ") if form is None else one.strftime(form) for one in ahead]


def _in_order(
    values: pd.Series, matches: Sequence[re.Match[str]], label: str, day_first: bool | None
) -> pd.DatetimeIndex | None:
    if day_first is None and all(match[2] == "." for match in matches):
        day_first = True
    month, day = (_parsed(_iso(values, matches, order)) for order in (False, True))
    example = matches[0][0].strip()
    if day_first is not None:
        wanted, other = (day, month) if day_first else (month, day)
        if wanted is None and other is not None:
            order = "first" if day_first else "second"
            raise DataError(f"{label}: dates such as {example!r} cannot all have the day {order}; see day_first")
        return wanted
    if month is None or day is None:
        return day if month is None else month
    uneven = [_unevenness(one) for one in (month, day)]
    if uneven[0] == uneven[1] < np.inf and not month.equals(day):
        raise DataError(
            f"{label}: dates such as {example!r} may have the month or the day first; say day_first=False or "
            "day_first=True (--day-first False or True)"
        )
    return month if uneven[0] <= uneven[1] else day


def _iso(values: pd.Series, matches: Sequence[re.Match[str]], day_first: bool) -> pd.Series:
    """The column by ISO 8601, as far as the date goes."""
    made, told = values.astype(object), []
    for first, _, second, year, rest in (match.groups() for match in matches):
        day, month = (first, second) if day_first else (second, first)
        whole = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= _CENTURY else 2000)
        told.append(f"{whole:04d}-{int(month):02d}-{int(day):02d}{rest.rstrip()}")
    made[values.notna()] = told
    return made


def _parsed(values: pd.Series, day_first: bool | None = False) -> pd.DatetimeIndex | None:
    """Dates by ISO 8601, else in any one form; None if they are no dates."""
    orders = (False, True) if day_first is None else (day_first,)
    for form, dayfirst, utc in (
        ("ISO8601", False, False),
        *((None, order, False) for order in orders),
        (None, orders[0], True),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that the form cannot be guessed
                return pd.DatetimeIndex(pd.to_datetime(values, format=form, dayfirst=dayfirst, utc=utc))
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _unevenness(index: pd.DatetimeIndex) -> float:
    """The largest distance of rows by the smallest, in months where all have one day and time; infinite if unsorted."""
    known = pd.DatetimeIndex(index.dropna())
    steps = np.diff(known.asi8)
    if not len(steps) or steps.min() <= 0:
        return np.inf if len(steps) else 1.0
    if frequency(known) is not None:
        return 1.0
    if len(set(zip(known.day, known.time, strict=True))) == 1:
        steps = np.diff(12 * known.year + known.month)
    return float(steps.max() / steps.min())


def _ordered(
    ahead: pd.DatetimeIndex, known: pd.DatetimeIndex, matches: Sequence[re.Match[str]], day_first: bool | None
) -> list[str]:
    """Dates with the day or the month first, as the known ones; their digits and time of day as there."""
    fits = {order: all(
        (int(match[1]), int(match[3])) == ((one.day, one.month) if order else (one.month, one.day))
        for one, match in zip(known, matches, strict=True)
    ) for order in (False, True)}  # fmt: skip
    mark = matches[-1][2]
    order = fits[True] if fits[True] != fits[False] else mark == "." if day_first is None else day_first
    widths = [min(len(match[k]) for match in matches) for k in (1, 3, 4)]
    ends = _ends(known, ["2000-01-01" + match[5] for match in matches])
    form = _form(ends[-1][1], [(one.replace(year=2000, month=1, day=1), text) for one, text in ends])
    clock = "" if not matches[-1][5] else " %H:%M:%S" if form is None else form[len("%Y-%m-%d") :]
    made = []
    for one in ahead:
        pair = (one.day, one.month) if order else (one.month, one.day)
        date = mark.join(f"{number:0{width}d}" for number, width in zip(pair, widths, strict=False))
        made.append(f"{date}{mark}{one.year % 10 ** widths[2]:0{widths[2]}d}{one.strftime(clock) if clock else ''}")
    return made


def _ends(known: pd.DatetimeIndex, written: Sequence[str]) -> list[tuple[pd.Timestamp, str]]:
    return list(zip(known[[0, -1]], (written[0].strip(), written[-1].strip()), strict=True))


def _form(text: str, ends: Sequence[tuple[pd.Timestamp, str]]) -> str | None:
    """The form of a text, if both ends are written in it."""
    for dayfirst in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the day is first: both are tried
            form = guess_datetime_format(text, dayfirst=dayfirst)
        if form is not None and all(one.strftime(form) == own for one, own in ends):
            return form
    return None
