"""Texts of any length from a window, against the law of a Markov chain; chi-square at p >= 1e-4 with fixed seeds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.any_order import any_order
from polydiff.core.categorical import absorbing, uniform
from polydiff.core.errors import ArgumentError
from polydiff.core.inpainting import repaint
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine
from polydiff.core.unmasking import cached, first_hitting
from polydiff.text.semi_autoregressive import clamped, semi_autoregressive
from tests.core.test_unmasking import COUNT, Counting, pvalue
from tests.problems import TokenData

WINDOW, MASK = 3, 2
P = torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64)
FIRST = torch.tensor([5 / 7, 2 / 7], dtype=torch.float64)  # stationary
KERNEL = absorbing(Cosine(), 3, MASK)
ONE_BY_ONE = partial(any_order, order=torch.arange(WINDOW))


def markov(length: int) -> Tensor:
    """The joint of a stationary chain, (3,) * length, the mask never occurring."""
    states = torch.cartesian_prod(*[torch.arange(2)] * length).reshape(-1, length)
    table = torch.zeros((3,) * length, dtype=torch.float64)
    weights = FIRST[states[:, 0]]
    for place in range(1, length):
        weights = weights * P[states[:, place - 1], states[:, place]]
    table[tuple(states.T)] = weights
    return table


DATA = TokenData(markov(WINDOW))


def given(table: Tensor, prompt: list[int]) -> Tensor:
    """The table with only what begins with the prompt, normalised."""
    keep = torch.zeros_like(table)
    keep[tuple(prompt)] = table[tuple(prompt)]
    return keep / keep.sum()


@pytest.mark.parametrize(
    ("context", "prompt", "length"),
    [(1, [], 5), (2, [], 5), (1, [1], 4), (2, [0], 6), (2, [1, 0, 1], 5), (1, [], 2), (0, [], 3)],
)
def test_a_markov_chain_is_continued_exactly(context: int, prompt: list[int], length: int) -> None:
    """One token of context suffices for a chain; the network only ever sees the window."""
    shapes = []

    def denoise(x: Tensor, t: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return DATA.denoise(KERNEL)(x, t)

    x = torch.tensor(prompt, dtype=torch.long).expand(COUNT, -1)
    run = semi_autoregressive(
        denoise,
        KERNEL,
        x,
        grids.uniform(1),
        length=length,
        window=WINDOW,
        context=context,
        fill=clamped(first_hitting),
        generator=seeded(1),
    )
    text = last(run)
    assert text.shape == (COUNT, length)
    assert set(shapes) == {(COUNT, WINDOW)}
    data = TokenData(markov(length))
    assert pvalue(data, text, given(data.table, prompt)) > 1e-4


def test_blocks_without_context_are_independent() -> None:
    run = partial(semi_autoregressive, DATA.denoise(KERNEL), KERNEL, torch.zeros(COUNT, 0).long(), grids.uniform(1))
    text = last(run(length=4, window=WINDOW, context=0, fill=clamped(first_hitting), generator=seeded(2)))
    data = TokenData(markov(4))
    assert pvalue(data, text, markov(3).unsqueeze(-1) * torch.cat([FIRST, FIRST.new_zeros(1)])) > 1e-4
    assert pvalue(data, text, data.table) < 1e-6


@pytest.mark.parametrize("sampler", [ancestral, cached, first_hitting, any_order])
def test_every_sampler_keeps_what_is_known(sampler: Any) -> None:
    """The next token alone, given the last two, from t = 1 on: where alpha is 0 nothing but a mask is possible."""
    prompt = torch.tensor([[1, 0, 1, 1]]).expand(COUNT, -1)
    run = semi_autoregressive(
        DATA.denoise(KERNEL),
        KERNEL,
        prompt,
        grids.uniform(4),
        length=5,
        window=WINDOW,
        context=2,
        fill=clamped(sampler),
        generator=seeded(3),
    )
    steps = list(run)
    assert all(torch.equal(step.x[:, :4], prompt) for step in steps)
    share = (steps[-1].x[:, 4] == 1).double().mean()
    assert abs(float(share) - 0.5) < 4 * 0.5 / COUNT**0.5


def test_steps_show_the_text_so_far() -> None:
    denoise = Counting(DATA.denoise(KERNEL))
    prompt = torch.tensor([[1], [0]])
    steps = list(
        semi_autoregressive(
            denoise, KERNEL, prompt, grids.uniform(3), length=6, window=3, context=1, fill=clamped(ONE_BY_ONE)
        )
    )
    assert [step.x.shape[1] for step in steps] == [3] * 3 + [5] * 3 + [6] * 3
    assert [step.t for step in steps] == pytest.approx([2 / 3, 1 / 3, 0.0] * 3)
    for end in (2, 5):
        whole = steps[end].x
        assert all(torch.equal(step.x[:, : whole.shape[1]], whole) for step in steps[end + 1 :])
    assert int((steps[-1].x == MASK).sum()) == 0


def test_neighbours_do_not_matter() -> None:
    prompt = torch.tensor([[1, 0], [0, 0], [1, 1]])
    run = partial(
        semi_autoregressive, DATA.denoise(KERNEL), KERNEL, times=grids.uniform(3), length=9, window=3, context=1
    )
    for fill in (None, clamped(first_hitting)):
        whole = last(run(x=prompt, fill=fill, generator=example_generators(0, 0, range(3))))
        for i in range(3):
            alone = last(run(x=prompt[i : i + 1], fill=fill, generator=example_generators(0, 0, [i])))
            assert torch.equal(alone[0], whole[i])


def test_other_kernels_are_filled_by_repaint() -> None:
    kernel, data = uniform(Cosine(), 2), TokenData(markov(WINDOW)[:2, :2, :2])
    prompt = torch.tensor([[1, 0]]).expand(4000, -1)
    run = partial(
        semi_autoregressive,
        data.denoise(kernel),
        kernel,
        prompt,
        grids.uniform(20),
        length=4,
        window=WINDOW,
        context=1,
        generator=seeded(4),
    )
    text = last(run(fill=partial(repaint, jump=2, resamples=4)))
    assert torch.equal(text[:, :2], prompt)
    assert abs(float((text[:, 2] == 0).double().mean()) - 0.8) < 0.05  # repaint is near the conditional law, not at it
    with pytest.raises(ArgumentError, match="repaint"):
        next(run())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x", {"x": torch.zeros(2, 3)}),
        ("x", {"x": torch.zeros(3).long()}),
        ("x", {"x": torch.zeros(0, 3).long()}),
        ("x", {"x": torch.tensor([[0, MASK]])}),
        ("window", {"window": 0}),
        ("context", {"context": 3}),
        ("context", {"context": -1}),
        ("length", {"length": 2}),
    ],
)
def test_bad_input(name: str, change: dict[str, Any]) -> None:
    options = {"x": torch.tensor([[0, 1]]), "length": 6, "window": 3, "context": 1} | change
    with pytest.raises(ArgumentError, match=f"^{name}:"):
        next(semi_autoregressive(DATA.denoise(KERNEL), KERNEL, times=grids.uniform(2), **options))
