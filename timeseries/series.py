"""A multivariate time series with gaps, as numbers: what reading makes and windows are cut from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Series"]


@dataclass(frozen=True, eq=False)
class Series:
    """L rows of K features.

    Attributes:
        values: (L, K) float64, in the units of the data, NaN = missing.
        stamps: (L,) float64, ascending; time in steps of the series: 0, 1, 2, … where it is regular.
        names: of the features, K.
        step: seconds between rows at distance 1 of the stamps; 0 where rows are just rows.
        label: what it is called in figures and errors.
    """

    values: np.ndarray
    stamps: np.ndarray
    names: tuple[str, ...]
    step: float = 0.0
    label: str = "series"

    def __len__(self) -> int:
        return len(self.values)

    def cut(self, start: int, stop: int) -> Series:
        """Rows from `start` up to `stop`, with their stamps."""
        return Series(self.values[start:stop], self.stamps[start:stop], self.names, self.step, self.label)
