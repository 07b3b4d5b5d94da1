"""Every chain of tokens in a small case, for laws and enumeration. Times of the published one are hundredths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polydiff.core.categorical import Tokens, absorbing, marginal, uniform
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Schedule
from polydiff.text.kernel import Dense, Sparse, band, discretised_gaussian, gaussian_walk, nearest_neighbours

__all__ = ["CHAINS", "CONTINUOUS", "WALKS", "K", "dense_of", "matrix"]

K = 5


def lopsided(schedule: Schedule) -> Dense:
    """A rate matrix that is neither symmetric nor of rank one."""
    rate = torch.rand((K, K), generator=seeded(8), dtype=torch.float64) ** 2
    rate.fill_diagonal_(0)
    return Dense(schedule, rate - torch.diag(rate.sum(1)))


def dense_of(schedule: Schedule, pi: Tensor) -> Dense:
    """The chain of rank one as one without."""
    return Dense(schedule, pi.double().expand(len(pi), -1) - torch.eye(len(pi), dtype=torch.float64))


def neighbours(schedule: Schedule) -> Dense | Sparse:
    return nearest_neighbours(schedule, torch.randn((K, 2), generator=seeded(1)), 2)


def sparse(schedule: Schedule) -> Sparse:
    walk = neighbours(schedule)
    return Sparse(schedule, walk.exponential.rate.to_sparse())  # pyright: ignore


def published(schedule: Schedule | None = None) -> Tokens:
    return discretised_gaussian(torch.linspace(0.05, 0.9, 100, dtype=torch.float64), K)


WALKS: dict[str, Callable[[Schedule], Tokens]] = {
    "band": lambda schedule: band(schedule, K),
    "wide band": lambda schedule: band(schedule, K, 3),
    "gaussian": lambda schedule: gaussian_walk(schedule, K, 0.7),
    "neighbours": neighbours,
    "sparse": sparse,
    "lopsided": lopsided,
}
CONTINUOUS: dict[str, Callable[[Schedule], Tokens]] = {
    "uniform": lambda schedule: uniform(schedule, K),
    "absorbing": lambda schedule: absorbing(schedule, K, mask=K - 1),
    "marginal": lambda schedule: marginal(schedule, torch.tensor([5, 1, 4, 3, 2])),
    "dense absorbing": lambda schedule: dense_of(schedule, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])),
    **WALKS,
}
CHAINS: dict[str, Callable[..., Tokens]] = {**CONTINUOUS, "published": published}


def matrix(kernel: Tokens, s: float, t: float) -> Tensor:
    """Q_{t|s} as the kernel says it."""
    return kernel.rows(torch.arange(kernel.K).unsqueeze(0), s, t).squeeze(0).exp()
