"""Multivariate time series with gaps, as numbers, and sets of them: what reading makes and windows are cut from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .scaling import Level

__all__ = ["Series", "Source", "Split", "by_share", "ratio"]

SAME_STEP = 0.1
"""Steps that differ less are the same: months have 28 to 31 days."""

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, eq=False)
class Series:
    """L rows of K features.

    Attributes:
        values: (L, K) float64, in the units of the data, NaN = missing.
        stamps: (L,) float64, ascending; time in steps of the series: 0, 1, 2, … where it is regular.
        names: of the features, K.
        step: seconds between rows at distance 1 of the stamps; 0 where rows are just rows.
        label: what it is called in figures and errors.
        spacing: of the stamps of rows to come.
    """

    values: np.ndarray
    stamps: np.ndarray
    names: tuple[str, ...]
    step: float = 0.0
    label: str = "series"
    spacing: float = 1.0

    def __len__(self) -> int:
        return len(self.values)

    def cut(self, start: int, stop: int) -> Series:
        """Rows from `start` up to `stop`, with their stamps."""
        return replace(self, values=self.values[start:stop], stamps=self.stamps[start:stop])

    def paced(self, step: float) -> Series:
        """With stamps in steps of so many seconds, where both steps are known."""
        if self.step == 0 or step == 0:
            return self
        factor = ratio(self.step, step)
        return replace(self, stamps=self.stamps * factor, step=step, spacing=self.spacing * factor)

    def prolonged(self, rows: np.ndarray) -> Series:
        """With rows (H, K) after the last, `spacing` apart."""
        ahead = self.stamps[-1] + self.spacing * np.arange(1, len(rows) + 1)
        return replace(self, values=np.concatenate([self.values, rows]), stamps=np.concatenate([self.stamps, ahead]))


@dataclass(frozen=True)
class Source:
    """A set of series, split.

    Attributes:
        name: of the set.
        features: names, K.
        parts: the series of each split, in the units of the data; no two parts share a row.
        window: rows of a window by default.
        level: of the normalisation by default, see `scaling`.
        season: rows after which the series about repeats, for seasonal baselines; 0 = none.
        scaling: centre and scale (K,) that come with the set; None: to be fitted on the training part.
        held: `held(split, rate, seed)`, cells held out as published, (N, L, K) bool, if each series is one window.
    """

    name: str
    features: tuple[str, ...]
    parts: Mapping[Split, tuple[Series, ...]]
    window: int
    level: Level = "series"
    season: int = 0
    scaling: tuple[np.ndarray, np.ndarray] | None = None
    held: Callable[[Split, float, int], np.ndarray] | None = None


def ratio(own: float, step: float) -> float:
    """What stamps of a series are multiplied by to be in the steps of a model; 1 where either is unknown."""
    if own == 0 or step == 0 or abs(own / step - 1) < SAME_STEP:
        return 1.0
    return own / step


def by_share(series: Series, *, train: float = 0.6, valid: float = 0.2) -> dict[Split, tuple[Series, ...]]:
    """One series split by time: the first rows to train, the next to validate, the rest to test."""
    first, second = int(len(series) * train), int(len(series) * (train + valid))
    return {
        "train": (series.cut(0, first),),
        "valid": (series.cut(first, second),),
        "test": (series.cut(second, len(series)),),
    }
