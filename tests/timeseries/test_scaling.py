"""Normalisation against closed forms, and the edges: constants, gaps, sizes."""

import numpy as np
import pytest
import torch

from polydiff.core.errors import ArgumentError
from polydiff.timeseries.scaling import constants, fit_scale, normalise, restore, window_level


def gappy(shape, seed=0, share=0.3):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=shape) * [1.0, 20.0, 1e-3] + [0.0, -50.0, 7.0]
    values[generator.random(shape) < share] = np.nan
    return values


def test_series_level_is_mean_and_deviation_of_the_observed_cells():
    windows = gappy((6, 10, 3))
    centre, scale = fit_scale([windows])
    assert centre.dtype == scale.dtype == np.float64
    np.testing.assert_allclose(centre, np.nanmean(windows, (0, 1)), rtol=1e-12)
    np.testing.assert_allclose(scale, np.nanstd(windows, (0, 1)), rtol=1e-12)


def test_series_level_does_not_see_how_cells_are_spread_over_windows():
    windows = gappy((6, 10, 3))
    for other in ([*windows], [windows.reshape(60, 3)], [windows[:2], windows[2].copy(), windows[3:]]):
        np.testing.assert_allclose(fit_scale([windows]), fit_scale(other), rtol=1e-12)


def test_window_level_is_the_deviation_from_each_windows_own_mean():
    windows = gappy((6, 10, 3)) + np.arange(6)[:, None, None] * 100
    _, scale = fit_scale([windows[:4], *windows[4:]], "window")
    left = windows - np.nanmean(windows, 1, keepdims=True)
    np.testing.assert_allclose(scale, np.sqrt(np.nanmean(left**2, (0, 1))), rtol=1e-9)
    assert (fit_scale([windows])[1] > 5 * scale).all()


@pytest.mark.parametrize("level", ["series", "window"])
@pytest.mark.parametrize("constant", [0.1, 0.0, -7e5, 1e-300, 1e300])
def test_constant_features_come_back_as_they_were(level, constant):
    values = np.full((7, 2), constant)
    values[:, 1] = np.arange(7)
    values[2, 0] = np.nan
    centre, scale = fit_scale([values], level)
    assert scale[0] == 1.0
    assert abs(centre[0] - constant) <= 1e-15 * abs(constant)
    assert scale[1] == pytest.approx(2.0)


def test_size_of_the_values_does_not_matter():
    values = gappy((40, 3))
    plain = fit_scale([values])
    for factor in (1e-200, 1e200):
        np.testing.assert_allclose(fit_scale([values * factor]), np.array(plain) * factor, rtol=1e-12)


def test_small_variation_on_a_large_value_is_no_constant():
    values = 1e6 + 1e-3 * np.arange(10.0)[:, None]
    assert fit_scale([values])[1][0] == pytest.approx(np.std(1e-3 * np.arange(10)), rel=1e-5)


def test_errors_name_the_feature():
    values = gappy((10, 3))
    values[:, 1] = np.nan
    with pytest.raises(ArgumentError, match="'wind' without an observed cell"):
        fit_scale([values], names=("a", "wind", "c"))
    values[:, 1] = 1.0
    values[3, 2] = np.inf
    with pytest.raises(ArgumentError, match="infinity in feature 2"):
        fit_scale([values])
    for windows in ([], [np.zeros(3)], [np.zeros((2, 3)), np.zeros((2, 4))]):
        with pytest.raises(ArgumentError, match="windows"):
            fit_scale(windows)
    with pytest.raises(ArgumentError, match="level"):
        fit_scale([np.zeros((2, 3))], "row")  # pyright: ignore[reportArgumentType]


def test_restore_inverts_normalise():
    centre, scale = torch.tensor([3.0, -1e4]).double(), torch.tensor([0.2, 7e3]).double()
    values = torch.randn(4, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(restore(normalise(values, centre, scale), centre, scale), values, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(normalise(centre + 2 * scale, centre, scale), torch.full((2,), 2.0).double())


def test_window_level_is_the_mean_of_given_cells_alone():
    values = torch.arange(12.0).reshape(1, 4, 3).repeat(2, 1, 1)
    given = torch.zeros(2, 4, 3, dtype=torch.bool)
    given[0, [0, 3], 0] = True
    given[0, 1, 1] = True
    values[~given] = torch.nan
    torch.testing.assert_close(window_level(values, given)[0, 0], torch.tensor([4.5, 4.0, 0.0]))
    assert (window_level(values, given)[1] == 0).all()
    assert window_level(values, given).shape == (2, 1, 3)


def test_constants_are_features_of_one_value():
    first = np.array([[1.0, np.nan, np.nan, 0.1], [1.0, 2.0, np.nan, 0.1]])
    second = np.array([[[1.0, 2.0, np.nan, 0.1], [np.nan, 2.0, np.nan, 0.1 + 1e-16 + 1e-17]]])
    assert constants([first, second]).tolist() == [True, True, False, False]
    assert constants([first, second[:, :1]]).tolist() == [True, True, False, True]


def test_variation_by_rounding_is_none():
    values = np.full((50, 1), 0.3)
    values[::7] = 0.1 + 0.2
    assert fit_scale([values])[1][0] == 1.0
    assert fit_scale([values], "window")[1][0] == 1.0
