"""Noise is a function of (seed, step, position) alone."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from polydiff.core.errors import ArgumentError
from polydiff.core.randomness import (
    Share,
    example_generators,
    mix,
    rand,
    randint,
    randn,
    randn_like,
    seeded,
    standing,
    stratified,
    uniform,
)
from polydiff.core.score_entropy import antithetic

INTEGERS = st.integers(-(2**70), 2**70)


def test_mix_is_pinned():
    # Figures of a second implementation in unsigned 64-bit arithmetic; a changed hash would change every trained model.
    def second(*keys: int) -> int:
        h, m = 0, 2**64
        for key in keys:
            h = ((h ^ (key % m)) + 11400714819323198485) % m
            h = ((h ^ (h // 2**30)) * 13787848793156543929) % m
            h = ((h ^ (h // 2**27)) * 10723151780598845931) % m
            h ^= h // 2**31
        return h

    assert mix(0) == 16294208416658607535  # the first output of splitmix64 from state 0
    for keys in [(0,), (1, 2, 3), (2**63, 5), (7, 0, 2**40)]:
        assert mix(*keys) == second(*keys)


@given(st.lists(INTEGERS, min_size=1, max_size=4))
def test_mix_is_in_range(keys: list[int]):
    assert 0 <= mix(*keys) < 2**64


def test_no_two_examples_of_a_run_share_a_seed():
    keys = {mix(seed, step, position) for seed in range(3) for step in range(100) for position in range(100)}
    assert len(keys) == 30_000
    low = {key & 0xFFFF_FFFF for key in keys}  # what the Mersenne Twister keeps: 30000^2 / 2^33 = 0.1 expected
    assert len(low) >= 30_000 - 3


def test_torch_keeps_32_bits_of_a_seed():
    # The reason for the remark in the module's docstring; should torch change, the remark can go.
    one, two = (torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32))
    assert torch.equal(one, two)


@pytest.mark.parametrize("draw", [randn, rand, lambda shape, g: randint(10, shape, g)])
def test_rows_depend_on_their_own_generator_only(draw):
    whole = draw((6, 3, 2), example_generators(1, 2, range(6)))
    part = draw((2, 3, 2), example_generators(1, 2, [4, 1]))
    assert torch.equal(part[0], whole[4])
    assert torch.equal(part[1], whole[1])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6
    assert not torch.equal(whole, draw((6, 3, 2), example_generators(1, 3, range(6))))
    assert not torch.equal(whole, draw((6, 3, 2), example_generators(2, 2, range(6))))
    assert not torch.equal(whole, draw((6, 3, 2), example_generators(2, 1, range(6))))


def test_one_generator_gives_torchs_own_stream():
    assert torch.equal(randn((4, 5), seeded(3)), torch.randn((4, 5), generator=seeded(3)))
    assert torch.equal(
        rand((4,), seeded(3), dtype=torch.float64), torch.rand(4, generator=seeded(3), dtype=torch.float64)
    )
    torch.manual_seed(9)
    drawn = randn((3,))
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.randn(3))


@pytest.mark.parametrize("size", [1, 7, 1000])  # short rows take another path through torch's sampler
def test_distribution(size: int):
    count = 20_000 // size
    z = randn((count, size), example_generators(0, 0, range(count)), dtype=torch.float64)
    n = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    u = rand((count, size), example_generators(0, 1, range(count)))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * n)


def test_half_precision_is_rounded_float32():
    g = example_generators(0, 0, range(4))
    half = randn((4, 9), g, dtype=torch.bfloat16)
    assert torch.equal(half, randn((4, 9), example_generators(0, 0, range(4))).bfloat16())


def test_like():
    x = torch.zeros(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    z = randn_like(x, example_generators(0, 0, range(2)))
    assert z.dtype == torch.float64
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(z, randn((2, 3, 4, 5), example_generators(0, 0, range(2)), dtype=torch.float64))


def test_uniform_bounds():
    t = uniform(500, example_generators(0, 0, range(500)), low=2.0, high=3.0)
    assert t.shape == (500,)
    assert 2.0 <= t.min() < 2.05
    assert 2.95 < t.max() <= 3.0


def test_empty_batch():
    assert randn((0, 3), []).shape == (0, 3)


@pytest.mark.parametrize("shape", [(), (3, 2), (1,)])
def test_wrong_number_of_generators(shape: tuple[int, ...]):
    with pytest.raises(ArgumentError, match="generator: got '2 generators'"):
        randn(shape, example_generators(0, 0, range(2)))


def test_integers_are_refused():
    with pytest.raises(ArgumentError, match="dtype"):
        randn((2,), dtype=torch.int64)


@pytest.mark.parametrize("draw", [stratified, antithetic])
def test_laws_of_a_whole_batch_do_not_ask_how_it_is_split(draw: Any):
    size = 13
    whole = draw(size, Share(3, 5, range(size), size))
    for cuts in ([4, 9], [5, 8], [1, 2, 3, 7]):
        ranges = [range(a, b) for a, b in itertools.pairwise([0, *cuts, size])]
        parts = [draw(len(own), Share(3, 5, own, size)) for own in ranges]
        assert torch.equal(torch.cat(parts), whole)
    for other in (Share(4, 5, range(size), size), Share(3, 6, range(size), size)):
        assert not torch.equal(draw(size, other), whole)
    # Drawn twice, a batch shares another number, the same in every part.
    first, second = Share(3, 5, range(size), size), Share(3, 5, [7], size)
    twice, again = [draw(size, first) for _ in "12"], [draw(1, second) for _ in "12"]
    assert not torch.equal(*twice)
    assert [float(u[0]) for u in again] == [float(u[7]) for u in twice]


@pytest.mark.parametrize("draw", [stratified, antithetic])
def test_every_number_of_a_shared_law_is_uniform(draw: Any):
    us = torch.stack([draw(2, Share(1, step, [2, 5], 6)) for step in range(2000)])
    for column in us.unbind(1):
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3


def test_stratified_numbers_are_one_to_a_stratum():
    for generator in (None, seeded(0), [seeded(i) for i in range(8)], Share(0, 0, range(8), 8)):
        u = stratified(8, generator).sort().values
        assert (u * 8).long().tolist() == list(range(8))
        torch.testing.assert_close(u.diff(), torch.full((7,), 1 / 8).double(), rtol=0, atol=1e-15)


def test_a_share_is_its_generators():
    share = Share(1, 2, [4, 1], 6)
    assert torch.equal(randn((2, 3), share), randn((2, 3), example_generators(1, 2, [4, 1])))
    assert torch.equal(randn((1, 3), Share(1, 2, [4, 1], 6)[1:]), randn((1, 3), example_generators(1, 2, [1])))
    assert standing(2, share).positions.tolist() == [4, 1] and standing(2, share).size == 6
    assert not isinstance(share, list | tuple)  # which DistributedDataParallel would make anew
    with pytest.raises(ArgumentError, match="generator: got '2 generators', expected one per example, 3"):
        stratified(3, share)
