r"""Dequantisation: probabilities of integers from densities of numbers.

Data take the values v_k = 2k/(L - 1) - 1, k = 0 ... L - 1, at distance w = 2/(L - 1). Spread over its bin,
x = v_k + w (u - 1/2) with u in the unit cube, a law with density p(x) gives each cell the probability

    P(v) = int_cell p(x) dx,      log P(v) >= E_q [log p(x) - log q(x | v)],      log q(x | v) = log q(u | v) - D log w

for any q on the cell. Uniform q is Theis et al. 2016 ("A note on the evaluation of generative models"); a learned q is
tighter (Ho et al. 2019, "Flow++", eq. 10-12), and the mean of K weights p/q tighter still (`importance_weighted`).
The factor w^D, the Jacobian of the scaling, is inside q: nats that come out are those of the integers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .estimates import importance_weighted
from .randomness import Randomness, rand, randn_like

__all__ = ["Dequantiser", "LogitNormal", "Uniform", "dequantised"]


START = 1.75
"""The deviation of the logit whose law is closest to the uniform one."""


class Dequantiser(nn.Module, ABC):
    """q(x | v): a law on the cell of every value v of a state (B, ...).

    Args:
        levels: L >= 2 values per element, from -1 to 1.
    """

    def __init__(self, levels: int = 256):
        super().__init__()
        if levels < 2:
            raise ArgumentError("levels", levels, "an integer >= 2")
        self.levels = levels

    @abstractmethod
    def place(self, v: Tensor, generator: Randomness = None, **condition: Any) -> tuple[Tensor, Tensor]:
        """(u - 1/2, log q(u | v)): where in the unit cube, like v, and the log density there, (B,)."""

    def forward(self, v: Tensor, generator: Randomness = None, **condition: Any) -> tuple[Tensor, Tensor]:
        """(x, log q(x | v)): a draw in the state's scale, differentiable, and its log density in nats, (B,)."""
        width = 2 / (self.levels - 1)
        offset, log_density = self.place(v, generator, **condition)
        return v + width * offset, log_density - v[0].numel() * math.log(width)


class Uniform(Dequantiser):
    """u uniform: nothing to learn."""

    def place(self, v: Tensor, generator: Randomness = None, **condition: Any) -> tuple[Tensor, Tensor]:
        u = rand(v.shape, generator, dtype=v.dtype, device=v.device)
        return u - 0.5, v.new_zeros(len(v))


class LogitNormal(Dequantiser):
    """u = sigmoid(mean + START e^stretch z), z standard normal; mean and stretch by a network that sees v.

    A network of zeros gives the uniform law up to 0.01 nats. The tails of the weights p/q are heavy where the stretch
    is far below 0, so many samples help a narrow law less than the best law.

    Args:
        network: `network(v, **condition)` -> twice v's channels along dimension 1: means, then stretches.
        levels: L.
    """

    def __init__(self, network: nn.Module, levels: int = 256):
        super().__init__(levels)
        self.network = network

    def place(self, v: Tensor, generator: Randomness = None, **condition: Any) -> tuple[Tensor, Tensor]:
        output = self.network(v, **condition).to(v.dtype)
        if output.shape != (v.shape[0], 2 * v.shape[1], *v.shape[2:]):
            raise ArgumentError("network", output, f"twice the {v.shape[1]} channels of v, {tuple(v.shape)}")
        mean, stretch = output.chunk(2, dim=1)
        log_deviation = stretch + math.log(START)
        z = randn_like(v, generator)
        logit = mean + log_deviation.exp() * z
        normal = -(z**2 + math.log(2 * math.pi)) / 2 - log_deviation
        # log |du/dlogit| = log u + log(1 - u), finite where u itself rounds to 0 or 1.
        slope = nn.functional.logsigmoid(logit) + nn.functional.logsigmoid(-logit)
        return torch.sigmoid(logit) - 0.5, (normal - slope).flatten(1).sum(1)


def dequantised(
    log_prob: Callable[[Tensor], Tensor],
    dequantiser: Dequantiser,
    v: Tensor,
    *,
    samples: int = 1,
    generator: Randomness = None,
    **condition: Any,
) -> Tensor:
    """A lower bound of log P(v) in nats, (B,): the log of the mean weight of `samples` draws.

    Its negative is also the loss that trains a `LogitNormal`, alone or with the model.

    Args:
        log_prob: x -> log density in nats, (B,), exact or a lower bound.
        dequantiser: q.
        v: values -1 ... 1 of B examples.
        samples: K; with 1 the plain variational bound.
        generator: draws u.
        condition: what the dequantiser's network takes besides.

    Raises:
        ArgumentError: samples < 1, or v off the grid of values.
    """
    if samples < 1:
        raise ArgumentError("samples", samples, "an integer >= 1")
    k = (v + 1) * ((dequantiser.levels - 1) / 2)
    if not bool(((k - k.round()).abs() < 1e-3).all() & (k > -0.5).all() & (k < dequantiser.levels - 0.5).all()):
        raise ArgumentError("v", v, f"the {dequantiser.levels} values 2k/{dequantiser.levels - 1} - 1")
    weights: list[Tensor] = []
    for _ in range(samples):
        x, log_q = dequantiser(v, generator, **condition)
        weights.append(log_prob(x) - log_q)
    return importance_weighted(torch.stack(weights))
