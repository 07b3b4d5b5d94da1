"""The protocol: what a domain's mathematics must supply so that every generic method runs on it.

A kernel holds the laws of one forward process: marginal q(x_t | x_0), transition q(x_t | x_s), posterior
q(x_s | x_t, x_0) and prior, for s < t. A belief is what a denoiser says about x_0 given x_t: E[phi(x_0) | x_t] with phi
the identity (Gaussian) or one-hot (tokens). Two laws tie the pieces together and are tested for every kernel:

    1. log q(x_s | x_0) + log q(x_t | x_s) = log q(x_t | x_0) + log q(x_s | x_t, x_0)           (Bayes)
    2. posterior(belief) = sum_x_0 belief(x_0) posterior(certain(x_0)) for tokens, linear for Gaussians.

Algorithms never do arithmetic on states; only kernels do. A `Path` is the weaker thing that suffices for training and
ODE solvers: a pairing of data with noise, or with other data, without densities.

Times are floats (one for the whole batch: coefficients come from a table and cost no tensor arithmetic) or float64
tensors (B,), one per example. Every number about an example is a tensor (B,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from .distributions import Distribution
from .errors import ArgumentError
from .grids import Time
from .randomness import Randomness
from .schedules import Schedule

__all__ = ["Kernel", "Memo", "Path", "Time", "interior"]

X = TypeVar("X")
B = TypeVar("B")


class Path(nn.Module, ABC, Generic[X]):
    """x_t = alpha_t x_0 + sigma_t x_1 for paired ends: enough for flow matching, bridges and ODE solvers."""

    schedule: Schedule

    @abstractmethod
    def given(self, **structure: Any) -> Self:
        """This path bound to structure (mask, graph index): an independent view, parameters shared."""

    @abstractmethod
    def pair(self, x_0: X, generator: Randomness = None) -> X:
        """x_1 for every x_0."""

    @abstractmethod
    def combine(self, *terms: tuple[Time, X]) -> X:
        """sum of number times state; numbers are floats or tensors (B,)."""

    def project(self, x: X) -> X:
        """x on the space where the path lives (centred, unmasked); the whole space by default."""
        return x

    @abstractmethod
    def examples(self, x: X) -> int:
        """B, the number of examples in a state."""

    @abstractmethod
    def dims(self, x: X) -> Tensor:
        """Dimensions per example (B,): degrees of freedom, or tokens. The d of bits per dimension."""

    @abstractmethod
    def error(self, x_0: X, belief: Any, t: Time) -> Tensor:
        """Loss of a belief, summed over an example's dimensions, (B,)."""

    def interpolate(self, x_0: X, x_1: X, t: Tensor, generator: Randomness = None) -> X:
        """x_t on the path between the two ends; `generator` for paths that are noisy between given ends."""
        alpha_t, sigma_t = self.schedule(t)
        return self.combine((alpha_t, x_0), (sigma_t, x_1))


class Kernel(nn.Module, ABC, Generic[X, B]):
    """The laws of one forward process on states X with beliefs B."""

    @abstractmethod
    def given(self, **structure: Any) -> Self:
        """This kernel bound to structure (mask, graph index, prior scale): an independent view, parameters shared."""

    @abstractmethod
    def examples(self, x: X) -> int:
        """B, the number of examples in a state."""

    @abstractmethod
    def dims(self, x: X) -> Tensor:
        """Dimensions per example, (B,)."""

    @abstractmethod
    def certain(self, x_0: X) -> B:
        """The belief of one who knows x_0."""

    @abstractmethod
    def prior(self, like: X) -> Distribution[X]:
        """p(x_1), for as many examples as `like` has."""

    @abstractmethod
    def marginal(self, x_0: X, t: Time) -> Distribution[X]:
        """q(x_t | x_0)."""

    @abstractmethod
    def transition(self, x_s: X, s: Time, t: Time) -> Distribution[X]:
        """q(x_t | x_s), s < t."""

    @abstractmethod
    def posterior(self, x_t: X, belief: B, s: Time, t: Time) -> Distribution[X]:
        """q(x_s | x_t, x_0) with x_0 integrated over the belief, 0 < s < t."""

    @abstractmethod
    def likelihood(self, belief: B, t: Time) -> Distribution[X]:
        """p(x_0 | x_t), the ELBO's last term."""

    @abstractmethod
    def conclude(self, belief: B, generator: Randomness = None) -> X:
        """x_0 at the end of sampling: the mean (Gaussian) or a draw (tokens)."""

    @abstractmethod
    def blend(self, mask: Any, known: X, x: X) -> X:
        """known where mask is True, x elsewhere, in the state's own geometry; mask a bool tensor, or one per part."""

    @abstractmethod
    def error(self, x_0: X, belief: B, t: Time) -> Tensor:
        """Loss of a belief, summed over an example's dimensions, (B,): squared error, cross-entropy, their sums."""

    def take(self, x: X, index: Tensor) -> X:
        """The examples numbered by index (M,), repeats allowed, as a state of M examples."""
        return x[index]  # pyright: ignore[reportIndexIssue]

    def taken(self, index: Tensor, like: X) -> Self:
        """This kernel for `take(like, index)`: bound to the structure of those examples."""
        return self

    def reverse(self, x_t: X, belief: B, s: Time, t: Time) -> Distribution[X]:
        """p(x_s | x_t); default the posterior, overridden by learned variances."""
        return self.posterior(x_t, belief, s, t)

    def gap(self, x_t: X, x_0: X, belief: B, s: Time, t: Time) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in nats, (B,)."""
        return self.posterior(x_t, self.certain(x_0), s, t).kl(self.reverse(x_t, belief, s, t))

    @abstractmethod
    def gap_rate(self, x_t: X, x_0: X, belief: B, t: Time) -> Tensor:
        """The limit of gap / (t - s) as s rises to t, nats per unit of t, (B,): the continuous bound's integrand."""

    def pace(self, share: Tensor, low: float) -> tuple[Tensor, Tensor]:
        """Where to meet `gap_rate` in [max(low, t_min), 1] so that it varies little: (t, dt/dshare).

        Args:
            share: (B,) float64 in [0, 1]; t runs from one end of time to the other with it.
            low: where diffusion ends, > 0.
        """
        ends: Any = self
        first = max(low, ends.schedule.t_min)
        return first + (1 - first) * share, torch.full_like(share, 1 - first)

    def share(self, t: Tensor, low: float) -> tuple[Tensor, Tensor]:
        """The inverse of `pace`: (share, dshare/dt) at t, (B,) float64; the second is the density of t."""
        ends: Any = self
        first = max(low, ends.schedule.t_min)
        return (t - first) / (1 - first), torch.full_like(t, 1 / (1 - first))


class Memo:
    """Coefficients by time. Tensors in, tensors out; floats are computed once in float64 and remembered as floats.

    A learned schedule changes between calls, so nothing is remembered for it; to differentiate in it, give tensors.
    Solvers that choose their own times never ask for them again: beyond `MOST` all are forgotten.
    """

    MOST = 1 << 14

    def __init__(self, compute: Callable[..., tuple[Tensor, ...]], fixed: bool):
        self.compute, self.fixed = compute, fixed
        self.known: dict[tuple[float, ...], tuple[float, ...]] = {}

    def __call__(self, *times: Time) -> tuple[Any, ...]:
        if any(isinstance(t, Tensor) for t in times):
            return self.compute(*(torch.as_tensor(t, dtype=torch.float64) for t in times))
        numbers = self.known.get(times)  # pyright: ignore[reportArgumentType]
        if numbers is None:
            with torch.no_grad():
                values = self.compute(*(torch.tensor(t, dtype=torch.float64) for t in times))
            numbers = tuple(value.item() for value in values)
            if self.fixed:
                if len(self.known) >= self.MOST:
                    self.known.clear()
                self.known[times] = numbers  # pyright: ignore[reportArgumentType]
        return numbers


def interior(t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
    """t as float64, kept one rounding of `dtype` away from both ends of time, where rates have limits but no values."""
    least = 2.0**-53
    most = 1 - (least if dtype == torch.float64 else 2.0**-24)
    return torch.as_tensor(t, dtype=torch.float64).clamp(least, most)


def check_order(s: Time, t: Time) -> None:
    """An ArgumentError unless 0 <= s < t <= 1 (numbers only: tensors would force a synchronisation)."""
    if not isinstance(s, Tensor) and not isinstance(t, Tensor) and not 0 <= s < t <= 1:
        raise ArgumentError("s, t", (s, t), "0 <= s < t <= 1")
