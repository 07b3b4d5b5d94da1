r"""Tokens: the laws that every chain of symbols shares, and the chain of rank one.

Each position runs its own Markov chain with transition matrices Q_{t|s} (K, K), rows that sum to 1. A chain in
continuous time has a rate matrix R and a clock tau_t = -log alpha_t, alpha_t the schedule's first number:

    Q_{t|s} = exp((tau_t - tau_s) R),      Q_{1|0} = 1 pi' where alpha_1 = 0.

Beliefs are normalised log-probabilities of x_0, shape (B, *dims, K). The posterior is exact: the belief is divided by
q(x_t | x_0) before it is joined with q(x_s | x_0), so that with the true p(x_0 | x_t) the bound is tight,

    p(x_s | x_t) = q(x_t | x_s) sum_x_0 q(x_s | x_0) belief(x_0) / q(x_t | x_0).

D3PM's product rule is another reading of the network's output, offered as the denoiser parametrisation `context`. As
s -> t the same quotient becomes the concrete score s_y = sum_x_0 belief(x_0) q_t(y | x_0) / q_t(x_t | x_0), with which
the reversed chain jumps from x_t to y at the rate R_t(y, x_t) s_y; r_y is that of one who knows x_0. The bound's rate

    gap_rate = sum over y != x_t of R_t(y, x_t) (s_y - r_y log s_y + r_y log r_y - r_y)

is the score entropy (Campbell et al. 2022, prop. 2; Lou et al. 2024, eq. 9).

`Categorical` has R = 1 pi' - I: q(x_t | x_s) keeps a token with probability alpha_t / alpha_s, else draws it from pi.
pi uniform, a point mass at the mask token (absorbing), or the unigram law (marginal): D3PM's three structures that need
no K x K matrix (Austin et al. 2021, "Structured Denoising Diffusion Models in Discrete State-Spaces", A.2), O(K).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from .distributions import Discrete
from .errors import ArgumentError
from .kernel import Kernel, Time, check_order, interior
from .layout import DENSE, Layout, Ragged
from .noise import own_view
from .randomness import Randomness
from .schedules import Schedule, time_of

__all__ = ["Categorical", "Tokens", "absorbing", "log_add", "marginal", "normalised", "uniform"]


class Tokens(Kernel[Tensor, Tensor], ABC):
    """A chain per position: states are long tensors (B, *dims) in 0 ... K - 1, beliefs log-probabilities (B, *dims, K).

    Or ragged, `given(index=..., num_graphs=...)`: the rows of all examples one after another, (rows, *dims) and (rows,
    *dims, K), with times and sums per example as ever (atom types beside positions).

    A chain supplies `rows`, `columns`, `push` and `rates`. All of them give logarithms, -inf for what is impossible, in
    the dtype asked for (`push`: that of its argument); s may be 0. Their times are per row of the state, which `at`
    makes of times per example: a chain knows no examples.

    Args:
        schedule: alpha_t, the chain's clock; alpha_1 = 0 unless pi > 0 everywhere.
        pi: the stationary law, (K,), sums to 1.
    """

    layout: Layout = DENSE

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
        self._mask = int(pi.argmax()) if int((pi > 0).sum()) == 1 else None

    @property
    def K(self) -> int:
        """The size of the vocabulary, the mask included."""
        return len(self.log_pi)

    @property
    def mask(self) -> int | None:
        """The symbol that every token ends as, where there is one (absorbing chains)."""
        return self._mask

    @abstractmethod
    def rows(self, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log Q_{t|s}[x, k] for every k, (B, *dims, K)."""

    @abstractmethod
    def columns(self, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log Q_{t|s}[k, x] for every k, (B, *dims, K)."""

    @abstractmethod
    def push(self, log_w: Tensor, s: Time, t: Time) -> Tensor:
        """log sum_j e^{log_w_j} Q_{t|s}[j, k] for every k, (B, *dims, K); the weights need not be normalised."""

    @abstractmethod
    def rates(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log R_t[k, x], the rate of jumps from k into x per unit of t, for every k != x, -inf at x; (B, *dims, K)."""

    def given(self, **structure: Any) -> Self:
        """`index=` (rows,) long, ascending, and `num_graphs=` B for ragged states; nothing for dense ones."""
        view = own_view(self)
        if structure:
            view.layout = Ragged.given(structure)
        return view

    def at(self, t: Time) -> Time:
        """A time per example as a time per row of the state; floats as they are."""
        return self.layout.rowwise(t)

    def examples(self, x: Tensor) -> int:
        return self.layout.examples(x)

    def dims(self, x: Tensor) -> Tensor:
        return self.layout.numel(x).to(torch.get_default_dtype())

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return self.layout.take(x, index)

    def taken(self, index: Tensor, like: Tensor) -> Self:
        view = own_view(self)
        view.layout = self.layout.taken(index)
        return view

    def certain(self, x_0: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        place = self.check(x_0).unsqueeze(-1)
        return torch.full((*x_0.shape, self.K), -math.inf, dtype=dtype, device=x_0.device).scatter_(-1, place, 0.0)

    def prior(self, like: Tensor) -> Discrete:
        return Discrete(self.log_pi.expand(*like.shape, self.K), self.layout)

    def marginal(self, x_0: Tensor, t: Time) -> Discrete:
        return Discrete(self.rows(x_0, 0.0, self.at(t)), self.layout)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Discrete:
        check_order(s, t)
        return Discrete(self.rows(x_s, self.at(s), self.at(t)), self.layout)

    def posterior(self, x_t: Tensor, belief: Tensor, s: Time, t: Time) -> Discrete:
        check_order(s, t)
        forward = self.push(self._joined(x_t, belief, t), 0.0, self.at(s))
        backward = self.columns(x_t, self.at(s), self.at(t), belief.dtype)
        return Discrete(normalised(forward + backward), self.layout)

    def likelihood(self, belief: Tensor, t: Time) -> Discrete:
        return Discrete(belief, self.layout)

    def conclude(self, belief: Tensor, generator: Randomness = None) -> Tensor:
        return Discrete(belief, self.layout).sample(generator)

    def blend(self, mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
        return torch.where(mask, known, x)

    def error(self, x_0: Tensor, belief: Tensor, t: Time) -> Tensor:
        """Cross-entropy in nats, summed over tokens, (B,)."""
        return -Discrete(belief, self.layout).log_prob(x_0)

    def evidence(self, x_t: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(x_t | x_0 = k) for every k, (B, *dims, K): what a `context` denoiser is multiplied by."""
        return self.columns(x_t, 0.0, self.at(t), dtype)

    def score(self, x_t: Tensor, belief: Tensor, t: Time) -> Tensor:
        """log s_y for every y that can become x_t, (B, *dims, K): how many times likelier y is than x_t (SEDD)."""
        return self.push(self._joined(x_t, belief, t), 0.0, self.at(t))

    def gap(self, x_t: Tensor, x_0: Tensor, belief: Tensor, s: Time, t: Time) -> Tensor:
        truth = self.posterior(x_t, self.certain(x_0, belief.dtype), s, t)
        reverse: Any = self.reverse(x_t, belief, s, t)
        return truth.kl(reverse)

    def gap_rate(self, x_t: Tensor, x_0: Tensor, belief: Tensor, t: Time) -> Tensor:
        """The score entropy in nats per unit of t, (B,); finite at both ends of time."""
        t = interior(t, belief.dtype)
        log_s = self.score(x_t, belief, t)
        log_r = self.score(x_t, self.certain(x_0, belief.dtype), t)
        log_rate = self.rates(x_t, self.at(t), belief.dtype)
        return self.layout.total(divergence(log_rate + log_r, log_rate + log_s))

    def pace(self, share: Tensor, low: float) -> tuple[Tensor, Tensor]:
        """Evenly in alpha_t, in which an absorbing chain unmasks evenly."""
        first, last = self._survivals(low)
        t = interior(time_of(lambda u: self.schedule(u)[0], first + (last - first) * share))
        return t, 1 / self.share(t, low)[1]

    def share(self, t: Tensor, low: float) -> tuple[Tensor, Tensor]:
        t, (first, last) = interior(t), self._survivals(low)
        alpha_t = self.schedule(t)[0]
        return (alpha_t - first) / (last - first), alpha_t * self.schedule.drift(t) / (last - first)

    def _survivals(self, low: float) -> list[float]:
        """alpha at both ends of time."""
        ends = torch.tensor([max(low, self.schedule.t_min), 1.0], dtype=torch.float64)
        return self.schedule(ends)[0].tolist()

    def check(self, x: Tensor) -> Tensor:
        """x itself, or an ArgumentError unless its entries are tokens (values on the CPU only: no synchronisation)."""
        if x.dtype != torch.long:
            raise ArgumentError("tokens", x, "a long tensor")
        if x.device.type == "cpu" and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.K:
            raise ArgumentError("tokens", (int(x.min()), int(x.max())), f"values in 0 ... {self.K - 1}")
        return x

    def _joined(self, x_t: Tensor, belief: Tensor, t: Time) -> Tensor:
        """log belief(x_0) / q(x_t | x_0), -inf where x_t rules x_0 out."""
        possible = self.evidence(x_t, t, belief.dtype)
        return torch.where(possible > -math.inf, belief - possible, -math.inf)


class Categorical(Tokens):
    """Keep a token with probability alpha_t / alpha_s, else draw it from pi; arguments as `Tokens`."""

    def rows(self, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        kept = self._kept(s, t, x.unsqueeze(-1))
        return self._planted(log(1 - kept) + self.log_pi, kept, x, dtype)

    def columns(self, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        kept = self._kept(s, t, self.check(x).unsqueeze(-1))
        return self._planted(log(1 - kept) + self.log_pi[x].unsqueeze(-1), kept, x, dtype)

    def push(self, log_w: Tensor, s: Time, t: Time) -> Tensor:
        kept = self._kept(s, t, log_w)
        through_pi = self.log_pi.to(log_w) + log_w.logsumexp(-1, keepdim=True)
        return log_add(log(kept).to(log_w) + log_w, log(1 - kept).to(log_w) + through_pi)

    def rates(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        drift = self.schedule.drift(torch.as_tensor(t, dtype=torch.float64)).to(x.device)
        into = log(-drift).reshape(-1, *(1,) * x.ndim) + self.log_pi[self.check(x)].unsqueeze(-1)
        return into.to(dtype).expand(*x.shape, self.K).scatter(-1, x.unsqueeze(-1), -math.inf)

    def _kept(self, s: Time, t: Time, like: Tensor) -> Tensor:
        """alpha_t / alpha_s as float64 that broadcasts over `like`, (B or 1, 1, ...)."""
        alpha_s, alpha_t = (self.schedule(torch.as_tensor(u, dtype=torch.float64))[0] for u in (s, t))
        return (alpha_t / alpha_s).to(like.device).reshape(-1, *(1,) * (like.ndim - 1))

    def _planted(self, fresh: Tensor, kept: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The law of fresh tokens over k, with what has survived added at k = x."""
        place, shape = self.check(x).unsqueeze(-1), (*x.shape, self.K)
        hit = log_add(log(kept), fresh.expand(shape).gather(-1, place))
        return fresh.to(dtype).expand(shape).scatter(-1, place, hit.to(dtype))


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


def divergence(log_r: Tensor, log_s: Tensor) -> Tensor:
    """r log(r/s) - r + s >= 0, the divergence of rates, elementwise; accurate where r and s nearly agree."""
    there = (log_r > -math.inf) & (log_s > -math.inf)
    d = (log_s - log_r).masked_fill(~there, 0.0)
    near = d.abs() < 0.5
    small = d.masked_fill(~near, 0.0)
    r, s = log_r.exp(), log_s.exp()
    apart = (s - r * (1 + d)).masked_fill(~there, 0.0)
    value = torch.where(near, r * (torch.expm1(small) - small), apart)
    # Only one of the two is possible: the rate itself, or infinity.
    alone = torch.where(log_r > -math.inf, math.inf, s)
    return torch.where(there, value, alone)


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
