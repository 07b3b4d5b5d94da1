r"""Objectives: what a denoiser is trained on.

Every loss is w(t) * error(x_0, belief) / dims, the error of the belief about x_0 under a weight. For Gaussians the
weights that make it the familiar losses are functions of SNR_t = e^lambda_t:

    simple    SNR                        |eps - eps_hat|^2                              Ho et al. 2020, eq. 14
    plain     1                          |x_0 - x_0_hat|^2
    velocity  (alpha^2+sigma^2)^2/sigma^2  |v - v_hat|^2                                Salimans & Ho 2022
    flow_velocity  (1 + alpha/sigma)^2     |(x_1 - x_0) - F|^2                          Lipman et al. 2023
    min_snr   min(SNR, gamma)                                                           Hang et al. 2023
    p2        SNR / (k + SNR)^gamma                                                     Choi et al. 2022
    edm       SNR + 1/sigma_data^2                                                      Karras et al. 2022, table 1
    likelihood  -SNR lambda'(t) / 2      the continuous ELBO, in nats                   Kingma et al. 2021, eq. 17

The published ones are the same numbers; only the space in which the error is written differs. Schedule, denoiser and
loss form one module, whose forward is what DDP wraps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .denoisers import Denoiser
from .errors import ArgumentError
from .kernel import Kernel, Path
from .randomness import Randomness, rand, randn, stratified
from .schedules import Schedule
from .structure import Opened, opened

__all__ = [
    "Denoising",
    "Look",
    "edm",
    "flow_velocity",
    "likelihood",
    "log_normal",
    "low_discrepancy",
    "min_snr",
    "p2",
    "plain",
    "simple",
    "uniform",
    "velocity",
    "whole_steps",
]

Weight: TypeAlias = Callable[[Schedule, Tensor], Tensor]
"""(schedule, t) -> w(t), shape of t."""

Times: TypeAlias = Callable[[Schedule, int, Randomness], Tensor]
"""(schedule, B, generator) -> t, (B,) float64 on the CPU."""


def simple(schedule: Schedule, t: Tensor) -> Tensor:
    """Unweighted error of the noise."""
    return schedule.log_snr(t).exp()


def plain(schedule: Schedule, t: Tensor) -> Tensor:
    """Unweighted error of the data; for tokens, unweighted cross-entropy."""
    return torch.ones_like(t)


def velocity(schedule: Schedule, t: Tensor) -> Tensor:
    """Unweighted error of v = alpha x_1 - sigma x_0."""
    alpha_t, sigma_t = schedule(t)
    return (alpha_t**2 + sigma_t**2) ** 2 / sigma_t**2


def flow_velocity(schedule: Schedule, t: Tensor) -> Tensor:
    """Unweighted error of x_1 - x_0: flow matching, on straight paths and others."""
    alpha_t, sigma_t = schedule(t)
    return ((alpha_t + sigma_t) / sigma_t) ** 2


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma)."""
    return lambda schedule, t: schedule.log_snr(t).exp().clamp(max=gamma)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """SNR / (k + SNR)^gamma."""
    return lambda schedule, t: simple(schedule, t) / (k + simple(schedule, t)) ** gamma


def edm(sigma_data: float = 0.5) -> Weight:
    """SNR + 1/sigma_data^2."""
    return lambda schedule, t: simple(schedule, t) + 1 / sigma_data**2


def likelihood(schedule: Schedule, t: Tensor) -> Tensor:
    """-SNR lambda'(t)/2: with t uniform in [a, b], times dims (b - a), the diffusion loss of that stretch in nats."""
    return -simple(schedule, t) * schedule.log_snr_rate(t) / 2


def uniform(low: float = 1e-4, high: float = 1.0) -> Times:
    """t uniform in [max(low, t_min), high], independent per example."""

    def draw(schedule: Schedule, count: int, generator: Randomness = None) -> Tensor:
        bottom = max(low, schedule.t_min)
        return bottom + (high - bottom) * rand((count,), generator, dtype=torch.float64)

    return draw


def whole_steps(T: int) -> Times:
    """t uniform on i/T, i = 1 ... T, independent per example: what a network that is told the index of one of T steps
    (`denoisers.index`) is trained on."""

    def draw(schedule: Schedule, count: int, generator: Randomness = None) -> Tensor:
        return ((rand((count,), generator, dtype=torch.float64) * T).floor() + 1).clamp(max=T) / T

    return draw


def low_discrepancy(low: float = 1e-4, high: float = 1.0) -> Times:
    """t_i = (u + i/B) mod 1, one u per batch (Kingma et al. 2021, I.1): less variance, examples not independent.

    In training B is the global batch, however it is split; see `randomness.stratified`.
    """

    def draw(schedule: Schedule, count: int, generator: Randomness = None) -> Tensor:
        bottom = max(low, schedule.t_min)
        return bottom + (high - bottom) * stratified(count, generator)

    return draw


def log_normal(mean: float = -1.2, deviation: float = 1.2) -> Times:
    """log(sigma/alpha) normal (Karras et al. 2022, table 1), for any schedule by the inverse of its log-SNR."""

    def draw(schedule: Schedule, count: int, generator: Randomness = None) -> Tensor:
        log_sigma = mean + deviation * randn((count, 1), generator, dtype=torch.float64).squeeze(1)
        return schedule.inverse(-2 * log_sigma).clamp(max(schedule.t_min, 1e-6), 1)

    return draw


class Look(NamedTuple):
    """One look at a noisy batch.

    Attributes:
        kernel: bound to the batch.
        x_0, x_t: the data and their noisy state.
        t: (B,) float64.
        belief: the denoiser's, about x_0.
    """

    kernel: Any
    x_0: Any
    x_t: Any
    t: Tensor
    belief: Any


class Denoising(nn.Module):
    """Train a denoiser on a kernel or a path.

    Args:
        denoiser: the module that learns.
        kernel: whose marginals are denoised. A Path without densities serves too.
        weight: of the error of x_0, see above.
        times: the law of t.
        drop: for classifier-free guidance, {condition: (probability, null value)}: that share of examples is trained
            with the null value in the condition's place.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kernel: Kernel | Path,
        weight: Weight = simple,
        times: Times | None = None,
        drop: Mapping[str, tuple[float, Any]] | None = None,
    ):
        super().__init__()
        self.denoiser, self.kernel, self.weight = denoiser, kernel, weight
        self.times = times if times is not None else uniform()
        self.drop = dict(drop or {})
        for name, (probability, _) in self.drop.items():
            if not 0 <= probability <= 1:
                raise ArgumentError(f"drop[{name!r}]", probability, "a probability")

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,).

        Args:
            batch: "x_0" and the conditions, perhaps "structure" (see `structure`); on a path "x_1" too where the pairs
                are given (reflow).
            generator: one, or a list with one per example; draws t, the noise and what is dropped.
        """
        return self.loss(self.look(opened(self.kernel, batch), generator))

    def look(self, batch: Opened[Any], generator: Randomness = None, t: Tensor | None = None) -> Look:
        """One look at a noisy batch; generator as in `forward`, t (B,) from `times` by default."""
        kernel, x_0, condition = batch.kernel, batch.x_0, dict(batch.condition)
        missing = self.drop.keys() - condition.keys()
        if missing:
            raise ArgumentError("batch", sorted(condition), f"{sorted(missing)} too")
        x_1 = condition.pop("x_1", None)
        if x_1 is not None and not isinstance(kernel, Path):
            raise ArgumentError("batch", sorted(condition), "x_1 only where the kernel is a path")
        schedule: Any = kernel.schedule
        count = kernel.examples(x_0)
        t = self.times(schedule, count, generator) if t is None else t
        for name, (probability, null) in self.drop.items():
            dropped = rand((count,), generator).to(condition[name].device) < probability
            rows = dropped.reshape(-1, *(1,) * (condition[name].ndim - 1))
            condition[name] = torch.where(rows, torch.as_tensor(null).to(condition[name]), condition[name])
        x_t = noisy(kernel, x_0, t, generator, x_1)
        return Look(kernel, x_0, x_t, t, self.denoiser(x_t, t, kernel, **condition))

    def loss(self, look: Look) -> Tensor:
        """The weighted error of the belief per dimension, (B,)."""
        kernel, x_0, _, t, belief = look
        error = kernel.error(x_0, belief, t)
        return self.weight(kernel.schedule, t).to(error) * error / kernel.dims(x_0).to(error).clamp_min(1)


def noisy(kernel: Any, x_0: Any, t: Tensor, generator: Randomness, x_1: Any = None) -> Any:
    """x_t from a kernel's marginal, or on a path between paired ends."""
    if isinstance(kernel, Path):
        return kernel.interpolate(x_0, kernel.pair(x_0, generator) if x_1 is None else x_1, t, generator)
    return kernel.marginal(x_0, t).sample(generator)
