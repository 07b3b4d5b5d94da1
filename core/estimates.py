r"""Estimates of the evidence lower bound that cost less than its full sum, and bounds that are tighter.

`elbo_estimate`       a few of the grid's gaps, stratified, in place of all: unbiased, for every kernel.
`continuous_elbo`     the limit of infinitely many gaps, for every kernel: the integral of its `gap_rate`. Gaussian:
                      1/2 int SNR |x_0 - x_0_hat|^2 d lambda (Kingma et al. 2021, eq. 17); tokens: the score entropy
                      (Lou et al. 2024), which for absorbing chains is MDLM's weighted cross-entropy.
`path_weight`         log p(x_0, ..., x_1) / q(x_t_1, ..., x_1 | x_0) of one drawn path. Its mean is minus the bound;
`importance_weighted` of K of them gives log of their mean, which lies between the bound and log p(x_0) and rises with
                      K (Burda et al. 2016, "Importance Weighted Autoencoders", theorem 1).

The continuous integral is taken at the kernel's own `pace`. Gaussian: uniformly over softplus(lambda), p(lambda)
proportional to sigmoid(lambda), which is finite where alpha_1 = 0; the error of the best denoiser of standard normal
data is dims / (1 + SNR), for which the integrand is then constant and one time suffices. Tokens: uniformly in alpha_t.
Products: by the even mixture of their parts' laws of t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .bounds import Bound
from .errors import ArgumentError
from .grids import check_times, unstack
from .kernel import Kernel, Time
from .randomness import Randomness, rand

__all__ = ["continuous_elbo", "elbo_estimate", "importance_weighted", "path_weight"]


def elbo_estimate(
    denoise: Callable[[Any, Time], Any],
    kernel: Kernel,
    x_0: Any,
    times: Tensor,
    *,
    terms: int = 1,
    generator: Randomness = None,
) -> Bound:
    """The bound on a grid from `terms` of its gaps; the prior and the reconstruction are always there.

    Gaps are drawn at even distances from one random start per example, so `terms` = n - 1 meets each of them once.

    Args:
        denoise: (x_t, t) -> belief; terms + 1 calls.
        kernel: any.
        x_0: data of B examples.
        times: grid (n + 1,) or (n + 1, B).
        terms: gaps per example, each counted (n - 1)/terms times.
        generator: draws which gaps, and x_t.

    Returns:
        Gaps of shape (terms, B), already multiplied, so that `total` is unbiased for the full bound.
    """
    if terms < 1:
        raise ArgumentError("terms", terms, "an integer >= 1")
    times, count = check_times(times), kernel.examples(x_0)
    grid = times.unsqueeze(1).expand(-1, count) if times.ndim == 1 else times
    inner = len(grid) - 2
    prior = kernel.marginal(x_0, grid[0]).kl(kernel.prior(x_0))
    start = rand((count,), generator, dtype=torch.float64)
    gaps: list[Tensor] = []
    for k in range(terms if inner else 0):
        place = (((start + k) / terms) * inner).long().clamp(max=inner - 1).unsqueeze(0)
        t, s = grid.gather(0, place).squeeze(0), grid.gather(0, place + 1).squeeze(0)
        x_t = kernel.marginal(x_0, t).sample(generator)
        gaps.append(kernel.gap(x_t, x_0, denoise(x_t, t), s, t) * (inner / terms))
    t = grid[-2]
    x_t = kernel.marginal(x_0, t).sample(generator)
    reconstruction = -kernel.likelihood(denoise(x_t, t), t).log_prob(x_0)
    return Bound(prior, torch.stack(gaps) if gaps else prior.new_zeros(0, len(prior)), reconstruction)


def continuous_elbo(
    denoise: Callable[[Any, Time], Any],
    kernel: Kernel,
    x_0: Any,
    *,
    terms: int = 1,
    low: float = 1e-4,
    generator: Randomness = None,
) -> Bound:
    """The bound of infinitely many steps from 1 to max(low, t_min), where the reconstruction takes over.

    Args:
        denoise: (x_t, t) -> belief; terms + 1 calls.
        kernel: any in continuous time. Its reverse variances do not matter: in the limit they are the posterior's.
        x_0: data of B examples.
        terms: times per example, at even distances from one random start per example.
        low: where diffusion ends, > 0; any value gives a bound.
        generator: draws the times and x_t.

    Returns:
        Gaps of shape (terms, B), whose sum is the estimate of the diffusion loss, unbiased in time and noise.
    """
    if terms < 1:
        raise ArgumentError("terms", terms, "an integer >= 1")
    if not 0 < low < 1:
        raise ArgumentError("low", low, "a time in (0, 1)")
    count = kernel.examples(x_0)
    last, _ = kernel.pace(torch.zeros(count, dtype=torch.float64), low)
    prior = kernel.marginal(x_0, torch.ones_like(last)).kl(kernel.prior(x_0))
    start = rand((count,), generator, dtype=torch.float64)
    gaps: list[Tensor] = []
    for k in range(terms):
        t, stretch = kernel.pace((start + k) / terms, low)
        x_t = kernel.marginal(x_0, t).sample(generator)
        rate = kernel.gap_rate(x_t, x_0, denoise(x_t, t), t)
        gaps.append(stretch.to(rate) * rate / terms)
    x_t = kernel.marginal(x_0, last).sample(generator)
    reconstruction = -kernel.likelihood(denoise(x_t, last), last).log_prob(x_0)
    return Bound(prior, torch.stack(gaps), reconstruction)


def path_weight(
    denoise: Callable[[Any, Time], Any],
    kernel: Kernel,
    x_0: Any,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Tensor:
    """log p(x_0, x_t_1, ..., x_1) - log q(x_t_1, ..., x_1 | x_0) of one path drawn from q, in nats, (B,).

    Args:
        denoise: (x_t, t) -> belief; n calls.
        kernel: any; learned reverse variances count.
        x_0: data of B examples.
        times: grid (n + 1,) or (n + 1, B).
        generator: draws the path.
    """
    grid = unstack(check_times(times))
    known = kernel.certain(x_0)
    law = kernel.marginal(x_0, grid[0])
    x = law.sample(generator)
    weight = kernel.prior(x_0).log_prob(x) - law.log_prob(x)
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        forward, reverse = kernel.posterior(x, known, s, t), kernel.reverse(x, denoise(x, t), s, t)
        x = forward.sample(generator)
        weight = weight + reverse.log_prob(x) - forward.log_prob(x)
    return weight + kernel.likelihood(denoise(x, grid[-2]), grid[-2]).log_prob(x_0)


def importance_weighted(weights: Tensor) -> Tensor:
    """log of the mean of e^weights: a lower bound of log p(x_0) on average, tighter with every sample.

    Args:
        weights: log p/q of K draws from q, (K, ...), from `path_weight` or a `Dequantiser`.

    Returns:
        Nats, the shape of one draw; negate for -log p.
    """
    if weights.ndim < 1 or len(weights) < 1:
        raise ArgumentError("weights", weights, "a tensor (K, ...) with K >= 1")
    return weights.logsumexp(0) - math.log(len(weights))
