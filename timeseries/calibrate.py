"""Fit solvers to a trained model: `polydiff calibrate timeseries`, `python -m polydiff.timeseries.calibrate`.

A solver is a small table of times and weights, `solver-<n>.json` beside the weights; see `core.calibration`. It is
fitted to the model's own flow of the missing cells, given the others, on training windows of which any share of the
cells is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from tqdm.auto import tqdm

from ..core.calibration import Calibrated, Trajectories, calibrate, trajectories
from ..core.commands import run
from ..core.errors import ArgumentError, DataError
from ..core.randomness import seeded
from ..core.runs import model_folder
from .data import NAMES, Windows, load, spaced
from .loading import load_model, trained_with
from .objectives import pose
from .options import Calibrate
from .pipeline import ImputationPipeline
from .scaling import LEVEL_OF
from .targets import Random

__all__ = ["flows", "main", "solvers"]

DRAWN = 0x63616C69  # sets this use of the seed apart from the samples that are drawn with it


def main(options: Calibrate) -> None:
    """Fit, print, and write the solvers into the model's folder."""
    folder = model_folder(options.model, "timeseries")
    if not (folder / "config.json").is_file():
        shipped = ", ".join(ImputationPipeline.shipped()) or "none"
        raise DataError(
            f"{folder}: no folder with a model to write solvers into; of a shipped model ({shipped}) make a copy "
            "first, from Python: ImputationPipeline.from_pretrained(name).save_pretrained(folder)"
        )
    pipeline = load_model(str(folder))
    trained = trained_with(
        str(options.model), options.data, tuple(NAMES), carry=options.carry, day_first=options.day_first
    )
    config = pipeline.config
    data = load(
        trained.data,
        "train",
        window=config.window,
        level=config.level,
        data_root=options.data_root,
        day_first=trained.day_first,
        carry=trained.carry,
    )
    if tuple(data.features) != config.features:
        raise ArgumentError("--data", trained.data, f"the features that the model knows: {', '.join(config.features)}")
    for solver in solvers(pipeline, data, options):
        calls = len(solver.times) - 1
        path = folder / f"solver-{calls}.json"
        try:
            solver.save(path)
        except OSError as error:
            raise DataError(f"{folder}: the solver cannot be written ({error})") from error
        print(
            f"{calls} calls: root mean square error {solver.rmse:.4g} deviations against the exact flow; "
            f"{solver.rmse_start:.4g} by the best classical solver ({solver.start}); written: {path}",
            flush=True,
        )
    print(f"draw with one: polydiff sample timeseries gaps.csv --model {options.model} --steps {options.calls[0]}")


def solvers(pipeline: ImputationPipeline, data: Windows, options: Calibrate) -> Iterator[Calibrated]:
    """The solvers, one for each of `options.calls`, as they are found."""
    more = max(options.count // 2, 1)
    places = spaced(len(data), options.count + more)
    order = torch.randperm(len(places), generator=seeded(options.seed, DRAWN)).tolist()

    def part(first: int, count: int) -> list[int]:
        return [places[order[i % len(order)]] for i in range(first, first + count)]

    with tqdm(total=options.count + more, unit="window", disable=not options.progress, dynamic_ncols=True) as bar:
        training = flows(pipeline, data, options, part(0, options.count), 0, bar)
        validation = flows(pipeline, data, options, part(options.count, more), options.count, bar)
    for calls in options.calls:
        yield calibrate(training, validation, calls, iterations=options.iterations)


def flows(
    pipeline: ImputationPipeline,
    data: Windows,
    options: Calibrate,
    windows: list[int],
    first: int,
    bar: tqdm[NoReturn] | None = None,
) -> list[Trajectories]:
    """The fine solutions from a draw of noise for each window, in batches.

    Args:
        pipeline: the model.
        data: windows of its training set.
        options: of the command.
        windows: their numbers.
        first: number of the first of them among all that are drawn.
        bar: of progress, by windows.
    """
    model, kernel, device = pipeline.model, pipeline.kernel, pipeline.model.centre.device
    strategy, level_of = pipeline.config.sparing(Random()), LEVEL_OF[pipeline.config.level]
    found = []
    for start in range(0, len(windows), options.batch_size):
        some = windows[start : start + options.batch_size]
        batch = data.batch(some)
        generators = [seeded(options.seed, DRAWN, first + start + i) for i in range(len(some))]
        seen, values, present = batch["seen"], batch["values"], batch.get("present")
        known = seen & ~strategy(seen, generators, present)
        posed = pose(values - level_of(values, known), known, batch["stamps"], present=present)
        structure = {name: cells.to(device) for name, cells in posed.pop("structure").items()}
        like = posed.pop("x_0").to(device)
        bound = kernel.given(**structure)
        with torch.no_grad():
            network: Any = model.denoiser.network
            side = network.side(**{name: each.to(device) for name, each in posed.items()})
        x = bound.prior(like).sample(generators)
        found.append(trajectories(model.denoiser.given(bound, side=side), bound, x, steps=options.fine))
        if bar is not None:
            bar.update(len(some))
    return found


if __name__ == "__main__":
    run(Calibrate, main, command="calibrate", domain="timeseries")
