"""The model that fills a table: one that the options name, or one fitted to the table itself.

While it is fitted with --keep, its run lies in that folder, so that an interrupted fit goes on from there; in the end
the folder holds the model alone.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.errors import ArgumentError, ConfigError, DataError
from ..core.pipeline import Card
from ..core.wording import counted
from .checks import source
from .fitting import network_for, options_for, window_for
from .frames import Reading
from .loading import device, load_model
from .options import Sample
from .pipeline import ImputationPipeline
from .series import Series

__all__ = ["model_for"]


def model_for(reading: Reading, options: Sample) -> ImputationPipeline:
    """The model that the options name, or one that is fitted to the table now, and perhaps kept."""
    if options.model is not None:
        return load_model(options.model)
    fitting, (series,) = options.fitting, reading.series
    if len(series) < 2 or not np.isfinite(series.values).any():
        raise DataError(
            f"{options.input}: {counted(len(series), 'row')}, too little to fit a model to; name one by --model"
        )
    check_columns(series, options)
    window = window_for([series]) if fitting.window is None else fitting.window
    if window > len(series):
        raise ArgumentError("--window", window, f"at most {len(series)}, the rows of {options.input}")
    settings = replace(options_for(window, network_for([series]), options.seed), progress=options.progress)
    if fitting.fit_steps is not None:
        settings = replace(settings, steps=fitting.fit_steps, warmup=min(settings.warmup, fitting.fit_steps))
    run = None if fitting.keep is None else fitting.keep / "run"
    if run is not None:  # killed, it loses a minute
        settings = replace(settings, checkpoint_minutes=1.0)
    print(
        f"fitting a model to the table: {counted(settings.steps, 'training step')}"
        + (", then judging on held-out cells" if fitting.judge else "")
        + "; --fit-steps N for fewer or more"
        + ("; --keep FOLDER keeps the model" if run is None else ""),
        flush=True,
    )
    try:
        pipeline = ImputationPipeline().fit(
            reading, window=window, level=fitting.level, options=settings, folder=run, resume=run is not None,
            held_out_share=0.05 if fitting.judge else 0.0, seed=options.seed,
        )  # fmt: skip
    except ConfigError as error:
        if run is None or not run.exists():
            raise
        raise DataError(f"{run}: holds an interrupted fit, of another table or options ({error})") from error
    pipeline.to(device())
    for name, value in pipeline.validation.items():
        print(f"{name}: {value:.4g}")
    if fitting.keep is not None:
        card = Card(
            title=f"Time series like {source(options).name}",
            summary=f"Fills gaps of {len(series.names)} columns, in windows of {pipeline.config.window} rows.",
            data=f"{source(options).name}, {len(series)} rows",
            seed=options.seed,
            figures=pipeline.validation,
            limits="Knows this one table: its columns, its units, its spacing in time.",
            tags=("diffusion", "time-series"),
        )
        pipeline.save_pretrained(fitting.keep, card=card)
        cleared(fitting.keep / "run")
        print(f"model kept in {fitting.keep}: use it by --model {fitting.keep}", flush=True)
    return pipeline


def check_columns(series: Series, options: Sample) -> None:
    """A DataError for a column without a value; a word about those that only count."""
    for name, values in zip(series.names, series.values.T, strict=True):
        carry = f"--carry {shlex.quote(name)} leaves it as it is"
        if np.isnan(values).all():
            raise DataError(f"{options.input}: column {name!r} is empty; {carry}")
        if counts(values):
            print(f"column {name!r} looks like a counter; {carry}", flush=True)


def counts(values: np.ndarray) -> bool:
    """Whether (L,) are integers at one distance from each other, none of them missing."""
    steps = np.diff(values)
    return len(values) > 2 and bool(steps[0] != 0 and (steps == steps[0]).all() and (values % 1 == 0).all())


def cleared(run: Path) -> None:
    """Take away the run of which the model is kept, and nothing else that may lie there."""
    for part in ("checkpoints", "logs"):
        shutil.rmtree(run / part, ignore_errors=True)
    for part in ("metrics.jsonl", ".lock"):
        (run / part).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run.rmdir()
