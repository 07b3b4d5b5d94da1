"""How well drawn conformers cover the reference ones, and how near they come: coverage (COV) and matching (MAT).

Of a molecule with R references and G drawn conformers at distances d (G, R) in Å, least over symmetries (`rmsd`):

    COV-R = share of references with  min_g d <= delta        MAT-R = mean over references of min_g d    (recall)
    COV-P = share of drawn conformers with min_r d <= delta   MAT-P = mean over drawn ones of min_r d    (precision)

Two protocols are in use, and their figures must not stand in one column; here a figure carries its `Protocol`, and
summaries refuse to mix them.

- `P1` (Xu et al. 2022, GeoDiff, arXiv:2203.02923, and the ConfVAE and ConfGF line before it): distances of heavy atoms,
  twice as many conformers as references, covered at `<= delta`, delta = 0.5 Å for QM9, 1.25 Å for Drugs.
- `P2` (Ganea et al. 2021, GeoMol, arXiv:2106.07802; Jing et al. 2022, torsional diffusion, arXiv:2206.01729): the same
  distances and numbers, covered at `< delta`, delta = 0.5 Å for QM9, 0.75 Å for Drugs; failures are zero coverage.

**Failures.** A molecule without conformers covers nothing: COV is 0 in both directions under either protocol, and MAT,
which has no value, is averaged over the others, whose number is told. P1 as published leaves such molecules out, which
flatters who fails; the summary says how many there were. Conformers missing from the number that was asked for count as
uncovered in COV-P. Superfluous ones, beyond the protocol's number, are not looked at.

**Errors.** Molecules are the units: standard errors of means are over molecules, and intervals of mean and median are
95 % percentile intervals of a bootstrap over molecules (Efron 1979). They do not cover the model's training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ArgumentError

__all__ = [
    "P1",
    "P2",
    "PROTOCOLS",
    "Protocol",
    "Scores",
    "best_of",
    "failed",
    "scores",
    "statistics",
    "summary",
    "sweep",
]

Floats = NDArray[np.float64]

RESAMPLES = 1000
FIGURES = ("COV-R", "MAT-R", "COV-P", "MAT-P")


@final
@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules under which coverage is measured.

    Args:
        name: to stand beside every figure.
        inclusive: whether a distance of exactly delta covers.
        deltas: the usual thresholds by set of data, Å.
        ratio: drawn conformers for each reference.
    """

    name: str
    inclusive: bool
    deltas: Mapping[str, float]
    ratio: int = 2

    def covers(self, distances: Floats, delta: float) -> NDArray[np.bool_]:
        """Which distances are small enough."""
        return distances <= delta if self.inclusive else distances < delta

    @property
    def rule(self) -> str:
        """The rule in short: `<=` or `<`."""
        return "<=" if self.inclusive else "<"


P1 = Protocol(name="P1", inclusive=True, deltas=MappingProxyType({"qm9": 0.5, "drugs": 1.25}))
"""GeoDiff's rules."""
P2 = Protocol(name="P2", inclusive=False, deltas=MappingProxyType({"qm9": 0.5, "drugs": 0.75}))
"""The rules of GeoMol and torsional diffusion."""
PROTOCOLS = (P1, P2)


@final
@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of one molecule.

    Args:
        protocol, delta: the rules, and the threshold in Å.
        coverage_recall, coverage_precision: from 0 to 1.
        matching_recall, matching_precision: Å; NaN for a molecule that failed.
        references, drawn, missing: numbers of conformers: wanted, looked at, and short of what the protocol asks for.
    """

    protocol: Protocol
    delta: float
    coverage_recall: float
    matching_recall: float
    coverage_precision: float
    matching_precision: float
    references: int
    drawn: int
    missing: int

    @property
    def failed(self) -> bool:
        """Whether the molecule has no conformer at all."""
        return self.drawn == 0

    def figures(self) -> tuple[float, float, float, float]:
        """COV-R, MAT-R, COV-P, MAT-P."""
        return self.coverage_recall, self.matching_recall, self.coverage_precision, self.matching_precision


def scores(distances: Floats, protocol: Protocol, delta: float) -> Scores:
    """Coverage and matching of one molecule.

    Args:
        distances: (G, R), Å: row g holds the distances of drawn conformer g from all references. With no rows the
            molecule failed.
        protocol: `P1` or `P2`; the first `protocol.ratio * R` rows are looked at.
        delta: threshold, Å.

    Raises:
        ArgumentError: no references, distances that are negative or not finite, or a threshold that is.
    """
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 2 or distances.shape[1] == 0:
        raise ArgumentError("distances", distances, "a matrix, drawn x reference conformers, with a reference or more")
    if not (np.isfinite(distances).all() and (distances >= 0).all()):
        raise ArgumentError("distances", distances, "distances from 0, all finite")
    if not (math.isfinite(delta) and delta >= 0):
        raise ArgumentError("delta", delta, "a threshold from 0, Å")
    references = distances.shape[1]
    asked = protocol.ratio * references
    distances = distances[:asked]
    drawn = len(distances)
    nan = math.nan
    if not drawn:
        recall = precision = (0.0, nan)
    else:
        nearest_drawn, nearest_reference = distances.min(0), distances.min(1)
        recall = float(protocol.covers(nearest_drawn, delta).mean()), float(nearest_drawn.mean())
        precision = float(protocol.covers(nearest_reference, delta).sum() / asked), float(nearest_reference.mean())
    return Scores(
        protocol=protocol,
        delta=float(delta),
        coverage_recall=recall[0],
        matching_recall=recall[1],
        coverage_precision=precision[0],
        matching_precision=precision[1],
        references=references,
        drawn=drawn,
        missing=asked - drawn,
    )


def failed(references: int, protocol: Protocol, delta: float) -> Scores:
    """The scores of a molecule without any conformer: zero coverage."""
    return scores(np.zeros((0, references)), protocol, delta)


def summary(each: Sequence[Scores], *, seed: int = 0) -> dict[str, Any]:
    """Figures over molecules.

    Args:
        each: one entry per molecule, failures included.
        seed: of the bootstrap.

    Returns:
        {"protocol", "delta", "rule", "molecules", "failed", "missing conformers", "COV-R": `statistics`, "MAT-R": …,
        "COV-P": …, "MAT-P": …}; COV from 0 to 1, MAT in Å.

    Raises:
        ArgumentError: nothing to average, or more than one protocol or threshold.
    """
    rules = {(one.protocol.name, one.protocol.inclusive, one.protocol.ratio, one.delta) for one in each}
    if len(rules) != 1:
        raise ArgumentError("each", sorted(rules), "scores of one protocol and one threshold")
    first = each[0]
    columns = np.array([one.figures() for one in each]).T
    return {
        "protocol": first.protocol.name,
        "delta": first.delta,
        "rule": f"{first.protocol.rule} {first.delta:g} Å, {first.protocol.ratio} conformers for each reference",
        "molecules": len(each),
        "failed": sum(one.failed for one in each),
        "missing conformers": sum(one.missing for one in each),
        **{name: statistics(column, seed=seed) for name, column in zip(FIGURES, columns, strict=True)},
    }


def sweep(matrices: Sequence[Floats], protocol: Protocol, deltas: Sequence[float]) -> list[dict[str, float]]:
    """Mean COV-R and COV-P over molecules by threshold: where one threshold saturates, others still tell.

    Args:
        matrices: distances of each molecule as `scores` takes them; failures are (0, R).
        deltas: thresholds, Å.

    Returns:
        [{"delta", "COV-R", "COV-P"}, …]
    """
    rows = []
    for delta in deltas:
        each = [scores(matrix, protocol, delta) for matrix in matrices]
        recall, precision = (
            float(np.mean([getattr(one, f"coverage_{way}") for one in each])) for way in ("recall", "precision")
        )
        rows.append({"delta": float(delta), "COV-R": recall, "COV-P": precision})
    return rows


def statistics(values: Sequence[float] | Floats, *, seed: int = 0) -> dict[str, Any]:
    """Mean and median over molecules with their errors; None where there is nothing to tell.

    Args:
        values: one per molecule; NaN where a molecule has no value: left out, and counted by "count".
        seed: of the bootstrap.

    Returns:
        {"mean", "median", "standard error" (of the mean), "mean interval", "median interval" (95 %, bootstrap over
        molecules), "count"}.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[~np.isnan(x)]
    n = len(x)
    found: dict[str, Any] = {"mean": None, "median": None, "standard error": None, "count": n}
    found |= {"mean interval": None, "median interval": None}
    if n:
        found |= {"mean": float(x.mean()), "median": float(np.median(x))}
    if n > 1:
        drawn = x[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))]
        found["standard error"] = float(x.std(ddof=1) / n**0.5)
        for name, resampled in (("mean", drawn.mean(1)), ("median", np.median(drawn, 1))):
            found[f"{name} interval"] = np.quantile(resampled, (0.025, 0.975)).tolist()
    return found


def best_of(distances: Sequence[float] | Floats, count: int) -> float:
    """The distance of the best of `count` conformers, expected over which `count` of those drawn one takes.

    The mean of the smallest of a random subset, from order statistics: sum_i d_(i) C(n - i, count - 1) / C(n, count).
    At 1 it is the mean, at n the least.

    Args:
        distances: (n,) of conformers drawn alike, to one reference. count: 1 to n.

    Raises:
        ArgumentError: a count beyond what there is.
    """
    ordered = np.sort(np.asarray(distances, dtype=np.float64))
    n = len(ordered)
    if not 1 <= count <= n:
        raise ArgumentError("count", count, f"a number from 1 to {n}, the conformers there are")
    weights = [math.comb(n - i, count - 1) / math.comb(n, count) for i in range(1, n + 1)]
    return float(ordered @ np.array(weights))
