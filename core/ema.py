"""Exponential moving average of the weights: what diffusion models are sampled with.

After step n the average is m <- d_n m + (1 - d_n) w with d_n = min(decay, (1 + n) / (10 + n)), n the number of updates
before. The warm-up lets a short run forget its random start. (Polyak and Juditsky 1992; the warm-up is the usual one
of TensorFlow's ExponentialMovingAverage.) d_n depends on n alone, so that a resumed run needs no state but the average.
"""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import nn

from .errors import ArgumentError

__all__ = ["EMA"]


@final
class EMA:
    """The average of a module's weights, kept in a copy of the module.

    Args:
        module: whose weights are averaged; copied, in evaluation mode and without gradients.
        decay: in [0, 1).

    Attributes:
        module: the copy. Floating-point parameters are averaged; all else, buffers too, is the latest.
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0.0 <= decay < 1.0:
            raise ArgumentError("decay", decay, "a number in [0, 1)")
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    def decay_at(self, updates: int) -> float:
        """The decay of the update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, module: nn.Module, updates: int) -> None:
        """Move the average towards `module`'s present weights; `updates` counts the earlier calls."""
        means, values, copies, sources = [], [], [], []
        for mean, value in zip(self.module.parameters(), module.parameters(), strict=True):
            averaged = value.requires_grad and value.is_floating_point()
            (means if averaged else copies).append(mean)
            (values if averaged else sources).append(value)
        copies += self.module.buffers()
        sources += module.buffers()
        if means:
            torch._foreach_lerp_(means, values, 1.0 - self.decay_at(updates))  # pyright: ignore[reportPrivateImportUsage]
        if copies:
            torch._foreach_copy_(copies, sources)  # pyright: ignore[reportPrivateImportUsage]
