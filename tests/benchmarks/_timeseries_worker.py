"""One system of `timeseries_peers` and `timeseries_cost` in a process of its own, so that its memory is its own.

Plain files go in and out, and nothing of polydiff is imported here: a peer that lives in another interpreter
(`_timeseries_pypots`) and ours (`_timeseries_ours`) are run, timed and weighed by the same lines:

    python -m tests.benchmarks._timeseries_pypots train  csdi --data train.npz --folder F --seconds 1200
    python -m tests.benchmarks._timeseries_pypots impute csdi --data test.npz --folder F --rate 50 --samples 100
    python -m tests.benchmarks._timeseries_pypots cost   csdi --features 100 --length 48 --task call

Time is the processor's (`time.process_time`), on one thread, so that other programs on the machine do not count; what
is imported and read from files is not timed. Memory is the process' largest resident set (`ru_maxrss`), beside what it
was before the work began.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["System", "chunk_path", "main", "peak_bytes", "read_chunk"]

CALLS = 3
"""Timed calls of a cost, after one that warms up; fewer if they take long."""
LONG = 60.0
"""Seconds after which no further call is made."""


class System(ABC):
    """A way to impute: what the worker asks of it. Values are normalised, float32, NaN where nothing is known."""

    @abstractmethod
    def train(self, x: np.ndarray, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
        """Train on windows x (N, L, K) for so many processor seconds, keep the model in `folder`, give facts."""

    @abstractmethod
    def load(self, folder: Path, length: int, features: int) -> None:
        """Get the trained model."""

    @abstractmethod
    def impute(self, x: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """Samples (S, n, L, K) of all cells of windows x (n, L, K); S = 1 if the system gives a point alone."""

    @abstractmethod
    def cost(self, task: str, length: int, features: int) -> Callable[[], Any]:
        """One network call ("call") or one training step ("step") for one window, ready to be made."""


def peak_bytes() -> int:
    """The largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def chunk_path(folder: Path, tag: str, rate: int, samples: int, start: int, stop: int) -> Path:
    """Where the samples of windows start ... stop - 1 lie."""
    return folder / f"{tag}-{rate}-{samples}-{start}-{stop}.npz"


def read_chunk(path: Path) -> dict[str, Any]:
    """Samples (S, m) of the held-out cells in the order of numpy's nonzero, processor seconds, peak and base bytes."""
    with np.load(path) as found:
        return {name: found[name] if found[name].ndim else found[name].item() for name in found.files}


def write(path: Path, **arrays: Any) -> None:
    """An npz that is there whole or not at all."""
    draft = path.with_name(path.stem + ".part.npz")
    np.savez(draft, **arrays)
    os.replace(draft, path)


def train(system: System, asked: argparse.Namespace) -> None:
    """Train, unless that was done; an interrupted training goes on if the system can."""
    done = asked.folder / "trained.json"
    if done.exists():
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    with np.load(asked.data) as found:
        x = found["x"].astype(np.float32)
    base = peak_bytes()
    facts = system.train(x, asked.folder, asked.seconds, asked.seed)
    facts |= {"peak bytes": peak_bytes(), "base bytes": base, "budget": asked.seconds, "windows": len(x)}
    draft = done.with_suffix(".part")
    draft.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, done)
    print(facts, flush=True)


def impute(system: System, asked: argparse.Namespace) -> None:
    """Samples at held-out cells, chunk by chunk; chunks that are there are left alone."""
    with np.load(asked.data) as found:
        x, held = found["x"].astype(np.float32), found[f"held-{asked.rate}"]
    count = min(asked.windows or len(x), len(x))
    starts = range(0, count, asked.chunk)
    todo = [
        (start, path)
        for start in starts
        if not (
            path := chunk_path(
                asked.folder, asked.tag, asked.rate, asked.samples, start, min(count, start + asked.chunk)
            )
        ).exists()
    ]
    if not todo:
        return
    given = np.where(held, np.nan, x)
    system.load(asked.folder, *x.shape[1:])
    system.impute(given[:1], 1, asked.seed)  # what is made on first use
    base = peak_bytes()
    for start, path in todo:
        rows = slice(start, min(count, start + asked.chunk))
        before, wall = time.process_time(), time.perf_counter()
        samples = system.impute(given[rows], asked.samples, asked.seed + start)
        seconds, wall = time.process_time() - before, time.perf_counter() - wall
        write(
            path, samples=samples[:, held[rows]], seconds=seconds, wall=wall, peak=peak_bytes(), base=base
        )  # fmt: skip
        print(f"{path.name}: {seconds / (rows.stop - rows.start):.2f} s a window", flush=True)


def cost(system: System, asked: argparse.Namespace) -> None:
    """Seconds and bytes of a call, as JSON on the last line of what is printed."""
    if asked.memory:
        limit = int(asked.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    base, times = peak_bytes(), []
    try:
        call = system.cost(asked.task, asked.length, asked.features)
        for _ in range(1 + CALLS):
            before = time.process_time()
            call()
            times.append(time.process_time() - before)
            if sum(times) > LONG:
                break
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        print(json.dumps({"ended": "memory"}), flush=True)
        return
    seconds = float(np.median(times[1:] or times))
    ended = {"ended": "time"} if seconds > LONG else {}
    print(json.dumps({"seconds": seconds, "peak bytes": peak_bytes(), "base bytes": base} | ended), flush=True)


def main(systems: Mapping[str, Callable[[], System]]) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["train", "impute", "cost"])
    parser.add_argument("system", choices=list(systems))
    parser.add_argument("--data", type=Path, help="npz with x (N, L, K), and held-RATE for `impute`")
    parser.add_argument("--folder", type=Path, help="of the model")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor seconds of training")
    parser.add_argument("--rate", type=int, default=10, help="per cent held out")
    parser.add_argument("--windows", type=int, default=0, help="the first so many, 0 for all")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--chunk", type=int, default=16, help="windows that are imputed and kept together")
    parser.add_argument("--tag", default="draws", help="name of the files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--task", choices=["call", "step"], default="call")
    parser.add_argument("--memory", type=float, default=0.0, help="GiB that a cost may take, 0 for all there is")
    asked = parser.parse_args()
    {"train": train, "impute": impute, "cost": cost}[asked.work](systems[asked.system](), asked)
