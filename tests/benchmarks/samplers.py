"""Solvers of the probability-flow ODE beside diffusers, k-diffusion's formulas and azula, on the same exact denoisers.

    python -m tests.benchmarks.samplers [--known-peers]

A problem is a mixture of 8 normals (centres from N(0, I), deviation 0.2) under DDPM's 1000 linear betas; 5 problems in
each of 2, 16 and 64 dimensions. Everybody starts from the same fresh noise, x ~ N(0, I), with 5, 10, 20 or 50 calls of
the denoiser. Errors are against the exact flow (Runge-Kutta 4, 300 steps, float64): `rmse` over trajectories and
dimensions, `median` of the trajectories' root mean square errors, `swd` the sliced Wasserstein-2 distance between the
two clouds of ends. `theirs` is the best of every peer over all its options (1111 choices), chosen on other noise by
rmse, as are `classical` and `calibrated`, which are ours. `hindsight` compares with the one of their six best solvers
that turns out best on the very trajectories of the figure.

The rmse is ruled by the few trajectories that a border between two modes sends the wrong way: one in 4096 gives 0.02.
So ratios scatter by problem, and the figure to read is their geometric mean over problems beside the median error. For
10 calls and more the starts of the fit are, but for a quarter, those of a pool at which the flow is most sensitive
(`core.borders`). With `--known-peers` the peers' choices are those of the results, which depend on none of this.

`left_out` names the peers' choices that the library refuses for so many calls, with its own reason, or that end in
numbers that are not finite; they are out of the running. `shared` compares solvers that both sides have, on the same
grid. `microseconds` are per call, denoiser included, for
`FRESH` states in 16 dimensions.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.borders import at_borders, sensitivities
from polydiff.core.calibration import Trajectories, calibrate
from polydiff.core.ddim import ddim
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.files import write_atomically
from polydiff.core.gaussian import Gaussian
from polydiff.core.machine import machine
from polydiff.core.ode import euler, exploding, heun
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import Tabulated
from tests.benchmarks._samplers_peers import Oracle, Unusable, azula_peers, diffusers_peers, k_peers, scheduled
from tests.problems import MixtureData

DIMENSIONS, SEEDS, CALLS, COUNT = (2, 16, 64), (0, 1, 2, 3, 4), (5, 10, 20, 50), 1024
BORDER = 600
"""Starts of the fit that lie at borders."""
FRESH, ROUGH, ADMITTED, FINALISTS = 16384, 192, 60, 6
"""Trajectories of the figures, and of the first look at all choices of the peers; how many choices go on to
all `COUNT`, and how many of the best solvers among them to the figures."""
FITS: dict[int, dict[str, int]] = {
    5: {"iterations": 45, "rivals": 4},
    10: {"iterations": 45, "rivals": 3},
    20: {"iterations": 36, "rivals": 2},
    50: {"iterations": 18, "rivals": 1, "history": 5},
}
RESULT = Path(__file__).parent / "results" / "samplers.json"
KERNEL = Gaussian(Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)))
LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, str, Any]]]] = {
    "diffusers": diffusers_peers,
    "k-diffusion": k_peers,
    "azula": azula_peers,
}
SHARED: dict[str, tuple[str, dict[str, Any], Callable[..., Iterator[Step[Tensor]]], dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, ddim, {}),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, euler, {"coordinates": exploding}),
    "Heun": ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, heun, {"coordinates": exploding}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, dpm_solver_pp_2m, {}),
}


def noise(D: int, count: int, seed: int) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solved(data: MixtureData, x: Tensor, steps: int) -> Trajectories:
    return Trajectories(data.denoise(KERNEL), KERNEL, x, data.flow(KERNEL.schedule, x, 1.0, steps), 1.0)


def batches(pool: Trajectories, chosen: Tensor) -> list[Trajectories]:
    """A small random batch, which ranks classical tables, and a large one with chosen starts at its front."""
    parts = (torch.arange(192), torch.cat([chosen, torch.arange(1024, 1024 + 824 - len(chosen))]))
    return [pool._replace(x=pool.x[part], target=pool.target[part]) for part in parts]


def figures(y: Tensor, target: Tensor) -> dict[str, float]:
    """rmse, median and sliced Wasserstein-2 distance, the latter over 128 fixed directions."""
    errors = (y - target).square().mean(1).sqrt()
    directions = torch.nn.functional.normalize(noise(y.shape[1], 128, 99), dim=1).T
    ours, theirs = ((cloud @ directions).sort(0).values for cloud in (y, target))
    return {
        "rmse": float(errors.square().mean().sqrt()),
        "median": float(errors.median()),
        "swd": float((ours - theirs).square().mean().sqrt()),
    }


def peers(
    data: MixtureData, tuning: Trajectories, test: Trajectories, calls: int, known: Mapping[str, Any] | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The solvers admitted, with the options that are best on `tuning`; the finalists also on `test`.

    And the choices left out, with the reason why. With `known`, the row of an earlier run, its choices.
    """
    oracle = Oracle(data)
    rough = tuning._replace(x=tuning.x[:ROUGH], target=tuning.target[:ROUGH])
    choices = [
        (f"{library} {name}", options, peer)
        for library, offered in LIBRARIES.items()
        for name, options, peer in offered()
    ]
    left_out: dict[str, str] = {}
    if known is not None:
        choices = [choice for choice in choices if known["peers"].get(choice[0], {}).get("options") == choice[1]]
        left_out |= known.get("left_out", {})

    def error(choice: Any, on: Trajectories) -> float:
        label, options, peer = choice
        oracle.calls = 0
        try:
            y = peer(oracle, on.x, calls)
        except Unusable as refusal:
            y, reason = None, str(refusal)
        else:
            reason = "too few calls" if y is None else "the end is not finite"
        assert oracle.calls <= calls, (label, options, oracle.calls)
        if y is None or not bool(y.isfinite().all()):
            left_out[f"{label}, {options}"] = reason
            return math.inf
        return rmse(y, on.target)

    first = sorted(((error(choice, rough), i) for i, choice in enumerate(choices)))
    best: dict[str, dict[str, Any]] = {}
    runs: dict[str, Any] = {}
    for _, i in first[:ADMITTED]:
        label, options, peer = choices[i]
        tuned = error(choices[i], tuning)
        if tuned < best.get(label, {"tuned": math.inf})["tuned"]:
            best[label], runs[label] = {"tuned": tuned, "options": options}, peer
    for label in sorted(best, key=lambda label: best[label]["tuned"])[:FINALISTS]:
        best[label] |= figures(runs[label](oracle, test.x, calls), test.target)
    return best, left_out


def rmse(y: Tensor, target: Tensor) -> float:
    return float((y - target).square().mean().sqrt())


def shared(data: MixtureData, x: Tensor, target: Tensor, calls: int) -> dict[str, dict[str, float]]:
    """rmse of ours and theirs on the trailing grid of that many steps."""
    rows: dict[str, dict[str, float]] = {}
    for name, (kind, choice, sampler, options) in SHARED.items():
        budget = 2 * calls - 1 if sampler is heun else calls
        theirs = scheduled(kind, choice)(Oracle(data), x, budget)
        assert theirs is not None
        ours = last(sampler(data.denoise(KERNEL), KERNEL, x, grids.trailing(calls, 1000), **options))
        rows[name] = {"ours": figures(ours, target)["rmse"], "theirs": figures(theirs, target)["rmse"]}
    return rows


def microseconds(function: Callable[[], Any], calls: int) -> float:
    seconds = []
    for _ in range(7):
        before = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - before)
    return 1e6 * statistics.median(seconds) / calls


def measure(D: int, seed: int, known: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
    """One problem, one row for each number of calls; `known` are earlier rows by their calls."""
    data = MixtureData.drawn(D, 1000 * D + seed)
    # Three disjoint streams of noise: for the fit, to compare fits, and for the figures.
    pool, validation = solved(data, noise(D, 8192, 10), 200), [solved(data, noise(D, 2048, 20), 300)]
    border = at_borders(sensitivities(pool, generator=torch.Generator().manual_seed(seed)), BORDER)
    plain, hard = batches(pool, torch.arange(4096, 4096 + 208)), batches(pool, border)
    x = noise(D, FRESH, 30)
    test = solved(data, x, 300)
    tuning = validation[0]._replace(x=validation[0].x[:COUNT], target=validation[0].target[:COUNT])
    for calls in CALLS:
        before = time.process_time()
        training = plain if calls < 10 else hard
        fitted = calibrate(training, validation, calls, **FITS[calls])  # pyright: ignore[reportArgumentType]
        seconds = time.process_time() - before
        classical = calibrate(training, validation, calls, iterations=0, rivals=1)
        solvers = {"calibrated": fitted, "classical": classical}
        ends = {name: last(solver(test.denoise, KERNEL, x)) for name, solver in solvers.items()}
        row: dict[str, Any] = {"D": D, "seed": seed, "calls": calls, "fit_seconds": round(seconds, 1)}
        row |= {name: figures(y, test.target) for name, y in ends.items()}
        row["classical"]["solver"] = classical.start
        row["peers"], row["left_out"] = peers(data, tuning, test, calls, known.get(calls))
        best = min(row["peers"], key=lambda name: row["peers"][name]["tuned"])
        row["best_peer"] = best
        row["ratio"] = row["calibrated"]["rmse"] / row["peers"][best]["rmse"]
        finalists = [peer for peer in row["peers"].values() if "rmse" in peer]
        hindsight = min(peer["rmse"] for peer in finalists)
        row["ratio_hindsight"] = row["calibrated"]["rmse"] / hindsight
        row["ratio_classical"] = row["classical"]["rmse"] / row["peers"][best]["rmse"]
        row["ratio_median"] = row["calibrated"]["median"] / min(peer["median"] for peer in finalists)
        row["ratio_swd"] = row["calibrated"]["swd"] / min(peer["swd"] for peer in finalists)
        row["shared"] = shared(data, x, test.target, calls)
        if D == 16:
            peer = scheduled("DPMSolverMultistepScheduler", {})
            runs = {
                "calibrated": partial(lambda solver: last(solver(test.denoise, KERNEL, x)), fitted),
                "diffusers DPM++ 2M": partial(peer, Oracle(data), x, calls),
            }
            row["microseconds"] = {name: microseconds(run, calls) for name, run in runs.items()}
        yield row


def mean_ratio(rows: list[dict[str, Any]], key: str) -> float:
    """Geometric mean."""
    return math.exp(statistics.fmean(math.log(row[key]) for row in rows))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over the seeds, by dimension and over all dimensions."""
    table = []
    for calls, D in product(CALLS, (*DIMENSIONS, None)):
        chosen = [row for row in rows if row["calls"] == calls and D in (row["D"], None)]
        if chosen:
            line: dict[str, Any] = {"calls": calls, "D": D, "problems": len(chosen)}
            for key in ("ratio", "ratio_hindsight", "ratio_classical", "ratio_median", "ratio_swd"):
                line[key] = mean_ratio(chosen, key)
            for name in ("calibrated", "classical"):
                line[name] = math.exp(statistics.fmean(math.log(row[name]["rmse"]) for row in chosen))
            line["theirs"] = math.exp(
                statistics.fmean(math.log(row["peers"][row["best_peer"]]["rmse"]) for row in chosen)
            )
            mine, best = (
                math.sqrt(statistics.fmean(row["rmse"] ** 2 for row in side))
                for side in (
                    [row["calibrated"] for row in chosen],
                    [row["peers"][row["best_peer"]] for row in chosen],
                )
            )
            line["ratio_pooled"] = mine / best
            line["worst_shared"] = max(
                pair["ours"] / pair["theirs"] for row in chosen for pair in row["shared"].values()
            )
            table.append(line)
    return table


def all_left_out(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """calls -> choice -> why it was left out of some problem."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(str(row["calls"]), {}).update(row.get("left_out", {}))
    return found


def keep(new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put rows into the results, in the place of older ones of the same problem; all rows."""
    done = {(row["seed"], row["D"]) for row in new}
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = sorted(
        [*(row for row in rows if (row["seed"], row["D"]) not in done), *new],
        key=lambda row: (row["seed"], row["D"], row["calls"]),
    )
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "azula")},
        "command": "python -m tests.benchmarks.samplers",
        "seed": list(SEEDS),
        "trajectories": FRESH,
        "left_out": all_left_out(rows),
        "summary": summary(rows),
        "rows": rows,
    }
    write_atomically(RESULT, json.dumps(report, indent=1) + "\n")
    return rows


def earlier(D: int, seed: int) -> dict[int, Any]:
    """calls -> row in the results."""
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    return {row["calls"]: row for row in rows if (row["D"], row["seed"]) == (D, seed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the problems; other results are kept")
    parser.add_argument("--known-peers", action="store_true", help="take the peers' choices from the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    print("  D seed calls   theirs classical calibrated  ratio (hindsight) (median)  best peer", flush=True)
    for seed, D in product(options.seeds, DIMENSIONS):
        new: list[dict[str, Any]] = []
        for row in measure(D, seed, earlier(D, seed) if options.known_peers else {}):
            new.append(row)
            theirs = row["peers"][row["best_peer"]]["rmse"]
            print(
                f"{D:3d} {seed:4d} {row['calls']:5d} {theirs:8.5f} {row['classical']['rmse']:9.5f}"
                f" {row['calibrated']['rmse']:10.5f} {row['ratio']:6.3f} {row['ratio_hindsight']:11.3f}"
                f" {row['ratio_median']:8.4f}  {row['best_peer']}"
                f" [{row['fit_seconds']} s; {len(row['left_out'])} choices left out]",
                flush=True,
            )
        rows = keep(new)
    print(
        "\ncalls   D  theirs    classical calibrated"
        "  ratio (hindsight) (pooled) (classical) (median)    (swd)  shared, worst"
    )
    for line in summary(rows):
        D = "all" if line["D"] is None else line["D"]
        print(
            f"{line['calls']:5d} {D!s:>3} {line['theirs']:9.6f} {line['classical']:9.6f} {line['calibrated']:9.6f}"
            f" {line['ratio']:7.3f} {line['ratio_hindsight']:11.3f} {line['ratio_pooled']:8.3f}"
            f" {line['ratio_classical']:10.3f} {line['ratio_median']:10.4f} {line['ratio_swd']:8.4f}"
            f" {line['worst_shared']:10.4f}"
        )
    for calls, found in all_left_out(rows).items():
        print(f"\n{calls} calls, left out: {len(found)} choices")
        for choice, reason in found.items():
            print(f"  {choice}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
