"""Ensembles: rounds of drafting, moving and judging until every molecule has its conformers.

    draft  ->  move (the network, all molecules together)  ->  judge  ->  those that lack some, again  ->  order

Only `move` needs the model; the rest is chemistry, one molecule at a time, in other processes where there are any. A
round draws as many conformers as are still missing, with drafts and noise of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from rdkit import Chem

from ..core.errors import ArgumentError, PolydiffError
from .options import LevelName
from .ranking import Order, order
from .work import Drafted, Failure, Judged, Rules, Status, draft, judge, with_conformers

__all__ = ["Ensemble", "MoleculeError", "Move", "Moved", "Settings", "ensembles_of"]


SUSPECT = 50.0
"""kcal/mol above the best conformer, beyond which a geometry is hardly one of interest."""


class Moved(NamedTuple):
    """What the network made of molecules."""

    positions: list[np.ndarray]
    """(K, N, 3) of each, Angstrom"""
    seconds: list[float]
    """its share of the time"""


Move: TypeAlias = Callable[[Sequence[Drafted], Sequence[np.ndarray], Sequence[Sequence[int]], int], Moved]
"""(molecules, drafts (D, N, 3) of each, numbers of the conformers of each, round) -> moved."""


class MoleculeError(PolydiffError, ValueError):
    """A molecule that no conformers can be made of; `status` says why, as in tables of results."""

    def __init__(self, status: Status, message: str):
        self.status, self.message = status, message
        super().__init__(f"{status}: {message}")


@dataclass(frozen=True)
class Settings:
    """What is wanted of each molecule; see `ConformerPipeline.generate`."""

    num_conformers: int
    relax: bool = False
    energies: bool = True
    keep_duplicates: bool = True
    threshold: float = 0.1
    rounds: int = 4
    fixed: tuple[int, ...] = ()
    """Atoms that relaxation does not move."""
    energy_window: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_conformers", "rounds"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ArgumentError(name, number, "an integer >= 1")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ArgumentError("threshold", self.threshold, "a number >= 0")
        if self.energy_window is not None and not self.energy_window >= 0:
            raise ArgumentError("energy_window", self.energy_window, "kcal/mol >= 0, or None")
        if self.energy_window is not None and not (self.energies or self.relax):
            raise ArgumentError("energy_window", self.energy_window, "None without energies")


@dataclass(frozen=True)
class Ensemble:
    """What became of a molecule.

    Attributes:
        status: ok, or why there are no conformers.
        message: in words; also where fewer conformers came than were asked for, where energies are suspect, and for
            radicals.
        mol: with hydrogens and conformers, best first, ids 0 ... n - 1; None unless ok.
        smiles: canonical; "" where the molecule could not be read.
        level: of the geometries; None unless ok.
        energies: (n,) kcal/mol of MMFF94, NaN where there are none.
        rmsd: (n,) to the first, Angstrom, symmetric, without hydrogens on carbon.
        drawn: conformers drawn in all.
        wrong: those of them with another stereochemistry than asked for.
        seconds: of chemistry, and a share of the network's.
    """

    status: Status
    message: str = ""
    mol: Chem.Mol | None = None
    smiles: str = ""
    level: LevelName | None = None
    energies: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rmsd: np.ndarray = field(default_factory=lambda: np.zeros(0))
    drawn: int = 0
    wrong: int = 0
    seconds: float = 0.0


class _Growing:
    """A molecule on its way."""

    def __init__(self, what: str | Chem.Mol):
        self.what = what
        self.drafted: Drafted | None = None
        self.failure: Failure | None = None
        self.positions: list[np.ndarray] = []
        self.energies: list[float] = []
        self.order: Order | None = None
        self.drawn = self.wrong = 0
        self.seconds = 0.0

    def lacking(self, settings: Settings) -> int:
        return 0 if self.failure is not None else settings.num_conformers - len(self.positions)


def ensembles_of(
    molecules: Sequence[str | Chem.Mol], settings: Settings, rules: Rules, move: Move, pool: Executor | None = None
) -> list[Ensemble]:
    """The ensembles of molecules, in order; none fails because another does.

    Args:
        molecules: SMILES or RDKit molecules.
        settings, rules: see there.
        move: the network's part.
        pool: processes for the chemistry; None for this one.
    """
    growing = [_Growing(what) for what in molecules]
    for round_ in range(settings.rounds):
        open_ = [one for one in growing if one.lacking(settings) > 0]
        if not open_:
            break
        drafted = each(pool, draft, [(one.what, one.lacking(settings), round_, rules) for one in open_])
        for one, found in zip(open_, drafted, strict=True):
            one.seconds += found.seconds
            if isinstance(found, Drafted):
                one.drafted = found
            elif one.drafted is None:  # later rounds may fail where the first did not
                one.failure = found
        ready = [
            (one, found) for one, found in zip(open_, drafted, strict=True) if isinstance(found, Drafted)
        ]  # fmt: skip
        if not ready:
            continue
        numbers = [range(one.lacking(settings)) for one, _ in ready]
        moved = move([found for _, found in ready], [found.positions for _, found in ready], numbers, round_)
        jobs = [
            (found.mol, positions, settings.relax, settings.energies, settings.fixed)
            for (_, found), positions in zip(ready, moved.positions, strict=True)
        ]
        for (one, _), judged, seconds in zip(ready, each(pool, judge, jobs), moved.seconds, strict=True):
            one.seconds += seconds
            take(one, judged)
    whole = [one for one in growing if one.positions and one.failure is None]
    jobs = [
        (drafted_of(one).mol, np.stack(one.positions), np.array(one.energies), settings.keep_duplicates,
         settings.threshold)
        for one in whole
    ]  # fmt: skip
    for one, found in zip(whole, each(pool, order, jobs), strict=True):
        if isinstance(found, Failure):
            one.failure = found
        else:
            one.order = found
    return [concluded(one, settings) for one in growing]


def take(one: _Growing, judged: Judged | Failure) -> None:
    """Keep the conformers that passed."""
    one.seconds += judged.seconds
    if isinstance(judged, Failure):
        one.failure = judged
        return
    one.drawn += len(judged.right)
    one.wrong += int((~judged.right).sum())
    for k in np.flatnonzero(judged.right):
        one.positions.append(judged.positions[k])
        one.energies.append(float(judged.energies[k]))


def drafted_of(one: _Growing) -> Drafted:
    """What is known of a molecule that was read."""
    assert one.drafted is not None
    return one.drafted


def concluded(one: _Growing, settings: Settings) -> Ensemble:
    """The result of a molecule."""
    smiles = "" if one.drafted is None else one.drafted.smiles
    count = {"smiles": smiles, "drawn": one.drawn, "wrong": one.wrong, "seconds": one.seconds}
    if one.failure is not None:
        return Ensemble(one.failure.status, one.failure.message, **count)
    if one.order is None:
        message = f"{one.wrong} conformers drawn, none with the stereochemistry asked for"
        return Ensemble("stereo-failed", message, **count)
    drafted, notes = drafted_of(one), list[str]()
    if len(one.positions) < settings.num_conformers:
        notes.append(f"{len(one.positions)} of {settings.num_conformers} with the stereochemistry asked for")
    places, rmsd = np.array(one.order.places), np.array(one.order.rmsd)
    energies = np.array(one.energies)[places]
    above = energies - energies[0]  # NaN where there are none: such are kept
    if settings.energy_window is not None and (gone := above > settings.energy_window).any():
        notes.append(f"{gone.sum()} left out, more than {settings.energy_window:g} kcal/mol above the best")
        places, rmsd, energies, above = places[~gone], rmsd[~gone], energies[~gone], above[~gone]
    if count_high := int((above > SUSPECT).sum()):
        notes.append(f"{count_high} more than {SUSPECT:g} kcal/mol (MMFF94) above the best")
    if any(atom.GetNumRadicalElectrons() for atom in drafted.mol.GetAtoms()):
        notes.append("radical: the references have none")
    mol = with_conformers(drafted.mol, np.stack([one.positions[k] for k in places]))
    for rank, conformer in enumerate(mol.GetConformers()):
        conformer.SetIntProp("rank", rank)
        conformer.SetProp("level", drafted.level)
        conformer.SetProp("status", "ok")
        conformer.SetDoubleProp("rmsd", float(rmsd[rank]))
        if math.isfinite(energies[rank]):
            conformer.SetDoubleProp("energy", float(energies[rank]))
            conformer.SetDoubleProp("relative_energy", float(energies[rank] - energies[0]))
    return Ensemble("ok", "; ".join(notes), mol, level=drafted.level, energies=energies, rmsd=rmsd, **count)


def each(pool: Executor | None, work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """`work` of every job, in order; a `Failure` of those that fail.

    A crash of a process takes its whole pool with it; what was under way then is done in this process, where it may
    crash again, but not unseen.
    """
    if pool is None:
        return [attempt(work, job) for job in jobs]
    try:
        futures: list[Future[Any]] = [pool.submit(attempt, work, job) for job in jobs]
        return [future.result() for future in futures]
    except BrokenProcessPool:
        return [attempt(work, job) for job in jobs]


def attempt(work: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    """`work(*job)`, or a `Failure` where chemistry raised what it should not have."""
    try:
        return work(*job)
    except (RuntimeError, ValueError, ArithmeticError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        return Failure("invalid", f"{work.__name__} failed ({type(error).__name__}: {reason})")
