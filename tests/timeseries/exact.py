"""A network that knows the law of its windows: a multivariate normal, in the units of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polydiff.timeseries.csdi import CSDIConfig
from polydiff.timeseries.model import SeriesConfig, SeriesModel
from polydiff.timeseries.network import SeriesNetConfig
from polydiff.timeseries.pipeline import ImputationPipeline


class Exact(nn.Module):
    """E[x_0 | x_t, given] of N(0, covariance) on windows (L, K), for a variance preserving schedule told by log-SNR.

    Counts its calls: `sides` and `states`, the number of windows and states of each call.
    """

    def __init__(self, covariance: Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.covariance = covariance.double()
        self.sides: list[int] = []
        self.states: list[int] = []
        self.stamps: list[Tensor] = []

    def side(self, observed: Tensor, known: Tensor, stamps: Tensor, present: Tensor | None = None) -> Any:
        self.sides.append(len(observed))
        self.stamps.append(stamps)
        cells = known[0].numel()  # windows may be shorter: the law is that of the first rows
        values, masks = observed.double().flatten(1), known.flatten(1)
        groups = []
        for mask in masks.unique(dim=0):
            rows = (masks == mask).all(1).nonzero().flatten()
            both, covariance = regression(self.covariance[:cells, :cells], mask)
            groups.append((rows, ~mask, values[rows][:, mask] @ both.T, *torch.linalg.eigh(covariance)))
        return len(observed), groups

    def forward(self, x: Tensor, c: Tensor, *, side: Any) -> Tensor:
        self.states.append(len(x))
        windows, groups = side
        alpha2 = torch.sigmoid((500 - c.double()) / 25).view(windows, -1, 1)
        states = x.double().flatten(1).view(windows, -1, x[0].numel())
        out = torch.zeros_like(states)
        for rows, free, mean, values, vectors in groups:
            alpha, sigma2, mean = alpha2[rows].sqrt(), 1 - alpha2[rows], mean.unsqueeze(1)
            gain = alpha * values / (alpha**2 * values + sigma2)
            found = mean + (gain * ((states[rows][..., free] - alpha * mean) @ vectors)) @ vectors.T
            place = rows[:, None, None], torch.arange(states.shape[1])[:, None], free.nonzero().flatten()
            out[place] = found
        return out.view_as(x).to(x)


def regression(covariance: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the known cells in the mean of the others, and the covariance of these, of N(0, covariance)."""
    free = ~known
    weights = torch.linalg.solve(covariance[known][:, known], covariance[known][:, free]).T
    return weights, covariance[free][:, free] - weights @ covariance[known][:, free]


def conditional(covariance: Tensor, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the other cells given the known ones, of N(0, covariance)."""
    weights, spread = regression(covariance, known)
    return weights @ values[known], spread


def autoregressive(length: int, features: int, phi: float = 0.8, across: float = 0.5) -> Tensor:
    """The covariance of windows: phi^|l - l'| in time, `across` between features; unit variances."""
    place = torch.arange(length, dtype=torch.float64)
    time = phi ** (place[:, None] - place).abs()
    feature = torch.full((features, features), across, dtype=torch.float64).fill_diagonal_(1.0)
    return torch.kron(time, feature)


def exact_pipeline(
    length: int, features: int, *, centre: Any = None, scale: Any = None, **config: Any
) -> tuple[ImputationPipeline, Exact]:
    """A pipeline, in float64, whose model knows the law `autoregressive` of its windows."""
    names = config.pop("names", tuple(f"feature {k}" for k in range(features)))
    network = small(features)
    made = SeriesConfig(
        features=names, window=length, network=network, schedule="cosine", parametrisation="x0",
        conditioning="log-snr", **config,
    )  # fmt: skip
    model = SeriesModel(made, centre, scale)
    exact = Exact(autoregressive(length, features))
    model.denoiser.network = exact
    return ImputationPipeline(made, model.double().eval()), exact


def small(features: int) -> SeriesNetConfig:
    """Sizes of the smallest network."""
    return SeriesNetConfig(features=features, width=8, blocks=1, heads=1)


def small_csdi(features: int) -> CSDIConfig:
    """Sizes of the smallest CSDI network."""
    return CSDIConfig(
        features=features, channels=8, layers=1, heads=2, hidden=8, step_embedding=8, time_embedding=8,
        feature_embedding=4,
    )  # fmt: skip
