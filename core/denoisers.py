r"""Denoisers: a network and its parametrisation give the belief about x_0.

A Gaussian parametrisation is three numbers per time (Karras et al. 2022, eq. 7, in (alpha, sigma) form):

    E[x_0 | x_t] = c_skip x_t + c_out F(c_in x_t, c)

    eps    x_0 = (x_t - sigma F) / alpha                       v      x_0 = (alpha x_t - sigma F) / (alpha^2 + sigma^2)
    x0     x_0 = F                                             score  x_0 = (x_t + sigma^2 F) / alpha
    flow   F = x_1 - x_0                                       edm    unit variance for F's input and target

The denoiser alone owns the map from t to the number c on which the network is conditioned (`conditioning`). It keeps
the schedule that it was trained with. Bound to a kernel of another schedule it finds the time of equal log-SNR and
rescales x_t, so a change of schedule at sampling time changes nothing but the path.

For tokens, `logits` reads the output as log p(x_0 | x_t), and `context` as log p(x_0 | the other tokens), which is
joined with q(x_t | x_0): D3PM's product rule, as exact as the former.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .categorical import Tokens
from .errors import ArgumentError
from .gaussian import Belief
from .kernel import Memo, Time
from .schedules import Schedule, is_fixed, time_of

__all__ = [
    "Conditioned",
    "Denoiser",
    "GaussianDenoiser",
    "TokenDenoiser",
    "context",
    "edm",
    "eps",
    "flow",
    "index",
    "log_snr",
    "logits",
    "score",
    "time",
    "v",
    "x0",
]

X = TypeVar("X")
B = TypeVar("B")

Parametrisation: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(alpha_t, sigma_t) -> (c_skip, c_out, c_in)."""

Conditioning: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(t, lambda_t) -> c, the number that the network is told, about 0 ... 1000."""


def eps(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F predicts the noise x_1 (Ho et al. 2020). Undefined where alpha_t = 0."""
    return 1 / alpha_t, -sigma_t / alpha_t, torch.ones_like(alpha_t)


def x0(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F predicts the data."""
    return torch.zeros_like(alpha_t), torch.ones_like(alpha_t), torch.ones_like(alpha_t)


def v(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F predicts alpha_t x_1 - sigma_t x_0 (Salimans & Ho 2022), also off alpha^2 + sigma^2 = 1."""
    power = alpha_t**2 + sigma_t**2
    return alpha_t / power, -sigma_t / power, torch.ones_like(alpha_t)


def flow(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F predicts x_1 - x_0, the velocity of straight paths (Liu et al. 2023)."""
    return 1 / (alpha_t + sigma_t), -sigma_t / (alpha_t + sigma_t), torch.ones_like(alpha_t)


def score(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F predicts grad log q(x_t); by Tweedie x_0 = (x_t + sigma_t^2 F) / alpha_t (isotropic noise law)."""
    return 1 / alpha_t, sigma_t**2 / alpha_t, torch.ones_like(alpha_t)


def edm(sigma_data: float = 0.5) -> Parametrisation:
    """Karras et al. 2022, table 1, for data of standard deviation sigma_data; defined at alpha_t = 0 too."""
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise ArgumentError("sigma_data", sigma_data, "a positive number")

    def edm_(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        power = (alpha_t * sigma_data) ** 2 + sigma_t**2
        return alpha_t * sigma_data**2 / power, sigma_t * sigma_data / power.sqrt(), 1 / power.sqrt()

    return edm_


def time(t: Tensor, log_snr_t: Tensor) -> Tensor:
    """c = 1000 t."""
    return 1000 * t


def index(T: int) -> Conditioning:
    """c = T t - 1: the published index of a T-step model, kept when its chain is respaced."""
    # Rounded, so that i/T gives the integer i - 1 whatever the arithmetic.
    return lambda t, log_snr_t: (T * t - 1).round(decimals=6)


def log_snr(t: Tensor, log_snr_t: Tensor) -> Tensor:
    """c = 500 - 25 lambda, lambda limited to [-20, 20]: the same noise level means the same c in every schedule."""
    return 500 - 25 * log_snr_t.clamp(-20, 20)


class Denoiser(nn.Module, ABC, Generic[X, B]):
    """A network with its reading. Called directly in training; bound by `given` for sampling and bounds."""

    network: nn.Module
    schedule: Schedule
    _memo: tuple[Schedule, Memo] | None = None

    def memo(self, schedule: Schedule) -> Memo:
        """The coefficients under a schedule by time, remembered from one binding to the next."""
        if self._memo is None or self._memo[0] is not schedule:
            fixed = is_fixed(self.schedule) and is_fixed(schedule)
            self._memo = schedule, Memo(partial(self.coefficients, schedule=schedule), fixed)
        return self._memo[1]

    @abstractmethod
    def coefficients(self, t: Tensor, schedule: Schedule) -> tuple[Tensor, ...]:
        """What the reading needs at time t of `schedule`, each of the shape of t."""

    @abstractmethod
    def read(self, x_t: X, t: Time, numbers: tuple[Any, ...], kernel: Any, condition: dict[str, Any]) -> B:
        """The belief from those coefficients, floats or tensors (B,)."""

    def forward(self, x_t: X, t: Tensor, kernel: Any = None, **condition: Any) -> B:
        """The belief about x_0.

        Args:
            x_t: the noisy state of B examples.
            t: (B,) float64 times of the kernel's schedule.
            kernel: whose process x_t comes from.
            condition: what the network takes besides.
        """
        if kernel is None:
            raise ArgumentError("kernel", None, "one: samplers take a denoiser that is bound, `denoiser.given(kernel)`")
        return self.read(x_t, t, self.coefficients(t, kernel.schedule), kernel, condition)

    def given(self, kernel: Any, **condition: Any) -> Conditioned[X, B]:
        """This denoiser for one kernel and one condition, callable with (x_t, t)."""
        return Conditioned(self, kernel, condition)


class Conditioned(Generic[X, B]):
    """A bound denoiser: belief = denoise(x_t, t), t a float or a tensor (B,)."""

    def __init__(self, denoiser: Denoiser[X, B], kernel: Any, condition: dict[str, Any]):
        self.denoiser, self.kernel, self.condition = denoiser, kernel, condition
        self.memo = denoiser.memo(kernel.schedule)

    def __call__(self, x_t: X, t: Time) -> B:
        return self.denoiser.read(x_t, t, self.memo(t), self.kernel, self.condition)


class GaussianDenoiser(Denoiser[Tensor, Belief]):
    """A network on tensor states.

    Args:
        network: `network(x, c, **condition)` -> tensor of x's shape; with `learned_range`, twice x's channels along
            dimension 1, the second half the fraction v of the log-variance range (Nichol & Dhariwal 2021, eq. 15).
        schedule: the one it is trained with.
        parametrisation: how the output is read: `eps`, `x0`, `v`, `score`, `flow`, `edm(sigma_data)`.
        conditioning: the map from time to the network's c: `log_snr`, `time`, `index(T)`.
        learned_range: whether the network also predicts the reverse variance; its half v in [-1, 1] gives (v + 1)/2.
        spread: of the reverse variance if it is not learned: 0 the smallest, the posterior's; 1 the largest.

    The output is projected on the kernel's space, where x_t lives, so that a network need not know which cells are
    masked or that clouds are centred.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parametrisation: Parametrisation = v,
        conditioning: Conditioning = log_snr,
        learned_range: bool = False,
        spread: float = 0.0,
    ):
        super().__init__()
        if not 0 <= spread <= 1:
            raise ArgumentError("spread", spread, "a number in [0, 1]")
        for name, function in (("parametrisation", parametrisation), ("conditioning", conditioning)):
            if not callable(function):
                raise ArgumentError(name, function, f"a function, such as denoisers.{function}")
        self.spread = float(spread)
        self.network, self.schedule, self.learned_range = network, schedule, learned_range
        self.parametrisation, self.conditioning = parametrisation, conditioning

    def coefficients(self, t: Tensor, schedule: Schedule) -> tuple[Tensor, ...]:
        """(c_skip, c_out, c_in, c), with the change of schedule folded in."""
        if schedule is self.schedule:
            scale = torch.ones_like(t)
        else:
            alpha_from, sigma_from = schedule(t)
            t = self.schedule.inverse(schedule.log_snr(t))
            alpha_to, sigma_to = self.schedule(t)
            scale = torch.hypot(alpha_to, sigma_to) / torch.hypot(alpha_from, sigma_from)
        c_skip, c_out, c_in = self.parametrisation(*self.schedule(t))
        if t.device.type == "cpu" and not bool(c_skip.isfinite().all()):
            raise ArgumentError(
                "parametrisation", self.parametrisation.__name__, "one that is defined at alpha_t = 0, such as v or x0"
            )
        return c_skip * scale, c_out, c_in * scale, self.conditioning(t, self.schedule.log_snr(t))

    def read(self, x_t: Tensor, t: Time, numbers: tuple[Any, ...], kernel: Any, condition: dict[str, Any]) -> Belief:
        return self.heard(self.network(*self.asked(x_t, numbers, kernel), **condition), x_t, t, numbers, kernel)

    def asked(self, x_t: Tensor, numbers: tuple[Any, ...], kernel: Any) -> tuple[Tensor, Tensor]:
        """What the network is given, c_in x_t and c (B,)."""
        _, _, c_in, c = numbers
        scaled = x_t if isinstance(c_in, float) and c_in == 1.0 else kernel.combine((c_in, x_t))
        return scaled, network_time(c, kernel.examples(x_t), x_t)

    def heard(self, output: Tensor, x_t: Tensor, t: Time, numbers: tuple[Any, ...], kernel: Any) -> Belief:
        """The belief from what the network answers."""
        c_skip, c_out, *_ = numbers
        if output.dtype != x_t.dtype:
            output = output.to(x_t.dtype)
        spread: float | Tensor = self.spread
        if self.learned_range:
            if output.ndim < 2 or output.shape[1] != 2 * x_t.shape[1]:
                raise ArgumentError("network", output, f"twice the {x_t.shape[1]} channels of x, for the learned range")
            output, fraction = output.chunk(2, dim=1)
            spread = (fraction + 1) / 2
        if output.shape != x_t.shape:
            # Broadcasting would hide it and train on something else.
            raise ArgumentError("network", output, f"an output of the shape of x, {tuple(x_t.shape)}")
        output = kernel.project(output)
        if isinstance(c_skip, float) and c_skip == 0.0 and c_out == 1.0:
            return Belief(output, spread)
        return Belief.sum(kernel.combine, (c_skip, x_t), (c_out, output), spread=spread)


def logits(output: Tensor, evidence: Tensor) -> Tensor:
    """The output read as log p(x_0 | x_t) up to a constant, without the x_0 that x_t rules out."""
    return output.masked_fill(evidence == -math.inf, -math.inf).log_softmax(-1)


def context(output: Tensor, evidence: Tensor) -> Tensor:
    """The output read as log p(x_0 | the other tokens), joined with log q(x_t | x_0) (Austin et al. 2021, eq. 4)."""
    return (output + evidence.to(output)).log_softmax(-1)


class TokenDenoiser(Denoiser[Tensor, Tensor]):
    """A network on tokens: `network(x, c, **condition)` -> (B, *dims, V) logits, V <= K.

    Args:
        network: x long (B, *dims), c float (B,). With V < K it speaks of the first V symbols; the others, such as a
            mask, are never data.
        schedule: the one it is trained with; another one is met at the time of equal survival.
        parametrisation: `logits` or `context`.
        conditioning: as for Gaussian denoisers, lambda being that of alpha_t / sigma_t.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        parametrisation: Callable[[Tensor, Tensor], Tensor] = logits,
        conditioning: Conditioning = time,
    ):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.parametrisation, self.conditioning = parametrisation, conditioning

    def coefficients(self, t: Tensor, schedule: Schedule) -> tuple[Tensor, ...]:
        """(c,)"""
        if schedule is not self.schedule:
            t = time_of(lambda u: self.schedule(u)[0], schedule(t)[0])
        return (self.conditioning(t, self.schedule.log_snr(t)),)

    def read(self, x_t: Tensor, t: Time, numbers: tuple[Any, ...], kernel: Tokens, condition: dict[str, Any]) -> Tensor:
        return self.heard(self.network(*self.asked(x_t, numbers, kernel), **condition), x_t, t, numbers, kernel)

    def asked(self, x_t: Tensor, numbers: tuple[Any, ...], kernel: Tokens) -> tuple[Tensor, Tensor]:
        """What the network is given, x_t and c (B,)."""
        blank = torch.empty((), dtype=torch.get_default_dtype(), device=x_t.device)
        return x_t, network_time(numbers[0], kernel.examples(x_t), blank)

    def heard(self, output: Tensor, x_t: Tensor, t: Time, numbers: tuple[Any, ...], kernel: Tokens) -> Tensor:
        """The belief from what the network answers."""
        if output.ndim != x_t.ndim + 1 or output.shape[:-1] != x_t.shape or output.shape[-1] > kernel.K:
            raise ArgumentError("network", output, f"logits of shape {tuple(x_t.shape)} + (V,) with V <= {kernel.K}")
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if output.shape[-1] < kernel.K:
            output = nn.functional.pad(output, (0, kernel.K - output.shape[-1]), value=-math.inf)
        return self.parametrisation(output, kernel.evidence(x_t, t, output.dtype))


def network_time(c: Time, examples: int, like: Tensor) -> Tensor:
    """c as a tensor (B,) on like's device and of its dtype, but at least float32: bfloat16 has no 997."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(c, Tensor):
        return c.to(like.device, dtype).expand(examples)
    return like.new_full((examples,), c, dtype=dtype)
