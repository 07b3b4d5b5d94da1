"""Laws of Gaussian noise N(0, Sigma) on states: what differs between a picture, a masked series and a molecule.

A law knows how one number per example spreads over a state and how a state sums to one number per example, so it alone
does arithmetic on Gaussian states. Sigma may be singular: the law then lives on a subspace (unmasked cells, centred
coordinates) with `dof` dimensions, log_prob is the density on that subspace, and points off it are impossible.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from .errors import ArgumentError
from .randomness import Randomness, randn

__all__ = ["Centred", "Diagonal", "Isotropic", "Noise", "masked", "own_view"]

M = TypeVar("M", bound=nn.Module)

ZERO = torch.zeros(())
"""0 + a x is how torch multiplies by a Python number at a third of the cost of a x."""


class Noise(nn.Module, ABC):
    """N(0, Sigma). Defaults are those of a dense state (B, ...), examples along the first dimension."""

    def given(self, **structure: Tensor | int) -> Self:
        """This law bound to structure (mask, graph index, ...) as an independent view; none is expected by default."""
        if structure:
            raise ArgumentError("structure", sorted(structure), f"nothing: {type(self).__name__} takes no structure")
        return self

    def examples(self, x: Tensor) -> int:
        """B, the number of examples in a state."""
        return x.shape[0]

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        """(B,) numbers in x's dtype and device, shaped to broadcast over x."""
        return numbers.to(device=x.device, dtype=x.dtype).reshape(-1, *(1,) * (x.ndim - 1))

    def total(self, x: Tensor) -> Tensor:
        """The sum of a state's elements per example, (B,)."""
        return x.flatten(1).sum(1)

    def combine(self, *terms: tuple[float | Tensor, Tensor]) -> Tensor:
        """sum of number times state over the terms; numbers are floats or (B,) tensors. Equal states are met once."""
        weights: dict[int, tuple[float | Tensor, Tensor]] = {}
        for number, x in terms:
            known = weights.get(id(x))
            weights[id(x)] = (number, x) if known is None else (known[0] + number, x)
        result = None
        for number, x in weights.values():
            # From the second term on result is fresh: adding in place is safe for autograd and saves a pass over memory.
            if not isinstance(number, Tensor):
                result = torch.add(ZERO, x, alpha=number) if result is None else result.add_(x, alpha=number)
            else:
                rows = self.spread(number, x)
                result = x * rows if result is None else result.addcmul_(x, rows)
        if result is None:
            raise ArgumentError("terms", terms, "at least one")
        return result

    def standard(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """Independent standard normals of like's shape."""
        return randn(like.shape, generator, dtype=like.dtype, device=like.device)

    @abstractmethod
    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """A draw from N(0, Sigma) for every example, of like's shape, dtype and device."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """x on the support of the law."""

    @abstractmethod
    def squares(self, x: Tensor) -> Tensor:
        """x' Sigma^+ x per example, (B,)."""

    @abstractmethod
    def dof(self, like: Tensor) -> Tensor:
        """rank of Sigma per example, (B,)."""

    @abstractmethod
    def log_det(self, like: Tensor) -> Tensor:
        """log pseudo-determinant of Sigma per example, (B,)."""

    @abstractmethod
    def deviation(self, like: Tensor) -> Tensor:
        """Standard deviation of each element, like's shape; ArgumentError where elements are not independent."""

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

    def dof(self, like: Tensor) -> Tensor:
        return like.new_full((self.examples(like),), like[0].numel())

    def log_det(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.examples(like))

    def deviation(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)


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
        return self.total((self.deviation(like) > 0).to(like.dtype))

    def log_det(self, like: Tensor) -> Tensor:
        deviation = self.deviation(like)
        return self.total(2 * torch.where(deviation > 0, deviation, 1).log())


def masked(mask: Tensor) -> Diagonal:
    """Noise on the targets only: mask is bool, broadcastable to the states, True = target; x is 0 elsewhere."""
    return Diagonal(checked_mask(mask))


class Centred(Noise):
    """Isotropic noise without centre of mass on ragged batches of point clouds: 3 (N - 1) degrees of freedom each.

    States have shape (rows, D), rows of all clouds one after another; `given(index=..., num_graphs=...)` tells whose
    row is whose. The density is that on the subspace of centred clouds (Satorras et al. 2021, "E(n) Equivariant
    Normalizing Flows"; Xu et al. 2022, GeoDiff, sec. 4.3), whose orthonormal coordinates make log det Sigma = 0.
    """

    def __init__(self, index: Tensor | None = None, num_graphs: int | None = None):
        super().__init__()
        index = torch.zeros(0, dtype=torch.long) if index is None else index
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor
        self.num_graphs = checked_graphs(index, num_graphs)

    def given(self, **structure: Tensor | int) -> Self:
        """`index=` (rows,) long, ascending, and `num_graphs=` B."""
        if not structure:
            return self
        index, count = structure.get("index"), structure.get("num_graphs")
        if structure.keys() != {"index", "num_graphs"} or not isinstance(index, Tensor) or not isinstance(count, int):
            raise ArgumentError("structure", sorted(structure), "index (rows,) and num_graphs")
        view = own_view(self)
        view.index, view.num_graphs = index, checked_graphs(index, count)
        return view

    def examples(self, x: Tensor) -> int:
        if len(x) != len(self.index):
            raise ArgumentError("x", x, f"{len(self.index)} rows, those of `given(index=..., num_graphs=...)`")
        return self.num_graphs

    def spread(self, numbers: Tensor, x: Tensor) -> Tensor:
        numbers = numbers.to(device=x.device, dtype=x.dtype)
        return (numbers.expand(self.num_graphs)[self.index] if numbers.ndim else numbers.expand(len(x))).unsqueeze(1)

    def total(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.num_graphs).index_add(0, self.index, x.sum(1))

    def counts(self, x: Tensor) -> Tensor:
        """Rows per example, (B,)."""
        return x.new_zeros(self.num_graphs).index_add(0, self.index, x.new_ones(len(x)))

    def standard(self, like: Tensor, generator: Randomness = None) -> Tensor:
        if generator is None or isinstance(generator, torch.Generator):
            return randn(like.shape, generator, dtype=like.dtype, device=like.device)
        if len(generator) != self.examples(like):
            raise ArgumentError("generator", f"{len(generator)} generators", f"one per graph, {self.num_graphs}")
        sizes = self.counts(like).long().tolist()
        draws = [
            randn((size, like.shape[1]), one, dtype=like.dtype, device=like.device)
            for size, one in zip(sizes, generator, strict=True)
        ]
        return torch.cat(draws)

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return self.project(self.standard(like, generator))

    def project(self, x: Tensor) -> Tensor:
        sums = x.new_zeros(self.num_graphs, x.shape[1]).index_add(0, self.index, x)
        return x - (sums / self.counts(x).clamp_min(1).unsqueeze(1))[self.index]

    def squares(self, x: Tensor) -> Tensor:
        return self.total(self.project(x) ** 2)

    def dof(self, like: Tensor) -> Tensor:
        return (self.counts(like) - 1).clamp_min(0) * like.shape[1]

    def log_det(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.num_graphs)

    def deviation(self, like: Tensor) -> Tensor:
        raise ArgumentError("noise", type(self).__name__, "a diagonal law: centred elements are not independent")


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


def checked_graphs(index: Tensor, num_graphs: int | None) -> int:
    """The number of graphs, or an ArgumentError unless index ascends within 0 ... num_graphs - 1."""
    count = (int(index.max()) + 1 if len(index) else 0) if num_graphs is None else num_graphs
    if index.ndim != 1 or index.dtype != torch.long or bool((index[1:] < index[:-1]).any()):
        raise ArgumentError("index", index, "a long tensor (rows,) that ascends")
    if len(index) and (int(index[0]) < 0 or int(index[-1]) >= count):
        raise ArgumentError("num_graphs", num_graphs, f"more than the largest index {int(index[-1])}")
    return count
