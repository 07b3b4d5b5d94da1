"""Samplers of absorbing kernels against closed-form joints; chi-square tests at p >= 1e-4 with fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from polydiff.core import grids, schedules
from polydiff.core.ancestral import ancestral
from polydiff.core.any_order import any_order, steps_of
from polydiff.core.categorical import Categorical, absorbing, uniform
from polydiff.core.denoisers import TokenDenoiser
from polydiff.core.distributions import Discrete
from polydiff.core.errors import ArgumentError
from polydiff.core.kernel import Time
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.unmasking import (
    LATEST,
    cached,
    confidence,
    cosine,
    entropy,
    first_hitting,
    margin,
    probability,
    top,
)
from tests.problems import TokenData

COUNT = 8_000


def masks(kernel: Categorical, *shape: int) -> Tensor:
    assert kernel.mask is not None
    return torch.full(shape, kernel.mask)


def case(L: int = 2, mask: int = 3, schedule: schedules.Schedule | None = None) -> tuple[Categorical, TokenData]:
    """An absorbing kernel on three symbols and a dependent joint of L tokens."""
    return absorbing(schedule or RectifiedFlow(), 4, mask), TokenData.standard(L, 4, without=mask)


def pvalue(data: TokenData, x: Tensor, law: Tensor) -> float:
    """Of the chi-square test that x (B, L) is drawn from the law (K,) * L; 0 where something impossible was drawn."""
    seen, expected = torch.bincount(data.index(x), minlength=law.numel()), law.flatten() * len(x)
    there = expected > 0
    if int(seen[~there].sum()):
        return 0.0
    return float(stats.chisquare(seen[there].numpy(), (expected[there] / expected.sum() * len(x)).numpy()).pvalue)


def factorised(data: TokenData) -> Tensor:
    """The product of the marginals of a joint of two."""
    return data.table.sum(1).unsqueeze(1) * data.table.sum(0)


class Counting:
    """A denoiser that writes down when it was asked about how many examples, and of what shape."""

    def __init__(self, denoise: Callable[[Tensor, Time], Tensor]):
        self.denoise, self.times, self.examples = denoise, [], []

    def __call__(self, x: Tensor, t: Time) -> Tensor:
        self.times.append(t)
        self.examples.append(len(x))
        return self.denoise(x, t)


@pytest.mark.parametrize("mask", [0, 1, 3])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=["rectified", "cosine"])
@pytest.mark.parametrize("L", [2, 3])
def test_first_hitting_draws_the_joint(L: int, schedule: schedules.Schedule, mask: int) -> None:
    kernel, data = case(L, mask, schedule)
    denoise = Counting(data.denoise(kernel))
    x = last(first_hitting(denoise, kernel, masks(kernel, COUNT, L), grids.uniform(2), generator=seeded(1)))
    assert len(denoise.times) == L
    assert pvalue(data, x, data.table) > 1e-4
    two_steps = last(
        ancestral(data.denoise(kernel), kernel, masks(kernel, COUNT, L), grids.uniform(2), generator=seeded(1))
    )
    assert pvalue(data, two_steps, data.table) < 1e-6  # the test could tell


@pytest.mark.parametrize("start", [1.0, 0.6])
def test_hitting_times_are_those_of_the_chain(start: float) -> None:
    """P(no reveal of M before s) = ((1 - alpha_s)/(1 - alpha_t))^M; the denoiser is asked at the moment of reveal."""
    kernel, data = case(3, schedule=Cosine())
    denoise = Counting(data.denoise(kernel))
    times = torch.tensor([start, 0.0], dtype=torch.float64)
    steps = list(first_hitting(denoise, kernel, masks(kernel, 4000, 3), times, generator=seeded(2)))
    noise = [1 - kernel.schedule(torch.as_tensor(t))[0] for t in denoise.times]
    noise.insert(0, (1 - kernel.schedule(times[0])[0]).expand(4000))
    for many, (before, after) in zip((3, 2, 1), zip(noise, noise[1:], strict=False), strict=True):
        assert stats.kstest(((after / before) ** many).numpy(), "uniform").pvalue > 1e-4
    for step, asked in zip(steps[:-1], denoise.times[1:], strict=True):
        assert bool((step.t >= asked).all())  # pyright: ignore[reportOperatorIssue]
    torch.testing.assert_close(steps[0].t, denoise.times[0])
    assert steps[-1].t == 0.0
    hidden = torch.stack([(step.x == 3).sum(1) for step in steps])
    assert bool((hidden == torch.tensor([2, 1, 0]).unsqueeze(1)).all())


def test_which_token_comes_first_is_chance() -> None:
    kernel, data = case(3)
    step = next(
        first_hitting(data.denoise(kernel), kernel, masks(kernel, 6000, 3), grids.uniform(1), generator=seeded(3))
    )
    first = torch.bincount((step.x != 3).int().argmax(1), minlength=3)
    assert stats.chisquare(first.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("per_call", [1, 2, 3, 5])
def test_tokens_of_one_call_do_not_see_one_another(per_call: int) -> None:
    kernel, data = case(2)
    denoise = Counting(data.denoise(kernel))
    steps = list(
        first_hitting(
            denoise, kernel, masks(kernel, COUNT, 2), grids.uniform(1), per_call=per_call, generator=seeded(4)
        )
    )
    assert len(steps) == len(denoise.times) == math.ceil(2 / per_call)
    assert pvalue(data, steps[-1].x, data.table if per_call == 1 else factorised(data)) > 1e-4


@pytest.mark.parametrize("sampler", [ancestral, cached])
@pytest.mark.parametrize("mask", [0, 1, 3])
def test_the_joint_of_a_few_steps(sampler: Callable[..., Iterator[Any]], mask: int) -> None:
    """(1 - 1/T) p + (1/T) p_1 p_2 for alpha = 1 - t."""
    kernel, data = case(2, mask)
    for T in (1, 3):
        law = (1 - 1 / T) * data.table + factorised(data) / T
        x = last(sampler(data.denoise(kernel), kernel, masks(kernel, COUNT, 2), grids.uniform(T), generator=seeded(5)))
        assert pvalue(data, x, law) > 1e-4
        assert pvalue(data, x, data.table) < 1e-6


SAMPLERS: dict[str, Callable[..., Iterator[Any]]] = {
    "ancestral": ancestral,
    "first-hitting": first_hitting,
    "first-hitting-2": partial(first_hitting, per_call=2),
    "cached": cached,
    "any-order": any_order,
    "confidence": partial(confidence, temperature=1.0),
    "confidence-top": partial(confidence, criterion=top, share=cosine),
}


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ancestral"])
def test_known_tokens_stay_and_are_seen(name: str) -> None:
    """Three tokens, the middle one known: the ends given it. One unknown token is drawn exactly by every sampler."""
    kernel, data = case(3)
    x = masks(kernel, COUNT, 3)
    x[:, 1] = 2
    steps = list(SAMPLERS[name](data.denoise(kernel), kernel, x, grids.uniform(3), generator=seeded(6)))
    assert all(bool((step.x[:, 1] == 2).all()) for step in steps)
    assert bool((x[:, 0] == 3).all())  # the input is the caller's
    assert int((steps[-1].x == 3).sum()) == 0
    given = TokenData(data.table[:, 2])
    if name in ("first-hitting", "any-order", "confidence-top"):
        assert pvalue(given, steps[-1].x[:, [0, 2]], given.table) > 1e-4
    x[:, 0] = 1
    end = last(SAMPLERS[name](data.denoise(kernel), kernel, x, grids.uniform(3), generator=seeded(7)))
    single = TokenData(data.table[1, 2])
    assert pvalue(single, end[:, 2:], single.table) > 1e-4
    assert bool((end[:, :2] == torch.tensor([1, 2])).all())


def partly(kernel: Categorical, data: TokenData) -> Tensor:
    """Examples with 3, 0, 1 and 2 masks."""
    assert kernel.mask is not None
    x = data.sample(4, seeded(0))
    for example, hidden in enumerate(([0, 1, 2], [], [1], [0, 2])):
        x[example, hidden] = kernel.mask
    return x


@pytest.mark.parametrize("name", SAMPLERS)
def test_neighbours_do_not_matter(name: str) -> None:
    kernel, data = case(3, schedule=Cosine())
    x, denoise, sample = partly(kernel, data), data.denoise(kernel), SAMPLERS[name]
    columns = torch.stack([grids.uniform(5) ** power for power in (1.0, 1.5, 2.0, 0.7)], 1)
    for times in (grids.uniform(5), columns):
        whole = last(sample(denoise, kernel, x, times, generator=example_generators(1, 0, range(4))))
        again = last(sample(denoise, kernel, x, times, generator=example_generators(1, 0, range(4))))
        assert torch.equal(whole, again)
        for i in range(4):
            own = times if times.ndim == 1 else times[:, i]
            alone = last(sample(denoise, kernel, x[i : i + 1], own, generator=example_generators(1, 0, [i])))
            assert torch.equal(alone[0], whole[i])
    one = last(sample(denoise, kernel, masks(kernel, 50, 3), grids.uniform(5), generator=seeded(1)))
    assert torch.equal(one, last(sample(denoise, kernel, masks(kernel, 50, 3), grids.uniform(5), generator=seeded(1))))
    assert not torch.equal(
        one, last(sample(denoise, kernel, masks(kernel, 50, 3), grids.uniform(5), generator=seeded(2)))
    )


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("ancestral", "cached")])
def test_nothing_masked_asks_nobody(name: str) -> None:
    kernel, data = case(3)
    denoise, x = Counting(data.denoise(kernel)), data.sample(5, seeded(0))
    assert torch.equal(last(SAMPLERS[name](denoise, kernel, x, grids.uniform(3), generator=seeded(1))), x)
    assert denoise.times == []


def test_finished_examples_are_asked_about_at_their_last_time() -> None:
    kernel, data = case(3)
    denoise = Counting(data.denoise(kernel))
    x = partly(kernel, data)
    list(first_hitting(denoise, kernel, x, torch.tensor([0.8, 0.0], dtype=torch.float64), generator=seeded(0)))
    asked = torch.stack([torch.as_tensor(t) for t in denoise.times])
    assert asked.shape == (3, 4)
    assert bool((asked > 0).all())
    for example, hidden in enumerate((3, 0, 1, 2)):
        expected = asked[[min(step, max(hidden - 1, 0)) for step in range(3)], example]
        assert torch.equal(asked[:, example], expected)
        assert len(asked[:, example].unique()) == max(hidden, 1)
    assert bool((asked[:, 1] == 0.8).all())


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ancestral"])
def test_infilling_from_noise_is_finite_in_single_precision(name: str) -> None:
    """At t = 1 a known token is impossible; beliefs of `TokenDenoiser` would be NaN there."""
    kernel, data = case(3)

    def network(x: Tensor, c: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x, 4)[..., :3].float().mean(1, keepdim=True).expand(-1, 3, -1)

    denoise = TokenDenoiser(network, kernel.schedule).given(kernel)  # pyright: ignore[reportArgumentType]
    for step in SAMPLERS[name](denoise, kernel, partly(kernel, data), grids.uniform(3), generator=seeded(0)):
        assert step.belief is None or not bool(step.belief.isnan().any())


def test_masks_do_not_come_back() -> None:
    """A share that rises is one that stays, until the end."""
    kernel, _ = case()
    run = confidence(places([0.5] * 8), kernel, masks(kernel, 1, 8), grids.uniform(4), share=lambda s: 1 - s)
    assert [int((step.x == 3).sum()) for step in run] == [2, 2, 2, 0]


@pytest.mark.parametrize("name", ["first-hitting", "cached", "any-order", "confidence"])
def test_only_absorbing_kernels(name: str) -> None:
    kernel = uniform(RectifiedFlow(), 3)
    with pytest.raises(ArgumentError, match="absorbing"):
        next(SAMPLERS[name](lambda x, t: kernel.certain(x), kernel, torch.zeros(2, 2).long(), grids.uniform(2)))


@pytest.mark.parametrize("options", [{"per_call": 0}, {"per_call": 1.5}])
def test_first_hitting_checks(options: Any) -> None:
    kernel, data = case()
    with pytest.raises(ArgumentError):
        next(first_hitting(data.denoise(kernel), kernel, masks(kernel, 1, 2), grids.uniform(2), **options))


@pytest.mark.parametrize("mask", [0, 1, 3])
@pytest.mark.parametrize("columns", [False, True], ids=["(n,)", "(n,B)"])
@pytest.mark.parametrize("single", [False, True], ids=["all", "among"])
def test_cached_is_ancestral_draw_by_draw(mask: int, columns: bool, single: bool) -> None:
    kernel, data = case(3, mask, Cosine())
    x, times = masks(kernel, 40, 3), grids.uniform(30)
    x[::7, 1] = (mask + 1) % 4
    times[0] = 0.999  # at 1 known tokens are impossible, of which `ancestral` takes notice
    if columns:
        times = torch.stack([times ** (1 + i / 40) for i in range(40)], 1)
    plain, counting = Counting(data.denoise(kernel)), Counting(data.denoise(kernel))
    expected = list(ancestral(plain, kernel, x, times, generator=example_generators(3, 0, range(40))))
    steps = list(
        cached(
            counting,
            kernel,
            x,
            times,
            among=(lambda index: counting) if single else None,
            generator=example_generators(3, 0, range(40)),
        )
    )
    for step, other in zip(steps, expected, strict=True):
        assert torch.equal(step.x, other.x)
        assert step.t is other.t or torch.equal(torch.as_tensor(step.t), torch.as_tensor(other.t))
        torch.testing.assert_close(step.belief, other.belief, rtol=1e-12, atol=1e-14)
    # Each example is asked about once at the start and once after each of its changes but the last step's.
    states = torch.stack([x, *(step.x for step in steps[:-1])])
    changes = (states[1:] != states[:-1]).any(2)
    if single:
        assert sum(counting.examples) == 40 + int(changes.sum())
    else:
        assert len(counting.times) == 1 + int(changes.any(1).sum())
        assert set(counting.examples) == {40}
    assert sum(plain.examples) == 40 * 30


def test_cached_in_single_precision_on_a_network() -> None:
    """States (B, 2, 2), a network with fewer symbols than the kernel, and no call while nothing changes."""
    network = torch.nn.Sequential(torch.nn.Embedding(6, 8), torch.nn.Linear(8, 5))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(i)))
    network.forward = lambda x, c: network[1](network[0](x).mean((1, 2), keepdim=True).expand(-1, 2, 2, -1))  # type: ignore
    kernel = absorbing(RectifiedFlow(), 6, mask=5)
    denoise = Counting(TokenDenoiser(network, kernel.schedule).given(kernel))
    x, times = masks(kernel, 3, 2, 2), grids.uniform(200)
    with torch.no_grad():
        expected = last(ancestral(denoise, kernel, x, times, generator=seeded(0)))
        assert len(denoise.times) == 200
        denoise.times.clear()
        assert torch.equal(last(cached(denoise, kernel, x, times, generator=seeded(0))), expected)
    assert len(denoise.times) <= 13


@pytest.mark.parametrize("criterion", [top, margin, entropy])
def test_an_order_that_depends_on_the_state_alone_keeps_the_law(criterion: Any) -> None:
    """One token a step, chosen before it is drawn, is the chain rule; chosen by what was drawn it is not."""
    kernel, data = case(3)
    times = steps_of([1] * 3, kernel.schedule)
    run = partial(confidence, data.denoise(kernel), kernel, masks(kernel, COUNT, 3), times, generator=seeded(8))
    assert pvalue(data, last(run(criterion=criterion)), data.table) > 1e-4
    assert pvalue(data, last(run(criterion=probability)), data.table) < 1e-6


def test_criteria_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.1, 0.8, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    drawn, log = torch.tensor([1, 2, 0]), math.log
    for criterion, expected in (
        (probability, [log(0.3), log(0.8), 0.0]),
        (top, [log(0.5), log(0.8), 0.0]),
        (margin, [0.2, 0.7, 1.0]),
        (entropy, [-float(stats.entropy([0.5, 0.3, 0.2])), -float(stats.entropy([0.1, 0.1, 0.8])), 0.0]),
    ):
        torch.testing.assert_close(criterion(p.log(), drawn), torch.tensor(expected, dtype=torch.float64))


def places(sure: list[float]) -> Callable[[Tensor, Time], Tensor]:
    """A belief in symbol 0 with these probabilities, else in 1; three symbols and a mask, whatever the state."""
    p = torch.tensor([[share, 1 - share, 0.0, 0.0] for share in sure], dtype=torch.float64)
    return lambda x, t: p.log().expand(len(x), -1, -1)


def test_the_surest_come_first_in_the_numbers_of_the_schedule() -> None:
    kernel, _ = case()
    denoise = Counting(places([0.6, 0.99, 0.7, 0.8, 0.9]))
    x = masks(kernel, 2, 5)
    x[1, 1] = 2
    steps = list(confidence(denoise, kernel, x, grids.uniform(4), criterion=top, generator=seeded(9)))
    hidden = [(step.x == 3).tolist() for step in steps]
    left = [[4, 2, 1, 0], [3, 2, 1, 0]]
    for example, order in ((0, [1, 4, 3, 2, 0]), (1, [4, 3, 2, 0])):
        for step, many in enumerate(left[example]):
            assert {i for i in range(5) if hidden[step][example][i]} == set(order[len(order) - many :])
    assert len(denoise.times) == 4
    assert [len(denoise.times), denoise.times] == [4, [LATEST, 0.75, 0.5, 0.25]]
    by_cosine = list(confidence(denoise, kernel, x, grids.uniform(4), share=cosine, generator=seeded(9)))
    expected = [round(5 * math.sin(math.pi / 2 * s)) for s in (0.75, 0.5, 0.25, 0.0)]
    assert [int((step.x[0] == 3).sum()) for step in by_cosine] == expected


def test_more_steps_than_tokens_call_no_network_in_vain() -> None:
    kernel, _ = case()
    denoise = Counting(places([0.6, 0.99, 0.7]))
    x = last(confidence(denoise, kernel, masks(kernel, 1, 3), grids.uniform(100), generator=seeded(0)))
    assert len(denoise.times) == 3
    assert int((x == 3).sum()) == 0


def test_the_noise_on_the_order_is_gumbel_and_anneals() -> None:
    """Of two tokens with scores a, b the first is taken with probability sigmoid((a - b)/(temperature s))."""
    kernel, _ = case()
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    run = confidence(
        places([0.9, 0.6]), kernel, masks(kernel, COUNT, 2), times, criterion=top, temperature=3.0, generator=seeded(10)
    )
    first = int((next(run).x[:, 0] != 3).sum())
    share = 1 / (1 + math.exp(-math.log(0.9 / 0.6) / (3.0 * 0.5)))
    assert stats.binomtest(first, COUNT, share).pvalue > 1e-4
    with pytest.raises(ArgumentError, match="temperature"):
        next(confidence(places([1.0]), kernel, masks(kernel, 1, 1), times, temperature=-1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rare_tokens_have_their_share(dtype: torch.dtype) -> None:
    """Of 50,257 symbols those of 1e-7 and less are drawn at u in their interval and nowhere else."""
    K = 50_257
    weights = torch.rand(K, generator=seeded(0), dtype=torch.float64) ** 4 * 1e-7
    weights[[5, 40_000]] = torch.tensor([0.6, 0.4], dtype=torch.float64)
    weights[[0, 77, K - 1]] = 0.0
    law = (weights / weights.sum()).log().to(dtype)
    p = law.double().exp()
    edges = p.cumsum(0) / p.cumsum(0)[-1]
    assert float(p[edges < 1e-6].max()) < 1e-7
    chosen = torch.cat(
        [torch.arange(1, 30), torch.arange(60, 90), torch.arange(39_990, 40_010), torch.arange(K - 30, K - 1)]
    )
    chosen = chosen[p[chosen] > 1e-12]
    below = edges[chosen - 1]
    for share in (0.01, 0.5, 0.99):
        u = below + share * (edges[chosen] - below)
        assert torch.equal(Discrete(law.expand(len(u), K)).inverse(u), chosen)
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert Discrete(law.expand(2, K)).inverse(ends).tolist() == [1, K - 2]


def test_rare_tokens_by_chance() -> None:
    p = torch.tensor([2e-5, 0.0, 1 - 1.7e-4, 5e-5, 1e-4], dtype=torch.float64)
    kernel = absorbing(RectifiedFlow(), 6, mask=5)
    belief = torch.cat([p, p.new_zeros(1)]).log()
    n = 400_000
    x = last(
        first_hitting(
            lambda x, t: belief.expand(n, 1, 6), kernel, masks(kernel, n, 1), grids.uniform(1), generator=seeded(11)
        )
    )
    seen = torch.bincount(x.flatten(), minlength=6)[[0, 2, 3, 4]]
    assert int(seen.sum()) == n
    assert stats.chisquare(seen.numpy(), (p[[0, 2, 3, 4]] * n).numpy()).pvalue > 1e-4


def test_drawing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    law = Discrete(torch.randn(7, 3, 11, generator=seeded(0), dtype=torch.float64).log_softmax(-1))
    whole = law.sample(seeded(1))
    monkeypatch.setattr("polydiff.core.distributions.ROWS", 25)
    assert torch.equal(law.sample(seeded(1)), whole)
    assert law.sample(seeded(1)).shape == (7, 3)
    assert Discrete(torch.zeros(0, 11)).inverse(torch.zeros(0, dtype=torch.float64)).shape == (0,)
