"""Our imputation as a system of `_timeseries_worker`: trained as `polydiff train` does, drawn as users do.

`ours` is the network that ships with polydiff, `ours-csdi` CSDI's, computed our way, in the published recipe. A trial
tells how many steps the budget holds, since the learning rate falls over all of them; it counts too, and what training
took in the end stands in its facts. Options of `polydiff.timeseries.options.Train` may be overruled by the environment
variable TIMESERIES_OURS, JSON such as {"training": {"batch_size": 32}, "sizes": {"width": 48}}; {"draw": {"steps": 6}}
goes to the pipeline's `samples`, and {"bf16": true} draws in bfloat16 autocast. They stand in the facts as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from polydiff.core.config import from_dict, to_dict
from polydiff.core.files import write_atomically
from polydiff.core.options import TrainingOptions
from polydiff.timeseries import train as training
from polydiff.timeseries.csdi import CSDIConfig
from polydiff.timeseries.data import Windows
from polydiff.timeseries.network import SeriesNetConfig
from polydiff.timeseries.options import NetworkName, Train
from polydiff.timeseries.pipeline import ImputationPipeline
from polydiff.timeseries.series import Series

from ._timeseries_worker import System, main

TRIAL_SHARE, TRIAL_STEPS = 0.03, 400
"""Of the budget, and at most so many steps: what tells the speed; its first third is not looked at."""
PRUDENCE = 0.95
"""Share of the budget that is planned for: a machine may get slower after the trial, and ours must not get more."""


def windows(x: np.ndarray) -> Windows:
    """The data set of windows (N, L, K) that are normalised already."""
    stamps = np.arange(x.shape[1], dtype=np.float64)
    names = tuple(f"feature {k}" for k in range(x.shape[2]))
    series = [Series(one.astype(np.float64), stamps, names, 0.0, f"window {i}") for i, one in enumerate(x)]
    scaling = np.zeros(x.shape[2]), np.ones(x.shape[2])
    return Windows(series, x.shape[1], scaling=scaling, name="windows")


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """A dictionary with some entries overruled, also inside."""
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) else value for key, value in more.items()
    }  # fmt: skip


@final
class Ours(System):
    """A network of ours, trained and drawn by the package."""

    def __init__(self, network: NetworkName):
        torch.set_num_threads(1)
        self.network: NetworkName = network
        self.options = json.loads(os.environ.get("TIMESERIES_OURS", "{}"))
        self.draw = self.options.pop("draw", {})
        if self.options.pop("bf16", False):
            self.draw["precision"] = torch.bfloat16
        self.pipeline: ImputationPipeline | None = None

    def told(self, folder: Path, steps: int, seed: int) -> Train:
        """Options of a run of so many steps."""
        default = Train()
        loop: TrainingOptions = replace(
            default.training, steps=steps, warmup=max(1, min(100, steps // 10)), seed=seed, checkpoint_every=0,
            checkpoint_minutes=3.0, log_every=5, cpu=True, progress=False,
        )  # fmt: skip
        base = to_dict(replace(default, network=self.network, training=loop, out=folder, resume=folder.exists()))
        return from_dict(Train, merged(base, self.options))

    def train(self, x: np.ndarray, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
        data = windows(x)
        steps, trial = self.steps(data, folder, seconds, seed)
        spent = Spent(folder / "spent.json")
        pipeline, trained = training.train(data, self.told(folder / "run", steps, seed), on_log=spent)
        spent(trained.history[-1])
        return {
            "steps": steps,
            "batch": self.told(folder / "run", steps, seed).training.batch_size,
            "seconds": spent.seconds + trial,
            "parameters": sum(p.numel() for p in pipeline.model.parameters()),
            "loss": trained.history[-1]["loss"],
            "options": self.options,
        }

    def steps(self, data: Windows, folder: Path, seconds: float, seed: int) -> tuple[int, float]:
        """How many steps the budget holds besides the trial that tells it, and what that took; found once, kept."""
        path = folder / "steps.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            return found["steps"], found["seconds of the trial"]
        marks: list[tuple[float, float]] = []

        class Enough(Exception):
            pass

        begun = time.process_time()

        def look(entry: dict[str, float]) -> None:
            marks.append((entry["step"], time.process_time()))
            if time.process_time() - begun > TRIAL_SHARE * seconds and len(marks) >= 6:
                raise Enough

        number = 0
        while (folder / f"trial-{number}").exists():
            number += 1
        told = self.told(folder / f"trial-{number}", TRIAL_STEPS, seed)
        told = replace(told, training=replace(told.training, log_every=1, checkpoint_minutes=0.0))
        with contextlib.suppress(Enough):
            training.train(data, told, on_log=look)
        rest = marks[len(marks) // 3 :]
        each = (rest[-1][1] - rest[0][1]) / (rest[-1][0] - rest[0][0])
        trial = time.process_time() - begun
        steps = max(1, int((PRUDENCE * seconds - trial) / each))
        write_atomically(path, json.dumps({"steps": steps, "seconds of a step": each, "seconds of the trial": trial}))
        return steps, trial

    def load(self, folder: Path, length: int, features: int) -> None:
        self.pipeline = ImputationPipeline.from_pretrained(folder / "run" / "model")

    def impute(self, x: np.ndarray, samples: int, seed: int) -> np.ndarray:
        assert self.pipeline is not None
        with torch.no_grad():
            found = self.pipeline.samples(x.astype(np.float64), samples, seed=seed, **self.draw)
        return np.asarray(found, dtype=np.float32)

    def cost(self, task: str, length: int, features: int) -> Callable[[], Any]:
        config = CSDIConfig(features=features) if self.network == "csdi" else SeriesNetConfig(features=features)
        network = config.build()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, length, features, generator=generator)
        known = torch.rand(x.shape, generator=generator) < 0.7
        told = {"observed": x * known, "known": known, "stamps": torch.arange(length, dtype=torch.float32)[None]}
        c = torch.tensor([25.0])
        if task == "call":
            network.eval()
            with torch.no_grad():
                side = network.side(**told)

            def call() -> Any:
                with torch.no_grad():
                    return network(x, c, side=side)

            return call
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        network.train()
        target = torch.randn(x.shape, generator=generator)

        def step() -> None:
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x, c, **told)[~known], target[~known]).backward()
            optimizer.step()

        return step


class Spent:
    """Processor seconds of a run over all its starts, written down at each entry of its log."""

    def __init__(self, path: Path):
        self.path = path
        self.before = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else 0.0
        self.begun = time.process_time()

    @property
    def seconds(self) -> float:
        return self.before + time.process_time() - self.begun

    def __call__(self, entry: dict[str, float]) -> None:
        write_atomically(self.path, json.dumps({"seconds": self.seconds, "step": entry["step"]}))


SYSTEMS: dict[str, Callable[[], System]] = {"ours": partial(Ours, "ours"), "ours-csdi": partial(Ours, "csdi")}

if __name__ == "__main__":
    main(SYSTEMS)
