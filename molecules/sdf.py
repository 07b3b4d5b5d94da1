"""Conformers as SDF: one record each, the molecule's id as its title, all that is known of it as properties.

`Parts` keeps what is finished while a long list is worked on. A part is two files, the records and then, as its seal,
the rows of the table; both appear whole or not at all. So a run that is killed at any moment loses what it was working
on and nothing else, and the files that are put together in the end do not depend on where it was killed.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rdkit import Chem

from ..core.errors import ArgumentError, CheckpointError, DataError
from ..core.files import synchronise_folder, write_atomically
from .ensembles import Ensemble
from .rows import table

__all__ = ["Parts", "records", "report_path"]


def records(found: Ensemble, title: str, properties: Mapping[str, str | int]) -> str:
    """The conformers of a molecule as records of an SDF file, best first; "" where there are none.

    Properties: energy and relative_energy (kcal/mol, MMFF94, where known), rmsd (Angstrom, to the best one), rank,
    level, canonical SMILES, and those given.
    """
    if found.mol is None:
        return ""
    mol, text = Chem.Mol(found.mol), io.StringIO()
    mol.SetProp("_Name", title)
    writer = Chem.SDWriter(cast(Any, text))
    for conformer in found.mol.GetConformers():
        known = conformer.GetPropsAsDict()
        for name, digits in (("energy", 4), ("relative_energy", 4), ("rmsd", 4)):
            if name in known:
                mol.SetProp(name, f"{known[name]:.{digits}f}")
        for name, value in {**{key: known[key] for key in ("rank", "level")}, **properties}.items():
            mol.SetProp(name, str(value))
        mol.SetProp("smiles", found.smiles)
        writer.write(mol, confId=conformer.GetId())
    writer.close()
    return text.getvalue()


def report_path(out: Path) -> Path:
    """The table beside an SDF file: OUT.report.csv for OUT.sdf and OUT.sdf.gz."""
    stem = out.name.removesuffix(".gz").removesuffix(".sdf")
    return out.with_name(f"{stem}.report.csv")


class Parts:
    """The folder OUT.parts, which holds finished parts until all are there.

    Args:
        out: the file to be written in the end; it is compressed if its name ends in .gz.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(out.name + ".parts")

    def begin(self, facts: Mapping[str, Any], resume: bool, free: Collection[str] = ()) -> None:
        """Make the folder, or check that what lies there was begun with the same facts.

        Args:
            facts: what decides the result.
            resume: whether to go on with what lies there.
            free: names of facts that may change while no part is finished.

        Raises:
            ArgumentError: it holds the parts of another run, or of this one and `resume` is False. DataError: it
                cannot be made.
        """
        known = self.folder / "facts.json"
        if known.exists():
            if not resume:
                raise ArgumentError(
                    "--out", str(self.out), f"--resume to go on with what was begun, or {self.folder} removed"
                )
            kept = self.read(known)
            begun = any(path != known for path in self.folder.glob("*.json"))
            changed = [name for name in sorted(facts.keys() | kept.keys()) if kept.get(name) != facts.get(name)]
            for name in changed:
                if begun or name not in free:
                    raise ArgumentError(f"--resume: {name}", facts.get(name), f"{kept.get(name)!r}, as it was begun")
            if not changed:
                return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(known, json.dumps(facts, indent=1))
        except OSError as error:
            raise DataError(f"{self.folder}: no folder to keep results in ({error})") from error

    def has(self, number: int) -> bool:
        """Whether a part is finished."""
        return self.seal(number).exists()

    def write(self, number: int, text: str, lines: Sequence[Mapping[str, object]]) -> None:
        """Keep the records and the rows of the table of a part."""
        write_atomically(self.records(number), text)
        write_atomically(self.seal(number), json.dumps(list(lines)))

    def lines(self, number: int) -> list[dict[str, Any]]:
        """The rows of the table of a finished part."""
        return self.read(self.seal(number))

    def finish(self, count: int) -> list[dict[str, Any]]:
        """Put the SDF file and its table together and remove the parts; returns the rows of the table."""
        lines = [line for number in range(count) for line in self.lines(number)]
        temporary = self.out.with_name(f".{self.out.name}.{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                if self.out.name.endswith(".gz"):
                    # No name and no date in the header: equal conformers are equal files.
                    with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0) as packed:
                        self.pour(count, packed)
                else:
                    self.pour(count, file)
                file.flush()
                os.fsync(file.fileno())
            write_atomically(report_path(self.out), table(lines))
            os.replace(temporary, self.out)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        synchronise_folder(self.out.parent)
        shutil.rmtree(self.folder)
        return lines

    def pour(self, count: int, file: IO[bytes] | gzip.GzipFile) -> None:
        """All records, in order."""
        for number in range(count):
            with open(self.records(number), "rb") as part:
                shutil.copyfileobj(part, cast(Any, file))

    def records(self, number: int) -> Path:
        return self.folder / f"{number:06d}.sdf"

    def seal(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def read(self, path: Path) -> Any:
        """JSON that was written here before."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); remove {self.folder} and start again") from error
