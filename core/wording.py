"""Numbers and tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["counted", "lines"]


def counted(number: int, name: str) -> str:
    """So many of what the name says: "1 row", "2 rows"."""
    return f"{number:,} {name}" + "s" * (number != 1)


def lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A table in columns of even width: the names of the columns, then the rows, of which there is one at least."""
    columns = list(rows[0])
    widths = [max(len(column), *(len(row[column]) for row in rows)) for column in columns]
    shape = [f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])]
    return ["  ".join(shape).format(*each) for each in (columns, *(row.values() for row in rows))]
