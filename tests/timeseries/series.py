"""Windows of a multivariate normal law, whose conditional laws are known, and exact laws of samplers on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.sampling import last
from polydiff.core.schedules import Schedule

__all__ = ["NormalSeries", "affine_law"]


class NormalSeries:
    """x_0 ~ N(mean, covariance) over the L K cells of a window, a random covariance with cells strongly tied."""

    def __init__(self, L: int = 4, K: int = 2, seed: int = 3):
        self.L, self.K, D = L, K, L * K
        g = torch.Generator().manual_seed(seed)
        self.mean = torch.randn(D, generator=g, dtype=torch.float64)
        root = torch.randn(D, 3, generator=g, dtype=torch.float64)
        self.covariance = root @ root.T / 2 + 0.15 * torch.eye(D, dtype=torch.float64)
        self.cells = MultivariateNormal(self.mean, self.covariance)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """(count, L, K)"""
        z = torch.randn(count, self.L * self.K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        root = torch.linalg.cholesky(self.covariance)
        return (self.mean + z @ root.T).reshape(count, self.L, self.K)

    def conditional(self, values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of a window's other cells given the known ones; 0 at the known cells.

        Args:
            values, known: (L, K).
        """
        G, T = known.flatten(), ~known.flatten()
        gain = torch.linalg.solve(self.covariance[G][:, G], self.covariance[G][:, T]).T
        mean, covariance = torch.zeros_like(self.mean), torch.zeros_like(self.covariance)
        mean[T] = self.mean[T] + gain @ (values.flatten()[G] - self.mean[G])
        covariance[T.unsqueeze(1) & T] = (self.covariance[T][:, T] - gain @ self.covariance[G][:, T]).flatten()
        return mean, covariance

    def log_prob(self, values: Tensor, known: Tensor) -> Tensor:
        """log p(the other cells | the known ones), from the joint and the marginal density, ()."""
        G = known.flatten()
        joint = self.cells.log_prob(values.flatten())
        if not bool(G.any()):
            return joint
        return joint - MultivariateNormal(self.mean[G], self.covariance[G][:, G]).log_prob(values.flatten()[G])

    def denoise(self, kernel: Gaussian, values: Tensor, known: Tensor) -> Callable[[Tensor, Time], Belief]:
        """E[x_0 | x_t, given], each window with its own given cells (B, L, K)."""
        laws = [self.conditional(*window) for window in zip(values, known, strict=True)]
        mean, C = torch.stack([m for m, _ in laws]), torch.stack([c for _, c in laws])
        identity = torch.eye(mean.shape[1], dtype=torch.float64)

        def exact(x: Tensor, t: Time) -> Belief:
            alpha, sigma = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))
            alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
            left = (x.flatten(1) - alpha[..., 0] * mean).unsqueeze(-1)
            update = alpha * C @ torch.linalg.solve(alpha**2 * C + sigma**2 * identity, left)
            return Belief((mean + update.squeeze(-1)).reshape(x.shape))

        return exact


def affine_law(
    sampler: Callable[..., Any],
    kernel_of: Callable[..., Gaussian],
    series: NormalSeries,
    values: Tensor,
    given: Tensor,
    times: Tensor,
    *,
    asked: Tensor,
    draws: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of what a sampler ends in, exactly: it is affine in its noise.

    The batch holds the same window many times: once with noise 0 throughout, then once for every cell of every draw,
    with a single 1 there. The sampler's own code thus computes its constant and all columns of its linear part.

    Args:
        kernel_of: (structure) -> the kernel.
        values: (L, K).
        given: (L, K) bool, what the denoiser is told of them.
        asked: (L, K) bool, the noised cells.
        draws: how often the sampler draws noise after the start.
        options: of the sampler; tensors (L, K) are repeated.
    """
    D = values.numel()
    rows = 1 + D * (1 + draws)
    many = {name: each(option, rows) if isinstance(option, Tensor) else option for name, option in options.items()}
    kernel = kernel_of(mask=each(asked, rows))
    used = 0

    def symbols(like: Tensor, generator: Any = None) -> Tensor:
        nonlocal used
        z = torch.zeros(rows, D, dtype=torch.float64)
        z[1 + D * used : 1 + D * (used + 1)] = torch.eye(D, dtype=torch.float64)
        used += 1
        return z.reshape(like.shape)

    kernel.noise.standard = symbols  # pyright: ignore[reportAttributeAccessIssue]: on this view alone
    x = kernel.prior(torch.zeros(rows, *values.shape, dtype=torch.float64)).sample()
    denoise = series.denoise(kernel, values.unsqueeze(0), given.unsqueeze(0))
    x = last(sampler(denoise, kernel, x, times, **many)).flatten(1)
    assert used == 1 + draws
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


def each(state: Tensor, count: int) -> Tensor:
    """The same (L, K) for every example."""
    return state.expand(count, *state.shape)


def numbers(schedule: Schedule, t: float) -> tuple[float, float]:
    """(alpha_t, sigma_t)"""
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)
