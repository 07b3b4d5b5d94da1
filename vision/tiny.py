"""The smallest real case of images: a few digits and a U-Net of a few thousand weights."""

from __future__ import annotations

import torch

from ..core.case import Case
from ..core.denoisers import GaussianDenoiser, v
from ..core.schedules import Cosine
from .architectures import UNetConfig
from .data import load
from .kernel import Pixels

__all__ = ["case"]


def case(count: int = 3) -> Case:
    """The first `count` digits, class-conditional; always the same weights."""
    data = load("digits", "train")
    batch = data.batch(range(count))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = UNetConfig(in_channels=1, out_channels=1, num_classes=10, width=8, multipliers=(1, 1), blocks=1)
        network = config.build()
        for parameter in network.parameters():  # last layers start at zero, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.1)
    schedule = Cosine()
    denoiser = GaussianDenoiser(network.eval(), schedule, v)
    return Case("vision", Pixels(schedule, data.levels), denoiser, batch["x_0"], {"label": batch["label"]})
