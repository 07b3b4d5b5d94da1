"""Distributions: small, with a generator, without validation; every number is per example, shape (B,).

`torch.distributions` is the test oracle and not used here: it takes no generator and forces host synchronisation.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from .grids import Time
from .layout import DENSE, Layout
from .noise import Noise
from .randomness import Randomness, rand

__all__ = ["Discrete", "Distribution", "Joint", "Normal", "OpenMean", "Scaled"]

X = TypeVar("X")

ROWS = 1 << 24
"""Numbers per piece in which token laws are inverted: 128 MB of float64, whatever the vocabulary."""


class Distribution(Protocol[X]):
    """A law of states."""

    @property
    def mean(self) -> X:
        """The expectation of the state (for tokens: of its one-hot vector)."""
        ...

    def sample(self, generator: Randomness = None) -> X:
        """One draw for every example."""
        ...

    def log_prob(self, x: X, mask: Any = None) -> Tensor:
        """log density or probability in nats, shape (B,); with a mask (as in `Kernel.blend`) of the part where True."""
        ...

    def kl(self, other: Any) -> Tensor:
        """KL(self || other) in nats, shape (B,); other is of the same class."""
        ...


class OpenMean(ABC):
    """What has a mean that is a sum of numbers times states, and stays open until `mean` is asked for.

    Who needs a multiple of the mean in a sum of their own takes its terms, which costs no pass over memory.
    """

    _mean: Tensor | None
    _terms: tuple[tuple[Time, Tensor], ...]
    _combine: Callable[..., Tensor]

    @property
    def mean(self) -> Tensor:
        """The mean, in the shape of the state."""
        if self._mean is None:
            # Known, it no longer needs the states that it came from.
            self._mean, self._terms = self._combine(*self._terms), ()
        return self._mean

    def times(self, number: Time) -> Iterable[tuple[Time, Tensor]]:
        """The terms of number times the mean, for `combine`."""
        if self._mean is not None:
            return ((number, self._mean),)
        return [(number * weight, x) for weight, x in self._terms]


class Normal(OpenMean):
    """N(mean, scale^2 Sigma) with Sigma from a noise law; scale a float or a tensor (B,)."""

    def __init__(self, mean: Tensor, scale: float | Tensor, noise: Noise):
        self._mean, self.scale, self.noise = mean, scale, noise

    @classmethod
    def sum(cls, noise: Noise, scale: Time, *terms: tuple[Time, Tensor]) -> Self:
        """The law whose mean is the sum of the terms."""
        law = cls.__new__(cls)
        law._mean, law._terms, law._combine = None, terms, noise.combine
        law.scale, law.noise = scale, noise
        return law

    def sample(self, generator: Randomness = None) -> Tensor:
        return self.noise.perturbed(self.scale, generator, *self.times(1.0))

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """-inf for x off the law's support."""
        if mask is not None:
            part = self.noise.part(mask)
            return Normal(part.project(self.mean), self.scale, part).log_prob(part.project(x))
        error = self.noise.combine((1.0, x), (-1.0, self.mean))
        scale = per_example(self.scale, self.noise, x)
        dof = self.noise.dof(x)
        squares = self.noise.squares(error)
        value = -(squares / scale**2 + dof * (2 * math.pi * scale**2).log() + self.noise.log_det(x)) / 2
        return value.masked_fill(~self.noise.supports(x, self.mean), -math.inf)

    def kl(self, other: Normal) -> Tensor:
        """KL in nats to a Normal of the same noise law."""
        error = self.noise.combine((1.0, self.mean), (-1.0, other.mean))
        mine, theirs = (per_example(law.scale, self.noise, self.mean) for law in (self, other))
        ratio = (mine / theirs) ** 2
        value = (self.noise.dof(self.mean) * (ratio - 1 - ratio.log()) + self.noise.squares(error) / theirs**2) / 2
        return value.masked_fill(~self.noise.supports(self.mean, other.mean), math.inf)

    def scaled(self) -> Scaled:
        """The same law with a standard deviation per element (diagonal noise laws only)."""
        return Scaled(self.mean, self.noise.combine((self.scale, self.noise.deviation(self.mean))), self.noise)


class Scaled:
    """Independent normals with a standard deviation per element, shape of the state; 0 where nothing is random."""

    def __init__(self, mean: Tensor, deviation: Tensor, noise: Noise):
        self.mean, self.deviation, self.noise = mean, deviation, noise

    def sample(self, generator: Randomness = None) -> Tensor:
        unit = self.noise.standard(self.mean, generator)
        return self.mean + self.deviation * unit

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """-inf where x differs from a mean without deviation."""
        there = self.deviation > 0
        deviation = torch.where(there, self.deviation, 1)
        terms = -(((x - self.mean) / deviation) ** 2 + (2 * math.pi * deviation**2).log()) / 2
        terms = torch.where(there, terms, torch.where(x == self.mean, 0.0, -math.inf))
        return self.noise.total(masked_terms(terms, mask))

    def kl(self, other: Scaled) -> Tensor:
        """KL in nats; inf where only one of the two is random, or both are certain of different things."""
        there = other.deviation > 0
        theirs = torch.where(there, other.deviation, 1)
        ratio = torch.where(there, self.deviation / theirs, 1) ** 2
        terms = (ratio - 1 - ratio.log() + ((self.mean - other.mean) / theirs) ** 2) / 2
        agree = (self.deviation == 0) & (self.mean == other.mean)
        return self.noise.total(torch.where(there | agree, terms, math.inf))


class Discrete:
    """Independent tokens: x long of shape (B, *dims), log-probabilities of shape (B, *dims, K), normalised.

    With a ragged layout the first dimension holds rows, and numbers per example are sums over an example's rows.
    """

    def __init__(self, log_probs: Tensor, layout: Layout = DENSE):
        self.log_probs, self.layout = log_probs, layout

    @property
    def mean(self) -> Tensor:
        """The probabilities, E[one-hot]."""
        return self.log_probs.exp()

    def sample(self, generator: Randomness = None) -> Tensor:
        """By inversion of the distribution function in float64, exact to 2^-53 for the rarest tokens."""
        return self.inverse(self.layout.random(rand, self.log_probs[..., 0], generator, torch.float64))

    def inverse(self, u: Tensor) -> Tensor:
        """The tokens at which the distribution functions pass u, float64 in [0, 1), of the shape of x."""
        K = self.log_probs.shape[-1]
        rows = self.log_probs.reshape(-1, K).split(max(1, ROWS // K))
        places = [inverted(row, v) for row, v in zip(rows, u.flatten().split(len(rows[0])), strict=True)]
        return torch.cat(places).reshape(u.shape)

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.layout.total(masked_terms(self.log_probs.gather(-1, x.unsqueeze(-1)).squeeze(-1), mask))

    def kl(self, other: Discrete) -> Tensor:
        """Terms with p = 0 count 0; p > 0 where the other has 0 gives inf."""
        p = self.log_probs.exp()
        # Masked before the product, so that no 0 times inf enters the gradient.
        return self.layout.total(p * (self.log_probs - other.log_probs).masked_fill(p == 0, 0.0))


class Joint:
    """Independent parts; states are tuples."""

    def __init__(self, parts: tuple[Any, ...]):
        self.parts = parts

    @property
    def mean(self) -> tuple[Any, ...]:
        return tuple(part.mean for part in self.parts)

    def sample(self, generator: Randomness = None) -> tuple[Any, ...]:
        return tuple(part.sample(generator) for part in self.parts)

    def log_prob(self, x: tuple[Any, ...], mask: tuple[Any, ...] | None = None) -> Tensor:
        """mask: one per part."""
        masks = mask if mask is not None else (None,) * len(self.parts)
        return total(part.log_prob(y, m) for part, y, m in zip(self.parts, x, masks, strict=True))

    def kl(self, other: Joint) -> Tensor:
        return total(mine.kl(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True))


def inverted(log_probs: Tensor, u: Tensor) -> Tensor:
    """The tokens (R,) at which R distribution functions pass u (R,)."""
    cumulative = log_probs.to(torch.float64).exp().cumsum(-1)
    # u in [0, 1) times the total; `right` skips tokens of probability 0.
    place = torch.searchsorted(cumulative, (u * cumulative[:, -1]).unsqueeze(-1), right=True)
    return place.squeeze(-1).clamp(max=log_probs.shape[-1] - 1)


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of an iterable of tensors (B,)."""
    return torch.stack(list(terms)).sum(0)


def masked_terms(terms: Tensor, mask: Tensor | None) -> Tensor:
    """Terms of the sum over elements, 0 where the mask is False."""
    return terms if mask is None else torch.where(mask, terms, 0)


def per_example(number: float | Tensor, noise: Noise, like: Tensor) -> Tensor:
    """A float or (B,) tensor as a (B,) tensor of like's dtype and device."""
    return torch.as_tensor(number, dtype=like.dtype, device=like.device).expand(noise.examples(like))
