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
import torch
from torch import Tensor

from ..core.errors import ArgumentError
from ..core.objectives import simple, velocity
from ..core.options import TrainingOptions
from ..core.training import train
from .csdi import CSDIConfig
from .data import WINDOW, Windows, held_out
from .model import SeriesConfig, SeriesModel, kernel_of, times_of
from .network import SeriesNetConfig
from .objectives import Imputation
from .scaling import Level, window_level
from .series import Series
from .targets import BANK, Blocks, Forecast, Mixture, Patterned, Random, Sparing, Strategy, typical, whole

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
    network: SeriesNetConfig | CSDIConfig | None = None,
    options: TrainingOptions | None = None,
    held_out_share: float = 0.05,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
) -> Fitted:
    """Train a model on series; see the module for what is chosen where None is given.

    Args:
        series: of the same features.
        window: rows.
        level: of the normalisation.
        covariates: features that are never asked for.
        strategy: which seen cells are asked for.
        network: of the model; a CSDI network comes with its schedule and reading.
        options: of the training loop.
        held_out_share: of the observed cells, in [0, 1); 0 for none.
        folder: of the run; it is kept there. A temporary one by default, of which an interruption leaves nothing.
        resume: go on with the run in `folder`, begun by the same call; begin where there is none.
        seed: of weights, held-out cells and, unless `options` says otherwise, training.

    Raises:
        ArgumentError: a feature without an observed cell, or an argument that does not fit.
        DataError: nothing observed.
        TrainingError, Interrupted: see `core.training.train`.
    """
    if not 0 <= held_out_share < 1:
        raise ArgumentError("held_out_share", held_out_share, "a share in [0, 1)")
    series = [one.paced(series[0].step) for one in series]
    features = series[0].names
    if lost := [name for name in covariates if name not in features]:
        raise ArgumentError("covariates", lost[0], f"some of the features {', '.join(features)}")
    window = window_for(series) if window is None else window
    level = level_for(series, window) if level is None else level
    held = [hidden(one, held_out_share, covariates, seed + i) for i, one in enumerate(series)]
    if sum(int((~np.isnan(one.values)).sum()) for one in series) < LEAST_HELD:
        held = [np.zeros_like(mask) for mask in held]
    shown = [replace(one, values=np.where(mask, np.nan, one.values)) for one, mask in zip(series, held, strict=True)]
    if bool(np.isnan(np.concatenate([one.values for one in shown])).all(0).any()):
        shown, held = list(series), [np.zeros_like(mask) for mask in held]  # a feature seen a few times only
    rows = sum(map(len, series))
    stride = window if max(map(len, series)) <= window else max(1, min(window, -(-rows // MOST_WINDOWS)))
    data = Windows(shown, window, stride=stride, level=level, name="X")
    chosen = network_for(shown) if network is None else network
    published = isinstance(chosen, CSDIConfig)
    config = SeriesConfig(
        features=features,
        window=window,
        network=chosen,
        schedule="csdi" if published else SeriesConfig.schedule,
        parametrisation="eps" if published else SeriesConfig.parametrisation,
        conditioning="index-50" if published else SeriesConfig.conditioning,
        level=level,
        step=data.step,
        covariates=covariates,
    )
    options = options_for(window, chosen, seed) if options is None else options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SeriesModel(config, data.centre, data.spread)
    some = data.some(BANK)
    if strategy is None:
        strategy = strategy_for(whole(some["seen"], some.get("present")), window)
    if covariates:
        strategy = Sparing(strategy, tuple(features.index(name) for name in covariates))
    objective = Imputation(
        model.denoiser,
        kernel_of(config, model),
        strategy,
        typical(strategy, some["seen"], some.get("present"), seed=seed),
        weight=simple if published else velocity,
        times=times_of(config),
        level=window_level if level == "window" else None,
    )
    with tempfile.TemporaryDirectory() as temporary:
        place = temporary if folder is None else Path(folder)
        trained = train(objective, data, options, folder=place, resume=resume, lasting=folder is not None)
    model.denoiser.load_state_dict(trained.average(model.denoiser).state_dict())
    model.to(next(model.denoiser.parameters()).device)  # where training took the denoiser alone
    truth = [np.where(mask, one.values, np.nan) for one, mask in zip(series, held, strict=True)]
    return Fitted(config, model.eval(), trained.history, shown, truth)


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


def options_for(window: int, network: SeriesNetConfig | CSDIConfig, seed: int) -> TrainingOptions:
    """Steps of sixteen windows, of eight where that would be few; how many depends on sizes, never on the machine."""
    cells = window * network.features * work(network)
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


def work(network: SeriesNetConfig | CSDIConfig) -> float:
    """What a network costs for each cell: its width times its blocks, half without attention over features."""
    if isinstance(network, CSDIConfig):
        return 2.0 * network.channels * network.layers
    return network.width * network.blocks * network.axes / 2


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
