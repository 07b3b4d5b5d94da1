"""Guidance as a wrapper of the network's raw output.

Classifier-free guidance F = F_null + w (F_condition - F_null) (Ho & Salimans 2022, eq. 6 with w = 1 + their w) acts on
the raw output and is exact for eps, v, x0, flow and edm readings, since the mean is affine in it, and for logits, where
it is a product of powers. So it is written once, for every domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError

__all__ = ["ClassifierFree"]


class ClassifierFree(nn.Module):
    """A network guided towards its condition.

    Both branches run as one batch of 2 B where x and all conditions have one row per example. They run one after the
    other where they do not: rows of graphs belong to examples by an index, and would go on to belong to the first B.

    Args:
        network: `network(x, c, **condition)`.
        weight: w; 1 is the conditional network, 0 the unconditional one, above 1 sharper.
        null: for each condition that is dropped, the value (scalar, or tensor without the batch) that means "none".
        channels: with a learned reverse variance, how many channels (dimension 1) are the mean: only those are guided.
    """

    def __init__(self, network: nn.Module, weight: float, null: Mapping[str, Any], channels: int | None = None):
        super().__init__()
        if not math.isfinite(weight):
            raise ArgumentError("weight", weight, "a finite number")
        if not null:
            raise ArgumentError("null", null, "the null value of at least one condition")
        self.network, self.weight, self.null, self.channels = network, float(weight), dict(null), channels

    def forward(self, x: Tensor, c: Tensor, **condition: Any) -> Tensor:
        missing = self.null.keys() - condition.keys()
        if missing:
            raise ArgumentError("condition", sorted(condition), f"values for {sorted(missing)} too")
        values = ((name, condition[name], null) for name, null in self.null.items())
        without = {name: torch.as_tensor(null).to(value).expand_as(value) for name, value, null in values}
        if len(x) == len(c) and all(by_example(value, len(c)) for value in condition.values()):
            dropped = {**condition, **without}
            both = {name: torch.cat([value, dropped[name]]) for name, value in condition.items()}
            output = self.network(torch.cat([x, x]), torch.cat([c, c]), **both)
            conditional, null = output.chunk(2)
        else:
            conditional, null = self.network(x, c, **condition), self.network(x, c, **{**condition, **without})
        if self.channels is None:
            return torch.lerp(null, conditional, self.weight)
        mean = torch.lerp(null[:, : self.channels], conditional[:, : self.channels], self.weight)
        return torch.cat([mean, conditional[:, self.channels :]], dim=1)


def by_example(value: Any, examples: int) -> bool:
    """Whether a condition is a tensor with one row per example."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == examples
