"""The noise law of imputation: beside laws of fewer dimensions, for noised, counted and blind cells."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal as TorchNormal

from polydiff.core.distributions import Normal, Scaled
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.noise import masked
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine
from polydiff.timeseries.kernel import Targets, targets
from tests.core.cases import normal

B, L, K = 3, 4, 2
MASK = normal(B, L, K) > -0.4
COUNTED = MASK & (normal(B, L, K).flip(0) > 0)
BLIND = MASK & ~COUNTED
MASK[1, 0], BLIND[1, 0] = True, torch.tensor([True, True])
COUNTED[1, 0] = False
STRUCTURE: dict[str, Any] = {"mask": MASK, "counted": COUNTED}
assert all(bool(cells.flatten(1).any(1).all()) for cells in (~MASK, COUNTED, BLIND))


def bound(**structure: Any) -> Targets:
    return Targets().given(**(structure or STRUCTURE))


def data() -> Tensor:
    return normal(B, L, K).sin() * MASK


def oracle(x: Tensor, mean: Tensor, deviation: Any) -> Tensor:
    """Densities of the counted cells, window by window, by torch."""
    terms = TorchNormal(mean, deviation).log_prob(x)
    return torch.stack([terms[i][COUNTED[i]].sum() for i in range(B)])


def test_densities_are_those_of_the_counted_cells() -> None:
    noise, scale = bound(), torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)
    law, other = Normal(data(), scale, noise), Normal(0.3 * data(), 0.8, noise)
    x = law.sample(seeded(0))
    wide = scale.reshape(B, 1, 1)
    torch.testing.assert_close(law.log_prob(x), oracle(x, law.mean, wide.expand_as(x)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.scaled().log_prob(x), law.log_prob(x), rtol=1e-12, atol=1e-12)
    expected = torch.distributions.kl_divergence(
        TorchNormal(law.mean, wide.expand_as(x)), TorchNormal(other.mean, torch.full_like(x, 0.8))
    )
    expected = torch.stack([expected[i][COUNTED[i]].sum() for i in range(B)])
    torch.testing.assert_close(law.kl(other), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.scaled().kl(other.scaled()), expected, rtol=1e-12, atol=1e-12)
    kernel = targets(Cosine()).given(**STRUCTURE)
    assert kernel.dims(x).tolist() == COUNTED.flatten(1).sum(1).tolist()
    # The entropy, by the mean of log_prob: -E log p = dof/2 (1 + log 2 pi scale^2).
    many = Normal(data()[:1].expand(4000, L, K), 0.7, bound(mask=MASK[:1], counted=COUNTED[:1]))
    entropy = -many.log_prob(many.sample(seeded(1)))
    dof = int(COUNTED[0].sum())
    expected_entropy = dof / 2 * (1 + math.log(2 * math.pi * 0.49))
    assert abs(float(entropy.mean()) - expected_entropy) < 4.5 * math.sqrt(dof / 2 / 4000)


def test_without_blind_cells_it_is_the_masked_law() -> None:
    noise, old, x = bound(mask=MASK), masked(MASK), normal(B, L, K)
    same = bound(mask=MASK, counted=MASK.clone())
    for law in (noise, same):
        assert torch.equal(law.draw(x, seeded(1)), old.draw(x, seeded(1)))
        for method in ("project", "squares", "dof", "log_det", "deviation"):
            torch.testing.assert_close(getattr(law, method)(x), getattr(old, method)(x), rtol=1e-14, atol=0)
    free = Targets()
    assert torch.equal(free.project(x), x)
    assert free.dof(x).tolist() == [L * K] * B
    assert Targets().given() is not None
    assert targets(Cosine()).given().dims(x).tolist() == [L * K] * B


@pytest.mark.parametrize("place", ["off the mask", "blind", "counted"])
def test_what_is_possible(place: str) -> None:
    """Off the mask nothing may differ, blind cells may be anywhere and change nothing, counted cells count."""
    cells = {"off the mask": ~MASK, "blind": BLIND, "counted": COUNTED}[place]
    law = Normal(data(), 0.5, bound())
    x = law.sample(seeded(2))
    moved = x + 0.5 * cells * torch.tensor([1.0, 0.0, 1.0]).reshape(B, 1, 1)
    other = Normal(law.mean + (moved - x), 0.5, law.noise)
    for one, two, three in (
        (law.log_prob(x), law.log_prob(moved), law.kl(other)),
        (law.scaled().log_prob(x), law.scaled().log_prob(moved), law.scaled().kl(other.scaled())),
    ):
        assert bool(one.isfinite().all())
        assert float(two[1]) == float(one[1])
        assert float(three[1]) == 0
        if place == "off the mask":
            assert two[[0, 2]].tolist() == [-math.inf] * 2
            assert three[[0, 2]].tolist() == [math.inf] * 2
        elif place == "blind":
            assert torch.equal(one, two)
            assert three.tolist() == [0.0] * B
        else:
            assert bool((one[[0, 2]] != two[[0, 2]]).all())
            assert bool((three[[0, 2]] > 0).all())


def test_rounding_off_the_mask_is_no_event() -> None:
    law = Normal(data().float(), 0.5, bound())
    x = law.sample(seeded(2))
    assert bool(law.log_prob(x + 1e-7 * ~MASK).isfinite().all())
    assert law.log_prob(x + 1e-3 * ~MASK).tolist() == [-math.inf] * B


def test_what_stands_in_other_cells_does_not_matter() -> None:
    """Not-a-number, for one: cells that are not noised are cut away, not multiplied by 0."""
    noise, x = bound(), normal(B, L, K)
    broken = x.masked_fill(~MASK, math.nan)
    assert torch.equal(noise.project(broken), x * MASK)
    assert torch.equal(noise.squares(broken), noise.squares(x * MASK))
    assert bool((noise.draw(broken, seeded(0))[~MASK] == 0).all())
    kernel = targets(Cosine()).given(**STRUCTURE)
    error = kernel.error(data(), Belief(data() + BLIND * 7 + COUNTED * 2), 0.5)
    assert error.tolist() == (4.0 * COUNTED.flatten(1).sum(1)).tolist()


def test_draws_are_normal_on_all_noised_cells_and_zero_elsewhere() -> None:
    count = 3000
    draws = bound(mask=MASK[:1], counted=COUNTED[:1]).draw(torch.zeros(count, L, K, dtype=torch.float64), seeded(3))
    assert bool((draws[:, ~MASK[0]] == 0).all())
    scores = draws[:, MASK[0]]
    low, high = stats.chi2.interval(1 - 1e-6, count)
    assert all(low < total < high for total in scores.square().sum(0).tolist())
    assert float((scores.T @ scores / count).fill_diagonal_(0).abs().max()) < 5 / math.sqrt(count)
    assert float(scores.mean(0).abs().max()) < 5 / math.sqrt(count)


def test_the_noise_of_a_cell_does_not_depend_on_masks_or_neighbours() -> None:
    like, generators = torch.zeros(B, L, K), lambda: [seeded(i) for i in range(B)]
    some, everything = bound().draw(like, generators()), Targets().draw(like, generators())
    assert torch.equal(some, everything * MASK)
    alone = bound(mask=MASK[1:2], counted=COUNTED[1:2]).draw(like[1:2], [seeded(1)])
    assert torch.equal(alone[0], some[1])


def test_taken_repeats_both_masks() -> None:
    kernel = targets(Cosine()).given(**STRUCTURE)
    law = kernel.marginal(data(), 0.4)
    x, index = law.sample(seeded(0)), torch.tensor([2, 0, 0, 1])
    view: Any = kernel.taken(index, x)
    assert torch.equal(view.noise.mask, MASK[index])
    assert torch.equal(view.noise.counted, COUNTED[index])
    chosen = view.marginal(kernel.take(data(), index), 0.4)
    torch.testing.assert_close(chosen.log_prob(x[index]), law.log_prob(x)[index], rtol=1e-14, atol=0)
    whole = targets(Cosine()).given(mask=MASK).taken(index, x).noise
    assert isinstance(whole, Targets)
    assert whole.counted is whole.mask  # nothing to leave out of sums
    for shared in (MASK[0], MASK[:1]):
        one: Any = targets(Cosine()).given(mask=shared).taken(index, x)
        assert one.dims(x[index]).tolist() == [float(MASK[0].sum())] * 4


def test_parts_keep_noised_and_counted_apart() -> None:
    law = Normal(data(), 0.6, bound())
    x, half = law.sample(seeded(0)), torch.arange(L).reshape(L, 1) % 2 == 0
    torch.testing.assert_close(law.log_prob(x, half) + law.log_prob(x, ~half), law.log_prob(x), rtol=1e-12, atol=0)
    part = bound().part(half)
    assert isinstance(part, Targets)
    assert torch.equal(part.mask, MASK & half)
    assert torch.equal(part.counted, COUNTED & half)
    loose = bound(mask=MASK).part(half)
    assert isinstance(loose, Targets)
    assert loose.counted is loose.mask
    expected = torch.stack([TorchNormal(law.mean, 0.6).log_prob(x)[i][(COUNTED & half)[i]].sum() for i in range(B)])
    torch.testing.assert_close(law.log_prob(x, half), expected, rtol=1e-12, atol=1e-12)


def test_views_are_independent_and_move_between_types() -> None:
    whole = targets(Cosine())
    one, two = whole.given(**STRUCTURE), whole.given(mask=~MASK)
    x = data()
    assert whole.dims(x).tolist() == [L * K] * B
    assert one.dims(x).tolist() == COUNTED.flatten(1).sum(1).tolist()
    assert two.dims(x).tolist() == (~MASK).flatten(1).sum(1).tolist()
    again = one.given(mask=MASK)
    assert again.dims(x).tolist() == MASK.flatten(1).sum(1).tolist()  # counted is not kept from before
    assert one.double().noise.mask.dtype == torch.bool
    assert not whole.state_dict()  # masks are of a batch, not of a model
    assert one.dims(x.float()).dtype == torch.float32


def test_learned_variances_are_of_noised_cells_alone() -> None:
    kernel: Gaussian = targets(Cosine()).given(**STRUCTURE)
    law = kernel.reverse(data(), Belief(data(), torch.full_like(data(), 0.5)), 0.4, 0.6)
    assert isinstance(law, Scaled)
    assert bool(((law.deviation > 0) == MASK).all())
    x = law.sample(seeded(0))
    assert bool((x[~MASK] == law.mean[~MASK]).all())
    torch.testing.assert_close(law.log_prob(x), oracle(x, law.mean, law.deviation.clamp_min(1e-9)))


@pytest.mark.parametrize(
    ("structure", "word"),
    [
        ({"counted": COUNTED}, "mask"),
        ({"mask": MASK, "index": 3}, "structure"),
        ({"mask": MASK.float()}, "bool"),
        ({"mask": MASK, "counted": COUNTED.long()}, "counted"),
        ({"mask": MASK, "counted": COUNTED[:2]}, "shape"),
        ({"mask": MASK, "counted": ~MASK}, "noised"),
    ],
)
def test_wrong_structure_is_named(structure: Any, word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        targets(Cosine()).given(**structure)
