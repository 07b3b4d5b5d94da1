"""Drafts matched to their targets, for many molecules: in parallel, resumable, kept.

Level "B3LYP" (or any geometry that comes with the molecule): each draft of distance geometry is paired with the
nearest reference geometry, relabelled among equal atoms and rotated onto it. Level "MMFF94": each draft is paired
with its own minimum, if that lies within 10 kcal/mol of the molecule's best. A molecule with fewer pairs than asked
for repeats them. What comes out is a table, see `tables`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import rdkit
from rdkit import Chem
from tqdm.auto import tqdm

from .drafts import Problem, embed, keep, relax, right_stereo
from .graphs import Arrays, UnsupportedElementError, arrays
from .symmetry import Symmetry, best_match, rotation, symmetry
from .tables import Table, join, nothing, read, write

__all__ = ["LEVELS", "Broken", "Entry", "Options", "deduplicate", "prepare", "prepare_one"]

LEVELS = ("B3LYP", "MMFF94", "own")
"""Levels of theory of the targets; a batch holds indices into these."""

SAME = 0.1
"""Å: minima nearer than this are one conformer."""

_VERSION = 1  # of what this file makes
_CHUNK, _PART = 32, 2048


@dataclass(frozen=True)
class Entry:
    """One molecule to prepare.

    Attributes:
        name: its identity in figures and in the seed of its drafts.
        mol: all hydrogens as atoms, stereochemistry assigned.
        references: positions (K, N, 3) in Å of a `level`, or None.
        level: of the references, an index into LEVELS.
        relaxed: whether minima of MMFF94 are to be made.
    """

    name: str
    mol: Chem.Mol
    references: np.ndarray | None = None
    level: int = 0
    relaxed: bool = False


@dataclass(frozen=True)
class Options:
    """How molecules are prepared.

    Attributes:
        drafts: pairs per molecule, D.
        embedded: whether drafts of distance geometry are wanted; else they are 0 and targets are the references.
        attempts: conformers drawn per molecule where minima are to be made, at least D.
        seed: of the drafts.
        timeout: seconds of distance geometry per molecule and attempt.
    """

    drafts: int = 4
    embedded: bool = True
    attempts: int = 4
    seed: int = 0
    timeout: int = 30


Broken = tuple[str, Problem]
"""Name and reason of a molecule that failed."""


def prepare_one(entry: Entry, options: Options) -> list[Table | Problem]:
    """The tables of one molecule, one for each of its levels, or why there is none."""
    try:
        graph = arrays(entry.mol)
    except UnsupportedElementError as error:
        return [Problem("unsupported-element", error.element)]
    of, mol = symmetry(entry.mol, graph=graph), None
    if options.embedded or entry.relaxed:
        seed = int.from_bytes(hashlib.sha256(f"{options.seed} {entry.name}".encode()).digest()[:4]) >> 1
        count = max(options.attempts, options.drafts) if entry.relaxed else options.drafts
        mol = embed(entry.mol, count, seed, options.timeout)
        if isinstance(mol, Problem):
            return [mol]
    made: list[Table | Problem] = []
    if entry.references is not None:
        made.append(_referred(entry, graph, of, mol, options))
    if entry.relaxed and mol is not None:
        made.append(_relaxed(entry, graph, of, mol, options))
    return made


def deduplicate(of: Symmetry, positions: Sequence[np.ndarray] | np.ndarray, apart: float = SAME) -> list[int]:
    """Places of conformers (N, 3) that are farther than `apart` Å (over all atoms) from every earlier one."""
    kept: list[int] = []
    for k, x in enumerate(positions):
        if all(best_match(of, positions[j], x).rmsd > apart for j in kept):
            kept.append(k)
    return kept


def prepare(
    entries: Iterable[Entry | Broken], total: int | None, name: str, options: Options, folder: Path | None
) -> Table:
    """The table of many molecules, in their order.

    Args:
        entries: what is to be prepared; what failed before is passed on to the table.
        total: their number, if known, for the progress bar.
        name: of the set and of what was taken from it; with options and versions the key of what is kept.
        options: how.
        folder: where tables are kept, part by part, so that an interrupted preparation goes on; None keeps nothing. A
            folder that cannot be written to is a warning.
    """
    about = {"name": name, "rdkit": rdkit.__version__, "version": _VERSION, **asdict(options)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    final = None if folder is None else folder / f"{key}.npz"
    table = None if final is None else read(final)
    if table is not None:
        return table
    parts: list[Table] = []
    files: list[Path] = []
    stream = iter(entries)
    with tqdm(total=total, desc=f"preparing {name}", unit="mol", disable=_quiet(total)) as bar:
        while group := list(islice(stream, _PART)):
            file = None if folder is None else folder / f"{key}.{len(parts):04d}.npz"
            table = None if file is None else read(file)
            if table is None:
                table = join(list(_parallel(group, options, bar)))
                if file is not None and write(file, table):
                    files.append(file)
            else:
                files.append(file)  # pyright: ignore[reportArgumentType]: a table was read from it
                bar.update(len(group))
            parts.append(table)
    table = join(parts)
    if final is not None and write(final, table):
        for file in files:
            file.unlink(missing_ok=True)
    return table


def _quiet(total: int | None) -> bool:
    """Whether to show no progress: few molecules, or nobody who would see it."""
    return (total is not None and total < 64) or not sys.stderr.isatty()


def _referred(entry: Entry, graph: Arrays, of: Symmetry, mol: Chem.Mol | None, options: Options) -> Table | Problem:
    """Drafts paired with the nearest of the reference geometries."""
    given = [] if entry.references is None else entry.references
    right = [x - x.mean(0) for x in given if right_stereo(graph, x)]
    if not right:
        return Problem("stereo-failed", "no reference geometry has the stereochemistry of its graph")
    references = np.stack(right)
    energies = np.full(len(references), np.nan)
    if mol is None or not options.embedded:
        return _table(entry, graph, entry.level, np.zeros_like(references), references, references, energies, options)
    drafts = _positions(mol)[: options.drafts]
    targets = []
    for draft in drafts:
        matches = [best_match(of, reference, draft) for reference in references]
        targets.append(min(matches, key=lambda match: match.rmsd).positions)
    return _table(entry, graph, entry.level, drafts, np.stack(targets), references, energies, options)


def _relaxed(entry: Entry, graph: Arrays, of: Symmetry, mol: Chem.Mol, options: Options) -> Table | Problem:
    """Drafts paired with their own minima of MMFF94; moves the conformers."""
    drafts = _positions(mol)
    energies = relax(mol)
    if isinstance(energies, Problem):
        return energies
    minima = _positions(mol)
    right = np.array([right_stereo(graph, x) for x in minima])
    if not right.any():
        return Problem("stereo-failed", "the force field broke the stereochemistry of every conformer")
    best = keep(np.where(right, energies, np.nan))
    if not best:
        return Problem("no-embedding", "the force field converged for no conformer")
    single = [best[k] for k in deduplicate(of, minima[best])]
    references = minima[single]
    if options.embedded:
        chosen = sorted(best)[: options.drafts]
        targets = minima[chosen] @ np.swapaxes(rotation(minima[chosen], drafts[chosen]), 1, 2)
        drafts = drafts[chosen]
    else:
        targets, drafts = references, np.zeros_like(references)
    return _table(entry, graph, LEVELS.index("MMFF94"), drafts, targets, references, energies[single], options)


def _table(
    entry: Entry,
    graph: Arrays,
    level: int,
    drafts: np.ndarray,
    targets: np.ndarray,
    references: np.ndarray,
    energies: np.ndarray,
    options: Options,
) -> Table:
    """The table of one molecule at one level."""
    order = [k % len(targets) for k in range(options.drafts)]
    mol = Chem.Mol(entry.mol)
    mol.RemoveAllConformers()
    blob = np.frombuffer(mol.ToBinary(), dtype=np.uint8)
    numbers = {"atoms": len(graph.atom), "bonds": graph.bond.shape[1], "centres": graph.chiral.shape[1]}
    numbers |= {"references": len(references), "bytes": len(blob), "level": level, "pairs": len(targets)}
    return {
        "name": np.array([entry.name]),
        **{key: np.array([value], dtype=np.int64) for key, value in numbers.items()},
        "atom": graph.atom,
        "edge": graph.edge,
        "bond": graph.bond.T.astype(np.int16),
        "chiral": graph.chiral.T.astype(np.int16),
        "draft": _rows(drafts[order]),
        "target": _rows(targets[order]),
        "reference": _rows(references),
        "energy": energies,
        "mol": blob,
        "problem": np.empty((0, 3), dtype="U1"),
    }


def _positions(mol: Chem.Mol) -> np.ndarray:
    """All conformers, centred, (C, N, 3)."""
    x = np.stack([conformer.GetPositions() for conformer in mol.GetConformers()])
    return x - x.mean(1, keepdims=True)


def _rows(positions: np.ndarray) -> np.ndarray:
    return positions.reshape(-1, 3).astype(np.float32)


def _chunk(group: Sequence[Entry | Broken], options: Options) -> Table:
    """The table of some molecules, in this process."""
    tables: list[Table] = []
    for entry in group:
        if isinstance(entry, Entry):
            name, found = entry.name, prepare_one(entry, options)
        else:
            name, found = entry[0], [entry[1]]
        for made in found:
            if isinstance(made, Problem):
                made = nothing() | {"problem": np.array([[name, made.reason, made.detail]])}
            tables.append(made)
    return join(tables)


def _parallel(group: Sequence[Entry | Broken], options: Options, bar: tqdm) -> Iterator[Table]:
    """Tables of chunks in their order, over as many processes as there are cores."""
    chunks = [group[k : k + _CHUNK] for k in range(0, len(group), _CHUNK)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, len(chunks))
    if cores < 2 or "fork" not in multiprocessing.get_all_start_methods():
        for chunk in chunks:
            yield _chunk(chunk, options)
            bar.update(len(chunk))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the children use none of them
        with ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
            for chunk, table in zip(chunks, pool.map(_chunk, chunks, [options] * len(chunks)), strict=True):
                yield table
                bar.update(len(chunk))
