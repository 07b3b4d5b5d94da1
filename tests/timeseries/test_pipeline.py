"""The pipeline: what comes back, the law that it draws from, and what it depends on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polydiff.core.ancestral import ancestral
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.errors import ArgumentError, DataError, PolydiffError
from polydiff.core.grids import uniform
from polydiff.core.inpainting import repaint
from polydiff.core.methods import SAMPLERS
from polydiff.timeseries.drawing import DEFAULT_GRID, Drawing, even, snapped
from polydiff.timeseries.frames import read
from polydiff.timeseries.model import SCHEDULES, SeriesConfig, SeriesModel
from polydiff.timeseries.pipeline import ImputationPipeline
from polydiff.timeseries.replacement import particles
from tests.timeseries.exact import autoregressive, conditional, exact_pipeline, small, small_csdi

L, K = 6, 2
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(3, L, K)) * [2.0, 30.0] + [10.0, -5.0]
GAPS = GENERATOR.random(X.shape) < 0.4
X[GAPS] = np.nan
X[1, :, 0] = np.nan  # a feature of a window without any observation
X.setflags(write=False)


def random_pipeline(csdi: bool = False, features: int = K, window: int = L, **config: Any) -> ImputationPipeline:
    """A pipeline with random weights, float32."""
    names = config.pop("names", tuple(f"feature {k}" for k in range(features)))
    own: dict[str, Any] = {"network": small(features)}
    if csdi:
        own = {
            "network": small_csdi(features),
            "schedule": "csdi",
            "conditioning": "index-50",
            "parametrisation": "eps",
        }
    made = SeriesConfig(features=names, window=window, **own, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SeriesModel(made, [10.0, -5.0, 1.0][:features], [2.0, 30.0, 1.0][:features])
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return ImputationPipeline(made, model.eval())


RANDOM = random_pipeline()


# --- unfitted


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.impute(X),
        lambda p: p.samples(X),
        lambda p: p.quantile(X),
        lambda p: p.forecast(X, 2),
        lambda p: p.futures(X, 2),
        lambda p: p.save_pretrained("nowhere"),
        lambda p: p.to("cpu"),
        lambda p: p.device,
        lambda p: p.kernel,
    ],
)
def test_without_a_model_it_says_what_to_do(use: Any):
    pipeline = ImputationPipeline()
    assert not pipeline.is_fitted
    with pytest.raises(PolydiffError, match=r"fit\(X\).*from_pretrained"):
        use(pipeline)
    assert not Path("nowhere").exists()


def test_config_and_model_come_together():
    with pytest.raises(ArgumentError, match="config, model"):
        ImputationPipeline(RANDOM.config)


# --- what comes back


def test_observed_cells_and_type_of_arrays():
    for array in (X, X.astype(np.float32), X[0], np.asfortranarray(X)):
        found = RANDOM.impute(array, count=3, steps=2)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        seen = ~np.isnan(array)
        assert found[seen].tobytes() == array[seen].tobytes()
        assert np.isfinite(found).all()
    whole = np.arange(L * K).reshape(L, K)
    again = RANDOM.impute(whole, count=2, steps=2)
    assert again.dtype == whole.dtype
    assert (again == whole).all()


def test_negative_zero_and_last_bits_survive():
    array = X[0].copy()
    array[0, 0], array[1, 1] = -0.0, 0.1 + 0.2
    for found in (RANDOM.impute(array, count=3, steps=2), RANDOM.impute(array, count=3, steps=2, point="mean")):
        assert np.signbit(found[0, 0])
        assert found[1, 1] == 0.1 + 0.2


def test_tables_keep_index_columns_and_types():
    table = pd.DataFrame(
        {"b": X[0, :, 1], "a": X[0, :, 0].astype(np.float32)}, index=pd.date_range("2021-03-01", periods=L, freq="h")
    )
    pipeline = random_pipeline(names=("a", "b"))
    found = pipeline.impute(table, count=3, steps=2)
    assert list(found.columns) == ["b", "a"]
    assert found.index.equals(table.index)
    assert (found.dtypes == table.dtypes).all()
    seen = table.notna()
    assert (found.where(seen).fillna(0) == table.fillna(0)).all(axis=None)
    assert found.notna().all(axis=None)
    # Columns go by name: the same numbers as of the array in the model's order.
    plain = pipeline.samples(table[["a", "b"]].to_numpy(np.float64), count=3, steps=2)
    np.testing.assert_array_equal(pipeline.samples(table, count=3, steps=2)[..., ::-1], plain)
    low, high = pipeline.quantile(table, (0.1, 0.9), count=5, steps=2)
    assert isinstance(low, pd.DataFrame)
    assert (low <= high).all(axis=None)


def test_tables_whose_dates_need_a_word():
    frame = pd.DataFrame({"date": [f"1/{month}/2023" for month in range(1, 5)], "a": [1.0, np.nan, 3.0, 4.0]})
    frame["b"] = [5.0, 6.0, 7.0, np.nan]
    pipeline = random_pipeline(names=("a", "b"))
    with pytest.raises(DataError, match="day_first=True"):
        pipeline.impute(frame, count=2)
    filled = pipeline.impute(read(frame, day_first=True), count=2, steps=2)
    assert filled["date"].tolist() == frame["date"].tolist() and not filled.isna().any(axis=None)
    ahead = pipeline.forecast(read(frame, day_first=True), 2, count=2, steps=2)
    assert [(stamp.month, stamp.day) for stamp in ahead.index] == [(5, 1), (6, 1)]


def test_lists_of_series_of_different_lengths():
    parts = [X[0], X[1, :4], np.concatenate([X[0], X[2], X[1]])]
    found = RANDOM.impute(parts, count=3, steps=2)
    assert [one.shape for one in found] == [one.shape for one in parts]
    for new, old in zip(found, parts, strict=True):
        assert np.isfinite(new).all()
        assert (new[~np.isnan(old)] == old[~np.isnan(old)]).all()
    assert [one.shape for one in RANDOM.samples(parts, 3, steps=2)] == [(3, len(one), K) for one in parts]


def test_shapes_of_samples_and_quantiles():
    assert RANDOM.samples(X, 4, steps=2).shape == (4, 3, L, K)
    assert RANDOM.samples(X[:1], 4, steps=2).shape == (4, 1, L, K)
    assert RANDOM.samples(X[0], 4, steps=2).shape == (4, L, K)
    assert RANDOM.quantile(X, (0.1, 0.5), count=4, steps=2).shape == (2, 3, L, K)
    assert RANDOM.quantile(X[0], 0.5, count=4, steps=2).shape == (L, K)
    assert RANDOM.forecast(X, 2, count=4, steps=2).shape == (3, 2, K)
    assert RANDOM.forecast(X[0], 2, count=4, steps=2, quantiles=(0.1, 0.9)).shape == (2, 2, K)
    assert RANDOM.futures(X, 5, 4, steps=2).shape == (4, 3, 5, K)


def test_quantiles_and_points_are_those_of_the_samples():
    samples = RANDOM.samples(X, 7, steps=2, seed=3)
    missing = np.isnan(X)
    levels = (0.0, 0.05, 0.5, 1.0)
    found = RANDOM.quantile(X, levels, count=7, steps=2, seed=3)
    ordered = np.sort(samples, axis=0)
    for q, one in zip(levels, found, strict=True):
        place = q * 6  # linear interpolation between order statistics
        low = min(int(place), 5)
        wanted = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
        np.testing.assert_allclose(one[missing], wanted[missing], rtol=1e-12)
    np.testing.assert_array_equal(RANDOM.impute(X, count=7, steps=2, seed=3), found[2])
    mean = RANDOM.impute(X, count=7, steps=2, seed=3, point="mean")
    np.testing.assert_allclose(mean[missing], samples.mean(0)[missing], rtol=1e-12)


# --- the law


@pytest.mark.parametrize(("sampler", "steps"), [(ancestral, 80), (None, 40), (dpm_solver_pp_2m, 30)])
def test_it_draws_from_the_conditional_law(sampler: Any, steps: int):
    centre, scale = torch.tensor([10.0, -5.0]).double(), torch.tensor([2.0, 30.0]).double()
    pipeline, _ = exact_pipeline(L, K, centre=centre, scale=scale)
    count = 1500
    samples = torch.from_numpy(pipeline.samples(X[0], count, steps=steps, sampler=sampler))
    z = ((samples - centre) / scale).flatten(1)
    known = ~torch.from_numpy(np.isnan(X[0]).flatten())
    mean, covariance = conditional(autoregressive(L, K), z[0], known)
    found = z[:, ~known]
    error = 4.5 * (covariance.diagonal() / count).sqrt()  # of a mean, at 4.5 standard deviations
    assert bool(((found.mean(0) - mean).abs() < error + 0.01).all())
    spread = 4.5 * (2 / count) ** 0.5 * covariance.diagonal().max()
    torch.testing.assert_close(found.T.cov(), covariance, atol=float(spread) + 0.02, rtol=0)


def test_every_gaussian_sampler_comes_near_the_mean():
    pipeline, _ = exact_pipeline(4, 1)
    x = np.array([[1.0], [np.nan], [np.nan], [-1.0]])
    mean, covariance = conditional(
        autoregressive(4, 1), torch.tensor([1.0, 0, 0, -1.0]).double(), torch.tensor([True, False, False, True])
    )
    for name, sampler in SAMPLERS.items():
        found = pipeline.samples(x, 300, steps=12, sampler=sampler)[:, 1:3, 0]
        np.testing.assert_allclose(found.mean(0), mean, atol=0.2, err_msg=name)
        # Few steps are too wide or too narrow, but near; correctors need many cells to set their step by.
        if name != "predictor-corrector":
            np.testing.assert_allclose(found.std(0), covariance.diagonal().sqrt(), atol=0.35, err_msg=name)


def test_ten_calls_by_default_and_their_intervals():
    pipeline, exact = exact_pipeline(L, K)
    rng = np.random.default_rng(1)
    root = np.linalg.cholesky(autoregressive(L, K).numpy())
    truth = (rng.normal(size=(100, L * K)) @ root.T).reshape(100, L, K)
    missing = rng.random(truth.shape) < 0.5
    low, high = pipeline.quantile(np.where(missing, np.nan, truth), (0.05, 0.95), count=99, batch_size=20_000)
    assert len(exact.states) == 10
    inside = ((low <= truth) & (truth <= high))[missing].mean()
    # 99 samples: the interval between order statistics 5.9 and 94.1 covers 0.882; 600 cells.
    assert 0.83 < inside < 0.93


def test_a_window_without_observations_is_drawn_from_the_model():
    pipeline, _ = exact_pipeline(L, K, centre=[3.0, -3.0], scale=[1.0, 2.0], level="window")
    samples = pipeline.samples(np.full((L, K), np.nan), 2000, steps=20)
    np.testing.assert_allclose(samples.mean(0), np.broadcast_to([3.0, -3.0], (L, K)), atol=0.25)
    np.testing.assert_allclose(samples.std(0), np.broadcast_to([1.0, 2.0], (L, K)), rtol=0.12)


def test_level_of_windows_moves_with_the_data():
    pipeline, _ = exact_pipeline(L, K, level="window", scale=[1.0, 2.0])
    moved = pipeline.samples(X[0] + 1000.0, 5, steps=4)
    np.testing.assert_allclose(moved, pipeline.samples(X[0], 5, steps=4) + 1000.0, rtol=1e-9)


def test_an_unconditional_model_with_replacement():
    pipeline, exact = exact_pipeline(4, 1)
    x = np.array([[1.5], [np.nan], [np.nan], [1.5]])
    fill = partial(repaint, jump=5, resamples=5)
    samples = pipeline.samples(x, 400, steps=30, fill=fill, grid=uniform)
    assert (samples[:, [0, 3], 0] == 1.5).all()
    mean, _ = conditional(
        autoregressive(4, 1), torch.tensor([1.5, 0, 0, 1.5]).double(), torch.tensor([True, False, False, True])
    )
    np.testing.assert_allclose(samples[:, 1:3, 0].mean(0), mean, atol=0.25)  # RePaint comes near
    assert exact.sides == [1]
    with pytest.raises(ArgumentError, match="sampler"):
        pipeline.samples(x, 2, fill=repaint, sampler=ddim)


def test_an_unconditional_model_with_particles():
    pipeline, exact = exact_pipeline(4, 1)
    x = np.array([[1.5], [np.nan], [np.nan], [1.5]])
    samples = pipeline.samples(x, 400, steps=20, fill=particles(20))
    assert (samples[:, [0, 3], 0] == 1.5).all()
    assert set(exact.states) == {8000}
    mean, covariance = conditional(
        autoregressive(4, 1), torch.tensor([1.5, 0, 0, 1.5]).double(), torch.tensor([True, False, False, True])
    )
    np.testing.assert_allclose(samples[:, 1:3, 0].mean(0), mean, atol=0.15)
    np.testing.assert_allclose(samples[:, 1:3, 0].std(0), covariance.diagonal().sqrt(), atol=0.12)
    np.testing.assert_array_equal(pipeline.samples(x, 3, first=7, steps=20, fill=particles(20)), samples[7:10])
    with pytest.raises(ArgumentError, match="particles"):
        particles(0)


def test_forecasts_follow_the_law():
    pipeline, _ = exact_pipeline(8, 1)
    x = np.array([0.0, 0.5, 1.0, 2.0])[:, None]
    samples = pipeline.futures(x, 10, 1200, steps=25)
    ahead = np.arange(1, 11)
    np.testing.assert_allclose(samples[..., 0].mean(0), 2 * 0.8**ahead, atol=0.13)
    np.testing.assert_allclose(samples[..., 0].std(0), np.sqrt(1 - 0.64**ahead), atol=0.1)
    near = np.corrcoef(samples[:, 3, 0], samples[:, 4, 0])[0, 1]  # the seam of two blocks
    joint = 0.8 * np.sqrt((1 - 0.64**4) / (1 - 0.64**5))
    assert near == pytest.approx(joint, abs=0.05)


# --- covariates


def test_known_futures_are_given():
    pipeline, _ = exact_pipeline(6, 2, names=("price", "sales"), covariates=("price",))
    table = pd.DataFrame({"price": [0.0, 1.0, 0.5], "sales": [0.1, 0.9, 0.4]})
    future = pd.DataFrame({"price": [2.0, -2.0]})
    found = pipeline.forecast(table, 2, covariates=future, count=5, steps=4)
    assert found["price"].tolist() == [2.0, -2.0]
    assert list(found.columns) == ["price", "sales"]
    assert list(found.index) == [3, 4]
    high, low = (pipeline.forecast(table, 2, covariates=future * s, count=50, steps=4)["sales"] for s in (1, -1))
    assert high[3] > low[3]
    assert high[4] < low[4]
    array = pipeline.forecast(table.to_numpy(), 2, covariates=future.to_numpy(), count=5, steps=4)
    np.testing.assert_array_equal(array, found.to_numpy())


def test_covariates_that_do_not_fit():
    pipeline, _ = exact_pipeline(6, 2, names=("price", "sales"), covariates=("price",))
    table = pd.DataFrame({"price": [0.0, 1.0, 0.5], "sales": [0.1, 0.9, 0.4]})
    with pytest.raises(ArgumentError, match="next 2 rows of price"):
        pipeline.forecast(table, 2)
    with pytest.raises(ArgumentError, match="2 rows for each of 1"):
        pipeline.forecast(table, 2, covariates=pd.DataFrame({"price": [1.0]}))
    with pytest.raises(ArgumentError, match="without price"):
        pipeline.forecast(table, 2, covariates=pd.DataFrame({"cost": [1.0, 2.0]}))
    with pytest.raises(ArgumentError, match="without covariates"):
        RANDOM.forecast(X, 2, covariates=np.zeros((3, 2, 1)))


# --- what it depends on


@pytest.mark.parametrize("csdi", [False, True])
def test_nothing_depends_on_neighbours_or_batches(csdi: bool):
    pipeline = random_pipeline(csdi)
    whole = pipeline.samples(X, 5, steps=3, seed=1)
    np.testing.assert_array_equal(whole, pipeline.samples(X, 5, steps=3, seed=1))
    for batch_size in (1, 2, 7, 100):
        np.testing.assert_allclose(pipeline.samples(X, 5, steps=3, seed=1, batch_size=batch_size), whole, rtol=1e-4)
    np.testing.assert_allclose(pipeline.samples(X, 3, steps=3, seed=1, first=2), whole[2:], rtol=1e-4)
    other = np.array(X)
    other[1:] = np.nan
    np.testing.assert_allclose(pipeline.samples(other, 5, steps=3, seed=1)[:, 0], whole[:, 0], rtol=1e-4)
    ragged = pipeline.samples([X[0], X[1, :3]], 5, steps=3, seed=1)
    np.testing.assert_allclose(ragged[0], whole[:, 0], rtol=1e-4)
    changed = pipeline.samples(X, 5, steps=3, seed=2)
    assert not np.isclose(changed[:, GAPS], whole[:, GAPS]).any(0).all()


def test_samples_and_series_are_independent():
    pipeline, _ = exact_pipeline(4, 1)
    found = pipeline.samples(np.full((50, 4, 1), np.nan), 50, steps=5)[..., 0, 0]
    assert len(np.unique(found)) == 2500


def test_side_information_is_computed_once_for_all_samples_and_calls():
    pipeline, exact = exact_pipeline(L, K)
    pipeline.samples(X, 20, steps=5)
    assert exact.sides == [3]
    assert exact.states == [60] * 5
    pipeline.samples(X[0], 20, steps=5, batch_size=8)
    assert sorted(exact.states[5:]) == [4] * 5 + [8] * 10


def test_what_is_complete_costs_nothing():
    pipeline, exact = exact_pipeline(L, K)
    full = np.nan_to_num(X)
    np.testing.assert_array_equal(pipeline.impute(full), full)
    assert exact.sides == []
    assert pipeline.samples(full, 3).shape == (3, *full.shape)


def test_stamps_count_from_the_start_of_each_window_in_steps_of_the_model():
    pipeline, exact = exact_pipeline(4, 1, names=("a",), step=1800.0)
    index = pd.to_datetime(["2020-01-01 00:00", "2020-01-01 01:00", "2020-01-01 02:00", "2020-01-01 04:00"])
    table = pd.DataFrame({"a": [1.0, np.nan, 2.0, np.nan]}, index=index)
    pipeline.samples(table, 2, steps=2)
    assert exact.stamps[-1].tolist() == [[0, 2, 4, 8]]
    pipeline.futures(pd.DataFrame({"a": np.ones(9)}), 1, 2, steps=2)
    assert exact.stamps[-1].tolist() == [[0, 1, 2, 3]]


# --- options


def test_calibrated_solvers_are_the_default_for_their_calls():
    pipeline = random_pipeline()
    calls: list[Any] = []

    def solver(denoise: Any, kernel: Any, x: Any, times: Any, *, generator: Any = None) -> Any:
        calls.append(times)
        return ddim(denoise, kernel, x, uniform(2), generator=generator)

    pipeline.solvers[10] = solver  # pyright: ignore[reportArgumentType]: called as a calibrated one is
    pipeline.samples(X, 2)
    assert calls == [None]
    pipeline.samples(X, 2, steps=9)
    pipeline.samples(X, 2, sampler=ddim)
    pipeline.samples(X, 2, fill=repaint)
    assert len(calls) == 1


def test_grids_of_published_networks_have_whole_indices():
    pipeline = random_pipeline(csdi=True)
    for steps in (1, 2, 10, 37, 50):
        times = pipeline.plan(Drawing(steps=steps)).times
        assert times is not None
        place = times * 50
        assert len(times) == steps + 1
        torch.testing.assert_close(place, place.round(), atol=1e-9, rtol=0)
        assert float(times[0]) == 1
        assert float(times[-1]) == 0
        assert bool((times[:-1] > times[1:]).all())
    assert torch.equal(snapped(even(50, SCHEDULES["csdi"]()), 50), torch.arange(50, -1, -1).double() / 50)
    with pytest.raises(ArgumentError, match="at most 50"):
        pipeline.plan(Drawing(steps=51))
    # The nearest indices, where these differ.
    assert (snapped(torch.tensor([1.0, 0.51, 0.239, 0.0]).double(), 10) * 10).round().tolist() == [10, 5, 2, 0]


def test_the_default_grid():
    schedule = SCHEDULES["cosine"]()
    times = even(10, schedule)
    assert DEFAULT_GRID is even
    inner = schedule.log_snr(times[1:-1])
    torch.testing.assert_close(inner.diff(), torch.full((8,), 17 / 9).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"first": 1.5}, "first"),
        ({"batch_size": 0}, "batch_size"),
        ({"sampler": "ddim"}, "sampler"),
        ({"grid": None}, "grid"),
        ({"precision": torch.float16}, "precision"),
        ({"point": "mode"}, "point"),
    ],
)
def test_options_that_cannot_be_used(options: dict, name: str):
    with pytest.raises(ArgumentError, match=name):
        RANDOM.impute(X, **options)


@pytest.mark.parametrize("q", [-0.1, 1.1, (), (0.5, np.nan)])
def test_quantiles_that_are_none(q: Any):
    with pytest.raises(ArgumentError, match="q: "):
        RANDOM.quantile(X, q)


def test_input_that_cannot_be_used():
    with pytest.raises(ArgumentError, match="1 column.*expected 2"):
        RANDOM.impute(X[..., :1])
    with pytest.raises(ArgumentError, match=r"X: got '3 columns', expected 2, as the model has"):
        RANDOM.impute(np.zeros((4, 3)))
    with pytest.raises(ArgumentError, match="without b.*with c"):
        random_pipeline(names=("a", "b")).impute(pd.DataFrame({"a": [1.0], "c": [np.nan]}))
    with pytest.raises(DataError, match="inf"):
        RANDOM.impute(np.where(np.isnan(X), np.inf, X))
    with pytest.raises(DataError, match="b.*row 2"):
        random_pipeline(names=("a", "b")).impute(pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, "x"]}))


def test_one_single_row():
    found = RANDOM.impute(np.array([[1.0, np.nan]]), count=3, steps=2)
    assert found[0, 0] == 1.0
    assert np.isfinite(found).all()
    assert RANDOM.forecast(np.array([[1.0, np.nan]]), 3, count=3, steps=2).shape == (3, 2)


def test_half_precision_comes_near():
    plain = RANDOM.impute(X, count=3, steps=3)
    half = RANDOM.impute(X, count=3, steps=3, precision=torch.bfloat16)
    np.testing.assert_allclose((half - plain) / [2.0, 30.0], 0, atol=0.2)


# --- kept


@pytest.mark.parametrize("csdi", [False, True])
def test_it_comes_back_from_its_folder(tmp_path: Path, csdi: bool):
    pipeline = random_pipeline(csdi, level="window", step=60.0, covariates=("feature 0",))
    pipeline.save_pretrained(tmp_path / "model")
    again = ImputationPipeline.from_pretrained(tmp_path / "model")
    assert again.config == pipeline.config
    assert again.is_fitted
    assert isinstance(again.model.denoiser, GaussianDenoiser)
    assert torch.equal(again.model.centre, pipeline.model.centre)
    np.testing.assert_array_equal(again.samples(X, 3, steps=2), pipeline.samples(X, 3, steps=2))


def test_half_precision_files_keep_the_units(tmp_path: Path):
    RANDOM.save_pretrained(tmp_path, dtype=torch.bfloat16)
    again = ImputationPipeline.from_pretrained(tmp_path)
    assert torch.equal(again.model.scale, RANDOM.model.scale)
