"""Long series: what windows cover, what they see, and paths without breaks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polydiff.core.errors import ArgumentError
from polydiff.core.randomness import seeded
from polydiff.timeseries.filling import Window
from polydiff.timeseries.stitching import Paths, ahead, interleaved, run
from tests.timeseries.exact import autoregressive, conditional


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 500), st.integers(1, 60))
def test_two_passes_cover_every_row_once(length: int, window: int):
    passes = interleaved(length, window)
    if length <= window:
        assert passes == [[(0, length)]]
        return
    assert 1 <= len(passes) <= 2
    drawn = [0] * length
    for start, stop in passes[0]:
        assert 0 <= start < stop <= length
        assert stop - start == window
        for row in range(start, stop):
            drawn[row] += 1
    assert max(drawn) == 1  # windows of the first pass are disjoint
    first = list(drawn)
    for start, stop in passes[1] if len(passes) > 1 else []:
        assert 0 <= start < stop <= length
        assert stop - start == window
        fresh = [row for row in range(start, stop) if not first[row]]
        assert fresh == list(range(fresh[0], fresh[-1] + 1))  # one stretch
        assert len(fresh) <= window - 2 * (window // 4)
        # a quarter of a window of context on both sides, up to the end of the series
        assert fresh[0] - start >= window // 4 or start == 0
        assert stop - 1 - fresh[-1] >= window // 4 or stop == length
        for row in fresh:
            drawn[row] += 1
    assert drawn == [1] * length


def test_where_the_windows_lie():
    first, second = interleaved(24, 8)
    assert len(first) == 2
    assert len(second) == 3
    assert interleaved(9, 8) == [[(0, 8)], [(1, 9)]]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.integers(1, 150), st.integers(1, 40))
def test_forecasts_go_block_by_block(length: int, horizon: int, window: int):
    passes = ahead(length, horizon, window)
    known = length
    for ((start, stop),) in passes:
        assert 0 <= start <= known < stop <= length + horizon
        assert stop - start == min(window, stop)
        assert stop - known <= max(1, window // 2)
        known = stop
    assert known == length + horizon
    if horizon <= window // 2:
        assert len(passes) == 1


@pytest.mark.parametrize(("length", "window"), [(0, 4), (4, 0), (True, 4), (4.0, 4)])
def test_lengths_that_are_none(length: int, window: int):
    with pytest.raises(ArgumentError):
        interleaved(length, window)


def series(values: Tensor, number: int = 0, window: int = 8) -> Paths:
    """Rows of a series, filled by windows."""
    return Paths(values, torch.arange(len(values)).double(), number, interleaved(len(values), window))


def test_what_a_window_sees():
    calls: list[list[Window]] = []

    def fill(windows: Sequence[Window]) -> list[Tensor]:
        calls.append(list(windows))
        found = []
        for window in windows:
            new = [torch.full_like(window.values, 1000.0 * window.key[1] + s) for s in window.samples]
            found.append(torch.stack([torch.where(window.values.isnan(), one, window.values) for one in new]))
        return found

    values = torch.full((30, 1), torch.nan, dtype=torch.float64)
    values[::3] = -1.0
    short = torch.full((5, 1), torch.nan, dtype=torch.float64)
    before = values.clone()
    one, other = series(values, 7), series(short, 9)
    found = run(fill, [one, other], range(3, 5))
    assert torch.equal(values.nan_to_num(99), before.nan_to_num(99))  # what came is not written to
    assert [len(x) for x in found] == [2, 2]
    assert not any(bool(x.isnan().any()) for x in found)
    assert bool((found[0][:, ::3] == -1).all())
    first, second = calls
    assert [window.key for window in first] == [*((7, i) for i in range(len(one.passes[0]))), (9, 0)]
    assert all(window.samples == range(3, 5) for window in first)  # one window for all samples
    # In the second pass every sample sees its own rows of the first.
    assert [(window.key, window.samples) for window in second] == [
        ((7, len(one.passes[0]) + i), range(s, s + 1)) for i in range(len(one.passes[1])) for s in (3, 4)
    ]
    for i, (start, stop) in enumerate(one.passes[1]):
        for j, s in enumerate((3, 4)):
            window = second[2 * i + j]
            assert window.stamps.tolist() == list(range(start, stop))
            own = window.values[~window.values.isnan()]
            assert set((own[own >= 0] % 1000).tolist()) <= {float(s)}
            assert bool((own >= 0).any())
    assert found[0][0, 1, 0] % 1000 == 3
    assert found[0][1, 1, 0] % 1000 == 4


def test_windows_that_see_what_was_observed_are_one_for_all_samples():
    calls: list[list[Window]] = []

    def fill(windows: Sequence[Window]) -> list[Tensor]:
        calls.append(list(windows))
        return [w.values.nan_to_num(0.0).expand(len(w.samples), -1, -1) for w in windows]

    values = torch.ones(30, 1, dtype=torch.float64)
    stretch = interleaved(30, 8)[1][1]
    values[stretch[0] + 3] = torch.nan  # within a stretch of the second pass
    one = series(values)
    (found,) = run(fill, [one], range(5))
    assert all(window.samples == range(5) for window in calls[1])
    assert found.shape == (5, 30, 1)


def test_one_sample_does_not_write_to_what_came():
    values = torch.full((20, 2), torch.nan, dtype=torch.float64)
    run(
        lambda windows: [torch.zeros(1, *w.values.shape, dtype=torch.float64) for w in windows],
        [series(values)],
        range(1),
    )
    assert bool(values.isnan().all())


def test_paths_go_through_their_seams():
    # Windows filled by the exact conditional law of an autoregression: neighbours correlate at a seam as anywhere.
    # Across a stretch so little correlation is left that windows of the first pass may be independent.
    phi, window, length, count = 0.5, 16, 60, 800
    covariance = autoregressive(window, 1, phi)

    def fill(windows: Sequence[Window]) -> list[Tensor]:
        found = []
        for w in windows:
            known = ~w.values.isnan().flatten()
            mean, spread = conditional(covariance, w.values.flatten().nan_to_num(), known)
            root = torch.linalg.cholesky(spread)
            noise = torch.randn(
                len(w.samples), len(mean), dtype=torch.float64, generator=seeded(*w.key, w.samples.start)
            )
            new = w.values.flatten().expand(len(w.samples), -1).clone()
            new[:, ~known] = mean + noise @ root.T
            found.append(new.unsqueeze(-1))
        return found

    (paths,) = run(fill, [series(torch.full((length, 1), torch.nan, dtype=torch.float64), 0, window)], range(count))
    x = paths.squeeze(-1)
    torch.testing.assert_close(x.var(0), torch.ones(length, dtype=torch.float64), atol=0.22, rtol=0)
    near = (x[:, 1:] * x[:, :-1]).mean(0)
    # The standard error is about 0.04; a break would be a correlation of 0.
    torch.testing.assert_close(near, torch.full_like(near, phi), atol=0.16, rtol=0)
