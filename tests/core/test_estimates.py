"""Cheap estimates of the bound are unbiased; importance-weighted bounds rise to the model's exact likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.bounds import elbo
from polydiff.core.categorical import absorbing, uniform
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.estimates import continuous_elbo, elbo_estimate, importance_weighted, path_weight
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.noise import Diagonal
from polydiff.core.product import Product
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from tests.problems import Clouds, GaussianData, TokenData

DATA = GaussianData.standard()


def missing(kernel: Gaussian, power: float = 0.0) -> Callable[[Tensor, Time], Belief]:
    """Whatever the noise, an error of |x_0|^2 (1 + SNR)^-power for x_0 = 1."""

    def denoise(x: Tensor, t: Time) -> Belief:
        snr = kernel.schedule.log_snr(torch.as_tensor(t, dtype=torch.float64)).exp().expand(len(x))
        return Belief((1 - (1 + snr) ** (-power / 2)).unsqueeze(1).expand_as(x))

    return denoise


def both(tokens: TokenData, kernel: Product) -> Callable[[Any, Time], Any]:
    of_numbers, of_tokens = DATA.denoise(kernel._each()[0]), tokens.denoise(kernel._each()[1])
    return lambda x, t: (of_numbers(x[0], t), of_tokens(x[1], t))


@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("name", ["gaussian", "tokens", "product"])
def test_the_estimate_is_unbiased_for_the_full_sum(name: str, terms: int) -> None:
    count, tokens, times = 8000, TokenData.standard(2, 3), grids.uniform(6)
    numbers, types = Gaussian(Cosine()), uniform(RectifiedFlow(), 3)
    x_0: Any
    x_0, a_token = DATA.sample(count, seeded(0)), tokens.sample(count, seeded(1))
    kernel, denoise, x_0 = {
        "gaussian": (numbers, DATA.denoise(numbers), x_0),
        "tokens": (types, tokens.denoise(types), a_token),
        "product": (Product([numbers, types]), both(tokens, Product([numbers, types])), (x_0, a_token)),
    }[name]
    estimate = elbo_estimate(denoise, kernel, x_0, times, terms=terms, generator=seeded(2))
    full = elbo(denoise, kernel, x_0, times, generator=seeded(3))
    assert estimate.gaps.shape == (terms, count)
    for a, b in ((estimate.gaps.sum(0), full.gaps.sum(0)), (estimate.reconstruction, full.reconstruction)):
        error = float(((a.var() + b.var()) / count).sqrt())
        assert abs(float(a.mean() - b.mean())) < 5 * error
    torch.testing.assert_close(estimate.prior, full.prior)


def test_as_many_terms_as_gaps_meet_each_once() -> None:
    """Also with a grid per example, and a noise law with units; the error is deterministic, so the sums agree."""
    kernel = Gaussian(LinearBeta(), Diagonal(torch.tensor([0.5, 2.0], dtype=torch.float64)))
    x_0, denoise = torch.ones(3, 2, dtype=torch.float64), missing(kernel, 1.0)
    times = torch.stack([grids.uniform(5), grids.quadratic(5), grids.log_snr(5, kernel.schedule)], 1)
    full = elbo(denoise, kernel, x_0, times, generator=seeded(0))
    for terms in (4, 8):
        estimate = elbo_estimate(denoise, kernel, x_0, times, terms=terms, generator=seeded(1))
        torch.testing.assert_close(estimate.gaps.sum(0), full.gaps.sum(0), rtol=1e-10, atol=0)
        torch.testing.assert_close(estimate.total, full.total, rtol=1e-10, atol=0)
    copies = 1500
    fewer = (
        elbo_estimate(denoise, kernel, x_0.repeat(copies, 1), times.repeat(1, copies), terms=2, generator=seeded(2))
        .gaps.sum(0)
        .reshape(copies, 3)
    )
    assert bool(((fewer.mean(0) - full.gaps.sum(0)).abs() < 5 * fewer.std(0) / copies**0.5).all())
    assert float(fewer.std(0).min()) > 0


def test_examples_do_not_couple_and_one_interval_has_no_gaps() -> None:
    kernel, x_0 = Gaussian(Cosine()), DATA.sample(3, seeded(0))
    denoise = DATA.denoise(kernel)
    for estimate in (
        lambda x, g: elbo_estimate(denoise, kernel, x, grids.uniform(5), terms=2, generator=g),
        lambda x, g: continuous_elbo(denoise, kernel, x, terms=2, generator=g),
    ):
        whole = estimate(x_0, [seeded(i) for i in range(3)]).total
        torch.testing.assert_close(estimate(x_0[1:], [seeded(1), seeded(2)]).total, whole[1:], rtol=1e-9, atol=1e-9)
    alone = elbo_estimate(denoise, kernel, x_0, torch.tensor([0.5, 0.0]), generator=seeded(0))
    assert alone.gaps.shape == (0, 3)
    assert bool(alone.total.isfinite().all())


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow(), VarianceExploding(t_min=0.01)], ids=repr)
def test_the_continuous_integral(schedule: Schedule) -> None:
    """An error of |x_0|^2/(1 + SNR) costs 1/2 |x_0|^2 log (1 + SNR_low)/(1 + SNR_1), at whatever times it is met."""
    kernel, low = Gaussian(schedule), max(1e-3, schedule.t_min)
    x_0 = torch.ones(50, 2, dtype=torch.float64)
    snr = schedule.log_snr(torch.tensor([low, 1.0], dtype=torch.float64)).exp()
    expected = float(torch.log1p(snr[0]) - torch.log1p(snr[1]))
    for terms in (1, 3):
        gaps = continuous_elbo(missing(kernel, 1.0), kernel, x_0, terms=terms, low=1e-3, generator=seeded(0)).gaps
        assert gaps.shape == (terms, 50)
        torch.testing.assert_close(gaps.sum(0), torch.full((50,), expected, dtype=torch.float64), rtol=1e-8, atol=0)
    # Another error, whose integral is (1 + SNR_1)^-1 - (1 + SNR_low)^-1: evenly spaced times integrate it well.
    gaps = continuous_elbo(missing(kernel, 2.0), kernel, x_0, terms=400, low=1e-3, generator=seeded(0)).gaps
    torch.testing.assert_close(
        gaps.sum(0), (1 / (1 + snr[1]) - 1 / (1 + snr[0])).expand(50), rtol=0.02, atol=0
    )  # fmt: skip


def test_the_continuous_bound_has_its_exact_mean() -> None:
    count, schedule = 20_000, LinearBeta()
    kernel = Gaussian(schedule)
    bound = continuous_elbo(DATA.denoise(kernel), kernel, DATA.sample(count, seeded(0)), low=0.01, generator=seeded(1))
    snr, end = schedule.log_snr(torch.tensor([0.01, 1.0], dtype=torch.float64)).exp()
    gaps = (torch.log1p(snr * DATA.variances) - torch.log1p(end * DATA.variances)).sum() / 2
    shares = snr * DATA.variances / (1 + snr * DATA.variances)
    reconstruction = (shares + math.log(2 * math.pi) - snr.log()).sum() / 2
    prior = end * (DATA.mean.square().sum() + DATA.variances.sum()) / 2
    for part, mean in ((bound.gaps.sum(0), gaps), (bound.reconstruction, reconstruction), (bound.prior, prior)):
        assert abs(float(part.mean() - mean)) < 5 * float(part.std()) / count**0.5


def test_the_continuous_bound_of_ragged_clouds() -> None:
    clouds, schedule = Clouds([2, 4, 3] * 1000, deviation=1.0), Cosine()
    kernel = Gaussian(schedule, Centred()).given(**clouds.structure)
    x_0 = clouds.sample(kernel, seeded(0))
    gaps = continuous_elbo(clouds.denoise(kernel), kernel, x_0, low=0.01, generator=seeded(1)).gaps
    per_dim = float(torch.log1p(schedule.log_snr(torch.tensor(0.01)).exp())) / 2
    means = gaps.reshape(-1, 3).mean(0)
    error = gaps.reshape(-1, 3).std(0) / 1000**0.5
    assert bool(((means - per_dim * torch.tensor([3.0, 9.0, 6.0])).abs() < 5 * error).all())


def chain(kernel: Gaussian, times: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of the model's x_0 along the data's axes, with the exact denoiser."""
    grid, v, mu = times, DATA.variances, DATA.mean @ DATA.axes
    alpha, sigma = (u.unsqueeze(1) for u in kernel.schedule(grid))
    gain = alpha * v / (alpha**2 * v + sigma**2)
    mean, variance = torch.zeros(3).double(), sigma[0] ** 2 * torch.ones(3).double()
    for i in range(len(grid) - 2):
        # By Bayes' rule for x_s given x_0 and x_t, in its textbook form.
        step = sigma[i] ** 2 - (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2
        of_x_t = alpha[i] / alpha[i + 1] * sigma[i + 1] ** 2 / sigma[i] ** 2
        of_x_0 = alpha[i + 1] * step / sigma[i] ** 2
        slope = of_x_t + of_x_0 * gain[i]
        mean = slope * mean + of_x_0 * (1 - gain[i] * alpha[i]) * mu
        variance = slope**2 * variance + step * sigma[i + 1] ** 2 / sigma[i] ** 2
    mean = mu + gain[-2] * (mean - alpha[-2] * mu)
    return mean, gain[-2] ** 2 * variance + (sigma[-2] / alpha[-2]) ** 2


@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow()], ids=repr)
def test_more_paths_tighten_the_bound_up_to_the_models_likelihood(schedule: Schedule) -> None:
    kernel, x_0 = Gaussian(schedule), DATA.sample(2000, seeded(0))
    times = torch.tensor([1.0, 0.8, 0.55, 0.3, 0.15, 0.0], dtype=torch.float64)
    mean, variance = chain(kernel, times)
    y = x_0 @ DATA.axes
    truth = -((y - mean) ** 2 / variance + (2 * math.pi * variance).log()).sum(1) / 2
    denoise = DATA.denoise(kernel)
    weights = torch.stack([path_weight(denoise, kernel, x_0, times, generator=seeded(1, k)) for k in range(64)])
    bound = elbo(denoise, kernel, x_0, times, generator=seeded(2)).total
    first = -weights[0] - bound
    assert abs(float(first.mean())) < 5 * float(first.std()) / 2000**0.5
    # E[p/q] = 1, for every x_0.
    ratio = (weights - truth).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.mean(1).std()) / 64**0.5
    slack = [truth - importance_weighted(weights[:k]) for k in (1, 4, 16, 64)]
    for looser, tighter in zip(slack[:-1], slack[1:], strict=True):
        gain = looser - tighter
        assert float(gain.mean()) > 4 * float(gain.std()) / 2000**0.5
    for some in slack:
        assert float(some.mean()) > -4 * float(some.std()) / 2000**0.5
    assert float(slack[-1].mean()) < 0.15 * float(slack[0].mean())


@pytest.mark.parametrize("name", ["uniform", "absorbing"])
def test_paths_of_tokens_average_to_the_models_probability(name: str) -> None:
    """Two dependent tokens in three steps: p(x_0) by summing over all states of the chain."""
    K = 3
    data = TokenData.standard(2, K, 2 if name == "absorbing" else None)
    kernel = uniform(Cosine(), K) if name == "uniform" else absorbing(Cosine(), K, mask=2)
    denoise, grid = data.denoise(kernel), [1.0, 0.6, 0.3]
    states = torch.cartesian_prod(torch.arange(K), torch.arange(K))
    law = kernel.prior(states).log_prob(states).exp()
    each = states.unsqueeze(1).expand(-1, len(states), -1)

    def rows(distribution: Any) -> Tensor:
        """P(next state | state), (states, states); 0 where the state itself is impossible."""
        logs = distribution.log_probs.unsqueeze(1).expand(-1, len(states), -1, -1)
        return logs.gather(-1, each.transpose(0, 1).unsqueeze(-1)).squeeze(-1).sum(-1).exp().nan_to_num(0)

    for t, s in zip(grid[:-1], grid[1:], strict=True):
        law = law @ rows(kernel.reverse(states, denoise(states, t), s, t))
    law = law @ rows(kernel.likelihood(denoise(states, grid[-1]), grid[-1]))
    assert float(law.sum()) == pytest.approx(1, rel=1e-9)
    x_0 = data.states[data.table.flatten() > 0]
    truth = law[(x_0[:, 0] * K + x_0[:, 1])]
    times = torch.tensor([*grid, 0.0], dtype=torch.float64)
    many = x_0.repeat_interleave(4000, 0)
    weights = path_weight(denoise, kernel, many, times, generator=seeded(0)).exp().reshape(len(x_0), -1)
    assert bool(((weights.mean(1) - truth).abs() < 5 * weights.std(1) / 4000**0.5 + 1e-12).all())


def test_importance_weighted_is_the_log_of_the_mean() -> None:
    weights = torch.tensor([[0.0, -1000.0], [math.log(3.0), -1000.0]])
    torch.testing.assert_close(importance_weighted(weights), torch.tensor([math.log(2.0), -1000.0]))


def test_bad_arguments_are_named() -> None:
    kernel, x_0 = Gaussian(Cosine()), DATA.sample(2, seeded(0))
    denoise = DATA.denoise(kernel)
    for call, name in (
        (lambda: elbo_estimate(denoise, kernel, x_0, grids.uniform(3), terms=0), "terms"),
        (lambda: elbo_estimate(denoise, kernel, x_0, torch.tensor([1.0, 0.5])), "times"),
        (lambda: continuous_elbo(denoise, kernel, x_0, terms=0), "terms"),
        (lambda: continuous_elbo(denoise, kernel, x_0, low=0.0), "low"),
        (lambda: path_weight(denoise, kernel, x_0, torch.tensor([1.0, 0.5])), "times"),
        (lambda: importance_weighted(torch.zeros(0, 2)), "weights"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            call()
