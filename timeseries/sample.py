"""Fill the gaps of a table and forecast: `polydiff sample timeseries`, `python -m polydiff.timeseries.sample`.

What is written has the rows and columns that came, in their order and with their types; observed cells are those of the
input to the letter. Gaps and future are drawn together, path by path: a forecast goes on from what its own path says of
the gaps before. Files appear whole or not at all, and only when everything has been drawn.

Tables of more cells than memory holds samples of are drawn in stretches, each with a window of context on both sides;
what a cell is filled with is the median, mean or quantile of its own samples, which no border between stretches cuts.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.commands import run
from ..core.errors import ArgumentError, DataError
from ..core.files import write_atomically
from ..core.runs import make_folder
from ..core.wording import counted
from . import plotting
from .checks import READ, flags, place_of, source
from .drawing import Drawing
from .evaluate import how, used
from .filling import Window, fill
from .frames import Reading, read_file
from .options import Sample
from .pipeline import ImputationPipeline
from .series import Series
from .stamps import following, span
from .stitching import Paths, ahead, interleaved
from .stitching import run as run_passes
from .summaries import quantiles_of, summary_of
from .table_model import model_for
from .tables import Taken, taken

__all__ = ["Stretch", "main", "stretches", "summaries"]

HELD = 1 << 26
"""Numbers of samples in memory at once: half a gigabyte."""
PIECE = 64
"""Windows between two movements of the progress bar."""


class Stretch(NamedTuple):
    """Rows that are drawn together.

    Attributes:
        begin, end: with the context around.
        first, last: those that are kept.
    """

    begin: int
    first: int
    last: int
    end: int


def main(options: Sample) -> None:
    """Read, fit if no model is named, draw, and write."""
    reading = reading_of(options)
    (series,), (index,) = reading.series, reading.index
    missing = int(np.isnan(series.values).sum())
    print(
        f"{options.input}: {counted(len(series), 'row')} of {counted(len(series.names), 'column')}, "
        + (f"{told}, " if (told := span(index, series.step)) else "")
        + f"{counted(missing, 'cell')} to fill"
        + (f", {counted(options.horizon, 'row')} to add" if options.horizon else ""),
        flush=True,
    )
    if not missing and not options.horizon and options.model is None and options.fitting.keep is None:
        expected = "an empty cell to fill, --horizon rows to add, or --keep, for which a model is fitted"
        raise DataError(f"{options.input}: nothing to do: {expected}")
    for path in (place_of(options), options.plot):
        if path is not None:  # before anything that takes long
            make_folder(path.absolute().parent)
    pipeline = model_for(reading, options)
    table = table_for(pipeline, reading, options)
    check_future(pipeline, options)
    print(f"{options.samples} sample paths by {used(pipeline, options)}", flush=True)
    levels = sorted({0.05, 0.25, 0.5, 0.75, 0.95, *options.quantiles}) if options.plot else sorted(options.quantiles)
    found = table.theirs(summaries(pipeline, table.series[0], options, levels))  # the table's columns from here on
    length, point, bands = len(series), found[0], dict(zip(levels, found[1:], strict=True))
    extra = {f"{level:g}": [bands[level]] for level in options.quantiles}
    content = reading.written([point[:length]], extra, [point[length:]], pipeline.config.step)
    stamps = pd.RangeIndex(length) if index is None else index
    if options.horizon:
        stamps = stamps.append(following(stamps, options.horizon, pipeline.config.step))
    write(place_of(options), content)
    if options.plot is not None:
        picture(options.plot, reading.series[0], stamps, bands)
    told = f"{counted(missing, 'cell')} filled" + (
        f" and {counted(options.horizon, 'row')} added" if options.horizon else ""
    )
    print(f"{told}: {place_of(options)}" + (f"; picture: {options.plot}" if options.plot else ""))


def reading_of(options: Sample) -> Reading:
    """The table.

    Raises:
        DataError: naming the file, and the column and row at fault.
    """
    with flags(READ):
        return read_file(source(options), keep=options.carry, time=options.time_column, day_first=options.day_first)


def table_for(pipeline: ImputationPipeline, reading: Reading, options: Sample) -> Taken:
    """The table's columns in the order of the model.

    Raises:
        ArgumentError, DataError: the table lacks some of them, or has others.
    """
    config = pipeline.config
    try:
        return taken(reading, config.features, config.step, str(options.input))
    except ArgumentError as error:
        odd = [name for name in reading.names if name not in config.features]
        if not set(config.features) < set(reading.names):
            raise
        raise DataError(f"{error}; --carry {shlex.join(odd)} leaves what else there is as it is") from error


def check_future(pipeline: ImputationPipeline, options: Sample) -> None:
    """An ArgumentError where the future of covariates is not told."""
    if options.horizon and (names := pipeline.config.covariates):
        raise ArgumentError(
            "--horizon",
            options.horizon,
            f"0, and rows in the input where {', '.join(names)} are filled in: the model is to be told their future",
        )


def stretches(length: int, most: int, window: int) -> list[Stretch]:
    """Stretches of at most `most` rows with their context, as even as can be; one where it fits.

    Each is at least as long as its context, however little memory allows.
    """
    if length <= most:
        return [Stretch(0, 0, length, length)]
    count = -(-length // max(window, most - 2 * window))
    ends = [length * i // count for i in range(count + 1)]
    return [
        Stretch(max(0, first - window), first, last, min(length, last + window))
        for first, last in zip(ends[:-1], ends[1:], strict=True)
    ]


def summaries(pipeline: ImputationPipeline, series: Series, options: Sample, levels: Sequence[float]) -> np.ndarray:
    """What cells are filled with, and their quantiles, (1 + Q, L + horizon, K) float64.

    Args:
        pipeline: the model.
        series: of its features, in its steps.
        options: how many samples, drawn how, and the horizon.
        levels: Q of them.
    """
    window, count, horizon = pipeline.config.window, options.samples, options.horizon
    length, features = series.values.shape
    longer = series.prolonged(np.full((horizon, features), np.nan))
    values, stamps = longer.values, longer.stamps
    plan = pipeline.plan(Drawing(**how(options)))
    out = np.empty((1 + len(levels), length + horizon, features))
    point = summary_of("mean" if options.mean else "median")
    parts = stretches(length, max(1, HELD // (count * features) - horizon), window)
    jobs = []
    for number, part in enumerate(parts):
        after = horizon if part is parts[-1] else 0
        rows = slice(part.begin, part.end + after)
        inside = part.end - part.begin
        passes = interleaved(inside, window) + (ahead(inside, after, window) if after else [])
        jobs.append(
            (part, after, Paths(torch.from_numpy(values[rows]), torch.from_numpy(stamps[rows]), number, passes))
        )
    total = sum(len(one) for _, _, paths in jobs for one in paths.passes)
    with tqdm(total=total, unit="window", disable=not options.progress, dynamic_ncols=True) as bar:
        filler = stepping(partial(fill, plan), bar, count)
        for part, after, paths in jobs:
            (samples,) = run_passes(filler, [paths], range(count))
            kept = samples[:, part.first - part.begin : part.last - part.begin + after].numpy()
            rows = slice(part.first, part.last + after)
            out[0, rows] = point(kept)
            if levels:
                out[1:, rows] = quantiles_of("--quantiles", levels)(kept)
            paths.drawn = paths.values  # the samples of a stretch need not outlive it
    return out


def stepping(
    filler: Callable[[Sequence[Window]], list[Tensor]], bar: tqdm[NoReturn], count: int
) -> Callable[[Sequence[Window]], list[Tensor]]:
    """A filler that moves a bar on, by windows of all samples."""

    def pieces(windows: Sequence[Window]) -> Iterator[Tensor]:
        first = 0
        while first < len(windows):
            last, samples = first, 0
            while last < len(windows) and samples < PIECE * count:
                samples += len(windows[last].samples)
                last += 1
            yield from filler(windows[first:last])
            bar.update(samples / count)
            first = last

    return lambda windows: list(pieces(windows))


def write(path: Path, content: bytes) -> None:
    """The file, whole or not at all."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error


def picture(path: Path, series: Series, stamps: pd.Index, bands: dict[float, np.ndarray]) -> None:
    """Observed points and bands of every column."""
    levels = [level for level in bands if any(abs(level + other - 1) < 1e-9 for other in bands)]
    more = np.full((len(stamps) - len(series), len(series.names)), np.nan)
    if isinstance(stamps, pd.PeriodIndex):
        stamps = stamps.to_timestamp()
    dates = isinstance(stamps, pd.DatetimeIndex)
    times = stamps.tz_localize(None).to_numpy() if dates else np.asarray(stamps)
    figure = plotting.series(
        times if dates or times.dtype.kind in "fiu" else np.arange(len(times)),
        np.concatenate([series.values, more]),
        np.stack([bands[level] for level in levels]),
        levels,
        names=series.names,
    )
    if path.suffix.lower() == ".png":
        write(path, plotting.png(figure))
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:])
    write(path, buffer.getvalue())


if __name__ == "__main__":
    run(Sample, main, command="sample", domain="timeseries")
