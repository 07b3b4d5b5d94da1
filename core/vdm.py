r"""Variational diffusion models: a learned schedule, and the continuous ELBO that trains it (Kingma et al. 2021).

With gamma = -lambda, the schedule is variance preserving, alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma), and
gamma_t a monotone network between two learned ends (appendix H),

    gamma_t = gamma_0 + (gamma_1 - gamma_0) s_t,    s_t = (f(u) - f(0)) / (f(1) - f(0)),    f = l1 + l3 sigmoid(l2 l1)

with positive weights; u in [0, 1] is t in [t_min, 1], since noise begins at sigma_0 > 0. The bound in nats,

    -log p(x_0) <= SNR_1 |x_0|^2 / 2                                              prior N(0, sigma_1^2 Sigma)
                 + E_t (1 - t_min) gamma'(t)/2 |eps - eps_hat|^2                  diffusion, t uniform in [t_min, 1]
                 + E -log p(x_0 | x_(t_min))                                      reconstruction

(eq. 12-17) depends on the schedule through its ends alone. So the ends learn from the bound, and the inner schedule, s,
is free to make the estimate's variance small: it learns from the gradient of the squared diffusion loss,
d L^2 = 2 L dL, example by example (appendix I.2). Both come from one backward pass: the gradient that reaches s and s'
at the batch's times is multiplied by 2 L there. The reconstruction is the kernel's likelihood of x_0 around
x_(t_min) / alpha: a probability where the kernel has a discretised decoder, else a Gaussian density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import GaussianDenoiser
from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .noise import own_view
from .objectives import Times, low_discrepancy
from .randomness import Randomness
from .schedules import Schedule, as_float64, inside_unit, time_of
from .structure import opened

__all__ = ["VDM", "FourierFeatures", "LearnedSchedule"]


class LearnedSchedule(Schedule):
    """A variance-preserving schedule whose log-SNR is a monotone network of t.

    Args:
        gamma_0: -lambda at t_min, to start from; the default is the paper's.
        gamma_1: -lambda at 1, to start from.
        hidden: units of the monotone network. It starts close to a straight line.
        t_min: where the noise starts; below it sigma ramps to 0, which no part of the bound sees.
    """

    def __init__(self, gamma_0: float = -13.3, gamma_1: float = 5.0, hidden: int = 64, t_min: float = 1e-5):
        super().__init__()
        if not (math.isfinite(gamma_0) and math.isfinite(gamma_1) and gamma_0 < gamma_1):
            raise ArgumentError("gamma_0, gamma_1", (gamma_0, gamma_1), "finite numbers, gamma_0 < gamma_1")
        if hidden < 1:
            raise ArgumentError("hidden", hidden, "an integer >= 1")
        self.t_min = inside_unit("t_min", t_min)
        self.gamma_0 = nn.Parameter(torch.tensor(float(gamma_0)))
        self.raw_span = nn.Parameter(torch.tensor(inverse_softplus(gamma_1 - gamma_0)))
        # Sigmoids of width 1/8 centred all over [0, 1], together half as steep as the line.
        steepness = 8.0
        self.raw_line = nn.Parameter(torch.tensor(inverse_softplus(1.0)))
        self.raw_inner = nn.Parameter(torch.full((hidden,), inverse_softplus(steepness)))
        self.bias = nn.Parameter(-steepness * (torch.arange(hidden) + 0.5) / hidden)
        self.raw_outer = nn.Parameter(torch.full((hidden,), inverse_softplus(0.5 / hidden)))

    def ends(self) -> tuple[Tensor, Tensor]:
        """(gamma_0, gamma_1 - gamma_0), float64, differentiable."""
        return self.gamma_0.to(torch.float64), softplus(self.raw_span)

    def shape(self, t: Tensor) -> Tensor:
        """s_t: 0 at t_min and before, 1 at t = 1, rising strictly; shape of t."""
        u = ((as_float64(t) - self.t_min) / (1 - self.t_min)).clamp_min(0)
        inner, outer, bias = (
            weight.to(u.device) for weight in (softplus(self.raw_inner), softplus(self.raw_outer), self.bias.double())
        )
        line = softplus(self.raw_line).to(u.device)

        def monotone(u: Tensor) -> Tensor:
            first = line * u
            return first + (outer * torch.sigmoid(inner * first.unsqueeze(-1) + bias)).sum(-1)

        low, high = monotone(u.new_zeros(())), monotone(u.new_ones(()))
        return (monotone(u) - low) / (high - low)

    def gamma(self, t: Tensor) -> Tensor:
        """gamma_t = -lambda_t for t >= t_min, gamma_0 below; shape of t."""
        gamma_0, span = self.ends()
        s = self.shape(t)
        return gamma_0.to(s.device) + span.to(s.device) * s

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma, ramp = self.gamma(t), self.ramp(t)
        return alpha_squared(gamma, ramp).sqrt(), torch.sigmoid(gamma).sqrt() * ramp

    def log_snr(self, t: Tensor) -> Tensor:
        gamma, ramp = self.gamma(t), self.ramp(t)
        return alpha_squared(gamma, ramp).log() - nn.functional.logsigmoid(gamma) - 2 * ramp.log()

    def inverse(self, log_snr: Tensor) -> Tensor:
        """By bisection; not differentiable."""
        with torch.no_grad():
            return time_of(self.log_snr, log_snr)

    def ramp(self, t: Tensor) -> Tensor:
        """t / t_min below t_min, 1 above."""
        t = as_float64(t)
        return torch.where(t < self.t_min, t / self.t_min, 1.0)


class VDM(nn.Module):
    """The continuous ELBO of a learned schedule as an objective: losses are nats per example.

    Its mean's gradient is the bound's for the denoiser and for the ends of the schedule; for the inner schedule it is
    that of the mean of L^2 / dims, L the diffusion loss of one example.

    Args:
        denoiser: whose schedule is the kernel's own, so that both learn together.
        kernel: a Gaussian kernel of a `LearnedSchedule`.
        times: the law of t, uniform on [t_min, 1] on the whole.
    """

    def __init__(self, denoiser: GaussianDenoiser, kernel: Gaussian, times: Times | None = None):
        super().__init__()
        if not isinstance(kernel.schedule, LearnedSchedule):
            raise ArgumentError("kernel", kernel.schedule, "a kernel of a LearnedSchedule")
        if denoiser.schedule is not kernel.schedule:
            raise ArgumentError("denoiser", denoiser.schedule, "the kernel's own schedule, the same object")
        self.denoiser, self.kernel = denoiser, kernel
        self.times = times if times is not None else low_discrepancy(0.0)

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """The bound on -log p(x_0), in nats, (B,).

        Args:
            batch: "x_0" and the conditions.
            generator: one, or a list with one per example; draws t and the noise.
        """
        first, diffusion, last = self.parts(batch, generator)
        return first + diffusion + last

    def parts(self, batch: Mapping[str, Any], generator: Randomness = None) -> tuple[Tensor, Tensor, Tensor]:
        """(prior, diffusion, reconstruction), each (B,); arguments as `forward`."""
        whole, x_0, condition = opened(self.kernel, batch)
        schedule = whole.schedule
        assert isinstance(schedule, LearnedSchedule)
        t = self.times(schedule, whole.examples(x_0), generator)
        dims = whole.dims(x_0).clamp_min(1)
        gain = torch.ones_like(t)
        s, slope = (steered(number, gain) for number in shape_and_slope(schedule, t))
        gamma_0, span = (end.to(t.device) for end in schedule.ends())
        gamma = gamma_0 + span * s
        there = Known(gamma)
        kernel, denoiser = own_view(whole), own_view(self.denoiser)
        kernel.schedule, denoiser.schedule = there, there
        x_t = kernel.interpolate(x_0, kernel.pair(x_0, generator), t)
        error = kernel.error(x_0, denoiser(x_t, t, kernel, **condition), t)
        weight = (1 - schedule.t_min) * span * slope * torch.exp(-gamma) / 2
        diffusion = weight.to(error) * error
        gain.copy_(2 * diffusion.detach() / dims)
        return prior(whole, x_0), diffusion, reconstruction(whole, x_0, generator)


def prior(kernel: Gaussian, x_0: Tensor) -> Tensor:
    """KL(q(x_1 | x_0) || N(0, sigma_1^2 Sigma)) in nats, (B,); differentiable in the learned ends."""
    squares = kernel.noise.squares(x_0)
    schedule: Any = kernel.schedule
    gamma_0, span = schedule.ends()
    return torch.exp(-gamma_0 - span).to(squares) / 2 * squares


def reconstruction(kernel: Gaussian, x_0: Tensor, generator: Randomness = None) -> Tensor:
    """-log p(x_0 | x_t) at t_min in nats, (B,), without a call of the network."""
    start = torch.full((kernel.examples(x_0),), kernel.schedule.t_min, dtype=torch.float64)
    alpha_t, _ = kernel.schedule(start)
    x_t = kernel.interpolate(x_0, kernel.pair(x_0, generator), start)
    belief = Belief.sum(kernel.combine, (1 / alpha_t, x_t))
    return -kernel.likelihood(belief, start).log_prob(x_0)


class Known(Schedule):
    """A variance-preserving schedule at the times of one batch, where gamma is known already."""

    def __init__(self, gamma: Tensor):
        super().__init__()
        self.known = gamma

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(-self.known).sqrt(), torch.sigmoid(self.known).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        return -self.known


class FourierFeatures(nn.Module):
    """A network that also sees sin and cos of 2^n pi x, appended to x's channels (Kingma et al. 2021, appendix C).

    Fine values move the likelihood, and networks are slow to learn functions of them.

    Args:
        body: the network on (B, C (1 + 2 len(exponents)), ...) and what else it takes.
        exponents: the n.
    """

    def __init__(self, body: nn.Module, exponents: Sequence[int] = (6, 7)):
        super().__init__()
        if not exponents:
            raise ArgumentError("exponents", exponents, "at least one integer")
        self.body, self.exponents = body, tuple(exponents)

    def forward(self, x: Tensor, *args: Any, **condition: Any) -> Tensor:
        angles = torch.cat([x * (2.0**n * math.pi) for n in self.exponents], 1)
        return self.body(torch.cat([x, angles.sin(), angles.cos()], 1), *args, **condition)


def shape_and_slope(schedule: LearnedSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(s_t, ds/dt) for t >= t_min, both differentiable in the schedule's parameters."""
    return schedule.shape(t), schedule._rate(schedule.shape, t)


def steered(number: Tensor, gain: Tensor) -> Tensor:
    """The same numbers; what flows back through them is multiplied by `gain`, which may be filled in later."""
    number = number.clone()
    if number.requires_grad:
        number.register_hook(lambda gradient: gradient * gain)
    return number


def alpha_squared(gamma: Tensor, ramp: Tensor) -> Tensor:
    """1 - sigmoid(gamma) ramp^2 without cancellation."""
    return torch.sigmoid(-gamma) + torch.sigmoid(gamma) * (1 - ramp**2)


def softplus(raw: Tensor) -> Tensor:
    """A positive float64 weight."""
    return nn.functional.softplus(raw.to(torch.float64), threshold=40)


def inverse_softplus(value: float) -> float:
    """The raw number of a positive weight."""
    return value + math.log(-math.expm1(-value))
