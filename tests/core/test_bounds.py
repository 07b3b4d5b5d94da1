"""The evidence lower bound against entropies and densities that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polydiff.core import grids, objectives
from polydiff.core.bounds import Bound, bits_per_dim, elbo
from polydiff.core.categorical import Categorical, Tokens, absorbing, marginal, uniform
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.product import Product
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from tests.problems import Clouds, GaussianData, TokenData

DATA = GaussianData.standard()


def expected_bound(data: TokenData, kernel: Tokens, times: Tensor) -> float:
    """E over x_0 and every x_t of the bound, by enumeration with the library's laws but without its sampling."""
    states = torch.cartesian_prod(*[torch.arange(kernel.K)] * data.L).reshape(-1, data.L)
    denoise, grid, total = data.denoise(kernel), times.tolist(), 0.0
    for x_0, p in zip(data.states, data.table.flatten(), strict=True):
        if p == 0:
            continue
        total += float(p * kernel.marginal(x_0[None], grid[0]).kl(kernel.prior(x_0[None])))
        for i, t in enumerate(grid[:-1]):
            q = kernel.marginal(x_0[None].expand_as(states), t).log_prob(states).exp()
            x_t = states[q > 0]
            known = x_0.expand_as(x_t)
            if i < len(grid) - 2:
                terms = kernel.gap(x_t, known, denoise(x_t, t), grid[i + 1], t)
            else:
                terms = -kernel.likelihood(denoise(x_t, t), t).log_prob(known)
            total += float(p * (q[q > 0] * terms).sum())
    return total


TOKENS = {
    "uniform": (lambda schedule: uniform(schedule, 3), None),
    "absorbing": (lambda schedule: absorbing(schedule, 3, mask=2), 2),
    "marginal": (lambda schedule: marginal(schedule, torch.tensor([1, 2, 4])), None),
}


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=repr)
@pytest.mark.parametrize("name", TOKENS)
def test_one_token_is_bounded_by_its_entropy_exactly(name: str, schedule: Schedule) -> None:
    """With the true p(x_0 | x_t) the posterior is exact, so any grid gives H(x_0) plus the prior's part, here 0."""
    make, without = TOKENS[name]
    data = TokenData.standard(1, 3, without)
    for steps in (1, 2, 7):
        bound = expected_bound(data, make(schedule), grids.uniform(steps))
        assert bound == pytest.approx(data.entropy(), rel=1e-10)


def test_two_absorbing_tokens_lose_their_mutual_information_by_the_squared_steps() -> None:
    """Both tokens appear in one step with probability (delta alpha)^2; then the product loses I(x^1; x^2)."""
    data = TokenData(torch.tensor([[0.45, 0.05, 0.0], [0.15, 0.35, 0.0], [0.0, 0.0, 0.0]]))
    kernel = absorbing(Cosine(), 3, mask=2)
    one, two = (TokenData(data.table.sum(axis)).entropy() for axis in (0, 1))
    information = one + two - data.entropy()
    assert information > 0.1
    for steps in (1, 3, 10):
        times = grids.uniform(steps)
        # The last interval too: at t_1 what is still masked is drawn at once.
        lost = float((kernel.schedule(times)[0].diff() ** 2).sum()) * information
        assert expected_bound(data, kernel, times) == pytest.approx(data.entropy() + lost, rel=1e-10)


@pytest.mark.parametrize("name", TOKENS)
def test_the_estimate_is_the_expected_bound(name: str) -> None:
    make, without = TOKENS[name]
    data, kernel, times = TokenData.standard(2, 3, without), make(Cosine()), grids.uniform(4)
    x_0 = data.sample(20_000, seeded(0))
    bound = elbo(data.denoise(kernel), kernel, x_0, times, generator=seeded(1)).total
    error = float(bound.mean()) - expected_bound(data, kernel, times)
    assert abs(error) < 5 * float(bound.std()) / 20_000**0.5
    assert expected_bound(data, kernel, times) > data.entropy()


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow()], ids=repr)
def test_gaussian_bound_is_above_the_truth_and_approaches_it(schedule: Schedule) -> None:
    """The slack falls like 1/n, and extrapolated to n = infinity it is 0 within 5 standard errors."""
    kernel, count = Gaussian(schedule), 10_000
    x_0 = DATA.sample(count, seeded(0))
    truth, slack, error = -DATA.log_prob(x_0), [], []
    for steps in (60, 120, 240):
        times = grids.log_snr(steps, schedule, low=-8, high=9)
        difference = elbo(DATA.denoise(kernel), kernel, x_0, times, generator=seeded(1)).total - truth
        slack.append(float(difference.mean()))
        error.append(float(difference.std()) / count**0.5)
        assert slack[-1] > 5 * error[-1]
    limit = (8 * slack[2] - 6 * slack[1] + slack[0]) / 3
    assert abs(limit) < 5 * math.hypot(8 * error[2], 6 * error[1], error[0]) / 3
    assert slack[0] / slack[2] == pytest.approx(4, abs=0.7)


def test_parts_of_the_gaussian_bound() -> None:
    """Each part by its own formula (Ho et al. 2020, eq. 5 and 8)."""
    schedule = LinearBeta()
    kernel, x_0, times = (
        Gaussian(schedule),
        DATA.sample(5, seeded(0)),
        torch.tensor([1.0, 0.6, 0.2, 0.0], dtype=torch.float64),
    )
    denoise = DATA.denoise(kernel)
    bound = elbo(denoise, kernel, x_0, times, generator=seeded(3))
    (a_1, s_1), (a, s), (b, r) = (
        tuple(map(float, schedule(torch.tensor(t, dtype=torch.float64)))) for t in (1.0, 0.6, 0.2)
    )
    # The prior is N(0, sigma_1^2).
    torch.testing.assert_close(bound.prior, (a_1 * x_0).square().sum(1) / (2 * s_1**2), rtol=1e-7, atol=1e-12)
    g = seeded(3)
    noise = [torch.randn(x_0.shape, generator=g, dtype=torch.float64) for _ in range(3)]
    for i, (t, (alpha_t, sigma_t), (alpha_s, sigma_s)) in enumerate([(1.0, (a_1, s_1), (a, s)), (0.6, (a, s), (b, r))]):
        error = denoise(alpha_t * x_0 + sigma_t * noise[i], t).mean - x_0
        # KL = (SNR(s) - SNR(t))/2 |x_0 - belief|^2 (Kingma et al. 2021, eq. 14).
        weight = ((alpha_s / sigma_s) ** 2 - (alpha_t / sigma_t) ** 2) / 2
        torch.testing.assert_close(bound.gaps[i], weight * error.square().sum(1), rtol=1e-6, atol=1e-12)
    law = torch.distributions.Normal(denoise(b * x_0 + r * noise[2], 0.2).mean, r / b)
    torch.testing.assert_close(bound.reconstruction, -law.log_prob(x_0).sum(1), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(bound.total, bound.prior + bound.gaps.sum(0) + bound.reconstruction)
    assert bound.gaps.shape == (2, 5)


@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow()], ids=repr)
def test_the_likelihood_weight_is_the_limit_of_the_gaps(schedule: Schedule) -> None:
    """The expected gaps of a fine grid = the integral of the weight times the closed posterior variance."""
    kernel, x_0 = Gaussian(schedule), DATA.sample(2000, seeded(0))
    low, high = 0.1, 0.9
    times = torch.cat([torch.linspace(high, low, 401, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    gaps = elbo(DATA.denoise(kernel), kernel, x_0, times, generator=seeded(1)).gaps.sum(0)
    t = torch.linspace(low, high, 4001, dtype=torch.float64)
    alpha, sigma = (u.unsqueeze(1) for u in schedule(t))
    variance = (DATA.variances * sigma**2 / (alpha**2 * DATA.variances + sigma**2)).sum(1)
    integral = float(torch.trapezoid(objectives.likelihood(schedule, t) * variance, t))
    assert float(gaps.mean()) == pytest.approx(integral, rel=0.02)


def test_bounds_do_not_depend_on_neighbours() -> None:
    kernel, x_0 = Gaussian(VarianceExploding()), DATA.sample(3, seeded(0))
    times = torch.stack([grids.uniform(5, kernel.schedule), grids.karras(5, kernel.schedule)] * 2, 1)[:, :3]
    whole = elbo(DATA.denoise(kernel), kernel, x_0, times, generator=[seeded(i) for i in range(3)])
    for i in range(3):
        alone = elbo(DATA.denoise(kernel), kernel, x_0[i : i + 1], times[:, i], generator=[seeded(i)])
        torch.testing.assert_close(alone.total, whole.total[i : i + 1], rtol=1e-9, atol=1e-9)


def test_a_product_is_bounded_by_the_sum_of_its_parts() -> None:
    clouds, tokens = Clouds([3, 2, 4]), TokenData.standard(2, 3)
    positions, types = Gaussian(Cosine(), Centred()).given(**clouds.structure), uniform(Cosine(), 3)
    x_0 = clouds.sample(positions, seeded(0)), tokens.sample(3, seeded(1))
    of_clouds, of_tokens = clouds.denoise(positions), tokens.denoise(types)
    kernel, times = Product([positions, types]), grids.uniform(5)
    both = elbo(
        lambda x, t: (of_clouds(x[0], t), of_tokens(x[1], t)),
        kernel,
        x_0,
        times,
        generator=[seeded(i) for i in range(3)],
    )
    assert both.total.shape == (3,)
    assert bool(both.total.isfinite().all())
    torch.testing.assert_close(
        both.prior,
        elbo(of_clouds, positions, x_0[0], times).prior + elbo(of_tokens, types, x_0[1], times).prior,
    )
    assert kernel.dims(x_0).tolist() == [8.0, 5.0, 11.0]


def test_one_interval_has_no_gaps() -> None:
    kernel, x_0 = Gaussian(RectifiedFlow()), DATA.sample(2, seeded(0))
    bound = elbo(DATA.denoise(kernel), kernel, x_0, torch.tensor([0.5, 0.0]), generator=seeded(1))
    assert bound.gaps.shape == (0, 2)
    assert bool(bound.total.isfinite().all())


def test_bits_per_dim() -> None:
    """A uniform law over 256 values costs 8 bits; as a density on [-1, 1], 1 bit plus log2(127.5)."""
    dims = torch.tensor([10.0, 3.0])
    assert bits_per_dim(dims * math.log(256), dims).tolist() == pytest.approx([8.0, 8.0])
    on_unit_scale = bits_per_dim(dims * math.log(2 * 256 / 255), dims, log_det=math.log(1 / 127.5))
    assert on_unit_scale.tolist() == pytest.approx([8.0, 8.0])
    bound = Bound(torch.ones(2), torch.ones(3, 2), torch.ones(2))
    assert bound.total.tolist() == [5.0, 5.0]


def test_bad_grids_are_named() -> None:
    with pytest.raises(ArgumentError, match="^times"):
        elbo(lambda x, t: None, Gaussian(Cosine()), torch.zeros(1, 3), torch.tensor([1.0, 0.5]))


def test_kernels_that_cannot_have_a_finite_prior_are_refused() -> None:
    for make in (
        lambda: absorbing(LinearBeta(), 3, mask=2),
        lambda: marginal(LinearBeta(), torch.tensor([1, 0, 2])),
    ):
        with pytest.raises(ArgumentError, match="^schedule"):
            make()
    for make, name in (
        (lambda: absorbing(Cosine(), 3, mask=3), "mask"),
        (lambda: marginal(Cosine(), torch.tensor([0, 0])), "counts"),
        (lambda: marginal(Cosine(), torch.tensor([1.0, math.nan])), "counts"),
        (lambda: Categorical(Cosine(), torch.tensor([0.5, 0.6])), "pi"),
        (lambda: uniform(Cosine(), 3).given(mask=1), "structure"),
        (lambda: Product([]), "parts"),
        (lambda: Product([uniform(Cosine(), 3)]).given(part_1={}), "structure"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            make()
