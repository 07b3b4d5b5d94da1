"""The two laws that tie a kernel's pieces together, and the distributions they are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence
from torch.distributions import Normal as TorchNormal

from polydiff.core.distributions import Normal, Scaled
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Memo
from polydiff.core.randomness import seeded
from tests.core.cases import CASES, SCHEDULES, B, Case, centred, isotropic, parts, product, some_masked

T_LOW, T_MIDDLE = torch.tensor([0.05, 0.3, 0.6, 0.25]).double(), torch.tensor([0.06, 0.7, 0.95, 1.0]).double()
PAIRS = {"early": (0.26, 0.35), "wide": (0.3, 0.99), "terminal": (0.5, 1.0), "per example": (T_LOW, T_MIDDLE)}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def chain(case: Case, s: Any, t: Any, generator: torch.Generator) -> tuple[Any, Any]:
    x_s = case.kernel.marginal(case.x_0, s).sample(generator)
    return x_s, case.kernel.transition(x_s, s, t).sample(generator)


def both_sides(kernel: Any, x_0: Any, x_s: Any, x_t: Any, s: Any, t: Any) -> tuple[Tensor, Tensor]:
    forward = kernel.marginal(x_0, s).log_prob(x_s) + kernel.transition(x_s, s, t).log_prob(x_t)
    posterior = kernel.posterior(x_t, kernel.certain(x_0), s, t)
    return forward, kernel.marginal(x_0, t).log_prob(x_t) + posterior.log_prob(x_s)


@pytest.mark.parametrize("between", PAIRS)
def test_bayes(case: Case, between: str) -> None:
    s, t = PAIRS[between]
    for seed in range(3):
        x_s, x_t = chain(case, s, t, seeded(seed))
        forward, backward = both_sides(case.kernel, case.x_0, x_s, x_t, s, t)
        assert forward.shape == (B,)
        assert bool(forward.isfinite().all())
        torch.testing.assert_close(backward, forward, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("between", PAIRS)
def test_posterior_is_linear_in_the_belief(case: Case, between: str) -> None:
    """For tokens: the mixture over x_0; for Gaussians: the mean is linear and the scale is the same."""
    s, t = PAIRS[between]
    for kernel, x_0 in parts(case):
        _, x_t = chain(Case(kernel, x_0), s, t, seeded(5))
        certain = kernel.certain(x_0)
        if isinstance(certain, Belief):
            other = kernel.project(certain.mean.flip(-1) * 0.7)
            mixed = kernel.combine((0.3, certain.mean), (0.7, other))
            one, two, both = (kernel.posterior(x_t, Belief(mean), s, t) for mean in (certain.mean, other, mixed))
            torch.testing.assert_close(both.mean, 0.3 * one.mean + 0.7 * two.mean, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(torch.as_tensor(both.scale), torch.as_tensor(one.scale), rtol=0, atol=0)
        else:
            K = certain.shape[-1]
            possible = kernel.evidence(x_t, t) > -math.inf
            noise = torch.rand(certain.shape, generator=seeded(6), dtype=torch.float64) * possible
            belief = noise / noise.sum(-1, keepdim=True)
            each = [kernel.posterior(x_t, kernel.certain(torch.full_like(x_t, k)), s, t).mean for k in range(K)]
            mixture = sum(belief[..., k, None] * each[k] for k in range(K))
            torch.testing.assert_close(kernel.posterior(x_t, belief.log(), s, t).mean, mixture, rtol=1e-10, atol=1e-14)


def test_impossible_events_are_impossible_on_both_sides(case: Case) -> None:
    s, t = 0.3, 0.8
    for kernel, x_0 in parts(case):
        x_s, x_t = chain(Case(kernel, x_0), s, t, seeded(1))
        if x_t.is_floating_point():
            off = kernel.project(torch.ones_like(x_t)) - 1
            if not bool(off.any()):
                continue  # the law has full support
            x_t = x_t + off
            rows = kernel.noise.total(off**2) > 0
        else:
            if bool((kernel.log_pi > -math.inf).all()):
                continue
            # A token that pi never gives and x_0 is not.
            (never,) = (kernel.log_pi == -math.inf).nonzero()[-1].tolist()
            x_t = torch.full_like(x_t, never)
            rows = kernel.layout.total((x_0 != never).long()) > 0
        for side in both_sides(kernel, x_0, x_s, x_t, s, t):
            assert bool((side[rows] == -math.inf).all())
            assert not bool(side.isnan().any())


def test_gap_is_the_monte_carlo_divergence(case: Case) -> None:
    s, t = 0.4, 0.7
    kernel = case.kernel
    _, x_t = chain(case, s, t, seeded(2))
    belief = doubtful(case)
    posterior, reverse = kernel.posterior(x_t, kernel.certain(case.x_0), s, t), kernel.reverse(x_t, belief, s, t)
    generator = seeded(3)
    draws = [posterior.sample(generator) for _ in range(100)]
    ratios = torch.stack([posterior.log_prob(x) - reverse.log_prob(x) for x in draws])
    error = (ratios.mean(0) - kernel.gap(x_t, case.x_0, belief, s, t)).abs()
    # 5 standard errors over the batch: false alarms below 1e-5 of runs, and the seed is fixed.
    assert bool((error <= 5 * ratios.std(0) / 10 + 1e-9).all())


def doubtful(case: Case) -> Any:
    """A belief beside the truth that leaves everything possible."""
    beliefs = []
    for kernel, x_0 in parts(case):
        certain = kernel.certain(x_0)
        if isinstance(certain, Belief):
            beliefs.append(Belief(kernel.project(certain.mean + 0.1)) if len(x_0) == B else Belief(0.9 * certain.mean))
        else:
            K = certain.shape[-1]
            beliefs.append((certain.exp() * 0.6 + 0.4 / K).log())
    return tuple(beliefs) if isinstance(case.x_0, tuple) else beliefs[0]


def test_the_prior_is_where_the_chain_ends(case: Case) -> None:
    """For Gaussians: the marginal of data at the origin. For tokens: of any data, where nothing survives."""
    for kernel, x_0 in parts(case):
        data = torch.zeros_like(x_0) if x_0.is_floating_point() else x_0
        end, law = kernel.marginal(data, 1.0), kernel.prior(x_0)
        if isinstance(law, Normal) or float(kernel.schedule(torch.ones(()))[0]) == 0:
            for divergence in (end.kl(law), law.kl(end)):
                torch.testing.assert_close(divergence, torch.zeros_like(divergence), rtol=0, atol=1e-12)
        if not isinstance(law, Normal):
            torch.testing.assert_close(law.mean, kernel.log_pi.exp().expand(*x_0.shape, kernel.K), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_likelihood_is_the_flat_posterior(name: str) -> None:
    """q(x_t | x_0) as a density of x_0, with the belief where x_t/alpha is: normalised by alpha^d."""
    for law in (isotropic, centred):
        kernel, x_0 = law(SCHEDULES[name]())
        t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
        x_t = kernel.marginal(x_0, t).sample(seeded(0))
        alpha, _ = kernel.schedule(t)
        decoder = kernel.likelihood(Belief.sum(kernel.combine, (1 / alpha, x_t)), t)
        expected = kernel.marginal(x_0, t).log_prob(x_t) + kernel.dims(x_0) * alpha.log()
        torch.testing.assert_close(decoder.log_prob(x_0), expected, rtol=1e-10, atol=1e-10)


def test_a_conclusion_is_the_mean_or_a_draw(case: Case) -> None:
    for kernel, x_0 in parts(case):
        belief = doubtful(Case(kernel, x_0))
        if isinstance(belief, Belief):
            torch.testing.assert_close(kernel.conclude(belief, seeded(0)), belief.mean, rtol=0, atol=0)
            continue
        generator, count = seeded(0), 400
        draws = torch.stack([kernel.conclude(belief, generator) for _ in range(count)])
        shares = torch.nn.functional.one_hot(draws, kernel.K).double().mean(0)
        # 6 standard errors of a share.
        assert bool(((shares - belief.exp()).abs() <= 6 * 0.5 / math.sqrt(count)).all())


@pytest.mark.parametrize("name", ["isotropic-cosine", "diagonal-linear", "centred-edm", "absorbing-rectified"])
def test_float_and_tensor_times_agree(name: str) -> None:
    case = CASES[name]()
    x_s, x_t = chain(case, 0.2, 0.9, seeded(4))
    s, t = torch.full((B,), 0.2, dtype=torch.float64), torch.full((B,), 0.9, dtype=torch.float64)
    for one, two in zip(
        both_sides(case.kernel, case.x_0, x_s, x_t, 0.2, 0.9),
        both_sides(case.kernel, case.x_0, x_s, x_t, s, t),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_example_generators_make_examples_independent_of_their_neighbours(case: Case) -> None:
    """Drawn with one generator per example, an example does not change when its neighbours' seeds do."""
    first = case.kernel.marginal(case.x_0, 0.6).sample([seeded(i) for i in range(B)])
    second = case.kernel.marginal(case.x_0, 0.6).sample([seeded(i if i == 1 else 100 + i) for i in range(B)])
    for (kernel, _), one, two in zip(parts(case), states(first), states(second), strict=True):
        rows = rows_of(kernel, one, 1)
        torch.testing.assert_close(one[rows], two[rows], rtol=0, atol=0)
        assert not torch.equal(one, two)


def states(x: Any) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)


def rows_of(kernel: Any, x: Tensor, example: int) -> Tensor:
    index = getattr(getattr(kernel, "noise", kernel).layout, "index", None)
    return torch.arange(len(x)) == example if index is None else index == example


def test_times_that_are_never_asked_for_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memo, "MOST", 5)
    asked = []

    def twice(t: Tensor) -> tuple[Tensor, ...]:
        asked.append(float(t))
        return (2 * t,)

    memo = Memo(twice, True)
    for i in range(12):
        assert memo(float(i)) == memo(float(i)) == (2.0 * i,)
        assert len(memo.known) <= 5
    assert asked == list(range(12))  # each of them once


def test_given_is_an_independent_view() -> None:
    whole = some_masked(SCHEDULES["cosine"]()).kernel
    one = whole.given(mask=torch.ones(B, 3, 2, dtype=torch.bool))
    two = whole.given(mask=torch.zeros(B, 3, 2, dtype=torch.bool))
    like = torch.zeros(B, 3, 2, dtype=torch.float64)
    assert one.dims(like).tolist() == [6.0] * B
    assert two.dims(like).tolist() == [0.0] * B
    assert whole.dims(like).tolist() != one.dims(like).tolist()
    assert one.schedule is whole.schedule  # parameters are shared
    cloud = centred(SCHEDULES["linear"]()).kernel
    other = cloud.given(index=torch.tensor([0, 0, 1]), num_graphs=2)
    assert cloud.examples(torch.zeros(11, 3)) == 4
    assert other.examples(torch.zeros(3, 3)) == 2
    both = product(SCHEDULES["linear"]()).kernel
    bound = both.given(part_0={"index": torch.tensor([0, 0, 1]), "num_graphs": 2})
    assert both.parts[0].noise.num_graphs == 4
    assert bound.parts[0].noise.num_graphs == 2


def test_spread_reaches_both_published_variances() -> None:
    """On DDPM's chain, spread 0 is beta_tilde and spread 1 is beta (Ho et al. 2020, sec. 3.2)."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kernel = Gaussian(SCHEDULES["tabulated"]())
    x = isotropic(SCHEDULES["linear"]()).x_0
    bar = (1 - betas).cumprod(0)
    for i in (1, 10, 500, 999):
        small = float(betas[i] * (1 - bar[i - 1]) / (1 - bar[i]))
        for spread, variance in ((0.0, small), (1.0, float(betas[i])), (0.5, math.sqrt(small * float(betas[i])))):
            s, t = i / 1000, (i + 1) / 1000
            law = kernel.reverse(x, Belief(x, spread), s, t)
            assert isinstance(law, Normal)
            assert float(law.scale) ** 2 == pytest.approx(variance, rel=1e-9)
            learned = kernel.reverse(x, Belief(x, torch.full_like(x, spread)), s, t)
            assert isinstance(learned, Scaled)
            torch.testing.assert_close(
                learned.deviation**2,
                torch.full_like(x, variance),
                rtol=1e-9,
                atol=0,
            )
            torch.testing.assert_close(learned.mean, law.mean)
            per_example = kernel.reverse(
                x, Belief(x, torch.full_like(x, spread)), *(torch.full((B,), u) for u in (s, t))
            )
            assert bool((per_example.log_prob(x) - law.log_prob(x)).abs().max() < 1e-3 * law.log_prob(x).abs().max())


def test_learned_variances_vary_by_element_and_example() -> None:
    kernel, x_0 = isotropic(SCHEDULES["cosine"]())
    s, t = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([0.5, 0.6, 0.7, 1.0]).double()
    spread = torch.rand(x_0.shape, generator=seeded(0), dtype=torch.float64)
    small, large = (kernel.reverse(x_0, Belief(x_0, end), s, t).scale.reshape(B, 1, 1) for end in (0.0, 1.0))
    expected = small ** (1 - spread) * large**spread
    torch.testing.assert_close(kernel.reverse(x_0, Belief(x_0, spread), s, t).deviation, expected)


@pytest.mark.parametrize("elementwise", [False, True])
def test_gaps_of_wider_reverse_laws(elementwise: bool) -> None:
    """KL between normals of different variances, beside torch.distributions."""
    kernel, x_0 = isotropic(SCHEDULES["cosine"]())
    s, t = 0.4, 0.7
    spread = torch.rand(x_0.shape, generator=seeded(0), dtype=torch.float64) if elementwise else 0.6
    belief = Belief(0.8 * x_0, spread)
    x_t = kernel.marginal(x_0, t).sample(seeded(1))
    posterior, reverse = kernel.posterior(x_t, Belief(x_0), s, t), kernel.reverse(x_t, belief, s, t)
    deviation = reverse.deviation if isinstance(reverse, Scaled) else torch.full_like(x_0, float(reverse.scale))
    assert float((deviation / posterior.scale).max()) > 1.1
    oracle = kl_divergence(
        Independent(TorchNormal(posterior.mean, torch.full_like(x_0, float(posterior.scale))), 2),
        Independent(TorchNormal(reverse.mean, deviation), 2),
    )
    torch.testing.assert_close(kernel.gap(x_t, x_0, belief, s, t), oracle, rtol=1e-10, atol=0)


def test_the_learned_range_needs_independent_elements() -> None:
    kernel, x_0 = centred(SCHEDULES["linear"]())
    with pytest.raises(ArgumentError, match="diagonal"):
        kernel.reverse(x_0, Belief(x_0, torch.zeros_like(x_0)), 0.2, 0.3)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_times_out_of_order_are_named(s: float, t: float) -> None:
    for name in ("isotropic-linear", "uniform-linear"):
        kernel, x_0 = CASES[name]()
        with pytest.raises(ArgumentError, match="s < t"):
            kernel.transition(x_0, s, t)
        with pytest.raises(ArgumentError, match="s < t"):
            kernel.posterior(x_0, kernel.certain(x_0), s, t)
