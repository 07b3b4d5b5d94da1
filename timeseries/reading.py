"""What was read: series as numbers, and the way back to the form in which they came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import ArgumentError
from .series import Series

__all__ = ["Extra", "Reading"]

Extra = Mapping[str, Sequence[np.ndarray]]
Back = Callable[[Sequence[np.ndarray], Extra, Sequence[np.ndarray], float], Any]


@dataclass(frozen=True, eq=False)
class Reading:
    """Series as numbers, and the way back to what they came as.

    Attributes:
        series: one of each table, or of each of the N in an array.
        index: of each series' rows in time, None for arrays.
    """

    series: tuple[Series, ...]
    index: tuple[pd.Index | None, ...]
    _back: Back

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features; the same in every series."""
        return self.series[0].names

    def written(
        self,
        filled: Sequence[np.ndarray],
        extra: Extra | None = None,
        ahead: Sequence[np.ndarray] | None = None,
        step: float = 0.0,
    ) -> Any:
        """What came, its missing cells filled.

        Args:
            filled: (L, K) for each of the series, in the units of the data; only missing cells are looked at. What is
                still NaN there stays missing as it was.
            extra: ending -> (L, K), or (L + H, K) with `ahead`, for each series: columns `name@ending` after all
                others, in tables only. In CSV an observed cell repeats the observed text.
            ahead: (H, K) for each series: rows after the last, whose stamps go on (`stamps.following`) and whose kept
                columns are missing.
            step: of the model in seconds, in which the stamp of a single row goes on; 0 if unknown.

        Returns:
            An object like the one that was read; of a file, its bytes.

        Raises:
            ArgumentError: other shapes, infinite values in missing cells or ahead, or extra columns for an array.
        """
        more = [
            np.asarray(one, dtype=np.float64) for one in ahead or [np.empty((0, len(self.names)))] * len(self.series)
        ]
        _check_shapes(
            "ahead", more, [(len(one), len(self.names)) if one.ndim == 2 else () for one in more], self.series
        )
        _check_shapes("filled", filled, [one.values.shape for one in self.series], self.series)
        for name, values in (extra or {}).items():
            wanted = [(len(one) + len(new), len(self.names)) for one, new in zip(self.series, more, strict=True)]
            _check_shapes(f"extra {name}", values, wanted, self.series)
        new = [np.asarray(one, dtype=np.float64) for one in filled]
        if any(np.isinf(one[np.isnan(own.values)]).any() for one, own in zip(new, self.series, strict=True)):
            raise ArgumentError("filled", "infinite values in missing cells", "finite ones")
        if not all(np.isfinite(one).all() for one in more):
            raise ArgumentError("ahead", "values that are not finite", "finite ones")
        return self._back(new, extra or {}, more, step)


def _check_shapes(
    argument: str, values: Sequence[np.ndarray], wanted: Sequence[tuple[int, ...]], series: Sequence[Series]
) -> None:
    shapes = [tuple(np.shape(one)) for one in values]
    if len(shapes) != len(series) or shapes != list(wanted):
        raise ArgumentError(argument, shapes[:4], f"(rows, K) of each of {len(series)} series, such as {wanted[:4]}")
