"""Imputation beside PyPOTS' CSDI, SAITS and BRITS, all trained from scratch with the same budget.

    python -m venv PEERS && PEERS/bin/pip install pypots==1.5      # its requirements contradict ours
    python -m tests.benchmarks.timeseries_peers --data-root FOLDER --pypots PEERS/bin/python [--parts data ...]

Sets: PhysioNet 2012 (48 hours of 35 values, 80 % missing) and Beijing air quality (48 hours of 11 values of 12
stations, training windows every 24 hours), both normalised by what their training part observed. Each system is trained
once on each set, on the same windows, for the same --minutes of processor time on one thread, and then fills the same
test windows of which 10, 50 and 90 % of the observed cells are held out (seed 1; the cells of a lower rate are among
those of a higher). Systems run in processes of their own (`_timeseries_pypots`, `_timeseries_ours`; the recipes stand
there), which measure processor seconds and peak memory; both CSDI and ours draw --samples of each window.

Parts: `data`; for each system `NAME-train` and `NAME-impute`; for those that draw samples `NAME-cost`, time and memory
of --cost-samples of some windows; `figures`. Models and draws lie in --root; what was interrupted goes on where it
stopped, and `figures` measures what is there: CRPS, MAE and coverage over test windows, with a paired bootstrap of
their ratios to the peers' (CRPS not where a system gives a point alone).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from polydiff.timeseries.data import load

from ._results import keep
from ._timeseries import compared, described, pinball_sums
from ._timeseries_worker import chunk_path, read_chunk

RESULT = Path(__file__).parent / "results" / "timeseries_peers.json"
REPOSITORY = Path(__file__).parents[2]
SEED, HELD_SEED = 0, 1
RATES = (10, 50, 90)
SETS = {"physionet2012": {}, "beijing": {"stride": 24}}
"""Names, and what training windows are loaded with."""


class Side(NamedTuple):
    """A system: the module that runs it, its name there, whether it draws samples, windows imputed together."""

    module: str
    name: str
    draws: bool
    chunk: int


SIDES = {
    "pypots-csdi": Side("_timeseries_pypots", "csdi", True, 2),
    "saits": Side("_timeseries_pypots", "saits", False, 32),
    "brits": Side("_timeseries_pypots", "brits", False, 32),
    "ours": Side("_timeseries_ours", "ours", True, 2),
    "ours-csdi": Side("_timeseries_ours", "ours-csdi", True, 2),
}
PEERS = ("pypots-csdi", "saits", "brits")


class Bench:
    """Where things lie, and what was asked."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.about = {
            "command": "python -m tests.benchmarks.timeseries_peers",
            "seed": SEED,
            "minutes": options.minutes,
            "test windows": options.test_windows,
            "samples": options.samples,
            "threads": 1,
        }

    def keep(self, section: str, name: str, entry: dict[str, Any]) -> None:
        """Into the results, at once."""
        keep(self.options.out, self.about, section, name, entry)

    def data(self, name: str, part: str) -> Path:
        return self.options.root / name / f"{part}-{self.options.test_windows}.npz"

    def folder(self, name: str, side: str) -> Path:
        return self.options.root / name / f"{side}-{self.options.minutes:g}"

    def count(self, side: Side) -> int:
        return self.options.samples if side.draws else 1

    def run(self, side: Side, work: str, *told: Any) -> None:
        """A system's process; its messages go to a file."""
        python = self.options.pypots if side.module.endswith("pypots") else sys.executable
        if python is None:
            raise SystemExit("--pypots: the path of an interpreter that has PyPOTS")
        command = [python, "-m", f"tests.benchmarks.{side.module}", work, side.name, *map(str, told)]
        log = self.options.root / f"{side.name}-{work}.log"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")


def data(bench: Bench) -> None:
    """Windows as plain files."""
    for name in bench.options.sets:
        train = load(name, "train", data_root=bench.options.data_root, **SETS[name])
        test = load(name, "test", data_root=bench.options.data_root)
        count = min(bench.options.test_windows, len(test))
        chosen = [round(k * len(test) / count) for k in range(count)]
        arrays: dict[str, Any] = {"x": plain(test.batch(chosen))}
        arrays |= {f"held-{rate}": test.held(rate / 100, HELD_SEED)[chosen].numpy() for rate in RATES}
        bench.data(name, "train").parent.mkdir(parents=True, exist_ok=True)
        every = plain(train.batch(range(len(train))))
        np.savez(bench.data(name, "train"), x=every)
        np.savez(bench.data(name, "test"), **arrays)
        entry = {
            "training windows": len(every),
            "test windows": count,
            "rows": every.shape[1],
            "features": len(train.features),
            "missing": float(np.isnan(every).mean()),
        }
        bench.keep("sets", name, entry)
        print(f"{name}: {entry}", flush=True)


def plain(batch: dict[str, Any]) -> np.ndarray:
    """Values with NaN where nothing was observed."""
    return torch.where(batch["seen"], batch["values"], torch.nan).numpy()


def train(bench: Bench, which: str) -> None:
    """Train a system on every set."""
    for name in bench.options.sets:
        folder = bench.folder(name, which)
        told = ("--data", bench.data(name, "train"), "--folder", folder, "--seed", SEED)
        bench.run(SIDES[which], "train", *told, "--seconds", 60 * bench.options.minutes)
        print(f"{name}, {which}: {trained(bench, name, which)}", flush=True)


def trained(bench: Bench, name: str, which: str) -> dict[str, Any]:
    """Facts of a training, {} if it is not done."""
    path = bench.folder(name, which) / "trained.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def impute(bench: Bench, which: str) -> None:
    """Fill the test windows at every rate."""
    side = SIDES[which]
    for name in bench.options.sets:
        for rate in RATES:
            told = ("--data", bench.data(name, "test"), "--folder", bench.folder(name, which), "--rate", rate)
            bench.run(side, "impute", *told, "--samples", bench.count(side), "--chunk", side.chunk, "--seed", SEED)
        figures(bench, [which], [name])


def cost(bench: Bench, which: str) -> None:
    """Time and memory of many samples of some windows."""
    side, asked = SIDES[which], bench.options
    for name in asked.sets:
        told = ("--data", bench.data(name, "test"), "--folder", bench.folder(name, which), "--rate", 50)
        told += ("--samples", asked.cost_samples, "--windows", asked.cost_windows, "--chunk", asked.cost_windows)
        bench.run(side, "impute", *told, "--seed", SEED, "--tag", "cost")
    figures(bench, [which], asked.sets)


def drawn(bench: Bench, name: str, which: str, rate: int) -> tuple[np.ndarray, dict[str, float]] | None:
    """Sums of every test window (n, 5) and seconds and bytes, None if not all are there."""
    side, path = SIDES[which], bench.data(name, "test")
    if not path.exists():
        return None
    with np.load(path) as found:
        x, held = found["x"], found[f"held-{rate}"]
    rows, seconds, peak = [], 0.0, 0
    for start in range(0, len(x), side.chunk):
        stop = min(len(x), start + side.chunk)
        file = chunk_path(bench.folder(name, which), "draws", rate, bench.count(side), start, stop)
        if not file.exists():
            return None
        chunk = read_chunk(file)
        where = held[start:stop]
        window = torch.from_numpy(np.nonzero(where)[0])
        truth = torch.from_numpy(x[start:stop][where])
        rows.append(pinball_sums(torch.from_numpy(chunk["samples"]), truth, window, stop - start))
        seconds, peak = seconds + chunk["seconds"], max(peak, chunk["peak"])
    return np.concatenate(rows), {"seconds per window": seconds / len(x), "peak bytes": peak}


def costs(bench: Bench, name: str, which: str) -> dict[str, Any]:
    """What `cost` measured."""
    asked = bench.options
    path = chunk_path(bench.folder(name, which), "cost", 50, asked.cost_samples, 0, asked.cost_windows)
    if not path.exists():
        return {}
    chunk = read_chunk(path)
    return {
        "samples": asked.cost_samples,
        "windows": asked.cost_windows,
        "seconds per window": chunk["seconds"] / asked.cost_windows,
        "peak bytes": chunk["peak"],
        "base bytes": chunk["base"],
    }


def figures(bench: Bench, which: list[str] | None = None, sets: list[str] | None = None) -> None:
    """Of what is there."""
    for name in sets or bench.options.sets:
        for system in which or SIDES:
            facts, rates = trained(bench, name, system), {}
            for rate in RATES:
                found = drawn(bench, name, system, rate)
                if found is None:
                    continue
                sums, took = found
                entry: dict[str, Any] = described(sums, bench.count(SIDES[system])) | took
                for other in PEERS:
                    theirs = None if other == system else drawn(bench, name, other, rate)
                    if theirs is None:
                        continue
                    entry[f"to {other}"] = ratios(sums, theirs[0], SIDES[system].draws and SIDES[other].draws)
                rates[str(rate)] = entry
                told = "  ".join(
                    f"{key} {entry[key]['value']:.4f}" for key in ("CRPS", "MAE", "coverage") if key in entry
                )
                print(f"  {name}, {system}, {rate} %: {told}  {took['seconds per window']:.3g} s", flush=True)
            whole = {"training": facts, "rates": rates, "cost": costs(bench, name, system)}
            if any(whole.values()):
                bench.keep("systems", f"{name}, {system}", whole)


def ratios(ours: np.ndarray, theirs: np.ndarray, draws: bool) -> dict[str, Any]:
    """`compared`, of errors alone if one side gives a point."""
    found = compared(ours, theirs)
    return found if draws else {key: found[key] for key in ("windows", "MAE ratio")}


PARTS: dict[str, Callable[[Bench], None]] = {"data": data}
for _name, _side in SIDES.items():
    PARTS[f"{_name}-train"] = partial(train, which=_name)
    PARTS[f"{_name}-impute"] = partial(impute, which=_name)
    if _side.draws:
        PARTS[f"{_name}-cost"] = partial(cost, which=_name)
PARTS["figures"] = figures


def main() -> None:
    """Read the command line and do the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--pypots", help="interpreter that has PyPOTS 1.5")
    parser.add_argument(
        "--root", type=Path, default=Path("runs/timeseries-peers"), help="where models and draws are kept"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=[part for part in PARTS if "ours-csdi" not in part]
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, default=20.0, help="processor time of each training")
    parser.add_argument("--test-windows", type=int, default=32)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--cost-samples", type=int, default=100)
    parser.add_argument("--cost-windows", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.root.mkdir(parents=True, exist_ok=True)
    options.root = options.root.resolve()
    bench = Bench(options)
    print(f"{bench.about}", flush=True)
    for name in options.parts:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
