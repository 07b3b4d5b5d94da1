"""What every chain of tokens shares: its matrices, its score, and the rate at which the bound grows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core.categorical import Categorical, Tokens, absorbing, divergence, marginal, uniform
from polydiff.core.denoisers import TokenDenoiser, context, logits
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief
from polydiff.core.product import Product
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, RectifiedFlow, Schedule, Sigmoid, VarianceExploding
from tests.core.cases import B, Case, centred, diagonal, isotropic, parts, product, some_masked
from tests.problems import TokenData

KERNELS = {
    "uniform": lambda schedule: uniform(schedule, 5),
    "absorbing": lambda schedule: absorbing(schedule, 5, mask=4),
    "marginal": lambda schedule: marginal(schedule, torch.tensor([5, 1, 0, 3, 2])),
}
TIMES = torch.tensor([0.2, 0.45, 0.7, 0.9], dtype=torch.float64)


def tokens(*shape: int, high: int = 4) -> Tensor:
    return torch.randint(high, shape, generator=seeded(11))


def matrix(kernel: Tokens, s: float, t: float) -> Tensor:
    """Q_{t|s} from the definition."""
    alpha = [float(kernel.schedule(torch.tensor(u, dtype=torch.float64))[0]) for u in (s, t)]
    kept = alpha[1] / alpha[0]
    return kept * torch.eye(kernel.K, dtype=torch.float64) + (1 - kept) * kernel.log_pi.exp()


def guess(kernel: Tokens, x_t: Tensor, t: Any, seed: int = 5) -> Tensor:
    """A belief that is wrong but rules out what x_t rules out."""
    output = torch.randn((*x_t.shape, kernel.K), generator=seeded(seed), dtype=torch.float64)
    return logits(output, kernel.evidence(x_t, t))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("pair", [(0.0, 0.4), (0.3, 0.8), (0.6, 1.0)])
def test_rows_columns_and_push_are_the_matrix(name: str, pair: tuple[float, float]) -> None:
    kernel, (s, t) = KERNELS[name](Cosine()), pair
    x, Q = tokens(B, 2, 3, high=5), matrix(kernel, s, t)
    torch.testing.assert_close(kernel.rows(x, s, t).exp(), Q[x], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(kernel.columns(x, s, t).exp(), Q.T[x], rtol=1e-13, atol=1e-15)
    weights = torch.rand((B, 2, 3, 5), generator=seeded(0), dtype=torch.float64) * 7
    weights[0, 0, 0, 1:] = 0
    torch.testing.assert_close(kernel.push(weights.log(), s, t).exp(), weights @ Q, rtol=1e-12, atol=1e-15)
    nothing = kernel.push(torch.full((B, 1, 5), -math.inf), s, t)
    assert bool((nothing == -math.inf).all())
    for call in (kernel.rows, kernel.columns):
        single = call(x, s, t, torch.float32)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), call(x, s, t), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_times_per_example(name: str) -> None:
    kernel, x, s = KERNELS[name](Cosine()), tokens(B, 3), TIMES / 2
    log_w = torch.randn((B, 3, 5), generator=seeded(1), dtype=torch.float64)
    for of in (
        lambda x, w, s, t: kernel.rows(x, s, t),
        lambda x, w, s, t: kernel.columns(x, s, t),
        lambda x, w, s, t: kernel.push(w, s, t),
        lambda x, w, s, t: kernel.rates(x, t),
    ):
        each = [of(x[b : b + 1], log_w[b : b + 1], float(s[b]), float(TIMES[b])) for b in range(B)]
        torch.testing.assert_close(of(x, log_w, s, TIMES), torch.cat(each), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_rates_are_the_derivative_of_the_matrix(name: str) -> None:
    kernel, t, h = KERNELS[name](Cosine()), 0.4, 1e-6
    x = torch.arange(5).unsqueeze(0)
    slope = (matrix(kernel, t - h, t) - torch.eye(5)) / h
    slope.fill_diagonal_(0)
    torch.testing.assert_close(kernel.rates(x, t)[0].exp(), slope.T, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_the_score_of_the_exact_belief_is_the_ratio_of_marginals(name: str) -> None:
    """One token: sum_x_0 p(x_0 | x_t) q(y | x_0)/q(x_t | x_0) = q_t(y)/q_t(x_t)."""
    kernel, t = KERNELS[name](RectifiedFlow()), 0.6
    law = torch.tensor([0.5, 0.2, 0.05, 0.25, 0.0], dtype=torch.float64)
    data, reached = TokenData(law), law @ matrix(KERNELS[name](RectifiedFlow()), 0.0, t)
    x_t = torch.arange(5).unsqueeze(1)[reached > 0]
    score = kernel.score(x_t, data.denoise(kernel)(x_t, t), t).squeeze(1).exp()
    joined = kernel.rates(x_t, t).squeeze(1) > -math.inf
    assert bool(joined.any())
    torch.testing.assert_close(score[joined], (reached / reached[x_t])[joined], rtol=1e-12, atol=1e-14)


def richardson(kernel: Any, x_t: Any, x_0: Any, belief: Any, t: Tensor) -> Tensor:
    """gap/(t - s) on intervals that are halved twice, extrapolated to none."""
    a, b, c = (kernel.gap(x_t, x_0, belief, t - h, t) / h for h in (8e-4, 4e-4, 2e-4))
    return (4 * (2 * c - b) - (2 * b - a)) / 3


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), Sigmoid()], ids=repr)
@pytest.mark.parametrize("name", KERNELS)
def test_gap_rate_of_tokens_is_the_limit_of_gaps(name: str, schedule: Schedule) -> None:
    kernel, x_0 = KERNELS[name](schedule), tokens(B, 6, high=2)
    x_t = kernel.marginal(x_0, TIMES).sample(seeded(2))
    belief = guess(kernel, x_t, TIMES)
    rate = kernel.gap_rate(x_t, x_0, belief, TIMES)
    assert bool((rate[1:] > 0).all())
    torch.testing.assert_close(richardson(kernel, x_t, x_0, belief, TIMES), rate, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(kernel.gap_rate(x_t, x_0, kernel.certain(x_0), TIMES), torch.zeros(B).double())
    single = kernel.gap_rate(x_t, x_0, belief.float(), TIMES)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), rate, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("law", [isotropic, diagonal, some_masked, centred, product])
def test_gap_rate_of_gaussians_and_products_is_the_limit_of_gaps(law: Any) -> None:
    case: Case = law(Cosine())
    x_t = case.kernel.marginal(case.x_0, TIMES).sample(seeded(1))
    beliefs: list[Any] = []
    for (kernel, x_0), noisy in zip(parts(case), x_t if isinstance(x_t, tuple) else (x_t,), strict=True):
        certain = kernel.certain(x_0)
        wrong = isinstance(certain, Belief)
        beliefs.append(Belief(kernel.project(0.7 * x_0 + 0.1 * x_0**2)) if wrong else guess(kernel, noisy, TIMES))
    belief = tuple(beliefs) if isinstance(case.kernel, Product) else beliefs[0]
    rate = case.kernel.gap_rate(x_t, case.x_0, belief, TIMES)
    assert rate.shape == (B,)
    torch.testing.assert_close(
        richardson(case.kernel, x_t, case.x_0, belief, TIMES), rate.double(), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=repr)
def test_absorbing_gap_rate_is_the_weighted_cross_entropy_of_masked_tokens(schedule: Schedule) -> None:
    """Sahoo et al. 2024, eq. 10: -alpha'/(1 - alpha) log belief(x_0), the derivative by differences."""
    kernel, x_0 = KERNELS["absorbing"](schedule), tokens(B, 7)
    x_t = kernel.marginal(x_0, TIMES).sample(seeded(3))
    belief = guess(kernel, x_t, TIMES)
    belief = belief.masked_fill(torch.arange(5) == 4, -math.inf).log_softmax(-1)
    alpha, above, below = (schedule(TIMES + h)[0] for h in (0.0, 1e-6, -1e-6))
    weight = -(above - below) / 2e-6 / (1 - alpha)
    masked = (x_t == 4) * -belief.gather(-1, x_0.unsqueeze(-1)).squeeze(-1)
    assert bool((x_t == 4).any(1).all())
    torch.testing.assert_close(kernel.gap_rate(x_t, x_0, belief, TIMES), weight * masked.sum(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=repr)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), Sigmoid()], ids=repr)
@pytest.mark.parametrize("name", KERNELS)
def test_rates_and_gradients_are_finite_at_every_time(name: str, schedule: Schedule, dtype: torch.dtype) -> None:
    kernel, x_0 = KERNELS[name](schedule), tokens(B, 4, high=2)
    for t in (0.0, 1e-300, 1e-17, 1e-9, 0.5, 1 - 1e-9, 1 - 2**-53, 1.0):
        for x_t in (kernel.marginal(x_0, t).sample(seeded(0)), kernel.prior(x_0).sample(seeded(1))):
            possible = kernel.evidence(x_t, t).gather(-1, x_0.unsqueeze(-1)) > -math.inf
            belief = torch.where(possible, guess(kernel, x_t, t), -math.log(5)).to(dtype).requires_grad_()
            rate = kernel.gap_rate(x_t, x_0, belief, t)
            (gradient,) = torch.autograd.grad(rate.sum(), belief)
            assert bool(rate.isfinite().all() and (rate >= 0).all() and gradient.isfinite().all()), t
    # Where nothing survives, the wrong belief of a uniform chain costs nothing, in any precision.
    if name == "uniform" and not isinstance(schedule, Sigmoid):  # whose clock runs too fast there
        x_t = kernel.prior(x_0).sample(seeded(1))
        assert float(kernel.gap_rate(x_t, x_0, guess(kernel, x_t, 1.0).to(dtype), 1.0).max().detach()) < 1e-4


def test_what_the_belief_rules_out_costs_everything() -> None:
    kernel = KERNELS["absorbing"](RectifiedFlow())
    belief = torch.tensor([[[0.0, 0.5, 0.5, 0.0, 0.0]]], dtype=torch.float64).log()
    assert float(kernel.gap_rate(torch.tensor([[4]]), torch.tensor([[0]]), belief, 0.5)) == math.inf
    assert math.isfinite(float(kernel.gap_rate(torch.tensor([[4]]), torch.tensor([[1]]), belief, 0.5)))


def test_divergence_of_rates() -> None:
    r = torch.tensor([1.0, 2.0, 3e-9, 0.0, 0.0, 5.0, 1e-200], dtype=torch.float64)
    s = torch.tensor([1.0, 1.5, 4.0, 0.0, 0.7, 1e-12, 3.0], dtype=torch.float64)
    expected = torch.xlogy(r, r / s.clamp_min(1e-300)) - r + s
    torch.testing.assert_close(divergence(r.log(), s.log()), expected, rtol=1e-12, atol=1e-15)
    assert divergence(r.log(), torch.full_like(r, -math.inf))[0] == math.inf
    near = divergence(torch.zeros(1), torch.full((1,), 1e-4))
    torch.testing.assert_close(near, torch.tensor([0.5e-8]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("law", [isotropic, product, *KERNELS])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), Sigmoid(), VarianceExploding(t_min=0.01)], ids=repr)
def test_pace_is_a_change_of_variable(law: Any, schedule: Schedule) -> None:
    """The mean over shares of f(t) dt/dshare is the integral of f, for f = t (1 - t)."""
    if isinstance(schedule, VarianceExploding) and law is not isotropic:
        return  # of such tokens nothing is lost
    kernel = KERNELS[law](schedule) if isinstance(law, str) else law(schedule).kernel
    count, low = 5000, 0.02
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    t, stretch = kernel.pace(shares, low)
    assert bool((stretch > 0).all()) and float(t.min()) >= low * (1 - 1e-9) and float(t.max()) <= 1
    assert float((t * (1 - t) * stretch).mean()) == pytest.approx(1 / 6 - low**2 / 2 + low**3 / 3, rel=5e-3)
    ends, _ = kernel.pace(torch.tensor([0.0, 1.0], dtype=torch.float64), low)
    assert sorted(ends.tolist()) == pytest.approx([low, 1.0], abs=1e-6) and float(ends[0]) < 0.5


@pytest.mark.parametrize("parametrisation", [logits, context])
def test_a_network_may_leave_out_the_last_symbols(parametrisation: Any) -> None:
    kernel, x_t = KERNELS["absorbing"](RectifiedFlow()), torch.tensor([[0, 4, 3], [4, 4, 1]])
    output = torch.randn((2, 3, 4), generator=seeded(0))
    whole = torch.cat([output, torch.full((2, 3, 1), -math.inf)], -1)

    def read(output: Tensor) -> Tensor:
        network: Any = lambda x, c: output  # noqa: E731
        return TokenDenoiser(network, kernel.schedule, parametrisation).given(kernel)(x_t, 0.5)

    torch.testing.assert_close(read(output), read(whole), rtol=0, atol=0)
    assert bool((read(output)[..., 4] == -math.inf).all())
    torch.testing.assert_close(read(output)[0, 1, :4], output[0, 1].log_softmax(-1))
    assert read(output.bfloat16()).dtype == torch.float32
    for wrong in (torch.zeros(2, 3, 6), torch.zeros(2, 2, 5), torch.zeros(2, 3)):
        with pytest.raises(ArgumentError, match="^network"):
            read(wrong)


def test_the_mask_is_known_and_precision_kept() -> None:
    assert [KERNELS[name](RectifiedFlow()).mask for name in KERNELS] == [None, 4, None]
    kernel, x_0 = KERNELS["uniform"](RectifiedFlow()), tokens(B, 3)
    assert kernel.certain(x_0).dtype == torch.float64
    assert kernel.certain(x_0, torch.float32).exp().sum(-1).tolist() == [[1.0] * 3] * B
    belief = guess(kernel, x_0, 0.5)
    law, single = (kernel.posterior(x_0, b, 0.3, 0.5).log_probs for b in (belief, belief.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), law, rtol=1e-5, atol=1e-5)
    fine, coarse = (kernel.gap(x_0, x_0, b, 0.3, 0.5) for b in (belief, belief.float()))
    torch.testing.assert_close(coarse.double(), fine, rtol=1e-4, atol=1e-6)


def test_rare_and_common_tokens_are_drawn_from_the_marginal() -> None:
    """Chi-square over 5 symbols, one of 2e-4, at 6 deviations of its mean."""
    kernel = marginal(RectifiedFlow(), torch.tensor([0.5, 0.3, 2e-4, 0.1998, 0.0]))
    count = 200_000
    drawn = kernel.marginal(torch.zeros(1, count, dtype=torch.long), 0.4).sample(seeded(4))
    expected = count * matrix(kernel, 0.0, 0.4)[0]
    seen = torch.bincount(drawn[0], minlength=5).double()
    assert seen[4] == 0
    chi = float(((seen - expected)[:4] ** 2 / expected[:4]).sum())
    assert chi < 3 + 6 * math.sqrt(6)


def test_bad_tokens_are_named() -> None:
    kernel = Categorical(RectifiedFlow(), torch.full((3,), 1 / 3))
    for call in (kernel.certain, lambda x: kernel.rows(x, 0.0, 0.5), lambda x: kernel.rates(x, 0.5)):
        for x in (torch.tensor([[0.0]]), torch.tensor([[3]]), torch.tensor([[-1]])):
            with pytest.raises(ArgumentError, match="^tokens"):
                call(x)
