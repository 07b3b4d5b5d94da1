"""Resuming, in full: every interruption, fifty kills, and what saving costs.

    python -m tests.benchmarks.training_resume

- Interruptions: a run of 30 steps is sent SIGTERM at step 1, 2, … 30, with 0 and with 2 loader processes, and resumed;
  counted is how often weights, averages, moments and log equal those of the uninterrupted run bit for bit.
- Kills: a run that writes a checkpoint after every step gets SIGKILL at 50 random moments and is resumed; counted is
  how often all checkpoints were sound and the end equal bit for bit, and how many kills struck while one was written.
- Saving: the default image model on the digits; the median time to save over the median time of the steps between two
  checkpoints at the default interval.

The results go to `results/training_resume.json`.
"""

from __future__ import annotations

import datetime
import itertools
import json
import random
import signal
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from polydiff.core import checkpoints
from polydiff.core.config import to_dict
from polydiff.core.files import write_atomically
from polydiff.core.machine import machine
from polydiff.core.objectives import Denoising
from polydiff.core.training import train
from polydiff.vision.data import load
from polydiff.vision.options import Train
from polydiff.vision.pipeline import ImagePipeline
from polydiff.vision.train import image_config
from tests.core.test_resume import HIDDEN, interrupt_and_resume, kill_and_resume
from tests.core.training_case import STEPS, Objective, run, state

SEED, KILLS, TIMED, SAVES = 0, 50, 40, 10
RESULTS = Path(__file__).parent / "results" / "training_resume.json"


def interruptions() -> dict[str, Any]:
    """Interrupted after each step, with 0 and 2 workers."""
    equal = {0: 0, 2: 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = state(folder / "whole", run(folder / "whole"))
        for workers in equal:
            for step in tqdm(range(1, STEPS + 1), desc=f"interruptions, {workers} workers", disable=None):
                equal[workers] += interrupt_and_resume(folder / f"{workers}-{step}", step, workers) == whole
    return {"steps": STEPS, "bit-identical, 0 workers": equal[0], "bit-identical, 2 workers": equal[2]}


def kills() -> dict[str, Any]:
    """Killed at random moments, and terminated once for its exit code."""
    chance = random.Random(SEED)
    counts = {"kills": KILLS, "resumed and bit-identical": 0, "struck while writing": 0, "came too late": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = state(folder / "whole", run(folder / "whole", objective=Objective(hidden=HIDDEN)))
        for attempt in tqdm(range(KILLS), desc="kills", disable=None):
            place = folder / str(attempt)
            try:
                found, torn, code = kill_and_resume(
                    place, signal.SIGKILL, chance.randrange(STEPS - 2), 0.02 * chance.random()
                )
            except Exception as error:  # a failure is a result, too
                print(f"attempt {attempt}: {error!r}")
                continue
            counts["resumed and bit-identical"] += found == whole
            counts["struck while writing"] += torn
            counts["came too late"] += code == 0
        found, _, code = kill_and_resume(folder / "term", signal.SIGTERM, 5, 0.0)
    return counts | {"exit code after SIGTERM": code, "bit-identical after SIGTERM": found == whole}


def saving() -> dict[str, Any]:
    """Time of a checkpoint beside the time of the steps between two, for the default image model."""
    options = Train()
    training = replace(options.training, steps=TIMED, log_every=1, checkpoint_every=0, progress=False, cpu=True)
    data = load("digits", "train")
    config = image_config(data, options)
    pipeline = ImagePipeline(config, ImagePipeline.build(config))
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objective = Denoising(pipeline.model, pipeline.kernel)
        train(objective, data, training, folder=folder, on_log=lambda _: moments.append(time.perf_counter()))
        step = statistics.median(b - a for a, b in itertools.pairwise(moments[5:]))
        newest = checkpoints.load_newest(folder / "checkpoints")
        size = sum(file.stat().st_size for file in newest.path.iterdir())
        saves, hashes = [], []
        for n in range(SAVES):
            started = time.perf_counter()
            path = checkpoints.save(folder / "again", n, newest.tensors, newest.state)
            saves.append(time.perf_counter() - started)
            started = time.perf_counter()
            for file in path.iterdir():
                checkpoints.sha256(file)
            hashes.append(time.perf_counter() - started)
    save, interval = statistics.median(saves), Train().training.checkpoint_every
    return {
        "parameters": sum(p.numel() for p in objective.parameters()),
        "checkpoint bytes": size,
        "batch size": training.batch_size,
        "seconds per step (median)": round(step, 5),
        "seconds per save (median)": round(save, 5),
        "of which hashing": round(statistics.median(hashes), 5),
        "interval in steps": interval,
        "share of step time": round(save / (interval * step), 6),
    }


def main() -> None:
    torch.set_num_threads(1)
    started = time.perf_counter()
    results: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        results["saving"] = saving()
        results["interruptions"] = interruptions()
        results["kills"] = kills()
    whole = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "command": "python -m tests.benchmarks.training_resume",
        "seed": SEED,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "options of the model that is saved": to_dict(Train()),
        "results": results,
    }
    write_atomically(RESULTS, json.dumps(whole, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
