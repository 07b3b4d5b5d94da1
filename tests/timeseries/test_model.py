"""The model: configuration, units, the published chain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from polydiff.core.config import from_dict, to_dict
from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.timeseries.kernel import Targets
from polydiff.timeseries.model import CONDITIONINGS, SCHEDULES, SeriesConfig, SeriesModel, kernel_of
from tests.timeseries.exact import small, small_csdi

CONFIG = SeriesConfig(features=("a", "b", "c"), window=6, network=small(3))
PUBLISHED = {"schedule": "csdi", "conditioning": "index-50"}
CSDI = replace(
    CONFIG, network=small_csdi(3), schedule="csdi", conditioning="index-50", parametrisation="eps", level="window"
)


@pytest.mark.parametrize("config", [CONFIG, CSDI, replace(CONFIG, covariates=("b",), step=3600.0)])
def test_configurations_come_back_from_their_file(config: SeriesConfig):
    again = from_dict(SeriesConfig, to_dict(config))
    assert again == config
    assert type(again.network) is type(config.network)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"features": ()}, "features"),
        ({"features": ("a", "b", "a")}, "features"),
        ({"features": ("a", "b")}, "network.features"),
        ({"covariates": ("d",)}, "covariates"),
        ({"covariates": ("a", "a")}, "covariates"),
        ({"covariates": ("a", "b", "c")}, "covariates"),
        ({"conditioning": "index-50"}, "schedule"),
        ({"network": small_csdi(3)}, "conditioning"),
        (
            {"network": replace(small_csdi(3), steps=40), **PUBLISHED},
            "network.steps",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, name: str):
    with pytest.raises(ConfigError, match=name):
        replace(CONFIG, **changes)


def test_the_published_chain():
    # Written out as in Tashiro et al. 2021, section 6.1: quadratic betas, cumulative products.
    betas = np.linspace(np.sqrt(1e-4), np.sqrt(0.5), 50) ** 2
    kept = np.cumprod(1 - betas)
    times = torch.arange(1, 51, dtype=torch.float64) / 50
    alpha, sigma = SCHEDULES["csdi"]()(times)
    np.testing.assert_allclose(alpha.numpy() ** 2, kept, rtol=1e-12)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - kept, rtol=1e-12)
    assert CONDITIONINGS["index-50"](times, times).tolist() == list(range(50))
    assert CSDI.indices == 50
    assert CONFIG.indices is None


@pytest.mark.parametrize("level", ["series", "window"])
def test_units_there_and_back(level: str):
    model = SeriesModel(replace(CONFIG, level=level), [1.0, -2.0, 1e6], [2.0, 0.5, 1e-3])
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, 3, dtype=torch.float64, generator=generator) * model.scale + model.centre
    given = torch.rand(4, 6, 3, generator=generator) < 0.6
    given[0, :, 1] = False
    hidden = torch.where(given, values, torch.nan)
    x, shift = model.normalised(hidden, given)
    assert x.dtype == shift.dtype == torch.float64
    assert bool((x[~given] == 0).all())
    torch.testing.assert_close(model.restored(x, shift)[given], values[given], rtol=1e-12, atol=1e-9)
    plain = (values - model.centre) / model.scale
    if level == "series":
        assert bool((shift == 0).all())
    else:
        for b in range(4):
            for k in range(3):
                seen = given[b, :, k]
                mean = plain[b, seen, k].mean() if seen.any() else torch.zeros(())
                assert float(shift[b, 0, k]) == pytest.approx(float(mean), abs=1e-9)
        assert float(shift[0, 0, 1]) == 0  # nothing is given: the mean of the training data


def test_units_are_kept_with_the_weights_in_full():
    model = SeriesModel(CONFIG, [0.1, 0.2, 0.3], [1.1, 1.2, 1 / 3])
    kept = model.state_dict()
    assert kept["centre"].dtype == kept["scale"].dtype == torch.float64
    blank = SeriesModel(CONFIG)
    assert blank.scale.tolist() == [1.0] * 3
    blank.load_state_dict(kept)
    assert torch.equal(blank.scale, model.scale)
    assert torch.equal(blank.centre, model.centre)


@pytest.mark.parametrize(
    ("centre", "scale", "name"),
    [([0.0], None, "centre"), (None, [1.0, 1.0, -1.0], "scale"), ([0.0, 0.0, np.nan], None, "centre")],
)
def test_units_that_are_none(centre: list, scale: list, name: str):
    with pytest.raises(ArgumentError, match=name):
        SeriesModel(CONFIG, centre, scale)


def test_the_kernel_has_the_schedule_of_the_model_and_the_law_of_targets():
    model = SeriesModel(CSDI)
    kernel = kernel_of(CSDI, model)
    assert kernel.schedule is model.denoiser.schedule
    assert isinstance(kernel.noise, Targets)
