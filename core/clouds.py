"""Noise on ragged batches of point clouds.

States have shape (rows, D): the rows of all clouds one after another, with an index that tells whose row is whose.
Positions without a frame of reference have no centre of mass, and neither has their noise: the law is N(0, P), P the
projection of each cloud on its centred subspace of D (N - 1) dimensions.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from .errors import ArgumentError
from .noise import Noise, checked_mask, own_view
from .randomness import Randomness, randn

__all__ = ["Centred", "checked_graphs"]


class Centred(Noise):
    """Isotropic noise without centre of mass on ragged batches of point clouds: 3 (N - 1) degrees of freedom each.

    States have shape (rows, D), rows of all clouds one after another; `given(index=..., num_graphs=...)` tells whose
    row is whose. The density is that on the subspace of centred clouds (Satorras et al. 2021, "E(n) Equivariant
    Normalizing Flows"; Xu et al. 2022, GeoDiff, sec. 4.3), whose orthonormal coordinates make log det Sigma = 0.
    """

    def __init__(self, index: Tensor | None = None, num_graphs: int | None = None):
        super().__init__()
        index = torch.zeros(0, dtype=torch.long) if index is None else index
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor
        self.num_graphs = checked_graphs(index, num_graphs)
        self.rows: Tensor | None = None
        """(rows, 1), 1 for the rows that count and 0 for the others; None for all"""

    def given(self, **structure: Tensor | int) -> Self:
        """`index=` (rows,) long, ascending, and `num_graphs=` B."""
        if not structure:
            return self
        index, count = structure.get("index"), structure.get("num_graphs")
        if structure.keys() != {"index", "num_graphs"} or not isinstance(index, Tensor) or not isinstance(count, int):
            raise ArgumentError("structure", sorted(structure), "index (rows,) and num_graphs")
        view = own_view(self)
        view.index, view.num_graphs, view.rows = index, checked_graphs(index, count), None
        return view

    def examples(self, x: Tensor) -> int:
        if len(x) != len(self.index):
            raise ArgumentError("x", x, f"{len(self.index)} rows, those of `given(index=..., num_graphs=...)`")
        return self.num_graphs

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        numbers = numbers.to(device=x.device, dtype=x.dtype)
        return (numbers.expand(self.num_graphs)[self.index] if numbers.ndim else numbers.expand(len(x))).unsqueeze(1)

    def total(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.num_graphs).index_add(0, self.index, x.sum(1))

    def counts(self, x: Tensor) -> Tensor:
        """Rows per example, (B,)."""
        ones = x.new_ones(len(x)) if self.rows is None else self.rows.to(x).squeeze(1)
        return x.new_zeros(self.num_graphs).index_add(0, self.index, ones)

    def standard(self, like: Tensor, generator: Randomness = None) -> Tensor:
        if generator is None or isinstance(generator, torch.Generator):
            return randn(like.shape, generator, dtype=like.dtype, device=like.device)
        if len(generator) != self.examples(like):
            raise ArgumentError("generator", f"{len(generator)} generators", f"one per graph, {self.num_graphs}")
        sizes = torch.bincount(self.index, minlength=self.num_graphs).tolist()
        draws = [
            randn((size, like.shape[1]), one, dtype=like.dtype, device=like.device)
            for size, one in zip(sizes, generator, strict=True)
        ]
        return torch.cat(draws)

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return self.project(self.standard(like, generator))

    def project(self, x: Tensor) -> Tensor:
        counted = x if self.rows is None else x * self.rows.to(x)
        sums = x.new_zeros(self.num_graphs, x.shape[1]).index_add(0, self.index, counted)
        centred = x - (sums / self.counts(x).clamp_min(1).unsqueeze(1))[self.index]
        return centred if self.rows is None else centred * self.rows.to(x)

    def squares(self, x: Tensor) -> Tensor:
        return self.total(self.project(x) ** 2)

    def dof(self, like: Tensor) -> Tensor:
        return (self.counts(like) - 1).clamp_min(0) * like.shape[1]

    def log_det(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.num_graphs)

    def deviation(self, like: Tensor) -> Tensor:
        raise ArgumentError("noise", type(self).__name__, "a diagonal law: centred elements are not independent")

    def part(self, mask: Tensor) -> Noise:
        """The shape of the masked rows: their coordinates from their own centre, independent of all the rest."""
        view = own_view(self)
        view.rows = self.counted(checked_mask(mask))
        return view

    def blend(self, mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
        """The masked rows take the shape of the known ones and stay centred where they are in x."""
        part = self.part(mask)
        return x - part.project(x) + part.project(known)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        self.examples(x)
        return x[self._rows_of(index)]

    def taken(self, index: Tensor, like: Tensor) -> Self:
        sizes = torch.bincount(self.index, minlength=self.num_graphs)[index]
        rows = torch.repeat_interleave(torch.arange(len(index), device=sizes.device), sizes)
        view = self.given(index=rows, num_graphs=len(index))
        view.rows = None if self.rows is None else self.rows[self._rows_of(index)]
        return view

    def counted(self, rows: Tensor) -> Tensor:
        """rows, 1 and 0, as (rows, 1), without those that this law leaves out already."""
        rows = rows.reshape(-1, 1)
        if len(rows) != len(self.index):
            raise ArgumentError("mask", rows, f"one entry for each of the {len(self.index)} rows")
        return rows if self.rows is None else rows * self.rows

    def _rows_of(self, index: Tensor) -> Tensor:
        """The places of the rows of the graphs numbered by index."""
        counts = torch.bincount(self.index, minlength=self.num_graphs)
        sizes = counts[index]
        shift = (counts.cumsum(0) - counts)[index] - (sizes.cumsum(0) - sizes)
        place = torch.repeat_interleave(shift, sizes)
        return place + torch.arange(len(place), device=place.device)


def checked_graphs(index: Tensor, num_graphs: int | None) -> int:
    """The number of graphs, or an ArgumentError unless index ascends within 0 ... num_graphs - 1."""
    count = (int(index.max()) + 1 if len(index) else 0) if num_graphs is None else num_graphs
    if index.ndim != 1 or index.dtype != torch.long or bool((index[1:] < index[:-1]).any()):
        raise ArgumentError("index", index, "a long tensor (rows,) that ascends")
    if len(index) and (int(index[0]) < 0 or int(index[-1]) >= count):
        raise ArgumentError("num_graphs", num_graphs, f"more than the largest index {int(index[-1])}")
    return count
