"""Strategies: what they may ask for, how often, and that a window's targets are its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from polydiff.core.errors import ArgumentError
from polydiff.core.randomness import seeded
from polydiff.timeseries.targets import (
    Blocks,
    Forecast,
    Mixture,
    Patterned,
    Random,
    Sparing,
    Strategy,
    WholeSeries,
    share,
    typical,
)

B, L, K = 4, 9, 3


def cells(*shape: int, part: float = 0.7, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < part


SEEN = cells(B, L, K)
SEEN[2] = False
SEEN[3, :, 1] = False
PRESENT = torch.ones(B, L, dtype=torch.bool)
PRESENT[1, 6:] = False
SEEN[1, 6:] = False
PATTERNS = cells(5, L + 2, K, seed=1)

STRATEGIES: dict[str, Strategy] = {
    "random": Random(),
    "share": share(0.3),
    "patterned": Patterned(PATTERNS),
    "mixture": Mixture((Random(), Patterned(PATTERNS), Forecast(2)), (1, 2, 1)),
    "blocks": Blocks(),
    "series": WholeSeries(),
    "forecast": Forecast(4, 2),
    "sparing": Sparing(Random(), (1,)),
}


def own(*positions: int) -> list[torch.Generator]:
    return [seeded(9, i) for i in positions]


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return STRATEGIES[request.param]


def test_targets_are_seen_and_depend_on_the_seed(strategy: Strategy) -> None:
    first = strategy(SEEN, own(*range(B)), PRESENT)
    assert first.shape == SEEN.shape and first.dtype == torch.bool
    assert not bool((first & ~SEEN).any())
    assert torch.equal(first, strategy(SEEN, own(*range(B)), PRESENT))
    assert torch.equal(SEEN, SEEN | first)
    draws = torch.stack([strategy(SEEN, seeded(seed), PRESENT) for seed in range(20)])
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 1
    assert not bool(draws[:, 2].any())  # nothing seen, nothing asked for
    torch.manual_seed(0)
    assert bool(strategy(SEEN).any() | strategy(SEEN).any() | strategy(SEEN).any())  # the global generator serves too


def test_a_window_does_not_depend_on_its_neighbours(strategy: Strategy) -> None:
    together = strategy(SEEN, own(*range(B)), PRESENT)
    for i in range(B):
        alone = strategy(SEEN[i : i + 1], own(i), PRESENT[i : i + 1])
        assert torch.equal(alone[0], together[i])
    order = torch.tensor([3, 1, 0, 2])
    assert torch.equal(strategy(SEEN[order], own(*order.tolist()), PRESENT[order]), together[order])


def test_a_generator_gives_as_many_numbers_whatever_is_seen(strategy: Strategy) -> None:
    """What is drawn afterwards, t and noise, must not depend on the mask."""
    ends = []
    for seen in (SEEN, ~SEEN, torch.ones_like(SEEN)):
        generators = own(*range(B))
        strategy(seen, generators, PRESENT)
        ends.append([float(torch.rand((), generator=g)) for g in generators])
    assert ends[0] == ends[1] == ends[2]


def many(strategy: Strategy, seen: Tensor, count: int = 4000, present: Tensor | None = None) -> Tensor:
    """Draws for one window, (count, L, K)."""
    shown = None if present is None else present.expand(count, -1)
    return strategy(seen.expand(count, -1, -1), seeded(1), shown)


def even(counts: Tensor, expected: Tensor | None = None) -> bool:
    """Whether counts are of their law by chi-square, false alarms 1e-6; seeds are fixed."""
    return stats.chisquare(counts.numpy(), None if expected is None else expected.numpy()).pvalue > 1e-6


def test_random_takes_the_rounded_share_uniformly() -> None:
    seen, n = SEEN[0], int(SEEN[0].sum())
    draws = many(Random(), seen)
    sizes = torch.bincount(draws.flatten(1).sum(1), minlength=n + 1)
    expected = torch.full((n + 1,), 4000 / n, dtype=torch.float64)
    expected[[0, -1]] /= 2  # rounding: the ends are met half as often
    assert even(sizes, expected)
    assert even(draws.sum(0)[seen] * 1.0, torch.full((n,), float(draws.sum()) / n))
    for part in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert many(share(part), seen, 50).flatten(1).sum(1).tolist() == [round(part * n)] * 50
    low = many(Random(0.2, 0.4), seen).flatten(1).sum(1) / n
    assert 0.2 - 1 / n < float(low.min()) < 0.25 and 0.35 < float(low.max()) < 0.4 + 1 / n
    # Any two cells are asked for together as often as any two others.
    pairs = many(share(0.5), seen)[:, seen].double()
    both = (pairs.T @ pairs / 4000).fill_diagonal_(0)
    k = round(0.5 * n)
    expected_both = k * (k - 1) / (n * (n - 1))
    off = ~torch.eye(n, dtype=torch.bool)
    assert float((both[off] - expected_both).abs().max()) < 5 * math.sqrt(0.25 / 4000)


def test_patterned_asks_for_what_one_pattern_has_missing() -> None:
    seen = SEEN[0]
    bank = torch.cat([PATTERNS, torch.ones_like(PATTERNS[:2])])  # two of them complete: left out
    options = [seen & ~pattern[:L] for pattern in PATTERNS]
    draws = many(Patterned(bank), seen)
    which = torch.stack([(draws == option).flatten(1).all(1) for option in options])
    assert bool((which.sum(0) == 1).all())
    assert even(which.sum(1))


def test_mixture_takes_each_by_its_weight() -> None:
    a, b = Forecast(2), WholeSeries()
    seen = torch.ones(L, K, dtype=torch.bool)
    draws = many(Mixture((a, b), (1, 3)), seen)
    future = draws.flatten(1).sum(1) == 2 * K
    assert even(torch.stack([future.sum(), (~future).sum()]), torch.tensor([1000.0, 3000.0]))
    alike = many(Mixture((a, b)), seen).flatten(1).sum(1) == 2 * K
    assert even(torch.stack([alike.sum(), (~alike).sum()]))
    assert torch.equal(many(Mixture((a, b), (0, 2)), seen, 200)[:, -2:].all((1, 2)), torch.zeros(200).bool())


def test_blocks_are_rectangles() -> None:
    seen = torch.ones(10, K, dtype=torch.bool)
    draws = many(Blocks(most=1, longest=0.4), seen)
    rows, features = draws.any(2), draws.any(1)
    assert torch.equal(draws, rows.unsqueeze(2) & features.unsqueeze(1))
    lengths = rows.sum(1)
    assert even(torch.bincount(lengths, minlength=5)[1:])  # 1 ... 4 of 10 rows
    first, last = rows.long().argmax(1), 9 - rows.flip(1).long().argmax(1)
    assert torch.equal(last - first + 1, lengths)  # without holes
    for length in range(1, 5):
        assert even(torch.bincount(first[lengths == length], minlength=11 - length))
    # 1 + Binomial(K - 1, u) features, u uniform: each number of them alike.
    assert even(torch.bincount(features.sum(1), minlength=K + 1)[1:])
    assert even(features.sum(0) * 1.0)
    several = many(Blocks(most=3, longest=0.4), seen)
    assert float(several.double().mean()) > 1.3 * float(draws.double().mean())
    # Within the rows that are present.
    short = many(Blocks(most=1, longest=0.5), seen, present=(torch.arange(10) < 6).unsqueeze(0))
    assert not bool(short[:, 6:].any())
    assert int(short.any(2).sum(1).max()) == 3
    assert bool(short.any((1, 2)).all())
    assert many(Blocks(most=1, longest=1.0), seen)[:, :, 0].all(1).any()


def test_whole_series_leave_another_one() -> None:
    seen = SEEN[3]  # the middle feature has nothing
    draws = many(WholeSeries(), seen)
    asked = draws.any(1)
    assert bool((asked.sum(1) == 1).all())
    assert not bool(asked[:, 1].any())
    assert even(asked.sum(0)[[0, 2]] * 1.0)
    assert torch.equal(draws, seen & asked.unsqueeze(1))
    full = many(WholeSeries(), torch.ones(L, 4, dtype=torch.bool)).any(1).sum(1)
    assert even(torch.bincount(full, minlength=4)[1:])  # 1, 2 or 3 of 4
    only = torch.ones(L, 1, dtype=torch.bool)
    assert bool(many(WholeSeries(), only, 10).all())


def test_forecasts_are_the_last_rows_that_are_present() -> None:
    fixed = Forecast(4)(SEEN, own(*range(B)), PRESENT)
    assert torch.equal(fixed[0], SEEN[0] & (torch.arange(L) >= L - 4).unsqueeze(1))
    assert torch.equal(fixed[1], SEEN[1] & (torch.arange(L) >= 2).unsqueeze(1))
    assert torch.equal(Forecast(4)(SEEN)[1], SEEN[1] & (torch.arange(L) >= 5).unsqueeze(1))
    assert torch.equal(Forecast(L + 5)(SEEN), SEEN)
    whole = torch.ones(L, K, dtype=torch.bool)
    horizons = many(Forecast(4, 2), whole).any(2).sum(1)
    assert even(torch.bincount(horizons, minlength=5)[2:])


def test_spared_features_are_given() -> None:
    draws = many(Sparing(share(1.0), (0, 2)), SEEN[0], 3)
    assert torch.equal(draws[0], SEEN[0] & torch.tensor([False, True, False]))
    # The share is one of the others.
    half = many(Sparing(share(0.5), (0,)), torch.ones(L, K, dtype=torch.bool), 5)
    assert half.flatten(1).sum(1).tolist() == [L] * 5


def test_typical_numbers_of_targets() -> None:
    assert typical(share(0.5), SEEN) == sum(round(0.5 * int(n)) for n in SEEN.flatten(1).sum(1)) / B
    assert typical(Random(), SEEN) == typical(Random(), SEEN)
    assert typical(Forecast(2), SEEN, PRESENT) > typical(Forecast(2), SEEN)
    wide = torch.ones(500, L, K, dtype=torch.bool)
    assert typical(Random(), wide) == pytest.approx(L * K / 2, rel=0.1)
    with pytest.raises(ArgumentError, match="targets"):
        typical(share(0.0), SEEN)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Random(0.5, 0.2), "low"),
        (lambda: share(1.2), "low"),
        (lambda: Patterned(PATTERNS.float()), "patterns"),
        (lambda: Patterned(torch.ones(2, L, K).bool()), "missing"),
        (lambda: Patterned(PATTERNS[:, : L - 1])(SEEN), "rows"),
        (lambda: Patterned(PATTERNS[..., :1])(SEEN), "features"),
        (lambda: Mixture(()), "strategies"),
        (lambda: Mixture((Random(),), (1, 2)), "weights"),
        (lambda: Mixture((Random(),), (0,)), "weights"),
        (lambda: Mixture((Random(),), (math.nan,)), "weights"),
        (lambda: Blocks(0), "most"),
        (lambda: Blocks(longest=0.0), "longest"),
        (lambda: Forecast(0), "horizon"),
        (lambda: Forecast(3, 4), "shortest"),
        (lambda: Sparing(Random(), (3,))(SEEN), "features"),
        (lambda: Random()(SEEN.float()), "seen"),
        (lambda: Blocks()(SEEN[0]), "seen"),
        (lambda: Random()(SEEN, own(0)), "generator"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], Any], word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        build()
