"""Normalisation by what was observed in training.

A feature is brought to mean 0 and standard deviation 1 by its observed training cells alone, z = (x - centre) / scale.
At level "window" each window is besides brought to mean 0 by its *given* cells (a feature without any keeps the series'
mean), and the scale is that of the differences left: series with a trend or a slow wave, whose future lies outside of
what training saw, become stationary (Kim et al. 2022, "Reversible instance normalization", with the mean only: the
spread of a window's few given cells says too little). The order is: centre and scale for the whole set, then the level
of a window in these units, `window_level`, once it is known which cells are given.

A constant feature has scale 1 and is 0 once normalised. What a network makes of it is near 0, not 0: for a model to
give back the constant itself, its scale is 0 there (`data.Windows.spread`). At level "window" a feature that only
differs from window to window has the scale of level "series".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ArgumentError

__all__ = [
    "LEVEL_OF", "Level", "LevelOf", "constants", "fit_scale", "normalise", "restore", "series_level", "window_level"
]  # fmt: skip

Level = Literal["series", "window"]
LevelOf: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(values, given), both (B, L, K) -> what is subtracted from the values, (B, 1, K), of the given cells alone."""

_ROUNDING = 1e-12
"""Relative to its largest value, a feature that varies less than this is constant."""


def fit_scale(
    windows: Iterable[np.ndarray], level: Level = "series", names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The normalisation of a training set.

    Args:
        windows: arrays (L, K) or (N, L, K), floats, NaN = missing; all have K features. With level "series" it does not
            matter how the cells are spread over arrays.
        level: see the module.
        names: of the features, for messages.

    Returns:
        centre and scale, float64 (K,): the mean of the observed cells; their population standard deviation, or that of
        the differences from the windows' own means.

    Raises:
        ArgumentError: no arrays, other shapes, infinities, or a feature without an observed cell (it is named).
    """
    if level not in LEVEL_OF:
        raise ArgumentError("level", level, " or ".join(LEVEL_OF))
    parts = [np.asarray(part, dtype=np.float64) for part in windows]
    if not parts or any(part.ndim not in (2, 3) or part.shape[-1] != parts[0].shape[-1] for part in parts):
        raise ArgumentError("windows", [part.shape for part in parts[:4]], "arrays (L, K) or (N, L, K), equal K")
    whole = [piece for part in parts for piece in (part if part.ndim == 3 else part[None])]
    cells = np.concatenate(whole)
    seen = ~np.isnan(cells)
    label = [repr(name) for name in names] if names is not None else [str(k) for k in range(cells.shape[1])]
    if (infinite := np.isinf(cells).any(0)).any():
        raise ArgumentError("windows", f"infinity in feature {label[int(infinite.argmax())]}", "finite values or NaN")
    count = seen.sum(0)
    if (count == 0).any():
        missing = label[int((count == 0).argmax())]
        raise ArgumentError("windows", f"feature {missing} without an observed cell", "at least one in training")
    largest = np.maximum(np.where(seen, np.abs(cells), 0).max(0), np.finfo(np.float64).tiny)
    cells = np.where(seen, cells, 0) / largest  # so that squares neither overflow nor vanish
    centre = cells.sum(0) / count
    if level == "window":
        lengths = np.cumsum([len(piece) for piece in whole])[:-1]
        means = [
            np.broadcast_to(part.sum(0) / np.maximum(known.sum(0), 1), part.shape)
            for part, known in zip(np.split(cells, lengths), np.split(seen, lengths), strict=True)
        ]
        scale = deviation(cells - np.concatenate(means), seen)
        scale = np.where(scale <= _ROUNDING, deviation(cells - centre, seen), scale)
    else:
        scale = deviation(cells - centre, seen)
    # The mean of equal numbers may be off by rounding: such a feature is its own first value.
    flat = scale <= _ROUNDING
    first = np.take_along_axis(cells, seen.argmax(0)[None], 0)[0]
    one_value = (np.where(seen, cells, first) == first).all(0)
    return np.where(one_value, first, centre) * largest, np.where(flat, 1.0, scale * largest)


def deviation(left: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The root mean square of the seen cells of each column, (K,)."""
    return np.sqrt((np.where(seen, left, 0) ** 2).sum(0) / seen.sum(0))


def constants(windows: Iterable[np.ndarray]) -> np.ndarray:
    """Which features have one value alone in all observed cells, bool (K,); arguments as in `fit_scale`."""
    cells = np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1, np.shape(part)[-1]) for part in windows])
    seen = ~np.isnan(cells)
    first = np.take_along_axis(cells, seen.argmax(0)[None], 0)
    return seen.any(0) & ((cells == first) | ~seen).all(0)


def normalise(values: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """(values - centre) / scale, float64, of values (..., K) by centre and scale (K,)."""
    return (values.double() - centre) / scale


def restore(values: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `normalise`, float64."""
    return values.double() * scale + centre


def series_level(values: Tensor, given: Tensor) -> Tensor:
    """Nothing, zeros (B, 1, K), of normalised values (B, L, K): they have the series' level already."""
    return torch.zeros_like(values[:, :1])


def window_level(values: Tensor, given: Tensor) -> Tensor:
    """The mean of the given cells of each window and feature, (B, 1, K); 0, the series' mean, where none is given.

    Args:
        values: (B, L, K), normalised; what is not given is not looked at.
        given: (B, L, K) bool.
    """
    count = given.sum(1, keepdim=True)
    return torch.where(given, values, 0).sum(1, keepdim=True) / count.clamp(min=1)


LEVEL_OF: Mapping[Level, LevelOf] = {"series": series_level, "window": window_level}
