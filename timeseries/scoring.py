"""Scoring rules of S samples against the truth: quantile loss, CRPS, energy score, coverage, ranks.

All take samples (S, ...), tensors or arrays, and compute on the CPU, in float64 and by portions, so that what they need
besides their input stays small however many samples there are. Order statistics x_(1) <= ... <= x_(S) carry everything.

**Quantiles** by linear interpolation (type 7 of Hyndman & Fan 1996): level q lies at position 1 + q (S - 1), as
torch.quantile has it, which refuses more than 16 million elements.

**CRPS** of the samples' distribution (Gneiting & Raftery 2007, eq. 21), O(S log S) since
sum_{i<j} (x_(j) - x_(i)) = sum_i (2 i - S - 1) x_(i):

    CRPS = 1/S sum_i |x_i - y|  -  1/(2 S^2) sum_ij |x_i - x_j|

Its expectation exceeds the CRPS of the law that the samples come from by E|x - x'| / (2 S); the *fair* form (Ferro
2014), 1/(2 S (S - 1)) in the second term, has no such excess, so that different S can be compared. The energy score
(eq. 22) is the same with Euclidean norms over all cells of a window: it sees whether paths are coherent, not margins
alone.

**What a perfect forecaster reaches.** If y and the samples are exchangeable, y falls below x_(k) with probability
k / (S + 1), whatever the law. The interpolated quantile of level q therefore covers (1 + q (S - 1)) / (S + 1), a
central interval of level c only c (S - 1) / (S + 1): 0.794 for 16 samples at 0.9. Both are exact where the position is
a whole number, elsewhere for a density that is constant between neighbours (bell shapes reach a little more);
`coverage_bounds` holds always. Measured coverage is to be compared with these, not with c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..core.errors import ArgumentError

__all__ = [
    "QUANTILES",
    "Values",
    "columns",
    "coverage_bounds",
    "crps",
    "energy_score",
    "expected_coverage",
    "expected_share",
    "missing_rate",
    "ordered_crps",
    "ordered_quantiles",
    "pinball",
    "pit_bounds",
    "quantiles",
    "ratio",
    "standard_error",
]

Values: TypeAlias = Tensor | ArrayLike
"""A tensor on any device, or what numpy makes an array of."""

QUANTILES = tuple(i / 20 for i in range(1, 20))
"""The 19 levels 0.05, 0.1, …, 0.95 of CSDI's figure."""

PORTION = 1 << 21  # elements that are sorted at once


def columns(count: int, cells: int) -> Iterator[slice]:
    """Slices of `cells` columns with `count` samples each, so that every slice has a bounded number of elements."""
    width = max(1, PORTION // count)
    for start in range(0, cells, width):
        yield slice(start, start + width)


def quantiles(samples: Values, levels: Sequence[float]) -> Tensor:
    """Quantiles over the first axis by linear interpolation.

    Args:
        samples: (S, ...).
        levels: Q levels from 0 to 1.

    Returns:
        float64 (Q, ...); NaN where a sample is.

    Raises:
        ArgumentError: no samples, or levels outside 0 to 1.
    """
    samples = _samples(samples)
    for level in levels:
        check_level("levels", level)
    flat = samples.reshape(len(samples), -1)
    found = torch.empty(len(levels), flat.shape[1], dtype=torch.float64)
    for part in columns(*flat.shape):
        portion = flat[:, part].T.cpu().double()
        found[:, part] = ordered_quantiles(portion.sort(-1).values, levels)
        found[:, part][:, portion.isnan().any(-1)] = math.nan
    return found.reshape(len(levels), *samples.shape[1:])


def ordered_quantiles(ordered: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles (Q, M) of samples (M, S) that are sorted along their last axis."""
    last = ordered.shape[-1] - 1
    position = torch.tensor(levels, dtype=torch.float64) * last
    below = position.floor().long()
    share = (position - below)[:, None].to(ordered)
    low, high = ordered[:, below].T, ordered[:, (below + 1).clamp(max=last)].T
    return low + share * (high - low)


def pinball(truth: Values, forecast: Values, level: float) -> Tensor:
    """Pinball loss of the forecast of one quantile: level (y - f) above it, (1 - level) (f - y) below; float64."""
    error = torch.as_tensor(truth).double() - torch.as_tensor(forecast).double()
    return torch.where(error >= 0, level * error, (level - 1) * error)


def crps(samples: Values, truth: Values, *, fair: bool = False) -> Tensor:
    """CRPS of every cell, exactly, in the units of the truth.

    Args:
        samples: (S, ...).
        truth: (...).
        fair: without the excess of a finite number of samples; needs two. It may be negative.

    Returns:
        float64 (...).

    Raises:
        ArgumentError: shapes that do not fit, no samples, or a single one where it is to be fair.
    """
    samples, truth = _samples(samples), torch.as_tensor(truth).cpu().double()
    if samples.shape[1:] != truth.shape:
        raise ArgumentError("truth", truth, f"shape {tuple(samples.shape[1:])}, as one sample has")
    if fair and len(samples) < 2:
        raise ArgumentError("samples", samples, "two samples or more for the fair form")
    flat, values = samples.reshape(len(samples), -1), truth.reshape(-1)
    found = torch.empty_like(values)
    for part in columns(*flat.shape):
        ordered = flat[:, part].T.cpu().double().sort(-1).values
        found[part] = ordered_crps(ordered, values[part])[int(fair)]
    return found.reshape(truth.shape)


def ordered_crps(ordered: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """CRPS and its fair form, (M,) each, of samples (M, S) sorted along the last axis; NaN for a fair one of one."""
    count = ordered.shape[-1]
    ranks = torch.arange(1 - count, count, 2, dtype=ordered.dtype)
    # Differences from the truth, so that large offsets of the data cancel before they are multiplied by ranks.
    offset = ordered - truth[:, None]
    reach, spread = offset.abs().mean(-1), offset @ ranks
    fair = reach - spread / (count * (count - 1)) if count > 1 else torch.full_like(reach, math.nan)
    return reach - spread / count**2, fair


def energy_score(samples: Values, truth: Values, mask: Values, *, fair: bool = False) -> Tensor:
    """Energy score of every window over its counted cells; O(S^2) distances.

    Args:
        samples: (S, N, ...).
        truth: (N, ...).
        mask: bool (N, ...), the counted cells; others are not looked at.
        fair: as in `crps`.

    Returns:
        float64 (N,); NaN for a window without counted cells.

    Raises:
        ArgumentError: no samples, or a single one where it is to be fair.
    """
    samples, truth, mask = _samples(samples), torch.as_tensor(truth).cpu(), torch.as_tensor(mask).cpu().bool()
    count = len(samples)
    if fair and count < 2:
        raise ArgumentError("samples", samples, "two samples or more for the fair form")
    found = torch.full((len(truth),), math.nan, dtype=torch.float64)
    for n in mask.flatten(1).any(1).nonzero()[:, 0].tolist():
        offset = samples[:, n].cpu()[:, mask[n]].double() - truth[n][mask[n]].double()
        spread = torch.pdist(offset).sum() / (count * (count - 1) if fair else count**2)
        found[n] = torch.linalg.vector_norm(offset, dim=1).mean() - spread
    return found


def expected_share(level: float, count: int) -> float:
    """Probability that the truth lies below the interpolated quantile of `level` of `count` exchangeable samples."""
    check_level("level", level)
    if count < 1:
        raise ArgumentError("count", count, "a number of samples from 1")
    return (1 + level * (count - 1)) / (count + 1)


def expected_coverage(level: float, count: int) -> float:
    """Coverage that a perfect forecaster's central interval of `level` has when it is read off `count` samples."""
    check_level("level", level)
    if count < 1:
        raise ArgumentError("count", count, "a number of samples from 1")
    return level * (count - 1) / (count + 1)


def coverage_bounds(level: float, count: int) -> tuple[float, float]:
    """Least and greatest such coverage over all continuous laws: that of the next order statistics in- and outside."""
    expected_coverage(level, count)
    position = (1 - level) / 2 * (count - 1)
    whole = round(position)
    inner, outer = math.ceil(position), math.floor(position)
    if abs(position - whole) < 1e-9 * count:  # a level in decimal digits meets an order statistic up to rounding
        inner = outer = whole
    return max(0, count - 1 - 2 * inner) / (count + 1), (count - 1 - 2 * outer) / (count + 1)


def pit_bounds(ordered: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Ends (M,), (M,) of the interval on which the probability integral transform of each truth is spread evenly.

    With r samples below and e equal ones it is [r, r + e + 1] / (S + 1). Histograms of it are flat in expectation for
    every number of samples and bins if truth and samples are exchangeable, without random ranks (after Czado, Gneiting
    & Held 2009, sec. 2).

    Args:
        ordered: (M, S), sorted along the last axis.
        truth: (M,).
    """
    ordered, truth = ordered.contiguous(), truth[:, None].contiguous()
    below = torch.searchsorted(ordered, truth, right=False)[:, 0]
    up_to = torch.searchsorted(ordered, truth, right=True)[:, 0]
    count = ordered.shape[-1] + 1
    return below.double() / count, (up_to + 1).double() / count


def ratio(above: float, below: float) -> float | None:
    """Above over below; None if that is no number."""
    found = above / below if below else math.nan
    return found if math.isfinite(found) else None


def standard_error(above: Tensor, below: Tensor) -> float | None:
    """Standard error of sum above / sum below over independent windows; None for fewer than two."""
    count, total = len(above), float(below.sum())
    if count < 2 or total == 0:
        return None
    residual = above - below * (above.sum() / total)
    return ratio(math.sqrt(float(residual.square().sum()) * count / (count - 1)), total)


def missing_rate(known: Values, present: Values | None = None) -> Tensor:
    """Share of cells (N,) that a model was not given, padding rows left out.

    Args:
        known: bool (N, L, K), the given cells.
        present: bool (N, L), False on padding rows; absent = all present.
    """
    known = torch.as_tensor(known).bool()
    rows = torch.ones(known.shape[:2], dtype=torch.bool) if present is None else torch.as_tensor(present).bool()
    given = (known & rows[..., None]).sum((1, 2)).double()
    return 1 - given / (rows.sum(1).double() * known.shape[2]).clamp(min=1)


def check_level(argument: str, level: float) -> None:
    """Raise an ArgumentError unless `level` lies from 0 to 1."""
    if not 0 <= level <= 1:
        raise ArgumentError(argument, level, "a level from 0 to 1")


def _samples(samples: Values) -> Tensor:
    samples = torch.as_tensor(samples)
    if samples.ndim == 0 or len(samples) == 0:
        raise ArgumentError("samples", samples, "one sample or more, along the first axis")
    return samples
