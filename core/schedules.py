r"""Gaussian schedules: how much data and how much noise there is at time t.

A schedule is a pair (alpha_t, sigma_t) with x_t = alpha_t x_0 + sigma_t x_1, t in [0, 1], t = 0 the data and t = 1
the noise. At 0 every schedule is (1, 0). The forward SDE dx = f(t) x dt + g(t) dw that has these marginals has

    f(t) = d log alpha_t / dt,      g(t)^2 = -sigma_t^2 d lambda_t / dt,      lambda_t = 2 log(alpha_t / sigma_t)

(Song et al. 2021, "Score-Based Generative Modeling through SDEs"; Kingma et al. 2021, "Variational Diffusion Models",
eq. 2-4). lambda_t, the log signal-to-noise ratio, falls strictly in t; it is the coordinate in which schedules compare.

Schedules are computed in float64 on the device of t and hold no tensors, unless they are learned. Those whose noise
starts at sigma_min > 0 reach it at `t_min` > 0 and ramp to (1, 0) below; grids of times then end (..., t_min, 0).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .errors import ArgumentError

__all__ = [
    "EDM",
    "Cosine",
    "LinearBeta",
    "Quadratic",
    "RectifiedFlow",
    "Schedule",
    "Sigmoid",
    "SubVP",
    "Tabulated",
    "VarianceExploding",
    "is_fixed",
    "time_of",
]

TINY = 1e-30
"""Stands for t = 0 where only the limit is finite."""


class Schedule(nn.Module, ABC):
    """The pair (alpha_t, sigma_t) and what follows from it. Subclasses give `forward`, and `inverse` if closed."""

    t_min: float = 0.0
    """The smallest time that lies on the schedule proper; below it there is only a ramp to (1, 0)."""

    @abstractmethod
    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), float64, each of the shape of t."""

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = 2 log(alpha_t / sigma_t), natural logarithm, shape of t; +inf at 0, -inf where alpha_t = 0."""
        alpha_t, sigma_t = self(t)
        return 2 * (alpha_t.log() - sigma_t.log())

    def inverse(self, log_snr: Tensor) -> Tensor:
        """The time t at which lambda_t is `log_snr`, clamped to [0, 1]; shape of `log_snr`. Default: bisection."""
        return time_of(self.log_snr, log_snr)

    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log alpha_t / dt of the forward SDE, shape of t; -inf where alpha_t = 0."""
        return self._rate(lambda u: self(u)[0].log(), t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) >= 0 of the forward SDE, g^2 = -sigma^2 d lambda/dt, shape of t; at t = 0 its limit."""
        t = as_float64(t).clamp_min(TINY)
        return self(t)[1] * (-self._rate(self.log_snr, t)).sqrt()

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """d lambda_t / dt, negative, shape of t; -inf at t = 0."""
        return self._rate(self.log_snr, t)

    def _rate(self, function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        """The derivative of an elementwise function at t, in float64; differentiable in the schedule's parameters."""
        with torch.inference_mode(False), torch.enable_grad():
            u = as_float64(t).detach().clone().requires_grad_()
            # 0 u keeps a constant, such as the alpha of exploding schedules, in the graph.
            (result,) = torch.autograd.grad((function(u) + 0 * u).sum(), u, create_graph=not is_fixed(self))
        return result


class LinearBeta(Schedule):
    """Variance preserving with beta(t) linear in t: DDPM's noise in continuous time (Song et al. 2021, eq. 32-33).

    log alpha_t = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2. The defaults are DDPM's 1e-4 ... 0.02 times 1000.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        self.beta_min, self.beta_max = increasing("beta_min", beta_min, "beta_max", beta_max)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        return variance_preserving(-(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2)

    def inverse(self, log_snr: Tensor) -> Tensor:
        # -2 log alpha = log(1 + e^-lambda) is a quadratic in t.
        slope = self.beta_max - self.beta_min
        half = nn.functional.softplus(-as_float64(log_snr), threshold=40).clamp(max=slope / 2 + self.beta_min)
        return (2 * half / (self.beta_min + (self.beta_min**2 + 2 * slope * half).sqrt())).clamp(0, 1)


class Quadratic(Schedule):
    """Variance preserving with sqrt(beta(t)) linear in t ("quad" of Ho et al. 2020's code, "scaled linear" elsewhere).

    The defaults are 1e-4 ... 0.02 times 1000.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        self.beta_min, self.beta_max = increasing("beta_min", beta_min, "beta_max", beta_max)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        a, b = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        return variance_preserving(-(a * a * t + a * b * t**2 + b * b * t**3 / 3) / 2)


class Cosine(Schedule):
    """alpha_t = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)) (Nichol & Dhariwal 2021, eq. 17).

    Written with sines of the complement, so that alpha_1 = 0 exactly. s = 0 is the plain cosine that v-prediction uses.
    """

    def __init__(self, s: float = 0.008):
        super().__init__()
        if not 0 <= s < 1:
            raise ArgumentError("s", s, "an offset in [0, 1)")
        self.s = float(s)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        scale, top = math.pi / 2 / (1 + self.s), math.sin(math.pi / 2 / (1 + self.s))
        alpha_t = torch.sin(scale * (1 - t)) / top
        # sigma^2 top^2 = sin^2(scale) - sin^2(scale (1 - t)) = sin(scale t) sin(scale (2 - t)): exact near t = 0 too.
        sigma_t = (torch.sin(scale * t) * torch.sin(scale * (2 - t))).clamp_min(0).sqrt() / top
        return alpha_t, sigma_t

    def inverse(self, log_snr: Tensor) -> Tensor:
        scale, top = math.pi / 2 / (1 + self.s), math.sin(math.pi / 2 / (1 + self.s))
        log_snr = as_float64(log_snr)
        alpha_t, sigma_t = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        # The angle from both its sine and its cosine: an arcsine alone loses half the digits near t = 0.
        angle = torch.atan2(alpha_t * top, torch.hypot(sigma_t * top, torch.full_like(alpha_t, math.cos(scale))))
        return (1 - angle / scale).clamp(0, 1)


class Sigmoid(Schedule):
    """alpha_t^2 falls like a sigmoid of t between `start` and `end`, rescaled to 1 ... 0 (Jabri et al. 2022)."""

    def __init__(self, start: float = -3.0, end: float = 3.0, tau: float = 1.0):
        super().__init__()
        self.start, self.end = increasing("start", start, "end", end, positive=False)
        if not (math.isfinite(tau) and tau > 0):
            raise ArgumentError("tau", tau, "a positive temperature")
        self.tau = float(tau)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        a, b = self.start / self.tau, self.end / self.tau
        top, bottom = 1 / (1 + math.exp(a)), 1 / (1 + math.exp(b))
        # sigmoid(b) - sigmoid(u) = sigmoid(b) sigmoid(-u) (1 - e^(u - b)): expm1 keeps both ends exact.
        u = a + t * (b - a)
        left = torch.sigmoid(-u) * -torch.expm1(-(b - a) * (1 - t)) / (1 + math.exp(-b))
        right = torch.sigmoid(-u) * -torch.expm1(-(b - a) * t) * top * torch.exp(u)
        return (left / (top - bottom)).sqrt(), (right / (top - bottom)).sqrt()


class SubVP(Schedule):
    """Sub-VP: alpha_t as LinearBeta, sigma_t = 1 - alpha_t^2 itself, not its root (Song et al. 2021, eq. 29)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        super().__init__()
        self.beta_min, self.beta_max = increasing("beta_min", beta_min, "beta_max", beta_max)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        log_alpha_t = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        return log_alpha_t.exp(), -torch.expm1(2 * log_alpha_t)


class VarianceExploding(Schedule):
    """alpha_t = 1, sigma_t geometric from sigma_min at t_min to sigma_max at 1 (Song et al. 2021, eq. 30)."""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5):
        super().__init__()
        self.sigma_min, self.sigma_max = increasing("sigma_min", sigma_min, "sigma_max", sigma_max)
        self.t_min = inside_unit("t_min", t_min)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        u = (t - self.t_min) / (1 - self.t_min)
        sigma_t = self.sigma_min * torch.exp(u.clamp_min(0) * math.log(self.sigma_max / self.sigma_min))
        return torch.ones_like(t), sigma_t * (t / self.t_min).clamp(max=1)

    def inverse(self, log_snr: Tensor) -> Tensor:
        log_sigma_t = -as_float64(log_snr) / 2
        u = (log_sigma_t - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        ramp = self.t_min * torch.exp((log_sigma_t - math.log(self.sigma_min)).clamp(max=0))
        return torch.where(u >= 0, self.t_min + (1 - self.t_min) * u, ramp).clamp(0, 1)


class EDM(Schedule):
    """alpha_t = 1, sigma_t^(1/rho) linear from sigma_min at t_min to sigma_max at 1 (Karras et al. 2022, eq. 5).

    A uniform grid of this schedule's times is the paper's grid of noise levels.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, t_min: float = 1e-5):
        super().__init__()
        self.sigma_min, self.sigma_max = increasing("sigma_min", sigma_min, "sigma_max", sigma_max)
        if not (math.isfinite(rho) and rho >= 1):
            raise ArgumentError("rho", rho, "a finite number >= 1")
        self.rho, self.t_min = float(rho), inside_unit("t_min", t_min)

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        u = ((t - self.t_min) / (1 - self.t_min)).clamp_min(0)
        return torch.ones_like(t), (low + u * (high - low)) ** self.rho * (t / self.t_min).clamp(max=1)

    def inverse(self, log_snr: Tensor) -> Tensor:
        log_sigma_t = -as_float64(log_snr) / 2
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        u = (torch.exp(log_sigma_t / self.rho) - low) / (high - low)
        ramp = self.t_min * torch.exp((log_sigma_t - math.log(self.sigma_min)).clamp(max=0))
        return torch.where(u >= 0, self.t_min + (1 - self.t_min) * u, ramp).clamp(0, 1)


class RectifiedFlow(Schedule):
    """alpha_t = 1 - t, sigma_t = t: straight lines (Liu et al. 2023; Lipman et al. 2023). Tokens: linear survival."""

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        return 1 - t, t.clone()

    def inverse(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-as_float64(log_snr) / 2)


class Tabulated(Schedule):
    """Any checkpoint's array: alpha_bar_i = prod_j<=i (1 - beta_j) at t = i/T, i = 1 ... T, alpha_t^2 = alpha_bar.

    Between the published times the angle atan2(sigma, alpha) is linear in t, which keeps alpha^2 + sigma^2 = 1, holds
    for terminal alpha = 0 too, and meets (1, 0) at t = 0. Index i - 1 of a published T-step model is t = i/T.

    Args:
        alphas_bar: T falling numbers in [0, 1); use `Tabulated.from_betas` for an array of betas.
    """

    def __init__(self, alphas_bar: Sequence[float] | Tensor):
        super().__init__()
        values = torch.as_tensor(alphas_bar, dtype=torch.float64)
        if values.ndim != 1 or len(values) == 0:
            raise ArgumentError("alphas_bar", alphas_bar, "a sequence of at least one number")
        table = tuple(values.tolist())
        if not all(0 <= a < 1 for a in table) or any(b >= a for a, b in pairwise(table)):
            raise ArgumentError("alphas_bar", alphas_bar, "strictly falling numbers in [0, 1)")
        self.alphas_bar, self.t_min = table, 1 / len(table)
        kept = torch.tensor((1.0, *table), dtype=torch.float64)
        self._angle = torch.atan2((1 - kept).sqrt(), kept.sqrt())
        self._complement = torch.atan2(kept.sqrt(), (1 - kept).sqrt())

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> Tabulated:
        """From the noise variances beta_1 ... beta_T, each in (0, 1]; float64 throughout."""
        table = torch.as_tensor(betas, dtype=torch.float64)
        if table.ndim != 1 or len(table) == 0 or not bool(((table > 0) & (table <= 1)).all()):
            raise ArgumentError("betas", betas, "a sequence of at least one number in (0, 1]")
        return cls((1 - table).cumprod(0))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = as_float64(t)
        place = t * len(self.alphas_bar)
        left = place.detach().floor().clamp(0, len(self.alphas_bar) - 1).long()
        share = place - left
        angle, complement = self._angle.to(t.device), self._complement.to(t.device)
        return (
            torch.sin(torch.lerp(complement[left], complement[left + 1], share)),
            torch.sin(torch.lerp(angle[left], angle[left + 1], share)),
        )


def as_float64(t: Tensor | float) -> Tensor:
    """t as a float64 tensor."""
    return torch.as_tensor(t).to(torch.float64)


def variance_preserving(log_alpha_t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sqrt(1 - alpha^2)) from log alpha, without cancellation."""
    return log_alpha_t.exp(), (-torch.expm1(2 * log_alpha_t)).sqrt()


def is_fixed(schedule: Schedule) -> bool:
    """Whether a schedule has no parameters to learn."""
    return next(schedule.parameters(), None) is None


def time_of(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The t in [0, 1] at which a falling elementwise function has a value, by bisection; clamped at both ends."""
    value = as_float64(value)
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(64):
        middle = (low + high) / 2
        too_early = function(middle) > value
        low, high = torch.where(too_early, middle, low), torch.where(too_early, high, middle)
    middle = (low + high) / 2
    return torch.where(value >= function(torch.zeros_like(value)), 0.0, middle)


def increasing(low_name: str, low: float, high_name: str, high: float, positive: bool = True) -> tuple[float, float]:
    """Both numbers as floats, or an ArgumentError unless (0 <) low < high, both finite."""
    if not (math.isfinite(low) and (low > 0 or not positive)):
        raise ArgumentError(low_name, low, "a positive finite number" if positive else "a finite number")
    if not (math.isfinite(high) and high > low):
        raise ArgumentError(high_name, high, f"a finite number above {low_name} = {low}")
    return float(low), float(high)


def inside_unit(name: str, value: float) -> float:
    """The number as a float, or an ArgumentError unless it lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ArgumentError(name, value, "a number in (0, 1)")
    return float(value)
