"""Baselines against plain loops, numpy.interp and cases by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from polydiff.core.errors import ArgumentError
from polydiff.timeseries.baselines import last, linear, mean, median, overall, seasonal
from polydiff.timeseries.metrics import figures

ALL = (overall, mean, median, last, linear, partial(seasonal, period=3))
NAN = np.nan


def problem(seed: int = 0, n: int = 6, length: int = 14, features: int = 4):
    """Values with gaps, irregular stamps, feature 3 never seen in window 0, and a fallback."""
    random = np.random.default_rng(seed)
    values = random.normal(5, 2, (n, length, features))
    values[random.random(values.shape) < 0.6] = NAN
    values[0, :, 3] = NAN
    values[1:, 0, 3] = 1.0
    return values, np.cumsum(random.uniform(0.2, 2, (n, length)), 1), np.array([10.0, 20, 30, 40])


def column(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=float).reshape(1, -1, 1)


@pytest.mark.parametrize("baseline", ALL)
def test_observed_cells_stay_and_the_unseen_takes_the_fallback(baseline) -> None:
    values, stamps, fallback = problem()
    before = values.copy()
    filled = baseline(values, stamps, fallback=fallback)
    np.testing.assert_array_equal(values, before)
    seen = ~np.isnan(values)
    assert filled.dtype == np.float64 and np.isfinite(filled).all()
    assert (filled[seen] == values[seen]).all()
    assert (filled[0, :, 3] == 40).all() and (baseline(values, stamps)[0, :, 3] == 0).all()


def test_constants() -> None:
    values, stamps, fallback = problem()
    missing = np.isnan(values)
    for baseline, average in ((mean, np.mean), (median, np.median)):
        filled = baseline(values, stamps, fallback=fallback)
        for n, k in np.ndindex(6, 4):
            seen = values[n, ~missing[n, :, k], k]
            assert filled[n, missing[n, :, k], k] == pytest.approx(average(seen) if len(seen) else fallback[k])
    assert (overall(values, fallback=fallback)[missing] == np.broadcast_to(fallback, values.shape)[missing]).all()


def test_linear_is_numpy_interp_in_the_stamps() -> None:
    values, stamps, fallback = problem()
    filled = linear(values, stamps, fallback=fallback)
    for n, k in np.ndindex(6, 4):
        seen = ~np.isnan(values[n, :, k])
        if seen.any():
            expected = np.interp(stamps[n], stamps[n, seen], values[n, seen, k])
            np.testing.assert_allclose(filled[n, :, k], expected, rtol=1e-12)
    assert linear(column(0, NAN, NAN, 3), [0, 1, 2, 6])[0, :, 0].tolist() == [0, 0.5, 1, 3]
    assert linear(column(NAN, 2, NAN, 4, NAN))[0, :, 0].tolist() == [2, 2, 3, 4, 4]


def test_last_is_carried_forward_then_backward() -> None:
    assert last(column(NAN, 1, NAN, NAN, 5, NAN))[0, :, 0].tolist() == [1, 1, 1, 1, 5, 5]
    values, stamps, fallback = problem()
    filled = last(values, stamps, fallback=fallback)
    for n, l, k in np.argwhere(np.isnan(values)):
        seen = np.flatnonzero(~np.isnan(values[n, :, k]))
        if len(seen):
            earlier = seen[seen < l]
            assert filled[n, l, k] == values[n, earlier[-1] if len(earlier) else seen[0], k]


def test_seasonal_takes_the_nearest_period_in_the_past_first() -> None:
    assert seasonal(column(1, 2, 3, 4, NAN, NAN, NAN), period=2)[0, :, 0].tolist() == [1, 2, 3, 4, 3, 4, 3]
    assert seasonal(column(1, 9, NAN, 9, 5, 9, NAN), period=2)[0, :, 0].tolist() == [1, 9, 1, 9, 5, 9, 5]
    assert seasonal(column(NAN, NAN, 7, 8), period=2)[0, :, 0].tolist() == [7, 8, 7, 8]
    assert seasonal(column(NAN, 9, NAN, 9, 7, 9), period=2)[0, :, 0].tolist() == [7, 9, 7, 9, 7, 9]
    assert seasonal(column(1, NAN, 3, NAN), period=10)[0, :, 0].tolist() == [1, 2, 3, 3]  # phase never observed
    assert seasonal(column(NAN, NAN), period=1)[0, :, 0].tolist() == [0, 0]
    assert seasonal(column(1, 5, NAN), [0, 0.9, 1.8], period=2)[0, 2, 0] == 1  # less than a period, by less than half


@pytest.mark.parametrize("period", [1, 2.5, 3, 5])
def test_seasonal_by_plain_search(period: float) -> None:
    values, stamps, fallback = problem(3)
    stamps = np.round(stamps * 4) / 4 + np.arange(stamps.shape[1]) / 4
    filled, straight = seasonal(values, stamps, period=period, fallback=fallback), linear(values, stamps)
    used = np.asarray(np.isfinite(values).any(axis=-1))
    for n, l, k in np.argwhere(np.isnan(values)):
        if np.isnan(values[n, :, k]).all():
            continue
        for lag in (*range(1, 200), *range(-1, -200, -1)):
            away = np.where(used[n], np.abs(stamps[n] - (stamps[n, l] - lag * period)), np.inf)
            if away.min() < 0.5 and not np.isnan(values[n, away.argmin(), k]):
                assert filled[n, l, k] == values[n, away.argmin(), k]
                break
        else:
            assert filled[n, l, k] == straight[n, l, k]


def test_windows_and_features_do_not_see_each_other() -> None:
    values, stamps, fallback = problem()
    for baseline in ALL:
        whole = baseline(values, stamps, fallback=fallback)
        for n in range(6):
            np.testing.assert_array_equal(whole[n], baseline(values[n : n + 1], stamps[n], fallback=fallback)[0])
    for baseline in (overall, mean, median, last, linear):
        alone = baseline(values[..., 1:2], stamps, fallback=fallback[1:2])
        np.testing.assert_allclose(baseline(values, stamps, fallback=fallback)[..., 1:2], alone)


def test_padding_rows_may_have_any_stamps() -> None:
    padded = linear(np.concatenate([column(1, NAN, 3), column(NAN, NAN)], 1), [[0, 1, 2, 0, 0]])
    assert padded[0, :3, 0].tolist() == [1, 2, 3]


def test_a_baseline_has_figures() -> None:
    random = np.random.default_rng(0)
    truth = np.sin(np.arange(40) / 3)[None, :, None] + 2
    mask = random.random(truth.shape) < 0.3
    values = np.where(mask, NAN, truth)
    found = {one.__name__: figures(one(values)[None], truth, mask)["CRPS"] for one in (overall, mean, linear)}
    assert found["overall"] == pytest.approx(1) and found["linear"] < 0.2 * found["mean"]


@pytest.mark.parametrize(
    "argument, values, options",
    [
        ("values", np.zeros((3, 2)), {}),
        ("values", np.zeros((3, 0, 2)), {}),
        ("values", column(1, np.inf), {}),
        ("stamps", column(1, 2), {"stamps": [0.0, 1, 2]}),
        ("stamps", column(1, 2, 3), {"stamps": [0.0, 2, 2]}),
        ("stamps", column(1, 2), {"stamps": [0.0, NAN]}),
        ("fallback", column(1, 2), {"fallback": [0.0, 1]}),
        ("fallback", column(1, 2), {"fallback": NAN}),
        ("period", column(1, 2), {"period": 0}),
        ("period", column(1, 2), {"period": np.inf}),
    ],
)
def test_wrong_input_is_named(argument: str, values, options) -> None:
    with pytest.raises(ArgumentError) as error:
        seasonal(values, **{"period": 2, **options})
    assert error.value.argument == argument
