"""Tau-leaping against dense matrices and laws of the chain; chi-square tests at p >= 1e-4 with fixed seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.categorical import Categorical, absorbing, marginal, uniform
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.tau_leaping import analytic, reverse_rates, tau_leaping
from tests.core.test_unmasking import COUNT, Counting, factorised, masks, pvalue
from tests.problems import TokenData

KERNELS: dict[str, tuple[Categorical, TokenData]] = {
    "uniform": (uniform(RectifiedFlow(), 3), TokenData.standard(2, 3)),
    "marginal": (marginal(Cosine(), torch.tensor([1, 2, 4])), TokenData.standard(2, 3)),
    "absorbing": (absorbing(Cosine(), 4, mask=2), TokenData.standard(2, 4, without=2)),
}


def dense(kernel: Categorical, s: float, t: float) -> Tensor:
    """Q_{t|s}, (K, K), from its two numbers."""
    alpha_s, alpha_t = kernel.schedule(torch.tensor([s, t], dtype=torch.float64))[0]
    kept = alpha_t / alpha_s
    return kept * torch.eye(kernel.K, dtype=torch.float64) + (1 - kept) * kernel.log_pi.exp().expand(kernel.K, -1)


def score(kernel: Categorical, x: Tensor, belief: Tensor, t: float) -> Tensor:
    """s_y by the definition, (B, L, K)."""
    Q = dense(kernel, 0.0, t)
    weights = torch.where(Q.T[x] > 0, belief.exp() / Q.T[x], 0.0)
    return weights @ Q


@pytest.mark.parametrize("name", KERNELS)
def test_tweedie_by_matrices_is_the_posterior(name: str) -> None:
    """Q[y, x] (s Q^-1)_y, the score run back by the inverse matrix, is what `ancestral` draws from."""
    kernel, data = KERNELS[name]
    s, t = 0.35, 0.6
    x = kernel.marginal(data.sample(50, seeded(0)), t).sample(seeded(1))
    belief = data.denoise(kernel)(x, t)
    Q = dense(kernel, s, t)
    back = score(kernel, x, belief, t) @ torch.linalg.inv(Q)
    torch.testing.assert_close(Q.T[x] * back, kernel.posterior(x, belief, s, t).mean, rtol=1e-10, atol=1e-12)
    times, start = grids.uniform(4), kernel.prior(x).sample(seeded(2))
    one = list(analytic(data.denoise(kernel), kernel, start, times, generator=seeded(3)))
    two = list(ancestral(data.denoise(kernel), kernel, start, times, generator=seeded(3)))
    assert [step.t for step in one] == [step.t for step in two]
    assert all(torch.equal(a.x, b.x) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_rates_are_the_slope_of_the_posterior(name: str) -> None:
    kernel, data = KERNELS[name]
    t, h = 0.6, 1e-6
    x = kernel.marginal(data.sample(50, seeded(0)), t).sample(seeded(1))
    belief = data.denoise(kernel)(x, t)
    rates = reverse_rates(kernel, x, belief, t).exp()
    own = torch.nn.functional.one_hot(x, kernel.K) == 1
    assert float(rates[own].max()) == 0
    slope = kernel.posterior(x, belief, t - h, t).mean.masked_fill(own, 0.0) / h
    torch.testing.assert_close(rates, slope, rtol=1e-4, atol=1e-8)
    alpha, ahead = kernel.schedule(torch.tensor([t, t + h], dtype=torch.float64))[0]
    forward = (1 - ahead / alpha) / h * kernel.log_pi.exp()[x].unsqueeze(-1)
    expected = (forward * score(kernel, x, belief, t)).masked_fill(own, 0.0)
    torch.testing.assert_close(rates, expected, rtol=1e-4, atol=1e-8)


def chain(kernel: Categorical, data: TokenData, times: Tensor) -> Tensor:
    """The law of a single token under tau-leaping, step by step, with rates from dense matrices."""
    denoise, grid, K = data.denoise(kernel), times.tolist(), kernel.K
    states, eye = torch.arange(K).unsqueeze(1), torch.eye(K, dtype=torch.float64)
    law = kernel.log_pi.exp()
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        inner = min(t, 1 - 2.0**-53)
        drift = -kernel.schedule.drift(torch.tensor(inner, dtype=torch.float64))
        rates = drift * kernel.log_pi.exp()[states] * score(kernel, states, denoise(states, t), inner)[:, 0]
        rates = torch.where(eye > 0, 0.0, rates)
        total = rates.sum(1, keepdim=True)
        leave = ((t - s) * total).clamp(max=1)
        law = law @ (leave * rates / total.clamp_min(1e-300) + (1 - leave) * eye)
    return law @ denoise(states, grid[-2]).exp()[:, 0]


def single(name: str) -> tuple[Categorical, TokenData]:
    """One token under the uniform or marginal kernel of a schedule whose alpha_1 is above 0."""
    schedule = RectifiedFlow()
    kernel = uniform(schedule, 3) if name == "uniform" else marginal(schedule, torch.tensor([1, 2, 4]))
    return kernel, TokenData(torch.tensor([0.7, 0.25, 0.05]))


@pytest.mark.parametrize("name", ["uniform", "marginal"])
@pytest.mark.parametrize("columns", [False, True])
def test_the_law_of_a_token_under_frozen_rates(name: str, columns: bool) -> None:
    kernel, data = single(name)
    times = torch.tensor([1.0, 0.9, 0.55, 0.3, 0.0], dtype=torch.float64)
    law = chain(kernel, data, times)
    assert float(law.sum()) == pytest.approx(1, abs=1e-10)
    start = kernel.prior(torch.zeros(COUNT, 1).long()).sample(seeded(4))
    grid = times.unsqueeze(1).expand(-1, COUNT) if columns else times
    x = last(tau_leaping(data.denoise(kernel), kernel, start, grid, generator=seeded(5)))
    assert pvalue(data, x, law) > 1e-4
    exact = last(analytic(data.denoise(kernel), kernel, start, grid, generator=seeded(5)))
    assert pvalue(data, exact, data.table) > 1e-4


@pytest.mark.parametrize("name", ["uniform", "marginal"])
def test_frozen_rates_reach_the_data_with_small_steps(name: str) -> None:
    kernel, data = single(name)
    errors = [float((chain(kernel, data, grids.uniform(n)) - data.table).abs().sum()) for n in (5, 80, 160)]
    assert errors[0] > 1e-3
    assert errors[1] < 2e-4
    assert errors[2] < errors[1] / 2


def test_for_the_linear_absorbing_chain_it_is_the_posterior() -> None:
    kernel, data = absorbing(RectifiedFlow(), 4, mask=3), TokenData.standard(2, 4, without=3)
    denoise = Counting(data.denoise(kernel))
    x = last(tau_leaping(denoise, kernel, masks(kernel, COUNT, 2), grids.uniform(3), generator=seeded(6)))
    assert pvalue(data, x, data.table * 2 / 3 + factorised(data) / 3) > 1e-4
    assert denoise.times == pytest.approx([1.0, 2 / 3, 1 / 3])


def test_single_precision_and_rare_tokens() -> None:
    """A jump to a symbol of 1e-7 has that share of the jumps in float32 too; no state turns into NaN at t = 1."""
    kernel = absorbing(RectifiedFlow(), 4, mask=3)
    belief = torch.tensor([1e-7, 0.0, 1 - 1e-7, 0.0]).log()
    x = masks(kernel, 1, 1)
    for t in (1.0, 0.5):
        rates = reverse_rates(kernel, x, belief.expand(1, 1, 4), t)
        assert rates.dtype == torch.float32
        expected = torch.tensor([1e-7 / t, 0.0, (1 - 1e-7) / t, 0.0])
        torch.testing.assert_close(rates.exp()[0, 0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_neighbours_do_not_matter(name: str) -> None:
    kernel, data = KERNELS[name]
    denoise, columns = data.denoise(kernel), torch.stack([grids.uniform(5) ** p for p in (1.0, 1.5, 2.0)], 1)
    x = kernel.prior(torch.zeros(3, 2).long()).sample(seeded(0))
    for sampler in (tau_leaping, analytic):
        for times in (grids.uniform(5), columns):
            whole = last(sampler(denoise, kernel, x, times, generator=example_generators(1, 0, range(3))))
            for i in range(3):
                own = times if times.ndim == 1 else times[:, i]
                alone = last(sampler(denoise, kernel, x[i : i + 1], own, generator=example_generators(1, 0, [i])))
                assert torch.equal(alone[0], whole[i])


def test_only_tokens() -> None:
    kernel: Any = Gaussian(Cosine())
    for sampler in (tau_leaping, analytic):
        with pytest.raises(ArgumentError, match="tokens"):
            next(sampler(lambda x, t: x, kernel, torch.zeros(1, 2), grids.uniform(2)))
