"""The smallest real case of time series: sea temperatures with gaps, and a network of few weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..core.case import Case
from ..core.denoisers import GaussianDenoiser
from ..core.errors import ArgumentError
from ..core.randomness import seeded
from ..core.schedules import Cosine
from .kernel import targets
from .network import SeriesNetConfig
from .objectives import pose
from .targets import share

__all__ = ["case"]

MONTHS = ("MAR", "JUL", "NOV")


def case(windows: int = 3, length: int = 5) -> Case:
    """Sea temperatures of the eastern Pacific in three months of the year, year by year; always the same weights.

    Half of the cells are targets; the last window is a year shorter than the others.
    """
    # Loaded here, so that the other commands need no statsmodels.
    from statsmodels.datasets import elnino

    table = elnino.load_pandas().data
    assert table is not None
    years = table[list(MONTHS)].to_numpy(np.float64)
    if not 1 <= windows * length <= len(years):
        raise ArgumentError("windows, length", (windows, length), f"at most {len(years)} years in all")
    years = (years - years.mean(0)) / years.std(0)
    values = torch.from_numpy(years[: windows * length].reshape(windows, length, len(MONTHS))).float()
    present = torch.ones(windows, length, dtype=torch.bool)
    present[-1, -1] = length == 1
    seen = present.unsqueeze(-1).expand_as(values)
    target = share(0.5)(seen, [seeded(0, i) for i in range(windows)])
    stamps = torch.arange(length, dtype=torch.float32).expand(windows, length)
    batch = pose(values, seen & ~target, stamps, counted=target, present=present)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SeriesNetConfig(features=len(MONTHS), width=8, blocks=1, heads=2).build()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    schedule = Cosine()
    denoiser = GaussianDenoiser(network.eval(), schedule)
    condition = {name: batch[name] for name in ("observed", "known", "stamps", "present")}
    return Case("timeseries", targets(schedule).given(**batch["structure"]), denoiser, batch["x_0"], condition)
