"""Measure a model of time series: `polydiff evaluate timeseries`, `python -m polydiff.timeseries.evaluate`.

Prints a table and writes `results.json` with everything behind it and `index.html`, a page with pictures that opens
without a server. The model stands beside simple ways to fill the same cells, its intervals beside the coverage that a
perfect forecaster would have with as many samples.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.commands import CONFIG_NAME, run
from ..core.config import save, to_dict
from ..core.errors import ArgumentError
from ..core.files import write_atomically
from ..core.machine import machine
from ..core.methods import GRIDS, SAMPLERS
from ..core.report import Report
from ..core.runs import command_line, make_folder
from ..core.wording import counted, lines
from . import baselines, plotting
from .comparison import Draw, Filled, System, Windowed, compare, hidden
from .data import NAMES, Windows, load, spaced
from .drawing import DEFAULT_SAMPLER, DEFAULT_STEPS, Drawing, How
from .loading import load_model, trained_with
from .options import Evaluate, HiddenName, Sample
from .pipeline import ImputationPipeline
from .series import Series
from .targets import Blocks, Forecast, WholeSeries, share

__all__ = ["evaluate", "how", "main", "methods_of", "systems_of", "table", "used", "windows_of"]

MODEL = "polydiff"  # the model's column, whatever folder it lies in
SHOWN = 3


def main(options: Evaluate) -> None:
    """Draw, measure, print and write."""
    pipeline = load_model(options.model)
    data, name = windows_of(pipeline, options)
    print(f"{options.model} on {name}: {counted(len(data.values), 'window')}", flush=True)
    make_folder(options.out)
    save(options.out / CONFIG_NAME, "evaluate", "timeseries", options)
    results, systems, found = evaluate(pipeline, data, name, options)
    write_atomically(options.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    page(data, results, systems, found).write(options.out / "index.html")
    print(f"drawn by: {used(pipeline, options)}")
    print(*lines(table(results)), results["about"], sep="\n")
    print(f"written to {options.out / 'results.json'}; pictures: {options.out / 'index.html'}")


def windows_of(pipeline: ImputationPipeline, options: Evaluate) -> tuple[Windowed, str]:
    """Held-out windows of the data set that the options name, or that the run was trained on; and its name.

    Raises:
        ArgumentError: nothing tells the data set, or it has other features than the model.
    """
    trained = trained_with(options.model, options.data, tuple(NAMES), carry=options.carry, day_first=options.day_first)
    config = pipeline.config
    data = load(
        trained.data, options.split, window=config.window, stride=options.stride, level=config.level,
        data_root=options.data_root, carry=trained.carry, day_first=trained.day_first,
    )  # fmt: skip
    if tuple(data.features) != config.features:
        raise ArgumentError("--data", trained.data, f"the {len(config.features)} features that the model knows: "
                            f"{', '.join(config.features[:8])}")  # fmt: skip
    period = data.season if options.period is None else options.period
    return windowed(data, options.windows, period, options.seed), data.name


def windowed(data: Windows, count: int, season: int, seed: int) -> Windowed:
    """Windows at even distances, of those without padding; of the longest where all are padded."""
    whole = data.batch(range(len(data)))
    present = whole.get("present", torch.ones(whole["seen"].shape[:2], dtype=torch.bool)).sum(1)
    rows = int(present.max())
    full = (present == rows).nonzero().squeeze(1)
    chosen = full[spaced(len(full), count)]
    seen = whole["seen"][chosen, :rows].numpy()
    values = whole["values"][chosen, :rows].numpy().astype(np.float64) * data.scale + data.centre
    return Windowed(
        np.where(seen, values, np.nan),
        whole["stamps"][chosen, :rows],
        data.centre,
        data.scale,
        tuple(data.features),
        season,
        lambda rate: data.held(rate, seed)[chosen, :rows],
        data.step,
    )


def evaluate(
    pipeline: ImputationPipeline, data: Windowed, name: str, options: Evaluate
) -> tuple[dict[str, Any], list[System], dict[str, dict[str, Filled]]]:
    """All figures, JSON-able; what was hidden; and the figures with samples for pictures.

    Args:
        pipeline: the model.
        data: held-out windows.
        name: of the data.
        options: what is hidden, and how it is drawn.

    Raises:
        ArgumentError: nothing can be hidden so.
    """
    systems = systems_of(data, options, pipeline.config.covariates)
    methods = methods_of(pipeline, data, options)
    found = compare(data, systems, methods, options.seed, shown=SHOWN, progress=options.progress)
    results: dict[str, Any] = {
        "model": options.model,
        "data": name,
        "windows": len(data.values),
        "window": data.values.shape[1],
        "features": len(data.features),
        "samples": options.samples,
        "about": (
            f"{counted(len(data.values), 'window')} of {counted(data.values.shape[1], 'step')} and "
            f"{counted(len(data.features), 'feature')} of {name}; "
            f"{options.samples} sample paths; errors, widths and energy scores in units of each feature's deviation in "
            "training; CRPS is CSDI's, relative to the mean size of the truth; ± is the standard error over windows"
        ),
        "scale": dict(zip(data.features, data.scale.tolist(), strict=True)),
        "systems": {
            system: {method: {**one.figures, "seconds per sample path": one.seconds} for method, one in methods.items()}
            for system, methods in found.items()
        },
    }
    command = command_line(options, "evaluate", "timeseries")
    results |= {"options": to_dict(options), "seed": options.seed, "command": command}
    return results | {"machine": machine(), "date": datetime.date.today().isoformat()}, systems, found


def systems_of(data: Windowed, options: Evaluate, covariates: Sequence[str] = ()) -> list[System]:
    """What is hidden, one after the other; covariates never are."""
    seen = data.seen
    seen[:, :, [data.features.index(name) for name in covariates]] = False
    rows = data.values.shape[1]
    horizon = max(1, rows // 4) if options.horizon is None else options.horizon
    if "forecast" in options.targets and horizon >= rows:
        raise ArgumentError("--horizon", horizon, f"fewer rows than the {rows} of a window")

    def at_random() -> list[System]:
        found = []
        for rate in options.rates:
            target = hidden(share(rate), seen, options.seed) if data.held is None else data.held(rate) & seen
            if not bool(target.any()):
                raise ArgumentError("--rates", rate, "a share that hides a known cell of these windows")
            found.append(System(f"{100 * rate:g} % of cells", target))
        return found

    ways: Mapping[HiddenName, Callable[[], list[System]]] = {
        "random": at_random,
        "blocks": lambda: [System("blocks", hidden(Blocks(), seen, options.seed))],
        "series": lambda: [System("whole features", hidden(WholeSeries(), seen, options.seed))],
        "forecast": lambda: [System(f"forecast of {horizon} steps", hidden(Forecast(horizon), seen, options.seed))],
    }
    return [system for name in options.targets for system in ways[name]()]


def methods_of(pipeline: ImputationPipeline, data: Windowed, options: Evaluate) -> dict[str, Draw]:
    """The model and the simple ways, by the names of their columns."""

    def model(values: np.ndarray, stamps: Tensor, seed: int) -> np.ndarray:
        times, config = stamps.double().numpy(), pipeline.config
        series = [
            Series(*each, config.features, data.step).paced(config.step) for each in zip(values, times, strict=True)
        ]
        drawing = Drawing(**(how(options) | {"seed": seed}))
        return np.stack([one.numpy() for one in pipeline.drawn(series, options.samples, drawing)], 1)

    def simple(way: baselines.Baseline) -> Draw:
        return lambda values, stamps, seed: way(values, stamps.numpy(), fallback=data.centre)[None]

    found: dict[str, Draw] = {MODEL: model}
    found |= {way.__name__: simple(way) for way in (baselines.mean, baselines.median, baselines.linear, baselines.last)}
    if data.season:
        found["seasonal"] = simple(partial(baselines.seasonal, period=data.season))
    return found


def how(options: Evaluate | Sample) -> How:
    """The keywords of drawing."""
    found: How = {"seed": options.seed}
    if options.steps is not None:
        found["steps"] = options.steps
    if options.sampler is not None:
        found["sampler"] = SAMPLERS[options.sampler]
    if options.grid is not None:
        found["grid"] = GRIDS[options.grid]
    if options.precision == "bf16":
        found["precision"] = torch.bfloat16
    return found


def used(pipeline: ImputationPipeline, options: Evaluate | Sample) -> str:
    """Which algorithm the options come to, in words."""
    steps = DEFAULT_STEPS if options.steps is None else options.steps
    if options.sampler is not None:
        return f"{options.sampler}, {steps} steps"
    if steps in pipeline.solvers:
        return f"the model's solver calibrated for {steps} calls"
    name = next((name for name, sampler in SAMPLERS.items() if sampler is DEFAULT_SAMPLER), "the default sampler")
    return f"{name}, {steps} steps"


def table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of figures, a column for each method, for people."""
    rows: list[dict[str, str]] = []
    for system, methods in results["systems"].items():

        def add(figure: str, of: Callable[[Mapping[str, Any]], str], system: str = system, methods: Any = methods):
            rows.append({"figure": f"{system}: {figure}", **{name: of(found) for name, found in methods.items()}})

        def plain(name: str) -> Callable[[Mapping[str, Any]], str]:
            return lambda found: shown(found.get(name), found["standard errors"].get(name))

        for name in ("CRPS", "CRPS exact", "CRPS-sum", "MAE", "RMSE", "energy score"):
            if results["features"] > 1 or name != "CRPS-sum":  # of a single feature, the CRPS again
                add(name, plain(name))
        for i, level in enumerate((0.5, 0.8, 0.9, 0.95)):
            if level not in (0.5, 0.9):
                continue
            expected = next(iter(methods.values()))["intervals"][i]["expected"]
            add(f"coverage of {100 * level:g} % intervals, % (right: {100 * expected:.1f})", spread(i, "coverage", 100))
            add(f"width of {100 * level:g} % intervals", spread(i, "width", 1))
        add("ms per window and sample path", lambda found: shown(1e3 * found["seconds per sample path"]))
    return rows


def spread(i: int, name: str, unit: float) -> Callable[[Mapping[str, Any]], str]:
    """A figure of the i-th interval; a dash for ways of one path, which have none."""

    def of(found: Mapping[str, Any]) -> str:
        value = found["intervals"][i][name]
        return "–" if found["samples"] < 2 or value is None else shown(unit * value)

    return of


def shown(value: float | None, error: float | None = None) -> str:
    """A number for people, perhaps with its standard error; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.3g}" + ("" if error is None else f" ± {error:.2g}")


def page(
    data: Windowed,
    results: Mapping[str, Any],
    systems: Sequence[System],
    found: Mapping[str, Mapping[str, Filled]],
) -> Report:
    """The page of an evaluation."""
    report = Report("polydiff: time series, measured")
    report.text(f"`{results['command']}`, {results['date']}, {results['machine']}.")
    show(report, data, systems, found)
    report.table(table(results), results["about"])
    return report


def show(report: Report, data: Windowed, systems: Sequence[System], found: Mapping[str, Mapping[str, Filled]]) -> None:
    """Pictures of windows and of calibration."""
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    for system in systems:
        drawn = found[system.name][MODEL].shown
        for n in range(drawn.shape[1]):
            target = system.target[n].numpy()
            if not target.any():
                continue
            figure = plotting.series(
                data.stamps[n].numpy(),
                np.where(target, np.nan, data.values[n]),
                np.quantile(drawn[:, n], levels, axis=0),
                levels,
                held_out=np.where(target, data.values[n], np.nan),
                names=data.features,
                title=f"{system.name} hidden" if "forecast" not in system.name else system.name,
                most=8,
            )
            report.picture(figure, f"Window {n + 1}: bands hold the middle 50 and 90 % of the sample paths.")
            break
    sure = {name: methods[MODEL].figures for name, methods in found.items()}
    report.picture(plotting.calibration(sure), "Whether the uncertainty is right; dashed: a perfect forecaster's.")


if __name__ == "__main__":
    run(Evaluate, main, command="evaluate", domain="timeseries")
