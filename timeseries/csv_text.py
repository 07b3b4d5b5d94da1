"""CSV whose text is kept, so that a file comes back byte for byte but for the cells that were written.

The form is RFC 4180's, with any of four separators: cells may be quoted, quotes in them doubled, and then hold
separators and line ends. Decimals have a point or, between semicolons and tabs, a comma; cells that are written have
the same mark, and at most two decimals more than their column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import DataError

__all__ = ["MISSING", "Form", "Grid", "forms", "numbers", "parse", "print_grid", "with_points"]

MISSING = frozenset(
    {"", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "<na>", "nat", "?", "-"}
)  # fmt: skip
"""Cells that say that a number is missing, in any case and between any blanks."""

_SEPARATORS = (",", ";", "\t", "|")
_COMMA_BESIDE = (";", "\t")
_COMMA = re.compile(r"\s*[-+]?\d*,\d+([eE][-+]?\d+)?\s*")
_NUMBER = re.compile(r"\s*[-+]?(?:\d+|\d*[.,](\d*))(?:[eE]([-+]?\d{1,4}))?\s*")
_MOST_DECIMALS = 323  # of the smallest float64


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
    if all(_is_number(name.replace(",", ".")) for name in names) and names != [str(k) for k in range(len(names))]:
        raise DataError(f"{label}: the first line is {', '.join(names[:5])}, expected the names of the columns")
    if not rows:
        raise DataError(f"{label}: a heading and no rows")
    if odd := next((k for k, row in enumerate(rows) if len(row) != len(heading)), None):
        raise DataError(f"{label}: row {odd + 1} has {len(rows[odd])} cells, the heading has {len(heading)}")
    if len(rows[0]) != len(heading):
        raise DataError(f"{label}: row 1 has {len(rows[0])} cells, the heading has {len(heading)}")
    return Grid(head, heading, rows, ends, tail, separator)


@dataclass(frozen=True)
class Form:
    """How the numbers of a column are written.

    Attributes:
        decimal: mark of the decimals, a point or a comma.
        decimals: the most of any cell; None where there is no number.
    """

    decimal: str
    decimals: int | None

    def with_point(self, cell: str) -> str:
        """A cell with a decimal point; one that has a point beside decimal commas, as of thousands, stays no number."""
        if self.decimal == ".":
            return cell
        return cell.replace(",", ".") if "." not in cell else cell.replace(".", ",")

    def text(self, value: float) -> str:
        """A number with two decimals more than the column has, which is as much as a summary of samples says.

        With the fewest digits that tell it from its neighbours; all of them where the column has no number.
        """
        if self.decimals is not None:
            value = round(value, min(self.decimals + 2, _MOST_DECIMALS)) + 0.0  # no minus zero
        return repr(value).replace(".", self.decimal)


def forms(columns: Sequence[Sequence[str]], separator: str) -> list[Form]:
    """How the numbers of columns of values are written: all with a comma if one cell is, else with a point.

    Decimal commas are only looked for where the separator of cells leaves them: between semicolons and tabs.
    """
    comma = separator in _COMMA_BESIDE and any(_COMMA.fullmatch(cell) for cells in columns for cell in cells)
    made = []
    for cells in columns:
        found = [one for cell in cells if (one := _NUMBER.fullmatch(cell)) is not None]
        most = max((len(one[1] or "") - int(one[2] or 0) for one in found), default=None)
        made.append(Form("," if comma else ".", None if most is None else max(0, most)))
    return made


def with_points(cells: Sequence[str], separator: str) -> list[str]:
    """The cells of any column: with decimal points if they are numbers with decimal commas throughout, else as is."""
    (form,) = forms([cells], separator)
    if form.decimal == "," and all(_NUMBER.fullmatch(cell) and "." not in cell for cell in cells if cell.strip()):
        return [form.with_point(cell) for cell in cells]
    return list(cells)


def numbers(cells: Sequence[str], label: str, form: Form = Form(".", None)) -> np.ndarray:
    """Cells as float64 (L,), NaN = missing.

    Raises:
        DataError: a cell that is neither a finite number nor missing; its row is named.
    """
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        plain = form.with_point(cell)
        try:
            values[row] = float(plain)
        except ValueError:
            values[row] = np.nan if cell.strip().lower() in MISSING else np.inf
        if "_" in cell or values[row] in (np.inf, -np.inf):
            if _is_number(plain):
                raise DataError(f"{label}, row {row + 1}: {cell.strip()[:40]}; values must be finite, or missing")
            hint = ""
            if form.decimal == "," and re.fullmatch(r"\s*[-+]?[\d.,]+\s*", cell):
                hint = "; with decimal commas there can be no points or separators of thousands"
            elif _COMMA.fullmatch(cell):
                hint = "; decimals need a point"
            raise DataError(
                f"{label}, row {row + 1}: {cell[:40]!r} is no number{hint}; name columns to carry along in keep"
            )
    return values


def print_grid(
    grid: Grid,
    written: Sequence[tuple[int, np.ndarray, np.ndarray]],
    more: Sequence[tuple[str, int, np.ndarray, np.ndarray]],
    forms: Mapping[int, Form],
    ahead: Sequence[Sequence[str]] = (),
) -> bytes:
    """Put a file together again.

    Args:
        grid: as it was read.
        written: (column, which rows, values): cells to write.
        more: (name, column it is about, which rows are missing there, values): columns after the last; rows that are
            not missing repeat that column's text.
        forms: of these columns.
        ahead: cells of rows after the last, as many as in the heading.
    """
    rows = [list(row) for row in grid.rows]
    for column, which, values in written:
        for row in np.flatnonzero(which).tolist():
            rows[row][column] = forms[column].text(float(values[row]))
    heading = list(grid.heading)
    last = len(rows)
    rows += [list(cells) for cells in ahead]
    for name, column, missing, values in more:
        heading.append(_quoted(name, grid.separator))
        for row, value in enumerate(values.tolist()):
            text = "" if np.isnan(value) else forms[column].text(value)
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
