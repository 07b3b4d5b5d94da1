r"""e^{tau R} for a rate matrix R, as it acts on weights: three ways, each with only what is affordable at its size.

With q the largest rate of leaving a state, P = I + R/q is a stochastic matrix, and (uniformisation; Jensen 1953)

    e^{tau R} = e^{-q tau} sum_n (q tau)^n / n! P^n

has no negative term, so that even the smallest probability keeps its relative accuracy.

`Squaring`        the whole matrix: the series for tau / 2^m, squared m times. For small K.
`Spectrum`        eigenvectors of a symmetric R, computed once. Probabilities are exact to about 1e-15 absolutely.
`Uniformisation`  the series itself, on weights, with a sparse P. Exact to 1e-30 absolutely, and relatively above that.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

__all__ = ["Cache", "Exponential", "Spectrum", "Squaring", "Uniformisation"]


class Cache:
    """Matrices by key, the least recently used forgotten beyond a number of bytes."""

    def __init__(self, limit: int = 2**28):
        self.limit, self.held = limit, 0
        self.known: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __call__(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        value = self.known.get(key)
        if value is None:
            value = self.known[key] = compute()
            self.held += value.nbytes
        self.known.move_to_end(key)
        while self.held > self.limit and len(self.known) > 1:
            self.held -= self.known.popitem(last=False)[1].nbytes
        return value


def stochastic(matrix: Tensor) -> Tensor:
    """The matrix with rows scaled to sum 1, where they do so up to rounding."""
    return matrix / matrix.sum(-1, keepdim=True)


class Exponential(nn.Module, ABC):
    """How e^{tau R} and R act on weights w (B, N, K) >= 0, float64."""

    @abstractmethod
    def forward(self, weights: Tensor, tau: Tensor, transposed: bool = False) -> Tensor:
        """w e^{tau R}, or w e^{tau R'}; tau (B,) or (1,), finite, on the CPU."""

    @abstractmethod
    def generator(self, weights: Tensor, transposed: bool = False) -> Tensor:
        """w R, or w R'."""


class Squaring(Exponential):
    """By scaling and squaring of non-negative matrices.

    Args:
        rate: R (K, K), float64.
    """

    ORDER = 18

    def __init__(self, rate: Tensor):
        super().__init__()
        K = len(rate)
        self.fastest = float(-rate.diagonal().min())
        jump = torch.eye(K, dtype=torch.float64, device=rate.device) + rate / self.fastest
        powers = [torch.eye(K, dtype=torch.float64, device=rate.device)]
        for n in range(1, self.ORDER + 1):
            powers.append(powers[-1] @ jump.clamp_min(0) / n)
        self.register_buffer("rate", rate, persistent=False)
        self.register_buffer("powers", torch.stack(powers), persistent=False)
        self.rate: Tensor
        self.powers: Tensor
        # So many that no path through K states needs a power beyond ORDER in any one factor.
        self.least = math.ceil(math.log2(K)) + 1
        self.cache = Cache()

    def matrix(self, tau: float) -> Tensor:
        """e^{tau R}, (K, K)."""
        return self.cache(tau, lambda: self._matrix(tau))

    def _matrix(self, tau: float) -> Tensor:
        doublings = max(self.least, math.ceil(math.log2(max(self.fastest * tau, 1.0))))
        x = self.fastest * tau / 2**doublings
        weights = x ** torch.arange(self.ORDER + 1, dtype=torch.float64, device=self.powers.device)
        product = stochastic(torch.einsum("n,nij->ij", weights, self.powers))
        for _ in range(doublings):
            product = stochastic(product @ product)
        return product

    def forward(self, weights: Tensor, tau: Tensor, transposed: bool = False) -> Tensor:
        matrices = torch.stack([self.matrix(each) for each in tau.tolist()])
        return weights @ (matrices.mT if transposed else matrices)

    def generator(self, weights: Tensor, transposed: bool = False) -> Tensor:
        return weights @ (self.rate.T if transposed else self.rate)


class Spectrum(Exponential):
    """By the eigenvectors of a symmetric rate matrix, found when first needed.

    Args:
        rate: R (K, K), float64, symmetric.
    """

    def __init__(self, rate: Tensor):
        super().__init__()
        self.register_buffer("rate", rate, persistent=False)
        self.rate: Tensor
        self._basis: tuple[Tensor, Tensor] | None = None

    def basis(self) -> tuple[Tensor, Tensor]:
        """(eigenvalues <= 0, orthonormal columns)."""
        if self._basis is None or self._basis[0].device != self.rate.device:
            values, vectors = torch.linalg.eigh(self.rate)
            self._basis = values.clamp_max(0), vectors
        return self._basis

    def forward(self, weights: Tensor, tau: Tensor, transposed: bool = False) -> Tensor:
        values, vectors = self.basis()
        decay = torch.exp(tau.to(values).reshape(-1, 1, 1) * values)
        # Each weight errs by its own rounding only; what is left below that is nothing.
        result = (weights @ vectors * decay) @ vectors.T
        floor = 1e-15 * weights.sum(-1, keepdim=True)
        return torch.where(result > floor, result, 0.0)

    def generator(self, weights: Tensor, transposed: bool = False) -> Tensor:
        return weights @ self.rate


class Uniformisation(Exponential):
    """By the series, on weights.

    Args:
        rate: R (K, K), float64, sparse.
    """

    TAIL = 1e-30

    def __init__(self, rate: Tensor):
        super().__init__()
        rate = rate.coalesce()
        K, (i, j) = rate.shape[0], rate.indices()
        self.fastest = float(-rate.values()[i == j].min())
        eye = torch.arange(K, device=i.device)
        values = torch.cat([rate.values() / self.fastest, torch.ones(K, dtype=torch.float64, device=i.device)])
        index = torch.cat([torch.stack([i, j]), torch.stack([eye, eye])], 1)
        jump = torch.sparse_coo_tensor(index, values, (K, K), check_invariants=True)
        # w P = (P' w')': sparse matrices multiply from the left.
        for name, matrix in (("rate", rate), ("jump", jump.coalesce())):
            self.register_buffer(name, matrix.t().coalesce(), persistent=False)
            self.register_buffer(f"{name}_transposed", matrix, persistent=False)
        self.rate: Tensor
        self.jump: Tensor
        self.rate_transposed: Tensor
        self.jump_transposed: Tensor

    def forward(self, weights: Tensor, tau: Tensor, transposed: bool = False) -> Tensor:
        matrix = self.jump_transposed if transposed else self.jump
        B, N, K = weights.shape
        x = (self.fastest * tau).expand(B).repeat_interleave(N).to(weights)
        current = weights.reshape(B * N, K).T
        total, mass, n = torch.zeros_like(current), torch.zeros_like(x), 0
        longest = float(x.max()) if len(x) else 0.0
        while len(x):
            share = torch.exp(torch.special.xlogy(n, x) - x - math.lgamma(n + 1))
            total, mass = total + share * current, mass + share
            following = torch.sparse.mm(matrix, current)
            if n > longest and float(share.max()) < self.TAIL:
                break
            if n % 64 == 63 and bool(((following - current).abs() <= 1e-14 * current).all()):
                total = total + (1 - mass).clamp_min(0) * current  # the chain has come to rest
                break
            current, n = following, n + 1
        return total.T.reshape(B, N, K)

    def generator(self, weights: Tensor, transposed: bool = False) -> Tensor:
        matrix = self.rate_transposed if transposed else self.rate
        return torch.sparse.mm(matrix, weights.reshape(-1, weights.shape[-1]).T).T.reshape(weights.shape)
