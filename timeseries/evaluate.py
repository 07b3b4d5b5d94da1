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
from . import pictures
from .comparison import Draw, Filled, System, Windowed, compare, hidden, spaced
from .data import load
from .drawing import How
from .loading import load_model, trained_with
from .options import Evaluate, HiddenName, Sample
from .pipeline import ImputationPipeline
from .sources import NAMES
from .targets import Blocks, Forecast, WholeSeries, share

__all__ = ["evaluate", "how", "main", "methods_of", "systems_of", "table", "used", "windows_of"]

MODEL = "polydiff"  # the model's column, whatever folder it lies in
SHOWN = 3


def main(options: Evaluate) -> None:
    """Draw, measure, print and write."""
    pipeline = load_model(options.model)
    data, name = windows_of(pipeline, options)
    print(f"{options.model} on {name}, the {options.split} part: {len(data.values)} windows", flush=True)
    make_folder(options.out)
    save(options.out / CONFIG_NAME, "evaluate", "timeseries", options)
    results, found = evaluate(pipeline, data, name, options)
    write_atomically(options.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    page(data, results, found, options).write(options.out / "index.html")
    print(f"drawn by: {used(pipeline, options)}")
    for line in lines(table(results)):
        print(line)
    print(results["about"])
    print(f"written to {options.out / 'results.json'}; pictures: {options.out / 'index.html'}")
