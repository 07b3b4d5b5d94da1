"""How texts are drawn: the options that all ways of writing share, and the batches in which it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor

from ..core import sharpening
from ..core.errors import ArgumentError, check_counts
from ..core.sampling import Step

__all__ = ["Drawing", "How", "batches"]

Sampler = Callable[..., Iterator[Step[Tensor]]]

T = TypeVar("T")


class How(TypedDict, total=False):
    """The keywords of `Drawing`, where functions take them."""

    steps: int
    sampler: Sampler | None
    temperature: float
    top_p: float | None
    seed: int
    first: int
    batch_size: int
    precision: torch.dtype


@dataclass(frozen=True)
class Drawing:
    """Options of drawing.

    Raises:
        ArgumentError: one that cannot be used.
    """

    steps: int = 64
    """Of the sampler, for each window."""
    sampler: Sampler | None = None
    """`sampler(denoise, kernel, x, times, generator=)`, such as `core.ancestral.ancestral`, the default, or for
    absorbing kernels those of `core.unmasking` and `core.any_order`. By default an absorbing model that was calibrated
    for so many steps takes those, revealing in each as large a share of the hidden tokens."""
    temperature: float = 1.0
    """Below 1 for likelier tokens; 1 is the model's law."""
    top_p: float | None = None
    """Share of the probability that the likeliest tokens drawn from hold; None for all."""
    seed: int = 0
    """Text i depends on (seed, first + i) alone."""
    first: int = 0
    """Number of the first text."""
    batch_size: int = 32
    """Texts in the network at once; changes nothing else."""
    precision: torch.dtype = torch.float32
    """torch.bfloat16 runs the network in autocast."""

    def __post_init__(self):
        check_counts(steps=self.steps, batch_size=self.batch_size)
        if self.sampler is not None and not callable(self.sampler):
            raise ArgumentError("sampler", self.sampler, "a function, such as polydiff.core.ancestral.ancestral")
        for name in ("seed", "first"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ArgumentError(name, value, "an integer >= 0")
        if self.precision not in (torch.float32, torch.bfloat16):
            raise ArgumentError("precision", self.precision, "torch.float32 or torch.bfloat16")
        _ = self.changes

    @property
    def changes(self) -> list[sharpening.Change]:
        """What is done to the model's beliefs."""
        tempered = [] if self.temperature == 1 else [sharpening.temperature(self.temperature)]
        return tempered if self.top_p is None else [*tempered, sharpening.top_p(self.top_p)]


def batches(items: Sequence[T], size: int, alike: Callable[[T], object] = lambda item: None) -> Iterator[list[T]]:
    """Items in order, at most `size` at a time, and only neighbours of which `alike` says the same."""
    batch: list[T] = []
    for item in items:
        if batch and (len(batch) == size or alike(batch[0]) != alike(item)):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
