"""The whole way on the carbon dioxide over Mauna Loa: train, fill gaps, forecast, measure; and a page, `index.html`.

`polydiff demo timeseries`, or `demo(report, options)` to add the section to a page of several domains.
"""

from __future__ import annotations

import shutil
import time

import numpy as np
import torch
from matplotlib.figure import Figure

from ..core.commands import run
from ..core.machine import machine
from ..core.options import TrainingOptions
from ..core.report import Report
from ..core.runs import command_line
from . import plotting
from .comparison import System
from .data import load
from .evaluate import evaluate, show, table, windowed
from .options import Demo, Evaluate, Sizes, Train
from .pipeline import ImputationPipeline
from .sources import NAMES
from .train import data_of, train

__all__ = ["demo", "main"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
AHEAD = 26


def main(options: Demo) -> None:
    """Write the page."""
    report = Report("polydiff: time series")
    report.text(
        "Gaps of a series filled, and its future drawn, by a diffusion model that gives sample paths and with them the "
        "uncertainty. Trained, drawn and measured in one go by `polydiff demo timeseries`."
    )
    demo(report, options)
    report.link("../demo/index.html", "The same of images, once `polydiff demo vision` has been run.")
    report.write(options.out / "index.html")
    print(f"written: {options.out / 'index.html'}")


def demo(report: Report, options: Demo) -> None:
    """Add the section on time series to a report; the run behind it is in `options.out / "timeseries"`, made anew."""
    started = time.monotonic()
    settings = training(options)
    if settings.out.is_dir():  # a demo's own folder, whose run is made again
        shutil.rmtree(settings.out)
    pipeline, trained = train(data_of(settings, "train"), settings)
    trained_at = time.monotonic()
    measure = Evaluate(
        model=str(settings.out),
        data=settings.data,
        targets=("random", "forecast"),
        rates=(0.1, 0.5),
        horizon=AHEAD,
        windows=2 if options.quick else 64,
        samples=4 if options.quick else 50,
        steps=2 if options.quick else None,
        seed=options.seed,
    )
    held_out = load(settings.data, "test", window=pipeline.config.window, stride=13, level=pipeline.config.level)
    data = windowed(held_out, measure.windows, held_out.season, options.seed)
    results, systems, found = evaluate(pipeline, data, held_out.name, measure)
    report.heading("Time series: carbon dioxide over Mauna Loa")
    report.text(
        f"Weekly averages since 1958. Trained on the first 60 % in {trained_at - started:.0f} s with "
        f"`{command_line(settings, 'train', 'timeseries')}`; everything below is of the last 20 %, years that the model "
        f"has not seen. {time.monotonic() - started:.0f} s in all on {machine()}."
    )
    report.picture(future(pipeline, held_out_series(), measure), f"{AHEAD} weeks ahead of what was observed, "
                   "by the sample paths; circles are what came.")  # fmt: skip
    show(report, data, systems, found)
    report.table(
        table(results),
        f"{results['about']}. Windows overlap here, so that standard errors are too small.",
    )
    report.picture(curve(trained.history), "Training loss.")
