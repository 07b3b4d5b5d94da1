"""A model beside simple ways to fill gaps, on cells whose truth is known: what is hidden, and what each says of it.

Figures are in units of the training cells' deviation, feature by feature, so that features of different units can be
averaged: an MAE of 1 is an error as large as the feature varies. Of a single feature, multiply by `scale` for its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import ArgumentError
from ..core.randomness import mix, seeded
from .metrics import Scores, missing_rate
from .targets import Strategy

__all__ = ["Filled", "System", "Windowed", "compare", "hidden"]

ELEMENTS = 1 << 25
"""Numbers of samples in memory at once."""
HIDDEN = 0x68696465  # sets this use of a seed apart from others

Draw = Callable[[np.ndarray, Tensor, int], np.ndarray]
"""(windows (N, L, K) with NaN where nothing is given, stamps (N, L), seed) -> samples (S, N, L, K)."""


@dataclass(frozen=True)
class Windowed:
    """Held-out windows.

    Attributes:
        values: (N, L, K) float64, in the data's units, NaN where missing.
        stamps: (N, L), time in steps.
        centre, scale: (K,) float64, of the training cells.
        features: names.
        season: rows after which the series about repeats; 0 = none.
        held: rate -> the cells that the data set itself holds out, (N, L, K) bool, where it has them.
        step: seconds of a step; 0 where rows carry no time.
    """

    values: np.ndarray
    stamps: Tensor
    centre: np.ndarray
    scale: np.ndarray
    features: tuple[str, ...]
    season: int = 0
    held: Callable[[float], Tensor] | None = None
    step: float = 0.0

    @property
    def seen(self) -> Tensor:
        """(N, L, K) bool."""
        return torch.from_numpy(~np.isnan(self.values))


@dataclass(frozen=True)
class System:
    """One way of hiding known cells.

    Attributes:
        name: for tables.
        target: (N, L, K) bool, the hidden cells, all of them known.
    """

    name: str
    target: Tensor


@dataclass(frozen=True)
class Filled:
    """One method's answer to one system.

    Attributes:
        figures: see `metrics.Scores`.
        seconds: per window and sample path.
        shown: samples (S, n, L, K) of the first windows, in the data's units, for pictures.
    """

    figures: dict[str, Any]
    seconds: float
    shown: np.ndarray


def hidden(strategy: Strategy, seen: Tensor, seed: int) -> Tensor:
    """The cells that a strategy hides, each window by a generator of its own.

    Raises:
        ArgumentError: it hides none at all.
    """
    target = strategy(seen, [seeded(seed, HIDDEN, i) for i in range(len(seen))])
    if not bool(target.any()):
        raise ArgumentError("--targets", strategy, "one that hides a known cell of these windows")
    return target


def compare(
    data: Windowed,
    systems: Sequence[System],
    methods: Mapping[str, Draw],
    seed: int,
    *,
    shown: int = 0,
    progress: bool = False,
) -> dict[str, dict[str, Filled]]:
    """System -> method -> figures.

    Args:
        data: the windows.
        systems: what is hidden.
        methods: name -> a model or a simple way, of one or more sample paths.
        seed: of the draws.
        shown: windows whose samples are kept for pictures.
        progress: whether to show a bar.
    """
    total = len(systems) * len(methods) * len(data.values)
    with tqdm(total=total, unit="window", disable=not progress, dynamic_ncols=True) as bar:
        return {
            system.name: {name: measure(data, system.target, draw, seed, shown, bar) for name, draw in methods.items()}
            for system in systems
        }


def measure(data: Windowed, target: Tensor, draw: Draw, seed: int, shown: int, bar: tqdm[NoReturn]) -> Filled:
    """One method's figures on one system, windows in groups that memory holds."""
    known = data.seen & ~target
    rates = missing_rate(known)
    given = np.where(known.numpy(), data.values, np.nan)
    truth = torch.from_numpy((data.values - data.centre) / data.scale)
    scores, kept, began, count = Scores(data.features), [], 0.0, 1
    first, group = 0, 1
    while first < len(given):
        part = slice(first, first + group)
        started = time.perf_counter()
        samples = draw(given[part], data.stamps[part], mix(seed, first) >> 1)
        began += time.perf_counter() - started
        count = len(samples)
        units = torch.from_numpy((samples - data.centre) / data.scale)
        scores.add(units, truth[part].nan_to_num(), target[part], known=known[part], missing=rates[part])
        if first < shown:
            kept.append(samples[:, : shown - first])
        first += len(samples[0])
        bar.update(len(samples[0]))
        group = max(1, ELEMENTS // max(1, samples[:, 0].size))
    whole = np.concatenate(kept, 1) if kept else np.empty((count, 0, *given.shape[1:]))
    return Filled(scores.figures(), began / (len(given) * count), whole)
