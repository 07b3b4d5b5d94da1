"""Seconds and memory of a network call and of a training step against the number of features and the length.

    python -m tests.benchmarks.timeseries_cost --pypots PEERS/bin/python      # see timeseries_peers for PEERS

One window, one sample, one thread, every point in a process of its own (`_timeseries_worker`): processor seconds
(median of three calls after one that warms up) and peak memory beyond what the process had when it was ready to build
the network. Features 10 ... 1000 at --length rows, lengths 24 ... 1000 at --features features; a curve ends where a
call takes more than 60 s or more than --memory GiB. To impute is that call times the number of calls: 50 in PyPOTS'
CSDI, 10 in ours (the call includes nothing that is computed once per window, on either side). A step is forward,
backward and Adam. Our network attends over more than 100 features through inducing points, CSDI's over all pairs.

Growth is the exponent p of seconds ~ size^p, fitted to all points of a curve and to the upper half (from 100 on).
Results are written point by point; points that are there are not measured again. The picture is drawn from them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ._results import keep, kept
from .timeseries_peers import REPOSITORY, SIDES

RESULT = Path(__file__).parent / "results" / "timeseries_cost.json"
PICTURE = REPOSITORY / "docs" / "timeseries_cost.png"
AXES = {"features": (10, 20, 50, 100, 200, 500, 1000), "length": (24, 48, 100, 200, 500, 1000)}
CALLS = {"pypots-csdi": 50, "ours-csdi": 10, "ours": 10}
COLOURS = {"pypots-csdi": "#d55e00", "ours-csdi": "#999999", "ours": "#0072b2"}
LABELS = {"pypots-csdi": "PyPOTS' CSDI", "ours-csdi": "CSDI, our code", "ours": "ours"}
UPPER = 100
PATIENCE = 900.0
"""Wall seconds after which a point counts as too slow."""


def measured(options: argparse.Namespace, which: str, task: str, sizes: dict[str, int]) -> dict[str, Any]:
    """One point."""
    side = SIDES[which]
    python = options.pypots if side.module.endswith("pypots") else sys.executable
    told = [f"--{name}={value}" for name, value in sizes.items()]
    command = [python, "-m", f"tests.benchmarks.{side.module}", "cost", side.name, *told, f"--task={task}"]
    command.append(f"--memory={options.memory}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"ended": "time"}
    if done.returncode < 0:
        return {"ended": "memory"}
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def growth(points: dict[str, Any], what: str = "seconds", least: int = 0) -> float | None:
    """The exponent p of seconds ~ size^p, None for fewer than two points."""
    found = [(int(size), one[what]) for size, one in points.items() if one.get(what, 0) > 0 and int(size) >= least]
    if len(found) < 2:
        return None
    sizes, values = np.log(np.array(found, dtype=np.float64)).T
    return float(np.polyfit(sizes, values, 1)[0])


def name_of(which: str, task: str, axis: str) -> str:
    return f"{which}, {task}, {axis}"


def curve(options: argparse.Namespace, about: dict[str, Any], which: str, task: str, axis: str) -> None:
    """One system against one size."""
    name = name_of(which, task, axis)
    entry = kept(options.out, about).get("curves", {}).get(name, {})
    points: dict[str, Any] = entry.get("points", {})
    for size in AXES[axis]:
        if size > options.largest:
            break
        if str(size) not in points:
            sizes = {"features": options.features, "length": options.length} | {axis: size}
            points[str(size)] = measured(options, which, task, sizes)
            exponents = {"all": growth(points), f"from {UPPER}": growth(points, least=UPPER)}
            keep(options.out, about, "curves", name, {"points": points, "growth": exponents})
            print(f"{name} {size}: {points[str(size)]}", flush=True)
        if "ended" in points[str(size)]:
            break


def picture(path: Path, found: dict[str, Any]) -> None:
    """Seconds and memory of a call against both sizes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(8, 5.4), sharex="col", layout="constrained")
    for column, axis in enumerate(AXES):
        fixed = "length" if axis == "features" else "features"
        for which in SIDES:
            for task, style in (("call", "-"), ("step", ":")):
                curve = found["curves"].get(name_of(which, task, axis))
                if curve is None or which not in CALLS:
                    continue
                points = [(int(size), one) for size, one in curve["points"].items() if "seconds" in one]
                sizes = [size for size, _ in points]
                memory = [(one["peak bytes"] - one["base bytes"]) / 2**20 for _, one in points]
                p = curve["growth"][f"from {UPPER}"] or curve["growth"]["all"]
                label = f"{LABELS[which]}, {task}" + (f", ~n^{p:.1f}" if p is not None and math.isfinite(p) else "")
                told = {"color": COLOURS[which], "linestyle": style, "marker": "o", "markersize": 3}
                panels[0][column].loglog(sizes, [one["seconds"] for _, one in points], label=label, **told)
                panels[1][column].loglog(sizes, memory, **told)
        panels[0][column].set_title(f"{found[fixed]} {'rows' if fixed == 'length' else fixed}", fontsize=10)
        panels[0][column].legend(fontsize=6)
        panels[1][column].set_xlabel("features" if axis == "features" else "rows")
    panels[0][0].set_ylabel("seconds, one thread")
    panels[1][0].set_ylabel("memory, MiB")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Read the command line, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pypots", help="interpreter that has PyPOTS 1.5; without it ours alone")
    parser.add_argument("--sides", nargs="+", choices=CALLS, default=["pypots-csdi", "ours"])
    parser.add_argument("--tasks", nargs="+", choices=["call", "step"], default=["call", "step"])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--length", type=int, default=48, help="rows where features vary")
    parser.add_argument("--features", type=int, default=10, help="features where the length varies")
    parser.add_argument("--largest", type=int, default=1000)
    parser.add_argument("--memory", type=float, default=8.0, help="GiB")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    about = {
        "command": "python -m tests.benchmarks.timeseries_cost",
        "seed": 0,
        "threads": 1,
        "length": options.length,
        "features": options.features,
        "memory limit, GiB": options.memory,
        "calls of an imputation": CALLS,
    }
    for axis in options.axes:
        for task in options.tasks:
            for which in options.sides:
                if options.pypots or not SIDES[which].module.endswith("pypots"):
                    curve(options, about, which, task, axis)
    found = kept(options.out, about)
    if found:
        picture(options.picture, found)


if __name__ == "__main__":
    main()
