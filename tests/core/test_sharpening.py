"""Sharpened beliefs against plain loops, by hand and in samplers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.categorical import absorbing, uniform
from polydiff.core.errors import ArgumentError
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import RectifiedFlow
from polydiff.core.sharpening import Change, sharpened, temperature, top_k, top_p, without
from polydiff.core.unmasking import first_hitting
from tests.core.test_unmasking import COUNT, masks, pvalue
from tests.problems import TokenData

P = [0.4, 0.05, 0.3, 0.0, 0.2, 0.05]


def log_probs(p: list[float]) -> Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


def changed(change: Change, p: list[float]) -> list[float]:
    return change(log_probs(p)).exp().tolist()


def normal(p: list[float]) -> list[float]:
    return [value / sum(p) for value in p]


def random_beliefs() -> Tensor:
    """(4, 3, 9), some of the symbols impossible and one position certain."""
    logits = 3 * torch.randn(4, 3, 9, generator=seeded(0), dtype=torch.float64)
    logits[:, :, 2] = -math.inf
    logits[1, 1] = torch.tensor([-math.inf] * 8 + [0.0])
    return logits.log_softmax(-1)


@pytest.mark.parametrize("T", [0.05, 0.7, 1.0, 3.0])
def test_temperature(T: float) -> None:
    assert changed(temperature(T), P) == pytest.approx(normal([p ** (1 / T) for p in P]), rel=1e-12)


def test_temperature_in_the_limit() -> None:
    assert changed(temperature(0), P) == [1, 0, 0, 0, 0, 0]
    assert changed(temperature(1e-8), P) == [1, 0, 0, 0, 0, 0]
    assert changed(temperature(0), [0.4, 0.4, 0.2]) == pytest.approx([0.5, 0.5, 0])
    assert changed(temperature(1e12), P) == pytest.approx([0.2, 0.2, 0.2, 0, 0.2, 0.2])


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 4]), (5, [0, 1, 2, 4, 5]), (9, range(6))]
)
def test_top_k(k: int, expected: Any) -> None:
    assert changed(top_k(k), P) == pytest.approx(normal([p if i in expected else 0 for i, p in enumerate(P)]))
    assert sum(p > 0 for p in changed(top_k(4), P)) == 4  # one of two equals


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1e-9, [0]),
        (0.39, [0]),
        (0.41, [0, 2]),
        (0.69, [0, 2]),
        (0.71, [0, 2, 4]),
        (0.96, [0, 1, 2, 4, 5]),
        (1, range(6)),
    ],
)
def test_top_p(p: float, expected: Any) -> None:
    assert changed(top_p(p), P) == pytest.approx(normal([q if i in expected else 0 for i, q in enumerate(P)]))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_that_holds_p(p: float) -> None:
    beliefs = random_beliefs()
    cut = top_p(p)(beliefs)
    for row, after in zip(beliefs.flatten(0, 1).exp(), cut.flatten(0, 1).exp(), strict=True):
        inside = after > 0
        held = float(row[inside].sum())
        assert held >= p
        assert held - float(row[inside].min()) < p
        assert float(row[inside].min()) >= float(row[~inside].max())
        torch.testing.assert_close(after[inside], row[inside] / held)


def test_without() -> None:
    assert changed(without(0, 5), P) == pytest.approx(normal([0, 0.05, 0.3, 0, 0.2, 0]))
    assert changed(without(1), [0.0, 1.0, 0.0]) == [0, 1, 0]  # a known token stays
    assert changed(without(0, 1), [0.5, 0.5, 0.0]) == [0.5, 0.5, 0]
    both = without(1)(log_probs([0.0, 1.0, 0.0, 0.5, 0.25, 0.25]).reshape(2, 3))
    assert both.exp().flatten().tolist() == pytest.approx([0, 1, 0, 2 / 3, 0, 1 / 3])


CHANGES = [temperature(0.5), temperature(0), top_k(3), top_p(0.8), without(0, 4)]


@pytest.mark.parametrize("change", CHANGES)
def test_beliefs_stay_beliefs(change: Change) -> None:
    """Normalised, of the same shape and type, nothing impossible made possible, certainty kept, the input untouched."""
    beliefs = random_beliefs()
    before = beliefs.clone()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        after = change(beliefs.to(dtype))
        assert after.dtype == dtype
        assert after.shape == beliefs.shape
        torch.testing.assert_close(after.double().logsumexp(-1), torch.zeros(4, 3).double(), rtol=0, atol=2e-2)
        assert not bool((after > -math.inf)[beliefs == -math.inf].any())
        assert after[1, 1].tolist() == [-math.inf] * 8 + [0.0]
    assert torch.equal(beliefs, before)


def test_changes_compose_in_order() -> None:
    def denoise(x: Tensor, t: Any) -> Tensor:
        return log_probs(P).expand(*x.shape, 6)

    x = torch.zeros(2, 3, dtype=torch.long)
    for one, two in ((temperature(0.5), top_p(0.71)), (top_p(0.71), temperature(0.5))):
        torch.testing.assert_close(sharpened(denoise, one, two)(x, 0.5), two(one(denoise(x, 0.5))))
    tempered, cut = sharpened(denoise, temperature(0.5), top_p(0.71)), sharpened(denoise, top_p(0.71), temperature(0.5))
    assert int((tempered(x, 0.5)[0, 0] > -math.inf).sum()) == 2
    assert int((cut(x, 0.5)[0, 0] > -math.inf).sum()) == 3
    assert torch.equal(sharpened(denoise)(x, 0.5), denoise(x, 0.5))


def test_gradients_are_finite() -> None:
    logits = torch.randn(2, 5, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([False, False, True, False, False])
    for change in (temperature(0.5), top_k(3), top_p(0.8), without(0)):
        belief = change(logits.masked_fill(mask, -math.inf).log_softmax(-1))
        value = torch.where(belief > -math.inf, belief, 0.0).exp().pow(2).sum()
        (gradient,) = torch.autograd.grad(value, logits)
        assert bool(gradient.isfinite().all())


def test_a_network_that_says_mask_never_draws_it() -> None:
    kernel, data = absorbing(RectifiedFlow(), 4, mask=3), TokenData.standard(1, 4, without=3)

    def careless(x: Tensor, t: Any) -> Tensor:
        return torch.logaddexp(data.denoise(kernel)(x, t) + math.log(0.4), log_probs([0.0, 0.0, 0.0, 0.6]))

    x = masks(kernel, COUNT, 1)
    for sampler in (ancestral, first_hitting):
        drawn = last(sampler(careless, kernel, x, grids.uniform(3), generator=seeded(2)))
        assert int((drawn == 3).sum()) > 0
        drawn = last(sampler(sharpened(careless, without(3)), kernel, x, grids.uniform(3), generator=seeded(2)))
        assert pvalue(data, drawn, data.table) > 1e-4


def test_sharpened_single_tokens_have_the_sharpened_law() -> None:
    """Of one token under an absorbing kernel it is the sharpened marginal; forbidden symbols never come."""
    kernel, data = absorbing(RectifiedFlow(), 4, mask=3), TokenData.standard(1, 4, without=3)
    denoise = sharpened(data.denoise(kernel), temperature(0.5))
    drawn = last(ancestral(denoise, kernel, masks(kernel, COUNT, 1), grids.uniform(4), generator=seeded(3)))
    assert pvalue(data, drawn, data.table**2 / (data.table**2).sum()) > 1e-4
    other, pair = uniform(RectifiedFlow(), 3), TokenData.standard(2, 3)
    start = other.prior(torch.zeros(2000, 2).long()).sample(seeded(4))
    run = ancestral(sharpened(pair.denoise(other), without(1)), other, start, grids.uniform(4), generator=seeded(5))
    assert int((last(run) == 1).sum()) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: temperature(-0.1),
        lambda: temperature(math.inf),
        lambda: temperature(math.nan),
        lambda: top_k(0),
        lambda: top_k(1.5),  # pyright: ignore[reportArgumentType]
        lambda: top_p(0),
        lambda: top_p(1.1),
        lambda: without(),
        lambda: without(-1),
        lambda: without(6)(log_probs(P)),
    ],
)
def test_bad_input(make: Any) -> None:
    with pytest.raises(ArgumentError):
        make()
