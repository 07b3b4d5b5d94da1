"""Laws of Gaussian noise N(0, Sigma) on states: what differs between a picture, a masked series and a molecule.

A law knows how one number per example spreads over a state and how a state sums to one number per example, so it alone
does arithmetic on Gaussian states. Sigma may be singular: the law then lives on a subspace (unmasked cells, centred
coordinates) with `dof` dimensions, log_prob is the density on that subspace, and points off it are impossible.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .layout import DENSE, Layout
from .randomness import Randomness, randn

__all__ = ["Diagonal", "Isotropic", "Noise", "checked_mask", "countable", "masked", "own_view"]

M = TypeVar("M", bound=nn.Module)

ZERO = torch.zeros(())
"""0 + a x is how torch multiplies by a Python number at a third of the cost of a x."""


class Noise(nn.Module, ABC):
    """N(0, Sigma) on states of one layout: dense, (B, ...), by default."""

    layout: Layout = DENSE

    def given(self, **structure: Tensor | int) -> Self:
        """This law bound to structure (mask, graph index, ...) as an independent view; none is expected by default."""
        if structure:
            raise ArgumentError("structure", sorted(structure), f"nothing: {type(self).__name__} takes no structure")
        return self

    def examples(self, x: Tensor) -> int:
        """B, the number of examples in a state."""
        return self.layout.examples(x)

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        """(B,) numbers in x's dtype and device, shaped to broadcast over x."""
        return self.layout.spread(numbers.to(x), x)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a state's elements per example, (B,)."""
        return self.layout.total(x)

    def combine(self, *terms: tuple[float | Tensor, Tensor]) -> Tensor:
        """sum of number times state over the terms; numbers are floats or (B,) tensors. Equal states are met once."""
        weights: dict[int, tuple[float | Tensor, Tensor]] = {}
        for number, x in terms:
            known = weights.get(id(x))
            weights[id(x)] = (number, x) if known is None else (known[0] + number, x)
        (number, x), *rest = weights.values()
        if isinstance(number, Tensor):
            result = x * self.spread(number, x)
        elif number == 1.0 and rest:
            (number, y), *rest = rest
            spread = isinstance(number, Tensor)
            result = torch.addcmul(x, y, self.spread(number, y)) if spread else torch.add(x, y, alpha=number)
        else:
            result = torch.add(ZERO, x, alpha=number)
        for number, y in rest:
            self._add(result, number, y)
        return result

    def perturbed(self, scale: float | Tensor, generator: Randomness, *terms: tuple[float | Tensor, Tensor]) -> Tensor:
        """A draw from N(the sum of the terms, scale^2 Sigma); its noise comes last and is added from the cache."""
        result = self.combine(*terms)
        self._add(result, scale, self.draw(result, generator))
        return result

    def _add(self, result: Tensor, number: float | Tensor, x: Tensor) -> None:
        """result += number x, where result is fresh: in place is safe for autograd and saves a pass over memory."""
        if isinstance(number, Tensor):
            result.addcmul_(x, self.spread(number, x))
        else:
            result.add_(x, alpha=number)

    def standard(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """Independent standard normals of like's shape."""
        return self.layout.random(randn, like, generator, like.dtype)

    @abstractmethod
    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """A draw from N(0, Sigma) for every example, of like's shape, dtype and device."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """x on the support of the law."""

    @abstractmethod
    def squares(self, x: Tensor) -> Tensor:
        """x' Sigma^+ x per example, (B,)."""

    def norm(self, x: Tensor) -> Tensor:
        """The root of `squares`, (B,); its gradient is 0 where it is 0."""
        squares = self.squares(x)
        there = squares > 0
        return torch.where(there, torch.where(there, squares, 1).sqrt(), 0)

    @abstractmethod
    def dof(self, like: Tensor) -> Tensor:
        """rank of Sigma per example, (B,)."""

    @abstractmethod
    def log_det(self, like: Tensor) -> Tensor:
        """log pseudo-determinant of Sigma per example, (B,)."""

    @abstractmethod
    def deviation(self, like: Tensor) -> Tensor:
        """Standard deviation of each element, like's shape; ArgumentError where elements are not independent."""

    @abstractmethod
    def part(self, mask: Tensor) -> Noise:
        """The law of the elements where mask (bool, broadcastable to the states) is True."""

    def blend(self, mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
        """known where mask is True, x elsewhere."""
        return torch.where(mask, known, x)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """The examples numbered by index (M,), as a state of M examples."""
        return self.layout.take(x, index)

    def taken(self, index: Tensor, like: Tensor) -> Self:
        """This law bound to the structure of `take(like, index)`."""
        return self

    def supports(self, x: Tensor, mean: Tensor) -> Tensor:
        """Whether x - mean lies on the support, up to the rounding of x and mean; (B,) bool."""
        error = x - mean
        off = self.total((error - self.project(error)) ** 2)
        return off <= (64 * torch.finfo(x.dtype).eps) ** 2 * (1 + self.total(x**2 + mean**2))


class Isotropic(Noise):
    """N(0, I) on dense states."""

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return self.standard(like, generator)

    def project(self, x: Tensor) -> Tensor:
        return x

    def squares(self, x: Tensor) -> Tensor:
        return self.total(x**2)

    def norm(self, x: Tensor) -> Tensor:
        # One pass, without the squares as a state of their own.
        return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim))) if x.ndim > 1 else x.abs()

    def dof(self, like: Tensor) -> Tensor:
        return like.new_full((self.examples(like),), math.prod(like.shape[1:]), dtype=countable(like))

    def log_det(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.examples(like))

    def deviation(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)

    def part(self, mask: Tensor) -> Noise:
        return Diagonal(torch.ones(())).given(mask=mask)


class Diagonal(Noise):
    """N(0, diag(deviation^2)): elements of deviation 0 carry no noise and no probability (x is 0 there).

    Args:
        deviation: >= 0, broadcastable to the states.
    """

    def __init__(self, deviation: Tensor):
        super().__init__()
        self.register_buffer("_deviation", checked_deviation(deviation), persistent=False)
        self._deviation: Tensor

    def given(self, **structure: Tensor | int) -> Self:
        """`deviation=` or `mask=` (True = target, noised) for the batch at hand."""
        if not structure:
            return self
        if len(structure) > 1 or not structure.keys() <= {"deviation", "mask"}:
            raise ArgumentError("structure", sorted(structure), "one of deviation, mask")
        ((name, value),) = structure.items()
        view = own_view(self)
        view._deviation = checked_mask(value) if name == "mask" else checked_deviation(value)
        return view

    def deviation(self, like: Tensor) -> Tensor:
        return self._deviation.to(like).expand_as(like)

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return self.standard(like, generator) * self.deviation(like)

    def project(self, x: Tensor) -> Tensor:
        return torch.where(self.deviation(x) > 0, x, 0)

    def squares(self, x: Tensor) -> Tensor:
        deviation = self.deviation(x)
        return self.total(torch.where(deviation > 0, x / deviation.clamp_min(torch.finfo(x.dtype).tiny), 0) ** 2)

    def dof(self, like: Tensor) -> Tensor:
        return self.total((self.deviation(like) > 0).to(countable(like)))

    def log_det(self, like: Tensor) -> Tensor:
        deviation = self.deviation(like)
        return self.total(2 * torch.where(deviation > 0, deviation, 1).log())

    def part(self, mask: Tensor) -> Noise:
        view = own_view(self)
        view._deviation = checked_mask(mask).to(self._deviation) * self._deviation
        return view

    def taken(self, index: Tensor, like: Tensor) -> Self:
        if self._deviation.ndim < like.ndim or len(self._deviation) == 1:
            return self  # one deviation for all examples
        view = own_view(self)
        view._deviation = self._deviation[index]
        return view


def masked(mask: Tensor) -> Diagonal:
    """Noise on the targets only: mask is bool, broadcastable to the states, True = target; x is 0 elsewhere."""
    return Diagonal(checked_mask(mask))


def countable(like: Tensor) -> torch.dtype:
    """like's type, but at least float32: half precision does not count to 4,097."""
    return torch.promote_types(like.dtype, torch.float32)


def own_view(module: M) -> M:
    """A copy with its own dictionaries of buffers, parameters and children; the tensors themselves are shared."""
    view = copy.copy(module)
    for name in ("_buffers", "_parameters", "_modules"):
        view.__dict__[name] = dict(module.__dict__[name])
    return view


def checked_deviation(deviation: Any) -> Tensor:
    """deviation itself if it is a floating tensor of finite numbers >= 0, else an ArgumentError."""
    if not isinstance(deviation, Tensor) or not deviation.is_floating_point():
        raise ArgumentError("deviation", deviation, "a floating tensor")
    if not bool((torch.isfinite(deviation) & (deviation >= 0)).all()):
        raise ArgumentError("deviation", deviation, "finite numbers >= 0")
    return deviation


def checked_mask(mask: Any) -> Tensor:
    """mask as deviations 1 and 0, or an ArgumentError unless it is a bool tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ArgumentError("mask", mask, "a bool tensor, True where noise goes")
    return mask.to(torch.get_default_dtype())
