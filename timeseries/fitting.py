"""A model of the user's own series: sizes and length of training chosen by the data alone.

    window   the whole length of many short series; else `data.WINDOW` rows, less where a long series has few
    level    "window" where the rows of a window vary much less among themselves than the series does: it drifts
    network  wider where there are more cells to learn from
    steps    fewer where each costs more: on two cores of today, minutes at the most
    targets  random cells, rectangles and futures in turn, and the gaps of the data themselves where there are some

A share of the observed cells is held out of all training, and judged by afterwards: mean absolute error of the median,
and how many of them a 90 % interval covers. Few paths and cells are enough to say whether a model is of use; `evaluate`
measures it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..core.errors import ArgumentError
from ..core.options import TrainingOptions
from ..core.training import train
from .data import WINDOW, Windows, held_out
from .model import NetworkConfig, SeriesConfig, SeriesModel, imputation_of
from .network import SeriesNetConfig
from .scaling import Level
from .series import Series
from .targets import BANK, Blocks, Forecast, Mixture, Patterned, Random, Strategy, whole

__all__ = ["JUDGES", "Fitted", "fitted", "judged", "level_for", "options_for", "strategy_for", "window_for"]

MANY = 8
"""So many series are a set of short ones."""
LONGEST = 96
"""Rows of short series that are one window."""
DRIFT = 0.25
"""Share of the variance within windows below which a series drifts."""
MOST_WINDOWS = 4000
"""Overlapping windows to train on."""
LEAST_HELD = 200
"""Observed cells below which none is held out."""
JUDGED = 1024
"""Cells of the rows that are imputed to judge the model."""
JUDGES = 19
"""Sample paths to judge by: the truth lies between the lowest and the highest of so many in 18 cases of 20."""
SECONDS = 60.0
"""Of training."""
SPEED, OVERHEAD = 8e6, 0.015
"""Cells times width times blocks that two cores train on in a second, and seconds that every step takes besides."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What fitting gives.

    Attributes:
        config, model: of the pipeline; the model has averaged weights.
        history: of the training loop.
        shown: the series as training saw them, held-out cells missing.
        held: of each series, (L, K), the truth at held-out cells, NaN elsewhere.
    """

    config: SeriesConfig
    model: SeriesModel
    history: list[dict[str, float]]
    shown: list[Series]
    held: list[np.ndarray]


def fitted(
    series: Sequence[Series],
    *,
    window: int | None = None,
    level: Level | None = None,
    covariates: tuple[str, ...] = (),
    strategy: Strategy | None = None,
    network: NetworkConfig | None = None,
    options: TrainingOptions | None = None,
    held_out_share: float = 0.05,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
) -> Fitted:
    """Train a model on series of the same features; see the module for what is chosen where None is given.

    Args:
        window, level: rows, and what is taken off them, see `scaling`.
        covariates: features that are never asked for; `strategy` says which cells of the others are.
        network, options: of the model, which has the network's own recipe; of the training loop.
        held_out_share: of the observed cells, in [0, 1); 0 for none.
        folder, resume: of the run, and whether to go on with one that the same call began there. Without a folder
            nothing is left of an interruption.
        seed: of weights, held-out cells and, unless `options` says otherwise, training.

    Raises:
        ArgumentError: a feature without an observed cell, or an argument that does not fit.
        DataError, TrainingError, Interrupted: nothing observed; see `core.training.train`.
    """
    series = [one.paced(series[0].step) for one in series]
    shown, held = parted(series, held_out_share, covariates, seed)
    window = window_for(series) if window is None else window
    level = level_for(series, window) if level is None else level
    data = Windows(shown, window, stride=stride_for(series, window), level=level, name="X")
    network = network_for(shown) if network is None else network
    config = SeriesConfig.of(
        network, features=data.features, window=window, level=level, step=data.step, covariates=covariates
    )
    options = options_for(window, network, seed) if options is None else options
    model = SeriesModel.drawn(config, data.centre, data.spread, seed=seed)
    some = data.some(BANK)
    strategy = strategy_for(whole(some["seen"], some.get("present")), window) if strategy is None else strategy
    objective = imputation_of(config, model, config.sparing(strategy), some, seed=seed)
    with tempfile.TemporaryDirectory() as temporary:
        place = temporary if folder is None else Path(folder)
        trained = train(objective, data, options, folder=place, resume=resume, lasting=folder is not None)
    return Fitted(config, model.taught(trained), trained.history, shown, held)


def parted(
    series: Sequence[Series], share: float, covariates: Sequence[str], seed: int
) -> tuple[list[Series], list[np.ndarray]]:
    """The series without held-out cells, and the truth at these, as in `Fitted`.

    None are held out of few cells, or where a feature would be left without any.
    """
    if not 0 <= share < 1:
        raise ArgumentError("held_out_share", share, "a share in [0, 1)")
    features = series[0].names
    if lost := [name for name in covariates if name not in features]:
        raise ArgumentError("covariates", lost[0], f"some of the features {', '.join(features)}")
    seen = [~np.isnan(one.values) for one in series]
    held = [hidden(one, share, covariates, seed + i) for i, one in enumerate(series)]
    left = np.concatenate([mask & ~kept for mask, kept in zip(seen, held, strict=True)])
    if sum(int(mask.sum()) for mask in seen) < LEAST_HELD or not left.any(0).all():
        held = [np.zeros_like(mask) for mask in held]
    shown = [replace(one, values=np.where(mask, np.nan, one.values)) for one, mask in zip(series, held, strict=True)]
    return shown, [np.where(mask, one.values, np.nan) for one, mask in zip(series, held, strict=True)]


def stride_for(series: Sequence[Series], window: int) -> int:
    """Rows from one window to the next: none overlap where each series is one, else as many do as are of use."""
    longest, rows = max(map(len, series)), sum(map(len, series))
    return window if longest <= window else max(1, min(window, -(-rows // MOST_WINDOWS)))


def window_for(series: Sequence[Series]) -> int:
    """Rows of a window: all of many short series, else `WINDOW` or what leaves four windows of the longest series."""
    longest = max(map(len, series))
    if len(series) >= MANY and longest <= LONGEST:
        return longest
    return max(1, min(WINDOW, longest, max(8, longest // 4)))


def level_for(series: Sequence[Series], window: int) -> Level:
    """ "window" if for the typical feature the variance within windows is less than `DRIFT` of the variance of all.

    Series that are one window each keep their mean: it says something, and is a poor guess from few cells.
    """
    if max(map(len, series)) < 2 * window:
        return "series"
    values = np.concatenate([one.values for one in series])
    count = np.maximum((~np.isnan(values)).sum(0), 1)
    largest = np.maximum(np.nanmax(np.abs(values), axis=0, initial=0.0), np.finfo(np.float64).tiny)
    whole = variation(values / largest) / count
    inside = sum(
        variation(one.values[start : start + window] / largest)
        for one in series
        for start in range(0, len(one), window)
    ) / count  # fmt: skip
    varying = whole > 1e-20
    shares = inside[varying] / whole[varying]
    return "window" if len(shares) and np.median(shares) < DRIFT else "series"


def variation(values: np.ndarray) -> np.ndarray:
    """Sum of squared distances from the mean of each column, (K,); 0 where nothing is observed."""
    seen = ~np.isnan(values)
    mean = np.where(seen, values, 0).sum(0) / np.maximum(seen.sum(0), 1)
    return np.where(seen, (values - mean) ** 2, 0).sum(0)


def network_for(series: Sequence[Series]) -> SeriesNetConfig:
    """Wider and deeper where there are more than 50,000 cells to learn from."""
    cells = sum(int((~np.isnan(one.values)).sum()) for one in series)
    width, blocks = (64, 3) if cells > 50_000 else (32, 2)
    return SeriesNetConfig(features=len(series[0].names), width=width, blocks=blocks)


def options_for(window: int, network: NetworkConfig, seed: int) -> TrainingOptions:
    """Steps of sixteen windows, of eight where that would be few; how many depends on sizes, never on the machine."""
    cells = window * network.features * network.work
    steps, batch = 0, 16
    for batch in (16, 8):
        steps = int(SECONDS / (OVERHEAD + batch * cells / SPEED))
        if steps >= 400:
            break
    steps = max(200, min(3000, steps))
    return TrainingOptions(
        steps=steps,
        batch_size=batch,
        learning_rate=2e-3,
        warmup=min(100, steps // 10),
        decay_to=0.02,
        ema=0.99,
        checkpoint_every=0,
        seed=seed,
        progress=False,
    )


def strategy_for(there: Tensor, window: int) -> Strategy:
    """Random cells, rectangles and futures, and the gaps of the data themselves; `there` as of `targets.whole`."""
    futures = Forecast(max(1, window // 2), 1)
    strategies: tuple[Strategy, ...] = (Random(), Blocks(), futures)
    return Mixture(strategies if bool(there.all()) else (*strategies, Patterned(there)))


def hidden(series: Series, share: float, covariates: Sequence[str], seed: int) -> np.ndarray:
    """Cells that are held out, bool (L, K); none of covariates."""
    seen = ~np.isnan(series.values)
    seen[:, [series.names.index(name) for name in covariates]] = False
    return held_out(seen, share, seed)


def judged(
    draw: Callable[[Sequence[Series]], Iterable[Tensor]], shown: Sequence[Series], held: Sequence[np.ndarray]
) -> dict[str, float]:
    """Figures on held-out cells: their number; mean absolute error of the median, in standard deviations of each
    feature; share of them within the central 90 % of samples.

    Args:
        draw: series -> samples (S, L, K) of each.
        shown: the series without the held-out cells, in which their truth is kept apart, see `Fitted`.
        held: (L, K) of each, the truth at held-out cells, NaN elsewhere.
    """
    chosen: list[int] = []
    budget = JUDGED
    for i, one in enumerate(shown):
        if budget > 0 and not np.isnan(held[i]).all():
            chosen.append(i)
            budget -= one.values.size
    if not chosen:
        return {}
    error, inside, count = 0.0, 0, 0
    scale = np.nanstd(np.concatenate([one.values for one in shown]), axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = max(WINDOW, JUDGED // shown[0].values.shape[1])
    cut = [(shown[i].cut(max(0, len(shown[i]) - rows), len(shown[i])), held[i][-rows:]) for i in chosen]
    for (_, truth), samples in zip(cut, draw([one for one, _ in cut]), strict=True):
        place = ~np.isnan(truth)
        # By ranks, so that an interval of few samples is not too narrow.
        low, middle, high = np.quantile(samples.numpy()[:, place], (0.05, 0.5, 0.95), axis=0, method="weibull")
        error += float((np.abs(middle - truth[place]) / np.broadcast_to(scale, truth.shape)[place]).sum())
        inside += int(((low <= truth[place]) & (truth[place] <= high)).sum())
        count += int(place.sum())
    if not count:
        return {}
    return {"held-out cells": count, "MAE in standard deviations": error / count, "coverage of 90 %": inside / count}
