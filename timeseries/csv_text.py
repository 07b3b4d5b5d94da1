"""CSV whose text is kept, so that a file comes back byte for byte but for the cells that were written.

The form is RFC 4180's, with any of four separators: cells may be quoted, quotes in them doubled, and then hold
separators and line ends. Numbers are written with the fewest digits that give back the same float64.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import DataError

__all__ = ["MISSING", "Grid", "numbers", "parse", "print_grid"]

MISSING = frozenset(
    {"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "<na>", "nat", "?", "-"}
)  # fmt: skip
"""Cells that say that a number is missing, in any case and between any blanks."""

_SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Grid:
    """A CSV in pieces, which joined are the file.

    Attributes:
        head: byte order mark and blank lines before the heading.
        heading: cells as written.
        rows: cells of each row as written.
        ends: what ended the heading and each row: a line end, or nothing at the end of the file.
        tail: blank lines at the end.
        separator: of cells.
    """

    head: str
    heading: list[str]
    rows: list[list[str]]
    ends: list[str]
    tail: str
    separator: str

    @property
    def names(self) -> list[str]:
        """Of the columns, without quotes and outer blanks."""
        return [_plain(cell).strip() for cell in self.heading]

    def column(self, k: int) -> list[str]:
        """The cells of a column without quotes."""
        return [_plain(row[k]) for row in self.rows]


def parse(data: bytes, label: str, *, tab: bool = False) -> Grid:
    """Take a file apart.

    Args:
        data: UTF-8, with or without a byte order mark.
        label: of the file in messages.
        tab: the separator is a tab; else the one that the heading has most of.

    Raises:
        DataError: no text, no heading, or a row of another length (it is named).
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{label}: byte {data[error.start]:#04x} at position {error.start} is not UTF-8") from error
    if "\0" in text:
        raise DataError(f"{label}: has zero bytes, so it is no text")
    body = text.lstrip("\ufeff\r\n")
    head = text[: len(text) - len(body)]
    stripped = body.rstrip("\r\n")
    # A column alone may end in empty cells, which look like blank lines: only the last line end is then the file's.
    first = re.match(r'(?:"(?:[^"]|"")*"|[^\r\n"])*', stripped)
    line = first[0] if first else ""
    counts = Counter(re.sub(r'"(?:[^"]|"")*"', "", line))
    separator = "\t" if tab else max(_SEPARATORS, key=lambda one: counts[one])
    tail = ""
    if counts[separator]:
        end = re.match(r"\r\n|\n|\r", body[len(stripped) :])
        kept = len(stripped) + (len(end[0]) if end else 0)
        body, tail = body[:kept], body[kept:]
    records, ends = _split(body, separator)
    if not records:
        raise DataError(f"{label}: empty")
    heading, rows = records[0], records[1:]
    names = [_plain(cell).strip() for cell in heading]
    if all(_is_number(name) for name in names) and names != [str(k) for k in range(len(names))]:
        raise DataError(f"{label}: the first line is {', '.join(names[:5])}, expected the names of the columns")
    if not rows:
        raise DataError(f"{label}: a heading and no rows")
    if odd := next((k for k, row in enumerate(rows) if len(row) != len(heading)), None):
        raise DataError(f"{label}: row {odd + 1} has {len(rows[odd])} cells, the heading has {len(heading)}")
    if len(rows[0]) != len(heading):
        raise DataError(f"{label}: row 1 has {len(rows[0])} cells, the heading has {len(heading)}")
    return Grid(head, heading, rows, ends, tail, separator)


def numbers(cells: Sequence[str], label: str) -> np.ndarray:
    """Cells as float64 (L,), NaN = missing.

    Raises:
        DataError: a cell that is neither a finite number nor missing; its row is named.
    """
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        try:
            values[row] = float(cell)
        except ValueError:
            values[row] = np.nan if cell.strip().lower() in MISSING else np.inf
        if "_" in cell or values[row] in (np.inf, -np.inf):
            if _is_number(cell):
                raise DataError(f"{label}, row {row + 1}: {cell.strip()[:40]}; values must be finite, or missing")
            comma = "; decimals need a point" if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", cell) else ""
            raise DataError(
                f"{label}, row {row + 1}: {cell[:40]!r} is no number{comma}; name columns to carry along in keep"
            )
    return values


def print_grid(
    grid: Grid,
    written: Sequence[tuple[int, np.ndarray, np.ndarray]],
    more: Sequence[tuple[str, int, np.ndarray, np.ndarray]],
    ahead: Sequence[Sequence[str]] = (),
) -> bytes:
    """Put a file together again.

    Args:
        grid: as it was read.
        written: (column, which rows, values): cells to write.
        more: (name, column it is about, which rows are missing there, values): columns after the last; rows that are
            not missing repeat that column's text.
        ahead: cells of rows after the last, as many as in the heading.
    """
    rows = [list(row) for row in grid.rows]
    for column, which, values in written:
        for row in np.flatnonzero(which).tolist():
            rows[row][column] = repr(float(values[row]))
    heading = list(grid.heading)
    last = len(rows)
    rows += [list(cells) for cells in ahead]
    for name, column, missing, values in more:
        heading.append(_quoted(name, grid.separator))
        for row, value in enumerate(values.tolist()):
            text = "" if np.isnan(value) else repr(value)
            rows[row].append(text if row >= last or missing[row] else grid.rows[row][column])
    ends = list(grid.ends)
    if ahead:
        ends = [*ends[:-1], ends[0], *[ends[0]] * (len(ahead) - 1), ends[-1]]
    lines = [grid.separator.join(cells) + end for cells, end in zip([heading, *rows], ends, strict=True)]
    return (grid.head + "".join(lines) + grid.tail).encode("utf-8")


def _split(text: str, separator: str) -> tuple[list[list[str]], list[str]]:
    """Records of cells as written, and the line end of each."""
    records: list[list[str]] = []
    ends: list[str] = []
    if '"' not in text:
        for line in text.splitlines(keepends=True) if not re.search(r"[\v\f\x1c-\x1e\x85\u2028\u2029]", text) else (
            re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z", text)
        ):  # fmt: skip
            plain = line.rstrip("\r\n")
            records.append(plain.split(separator))
            ends.append(line[len(plain) :])
        return records, ends
    mark = re.escape(separator)
    cell = re.compile(rf'("(?:[^"]|"")*"(?=[ ]*(?:{mark}|\r|\n|\Z))[ ]*|[^{mark}\r\n]*)({mark}|\r\n|\n|\r|\Z)')
    own: list[str] = []
    for text_of, end in cell.findall(text):
        if end == separator:
            own.append(text_of)
        elif end or own or text_of:
            records.append([*own, text_of])
            ends.append(end)
            own = []
        if not end:  # the end of the text, of which the empty rest matches once more
            break
    return records, ends


def _plain(cell: str) -> str:
    if '"' not in cell:
        return cell
    inner = cell.strip()
    if len(inner) > 1 and inner[0] == '"' == inner[-1]:
        return inner[1:-1].replace('""', '"')
    return cell


def _quoted(name: str, separator: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"' if any(c in name for c in (separator, '"', "\r", "\n")) else name


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
