"""Chains without rank one: their matrices against other ways to compute them, and the laws of every kernel."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from polydiff.core.categorical import absorbing, marginal, uniform
from polydiff.core.errors import ArgumentError
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Tabulated
from polydiff.text.clock import information, mutual_information
from polydiff.text.exponentials import Cache, Spectrum, Squaring, Uniformisation
from polydiff.text.kernel import Dense, OnGrid, Sparse, band, discretised_gaussian, gaussian_walk, nearest_neighbours
from tests.core import test_laws as laws
from tests.core.cases import B, Case
from tests.text.chains import CHAINS, CONTINUOUS, WALKS, K, dense_of, matrix

PAIRS = [(0.0, 0.3), (0.2, 0.7), (0.5, 1.0)]
BETAS = torch.linspace(0.05, 0.9, 100, dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(3, shape, generator=seeded(2))


@pytest.fixture(params=CHAINS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(CHAINS[request.param](RectifiedFlow()), tokens(B, 3))


@pytest.mark.parametrize("between", laws.PAIRS)
def test_both_laws(case: Case, between: str) -> None:
    laws.test_bayes(case, between)
    laws.test_posterior_is_linear_in_the_belief(case, between)


def test_the_other_laws(case: Case) -> None:
    laws.test_impossible_events_are_impossible_on_both_sides(case)
    laws.test_gap_is_the_monte_carlo_divergence(case)
    laws.test_a_conclusion_is_the_mean_or_a_draw(case)
    laws.test_example_generators_make_examples_independent_of_their_neighbours(case)
    laws.test_the_prior_is_where_the_chain_ends(case)


def tau(kernel: Any, s: float, t: float) -> float:
    alpha = kernel.schedule(torch.tensor([s, t], dtype=torch.float64))[0]
    return float(torch.log(alpha[0] / alpha[1]))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", WALKS)
def test_walks_are_exponentials_of_their_rates(name: str, pair: tuple[float, float]) -> None:
    kernel: Any = WALKS[name](Cosine())
    s, t = pair
    rate = kernel.exponential.rate
    rate = (rate.to_dense().T if rate.is_sparse else rate).numpy()
    if t == 1:
        expected = kernel.log_pi.exp().expand(K, -1)
        np.testing.assert_allclose(kernel.log_pi.exp() @ torch.from_numpy(rate), 0, atol=1e-13 * abs(rate).max())
    else:
        expected = torch.from_numpy(expm(tau(kernel, s, t) * rate))
    torch.testing.assert_close(matrix(kernel, s, t), expected, rtol=1e-12, atol=1e-14)
    x = torch.arange(K).unsqueeze(0)
    torch.testing.assert_close(kernel.columns(x, s, t)[0].exp(), expected.T, rtol=1e-12, atol=1e-14)
    slope = kernel.rates(x, 0.4)[0].exp()
    off = torch.from_numpy(rate).T.clone().fill_diagonal_(0)
    torch.testing.assert_close(
        slope, -kernel.schedule.drift(torch.tensor(0.4, dtype=torch.float64)) * off, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", CHAINS)
def test_rows_columns_and_push_agree_for_times_per_example(name: str) -> None:
    kernel = CHAINS[name](RectifiedFlow())
    s, t = torch.tensor([0.0, 0.1, 0.5, 0.5]).double(), torch.tensor([0.2, 0.9, 1.0, 0.6]).double()
    x = torch.randint(K, (B, 2, 3), generator=seeded(0))
    weights = torch.rand((B, 2, 3, K), generator=seeded(1), dtype=torch.float64)
    weights[0, 0, 0, 1:] = 0
    pushed = kernel.push(weights.log() + 700, s, t)
    for b in range(B):
        Q = matrix(kernel, float(s[b]), float(t[b]))
        torch.testing.assert_close(kernel.rows(x, s, t)[b].exp(), Q[x[b]], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(kernel.columns(x, s, t)[b].exp(), Q.T[x[b]], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close((pushed[b] - 700).exp(), weights[b] @ Q, rtol=1e-10, atol=1e-15)
    nothing = kernel.push(torch.full((1, 2, K), -math.inf), 0.2, 0.5)
    assert bool((nothing == -math.inf).all()) and nothing.dtype == torch.float32
    assert kernel.rows(x, s, t, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("name", ["uniform", "marginal", "absorbing"])
def test_rank_one_as_a_dense_matrix_is_the_categorical(name: str) -> None:
    one: Any = {
        "uniform": uniform(Cosine(), K),
        "marginal": marginal(Cosine(), torch.tensor([5, 1, 4, 3, 2])),
        "absorbing": absorbing(Cosine(), K, mask=2),
    }[name]
    dense = dense_of(Cosine(), one.log_pi.exp())
    assert dense.mask == one.mask
    for s, t in PAIRS:
        torch.testing.assert_close(matrix(dense, s, t), matrix(one, s, t), rtol=1e-12, atol=1e-15)
    x_0, t = tokens(B, 3) // 2, torch.tensor([0.2, 0.4, 0.6, 0.9]).double()
    x_t = one.marginal(x_0, t).sample(seeded(0))
    belief = torch.where(one.evidence(x_t, t) > -math.inf, 0.0, -math.inf).double().log_softmax(-1)
    assert float(one.gap_rate(x_t, x_0, belief, t).sum()) > 0.1
    torch.testing.assert_close(
        dense.gap_rate(x_t, x_0, belief, t), one.gap_rate(x_t, x_0, belief, t), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", WALKS)
def test_gap_rate_is_the_limit_of_gaps(name: str) -> None:
    kernel, x_0, t = WALKS[name](Cosine()), tokens(B, 3), torch.tensor([0.2, 0.45, 0.7, 0.9]).double()
    x_t = kernel.marginal(x_0, t).sample(seeded(0))
    belief = torch.randn((B, 3, K), generator=seeded(1), dtype=torch.float64).log_softmax(-1)
    a, b, c = (kernel.gap(x_t, x_0, belief, t - h, t) / h for h in (8e-4, 4e-4, 2e-4))
    rate = kernel.gap_rate(x_t, x_0, belief, t)
    torch.testing.assert_close((4 * (2 * c - b) - (2 * b - a)) / 3, rate, rtol=1e-6, atol=1e-9)


def test_tiny_probabilities_keep_their_relative_accuracy() -> None:
    """Across a band in a short time: against 120 digits, and against the first term of the series."""
    kernel: Any = band(RectifiedFlow(), 9)
    rate = kernel.exponential.rate
    for short in (1e-8, 1e-3, 0.4):
        with mpmath.workdps(120):
            truth = mpmath.expm(mpmath.matrix(rate.tolist()) * mpmath.mpf(short), method="taylor")
            for i, j in ((0, 8), (0, 1), (8, 8), (1, 4)):
                assert float(kernel.exponential.matrix(short)[i, j]) == pytest.approx(float(truth[i, j]), rel=1e-12)
    wide: Any = band(RectifiedFlow(), 40)
    tau = 1e-6 / wide.exponential.fastest
    first = (float(wide.exponential.rate[0, 1]) * tau) ** 39 / math.factorial(39)
    assert 0 < first < 1e-250
    assert float(wide.exponential.matrix(tau)[0, 39]) == pytest.approx(first, rel=1e-4)


def test_the_three_ways_agree() -> None:
    walk: Any = gaussian_walk(RectifiedFlow(), 40, 2.0)
    rate = walk.exponential.rate
    squaring, spectrum, series = Squaring(rate), Spectrum(rate), Uniformisation(rate.to_sparse())
    weights = torch.rand((2, 3, 40), generator=seeded(0), dtype=torch.float64)
    for tau in (torch.tensor([0.0, 0.3]), torch.tensor([2.0, 30.0]), torch.tensor([0.5])):
        expected = squaring(weights, tau.double())
        torch.testing.assert_close(spectrum(weights, tau.double()), expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(series(weights, tau.double()), expected, rtol=1e-12, atol=0)
    skew = torch.rand((6, 6), generator=seeded(1), dtype=torch.float64)
    skew = skew - torch.diag(skew.sum(1))
    some, tau = (
        torch.rand((1, 2, 6), generator=seeded(2), dtype=torch.float64),
        torch.tensor([0.7], dtype=torch.float64),
    )
    for transposed in (False, True):
        one, two = (way(some, tau, transposed) for way in (Squaring(skew), Uniformisation(skew.to_sparse())))
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
        full = torch.from_numpy(expm(0.7 * skew.numpy()))
        torch.testing.assert_close(one, some @ (full.T if transposed else full), rtol=1e-12, atol=0)


def test_large_vocabularies_take_other_ways() -> None:
    large, small = band(RectifiedFlow(), 600, 40), band(RectifiedFlow(), 20)
    assert isinstance(large.exponential, Spectrum) and isinstance(small.exponential, Squaring)
    x = torch.tensor([[3, 300, 599]])
    sparse = Sparse(RectifiedFlow(), large.exponential.rate.to_sparse())
    torch.testing.assert_close(large.rows(x, 0.2, 0.6).exp(), sparse.rows(x, 0.2, 0.6).exp(), rtol=0, atol=1e-13)
    rate = torch.rand((600, 600), dtype=torch.float64, generator=seeded(0))
    with pytest.raises(ArgumentError, match="Sparse"):
        Dense(RectifiedFlow(), rate - torch.diag(rate.sum(1)))


@pytest.mark.parametrize("name", ["band", "wide band", "gaussian", "neighbours"])
def test_alpha_is_what_survives_of_the_slowest_mode(name: str) -> None:
    kernel = WALKS[name](Cosine())
    alpha = float(Cosine()(torch.tensor(0.6, dtype=torch.float64))[0])
    values = torch.linalg.eigvalsh(matrix(kernel, 0.0, 0.6))
    assert values[-2:].tolist() == pytest.approx([alpha, 1.0], rel=1e-10)
    torch.testing.assert_close(kernel.log_pi.exp(), torch.full((K,), 1 / K, dtype=torch.float64))


def rates(kernel: Any) -> Tensor:
    """R off the diagonal, scaled to its largest entry."""
    off = kernel.rates(torch.arange(kernel.K).unsqueeze(0), 0.5)[0].exp()
    return off / off.max()


def test_who_is_whose_neighbour() -> None:
    far = (torch.arange(7).unsqueeze(1) - torch.arange(7)).abs()
    torch.testing.assert_close(rates(band(RectifiedFlow(), 7, 2)), ((far > 0) & (far <= 2)).double())
    normal = torch.exp(-(far**2) / 2 / 1.3**2 + 0.5 / 1.3**2).double() * (far > 0)
    torch.testing.assert_close(rates(gaussian_walk(RectifiedFlow(), 7, 1.3)), normal)
    points = torch.randn((9, 3), generator=seeded(5))
    order = torch.cdist(points, points).fill_diagonal_(math.inf).argsort(1)[:, :3]
    graph = torch.zeros(9, 9, dtype=torch.float64).scatter(1, order, 1.0)
    both = graph + graph.T
    torch.testing.assert_close(rates(nearest_neighbours(RectifiedFlow(), points, 3)), both / both.max())
    assert not torch.equal(graph, graph.T)


def test_published_steps_and_their_products() -> None:
    """Austin et al. 2021, A.2.2, entry by entry."""
    kernel = discretised_gaussian(BETAS, K)
    steps = []
    for beta in BETAS.tolist():
        Q = np.zeros((K, K))
        normaliser = sum(math.exp(-4 * n * n / ((K - 1) ** 2 * beta)) for n in range(-(K - 1), K))
        for i in range(K):
            for j in range(K):
                Q[i, j] = math.exp(-4 * (i - j) ** 2 / ((K - 1) ** 2 * beta)) / normaliser if i != j else 0
            Q[i, i] = 1 - Q[i].sum()
        steps.append(Q)
    np.testing.assert_allclose(kernel.steps, np.stack(steps), rtol=1e-12)
    assert np.abs(steps[0] @ steps[-1] - steps[-1] @ steps[0]).max() > 1e-4
    for i, j in ((0, 1), (0, 100), (3, 4), (17, 83), (63, 65), (32, 64), (99, 100), (0, 37)):
        product = np.linalg.multi_dot([np.eye(K), *steps[i:j], np.eye(K)])
        np.testing.assert_allclose(matrix(kernel, i / 100, j / 100), product, rtol=1e-12)
    np.testing.assert_allclose(kernel.steps.sum(1), 1, rtol=1e-12)
    assert kernel.schedule.t_min == 0.01


def test_steps_that_do_not_commute_have_no_times_between() -> None:
    kernel, x = discretised_gaussian(BETAS, K), torch.zeros(1, 2, dtype=torch.long)
    for call in (
        lambda: kernel.marginal(x, 0.505),
        lambda: kernel.posterior(x, kernel.certain(x), 0.301, 0.5),
        lambda: kernel.rows(x, 0.0, torch.tensor([0.333]).double()),
        lambda: kernel.gap_rate(x, x, kernel.certain(x), 0.5),
    ):
        with pytest.raises(ArgumentError, match="^t:"):
            call()


def test_matrices_are_forgotten_and_found_again() -> None:
    cache, made = Cache(limit=3 * 800), []

    def make(key: int) -> Tensor:
        return cache(key, lambda: made.append(key) or torch.full((100,), float(key), dtype=torch.float64))

    for key in (1, 2, 3, 1, 4, 1, 2):
        assert float(make(key)[0]) == key
    assert made == [1, 2, 3, 4, 2] and cache.held <= cache.limit
    kernel = discretised_gaussian(BETAS, K)
    whole = matrix(kernel, 0.0, 1.0)
    kernel.cache.limit = 1
    kernel.cache(None, lambda: torch.zeros(1))
    torch.testing.assert_close(matrix(kernel, 0.0, 1.0), whole, rtol=0, atol=0)


def test_the_clock_of_absorbing_chains_is_linear_survival() -> None:
    clock = mutual_information(absorbing(Cosine(), 6, mask=5), torch.tensor([7.0, 1.0, 0.0, 2.0, 3.0, 0.0]), 50)
    t = torch.linspace(0.02, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(clock(t)[0], 1 - t, rtol=0, atol=1e-6)
    assert float(clock(torch.ones(()))[0]) == 0


@pytest.mark.parametrize("name", ["uniform", "marginal", "band", "gaussian", "neighbours"])
def test_information_falls_linearly_by_its_clock(name: str) -> None:
    counts = torch.tensor([5.0, 1.0, 9.0, 0.0, 3.0], dtype=torch.float64)
    clock = mutual_information(CONTINUOUS[name](RectifiedFlow()), counts, 200, nodes=256)
    kernel = CONTINUOUS[name](clock)
    p = counts / counts.sum()
    entropy = float(-torch.xlogy(p, p).sum())
    for t in (0.005, 0.1, 0.5, 0.9, 0.995, 1.0):
        joint = p.unsqueeze(1) * matrix(kernel, 0.0, t)
        mutual = float(torch.xlogy(joint, joint / (p.unsqueeze(1) * joint.sum(0))).nan_to_num().sum())
        assert mutual / entropy == pytest.approx(1 - t, abs=2e-5)
        assert information(kernel, counts, t) == pytest.approx(mutual, abs=1e-12)


def test_bad_arguments_are_named() -> None:
    flow, points = RectifiedFlow(), torch.randn((6, 2), generator=seeded(0))
    two = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [50.0, 0.0], [50.0, 1.0], [51.0, 0.0]])
    square, ok = torch.zeros(3, 3), torch.full((3, 3), 0.5) - 1.5 * torch.eye(3)
    skew = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [1.0, 0.0, -1.0]])
    twice = torch.tensor([[-2.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for call, name in (
        (lambda: band(flow, 5, 0), "width"),
        (lambda: band(flow, 5, 5), "width"),
        (lambda: gaussian_walk(flow, 5, 0.0), "deviation"),
        (lambda: gaussian_walk(flow, 5, math.nan), "deviation"),
        (lambda: nearest_neighbours(flow, points, 0), "k"),
        (lambda: nearest_neighbours(flow, points, 6), "k"),
        (lambda: nearest_neighbours(flow, two, 2), "k: got '2 [(]2 pieces, the smallest of 3 symbols[)]'"),
        (lambda: nearest_neighbours(flow, points * math.inf, 2), "embeddings"),
        (lambda: discretised_gaussian([0.1, 1.5], 4), "betas"),
        (lambda: discretised_gaussian([0.1], 1), "K"),
        (lambda: Dense(flow, square), "rate"),
        (lambda: Dense(flow, ok + 0.1), "rate"),
        (lambda: Dense(flow, -ok), "rate"),
        (lambda: Dense(flow, ok[:2]), "rate"),
        (lambda: Dense(flow, twice), "rate: got '2 closed classes'"),
        (lambda: Dense(LinearBeta(), dense_of(flow, torch.tensor([0.0, 1.0])).exponential.rate), "schedule"),  # pyright: ignore
        (lambda: Sparse(flow, skew.to_sparse()), "rate"),
        (lambda: OnGrid(Tabulated([0.5]), torch.eye(3)), "steps"),
        (lambda: OnGrid(Tabulated([0.5]), torch.full((1, 3, 3), 0.5)), "steps"),
        (lambda: mutual_information(uniform(flow, 3), torch.ones(2)), "unigrams"),
        (lambda: mutual_information(uniform(flow, 3), torch.tensor([0, 4, 0])), "unigrams"),
        (lambda: mutual_information(uniform(flow, 3), torch.ones(3), 0), "steps"),
        (lambda: mutual_information(uniform(LinearBeta(), 3), torch.ones(3)), "kernel"),
        (lambda: band(flow, 5).rows(torch.tensor([[5]]), 0.0, 0.5), "tokens"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            call()


@pytest.mark.parametrize("name", CONTINUOUS)
def test_walks_run_on_ragged_rows(name: str) -> None:
    """Every example as it would be alone, times per example and all."""
    dense: Any = CHAINS[name](RectifiedFlow())
    sizes = [2, 3, 1, 1]
    kernel = dense.given(index=torch.repeat_interleave(torch.arange(B), torch.tensor(sizes)), num_graphs=B)
    x_0, t = tokens(7), torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    x_t = kernel.marginal(x_0, t).sample([seeded(i) for i in range(B)])
    belief = torch.randn(7, dense.K, generator=seeded(1), dtype=torch.float64).log_softmax(-1)
    gaps, rates = kernel.gap(x_t, x_0, belief, t / 2, t), kernel.gap_rate(x_t, x_0, belief, t)
    for b, (one, two, three) in enumerate(zip(x_0.split(sizes), x_t.split(sizes), belief.split(sizes), strict=True)):
        own = t[b : b + 1]
        assert torch.equal(dense.marginal(one[None], own).sample([seeded(b)])[0], two)
        alone = dense.gap(two[None], one[None], three[None], own / 2, own)
        torch.testing.assert_close(gaps[b : b + 1], alone, rtol=1e-9, atol=1e-12)
        alone = dense.gap_rate(two[None], one[None], three[None], own)
        torch.testing.assert_close(rates[b : b + 1], alone, rtol=1e-9, atol=1e-12)
