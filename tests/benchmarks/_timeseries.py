"""What the benchmarks of time series share: figures of held-out cells window by window, and what chance does to them.

A window is a row of five sums over its held-out cells: the quantile loss (mean of 2 pinball over .05, .10 ... .95), the
truths' absolute values, the median's absolute errors, how many cells the interval from the 5 % to the 95 % quantile
covers, and how many cells there are. Every figure of CSDI's paper is a ratio of such sums over windows: CRPS = loss /
|truth|, MAE = errors / cells, coverage = covered / cells; so chance is told by drawing windows with replacement, the
same ones for two ways to impute that are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polydiff.timeseries.metrics import QUANTILES, expected_coverage, pinball, quantiles

__all__ = ["COLUMNS", "FIGURES", "LEVEL", "compared", "described", "pinball_sums"]

COLUMNS = ("loss", "truth", "errors", "covered", "cells")
LEVEL = 0.9
FIGURES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "CRPS": lambda sums: sums[..., 0] / sums[..., 1],
    "MAE": lambda sums: sums[..., 2] / sums[..., 4],
    "coverage": lambda sums: sums[..., 3] / sums[..., 4],
}
"""Figures from sums over windows (..., 5)."""
ROUNDS = 4000


def pinball_sums(samples: Tensor, truth: Tensor, window: Tensor, count: int) -> np.ndarray:
    """The five sums of every window, (count, 5).

    Args:
        samples: (S, m) at the held-out cells.
        truth: (m,).
        window: (m,), the window of each cell.
        count: of windows.
    """
    middle = len(QUANTILES) // 2
    at = quantiles(samples, (*QUANTILES, (1 - LEVEL) / 2, (1 + LEVEL) / 2))
    low, high = at[-2:]
    truth = truth.double()
    loss = torch.stack([2 * pinball(truth, q, level) for level, q in zip(QUANTILES, at, strict=False)]).mean(0)
    inside = ((low <= truth) & (truth <= high)).double()
    columns = torch.stack([loss, truth.abs(), (at[middle] - truth).abs(), inside, torch.ones_like(truth)], 1)
    return torch.zeros(count, len(COLUMNS), dtype=torch.float64).index_add_(0, window.cpu(), columns).numpy()


def redrawn(sums: np.ndarray, seed: int) -> np.ndarray:
    """Sums over windows drawn with replacement, (ROUNDS, ..., 5) of sums (n, ..., 5)."""
    n = len(sums)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=ROUNDS)
    return np.tensordot(times.astype(np.float64), sums, axes=1)


def spread(values: np.ndarray) -> dict[str, float]:
    """Standard deviation and the central 95 % of a bootstrap."""
    low, high = np.quantile(values, [0.025, 0.975])
    return {"standard error": float(values.std(ddof=1)), "low": float(low), "high": float(high)}


def described(sums: np.ndarray, samples: int, seed: int = 0) -> dict[str, Any]:
    """CRPS, MAE and coverage over windows (n, 5), each with its spread; the coverage expected of so many samples."""
    drawn = redrawn(sums, seed)
    found: dict[str, Any] = {"windows": len(sums), "cells": int(sums[:, 4].sum()), "samples": samples}
    for name, figure in FIGURES.items():
        if samples > 1 or name == "MAE":
            found[name] = {"value": float(figure(sums.sum(0)))} | spread(figure(drawn))
    if samples > 1:
        found["expected coverage"] = expected_coverage(LEVEL, samples)
    return found


def compared(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Ratio of CRPS and MAE, difference of coverage, of two ways on the same windows (n, 5), paired."""
    if not np.array_equal(ours[:, (1, 4)], theirs[:, (1, 4)]):
        raise ValueError("not the same cells on both sides")
    both = np.stack([ours, theirs], 1)
    whole, drawn = both.sum(0), redrawn(both, seed)
    found: dict[str, Any] = {"windows": len(ours)}
    for name, figure in FIGURES.items():
        values, chance = figure(whole), figure(drawn)
        if name == "coverage":
            found[f"{name} difference"] = {"value": float(values[0] - values[1])} | spread(chance[:, 0] - chance[:, 1])
        else:
            found[f"{name} ratio"] = {"value": float(values[0] / values[1])} | spread(chance[:, 0] / chance[:, 1])
    return found
