r"""Estimates of the evidence lower bound that cost less than its full sum, and bounds that are tighter.

`elbo_estimate`       a few of the grid's gaps, stratified, in place of all: unbiased, for every kernel.
`continuous_elbo`     the limit of infinitely many gaps, for Gaussian kernels (Kingma et al. 2021, eq. 17):
                      int lambda'-weighted error = 1/2 int SNR |x_0 - x_0_hat|^2 d lambda.
`path_weight`         log p(x_0, ..., x_1) / q(x_t_1, ..., x_1 | x_0) of one drawn path. Its mean is minus the bound;
`importance_weighted` of K of them gives log of their mean, which lies between the bound and log p(x_0) and rises with
                      K (Burda et al. 2016, "Importance Weighted Autoencoders", theorem 1).

The continuous integral is taken over U = softplus(lambda) uniformly, p(lambda) proportional to sigmoid(lambda): uniform
in lambda where there is signal, uniform in SNR where there is none, and finite where alpha_1 = 0. The error of the best
denoiser of standard normal data is dims / (1 + SNR), for which the integrand is then constant and one time suffices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .bounds import Bound
from .errors import ArgumentError
from .gaussian import Gaussian
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
    kernel: Gaussian,
    x_0: Tensor,
    *,
    terms: int = 1,
    low: float = 1e-4,
    generator: Randomness = None,
) -> Bound:
    """The bound of infinitely many steps from 1 to max(low, t_min), where the reconstruction takes over.

    Args:
        denoise: (x_t, t) -> belief; terms + 1 calls.
        kernel: Gaussian, any schedule and noise law. Fixed reverse variances: they are the posterior's in the limit.
        x_0: data of B examples.
        terms: times per example, at even distances from one random start per example.
        low: where diffusion ends, > 0.
        generator: draws the times and x_t.

    Returns:
        Gaps of shape (terms, B), whose sum is the estimate of the diffusion loss, unbiased in time and noise.
    """
    if not isinstance(kernel, Gaussian):
        raise ArgumentError("kernel", kernel, "a Gaussian kernel; `elbo_estimate` serves every kernel")
    if terms < 1:
        raise ArgumentError("terms", terms, "an integer >= 1")
    if not 0 < low < 1:
        raise ArgumentError("low", low, "a time in (0, 1)")
    count, schedule = kernel.examples(x_0), kernel.schedule
    last = torch.full((count,), max(low, schedule.t_min), dtype=torch.float64)
    first = torch.ones_like(last)
    prior = kernel.marginal(x_0, first).kl(kernel.prior(x_0))
    most, least = (nn.functional.softplus(schedule.log_snr(t), threshold=40) for t in (last, first))
    start = rand((count,), generator, dtype=torch.float64)
    gaps: list[Tensor] = []
    for k in range(terms):
        area = least + (most - least) * (start + k) / terms
        # The inverse of softplus, without overflow.
        log_snr = area + torch.log(-torch.expm1(-area))
        t = schedule.inverse(log_snr)
        x_t = kernel.marginal(x_0, t).sample(generator)
        error = kernel.error(x_0, denoise(x_t, t), t)
        weight = (most - least) * (1 + torch.exp(log_snr)) / 2
        gaps.append(weight.to(error) * error / terms)
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
