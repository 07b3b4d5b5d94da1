"""The smallest real case of text: a few windows of Python's documentation and a transformer of a few weights."""

from __future__ import annotations

import torch

from ..core.case import Case
from ..core.categorical import absorbing
from ..core.denoisers import TokenDenoiser
from ..core.schedules import RectifiedFlow
from .data import load
from .network import TransformerConfig

__all__ = ["case"]


def case(count: int = 3, length: int = 12) -> Case:
    """The first `count` windows that do not overlap, absorbing kernel; always the same weights."""
    data = load("python-docs", "valid", length=length)
    V = data.vocabulary.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TransformerConfig(vocabulary=V, width=8, depth=1, heads=2, length=length).build()
        for parameter in network.parameters():  # last layers start at zero, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.1)
    schedule = RectifiedFlow()
    denoiser = TokenDenoiser(network.eval(), schedule)
    return Case("text", absorbing(schedule, V + 1, V), denoiser, data.batch(range(count))["x_0"])
