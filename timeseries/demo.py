"""The whole way on the carbon dioxide over Mauna Loa: train, fill gaps, forecast, measure; and a page, `index.html`.

`polydiff demo timeseries`, or `demo(report, options)` to add the section to a page of several domains.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from ..core.commands import run
from ..core.machine import machine
from ..core.options import TrainingOptions
from ..core.report import Report
from ..core.runs import command_line
from . import plotting
from .comparison import System, Windowed
from .evaluate import MODEL, evaluate, show, table, windows_of
from .options import Demo, Evaluate, Sizes, Train
from .train import data_of, train

__all__ = ["demo", "main"]

AHEAD, STRIDE = 26, 13
"""Weeks."""


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
        windows=2 if options.quick else 24,
        stride=STRIDE,
        samples=4 if options.quick else 50,
        steps=2 if options.quick else None,
        precision="bf16" if bf16() else "no",
        seed=options.seed,
    )
    data, name = windows_of(pipeline, measure)
    results, systems, found = evaluate(pipeline, data, name, measure)
    report.heading("Time series: carbon dioxide over Mauna Loa")
    report.text(
        f"Weekly averages since 1958. Trained on the first 60 % in {trained_at - started:.0f} s with "
        f"`{command_line(settings, 'train', 'timeseries')}`; all below is of the last 20 %, years that the model has "
        f"not seen. {time.monotonic() - started:.0f} s in all on {machine()}."
    )
    show(report, data, systems, found)
    report.picture(
        paths(data, systems[-1], found[systems[-1].name][MODEL].shown),
        "Single sample paths of the same forecast: each is a future that the model thinks possible.",
    )
    report.table(
        table(results),
        f"{results['about']}. Windows overlap here: standard errors are too small. Coverage stands beside that which "
        "a perfect forecaster would have with as many sample paths.",
    )
    report.picture(curve(trained.history), "Training loss.")


def training(options: Demo) -> Train:
    """The demo's run."""
    return Train(
        data="co2",
        out=options.out / "timeseries",
        sizes=Sizes(width=16, blocks=1) if options.quick else Sizes(width=32, blocks=2),
        targets=("random", "forecast"),
        training=TrainingOptions(
            steps=4 if options.quick else 400,
            batch_size=4 if options.quick else 16,
            learning_rate=3e-3,
            warmup=20,
            decay_to=0.02,
            ema=0.98,
            precision="bf16" if bf16() else "no",
            checkpoint_every=0,
            log_every=2 if options.quick else 10,
            progress=False,
            seed=options.seed,
        ),
    )


def bf16() -> bool:
    """Whether this machine multiplies in bfloat16; elsewhere it would be slower, not faster."""
    return torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def paths(data: Windowed, system: System, drawn: np.ndarray) -> Figure:
    """Some sample paths of the first window."""
    target = system.target[0].numpy()
    return plotting.series(
        data.stamps[0].numpy(),
        np.where(target, np.nan, data.values[0]),
        held_out=np.where(target, data.values[0], np.nan),
        paths=np.where(target, drawn[:12, 0], np.nan),
        names=data.features,
    )


def curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Loss against step."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([entry["step"] for entry in history], [entry["loss"] for entry in history])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    run(Demo, main, command="demo", domain="timeseries")
