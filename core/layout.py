"""How a batch of states lies in a tensor: which of its rows belong to which example.

A dense state has one row per example, (B, *dims). A ragged one has the rows of all examples one after another, (rows,
*dims), and an index that tells whose row is whose: molecules with their atoms. Whatever lies on rows (noise on
positions, chains on symbols) needs of the layout the same few things: numbers per example spread over a state, sums of
a state per example, random numbers from one generator per example, and the choice of examples. So they are written
here once, and noise laws and token chains hold a layout.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self, final

import torch
from torch import Tensor

from .errors import ArgumentError
from .grids import Time
from .randomness import Randomness

__all__ = ["DENSE", "Dense", "Layout", "Ragged", "checked_graphs"]


class Layout(ABC):
    """Whose row is whose."""

    @abstractmethod
    def examples(self, x: Tensor) -> int:
        """B, the number of examples in a state."""

    @abstractmethod
    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        """Numbers (B,), or one, on x's device, shaped to broadcast over x."""

    @abstractmethod
    def rowwise(self, t: Time) -> Time:
        """A time per example as a time per row; a float as it is."""

    @abstractmethod
    def total(self, x: Tensor) -> Tensor:
        """The sum of a state's elements per example, (B,)."""

    @abstractmethod
    def numel(self, x: Tensor) -> Tensor:
        """The number of a state's elements per example, (B,) long."""

    @abstractmethod
    def random(self, draw: Callable[..., Tensor], x: Tensor, generator: Randomness, dtype: torch.dtype) -> Tensor:
        """Numbers of x's shape from `draw` (`randomness.randn`, `rand`), each example's from its own generator."""

    @abstractmethod
    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """The examples numbered by index (M,), as a state of M examples."""

    @abstractmethod
    def taken(self, index: Tensor) -> Self:
        """The layout of `take(x, index)`."""


@final
class Dense(Layout):
    """One row per example."""

    def examples(self, x: Tensor) -> int:
        return x.shape[0]

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        return numbers.reshape(-1, *(1,) * (x.ndim - 1))

    def rowwise(self, t: Time) -> Time:
        return t

    def total(self, x: Tensor) -> Tensor:
        return per_row(x)

    def numel(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), math.prod(x.shape[1:]), device=x.device)

    def random(self, draw: Callable[..., Tensor], x: Tensor, generator: Randomness, dtype: torch.dtype) -> Tensor:
        return draw(x.shape, generator, dtype=dtype, device=x.device)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return x[index]

    def taken(self, index: Tensor) -> Self:
        return self


DENSE = Dense()


@final
class Ragged(Layout):
    """The rows of all examples one after another. It serves states, and times, on any device.

    Args:
        index: (rows,) long, ascending: the example of each row.
        num_graphs: B; examples without rows count. The largest index + 1 by default.
    """

    def __init__(self, index: Tensor, num_graphs: int | None = None):
        self.index, self.num_graphs = index, checked_graphs(index, num_graphs)
        self.sizes = torch.bincount(index, minlength=self.num_graphs)
        """Rows per example, (B,) long"""
        self._known = {index.device: index}

    @classmethod
    def given(cls, structure: Mapping[str, Any]) -> Ragged:
        """From structure: `index` and `num_graphs`, nothing else; an ArgumentError otherwise."""
        index, count = structure.get("index"), structure.get("num_graphs")
        if structure.keys() != {"index", "num_graphs"} or not isinstance(index, Tensor) or not isinstance(count, int):
            raise ArgumentError("structure", sorted(structure), "index (rows,) and num_graphs")
        return cls(index, count)

    def places(self) -> Tensor:
        """Where each row stands in its own example, (rows,) long."""
        return torch.arange(len(self.index), device=self.index.device) - (self.sizes.cumsum(0) - self.sizes)[self.index]

    def on(self, device: torch.device) -> Tensor:
        """The index on a device; carried there once."""
        if device not in self._known:
            self._known[device] = self.index.to(device)
        return self._known[device]

    def examples(self, x: Tensor) -> int:
        if len(x) != len(self.index):
            raise ArgumentError("x", x, f"{len(self.index)} rows, those of `given(index=..., num_graphs=...)`")
        return self.num_graphs

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        if numbers.ndim:
            numbers = numbers.expand(self.num_graphs)[self.on(x.device)]
        return numbers.reshape(-1, *(1,) * (x.ndim - 1))

    def rowwise(self, t: Time) -> Time:
        return t.expand(self.num_graphs)[self.on(t.device)] if isinstance(t, Tensor) and t.ndim else t

    def total(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.num_graphs).index_add(0, self.on(x.device), per_row(x))

    def numel(self, x: Tensor) -> Tensor:
        self.examples(x)
        return self.sizes.to(x.device) * math.prod(x.shape[1:])

    def random(self, draw: Callable[..., Tensor], x: Tensor, generator: Randomness, dtype: torch.dtype) -> Tensor:
        if generator is None or isinstance(generator, torch.Generator):
            return draw(x.shape, generator, dtype=dtype, device=x.device)
        if len(generator) != self.examples(x):
            raise ArgumentError("generator", f"{len(generator)} generators", f"one per graph, {self.num_graphs}")
        drawn = [
            draw((size, *x.shape[1:]), one, dtype=dtype)
            for size, one in zip(self.sizes.tolist(), generator, strict=True)
        ]
        return torch.cat(drawn).to(x.device) if drawn else x.new_empty(x.shape, dtype=dtype)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        self.examples(x)
        return x[self._rows_of(index.to(self.index.device)).to(x.device)]

    def taken(self, index: Tensor) -> Ragged:
        sizes = self.sizes[index.to(self.index.device)]
        rows = torch.repeat_interleave(torch.arange(len(index), device=sizes.device), sizes)
        return Ragged(rows, len(index))

    def _rows_of(self, index: Tensor) -> Tensor:
        """The places of the rows of the examples numbered by index."""
        sizes = self.sizes[index]
        shift = (self.sizes.cumsum(0) - self.sizes)[index] - (sizes.cumsum(0) - sizes)
        place = torch.repeat_interleave(shift, sizes)
        return place + torch.arange(len(place), device=place.device)


def per_row(x: Tensor) -> Tensor:
    """(rows, ...) summed to (rows,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


def checked_graphs(index: Tensor, num_graphs: int | None) -> int:
    """The number of graphs, or an ArgumentError unless index ascends within 0 ... num_graphs - 1."""
    count = (int(index.max()) + 1 if len(index) else 0) if num_graphs is None else num_graphs
    if index.ndim != 1 or index.dtype != torch.long or bool((index[1:] < index[:-1]).any()):
        raise ArgumentError("index", index, "a long tensor (rows,) that ascends")
    if len(index) and (int(index[0]) < 0 or int(index[-1]) >= count):
        raise ArgumentError("num_graphs", num_graphs, f"more than the largest index {int(index[-1])}")
    return count
