"""What is done with one molecule outside the network: read it, draft it, judge its conformers; `ranking` ranks them.

These are jobs for processes beside the one that runs the network: plain functions of plain data, without state. None
raises for a molecule that fails; what can go wrong with a row of a file is a `Status`.

Draws depend on (seed, molecule, round) alone, the molecule being its canonical SMILES. So a molecule's conformers do
not depend on what else is in the file, on its place there, or on the number of processes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from ..core.errors import ArgumentError
from ..core.randomness import mix
from . import drafts
from .graphs import Arrays, UnsupportedElementError, arrays
from .options import LevelName
from .stereo import conformer, keeps_stereo

__all__ = [
    "STATUSES",
    "Drafted",
    "Failure",
    "Judged",
    "Rules",
    "Status",
    "canonical",
    "check_positive",
    "chunks",
    "draft",
    "judge",
    "key_of",
]

Status: TypeAlias = Literal[
    "ok",
    "invalid",
    "disconnected",
    "unsupported-element",
    "too-large",
    "no-embedding",
    "timeout",
    "stereo-failed",
]  # fmt: skip
STATUSES: tuple[Status, ...] = (
    "ok",
    "invalid",
    "disconnected",
    "unsupported-element",
    "too-large",
    "no-embedding",
    "timeout",
    "stereo-failed",
)

MOST_STEPS = 2000
"""Of the minimiser around fixed atoms."""


@dataclass(frozen=True)
class Rules:
    """What molecules are taken and how they are drafted.

    Attributes:
        levels: the levels that will do, each with the elements known by it, best first.
        drafted: whether the model starts from drafts; else no conformer is embedded.
        max_atoms: hydrogens counted.
        timeout: seconds for an attempt to embed.
        seed: of the draws.
    """

    levels: tuple[tuple[LevelName, frozenset[str]], ...]
    drafted: bool
    max_atoms: int = 250
    timeout: float = 60.0
    seed: int = 0


@dataclass(frozen=True)
class Failure:
    """Why a molecule has no conformers."""

    status: Status
    message: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Drafted:
    """A molecule that is ready for the network.

    Attributes:
        mol: with explicit hydrogens, no conformers.
        smiles: canonical.
        level: chosen for it.
        graph: of it.
        positions: (K, N, 3) centred drafts, or zeros (1, N, 3) where the model starts from noise.
        seconds: taken.
    """

    mol: Chem.Mol
    smiles: str
    level: LevelName
    graph: Arrays
    positions: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Judged:
    """Conformers after the network.

    Attributes:
        right: (K,) whether they have the asked stereochemistry.
        positions: (K, N, 3), relaxed where that was asked for.
        energies: (K,) MMFF94 in kcal/mol; NaN where the force field does not know the molecule, or none were asked for.
        seconds: taken.
    """

    right: np.ndarray
    positions: np.ndarray
    energies: np.ndarray
    seconds: float


def draft(what: str | Chem.Mol, count: int, round_: int, rules: Rules) -> Drafted | Failure:
    """Read a molecule, check it, and embed `count` drafts of it.

    Args:
        what: SMILES, or a molecule, whose atoms keep their order; missing hydrogens are added behind them.
        count: of drafts.
        round_: 0 at first; another number gives other drafts.
        rules: see there.
    """
    began = time.perf_counter()

    def failed(status: Status, message: str) -> Failure:
        return Failure(status, message, time.perf_counter() - began)

    mol = drafts.parse(what) if isinstance(what, str) else read(what)
    if isinstance(mol, drafts.Problem):
        return failed(status_of(mol), mol.detail)
    size, symbols = mol.GetNumAtoms(), {atom.GetSymbol() for atom in mol.GetAtoms()}
    if size > rules.max_atoms:
        return failed("too-large", f"{size} atoms with hydrogens, {rules.max_atoms} at most")
    level: LevelName | None = next((name for name, known in rules.levels if symbols <= known), None)
    if level is None:
        known = frozenset().union(*(elements for _, elements in rules.levels))
        unknown = ", ".join(sorted(symbols - known)) or "its elements together"
        return failed("unsupported-element", f"{unknown}: the model knows {' '.join(sorted(known))}")
    smiles, graph = canonical(mol), arrays(mol)
    if not rules.drafted:
        return Drafted(mol, smiles, level, graph, np.zeros((1, size, 3)), time.perf_counter() - began)
    number = mix(rules.seed, key_of(smiles), round_) & 0x7FFFFFFF
    tried = time.perf_counter()
    made = drafts.embed(mol, count, number, timeout=max(1, round(rules.timeout)))
    if isinstance(made, drafts.Problem):
        late = made.reason == "no-embedding" and time.perf_counter() - tried >= rules.timeout
        return failed("timeout", f"no draft within {rules.timeout:g} s") if late else failed(
            status_of(made), made.detail
        )  # fmt: skip
    found = np.stack([one.GetPositions() for one in made.GetConformers()])
    found = found - found.mean(1, keepdims=True)
    return Drafted(mol, smiles, level, graph, found, time.perf_counter() - began)


def judge(mol: Chem.Mol, positions: np.ndarray, relax: bool, energies: bool, fixed: Sequence[int] = ()) -> Judged:
    """Relax conformers (K, N, 3) if asked to, tell which have the asked stereochemistry, and measure them.

    Args:
        mol: with hydrogens.
        positions: Angstrom.
        relax: to MMFF94 minima, where the force field knows the molecule.
        energies: measure them also without relaxation.
        fixed: atoms that relaxation does not move.
    """
    began = time.perf_counter()
    right = np.array([keeps_stereo(mol, one) for one in positions], dtype=bool)
    found = np.full(len(positions), np.nan)
    if (relax or energies) and right.any():
        places = np.flatnonzero(right)
        with rdBase.BlockLogs():
            if relax:
                positions = positions.copy()
                positions[places] = relaxed(mol, positions[places], fixed)
                right[places] = [keeps_stereo(mol, positions[k]) for k in places]
            found[places] = mmff_energies(mol, positions[places])
    return Judged(right, positions, found, time.perf_counter() - began)


def read(mol: Chem.Mol) -> Chem.Mol | drafts.Problem:
    """A molecule of the caller with all hydrogens, or why it cannot be used; it is not changed."""
    if mol.GetNumAtoms() == 0:
        return drafts.Problem("invalid", "no atoms")
    try:
        with rdBase.BlockLogs():
            made = Chem.Mol(mol)
            made.RemoveAllConformers()
            Chem.SanitizeMol(made)
            made = Chem.AddHs(made)
            Chem.AssignStereochemistry(made, cleanIt=False, force=True)
        if (parts := len(Chem.GetMolFrags(made))) > 1:
            return drafts.Problem("disconnected", f"{parts} parts")
        arrays(made)
    except UnsupportedElementError as error:
        return drafts.Problem("unsupported-element", error.element)
    except (ValueError, RuntimeError) as error:
        return drafts.Problem("invalid", " ".join(str(error).split()))
    return made


def canonical(mol: Chem.Mol) -> str:
    """Canonical SMILES, hydrogens implicit."""
    with rdBase.BlockLogs():
        return Chem.MolToSmiles(Chem.RemoveHs(mol))


def key_of(smiles: str) -> int:
    """A number that stands for a molecule in the derivation of seeds."""
    return int.from_bytes(hashlib.sha256(smiles.encode()).digest()[:8], "little")


def status_of(problem: drafts.Problem) -> Status:
    """A problem of `drafts` as a status."""
    return next(status for status in STATUSES if status == problem.reason)


def with_conformers(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """A copy with the conformers (K, N, 3), ids 0 ... K - 1."""
    made = Chem.Mol(mol)
    made.RemoveAllConformers()
    for one in positions:
        made.AddConformer(conformer(one), assignId=True)
    return made


def relaxed(mol: Chem.Mol, positions: np.ndarray, fixed: Sequence[int] = ()) -> np.ndarray:
    """Conformers (K, N, 3) at their MMFF94 minima; as they are where an atom has no parameters."""
    moved = with_conformers(mol, positions)
    if not fixed:
        drafts.relax(moved)
        return np.stack([one.GetPositions() for one in moved.GetConformers()])
    parameters = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    for one in moved.GetConformers() if parameters is not None else ():
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(moved, parameters, confId=one.GetId())
        for i in fixed:
            field.AddFixedPoint(i)
        field.Minimize(maxIts=MOST_STEPS)
    return np.stack([one.GetPositions() for one in moved.GetConformers()])


def mmff_energies(mol: Chem.Mol, positions: np.ndarray) -> np.ndarray:
    """MMFF94 in kcal/mol, (K,); NaN where an atom has no parameters."""
    found = np.full(len(positions), np.nan)
    parameters = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    if parameters is None:
        return found
    field = rdForceFieldHelpers.MMFFGetMoleculeForceField(with_conformers(mol, positions[:1]), parameters)
    for k, one in enumerate(positions):
        found[k] = field.CalcEnergy(one.ravel().tolist())
    return found


def chunks(items: Sequence[int], cost: Sequence[int], bound: int) -> list[list[int]]:
    """Places of items in parts of similar cost, smallest first, whose costs sum to `bound` at most (or one item)."""
    parts: list[list[int]] = []
    filled = 0
    for i in sorted(items, key=lambda i: (cost[i], i)):
        if not parts or filled + cost[i] > bound:
            parts.append([])
            filled = 0
        parts[-1].append(i)
        filled += cost[i]
    return parts


def check_positive(**numbers: float) -> None:
    """An ArgumentError that names the first number that is not > 0."""
    for name, number in numbers.items():
        if not number > 0:
            raise ArgumentError(name, number, "a number > 0")
