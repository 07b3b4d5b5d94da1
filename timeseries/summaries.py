"""What is told of samples: a point, or quantiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from ..core.errors import ArgumentError

__all__ = ["PointName", "Summary", "quantiles_of", "summarised", "summary_of"]

PointName = Literal["median", "mean"]
Summary = Callable[[np.ndarray], np.ndarray]
POINTS: Mapping[PointName, Summary] = {
    "median": partial(np.quantile, q=0.5, axis=0),
    "mean": partial(np.mean, axis=0),
}


def summary_of(point: PointName) -> Summary:
    """The function of samples (S, L, K) that a name stands for."""
    if point not in POINTS:
        raise ArgumentError("point", point, " or ".join(map(repr, POINTS)))
    return POINTS[point]


def quantiles_of(name: str, q: float | Sequence[float]) -> Summary:
    """Samples (S, L, K) -> quantiles (Q, L, K); an ArgumentError unless all q lie in [0, 1]."""
    try:
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, q, "numbers in [0, 1]") from error
    if levels.ndim != 1 or not len(levels) or not ((levels >= 0) & (levels <= 1)).all():
        raise ArgumentError(name, q, "numbers in [0, 1]")
    return partial(np.quantile, q=levels, axis=0)


def summarised(drawn: Iterable[Tensor], summary: Summary, last: int = 0) -> list[np.ndarray]:
    """A summary of the samples (S, T, K) of each series, or of their last rows, one series after another."""
    return [summary(samples[:, -last:].numpy()) for samples in drawn]
