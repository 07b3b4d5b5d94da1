"""Do the intervals cover what they say, on the series that come with the package, after `fit` with its defaults?

    python -m tests.benchmarks.timeseries_calibration [--sets co2 elnino ...] [--seeds 5]

For each seed some observed cells of the whole series are hidden before anything is fitted: single cells, 10 % of them,
and runs of 3 to 12 rows of one feature until 10 % more are hidden. `ImputationPipeline().fit` sees what is left, fills
the series, and the cells hidden are counted that lie between the 5 % and the 95 % quantile of --samples samples. As
many samples of a perfect forecaster cover 90 (S - 1) / (S + 1) % of them, which is the expected coverage beside it.
Errors are over seeds, each of which hides other cells and fits another model. Results are written seed by seed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polydiff.core.randomness import mix
from polydiff.timeseries.metrics import expected_coverage
from polydiff.timeseries.pipeline import ImputationPipeline
from polydiff.timeseries.sources import NAMES

from ._results import keep, kept

RESULT = Path(__file__).parent / "results" / "timeseries_calibration.json"
LEVEL, SHARE = 0.9, 0.1
RUNS = (3, 12)
KINDS = ("single", "runs")


def series_of(name: str) -> np.ndarray:
    """The whole series (L, K), NaN where nothing was observed."""
    parts = NAMES[name](Path()).parts
    return np.concatenate([one.values for split in ("train", "valid", "test") for one in parts[split]])


def hidden(seen: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Kind -> observed cells to hide (L, K) bool, of two kinds that do not overlap."""
    draw = np.random.default_rng(seed)
    wanted = round(SHARE * seen.sum())
    single = np.zeros_like(seen)
    single.flat[draw.choice(np.flatnonzero(seen), wanted, replace=False)] = True
    runs = np.zeros_like(seen)
    while runs.sum() < wanted:
        length = int(draw.integers(RUNS[0], RUNS[1] + 1))
        start, feature = int(draw.integers(len(seen) - length + 1)), int(draw.integers(seen.shape[1]))
        rows = slice(start, start + length)
        runs[rows, feature] |= seen[rows, feature] & ~single[rows, feature]
    return {"single": single, "runs": runs}


def measured(x: np.ndarray, seed: int, samples: int) -> dict[str, Any]:
    """Fit to what is left and look at what was hidden."""
    cells = hidden(~np.isnan(x), seed)
    given = np.where(cells["single"] | cells["runs"], np.nan, x)
    before = time.process_time()
    pipeline = ImputationPipeline().fit(given, seed=mix(seed) % 2**31)
    fitted = time.process_time()
    with torch.no_grad():
        low, middle, high = np.asarray(
            pipeline.quantile(given, ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2), count=samples, seed=seed)
        )
    entry: dict[str, Any] = {"seconds of fit": fitted - before, "seconds of filling": time.process_time() - fitted}
    size = np.nanstd(x, 0)
    for kind, mask in cells.items():
        inside = (low <= x) & (x <= high)
        entry[kind] = {
            "cells": int(mask.sum()),
            "covered": int(inside[mask].sum()),
            "width": float(((high - low) / size)[mask].mean()),
            "MAE": float((np.abs(middle - x) / size)[mask].mean()),
        }
    return entry


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Coverage over all seeds; its error from their differences."""
    found: dict[str, Any] = {}
    for kind in (*KINDS, "both"):
        each = [[one[k] for k in (KINDS if kind == "both" else (kind,))] for one in seeds.values()]
        covered, cells = (np.array([sum(part[key] for part in one) for one in each]) for key in ("covered", "cells"))
        share = covered / cells
        error = float(share.std(ddof=1) / len(share) ** 0.5) if len(share) > 1 else None
        found[kind] = {"cells": int(cells.sum()), "coverage": float(covered.sum() / cells.sum()), "error": error}
        if kind != "both":
            found[kind] |= {key: float(np.mean([one[0][key] for one in each])) for key in ("width", "MAE")}
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=["co2", "elnino", "sunspots", "macrodata"], default=["co2"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = {
        "command": "python -m tests.benchmarks.timeseries_calibration",
        "seed": 0,
        "level": LEVEL,
        "samples": options.samples,
        "expected coverage": expected_coverage(LEVEL, options.samples),
    }
    for name in options.sets:
        x = series_of(name)
        for seed in range(options.seeds):
            entry = kept(options.out, about).get("sets", {}).get(name, {})
            seeds = entry.get("seeds", {})
            if str(seed) in seeds:
                continue
            seeds[str(seed)] = measured(x, seed, options.samples)
            keep(options.out, about, "sets", name, {"seeds": seeds, "summary": summary(seeds)})
            print(f"{name}, seed {seed}: {seeds[str(seed)]}", flush=True)


if __name__ == "__main__":
    main()
