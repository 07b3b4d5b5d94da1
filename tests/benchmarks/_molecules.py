"""What the benchmarks of molecules share: molecules from files, memory of processes, results."""

from __future__ import annotations

import csv
import gzip
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rdkit import Chem, rdBase

from polydiff.molecules.sdf import Parts, report_path

from ._results import elapsed, keep, kept, today

__all__ = [
    "Finished",
    "cleared",
    "elapsed",
    "given_smiles",
    "keep",
    "kept",
    "records",
    "run",
    "sample_command",
    "small_molecules",
    "statuses",
    "today",
    "with_error",
]

SOURCES = {
    "freesolv": "molecules/smiles_moleculenet/freesolv.csv.gz",
    "esol": "molecules/smiles_moleculenet/esol.csv.gz",
    "qm9": "molecules/qm9/qm9_smiles.csv.gz",
    "geom-qm9": "molecules/geom_test_smiles/qm9_test_smiles.csv.gz",
    "geom-drugs": "molecules/geom_test_smiles/drugs_test_smiles.csv.gz",
}


# ------------------------------------------------------------------------------------------------------- molecules


def given_smiles(root: Path, source: str) -> list[str]:
    """The SMILES of one of `SOURCES` as they stand there."""
    with gzip.open(root / SOURCES[source], "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        head = [name.strip().lower() for name in next(rows)]
        column = next(i for i, name in enumerate(head) if name.endswith("smiles"))
        return [row[column].strip() for row in rows if len(row) > column]


def small_molecules(root: Path, count: int, elements: Collection[str], heavy: int, seed: int) -> list[tuple[str, str]]:
    """(SMILES, id) of different connected molecules, by turns from FreeSolv, ESOL and QM9.

    Args:
        root: folder of the data.
        count: how many, if there are as many.
        elements: symbols that may occur.
        heavy: most atoms besides hydrogen.
        seed: of the choice.
    """
    shuffled = []
    for source in ("freesolv", "esol", "qm9"):
        found = given_smiles(root, source)
        random.Random(seed).shuffle(found)
        shuffled.append((source, iter(found)))
    chosen: dict[str, str] = {}
    while shuffled and len(chosen) < count:
        for source, rest in list(shuffled):
            smiles = next((s for s in rest if suits(s, elements, heavy, chosen)), None)
            if smiles is None:
                shuffled.remove((source, rest))
            elif len(chosen) < count:
                chosen[Chem.CanonSmiles(smiles)] = f"{source}-{len(chosen)}"
    return list(chosen.items())


def suits(smiles: str, elements: Collection[str], heavy: int, known: Collection[str]) -> bool:
    """Whether a molecule is connected, small, of these elements, and new."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or not 1 < mol.GetNumAtoms() <= heavy or len(Chem.GetMolFrags(mol)) > 1:
        return False
    full = {atom.GetSymbol() for atom in mol.GetAtoms()} | {"H"}
    return full <= set(elements) and Chem.MolToSmiles(mol) not in known


# -------------------------------------------------------------------------------------------------------- processes


class Finished(NamedTuple):
    """A command that ran: wall seconds, processors' seconds, bytes at the worst moment of all its processes.

    Pages that processes share are counted once where the system tells (proportional set size of Linux).
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    code: int
    tail: str


def tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:
            continue
        for child in found:
            yield from tree(int(child))


def used(pid: int) -> int:
    """Bytes that a process keeps in memory, 0 if it has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run(command: Sequence[str], threads: int = 1) -> Finished:
    """Run a command to its end, looking at its memory four times a second."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(used(pid) for pid in tree(process.pid)))
            time.sleep(0.25)
        seconds = time.perf_counter() - started
        said.seek(0)
        tail = said.read()[-4000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of children that have ended, and theirs
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Finished(seconds, cpu, peak, process.returncode, tail)


def cleared(out: Path) -> Path:
    """A path for an SDF without what an earlier run left there."""
    for path in (out, report_path(out)):
        path.unlink(missing_ok=True)
    shutil.rmtree(Parts(out).folder, ignore_errors=True)
    return out


def sample_command(source: Path, out: Path, model: str, conformers: int, *more: str) -> list[str]:
    """`polydiff sample molecules` as a command of this interpreter."""
    told = ["--model", model, "--num-conformers", str(conformers), "--no-progress", *more]
    return [sys.executable, "-m", "polydiff.molecules.sample", str(source), "-o", str(out), *told]


def statuses(out: Path) -> dict[str, str]:
    """id -> status, from the table that `polydiff sample molecules` writes beside its SDF."""
    with report_path(out).open(encoding="utf-8", newline="") as file:
        return {row["id"]: row["status"] for row in csv.DictReader(file)}


def records(out: Path) -> Iterator[tuple[str, str]]:
    """(id, mol block) of every conformer of an SDF."""
    lines: list[str] = []
    with out.open(encoding="utf-8") as file:
        for line in file:
            if line.startswith("$$$$"):
                yield lines[0].strip(), "".join(lines)
                lines = []
            else:
                lines.append(line)


# ---------------------------------------------------------------------------------------------------------- figures


def with_error(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """Mean over molecules and its standard error; NaN are left out and the rest counted."""
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    error = float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else None
    return {"mean": float(x.mean()) if len(x) else None, "standard error": error, "count": len(x)}
