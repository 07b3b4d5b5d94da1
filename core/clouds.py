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
from .layout import Ragged
from .noise import Noise, checked_mask, countable, own_view
from .randomness import Randomness

__all__ = ["Centred"]


class Centred(Noise):
    """Isotropic noise without centre of mass on ragged batches of point clouds: 3 (N - 1) degrees of freedom each.

    States have shape (rows, D), rows of all clouds one after another; `given(index=..., num_graphs=...)` tells whose
    row is whose. The density is that on the subspace of centred clouds (Satorras et al. 2021, "E(n) Equivariant
    Normalizing Flows"; Xu et al. 2022, GeoDiff, sec. 4.3), whose orthonormal coordinates make log det Sigma = 0.
    """

    layout: Ragged

    def __init__(self, index: Tensor | None = None, num_graphs: int | None = None):
        super().__init__()
        rows = torch.zeros(0, dtype=torch.long) if index is None else index
        self.layout = Ragged(rows, num_graphs)  # pyright: ignore[reportIncompatibleVariableOverride]: never another kind
        self.rows: Tensor | None = None
        """(rows, 1), 1 for the rows that count and 0 for the others; None for all"""

    @property
    def index(self) -> Tensor:
        """(rows,) long: whose row is whose."""
        return self.layout.index

    @property
    def num_graphs(self) -> int:
        """B."""
        return self.layout.num_graphs

    def given(self, **structure: Tensor | int) -> Self:
        """`index=` (rows,) long, ascending, and `num_graphs=` B."""
        if not structure:
            return self
        view = own_view(self)
        view.layout, view.rows = Ragged.given(structure), None
        return view

    def counts(self, x: Tensor) -> Tensor:
        """Rows per example, (B,)."""
        return self.layout.total(x.new_ones(len(x)) if self.rows is None else self.rows.to(x).squeeze(1))

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return self.project(self.standard(like, generator))

    def project(self, x: Tensor) -> Tensor:
        index = self.layout.on(x.device)
        counted = x if self.rows is None else x * self.rows.to(x)
        sums = x.new_zeros(self.num_graphs, x.shape[1]).index_add(0, index, counted)
        centred = x - (sums / self.counts(x).clamp_min(1).unsqueeze(1))[index]
        return centred if self.rows is None else centred * self.rows.to(x)

    def squares(self, x: Tensor) -> Tensor:
        return self.total(self.project(x) ** 2)

    def dof(self, like: Tensor) -> Tensor:
        return (self.counts(like.to(countable(like))) - 1).clamp_min(0) * like.shape[1]

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

    def taken(self, index: Tensor, like: Tensor) -> Self:
        view = own_view(self)
        view.layout = self.layout.taken(index)
        view.rows = None if self.rows is None else self.layout.take(self.rows, index)
        return view

    def counted(self, rows: Tensor) -> Tensor:
        """rows, 1 and 0, as (rows, 1), without those that this law leaves out already."""
        rows = rows.reshape(-1, 1)
        if len(rows) != len(self.index):
            raise ArgumentError("mask", rows, f"one entry for each of the {len(self.index)} rows")
        return rows if self.rows is None else rows * self.rows
