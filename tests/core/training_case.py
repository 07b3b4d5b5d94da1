"""The smallest training run that has everything that can go wrong on resume: shuffled data that end in mid-batch,
random augmentation, dropout, noise, a cosine, gradient accumulation and an average. Run by torchrun, it trains on two
processes (`test_training` compares; `test_resume` interrupts and kills)."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from polydiff.core import checkpoints
from polydiff.core.batches import Tensors
from polydiff.core.errors import TrainingError
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import randn_like, stratified, uniform
from polydiff.core.training import Trained, train

SIZE, WIDTH = 50, 4
POISONED = 0
"""An example that the order of the case brings in step 2 first."""

OPTIONS = TrainingOptions(
    steps=30,
    batch_size=16,
    learning_rate=1e-2,
    warmup=5,
    decay_to=0.1,
    weight_decay=0.01,
    ema=0.9,
    accumulate=2,
    seed=3,
    checkpoint_every=10,
    log_every=1,
    cpu=True,
    progress=False,
)
STEPS = OPTIONS.steps


class Objective(nn.Module):
    """Predict the noise in t-dependent mixtures of vectors."""

    def __init__(self, dropout: float = 0.2, hidden: int = 16, times: Callable[..., Tensor] = uniform):
        super().__init__()
        self.times = times
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Linear(WIDTH + 1, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, WIDTH)
            )
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: dict[str, Tensor], generator: list[torch.Generator]) -> Tensor:
        x_0 = batch["x_0"]
        t = self.times(len(x_0), generator).to(x_0)[:, None]
        noise = randn_like(x_0, generator)
        self.seen += 1
        return (self.network(torch.cat([(1 - t) * x_0 + t * noise, t], 1)) - noise).square().mean(1)


class Examples(Dataset[dict[str, Tensor]]):
    """Vectors one by one, each with noise from all three global generators, as augmentations have it."""

    def __init__(self, x_0: Tensor, augment: float = 0.1):
        self.x_0, self.augment = x_0, augment

    def __len__(self) -> int:
        return len(self.x_0)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = float(torch.rand(())) + random.random() + numpy.random.rand()  # noqa: NPY002
        return {"x_0": self.x_0[index] + self.augment * drawn}


def vectors() -> Tensor:
    return torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(1))


def run(
    folder: Path,
    *,
    resume: bool = False,
    on_log: Callable[[dict[str, float]], None] | None = None,
    objective: nn.Module | None = None,
    data: Dataset[Any] | None = None,
    **options: Any,
) -> Trained:
    """One run of the case."""
    data = Examples(vectors()) if data is None else data
    objective = objective or Objective()
    return train(objective, data, replace(OPTIONS, **options), folder=folder, resume=resume, on_log=on_log)


def state(folder: Path, trained: Trained) -> dict[str, Any]:
    """All that must be equal, in a form that `==` compares bit by bit."""
    newest = checkpoints.load_newest(folder / "checkpoints")
    found: dict[str, Any] = {"step": newest.step}
    tensors = dict(newest.tensors)
    tensors |= {"objective": trained.objective.state_dict(), "average": trained.ema.state_dict()}
    for group, named in tensors.items():
        for name, tensor in named.items():
            found[f"{group}/{name}"] = (tuple(tensor.shape), tensor.dtype, tensor.contiguous().numpy().tobytes())
    found["history"] = [
        {k: v for k, v in entry.items() if k not in ("seconds", "examples_per_second")} for entry in trained.history
    ]
    return found


def endless(folder: Path, hidden: int) -> None:
    """A run that writes a checkpoint after every step; to be killed."""
    torch.set_num_threads(1)
    run(folder, resume=True, objective=Objective(hidden=hidden), checkpoint_every=1, keep=3)


def two_processes(folder: Path) -> None:
    """What torchrun starts: 20 steps without dropout, times tied over the batch, then a run that meets a NaN."""
    data = Tensors(x_0=vectors())
    run(folder / "good", objective=Objective(dropout=0.0, times=stratified), data=data, steps=20, decay_to=1.0)
    poisoned = vectors()
    poisoned[POISONED] = float("nan")
    try:
        run(folder / "bad", objective=Objective(dropout=0.0), data=Tensors(x_0=poisoned), steps=20)
    except TrainingError as error:
        (folder / f"error-{os.environ['RANK']}.json").write_text(json.dumps(str(error)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    if sys.argv[2:] == ["long"]:  # until it is told to stop
        long: dict[str, Any] = {"data": Tensors(x_0=vectors()), "decay_to": 1.0, "steps": 10**6, "log_every": 100}
        run(place / "long", objective=Objective(dropout=0.0), checkpoint_every=0, **long)
    else:
        two_processes(place)
