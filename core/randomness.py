"""Seeded randomness: one generator per example, drawn on the CPU.

A diffusion run draws noise, times and dropped labels for every example of every step. If those numbers came from one
running generator, they would depend on the size of the batch, the number of processes and the place where a run was
interrupted. Here each example of each step owns a generator whose seed is a hash of (seed, step, position in the global
batch): the same example meets the same noise however the work is split, and a resumed run needs no stored state.

Numbers are drawn on the device of the generator (the CPU unless the caller made another one) and then moved, so a seed
means the same noise on every machine. Half-precision types are drawn in float32 and rounded.

The CPU generator of torch is a Mersenne Twister that keeps only the low 32 bits of its seed. Two of n streams coincide
with probability about n^2 / 2^33: within one batch of 1024 that is 1e-4, and over a long run some example meets the
noise that another one met thousands of steps before, which does no harm. Seeds are hashed first (splitmix64, Steele,
Lea and Flood 2014, "Fast splittable pseudorandom number generators"), so that neighbouring keys give unrelated streams.

Some laws tie the examples of a batch together: `stratified` spreads one number over all of them. They too must not ask
how the batch was split, so in training the generators are a `Share`, which knows its place in the whole batch, and such
laws ask `standing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import NamedTuple, TypeAlias, final, overload

import torch
from torch import Tensor

from .errors import ArgumentError

__all__ = [
    "Randomness",
    "Share",
    "Standing",
    "example_generators",
    "mix",
    "rand",
    "randint",
    "randn",
    "randn_like",
    "seeded",
    "standing",
    "stratified",
    "uniform",
]

Randomness: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""What every `generator` argument takes: one generator, a list with one per example, or None (torch's global one)."""

_MASK = (1 << 64) - 1
_COMMON = 0x636F6D6D6F6E  # sets this use of the seed apart from the others; above every position


def mix(*keys: int) -> int:
    """A 64-bit hash of integers, in order: the finaliser of splitmix64 folded over the keys. Pure Python, no state."""
    value = 0
    for key in keys:
        value = ((value ^ (key & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value


def seeded(*keys: int) -> torch.Generator:
    """A CPU generator seeded by the hash of `keys`."""
    return torch.Generator().manual_seed(mix(*keys))


def example_generators(seed: int, step: int, positions: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator per example, a pure function of (seed, step, position in the global batch).

    Args:
        seed: the seed of the run.
        step: the optimizer step that the examples belong to.
        positions: of the examples in the global batch of that step (not in the share of one process).
    """
    return [seeded(seed, step, position) for position in positions]


@final
class Share(Sequence[torch.Generator]):
    """The generators of some examples of a batch, as of `example_generators`, that know their place in it.

    Not a list: DistributedDataParallel makes every list that it passes on anew, as a plain one.

    Args:
        seed, step: as of `example_generators`.
        positions: of these examples in the global batch of that step.
        size: of that batch.

    Attributes:
        common: a generator of what the whole batch shares; every share of one step begins with the same.
    """

    def __init__(self, seed: int, step: int, positions: Sequence[int], size: int):
        self.positions, self.size = torch.tensor(positions, dtype=torch.int64), size
        self.common = seeded(seed, step, _COMMON)
        self._own = example_generators(seed, step, positions)

    def __len__(self) -> int:
        return len(self._own)

    @overload
    def __getitem__(self, index: int) -> torch.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Generator]: ...
    def __getitem__(self, index: int | slice) -> torch.Generator | list[torch.Generator]:
        return self._own[index]


class Standing(NamedTuple):
    """Where examples stand in their batch.

    Attributes:
        positions: (count,) int64.
        size: of the batch, of which these examples may be a part.
        common: the generator of what the batch shares. Whoever draws from it draws for the whole batch, so that every
            part draws the same.
    """

    positions: Tensor
    size: int
    common: torch.Generator | None


def standing(count: int, generator: Randomness) -> Standing:
    """Where `count` examples stand in their batch: a `Share` knows; any other randomness is taken for a whole batch's.

    Args:
        count: number of examples.
        generator: as in `randn`. The first of a list of generators is common to the batch.

    Raises:
        ArgumentError: a `Share` of another number of examples.
    """
    if not isinstance(generator, Share):
        first = generator[0] if isinstance(generator, Sequence) else generator
        return Standing(torch.arange(count), count, first)
    if len(generator) != count:
        raise ArgumentError("generator", f"{len(generator)} generators", f"one per example, {count}")
    return Standing(generator.positions, generator.size, generator.common)


def stratified(count: int, generator: Randomness = None) -> Tensor:
    """u_i = (u + i/B) mod 1, (count,) float64, with one u per batch (Kingma et al. 2021, I.1): each is uniform in
    [0, 1), and together they are spread evenly.

    Args:
        count: number of examples.
        generator: see `standing`; i and B are those of the whole batch.
    """
    positions, size, common = standing(count, generator)
    return (rand((1,), common, dtype=torch.float64) + positions.double() / size) % 1


def randn(
    shape: Sequence[int],
    generator: Randomness = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal numbers.

    Args:
        shape: of the result; its first axis is the batch when `generator` is a list.
        generator: one generator, or a list with one per example: row b then depends on generator b alone.
        dtype: floating; types below float32 are drawn in float32 and rounded.
        device: of the result.

    Raises:
        ArgumentError: a list whose length is not shape[0].
    """
    return _draw(torch.randn, shape, generator, _drawn(dtype)).to(device, dtype)


def rand(
    shape: Sequence[int],
    generator: Randomness = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1); arguments and errors as in `randn`. (Rounding to half precision can reach 1.)"""
    return _draw(torch.rand, shape, generator, _drawn(dtype)).to(device, dtype)


def randint(
    high: int, shape: Sequence[int], generator: Randomness = None, *, device: torch.device | str | None = None
) -> Tensor:
    """Uniform integers in [0, high), as int64; other arguments and errors as in `randn`."""
    return _draw(partial(torch.randint, high), shape, generator, torch.int64).to(device)


def randn_like(x: Tensor, generator: Randomness = None) -> Tensor:
    """Standard normal numbers with the shape, dtype, device and memory format of `x`; `generator` as in `randn`."""
    return torch.empty_like(x).copy_(randn(x.shape, generator, dtype=x.dtype))


def uniform(
    batch: int,
    generator: Randomness = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """One uniform number in [low, high) per example, shape (batch,); `generator` as in `randn`."""
    return low + (high - low) * rand((batch,), generator, dtype=dtype, device=device)


def _drawn(dtype: torch.dtype) -> torch.dtype:
    if not dtype.is_floating_point:
        raise ArgumentError("dtype", dtype, "a floating type")
    return torch.float64 if dtype == torch.float64 else torch.float32


def _draw(
    make: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Randomness,
    dtype: torch.dtype,
) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        place = "cpu" if generator is None else generator.device
        return make(tuple(shape), generator=generator, dtype=dtype, device=place)
    if not isinstance(generator, Sequence):
        raise ArgumentError("generator", generator, "a torch.Generator, a list with one per example, or None")
    if len(shape) == 0 or len(generator) != shape[0]:
        raise ArgumentError("generator", f"{len(generator)} generators", f"one per example of shape {tuple(shape)}")
    if len(generator) == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    out = torch.empty((len(generator), prod(shape[1:])), dtype=dtype, device=generator[0].device)
    for row, own in zip(out.unbind(), generator, strict=True):
        make(row.shape, generator=own, out=row)
    return out.view(tuple(shape))
