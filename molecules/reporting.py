"""Tables of figures for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["lines", "shown", "with_error"]


def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table in columns of even width."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    shape = [f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])]
    return ["  ".join(shape).format(*each) for each in (columns, *(row.values() for row in rows))]


def with_error(found: Mapping[str, Any], percent: bool) -> str:
    """A mean and its standard error."""
    error = found.get("standard error")
    return shown(found.get("mean"), percent) + ("" if error is None else f" ± {shown(error, percent)}")


def shown(value: float | None, percent: bool = False) -> str:
    """A number for people; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if percent else f"{value:.3g}"
