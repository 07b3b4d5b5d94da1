"""Small cases in full: every chain, on grids and in continuous time, against sums over all states."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.categorical import Tokens, absorbing
from polydiff.core.denoisers import TokenDenoiser, context, logits
from polydiff.core.schedules import Cosine, RectifiedFlow, Schedule
from tests.core.test_bounds import expected_bound
from tests.problems import TokenData
from tests.text.chains import CHAINS, CONTINUOUS, K, matrix

# Of data, the mask is no token; the other chains see it as one more symbol.
WITHOUT = {"absorbing": K - 1, "dense absorbing": K - 1}


def times(*inner: float) -> Tensor:
    return torch.tensor([1.0, *inner, 0.0], dtype=torch.float64)


GRIDS = [times(), times(0.4), times(0.9, 0.5, 0.21, 0.03)]


def kernel_of(name: str, schedule: Schedule | None = None) -> Tokens:
    return CHAINS[name](schedule if schedule is not None else RectifiedFlow())


@cache
def data_of(name: str, L: int) -> TokenData:
    return TokenData.standard(L, K, WITHOUT.get(name))


def prior_gap(name: str, data: TokenData, kernel: Tokens) -> float:
    """KL(q(x_1) || prior), what the exact denoiser cannot help, for one token."""
    reached, pi = data.table @ matrix(kernel, 0.0, 1.0), kernel.log_pi.exp()
    return float(torch.xlogy(reached, reached / pi).nan_to_num().sum())


@pytest.mark.parametrize("name", CHAINS)
def test_reverse_transitions_are_bayes_rule_over_all_paths(name: str) -> None:
    """p(x_s | x_t) of the exact belief, one token, from the joint law of (x_0, x_s, x_t); to 1e-12."""
    kernel, data = kernel_of(name), data_of(name, 1)
    for s, t in ((0.1, 0.3), (0.25, 0.9), (0.5, 1.0)):
        joint = torch.einsum("i,ij,jk->jk", data.table, matrix(kernel, 0.0, s), matrix(kernel, s, t))
        x_t = torch.arange(K).unsqueeze(1)[joint.sum(0) > 0]
        law = kernel.posterior(x_t, data.denoise(kernel)(x_t, t), s, t).log_probs.squeeze(1).exp()
        expected = (joint / joint.sum(0)).T[joint.sum(0) > 0]
        torch.testing.assert_close(law, expected, rtol=1e-12, atol=1e-14)
        for x_0 in range(K):
            known = matrix(kernel, 0.0, s)[x_0].unsqueeze(1) * matrix(kernel, s, t)
            there = known.sum(0) > 0
            x_t = torch.arange(K).unsqueeze(1)[there]
            law = kernel.posterior(x_t, kernel.certain(torch.full_like(x_t, x_0)), s, t).log_probs.squeeze(1).exp()
            torch.testing.assert_close(law, (known / known.sum(0)).T[there], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CHAINS)
def test_one_token_is_bounded_by_its_entropy_on_every_grid(name: str) -> None:
    kernel, data = kernel_of(name), data_of(name, 1)
    for grid in GRIDS:
        # The expected bound counts the prior's divergence given x_0; the chain's own part of it is I(x_1; x_0).
        bound = expected_bound(data, kernel, grid)
        assert bound == pytest.approx(data.entropy() + prior_gap(name, data, kernel), rel=1e-10)


@pytest.mark.parametrize("name", sorted(CHAINS.keys() - {"sparse", "wide band"}))
def test_two_tokens_cost_at_least_their_entropy_and_less_on_finer_grids(name: str) -> None:
    kernel, data = kernel_of(name), data_of(name, 2)
    bounds = [expected_bound(data, kernel, grid) for grid in (times(), times(0.5), times(0.7, 0.4))]
    assert data.entropy() < bounds[2] < bounds[1] < bounds[0]
    # One step: the tokens are drawn apart, each from its own law or what the chain's end leaves of it.
    if name != "published":
        alone = sum(TokenData(data.table.sum(axis)).entropy() for axis in (0, 1))
        assert bounds[0] == pytest.approx(alone, rel=1e-10)


@pytest.mark.parametrize("name", ["absorbing", "dense absorbing"])
def test_two_absorbing_tokens_lose_their_information_by_the_steps(name: str) -> None:
    """H + I sum (delta alpha)^2, which is H + I/T for linear alpha."""
    data = data_of(name, 2)
    information = sum(TokenData(data.table.sum(axis)).entropy() for axis in (0, 1)) - data.entropy()
    assert information > 0.05
    for T in (1, 2, 5):
        bound = expected_bound(data, kernel_of(name), grids.uniform(T))
        assert bound == pytest.approx(data.entropy() + information / T, rel=1e-10)
    squares = float(Cosine()(GRIDS[2])[0].diff().square().sum())
    bound = expected_bound(data, kernel_of(name, Cosine()), GRIDS[2])
    assert bound == pytest.approx(data.entropy() + information * squares, rel=1e-10)


def continuous_bound(data: TokenData, kernel: Tokens, low: float, denoise: Any, nodes: int = 24) -> float:
    """The expectation of `continuous_elbo`, states enumerated, time by Gauss-Legendre in log t and log (1 - t)."""
    states = torch.tensor(list(itertools.product(range(K), repeat=data.L)))
    points, weights = np.polynomial.legendre.leggauss(nodes)
    edge, tiny = math.log(0.5), 1e-9
    ends = ((math.log(low), edge, False), (math.log(tiny), edge, True))
    total = 0.0

    def law(t: float) -> Tensor:
        """q(x_t | x_0) over all states, one row for each x_0 of the data."""
        Q = matrix(kernel, 0.0, t)
        return math.prod(Q[data.states[:, i]][:, states[:, i]] for i in range(data.L))  # pyright: ignore

    def expectation(t: float, of: Any) -> float:
        weights = law(t) * data.table.flatten().unsqueeze(1)
        first, second = (weights > 0).nonzero(as_tuple=True)
        x_0, x_t = data.states[first], states[second]
        return float((weights[first, second] * of(x_t, x_0, denoise(x_t, t), t)).sum())

    for start, stop, mirrored in ends:
        for point, weight in zip(points, weights, strict=True):
            u = (stop - start) / 2 * point + (stop + start) / 2
            t = 1 - math.exp(u) if mirrored else math.exp(u)
            total += weight * (stop - start) / 2 * math.exp(u) * expectation(t, kernel.gap_rate)
    total += expectation(low, lambda x_t, x_0, belief, t: -kernel.likelihood(belief, t).log_prob(x_0))
    prior = kernel.marginal(data.states, 1.0).kl(kernel.prior(data.states))
    return total + float((data.table.flatten() * prior).nan_to_num().sum())


@pytest.mark.parametrize("name", CONTINUOUS)
def test_one_token_costs_its_entropy_in_continuous_time(name: str) -> None:
    kernel, data = kernel_of(name), data_of(name, 1)
    bound = continuous_bound(data, kernel, 0.05, data.denoise(kernel))
    assert bound == pytest.approx(data.entropy(), rel=1e-6)


def test_absorbing_tokens_cost_their_entropy_in_continuous_time() -> None:
    """Two tokens: what is lost is I low^2, to the last digit of the quadrature, and nothing in the limit."""
    data = data_of("absorbing", 2)
    information = sum(TokenData(data.table.sum(axis)).entropy() for axis in (0, 1)) - data.entropy()
    kernel = kernel_of("absorbing")
    for low in (1e-4, 0.2):
        bound = continuous_bound(data, kernel, low, data.denoise(kernel), nodes=16)
        assert bound == pytest.approx(data.entropy() + information * low**2, rel=1e-6)


def test_other_chains_of_two_tokens_approach_their_entropy_in_continuous_time() -> None:
    data, kernel = data_of("uniform", 2), kernel_of("gaussian")
    low, half = (continuous_bound(data, kernel, low, data.denoise(kernel), nodes=10) for low in (0.02, 0.01))
    assert data.entropy() < half < low < expected_bound(data, kernel, grids.uniform(4))
    # Where diffusion ends both tokens may err: O(low^2) (up to logarithms).
    assert half - data.entropy() < 0.4 * (low - data.entropy()) + 1e-6


@pytest.mark.parametrize("name", CHAINS)
def test_both_readings_give_the_exact_belief_and_the_same_bound(name: str) -> None:
    kernel, data = kernel_of(name), data_of(name, 2)

    def reading(parametrisation: Any, exact: Any) -> Any:
        def denoise(x: Tensor, t: Any) -> Tensor:
            network: Any = lambda x, c: exact(x, t) + x.unsqueeze(-1)  # noqa: E731
            return TokenDenoiser(network, kernel.schedule, parametrisation).given(kernel)(x, t)

        return denoise

    own, others = reading(logits, data.denoise(kernel)), reading(context, data.others(kernel))
    states = torch.tensor(list(itertools.product(range(K), repeat=2)))
    law = torch.stack([kernel.marginal(x_0.expand_as(states), 0.6).log_prob(states).exp() for x_0 in data.states])
    x_t = states[data.table.flatten() @ law > 0]
    torch.testing.assert_close(own(x_t, 0.6).exp(), others(x_t, 0.6).exp(), rtol=1e-10, atol=1e-12)
    belief = own(x_t, 0.6)
    for s in (0.2, 0.5):
        one, two = (kernel.posterior(x_t, b, s, 0.6).log_probs.exp() for b in (belief, others(x_t, 0.6)))
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_steps_of_any_length_sample_one_token_exactly(name: str) -> None:
    """The product of the reverse laws, from where the chain ends, is the data's law."""
    kernel, data = kernel_of(name), data_of(name, 1)
    law = data.table @ matrix(kernel, 0.0, 1.0)
    x = torch.arange(K).unsqueeze(1)
    grid = GRIDS[2].tolist()

    def step(law: Tensor, logs: Tensor) -> Tensor:
        return (law[law > 0].unsqueeze(1) * logs.squeeze(1).exp()[law > 0]).sum(0)

    for t, s in itertools.pairwise(grid[:-1]):
        law = step(law, kernel.posterior(x, data.denoise(kernel)(x, t).nan_to_num(-math.inf), s, t).log_probs)
    law = step(law, kernel.likelihood(data.denoise(kernel)(x, grid[-2]), grid[-2]).log_probs)
    torch.testing.assert_close(law, data.table, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_are_finite_where_beliefs_rule_out(name: str) -> None:
    kernel, x_0 = kernel_of(name), torch.tensor([[0, 1, 2], [3, 3, 0]])
    for s, t in ((0.01, 0.02), (0.3, 0.6), (0.5, 1.0)):
        x_t = kernel.marginal(x_0, t).sample(torch.Generator().manual_seed(0))
        output = torch.zeros((2, 3, K), dtype=torch.float64, requires_grad=True)
        barred = torch.arange(K) == (1 if name not in WITHOUT else K - 1)
        belief = logits(output.masked_fill(barred, -math.inf), kernel.evidence(x_t, t))
        values = [kernel.gap(x_t, x_0, belief, s, t), kernel.error(x_0, belief, t)]
        if name != "published":
            values.append(kernel.gap_rate(x_t, x_0, belief, t))
        for value in values:
            assert not bool(value.isnan().any())
            (gradient,) = torch.autograd.grad(value[value.isfinite()].sum(), output, retain_graph=True)
            assert bool(gradient.isfinite().all())


def test_impossible_events_have_no_probability() -> None:
    for name in WITHOUT:
        kernel = kernel_of(name)
        seen, other = torch.tensor([[2, K - 1]]), torch.tensor([[1, 1]])
        law = kernel.posterior(seen, kernel.certain(other), 0.3, 0.6)
        # Token 2 was never 1: nothing is possible there; the masked one was 1 or masked.
        assert bool((law.log_probs[0, 0] == -math.inf).all())
        assert law.log_probs[0, 1].exp().nonzero().flatten().tolist() == [1, K - 1]
        assert float(kernel.transition(seen, 0.3, 0.6).log_prob(other)) == -math.inf
        assert float(kernel.marginal(other, 0.4).log_prob(seen)) == -math.inf
        assert float(kernel.gap(seen[:, 1:], other[:, 1:], kernel.certain(seen[:, :1]), 0.3, 0.6)) == math.inf
    assert absorbing(RectifiedFlow(), K, mask=1).mask == 1
