"""Ensembles of several methods for the same molecules, measured by the same figures.

A method draws conformers of molecules; what it draws is compared with the reference conformers of each. A molecule
that fails stays in every average of coverage, as nothing; averages of what only conformers have (distances, bonds,
strain) are over the molecules that have them, and say over how many. Every figure of a molecule is the mean over its
conformers, so that all molecules weigh the same.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from ..core.errors import ArgumentError
from . import geometry, metrics, validity
from .automorphisms import Symmetry, symmetry
from .drafts import Problem, embed, relax
from .rmsd import positions, rmsd

__all__ = ["SWEEP", "Drawn", "Draws", "Reference", "baselines", "measure", "relaxed_draws", "timed"]

Floats = NDArray[np.float64]

SWEEP = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25)
"""Thresholds in Å at which coverage is told besides the protocol's own."""
BEST_OF = (1, 2, 5, 10, 20, 50, 100)
TIMEOUT = 30  # seconds for the drafts of a molecule, as for the model's own


@final
@dataclass(frozen=True)
class Reference:
    """A molecule and what its conformers should be.

    Args:
        name: to be told apart by.
        mol: all hydrogens as atoms, stereochemistry specified; its conformers are the reference ones, one at least.
    """

    name: str
    mol: Chem.Mol


@final
@dataclass(frozen=True)
class Drawn:
    """Conformers of one molecule, or why there are none.

    Args:
        mol: atoms in the order of the molecule asked for; None of a failure.
        status: "ok", or the reason.
    """

    mol: Chem.Mol | None
    status: str = "ok"


@final
@dataclass(frozen=True)
class Draws:
    """What a method drew for all molecules, and the seconds it took."""

    method: str
    each: Sequence[Drawn]
    seconds: float


Draw = Callable[[Sequence[Chem.Mol], int], Sequence[Drawn]]
"""Molecules without conformers, and the number for each -> what was drawn."""


def requests(references: Sequence[Reference], count: int | None, ratio: int) -> Iterator[tuple[int, list[int]]]:
    """How many conformers are drawn of which molecules: `count`, but never less than the protocol looks at."""
    wanted = [max(count or 0, ratio * one.mol.GetNumConformers()) for one in references]
    for number in sorted(set(wanted)):
        yield number, [i for i, each in enumerate(wanted) if each == number]


def timed(method: str, draw: Draw, references: Sequence[Reference], count: int | None, ratio: int = 2) -> Draws:
    """Draw conformers of all molecules by a method that does not see the references.

    Raises:
        ArgumentError: the method changed atoms or their order.
    """
    each: list[Drawn] = [Drawn(None, "not drawn")] * len(references)
    started = time.monotonic()
    for number, places in requests(references, count, ratio):
        mols = [Chem.Mol(references[i].mol, True) for i in places]
        for i, drawn in zip(places, draw(mols, number), strict=True):
            each[i] = drawn
    seconds = time.monotonic() - started
    for reference, drawn in zip(references, each, strict=True):
        if drawn.mol is not None and elements(drawn.mol) != elements(reference.mol):
            raise ArgumentError(method, Chem.MolToSmiles(drawn.mol), f"the atoms of {reference.name} in their order")
    return Draws(method, each, seconds)


def baselines(references: Sequence[Reference], count: int | None, ratio: int = 2, seed: int = 0) -> list[Draws]:
    """ETKDGv3 without embeddings of the wrong stereochemistry, and the same conformers relaxed by MMFF94."""

    def etkdg(mols: Sequence[Chem.Mol], number: int) -> list[Drawn]:
        made = [embed(mol, number, (seed + zlib.crc32(mol.ToBinary())) % 2**31, TIMEOUT) for mol in mols]
        return [Drawn(None, one.reason) if isinstance(one, Problem) else Drawn(one) for one in made]

    plain = timed("ETKDGv3", etkdg, references, count, ratio)
    return [plain, relaxed_draws(plain)]


def relaxed_draws(draws: Draws) -> Draws:
    """The same conformers at MMFF94 minima, and the seconds of both."""
    started, each = time.monotonic(), []
    for drawn in draws.each:
        copy = drawn.mol and Chem.Mol(drawn.mol)
        found = copy and relax(copy)
        each.append(Drawn(None, found.reason) if isinstance(found, Problem) else Drawn(copy, drawn.status))
    return Draws(f"{draws.method} + MMFF94", each, draws.seconds + time.monotonic() - started)


def measure(
    references: Sequence[Reference],
    draws: Sequence[Draws],
    protocol: metrics.Protocol,
    delta: float,
    *,
    busted: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """All figures of all methods, JSON-able.

    Args:
        references: the molecules.
        draws: by each method, in the order of the references.
        protocol, delta: of coverage; delta in Å.
        busted: how many conformers of each method PoseBusters looks at, 0.3 s each; one of each molecule before a
            second one of any.
        seed: of bootstrap intervals.

    Returns:
        {method: {"coverage": `metrics.summary`, "sweep": …, "best of": {n: mean distance}, "figures": {name:
        `metrics.statistics`}, "distributions": …, "stereo": …, "posebusters": …, "statuses": …, "seconds per
        conformer", "molecules": one row for each}}

    Raises:
        ArgumentError: no molecules, or draws of other ones.
    """
    if not references:
        raise ArgumentError("references", references, "a molecule or more")
    for one in draws:
        if len(one.each) != len(references):
            raise ArgumentError("draws", f"{len(one.each)} molecules by {one.method}", f"{len(references)}")
    maps = [(symmetry(one.mol), symmetry(one.mol, heavy=False)) for one in references]
    return {one.method: figures(references, one, maps, protocol, delta, busted, seed) for one in draws}


def figures(
    references: Sequence[Reference],
    draws: Draws,
    maps: Sequence[tuple[Symmetry, Symmetry]],
    protocol: metrics.Protocol,
    delta: float,
    busted: int,
    seed: int,
) -> dict[str, Any]:
    """All figures of one method; see `measure`."""
    matrices, rows, ensembles, stereo = [], [], [], []
    for reference, drawn, (heavy, every) in zip(references, draws.each, maps, strict=True):
        real = positions(reference.mol)
        found = np.zeros((0, *real.shape[1:])) if drawn.mol is None else positions(drawn.mol)
        whole = np.isfinite(found).all((1, 2))
        found = found[whole]
        matrices.append(rmsd(found, real, heavy))
        row: dict[str, Any] = {"molecule": reference.name, "status": drawn.status, "conformers": len(found)}
        if len(found) and drawn.mol is not None:
            mol = with_positions(reference.mol, found)
            stereo.append(validity.stereo_right(mol))
            row |= of_molecule(mol, found, real, matrices[-1], heavy, every)
            ensembles.append((mol, found, real))
        rows.append(row)
    kept = [matrix for matrix in matrices if len(matrix)]
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    conformers = sum(row["conformers"] for row in rows)
    return {
        "coverage": metrics.summary([metrics.scores(each, protocol, delta) for each in matrices], seed=seed),
        "sweep": metrics.sweep(matrices, protocol, SWEEP),
        "best of": {
            n: float(np.mean([metrics.best_of(each.min(1), n) for each in kept]))
            for n in BEST_OF
            if kept and n <= min(map(len, kept))
        },
        "figures": {
            name: metrics.statistics([row.get(name, np.nan) for row in rows], seed=seed) for name in names
        },
        "distributions": geometry.distributional_errors(ensembles),
        "stereo": stereo_summary(stereo),
        "posebusters": busts([mol for mol, _, _ in ensembles], busted),
        "statuses": dict(Counter(row["status"] for row in rows)),
        "conformers": conformers,
        "seconds per conformer": draws.seconds / conformers if conformers else None,
        "molecules": [
            {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
            for row in rows
        ],
    }  # fmt: skip


def of_molecule(
    mol: Chem.Mol, x: Floats, real: Floats, distances: Floats, heavy: Symmetry, every: Symmetry
) -> dict[str, float]:
    """Figures of one molecule's ensemble; NaN where there is nothing to tell."""
    all_atoms = rmsd(x, real, every)
    local = geometry.local_errors(mol, x, real, every)
    strained = validity.strain(mol)
    spread = strained.energies[np.isfinite(strained.energies)]
    return {
        "heavy-atom RMSD, best, Å": float(distances.min()),
        "heavy-atom RMSD, mean, Å": float(distances.min(1).mean()),
        "all-atom RMSD, best, Å": float(all_atoms.min()),
        "all-atom RMSD, mean, Å": float(all_atoms.min(1).mean()),
        **{f"error of {name}": float(error.mean()) for name, error in local.items()},
        "error of radius of gyration, Å": float(
            abs(geometry.radius_of_gyration(mol, x).mean() - geometry.radius_of_gyration(mol, real).mean())
        ),
        "diversity (heavy-atom RMSD among the drawn), Å": geometry.diversity(rmsd(x, x, heavy)),
        "diversity of the references, Å": geometry.diversity(rmsd(real, real, heavy)),
        "strain, kcal/mol": float(strained.strain.mean()),
        "energy window, kcal/mol": float(np.ptp(spread)) if len(spread) else float("nan"),
    }


def stereo_summary(each: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    """How much of the asked stereochemistry is right; None where nothing is asked."""
    asked = [right for right in each if right.shape[1]]
    elements = sum(right.size for right in asked)
    conformers = sum(len(right) for right in asked)
    return {
        "elements": elements,
        "elements right": sum(int(right.sum()) for right in asked) / elements if elements else None,
        "conformers": conformers,
        "conformers right": sum(int(right.all(1).sum()) for right in asked) / conformers if conformers else None,
    }


def busts(mols: Sequence[Chem.Mol], count: int) -> dict[str, Any] | None:
    """PoseBusters on the first conformers of all molecules, then the second ones, and so on up to `count`."""
    most = max((mol.GetNumConformers() for mol in mols), default=0)
    chosen = [(mol, k) for k in range(most) for mol in mols if k < mol.GetNumConformers()][:count]
    verdicts = [validity.pose_busters(validity.single(mol, k))[0] for mol, k in chosen]
    if not verdicts:
        return None
    names = dict.fromkeys(name for one in verdicts for name in one.tests)
    return {
        "conformers": len(verdicts),
        "passed": sum(one.passed for one in verdicts) / len(verdicts),
        "unanswered": sum(one.unanswered for one in verdicts) / len(verdicts),
        "failures": {name: sum(one.tests.get(name) is False for one in verdicts) for name in names},
    }


def with_positions(mol: Chem.Mol, x: Floats) -> Chem.Mol:
    """A copy of the molecule whose conformers are at x (C, N, 3), ids from 0."""
    copy = Chem.Mol(mol, True)
    for each in x:
        conformer = Chem.Conformer(len(each))
        conformer.Set3D(True)
        conformer.SetPositions(np.ascontiguousarray(each))
        copy.AddConformer(conformer, assignId=True)
    return copy


def elements(mol: Chem.Mol) -> list[int]:
    """Atomic numbers in order."""
    return [atom.GetAtomicNum() for atom in mol.GetAtoms()]
