r"""The categorical kernel with a rank-one law: keep a token with probability alpha, else draw it from pi.

    q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) pi(x_t),      alpha_t the schedule's first number.

pi uniform, a point mass at the mask token (absorbing), or the unigram law (marginal): D3PM's three structures that need
no K x K matrix (Austin et al. 2021, "Structured Denoising Diffusion Models in Discrete State-Spaces", A.2). The chain's
steps are of the same form with alpha_t / alpha_s, so all is O(K).

Beliefs are normalised log-probabilities of x_0, shape (B, *dims, K). The posterior is exact: the belief is divided by
q(x_t | x_0) before it is joined with q(x_s | x_0), so that with the true p(x_0 | x_t) the bound is tight,

    p(x_s | x_t) = q(x_t | x_s) sum_x_0 q(x_s | x_0) belief(x_0) / q(x_t | x_0).

D3PM's product rule is another reading of the network's output, offered as the denoiser parametrisation `context`.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor

from .distributions import Discrete
from .errors import ArgumentError
from .kernel import Kernel, Time, check_order
from .noise import own_view
from .randomness import Randomness
from .schedules import Schedule

__all__ = ["Categorical", "absorbing", "marginal", "uniform"]


class Categorical(Kernel[Tensor, Tensor]):
    """Tokens: states are long tensors (B, *dims) in 0 ... K - 1, beliefs log-probabilities (B, *dims, K).

    Args:
        schedule: alpha_t is the probability that a token has survived; alpha_1 = 0 unless pi > 0 everywhere.
        pi: the stationary law, (K,), sums to 1.
    """

    def __init__(self, schedule: Schedule, pi: Tensor):
        super().__init__()
        pi = pi.detach().to(torch.float64)
        if pi.ndim != 1 or not bool((pi >= 0).all()) or abs(float(pi.sum()) - 1) > 1e-6:
            raise ArgumentError("pi", pi, "probabilities (K,) that sum to 1")
        alpha_1 = float(schedule(torch.ones((), dtype=torch.float64))[0])
        if alpha_1 > 0 and bool((pi == 0).any()):
            # Clamping would hide that the prior's KL is infinite.
            raise ArgumentError("schedule", alpha_1, "alpha_1 = 0 exactly, since pi is 0 for some token")
        self.schedule = schedule
        self.register_buffer("log_pi", (pi / pi.sum()).log(), persistent=False)
        self.log_pi: Tensor

    @property
    def K(self) -> int:
        """The size of the vocabulary, the mask included."""
        return len(self.log_pi)

    def given(self, **structure: Any) -> Self:
        if structure:
            raise ArgumentError("structure", sorted(structure), "nothing: tokens take no structure")
        return own_view(self)

    def examples(self, x: Tensor) -> int:
        return x.shape[0]

    def dims(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), math.prod(x.shape[1:]), dtype=torch.get_default_dtype(), device=x.device)

    def certain(self, x_0: Tensor) -> Tensor:
        if x_0.dtype != torch.long:
            raise ArgumentError("tokens", x_0, "a long tensor")
        if x_0.device.type == "cpu" and x_0.numel() and not 0 <= int(x_0.min()) <= int(x_0.max()) < self.K:
            raise ArgumentError("tokens", (int(x_0.min()), int(x_0.max())), f"values in 0 ... {self.K - 1}")
        hot = torch.nn.functional.one_hot(x_0, self.K)
        return torch.zeros_like(hot, dtype=torch.float64).masked_fill(hot == 0, -math.inf)

    def prior(self, like: Tensor) -> Discrete:
        return Discrete(self.log_pi.expand(*like.shape, self.K))

    def marginal(self, x_0: Tensor, t: Time) -> Discrete:
        return Discrete(self._mix(self.certain(x_0), self._survival(t)))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Discrete:
        check_order(s, t)
        return Discrete(self._mix(self.certain(x_s), self._survival(t, s)))

    def posterior(self, x_t: Tensor, belief: Tensor, s: Time, t: Time) -> Discrete:
        check_order(s, t)
        possible = self._evidence(x_t, self._survival(t))
        joined = torch.where(possible > -math.inf, belief - possible, -math.inf)
        alpha_s = self._survival(s)
        rows = self._rows(alpha_s, belief)
        through_pi = self.log_pi.to(belief) + joined.logsumexp(-1, keepdim=True)
        forward = log_add(log(rows).to(belief) + joined, log(1 - rows).to(belief) + through_pi)
        return Discrete(normalised(forward + self._evidence(x_t, self._survival(t, s)).to(belief)))

    def likelihood(self, belief: Tensor, t: Time) -> Discrete:
        return Discrete(belief)

    def conclude(self, belief: Tensor, generator: Randomness = None) -> Tensor:
        return Discrete(belief).sample(generator)

    def blend(self, mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
        return torch.where(mask, known, x)

    def error(self, x_0: Tensor, belief: Tensor, t: Time) -> Tensor:
        """Cross-entropy in nats, summed over tokens, (B,)."""
        return -Discrete(belief).log_prob(x_0)

    def evidence(self, x_t: Tensor, t: Time) -> Tensor:
        """log q(x_t | x_0 = k) for every k, (B, *dims, K): what a `context` denoiser is multiplied by."""
        return self._evidence(x_t, self._survival(t))

    def _survival(self, t: Time, s: Time | None = None) -> Tensor:
        """alpha_t, or alpha_t / alpha_s, float64, () or (B,)."""
        alpha_t, _ = self.schedule(torch.as_tensor(t, dtype=torch.float64))
        return alpha_t if s is None else alpha_t / self.schedule(torch.as_tensor(s, dtype=torch.float64))[0]

    def _rows(self, survival: Tensor, like: Tensor) -> Tensor:
        """() or (B,) numbers as float64 that broadcast over (B, *dims, K)."""
        return survival.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))

    def _mix(self, certain: Tensor, survival: Tensor) -> Tensor:
        """log(survival [k = x] + (1 - survival) pi_k) over k."""
        rows = self._rows(survival, certain)
        return log_add(log(rows) + certain, log(1 - rows) + self.log_pi)

    def _evidence(self, x: Tensor, survival: Tensor) -> Tensor:
        """log(survival [x = k] + (1 - survival) pi_x) over k: the column of x."""
        certain = self.certain(x)
        rows = self._rows(survival, certain)
        return log_add(log(rows) + certain, log(1 - rows) + self.log_pi[x].unsqueeze(-1))


def uniform(schedule: Schedule, K: int) -> Categorical:
    """pi = 1/K (multinomial diffusion, Hoogeboom et al. 2021)."""
    return Categorical(schedule, torch.full((K,), 1 / K, dtype=torch.float64))


def absorbing(schedule: Schedule, K: int, mask: int) -> Categorical:
    """pi a point mass at token `mask`; K counts the mask."""
    if not 0 <= mask < K:
        raise ArgumentError("mask", mask, f"a token in 0 ... {K - 1}")
    return Categorical(schedule, torch.nn.functional.one_hot(torch.tensor(mask), K).to(torch.float64))


def marginal(schedule: Schedule, counts: Tensor) -> Categorical:
    """pi the unigram law of token counts (K,) (the noise of DiGress, Vignac et al. 2023)."""
    counts = counts.to(torch.float64)
    if counts.ndim != 1 or not bool((counts >= 0).all()) or not float(counts.sum()) > 0:
        raise ArgumentError("counts", counts, "counts (K,) >= 0, not all 0")
    return Categorical(schedule, counts / counts.sum())


def normalised(log_weights: Tensor) -> Tensor:
    """log-probabilities over the last dimension; -inf throughout where the event conditioned on is impossible."""
    impossible = (log_weights == -math.inf).all(-1, keepdim=True)
    return log_weights.masked_fill(impossible, 0.0).log_softmax(-1).masked_fill(impossible, -math.inf)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b) whose gradient is 0, not NaN, where both are -inf."""
    impossible = torch.maximum(a, b) == -math.inf
    return torch.logaddexp(a.masked_fill(impossible, 0.0), b.masked_fill(impossible, 0.0)).masked_fill(
        impossible, -math.inf
    )


def log(x: Tensor) -> Tensor:
    """log with -inf at 0 and below (rounding)."""
    return x.clamp_min(0).log()
