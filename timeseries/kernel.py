r"""The noise law of imputation: noise on the cells to be filled, nothing anywhere else.

A window of a series has cells (time, feature). Those that are *given* are structure: the network sees them, the kernel
does not. Diffusion lives on the *noised* cells alone, and so learns p(noised | given) (Tashiro et al. 2021, "CSDI:
Conditional Score-based Diffusion Models for Probabilistic Time Series Imputation", eq. 5-6):

    Sigma = diag(mask),    x_t = alpha_t x_0 + sigma_t x_1,    x = 0 wherever mask is False.

When a model imputes, all missing cells are drawn together. For training to look alike, cells whose truth nobody knows
are noised too, on x_0 = 0 in place of the truth, but they are *blind*: loss, densities, divergences and dimensions are
those of the marginal law on the *counted* cells, which are noised and known. Noise is independent from cell to cell,
so q(x_t | x_0) and all its relatives of some cells are the product over them, and both laws of the protocol hold for
every choice of counted cells. What a network says of a counted cell may depend on the noisy blind ones, though, so a
sum over the counted cells alone bounds a likelihood (ELBO, ODE likelihood) only where counted equals mask.
"""

from __future__ import annotations

from typing import Any, Self, final

import torch
from torch import Tensor

from ..core.errors import ArgumentError
from ..core.gaussian import Gaussian
from ..core.noise import Noise, own_view
from ..core.randomness import Randomness
from ..core.schedules import Schedule

__all__ = ["Targets", "targets"]


def targets(schedule: Schedule) -> Gaussian:
    """The kernel of imputation; `given(mask=..., counted=...)` binds it to the cells of a batch."""
    return Gaussian(schedule, Targets())


@final
class Targets(Noise):
    """N(0, diag(mask)) on states (B, L, K), summed over the counted cells only.

    Before `given` all cells are noised and counted. Every draw uses one standard normal per cell of the state, noised
    or not, so that the noise of a cell does not depend on which others are noised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones((), dtype=torch.bool), persistent=False)
        self.register_buffer("counted", self.mask, persistent=False)
        self.mask: Tensor
        """bool, broadcastable to the states: the noised cells"""
        self.counted: Tensor
        """bool, broadcastable to the states: those of them that enter sums; the very same tensor where all do"""

    def given(self, **structure: Tensor | int) -> Self:
        """`mask=` (B, L, K) bool, the noised cells, and perhaps `counted=` (B, L, K) bool, within the mask.

        Raises:
            ArgumentError: other names, no bool tensors, two shapes, or a counted cell that is not noised.
        """
        if not structure:
            return self
        if "mask" not in structure or not structure.keys() <= {"mask", "counted"}:
            raise ArgumentError("structure", sorted(structure), "mask, and perhaps counted")
        mask = checked_cells("mask", structure["mask"])
        counted = mask
        if structure.get("counted") is not None:
            counted = checked_cells("counted", structure["counted"])
            if counted.shape != mask.shape:
                raise ArgumentError("counted", tuple(counted.shape), f"the shape of the mask, {tuple(mask.shape)}")
            outside = counted & ~mask
            if bool(outside.any()):
                cell = tuple(outside.nonzero()[0].tolist())
                raise ArgumentError("counted", f"True at {cell}", "True only where mask is: counted cells are noised")
        return self._with(mask, counted)

    def _with(self, mask: Tensor, counted: Tensor) -> Self:
        view = own_view(self)
        view.mask, view.counted = mask, counted
        return view

    def total(self, x: Tensor) -> Tensor:
        """The sum of a state's elements per example, without the blind cells, (B,).

        Cells that are not noised stay in it: they are 0 in states, and what is not makes an event impossible.
        """
        if self.counted is self.mask:
            return super().total(x)
        return super().total(x.masked_fill((self.mask & ~self.counted).to(x.device), 0))

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return self.project(self.standard(like, generator))

    def project(self, x: Tensor) -> Tensor:
        return x.masked_fill(~self.mask.to(x.device), 0)

    def squares(self, x: Tensor) -> Tensor:
        # Filled before it is squared: what stands in the other cells may be anything, also not a number.
        return super().total(x.masked_fill(~self.counted.to(x.device), 0) ** 2)

    def dof(self, like: Tensor) -> Tensor:
        return super().total(self.counted.to(like).expand_as(like))

    def log_det(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.examples(like))

    def deviation(self, like: Tensor) -> Tensor:
        return self.mask.to(like).expand_as(like)

    def part(self, mask: Tensor) -> Noise:
        cells = checked_cells("mask", mask).to(self.mask.device)
        some = self.mask & cells
        return self._with(some, some if self.counted is self.mask else self.counted & cells)

    def taken(self, index: Tensor, like: Tensor) -> Self:
        if self.mask.ndim < like.ndim or len(self.mask) == 1:
            return self  # one mask for all examples
        index = index.to(self.mask.device)
        mask = self.mask[index]
        return self._with(mask, mask if self.counted is self.mask else self.counted[index])


def checked_cells(name: str, cells: Any) -> Tensor:
    """cells itself, or an ArgumentError unless it is a bool tensor."""
    if not isinstance(cells, Tensor) or cells.dtype != torch.bool:
        raise ArgumentError(name, cells, "a bool tensor, one entry per cell")
    return cells
