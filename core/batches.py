"""Which examples make up which batch: a pure function of the seed, so that training resumes anywhere.

The data are read epoch after epoch, each in its own order, as one endless stream; step n takes the next `batch_size` of
it. Nothing is dropped or repeated at the end of an epoch, a data set may be smaller than a batch, and the position in
the data is the number of the step: there is no state to save. Within a step, the positions 0 … batch_size - 1 are dealt
out in order to parts and processes, so that the union over processes is the same batch for any number of them.

Examples that are loaded one by one may use random augmentation: the global generators of torch, numpy and random are
seeded by (seed, step, position) before each is loaded, in whichever worker process that happens.
"""

from __future__ import annotations

import hashlib
import random
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, final

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import ArgumentError
from .randomness import mix, seeded

__all__ = ["Batch", "Plan", "Tensors", "batches", "epoch_order", "seed_everything"]

_ORDER, _LOADING = 0x6F72646572, 0x6C6F6164  # set these uses of the seed apart from each other and from the noise


@final
class Tensors(Dataset[dict[str, Tensor]]):
    """A data set of named tensors in memory, first axis the examples: `Tensors(x_0=images, label=labels)`.

    Raises:
        ArgumentError: no tensors, no examples, or tensors of different length.
    """

    def __init__(self, **tensors: Tensor):
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise ArgumentError(name, tensor, "a tensor, first axis the examples")
        lengths = {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ArgumentError("tensors", lengths, "at least one tensor, all with the same number (> 0) of examples")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Many examples at once."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return {name: tensor[indices] for name, tensor in self.tensors.items()}

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and contents, by which a resumed run knows its data."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Batch(NamedTuple):
    """What one process computes at once.

    Attributes:
        step: the optimizer step it belongs to.
        positions: its positions in the global batch of that step.
        indices: its indices in the data set, (B,).
        values: name -> (B, ...), or whatever the data's own `batch` makes for the B examples.
    """

    step: int
    positions: range
    indices: Tensor
    values: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Who computes which example when.

    Attributes:
        seed: of the order.
        size: number of examples in the data set.
        batch_size: examples per step over all parts and processes.
        parts: into which each process splits its share.
        rank, world: this process and the number of processes.
    """

    seed: int
    size: int
    batch_size: int
    parts: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self):
        if self.size < 1:
            raise ArgumentError("data", f"{self.size} examples", "at least one")
        if self.batch_size % (self.parts * self.world):
            expected = f"a multiple of accumulate x processes = {self.parts} x {self.world}"
            raise ArgumentError("batch_size", self.batch_size, expected)

    def positions(self, part: int) -> range:
        """The positions in the global batch of one part of this process's share."""
        width = self.batch_size // (self.parts * self.world)
        start = (part * self.world + self.rank) * width
        return range(start, start + width)

    def indices(self, step: int, positions: range) -> Tensor:
        """The data set's indices of `positions` of the global batch of `step`, (B,)."""
        place = step * self.batch_size + torch.tensor(positions)
        epochs, offsets = place // self.size, place % self.size
        found = torch.empty_like(place)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            found[here] = epoch_order(self.seed, epoch, self.size)[offsets[here]]
        return found


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """The order of the examples in one epoch: a permutation of 0 … size - 1."""
    return torch.randperm(size, generator=seeded(seed, epoch, _ORDER))


def seed_everything(*keys: int) -> None:
    """Seed the global generators of torch (every device), numpy and random by the hash of `keys`."""
    key = mix(*keys)
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_initialized():  # torch.manual_seed would format a stack trace per call where it is not
        torch.cuda.manual_seed_all(key)
    numpy.random.seed(key & 0xFFFF_FFFF)  # noqa: NPY002 (augmentations draw from the global one)
    random.seed(key)


def batches(
    data: Dataset[Any], plan: Plan, start: int, stop: int, workers: int, pin: bool = False
) -> Generator[Batch, None, None]:
    """This process's batches of steps `start` to `stop`, all parts of a step in turn.

    Data with a method `batch(indices) -> dict` are asked for whole batches, in this process. Others are indexed by
    `workers` processes and collated.
    """
    parts = ((step, plan.positions(part)) for step in range(start, stop) for part in range(plan.parts))
    whole: Callable[[Tensor], dict[str, Any]] | None = getattr(data, "batch", None)
    if whole is not None:
        for step, positions in parts:
            indices = plan.indices(step, positions)
            yield Batch(step, positions, indices, whole(indices))
        return
    loader = DataLoader(
        _Seeded(data, plan.seed),
        batch_sampler=_Sampler(plan, start, stop),  # pyright: ignore[reportArgumentType]: any iterable of keys will do
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=pin,
    )
    for (step, positions), values in zip(parts, loader, strict=True):
        yield Batch(step, positions, plan.indices(step, positions), values)


class _Sampler:
    """The keys of the examples of each batch, (step, position, index) each."""

    def __init__(self, plan: Plan, start: int, stop: int):
        self.plan, self.start, self.stop = plan, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.parts

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in range(self.start, self.stop):
            for part in range(self.plan.parts):
                positions = self.plan.positions(part)
                indices = self.plan.indices(step, positions).tolist()
                yield [(step, *place) for place in zip(positions, indices, strict=True)]


class _Seeded(Dataset[Any]):
    """The data set under keys that also say how to seed what it draws."""

    def __init__(self, data: Dataset[Any], seed: int):
        self.data, self.seed = data, seed

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        step, position, index = key
        seed_everything(self.seed, step, position, _LOADING)
        return self.data[index]


def _ignore_signals(_worker: int) -> None:
    """Let the main process alone decide when to stop: a signal to the whole group must not take its data away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
