"""Ragged states beside the dense states that each of their examples is alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core.categorical import Tokens, absorbing, marginal, uniform
from polydiff.core.errors import ArgumentError
from polydiff.core.layout import DENSE, Ragged
from polydiff.core.objectives import Denoising
from polydiff.core.randomness import rand, randn, seeded
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.tau_leaping import tau_leaping
from polydiff.core.unmasking import first_hitting
from tests.core.cases import INDEX, SIZES, B, tokens

S, T = torch.tensor([0.2, 0.1, 0.45, 0.3]).double(), torch.tensor([0.4, 0.3, 0.5, 0.8]).double()
CHAINS: dict[str, Callable[[], Tokens]] = {
    "uniform": lambda: uniform(Cosine(), 5),
    "absorbing": lambda: absorbing(RectifiedFlow(), 5, mask=4),
    "marginal": lambda: marginal(Cosine(), torch.tensor([5, 1, 2, 3, 1])),
}
WIDTHS: list[tuple[int, ...]] = [(), (2,)]
"""dimensions behind the rows"""


def split(x: Tensor) -> list[Tensor]:
    """Every example as a dense state of one."""
    return [part.unsqueeze(0) for part in x.split(SIZES)]


def belief_of(kernel: Tokens, x: Tensor) -> Tensor:
    logits = torch.randn((*x.shape, kernel.K), generator=seeded(3), dtype=torch.float64)
    return logits.index_fill(-1, torch.tensor([4]), -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", CHAINS)
def test_ragged_tokens_are_dense_tokens_example_by_example(name: str, width: tuple[int, ...]) -> None:
    dense = CHAINS[name]()
    kernel = dense.given(index=INDEX, num_graphs=B)
    x_0 = tokens(len(INDEX), *width, high=4)
    generators = [seeded(i) for i in range(B)]
    x_t = kernel.marginal(x_0, T).sample(generators)
    belief = belief_of(kernel, x_t)
    alone = [dense.marginal(x, T[b : b + 1]).sample([seeded(b)]) for b, x in enumerate(split(x_0))]
    assert all(torch.equal(one, other) for one, other in zip(split(x_t), alone, strict=True))
    x_s = kernel.posterior(x_t, belief, S, T).sample(seeded(1))

    def numbers(own: Tokens, x_0: Tensor, x_t: Tensor, x_s: Tensor, belief: Tensor, s: Any, t: Any) -> list[Tensor]:
        law = own.posterior(x_t, belief, s, t)
        return [
            own.dims(x_0).double(),
            own.error(x_0, belief, t),
            own.gap(x_t, x_0, belief, s, t),
            own.gap_rate(x_t, x_0, belief, t),
            own.prior(x_0).log_prob(x_0),
            own.marginal(x_0, t).log_prob(x_t),
            own.transition(x_s, s, t).log_prob(x_t),
            law.log_prob(x_s),
            law.log_prob(x_s, x_0 % 2 == 0),
            own.likelihood(belief, t).log_prob(x_0),
        ]

    for times in ((S, T), (0.3, 0.6)):
        whole = numbers(kernel, x_0, x_t, x_s, belief, *times)
        assert all(number.shape == (B,) for number in whole)
        for b, states in enumerate(zip(split(x_0), split(x_t), split(x_s), split(belief), strict=True)):
            own = [time[b : b + 1] if isinstance(time, Tensor) else time for time in times]
            for one, other in zip(whole, numbers(dense, *states, *own), strict=True):
                torch.testing.assert_close(one[b : b + 1], other, rtol=1e-12, atol=1e-12)
        for state in ("score", "evidence"):
            arguments = (x_t, belief, times[1]) if state == "score" else (x_t, times[1])
            parts = split(getattr(kernel, state)(*arguments))
            for b, part in enumerate(parts):
                time = times[1][b : b + 1] if isinstance(times[1], Tensor) else times[1]
                mine = (split(x_t)[b], split(belief)[b], time) if state == "score" else (split(x_t)[b], time)
                torch.testing.assert_close(part, getattr(dense, state)(*mine), rtol=1e-12, atol=1e-12)


def test_taken_chains_are_bound_to_the_examples_taken() -> None:
    kernel, index = CHAINS["absorbing"]().given(index=INDEX, num_graphs=B), torch.tensor([B - 1, 0, 0])
    x_0 = tokens(len(INDEX), high=4)
    x_t = kernel.marginal(x_0, T).sample(seeded(0))
    some, few, noisy = kernel.taken(index, x_0), kernel.take(x_0, index), kernel.take(x_t, index)
    assert some.examples(few) == 3
    assert torch.equal(some.dims(few), kernel.dims(x_0)[index])
    whole = kernel.marginal(x_0, T).log_prob(x_t)[index]
    torch.testing.assert_close(some.marginal(few, T[index]).log_prob(noisy), whole)


@pytest.mark.parametrize("name", CHAINS)
def test_ragged_samplers_and_losses_are_dense_ones_example_by_example(name: str) -> None:
    dense = CHAINS[name]()
    kernel = dense.given(index=INDEX, num_graphs=B)
    table = belief_of(kernel, torch.arange(5))
    denoise = lambda x, t: table[x]  # noqa: E731
    x = kernel.prior(tokens(len(INDEX), high=4)).sample(seeded(0))
    times = torch.stack([torch.ones(B), 0.2 + T / 2, T / 4, torch.zeros(B)]).double()
    ragged = list(tau_leaping(denoise, kernel, x, times, generator=[seeded(i) for i in range(B)]))
    for b, part in enumerate(split(x)):
        alone = list(tau_leaping(denoise, dense, part, times[:, b : b + 1], generator=[seeded(b)]))
        assert all(torch.equal(split(one.x)[b], other.x) for one, other in zip(ragged, alone, strict=True))

    class Fixed(torch.nn.Module):
        schedule = dense.schedule

        def forward(self, x_t: Tensor, t: Tensor, kernel: Any) -> Tensor:
            return table[x_t]

    objective = Denoising(Fixed(), dense)  # pyright: ignore[reportArgumentType]
    x_0 = tokens(len(INDEX), high=4)
    structure = {"index": INDEX, "num_graphs": B}
    whole = objective({"x_0": x_0, "structure": structure}, [seeded(i) for i in range(B)])
    alone = [objective({"x_0": part}, [seeded(b)]) for b, part in enumerate(split(x_0))]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-12, atol=0)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_ragged_layout_by_hand(width: tuple[int, ...]) -> None:
    index, x = torch.tensor([0, 0, 2, 2, 2]), torch.arange(5.0).reshape(-1, *(1,) * len(width)).expand(5, *width)
    layout, each = Ragged(index, 4), 2.0 ** len(width)
    assert layout.examples(x) == 4 and layout.sizes.tolist() == [2, 0, 3, 0]
    assert layout.total(x).tolist() == [1 * each, 0, 9 * each, 0]
    assert layout.numel(x).tolist() == [2 * each, 0, 3 * each, 0]
    assert layout.places().tolist() == [0, 1, 0, 1, 2]
    numbers = torch.tensor([1.0, 2, 3, 4])
    assert layout.spread(numbers, x).shape == (5, *(1,) * len(width))
    assert layout.spread(numbers, x).flatten().tolist() == [1, 1, 3, 3, 3]
    assert layout.spread(torch.tensor(7.0), x).flatten().tolist() == [7]
    assert torch.as_tensor(layout.rowwise(numbers)).tolist() == [1, 1, 3, 3, 3]
    assert layout.rowwise(0.5) == 0.5 and torch.equal(torch.as_tensor(layout.rowwise(numbers[0])), numbers[0])
    chosen = torch.tensor([2, 1, 0, 2])
    taken = layout.taken(chosen)
    assert layout.take(x, chosen).flatten(1 if width else 0).reshape(8, -1)[:, 0].tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert taken.index.tolist() == [0, 0, 0, 2, 2, 3, 3, 3] and taken.num_graphs == 4
    own = layout.random(rand, x, [seeded(i) for i in range(4)], torch.float64)
    assert own.shape == x.shape and own.dtype == torch.float64
    torch.testing.assert_close(own[2:], rand((3, *width), seeded(2), dtype=torch.float64), rtol=0, atol=0)
    one = layout.random(randn, x, seeded(0), torch.float32)
    torch.testing.assert_close(one, randn(x.shape, seeded(0)), rtol=0, atol=0)


def test_what_does_not_fit_is_named() -> None:
    kernel = uniform(Cosine(), 5)
    for structure in ({"index": INDEX}, {"mask": INDEX}, {"index": INDEX, "num_graphs": B, "bonds": INDEX}):
        with pytest.raises(ArgumentError, match="^structure"):
            kernel.given(**structure)
    ragged = kernel.given(index=INDEX, num_graphs=B)
    assert kernel.layout is DENSE and kernel.given().layout is DENSE
    with pytest.raises(ArgumentError, match="^x"):
        ragged.dims(tokens(3, high=4))
    with pytest.raises(ArgumentError, match="^generator"):
        ragged.prior(tokens(len(INDEX), high=4)).sample([seeded(0)])
    masks, times = torch.full((len(INDEX),), 4), torch.tensor([1.0, 0.0], dtype=torch.float64)
    own = absorbing(RectifiedFlow(), 5, mask=4).given(index=INDEX, num_graphs=B)
    steps = first_hitting(lambda x, t: x, own, masks, times)
    with pytest.raises(ArgumentError, match="of dense states"):
        list(steps)
