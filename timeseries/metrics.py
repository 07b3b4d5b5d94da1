"""What imputations and forecasts are worth: figures of S samples at the cells whose truth was held out.

Samples have shape (S, N, L, K), truth and mask (N, L, K); only cells in the mask are looked at. Units are those in
which samples and truth come; say which when printing (published figures of PhysioNet are in normalised units).

- CRPS: the figure of CSDI (Tashiro et al. 2021, app. E.3), the mean over q = 0.05, …, 0.95 of
  2 sum pinball_q(y, quantile_q) / sum |y|, sums over all cells. For a single sample, a point forecast, it is
  sum |error| / sum |y|, for the levels average to 1/2: so baselines and models stand in one column.
- CRPS exact, CRPS fair: the CRPS itself, mean over cells, see `scoring`.
- CRPS-sum: the first figure for the sum over features, of every row with a counted cell. Given cells (`known`) enter
  both sums with their values; cells that are neither given nor counted enter neither.
- MAE and RMSE, of the median (the middle of two for even S; CSDI's code takes the lower) and of the mean.
- intervals: coverage and mean width of central intervals, beside the coverage that a perfect forecaster reaches with
  as many samples; quantiles: the share of truths at or below each, likewise; PIT: shares in equal bins.
- the same by feature, and by the missing rate of windows. Figures relative to sum |y| are relative to the group's own.
- standard errors: of windows, for ratios by Cochran 1977, eq. 2.39; for windows that do not overlap, of a given model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from ..core.errors import ArgumentError
from .scoring import (
    QUANTILES,
    Values,
    check_level,
    columns,
    coverage_bounds,
    crps,
    energy_score,
    expected_coverage,
    expected_share,
    missing_rate,
    ordered_crps,
    ordered_quantiles,
    pinball,
    pit_bounds,
    quantiles,
    ratio,
    standard_error,
)

__all__ = [
    "LEVELS",
    "QUANTILES",
    "RATES",
    "Scores",
    "coverage_bounds",
    "crps",
    "energy_score",
    "expected_coverage",
    "expected_share",
    "figures",
    "missing_rate",
    "pinball",
    "quantiles",
]

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Central intervals that are reported."""
RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Edges of the groups of windows by missing rate; a group holds its lower edge, the last one both."""
BINS = 10
PLAIN = ("cells", "truth", "MAE", "MSE", "MAE of mean", "MSE of mean", "CRPS exact", "CRPS fair")
LOSSES = len(PLAIN)  # the first column of quantile losses


def figures(
    samples: Values,
    truth: Values,
    mask: Values,
    *,
    known: Values | None = None,
    missing: Values | None = None,
    features: Sequence[str] | None = None,
    levels: Sequence[float] = LEVELS,
) -> dict[str, Any]:
    """All figures at once, JSON-able; see `Scores`, whose arguments these are."""
    scores = Scores(features, levels=levels)
    scores.add(samples, truth, mask, known=known, missing=missing)
    return scores.figures()


@final
class Scores:
    """Figures of windows that come batch by batch; the same, up to rounding, as of all at once.

    Args:
        features: names of the K features, for the figures of each; absent = none of these.
        levels: of the central intervals.
        energy: whether to compute energy scores, means over windows, the only part that is quadratic in S.

    Raises:
        ArgumentError: levels outside 0 to 1.
    """

    def __init__(
        self, features: Sequence[str] | None = None, *, levels: Sequence[float] = LEVELS, energy: bool = True
    ) -> None:
        for level in levels:
            check_level("levels", level)
        self.features = None if features is None else tuple(features)
        self.levels = tuple(levels)
        self.energy = energy
        self.samples = 0
        """Samples per window, once some have been added."""
        ends = [side for level in self.levels for side in ((1 - level) / 2, (1 + level) / 2)]
        self._at = (*QUANTILES, 0.5, *ends)
        self._cells: Tensor | None = None  # (groups, K, figures): sums over cells
        self._rows = torch.zeros(len(RATES), 2, dtype=torch.float64)  # loss and |y| of sums over features
        self._windows: list[Tensor] = []  # (N, figures): sums over the cells of each window
        self._energies: list[Tensor] = []
        self._groups: list[Tensor] = []

    def add(
        self,
        samples: Values,
        truth: Values,
        mask: Values,
        *,
        known: Values | None = None,
        missing: Values | None = None,
    ) -> None:
        """Take in N windows.

        Args:
            samples: (S, N, L, K).
            truth: (N, L, K), finite at counted and given cells.
            mask: bool (N, L, K), the counted cells.
            known: bool (N, L, K), the given cells, for CRPS-sum; absent = none.
            missing: (N,), the missing rate of each window, see `missing_rate`; absent = not grouped.

        Raises:
            ArgumentError: shapes that do not fit each other or earlier batches, cells both counted and given, values
                that are not finite at counted cells, rates outside 0 to 1. Nothing was taken in then.
        """
        samples, truth, mask = torch.as_tensor(samples), torch.as_tensor(truth).cpu(), torch.as_tensor(mask).cpu()
        given = torch.zeros_like(mask) if known is None else torch.as_tensor(known).cpu()
        rates = None if missing is None else torch.as_tensor(missing).cpu().double()
        self._check(samples, truth, mask, given, rates)
        if rates is None:
            groups = torch.full((len(truth),), len(RATES) - 1)
        else:
            groups = torch.bucketize(rates, torch.tensor(RATES[1:-1], dtype=torch.float64), right=True)
        width, features = LOSSES + 2 * len(QUANTILES) + 2 * len(self.levels) + BINS, truth.shape[-1]
        cells = torch.zeros(len(RATES) * features, width, dtype=torch.float64)
        windows = torch.zeros(len(truth), width, dtype=torch.float64)
        rows = self._sums(samples, truth, mask, given, groups)
        energies = energy_score(samples, truth, mask) if self.energy else torch.full((len(truth),), math.nan)
        where = mask.nonzero()
        for part in columns(len(samples), len(where)):
            n, l, k = where[part].T
            found = self._figures(samples[:, n, l, k].T.cpu().double(), truth[n, l, k].double())
            cells.index_add_(0, groups[n] * features + k, found)
            windows.index_add_(0, n, found)
        cells = cells.reshape(len(RATES), features, width)
        self._cells = cells if self._cells is None else self._cells + cells
        self._rows = self._rows + rows
        self._windows.append(windows)
        self._energies.append(energies)
        self._groups.append(groups)
        self.samples = len(samples)

    def figures(self) -> dict[str, Any]:
        """Everything so far, JSON-able; None where there is nothing to measure.

        Returns:
            samples, windows and cells (numbers), CRPS, CRPS exact, CRPS fair, CRPS-sum, MAE, RMSE, MAE of mean, RMSE of
            mean, energy score, standard errors {CRPS, MAE, RMSE, energy score}, intervals [{level, expected, coverage,
            width}], quantiles [{level, expected, share}], PIT [shares], features {name: figures of one} and missing
            rate [{from, to, figures of one}].

        Raises:
            ArgumentError: nothing was added.
        """
        if self._cells is None:
            raise ArgumentError("windows", 0, "some windows before figures are asked for")
        windows, groups, energies = torch.cat(self._windows), torch.cat(self._groups), torch.cat(self._energies)
        counted = windows[:, 0] > 0
        found: dict[str, Any] = {"samples": self.samples, "windows": int(counted.sum())}
        found |= self._shown(self._cells.sum((0, 1)), self._rows.sum(0), energies[counted])
        found["standard errors"] = _errors(windows[counted], energies[counted])
        if self.features is not None:
            each = self._cells.sum(0)
            found["features"] = {name: self._shown(each[k]) for k, name in enumerate(self.features)}
        grouped = []
        for g, (low, high) in enumerate(zip(RATES[:-1], RATES[1:], strict=True)):
            chosen = counted & (groups == g)
            if chosen.any():
                part = self._shown(self._cells[g].sum(0), self._rows[g], energies[chosen])
                grouped.append({"from": low, "to": high, "windows": int(chosen.sum()), **part})
        if grouped:
            found["missing rate"] = grouped
        return found

    def _check(self, samples: Tensor, truth: Tensor, mask: Tensor, known: Tensor, rates: Tensor | None) -> None:
        if samples.ndim != 4 or len(samples) == 0:
            raise ArgumentError("samples", samples, "shape (S, N, L, K), one sample or more")
        for name, values in (("truth", truth), ("mask", mask), ("known", known)):
            if values.shape != samples.shape[1:]:
                raise ArgumentError(name, values, f"shape {tuple(samples.shape[1:])}, as one sample has")
            if name != "truth" and values.dtype != torch.bool:
                raise ArgumentError(name, values, "booleans")
        if self.samples not in (0, len(samples)):
            raise ArgumentError("samples", samples, f"{self.samples} samples, as before")
        size = len(self.features) if self.features is not None else None
        size = self._cells.shape[1] if self._cells is not None else size
        if size not in (None, truth.shape[-1]):
            raise ArgumentError("truth", truth, f"{size} features, as named or as before")
        if bool((mask & known).any()):
            raise ArgumentError("known", known, "cells that are not counted: what is given is not measured")
        if not bool(truth[mask | known].isfinite().all()):
            raise ArgumentError("truth", truth, "finite values at counted and given cells")
        for sample in samples:
            if not bool((sample.cpu().isfinite() | ~mask).all()):
                raise ArgumentError("samples", samples, "finite values at counted cells")
        if rates is not None and (rates.shape != truth.shape[:1] or not bool(((rates >= 0) & (rates <= 1)).all())):
            raise ArgumentError("missing", rates, f"rates from 0 to 1 of shape {tuple(truth.shape[:1])}")

    def _figures(self, values: Tensor, truth: Tensor) -> Tensor:
        """All figures (M, width) of cells with samples (M, S)."""
        mean = values.mean(-1)
        ordered = values.sort(-1).values
        at = ordered_quantiles(ordered, self._at)
        levels, median, ends = at[: len(QUANTILES)], at[len(QUANTILES)], at[len(QUANTILES) + 1 :]
        low, high = ends[::2], ends[1::2]
        exact, fair = ordered_crps(ordered, truth)
        errors = [error for point in (median, mean) for error in ((point - truth).abs(), (point - truth).square())]
        losses = [2 * pinball(truth, level, q) for q, level in zip(QUANTILES, levels, strict=True)]
        start, stop = pit_bounds(ordered, truth)
        edges = torch.arange(BINS + 1, dtype=torch.float64)[:, None] / BINS
        shares = ((edges - start) / (stop - start)).clamp(0, 1).diff(dim=0)
        inside = ((low <= truth) & (truth <= high)).double()
        plain = [torch.ones_like(truth), truth.abs(), *errors, exact, fair, *losses]
        return torch.cat([torch.stack(plain), (truth <= levels).double(), inside, high - low, shares]).T

    def _sums(self, samples: Tensor, truth: Tensor, mask: Tensor, known: Tensor, groups: Tensor) -> Tensor:
        """Quantile loss, mean over the levels, and |y| of sums over features, by group (groups, 2)."""
        found = torch.zeros_like(self._rows)
        where = mask.any(-1).nonzero()
        for part in columns(len(samples) * truth.shape[-1], len(where)):
            n, l = where[part].T
            given = torch.where(known[n, l], truth[n, l], 0).double().sum(-1)
            total = given + torch.where(mask[n, l], truth[n, l], 0).double().sum(-1)
            drawn = given + torch.where(mask[n, l], samples[:, n, l].cpu(), 0).double().sum(-1)
            at = ordered_quantiles(drawn.T.sort(-1).values, QUANTILES)
            loss = torch.stack([2 * pinball(total, level, q) for q, level in zip(QUANTILES, at, strict=True)]).mean(0)
            found.index_add_(0, groups[n], torch.stack([loss, total.abs()], -1))
        return found

    def _shown(self, sums: Tensor, rows: Tensor | None = None, energies: Tensor | None = None) -> dict[str, Any]:
        """Figures of one group from its sums."""
        values: dict[str, float] = dict(zip(PLAIN, sums.tolist(), strict=False))
        cells, size = values["cells"], len(QUANTILES)
        losses, below, rest = sums[LOSSES:].split((size, size, len(sums) - LOSSES - 2 * size))
        inside, wide, shares = rest.split((len(self.levels), len(self.levels), BINS))
        found: dict[str, Any] = {"cells": int(cells), "CRPS": ratio(float(losses.mean()), values["truth"])}
        found |= {name: ratio(values[name], cells) for name in ("CRPS exact", "CRPS fair")}
        if rows is not None:
            found["CRPS-sum"] = ratio(*rows.tolist())
        for end in ("", " of mean"):
            square = ratio(values[f"MSE{end}"], cells)
            found[f"MAE{end}"] = ratio(values[f"MAE{end}"], cells)
            found[f"RMSE{end}"] = None if square is None else math.sqrt(square)
        if energies is not None:
            found["energy score"] = ratio(float(energies.sum()), len(energies))
        found["intervals"] = [
            {
                "level": level,
                "expected": expected_coverage(level, self.samples),
                "coverage": ratio(float(inside[i]), cells),
                "width": ratio(float(wide[i]), cells),
            }
            for i, level in enumerate(self.levels)
        ]
        found["quantiles"] = [
            {"level": level, "expected": expected_share(level, self.samples), "share": ratio(float(below[i]), cells)}
            for i, level in enumerate(QUANTILES)
        ]
        found["PIT"] = [ratio(share, cells) for share in shares.tolist()]
        return found


def _errors(windows: Tensor, energies: Tensor) -> Mapping[str, float | None]:
    """Standard errors over windows of the main figures."""
    cells = windows[:, 0]
    square, error = float(windows[:, 3].sum() / cells.sum()), standard_error(windows[:, 3], cells)
    return {
        "CRPS": standard_error(windows[:, LOSSES : LOSSES + len(QUANTILES)].mean(1), windows[:, 1]),
        "MAE": standard_error(windows[:, 2], cells),
        "RMSE": None if error is None else ratio(error, 2 * math.sqrt(square)) if square > 0 else None,
        "energy score": standard_error(energies, torch.ones_like(energies)),
    }
