"""The any-order view of absorbing kernels against enumeration; chi-square tests at p >= 1e-4 with fixed seeds."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.any_order import (
    any_order,
    any_order_losses,
    any_order_nll,
    optimal_steps,
    order_log_prob,
    steps_of,
)
from polydiff.core.categorical import Categorical, absorbing, uniform
from polydiff.core.errors import ArgumentError
from polydiff.core.kernel import Time
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, RectifiedFlow
from tests.core.test_unmasking import COUNT, Counting, case, factorised, masks, pvalue
from tests.problems import TokenData

ORDERS = list(permutations(range(3)))


def wrong(x: Tensor, t: Time) -> Tensor:
    """Beliefs that depend on what is revealed in a way that no joint has: every order has a likelihood of its own."""
    seen = torch.nn.functional.one_hot(x, 4).double()
    context = (seen * torch.tensor([0.3, -1.2, 0.8, 0.1]) * torch.tensor([[1.0], [0.4], [-0.7]])).sum((1, 2))
    logits = context.sin().reshape(-1, 1, 1) * torch.arange(9).reshape(3, 3).double().cos()
    belief = torch.nn.functional.pad(logits.log_softmax(-1), (0, 1), value=-torch.inf)
    certain = torch.nn.functional.one_hot(x, 4).double().log()
    return torch.where((x == 3).unsqueeze(-1), belief, certain)


def states() -> Tensor:
    return torch.cartesian_prod(*[torch.arange(3)] * 3)


@pytest.mark.parametrize("order", [None, *ORDERS])
def test_one_token_a_step_draws_the_joint(order: tuple[int, ...] | None) -> None:
    kernel, data = case(3, mask=1, schedule=Cosine())
    times, x = steps_of([1] * 3, kernel.schedule), masks(kernel, COUNT, 3)
    given = None if order is None else torch.tensor(order)
    steps = list(any_order(data.denoise(kernel), kernel, x, times, order=given, generator=seeded(1)))
    assert pvalue(data, steps[-1].x, data.table) > 1e-4
    hidden = torch.stack([step.x == 1 for step in steps])
    assert bool((hidden.sum(2) == torch.tensor([2, 1, 0]).unsqueeze(1)).all())
    if order is not None:
        for many, state in enumerate(hidden, 1):
            assert bool((~state[:, list(order[:many])]).all())
    else:
        shares = (~hidden[0]).double().mean(0)
        assert bool((shares - 1 / 3).abs().max() < 5 * (2 / 9 / COUNT) ** 0.5)


def test_an_order_for_each_example_passes_over_known_tokens() -> None:
    kernel, data = case(3)
    order, x = torch.tensor([[2, 0, 1], [1, 2, 0]]), masks(kernel, 2, 3)
    x[0, 2] = 1
    steps = list(any_order(data.denoise(kernel), kernel, x, steps_of([1] * 6, kernel.schedule), order=order))
    hidden = [(step.x == 3).tolist() for step in steps]
    # Two masks over six steps, and three: 2, 3 times 5/6 ... 0, halves down.
    assert [sum(state[0]) for state in hidden] == [2, 1, 1, 1, 0, 0]
    assert [sum(state[1]) for state in hidden] == [2, 2, 1, 1, 0, 0]
    assert {tuple(state[0]) for state in hidden} == {(True, True, False), (False, True, False), (False,) * 3}
    assert {tuple(state[1]) for state in hidden} <= {
        (True, True, True), (True, False, True), (True, False, False), (False,) * 3
    }  # fmt: skip
    assert bool((torch.stack([step.x[0, 2] for step in steps]) == 1).all())


@pytest.mark.parametrize("counts", [[1, 3, 2], [6], [2, 2, 2], [4, 1, 1], [1] * 6])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=["rectified", "cosine"])
def test_counts_are_kept(counts: list[int], schedule: Any) -> None:
    kernel = absorbing(schedule, 3, mask=2)
    denoise = Counting(lambda x, t: torch.tensor([0.5, 0.5, 0.0]).log().expand(len(x), 6, 3))
    times = steps_of(torch.tensor(counts), schedule)
    steps = list(any_order(denoise, kernel, masks(kernel, 5, 6), times, generator=seeded(0)))
    left = torch.stack([(step.x == 2).sum(1) for step in steps])
    assert bool((left == 6 - torch.tensor(counts).cumsum(0).unsqueeze(1)).all())
    torch.testing.assert_close(1 - schedule(times[:-1])[0], torch.tensor([6, *left[:-1, 0]]).double() / 6)


@pytest.mark.parametrize("columns", [False, True])
def test_two_at_once_are_independent(columns: bool) -> None:
    kernel, data = case(2)
    times = grids.uniform(1)
    times = times.unsqueeze(1).expand(-1, COUNT) if columns else times
    x = last(any_order(data.denoise(kernel), kernel, masks(kernel, COUNT, 2), times, generator=seeded(2)))
    assert pvalue(data, x, factorised(data)) > 1e-4


@pytest.mark.parametrize("order", ORDERS)
def test_likelihood_of_an_order(order: tuple[int, ...]) -> None:
    """With the exact denoiser the joint in every order; with any denoiser a law that sums to 1 and is the sampler's."""
    kernel, data = case(3)
    times, visiting = steps_of([1] * 3, kernel.schedule), torch.tensor(order)
    logs = order_log_prob(data.denoise(kernel), kernel, states(), times, order=visiting)
    assert logs.shape == (27, 3)
    torch.testing.assert_close(logs.sum(1), data.table[:3, :3, :3].flatten().log())
    first = data.table.sum([axis for axis in range(3) if axis != order[0]])[:3].log()
    torch.testing.assert_close(logs[:, order[0]], first[states()[:, order[0]]])
    for counts in ([1, 1, 1], [2, 1], [3]):
        times = steps_of(counts, kernel.schedule)
        p = order_log_prob(wrong, kernel, states(), times, order=visiting).sum(1).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)
        x = last(any_order(wrong, kernel, masks(kernel, COUNT, 3), times, order=visiting, generator=seeded(3)))
        table = torch.zeros(4, 4, 4, dtype=torch.float64)
        table[:3, :3, :3] = p.reshape(3, 3, 3)
        assert pvalue(data, x, table) > 1e-4


def test_losses_are_those_of_all_orders() -> None:
    """The means over orders of -log p by the number revealed, by enumeration; one drawn j estimates their sum."""
    kernel, _ = case(3)
    x_0, times = torch.tensor([[0, 2, 1], [2, 2, 0]]), steps_of([1] * 3, kernel.schedule)
    every = [order_log_prob(wrong, kernel, x_0, times, order=torch.tensor(order)) for order in ORDERS]
    exact = -torch.stack([logs[:, list(order)] for logs, order in zip(every, ORDERS, strict=True)]).mean(0)
    n = 6000
    many = x_0.repeat_interleave(n, 0)
    losses = any_order_losses(wrong, kernel, many, generator=seeded(4)).reshape(2, n, 3)
    error = losses.std(1) / n**0.5 + 1e-12
    assert bool(((losses.mean(1) - exact).abs() < 4.5 * error).all())
    torch.testing.assert_close(losses[:, 0, 0], exact[:, 0])  # with nothing revealed there is one order
    bounds = any_order_nll(wrong, kernel, many, generator=seeded(5)).reshape(2, n)
    error = bounds.std(1) / n**0.5
    assert bool(((bounds.mean(1) - exact.sum(1)).abs() < 4.5 * error).all())
    assert bool((losses.sum(2).var(1) < bounds.var(1)).all())


def test_the_any_order_bound_of_the_exact_denoiser_is_the_entropy() -> None:
    kernel, data = case(3, schedule=Cosine())
    bounds = any_order_nll(data.denoise(kernel), kernel, data.sample(COUNT, seeded(6)), generator=seeded(7))
    assert abs(float(bounds.mean()) - data.entropy()) < 4.5 * float(bounds.std()) / COUNT**0.5


def test_the_denoiser_is_asked_at_the_time_of_its_masks() -> None:
    """1 - alpha_t is the share of the masks; per example, for states of any shape, neighbours do not matter."""
    kernel = absorbing(Cosine(), 3, mask=2)

    def denoise(x: Tensor, t: Time) -> Tensor:
        share = (x == 2).double().mean((1, 2))
        torch.testing.assert_close(1 - kernel.schedule(torch.as_tensor(t))[0], share)
        return torch.tensor([0.25, 0.75, 0.0]).log().expand(*x.shape, 3)

    x_0 = torch.zeros(7, 2, 2, dtype=torch.long)
    whole = any_order_nll(denoise, kernel, x_0, generator=example_generators(0, 0, range(7)))
    torch.testing.assert_close(whole, torch.full((7,), 4 * torch.tensor(4.0).log().item()).double())
    losses = any_order_losses(denoise, kernel, x_0, generator=example_generators(0, 0, range(7)))
    assert losses.shape == (7, 4)
    _, data = case(3)
    kernel, _ = case(3)
    x_0 = data.sample(5, seeded(1))
    for score in (any_order_nll, any_order_losses):
        whole = score(wrong, kernel, x_0, generator=example_generators(0, 0, range(5)))
        alone = score(wrong, kernel, x_0[3:4], generator=example_generators(0, 0, [3]))
        torch.testing.assert_close(whole[3:4], alone)


def cost(losses: Tensor, counts: tuple[int, ...]) -> float:
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return sum(k * float(losses[start]) for k, start in zip(counts, starts, strict=True))


@pytest.mark.parametrize("falling", [True, False])
def test_optimal_steps_are_those_of_brute_force(falling: bool) -> None:
    N = 7
    losses = torch.rand(N, generator=seeded(8), dtype=torch.float64)
    losses = losses.sort(descending=True).values if falling else losses
    for n in range(1, N + 1):
        counts = optimal_steps(losses, n)
        assert counts.shape == (n,)
        assert int(counts.sum()) == N
        assert int(counts.min()) >= 1
        every = [c for c in product(range(1, N + 1), repeat=n) if sum(c) == N]
        assert cost(losses, tuple(counts.tolist())) == pytest.approx(min(cost(losses, c) for c in every))


def test_optimal_steps_reveal_together_where_it_costs_least() -> None:
    losses = torch.tensor([3.0, 2.0, 1.0, 0.1, 0.1, 0.1])
    assert optimal_steps(losses, 4).tolist() == [1, 1, 1, 3]
    assert optimal_steps(losses, 6).tolist() == [1] * 6


def test_bad_input() -> None:
    kernel, data = case(3)
    x, times, denoise = masks(kernel, 2, 3), grids.uniform(2), data.denoise(kernel)
    for order in ([0, 1], [0, 1, 1], [1, 2, 3]):
        with pytest.raises(ArgumentError, match="order"):
            next(any_order(denoise, kernel, x, times, order=torch.tensor(order)))
    with pytest.raises(ArgumentError, match="x_0"):
        any_order_nll(denoise, kernel, x)
    with pytest.raises(ArgumentError, match="x_0"):
        any_order_losses(denoise, kernel, x[:0])
    other: Categorical = uniform(RectifiedFlow(), 4)
    with pytest.raises(ArgumentError, match="absorbing"):
        any_order_nll(denoise, other, TokenData.standard(3, 4).sample(2, seeded(0)))
    for losses, n in (
        (torch.ones(3), 0),
        (torch.ones(3), 4),
        (torch.ones(3, 1), 1),
        (torch.tensor([1.0, torch.nan]), 1),
    ):
        with pytest.raises(ArgumentError):
            optimal_steps(losses, n)
    for counts in ([], [1, 0], [0.5, 0.5], [[1, 2]]):
        with pytest.raises(ArgumentError, match="counts"):
            steps_of(counts, kernel.schedule)  # pyright: ignore[reportArgumentType]
