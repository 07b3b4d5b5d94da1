"""Rows of molecules: files of SMILES in, a table of what became of each row out.

Every row of the input is a row of the table, in order; nothing is passed over in silence. Ids are made unique, for a
conformer in an SDF has no other way back to its row: of equal ids the second one is called ID-2, the third ID-3, and
the table says so.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ArgumentError, DataError

__all__ = ["COLUMNS", "Row", "read_rows", "rows_of", "table"]

COLUMNS = ("row", "id", "smiles", "status", "conformers", "level", "seconds", "message")
"""Of the table: number from 1; id; SMILES as given; status; how many conformers; level of theory; seconds; in words."""

SMILES_NAMES = ("smiles", "canonical_smiles", "smi")
ID_NAMES = ("id", "name", "title", "mol_id", "molecule_id", "identifier")
LONGEST = 100_000
"""Characters of a line; what is longer is no molecule."""


@dataclass(frozen=True)
class Row:
    """One molecule of the input.

    Attributes:
        number: from 1, as a person counts.
        id: unique.
        smiles: as it stands there, maybe nothing sensible.
        note: what was done to the id, if anything.
    """

    number: int
    id: str
    smiles: str
    note: str = ""


def read_rows(path: str | Path, smiles_column: str | None = None, id_column: str | None = None) -> list[Row]:
    """The rows of a file: `.csv` or `.tsv` with a header, else one SMILES a line and its id behind it; also `.gz`.

    A table needs a column smiles, or the one named; ids are taken from a column id, name or title, or the one named.
    In other files a first line that begins with the word smiles is a header. A row without an id is called row1,
    row2, ... by its number.

    Raises:
        DataError: a file that cannot be read, is no text, has no rows or not the columns. ArgumentError: columns of a
            file that is no table.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path}: cannot be read ({reason})") from error
    if b"\0" in content:
        raise DataError(f"{path}: not a text file; expected SMILES, one a line, or a table with a column smiles")
    text = content.decode("utf-8-sig", errors="replace")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind.lower() in (".csv", ".tsv"):
        pairs = from_table(text, "\t" if kind.lower() == ".tsv" else ",", path, smiles_column, id_column)
    else:
        for flag, name in (("--smiles-column", smiles_column), ("--id-column", id_column)):
            if name is not None:
                raise ArgumentError(flag, name, f"a table (.csv or .tsv); {path} has no columns")
        pairs = from_lines(text)
    if not pairs:
        raise DataError(f"{path}: no rows; expected SMILES, one a line")
    return rows_of(pairs)


def rows_of(pairs: Iterable[tuple[str, str]]) -> list[Row]:
    """Rows from (SMILES, id or "") pairs, with unique ids."""
    rows: list[Row] = []
    pairs = [(smiles.strip(), " ".join(name.split())) for smiles, name in pairs]
    asked = {name for _, name in pairs if name}
    used: set[str] = set()
    for number, (smiles, name) in enumerate(pairs, 1):
        own, note = name or f"row{number}", ""
        if own in used or (not name and own in asked):
            count = 2
            while f"{own}-{count}" in used or f"{own}-{count}" in asked:
                count += 1
            own, note = f"{own}-{count}", f"id {own} was taken; called {own}-{count}"
        used.add(own)
        rows.append(Row(number, own, smiles, note))
    return rows


def from_lines(text: str) -> list[tuple[str, str]]:
    """SMILES, white space, id; the rest of the line belongs to the id."""
    lines = text.splitlines()
    if lines and lines[0].split()[:1] and lines[0].split()[0].lower() in SMILES_NAMES:
        lines = lines[1:]
    found: list[tuple[str, str]] = []
    for line in lines:
        words = line[:LONGEST].split(None, 1)
        found.append((words[0] if words else "", words[1] if len(words) > 1 else ""))
    return found


def from_table(
    text: str, delimiter: str, path: Path, smiles_column: str | None = None, id_column: str | None = None
) -> list[tuple[str, str]]:
    """The columns of SMILES and ids of a table with a header; names are those of the header in any case."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        there = ", ".join(name for name in reader.fieldnames or () if name) or "none"

        def column(asked: str | None, usual: tuple[str, ...], flag: str) -> str | None:
            if asked is None:
                return next((names[name] for name in usual if name in names), None)
            found = asked if asked in (reader.fieldnames or ()) else names.get(asked.strip().lower())
            if found is None:
                raise DataError(f"{path}: no column {asked} ({flag}); there are: {there}")
            return found

        smiles = column(smiles_column, SMILES_NAMES, "--smiles-column")
        own = column(id_column, ID_NAMES, "--id-column")
        if smiles is None:
            raise DataError(f"{path}: no column smiles among {there}; name it by --smiles-column")
        return [(line.get(smiles) or "", (line.get(own) or "") if own is not None else "") for line in reader]
    except csv.Error as error:
        raise DataError(f"{path}: not a table that can be read ({error})") from error


def table(lines: Sequence[Mapping[str, object]]) -> str:
    """Rows of `COLUMNS` as CSV."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
