r"""Denoisers and losses on product kernels: one network sees all parts, each is read and weighed in its own way.

The parts of a product share the time and nothing else in the forward process. In the reverse one the network couples
them: from the state's tuple it gives a tuple of outputs, the i-th of which is the belief about part i given all parts,
read by that part's own parametrisation (v of the positions, logits of the atom types, ...). With the exact E[x_0 | x_t]
and p(x_0 | x_t) of every part the bound is that of the best factorised reverse process,

    p(x_s | x_t) = prod_i p(x_s^i | x_t).

A loss adds errors of different kinds, squared lengths and nats. Only as a bound are they commensurate (`Kernel.error`
under the weight `likelihood`, or `ScoreEntropy`, which adds the parts' `gap_rate`); losses that train better weigh each
part by its own schedule and dimensions,

    L = sum_i share_i w_i(t) error_i / dims_i,

with, for Gaussians, the weights of `objectives`, and for tokens `plain` (cross-entropy) or `unmasking` (their bound).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import Denoiser, GaussianDenoiser, TokenDenoiser
from .errors import ArgumentError
from .kernel import Time
from .objectives import Denoising, Look, Times, Weight
from .product import Product
from .schedules import Schedule, is_fixed

__all__ = ["PartwiseDenoising", "ProductDenoiser"]


class ProductDenoiser(Denoiser[tuple[Any, ...], tuple[Any, ...]]):
    """A network on a product kernel's states.

    Args:
        network: `network(xs, c, **condition)` -> a tuple of outputs; xs the tuple of what the readings would give a
            network of their own (c_in x_t of a Gaussian part, x_t of tokens), c (B,) the first reading's.
        readings: a denoiser per part, for its schedule and parametrisation; its own network is not used, so that it may
            be `nn.Identity()`.

    The parts are to keep the schedules that the network was trained with: it is told one time, and parts whose clocks
    were changed apart would show it states that it never met.
    """

    def __init__(self, network: nn.Module, readings: Sequence[GaussianDenoiser | TokenDenoiser]):
        super().__init__()
        if not readings:
            raise ArgumentError("readings", readings, "a denoiser for every part")
        if any(not is_fixed(reading.schedule) for reading in readings):
            raise ArgumentError("readings", "a schedule that is learned", "fixed schedules")
        self.network = network
        self.readings = nn.ModuleList(readings)
        middle = torch.tensor(0.5, dtype=torch.float64)
        self._widths = [len(reading.coefficients(middle, reading.schedule)) for reading in readings]

    @property
    def schedule(self) -> Schedule:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first part's, as of product kernels."""
        return self._each()[0].schedule

    def _each(self) -> list[Any]:
        return list(self.readings)

    def coefficients(self, t: Tensor, schedule: Schedule) -> tuple[Tensor, ...]:
        """What the readings need, one after another."""
        if schedule is not self.schedule:
            raise ArgumentError("kernel", "another schedule", "the schedules that the network was trained with")
        return tuple(number for reading in self._each() for number in reading.coefficients(t, reading.schedule))

    def read(
        self, x_t: tuple[Any, ...], t: Time, numbers: tuple[Any, ...], kernel: Product, condition: dict[str, Any]
    ) -> tuple[Any, ...]:
        readings, parts = self._each(), list(kernel.parts)
        if not len(x_t) == len(parts) == len(readings):
            raise ArgumentError("x_t", f"{len(x_t)} parts", f"{len(readings)}, one for each reading")
        if any(part.schedule is not reading.schedule for part, reading in zip(parts, readings, strict=True)):
            raise ArgumentError("kernel", "another schedule", "the schedules that the network was trained with")
        ends = list(accumulate(self._widths, initial=0))
        each = [numbers[first:last] for first, last in pairwise(ends)]
        asked = [reading.asked(x, own, part) for reading, x, own, part in zip(readings, x_t, each, parts, strict=True)]
        outputs = self.network(tuple(x for x, _ in asked), asked[0][1], **condition)
        if not isinstance(outputs, tuple) or len(outputs) != len(readings):
            raise ArgumentError("network", outputs, f"a tuple of {len(readings)} outputs, one for each part")
        return tuple(
            reading.heard(output, x, t, own, part)
            for reading, output, x, own, part in zip(readings, outputs, x_t, each, parts, strict=True)
        )


class PartwiseDenoising(Denoising):
    """Train a denoiser on a product kernel, each part's error under its own weight.

    Args:
        denoiser: such as `ProductDenoiser`.
        kernel: a product.
        weights: w_i, of the i-th part's schedule.
        shares: what each part counts beside the others; 1 by default.
        times: the law of t; the first part's schedule bounds it.
        drop: as in `Denoising`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kernel: Product,
        weights: Sequence[Weight],
        shares: Sequence[float] | None = None,
        times: Times | None = None,
        drop: Mapping[str, tuple[float, Any]] | None = None,
    ):
        if not isinstance(kernel, Product):
            raise ArgumentError("kernel", kernel, "a product kernel")
        shares = [1.0] * len(kernel.parts) if shares is None else list(shares)
        for name, values in (("weights", weights), ("shares", shares)):
            if len(values) != len(kernel.parts):
                raise ArgumentError(name, values, f"{len(kernel.parts)}, one for each part")
        if not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) == 0:
            raise ArgumentError("shares", shares, "finite numbers >= 0, not all 0")
        super().__init__(denoiser, kernel, weights[0], times, drop)
        self.weights, self.shares = list(weights), shares

    def loss(self, look: Look) -> Tensor:
        """The weighted errors per dimension of their parts, summed over the parts, (B,)."""
        kernel, x_0, _, t, belief = look
        total: Tensor | None = None
        for part, y, b, weight, share in zip(kernel.parts, x_0, belief, self.weights, self.shares, strict=True):
            error = part.error(y, b, t)
            scale = share * weight(part.schedule, t)
            term = scale.to(error) * error / part.dims(y).to(error).clamp_min(1)
            total = term if total is None else total + term
        assert total is not None
        return total
