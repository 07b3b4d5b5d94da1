r"""The Gaussian kernel: x_t = alpha_t x_0 + sigma_t x_1, x_1 ~ N(0, Sigma), for every schedule and every noise law.

With r = alpha_t sigma_s / (alpha_s sigma_t) = exp((lambda_t - lambda_s)/2) and c = r^2, for s < t,

    q(x_t | x_s)      = N(alpha_t/alpha_s x_s, (1 - c) sigma_t^2 Sigma)
    q(x_s | x_t, x_0) = N(r sigma_s/sigma_t x_t + (1 - c) alpha_s x_0, (1 - c) sigma_s^2 Sigma)

(Kingma et al. 2021, eq. 24-33, in log-SNR form: 1 - c = -expm1(lambda_t - lambda_s) does not cancel, and alpha_t = 0 at
t = 1 is no special case). A learned reverse variance interpolates in the log between these two scales, element by
element: log variance = spread log((1 - c) sigma_t^2) + (1 - spread) log((1 - c) sigma_s^2) (Nichol & Dhariwal 2021,
eq. 15): spread = 0 is "fixed small", spread = 1 "fixed large". A spread that is a number suits every noise law.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .distributions import Normal, OpenMean, Scaled
from .errors import ArgumentError
from .kernel import Kernel, Memo, Path, Time, check_order, interior
from .noise import Isotropic, Noise, own_view
from .randomness import Randomness
from .schedules import Schedule, is_fixed

__all__ = ["Belief", "Gaussian", "TensorPath"]


class Belief(OpenMean):
    """What a denoiser says about x_0: its mean, and where the reverse variance lies in its range.

    A denoiser's mean is a sum c_skip x_t + c_out F, and solvers add multiples of it to x_t again:
    `kernel.combine((a, x_t), *belief.times(b))` adds a + b c_skip in float64, where it would cancel badly in float32.

    Args:
        mean: of x_0.
        spread: one number, one per example (B,), or one per element in the shape of the mean.
    """

    def __init__(self, mean: Tensor, spread: float | Tensor = 0.0):
        self._mean, self.spread = mean, spread

    @classmethod
    def sum(cls, combine: Callable[..., Tensor], *terms: tuple[Time, Tensor], spread: float | Tensor = 0.0) -> Belief:
        """The belief whose mean is combine(*terms)."""
        belief = cls.__new__(cls)
        belief._mean, belief._terms, belief._combine, belief.spread = None, terms, combine, spread
        return belief


class TensorPath(Path[Tensor], ABC):
    """A path on tensor states: a noise law knows their layout, the space where they live and its metric.

    Args:
        schedule: alpha_t, sigma_t.
        noise: the law, bound to its structure; isotropic by default.
    """

    def __init__(self, schedule: Schedule, noise: Noise | None = None):
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise ArgumentError("schedule", schedule, "a schedule, such as schedules.Cosine()")
        self.schedule = schedule
        self._modules["noise"] = noise if noise is not None else Isotropic()

    @property
    def noise(self) -> Noise:
        """The law, a submodule; found without torch's search, for solvers ask for it several times a step."""
        noise = self._modules["noise"]
        assert isinstance(noise, Noise)
        return noise

    def given(self, **structure: Any) -> Self:
        view = own_view(self)
        view._modules["noise"] = self.noise.given(**structure)
        return view

    def combine(self, *terms: tuple[Time, Tensor]) -> Tensor:
        return self.noise.combine(*terms)

    def project(self, x: Tensor) -> Tensor:
        return self.noise.project(x)

    def examples(self, x: Tensor) -> int:
        return self.noise.examples(x)

    def dims(self, x: Tensor) -> Tensor:
        return self.noise.dof(x)

    def error(self, x_0: Tensor, belief: Belief, t: Time) -> Tensor:
        """Squared error in the metric of the noise law, summed, (B,)."""
        return self.noise.squares(self.combine(*belief.times(1.0), (-1.0, x_0)))


class Gaussian(TensorPath, Kernel[Tensor, Belief]):
    """The kernel of a schedule and a noise law on tensor states.

    Args:
        schedule: alpha_t, sigma_t.
        noise: the law of x_1; isotropic by default.
    """

    def __init__(self, schedule: Schedule, noise: Noise | None = None):
        super().__init__(schedule, noise)
        self._marginal = Memo(schedule, is_fixed(schedule))
        self._relative = Memo(self._blur, is_fixed(schedule))
        self._between = Memo(self._coefficients, is_fixed(schedule))

    def _blur(self, t: Tensor) -> tuple[Tensor, ...]:
        """(sigma_t / alpha_t,), infinite where alpha_t = 0."""
        alpha_t, sigma_t = self.schedule(t)
        return (sigma_t / alpha_t,)

    def _coefficients(self, s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """(weight of x_t, weight of x_0, scale) of the posterior, (weight of x_s, scale) of the transition."""
        alpha_s, sigma_s = self.schedule(s)
        alpha_t, sigma_t = self.schedule(t)
        fall = self.schedule.log_snr(t) - self.schedule.log_snr(s)
        kept = -torch.expm1(fall)
        return (
            torch.exp(fall / 2) * sigma_s / sigma_t,
            kept * alpha_s,
            kept.sqrt() * sigma_s,
            alpha_t / alpha_s,
            kept.sqrt() * sigma_t,
        )

    def pair(self, x_0: Tensor, generator: Randomness = None) -> Tensor:
        return self.noise.draw(x_0, generator)

    def certain(self, x_0: Tensor) -> Belief:
        return Belief(x_0)

    def prior(self, like: Tensor) -> Normal:
        """N(0, sigma_1^2 Sigma)."""
        end = 1.0 if self._marginal.fixed else torch.ones(self.examples(like), dtype=torch.float64)
        return Normal(torch.zeros_like(like), self._marginal(end)[1], self.noise)

    def marginal(self, x_0: Tensor, t: Time) -> Normal:
        alpha_t, sigma_t = self._marginal(t)
        return Normal.sum(self.noise, sigma_t, (alpha_t, x_0))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        check_order(s, t)
        *_, weight, scale = self._between(s, t)
        return Normal.sum(self.noise, scale, (weight, x_s))

    def posterior(self, x_t: Tensor, belief: Belief, s: Time, t: Time) -> Normal:
        check_order(s, t)
        of_x_t, of_x_0, scale, *_ = self._between(s, t)
        return Normal.sum(self.noise, scale, (of_x_t, x_t), *belief.times(of_x_0))

    def reverse(self, x_t: Tensor, belief: Belief, s: Time, t: Time) -> Normal | Scaled:
        law = self.posterior(x_t, belief, s, t)
        if isinstance(belief.spread, float) and belief.spread == 0.0:
            return law
        (_, sigma_s), (_, sigma_t) = self._marginal(s), self._marginal(t)
        ratio = sigma_t / sigma_s  # of the largest to the smallest scale
        if not isinstance(belief.spread, Tensor) or belief.spread.ndim == 1 < x_t.ndim:
            return Normal.sum(self.noise, law.scale * ratio**belief.spread, *law.times(1.0))
        log_ratio = torch.as_tensor(ratio, dtype=torch.float64).log().reshape(-1)
        widened = torch.exp(belief.spread * self.noise.spread(log_ratio, x_t))
        return Scaled(law.mean, law.scaled().deviation * widened, self.noise)

    def gap(self, x_t: Tensor, x_0: Tensor, belief: Belief, s: Time, t: Time) -> Tensor:
        posterior, reverse = self.posterior(x_t, self.certain(x_0), s, t), self.reverse(x_t, belief, s, t)
        return posterior.kl(reverse) if isinstance(reverse, Normal) else posterior.scaled().kl(reverse)

    def gap_rate(self, x_t: Tensor, x_0: Tensor, belief: Belief, t: Time) -> Tensor:
        """-SNR lambda'(t)/2 times the error (Kingma et al. 2021, eq. 17); the spread does not matter in the limit."""
        t = interior(t)
        weight = -self.schedule.log_snr(t).exp() * self.schedule.log_snr_rate(t) / 2
        error = self.error(x_0, belief, t)
        return weight.to(error) * error

    def pace(self, share: Tensor, low: float) -> tuple[Tensor, Tensor]:
        """Evenly in softplus(lambda): in lambda where there is signal, in SNR where there is none.

        The best denoiser of standard normal data then costs the same at every share.
        """
        first, last = self._areas(low)
        area = first + (last - first) * share
        # The inverse of softplus, without overflow.
        t = interior(self.schedule.inverse(area + torch.log(-torch.expm1(-area))))
        return t, 1 / self.share(t, low)[1]

    def share(self, t: Tensor, low: float) -> tuple[Tensor, Tensor]:
        t, (first, last) = interior(t), self._areas(low)
        log_snr = self.schedule.log_snr(t)
        growth = torch.sigmoid(log_snr) * self.schedule.log_snr_rate(t)
        return (softplus(log_snr, threshold=40) - first) / (last - first), growth / (last - first)

    def _areas(self, low: float) -> Tensor:
        """softplus(lambda) at both ends of time, (2,)."""
        ends = torch.tensor([max(low, self.schedule.t_min), 1.0], dtype=torch.float64)
        return softplus(self.schedule.log_snr(ends), threshold=40)

    def likelihood(self, belief: Belief, t: Time) -> Normal:
        """N(belief, (sigma_t/alpha_t)^2 Sigma): the law of x_0 around the belief under a flat prior, a density."""
        (scale,) = self._relative(t)
        return Normal.sum(self.noise, scale, *belief.times(1.0))

    def conclude(self, belief: Belief, generator: Randomness = None) -> Tensor:
        return belief.mean

    def blend(self, mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
        """mask: bool, broadcastable to the states; for clouds one per row, and the known shape stays where x has it."""
        return self.noise.blend(mask, known, x)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return self.noise.take(x, index)

    def taken(self, index: Tensor, like: Tensor) -> Self:
        view = own_view(self)
        view._modules["noise"] = self.noise.taken(index, like)
        return view
