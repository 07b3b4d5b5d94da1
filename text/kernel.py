r"""Chains of symbols that know which symbols are near: band, Gaussian and neighbour walks, and D3PM's own matrices.

In continuous time a walk has a symmetric rate matrix R, Q_{t|s} = e^{(tau_t - tau_s) R} with tau_t = -log alpha_t, and
ends uniform. The factories divide R by its spectral gap, so that alpha_t is what survives of the slowest mode, as it is
for the uniform chain: every schedule then ends as well mixed as it does there (Austin et al. 2021, "Structured
Denoising Diffusion Models in Discrete State-Spaces", A.2, leave that scale to the schedule).

    band                 lazy random walk, |i - j| <= width
    gaussian_walk        R_ij proportional to exp(-(i - j)^2 / (2 deviation^2))
    nearest_neighbours   R = (G + G')/(2k) off the diagonal, G the graph of the k nearest embeddings
    discretised_gaussian D3PM's published matrices, which do not commute: on their grid i/T alone

The mask is no symbol of these. How exponentials are computed, and how exactly, is told in `exponentials`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import eigsh
from sklearn.neighbors import kneighbors_graph
from torch import Tensor

from ..core.categorical import Tokens
from ..core.errors import ArgumentError
from ..core.kernel import Time
from ..core.schedules import Schedule, Tabulated
from .exponentials import Cache, Exponential, Spectrum, Squaring, Uniformisation
from .rates import as_scipy, as_torch, check_connected, check_rate, stationary

__all__ = ["Dense", "Linear", "OnGrid", "Sparse", "band", "discretised_gaussian", "gaussian_walk", "nearest_neighbours"]

SMALL, LARGE = 512, 8192
"""Symbols up to which whole matrices, and eigenvectors, are affordable."""


class Linear(Tokens, ABC):
    """A chain that is known by how its matrices act on probabilities, in float64."""

    @abstractmethod
    def through(self, weights: Tensor, s: Time, t: Time, transposed: bool = False) -> Tensor:
        """w Q_{t|s}, or w Q_{t|s}', for weights w (B, N, K) >= 0."""

    def rows(self, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        return log(self.through(self.hot(x), s, t)).to(dtype).reshape(*x.shape, self.K)

    def columns(self, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        return log(self.through(self.hot(x), s, t, transposed=True)).to(dtype).reshape(*x.shape, self.K)

    def push(self, log_w: Tensor, s: Time, t: Time) -> Tensor:
        weights = log_w.to(torch.float64).reshape(len(log_w), -1, self.K)
        most = weights.detach().amax(-1, keepdim=True)
        most = most.masked_fill(most == -math.inf, 0.0)
        return (log(self.through((weights - most).exp(), s, t)) + most).to(log_w).reshape(log_w.shape)

    def hot(self, x: Tensor) -> Tensor:
        """One-hot weights (B, N, K) of x (B, *dims)."""
        place = self.check(x).reshape(len(x), -1, 1)
        return torch.zeros((*place.shape[:2], self.K), dtype=torch.float64, device=x.device).scatter_(-1, place, 1.0)


class Walk(Linear, ABC):
    """A chain in continuous time by its exponential."""

    exponential: Exponential

    def through(self, weights: Tensor, s: Time, t: Time, transposed: bool = False) -> Tensor:
        log_s, log_t = (self.schedule(torch.as_tensor(u, dtype=torch.float64))[0].log().reshape(-1) for u in (s, t))
        tau = (log_s - log_t).clamp_min(0).cpu()
        moved = self.exponential(weights, torch.where(tau < math.inf, tau, 0.0), transposed)
        if not bool(tau.isinf().any()):
            return moved
        pi = self.log_pi.exp()
        total = weights.sum(-1, keepdim=True) * pi
        rest = (weights * pi).sum(-1, keepdim=True).expand_as(total) if transposed else total
        return torch.where(tau.isinf().reshape(-1, 1, 1).to(moved.device), rest, moved)

    def rates(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        drift = self.schedule.drift(torch.as_tensor(t, dtype=torch.float64)).to(x.device)
        hot = self.hot(x)
        into = log(self.exponential.generator(hot, transposed=True).masked_fill(hot > 0, 0.0))
        return (into + log(-drift).reshape(-1, 1, 1)).to(dtype).reshape(*x.shape, self.K)


class Dense(Walk):
    """A chain by its rate matrix.

    Args:
        schedule: tau_t = -log alpha_t.
        rate: (K, K), rows that sum to 0, 2 <= K <= 512, or symmetric and K <= 8192. One closed class of states.
    """

    def __init__(self, schedule: Schedule, rate: Tensor):
        rate = rate.detach().to(torch.float64)
        K = check_rate(rate)
        symmetric = bool((rate == rate.T).all())
        if K > LARGE or (K > SMALL and not symmetric):
            raise ArgumentError("rate", rate, f"K <= {SMALL}, or symmetric and K <= {LARGE}; `Sparse` serves beyond")
        super().__init__(schedule, stationary(rate))
        # The diagonal from the rest, so that rows sum to 0 as exactly as may be.
        rate = rate - torch.diag(rate.diagonal())
        rate = rate - torch.diag(rate.sum(1))
        self.exponential = Squaring(rate) if K <= SMALL else Spectrum(rate)


class Sparse(Walk):
    """A chain by its symmetric sparse rate matrix, any K; cost is the number of rates times about q tau + 50.

    Args:
        schedule: tau_t = -log alpha_t.
        rate: sparse (K, K), symmetric, rows that sum to 0, connected.
    """

    def __init__(self, schedule: Schedule, rate: Tensor):
        rate = rate.detach().to(torch.float64).coalesce()
        K = check_rate(rate)
        table = as_scipy(rate)
        if abs(table - table.T).max() > 0:
            raise ArgumentError("rate", rate, "a symmetric matrix; `Dense` takes others")
        check_connected("rate", table)
        super().__init__(schedule, torch.full((K,), 1 / K, dtype=torch.float64))
        away = table - sparse.diags_array(table.diagonal(), format="csr")
        self.exponential = Uniformisation(as_torch(away - sparse.diags_array(away.sum(1), format="csr")))


class OnGrid(Linear):
    """A chain of given steps that need not commute, at the times i/T alone; products of segments are kept.

    Args:
        schedule: a clock, which denoisers are conditioned on; it says nothing about the chain.
        steps: Q_i as (T, K, K), doubly stochastic, from t = (i - 1)/T to i/T.
    """

    def __init__(self, schedule: Schedule, steps: Tensor):
        steps = steps.detach().to(torch.float64)
        sums = [steps.sum(axis) - 1 for axis in (1, 2)] if steps.ndim == 3 else []
        if not sums or bool((steps < 0).any()) or max(float(each.abs().max()) for each in sums) > 1e-9:
            raise ArgumentError("steps", steps, "(T, K, K) >= 0 whose rows and columns sum to 1")
        K = steps.shape[-1]
        super().__init__(schedule, torch.full((K,), 1 / K, dtype=torch.float64))
        self.register_buffer("steps", steps, persistent=False)
        self.steps: Tensor
        self.cache = Cache()

    def index(self, t: Time) -> list[int]:
        """i of t = i/T, one or B of them."""
        place = torch.as_tensor(t, dtype=torch.float64).reshape(-1) * len(self.steps)
        if bool(((place - place.round()).abs() > 1e-3).any()):
            raise ArgumentError("t", t, f"times i/{len(self.steps)}: these steps do not commute (see gaussian_walk)")
        return place.round().long().tolist()

    def segment(self, i: int, j: int) -> Tensor:
        """Q_(i+1) ... Q_j, (K, K), from halves that are shared by all segments."""
        if j - i <= 1:
            return self.steps[i] if j > i else torch.eye(self.K, dtype=torch.float64, device=self.steps.device)
        # The middle is the multiple of the highest power of two within, so that halves recur.
        size = 1 << (j - i - 1).bit_length()
        while not i < (middle := (j - 1) // size * size):
            size //= 2
        return self.cache((i, j), lambda: self.segment(i, middle) @ self.segment(middle, j))

    def through(self, weights: Tensor, s: Time, t: Time, transposed: bool = False) -> Tensor:
        first, last = self.index(s), self.index(t)
        count = max(len(first), len(last))
        pairs = zip(first * (count // len(first)), last * (count // len(last)), strict=True)
        matrices = torch.stack([self.segment(i, j) for i, j in pairs])
        return weights @ (matrices.mT if transposed else matrices)

    def rates(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        raise ArgumentError("t", t, "a chain in continuous time, such as gaussian_walk; this one has steps alone")


def band(schedule: Schedule, K: int, width: int = 1) -> Dense | Sparse:
    """The lazy random walk: from i to every j != i with |i - j| <= width at one rate."""
    if not isinstance(width, int) or not 1 <= width < K:
        raise ArgumentError("width", width, f"an integer in 1 ... {K - 1}")
    return walk(schedule, by_distance(K, [1.0] * width))


def gaussian_walk(schedule: Schedule, K: int, deviation: float = 1.0) -> Dense | Sparse:
    """Rates that fall with the distance as a normal density; deviation in symbols. D3PM's is (K - 1) sqrt(beta/8)."""
    if not (math.isfinite(deviation) and deviation > 0.1):
        raise ArgumentError("deviation", deviation, "a finite number > 0.1 symbols")
    # Beyond 38 deviations a density is no float64.
    reach = min(K - 1, max(1, math.floor(38 * deviation)))
    return walk(schedule, by_distance(K, [math.exp(-((d / deviation) ** 2) / 2) for d in range(1, reach + 1)]))


def nearest_neighbours(schedule: Schedule, embeddings: Tensor, k: int = 20) -> Dense | Sparse:
    """Walks along the graph of the k nearest embeddings (Austin et al. 2021, A.2.4); dense to K = 8192.

    Args:
        schedule: of the survival of the slowest mode.
        embeddings: (K, D), finite; distances are Euclidean, so normalise for cosines.
        k: neighbours per symbol; so many that the graph is connected.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2 or not bool(embeddings.isfinite().all()):
        raise ArgumentError("embeddings", embeddings, "finite numbers (K, D) with K >= 2")
    if not isinstance(k, int) or not 1 <= k < len(embeddings):
        raise ArgumentError("k", k, f"an integer in 1 ... {len(embeddings) - 1}")
    points = embeddings.detach().to("cpu", torch.float64).numpy()
    graph = kneighbors_graph(points, k, mode="connectivity", include_self=False)
    table = sparse.csr_array(graph + graph.T) / (2 * k)
    check_connected("k", table, k)
    return walk(schedule, table)


def discretised_gaussian(betas: Sequence[float] | Tensor, K: int) -> OnGrid:
    """D3PM's Gaussian steps (Austin et al. 2021, A.2.2): doubly stochastic, at t = i/T.

    [Q_i]_jk = exp(-4 (j - k)^2 / ((K - 1)^2 beta_i)) off the diagonal, over the sum of that for -(K - 1) ... K - 1.

    Args:
        betas: beta_1 ... beta_T, in (0, 1]; published: linear from 1e-4 to 0.02.
        K: symbols, >= 2.
    """
    if not isinstance(K, int) or K < 2:
        raise ArgumentError("K", K, "an integer >= 2")
    schedule = Tabulated.from_betas(betas)
    table = torch.as_tensor(betas, dtype=torch.float64).reshape(-1, 1)
    far = torch.arange(K, dtype=torch.float64)
    decay = torch.exp(-4 * far**2 / ((K - 1) ** 2 * table))
    decay = decay / (2 * decay.sum(1, keepdim=True) - 1)
    steps = decay[:, (far[:, None] - far).abs().long()]
    eye = torch.eye(K, dtype=torch.float64)
    away = steps * (1 - eye)
    return OnGrid(schedule, away + eye * (1 - away.sum(-1, keepdim=True)))


def by_distance(K: int, rates: Sequence[float]) -> sparse.csr_array:
    """The symmetric table (K, K) with rates[d - 1] where |i - j| = d."""
    table = sparse.lil_array((K, K))
    for d, rate in enumerate(rates, 1):
        table.setdiag(rate, d)
        table.setdiag(rate, -d)
    return table.tocsr()


def walk(schedule: Schedule, table: sparse.csr_array) -> Dense | Sparse:
    """The chain of symmetric off-diagonal rates, in units of its slowest mode."""
    K = table.sum(1).size
    rate = table - sparse.diags_array(table.sum(1), format="csr")
    if K <= SMALL:
        gap = -float(np.linalg.eigvalsh(rate.toarray())[-2])
    else:
        values, _ = eigsh(rate, k=2, which="LA", v0=np.linspace(1, 2, K))
        gap = -float(values.min())
    if not gap > 1e-9 * abs(rate).max():
        raise ArgumentError("rates", gap, "a walk whose slowest mode decays")
    rate = as_torch(rate / gap)
    return Dense(schedule, rate.to_dense()) if K <= LARGE else Sparse(schedule, rate)


def log(weights: Tensor) -> Tensor:
    """log with -inf at 0, where its gradient is 0."""
    tiny = torch.finfo(torch.float64).tiny
    return torch.where(weights > 0, weights.clamp_min(tiny).log(), -math.inf)
