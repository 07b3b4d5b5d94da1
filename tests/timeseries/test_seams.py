"""Where modules meet: time from tables to networks, units from training to drawing, devices, constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from polydiff.core.errors import ArgumentError
from polydiff.core.objectives import whole_steps
from polydiff.core.options import TrainingOptions
from polydiff.core.sampling import Step
from polydiff.core.training import Trained
from polydiff.timeseries import comparison, fitting
from polydiff.timeseries import train as training
from polydiff.timeseries.calibrate import flows
from polydiff.timeseries.comparison import Windowed
from polydiff.timeseries.data import Windows
from polydiff.timeseries.evaluate import methods_of, systems_of
from polydiff.timeseries.model import SCHEDULES, SeriesConfig, SeriesModel, times_of
from polydiff.timeseries.options import Calibrate, Evaluate, Sample, Sizes, Train
from polydiff.timeseries.pipeline import ImputationPipeline
from polydiff.timeseries.sample import summaries
from polydiff.timeseries.scaling import fit_scale
from polydiff.timeseries.series import Series
from polydiff.timeseries.stitching import interleaved
from polydiff.timeseries.targets import Mixture, Patterned
from tests.timeseries.exact import exact_pipeline, small, small_csdi

SHORT = TrainingOptions(steps=1, batch_size=2, warmup=0, progress=False, checkpoint_every=0, cpu=True)


def series(values: Any, step: float = 0.0) -> Series:
    """Rows as a series."""
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    names = tuple(f"feature {k}" for k in range(values.shape[1]))
    return Series(values, np.arange(len(values)) * 1.0, names, step)


# --- time


def test_evaluation_tells_the_model_when_rows_happened():
    pipeline, exact = exact_pipeline(4, 1, step=1800.0)
    values = np.array([[[1.0], [np.nan], [2.0], [np.nan]], [[np.nan], [0.0], [np.nan], [1.0]]])
    stamps = torch.tensor([[0.0, 1, 2, 5], [0, 0.5, 1, 1.5]])
    for step, factor in ((0.0, 1), (1800.0, 1), (3600.0, 2)):
        data = Windowed(values, stamps, np.zeros(1), np.ones(1), ("feature 0",), step=step)
        draw = methods_of(pipeline, data, Evaluate(samples=3, steps=2))["polydiff"]
        found = draw(values, stamps, 1)
        assert found.shape == (3, 2, 4, 1)
        assert exact.stamps[-1].tolist() == (stamps * factor).tolist()
        np.testing.assert_array_equal(found[:, ~np.isnan(values)], np.repeat(values[~np.isnan(values)][None], 3, 0))
    assert not np.array_equal(draw(values, stamps, 2), found)


def test_evaluation_draws_as_it_is_told(monkeypatch: pytest.MonkeyPatch):
    pipeline, _ = exact_pipeline(4, 1)
    values = np.full((1, 4, 1), np.nan)
    data = Windowed(values, torch.arange(4.0)[None], np.zeros(1), np.ones(1), ("feature 0",))
    kept: list[Any] = []
    plain = pipeline.drawn

    def drawn(windows: Any, count: int, drawing: Any, passes: Any = None) -> Any:
        kept.append((count, drawing))
        return plain(windows, count, drawing, passes)

    monkeypatch.setattr(pipeline, "drawn", drawn)
    methods_of(pipeline, data, Evaluate(samples=3, steps=2, precision="bf16", seed=5))["polydiff"](
        values, data.stamps, 7
    )
    ((count, drawing),) = kept
    assert (count, drawing.steps, drawing.precision, drawing.seed) == (3, 2, torch.bfloat16, 7)


def test_shares_that_hide_nothing_are_told_before_anything_is_drawn():
    values = np.zeros((2, 4, 1))
    none = torch.zeros(2, 4, 1, dtype=torch.bool)
    data = Windowed(values, torch.arange(4.0).expand(2, 4), np.zeros(1), np.ones(1), ("a",), held=lambda rate: none)
    with pytest.raises(ArgumentError, match="--rates"):
        systems_of(data, Evaluate(rates=(0.01,)))


def test_futures_go_on_at_the_distance_of_the_rows():
    pipeline, exact = exact_pipeline(4, 1, names=("a",), step=1800.0)
    table = pd.DataFrame({"a": np.ones(6)}, index=pd.date_range("2020-01-01", periods=6, freq="h"))
    pipeline.futures(table, 2, 2, steps=2)
    assert exact.stamps[-1].tolist() == [[0, 2, 4, 6]]
    pipeline.forecast(table, 2, count=2, steps=2)
    assert exact.stamps[-1].tolist() == [[0, 2, 4, 6]]
    hourly = Series(np.ones((6, 1)), np.arange(6.0), ("a",), 3600.0).paced(1800.0)
    options = Sample(input=Path("x.csv"), samples=2, steps=2, horizon=2, progress=False)
    summaries(pipeline, hourly, options, [])
    assert exact.stamps[-1].tolist() == [[0, 2, 4, 6]]


def test_a_pace_is_taken_once():
    one = series(np.arange(4.0), 3600.0)
    half = one.paced(1800.0)
    assert half.stamps.tolist() == [0, 2, 4, 6] and half.spacing == 2
    assert half.paced(1800.0).stamps.tolist() == [0, 2, 4, 6]
    assert half.cut(1, 3).prolonged(np.zeros((1, 1))).stamps.tolist() == [2, 4, 6]
    assert one.paced(0.0) is one


def test_series_of_other_steps_are_trained_on_in_the_steps_of_the_first(monkeypatch: pytest.MonkeyPatch):
    both = [series(np.arange(6.0), 3600.0), series(np.arange(6.0), 900.0)]
    data = Windows(both, 3)
    assert data.step == 3600.0
    assert data.batch(range(4))["stamps"].tolist() == [[0, 1, 2]] * 2 + [[0, 0.25, 0.5]] * 2
    tables = [
        pd.DataFrame({"a": np.arange(12.0)}, index=pd.date_range("2020", periods=12, freq=freq))
        for freq in ("h", "15min")
    ]
    kept: list[Windows] = []
    plain = fitting.train

    def train(objective: Any, data: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(data)
        return plain(objective, data, *arguments, **options)

    monkeypatch.setattr(fitting, "train", train)
    fitted = ImputationPipeline().fit(tables, window=4, network=small(1), options=SHORT, held_out_share=0)
    assert fitted.config.step == 3600.0
    assert {tuple(row) for row in kept[0].batch(range(len(kept[0])))["stamps"].tolist()} == {
        (0, 1, 2, 3),
        (0, 0.25, 0.5, 0.75),
    }


# --- units


@pytest.mark.parametrize("level", ["series", "window"])
def test_constant_features_are_filled_with_their_constant(level: Any):
    values = np.stack([np.sin(np.arange(40.0)), np.full(40, 7.25), np.full(40, 1e-9)], 1)
    data = Windows([series(values)], 8, level=level)
    assert data.spread.tolist() == [data.scale[0], 0.0, 0.0]
    config = SeriesConfig(features=data.features, window=8, network=small(3), level=level)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SeriesModel(config, data.centre, data.spread)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    rows = values[:8].copy()
    rows[2:5] = np.nan
    found = ImputationPipeline(config, model.eval()).samples(rows, 3, steps=2)
    assert (found[..., 1] == 7.25).all()
    assert (found[..., 2] == 1e-9).all()
    assert len(np.unique(found[:, 2, 0])) == 3


def test_what_only_differs_from_window_to_window_keeps_a_scale_of_its_own():
    places = np.repeat([100.0, 900.0, 500.0], 6)[:, None]
    windows = [np.concatenate([np.arange(6.0)[:, None], place], 1) for place in np.split(places, 3)]
    _, scale = fit_scale(windows, "window")
    assert scale[1] == pytest.approx(places.std())
    assert scale[0] == pytest.approx(np.arange(6.0).std())


def test_a_model_without_given_cells_has_no_level_of_windows():
    pipeline, _ = exact_pipeline(4, 1, centre=[3.0], scale=[2.0], level="window")
    seen: list[Tensor] = []

    def fill(denoise: Any, kernel: Any, x: Tensor, times: Tensor, *, known: Tensor, mask: Tensor, generator: Any):
        seen.extend([known, mask])
        yield Step(times[-1], torch.where(mask, known, 1.0), None)

    rows = np.array([[5.0], [np.nan], [9.0], [np.nan]])
    found = pipeline.samples(rows, 2, steps=2, fill=fill)
    known, mask = seen
    assert known[mask].tolist() == [1.0, 3.0, 1.0, 3.0]  # (value - centre) / scale, as in training
    assert found[:, 1].flatten().tolist() == [5.0, 5.0]


def test_covariates_of_arrays_come_in_their_own_order():
    names = ("feature 0", "feature 1", "feature 2")
    pipeline, _ = exact_pipeline(4, 3, names=names, covariates=("feature 1", "feature 0"))
    found = pipeline.forecast(np.zeros((3, 3)), 1, covariates=np.array([[10.0, 20.0]]), count=2, steps=2)
    assert found[0, :2].tolist() == [20.0, 10.0]


def test_every_series_has_the_future_of_its_own_covariates():
    pipeline, _ = exact_pipeline(4, 2, names=("price", "sales"), covariates=("price",))
    future = np.array([[[1.0], [2.0]], [[-3.0], [-4.0]]])
    found = pipeline.forecast(np.zeros((2, 3, 2)), 2, covariates=future, count=2, steps=2)
    np.testing.assert_array_equal(found[..., :1], future)


def test_windows_of_a_series_are_drawn_with_numbers_of_their_own():
    pipeline, _ = exact_pipeline(4, 1)
    first, second = interleaved(20, 4)
    found = pipeline.samples(np.full((20, 1), np.nan), 2, steps=2)[..., 0]
    assert len(first) >= 3 and second
    assert len(np.unique(found)) == found.size
    (one,), (other,) = ([found[:, start:stop]] for start, stop in first[:2])
    assert np.abs(one - other).min() > 1e-6


def test_memory_for_samples_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    pipeline, _ = exact_pipeline(4, 1)
    rows = np.full((3, 4, 1), np.nan)
    whole = pipeline.samples(rows, 3, steps=2)
    monkeypatch.setattr("polydiff.timeseries.pipeline.HELD", 1)  # one series at a time
    np.testing.assert_allclose(pipeline.samples(rows, 3, steps=2), whole, rtol=1e-9)
    np.testing.assert_allclose(pipeline.quantile(rows, 0.5, count=3, steps=2), np.median(whole, 0), rtol=1e-9)


def test_levels_that_are_no_numbers():
    pipeline, _ = exact_pipeline(4, 1)
    with pytest.raises(ArgumentError, match="q: "):
        pipeline.quantile(np.zeros((4, 1)), "half")  # pyright: ignore[reportArgumentType]


# --- training


def test_padding_is_no_gap(monkeypatch: pytest.MonkeyPatch):
    kept: list[Any] = []

    class Stopped(Exception):
        pass

    def train(objective: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(objective.strategy)
        raise Stopped

    monkeypatch.setattr(fitting, "train", train)
    whole = [np.arange(n * 1.0)[:, None] for n in (9, 7, 5)]
    gaps = [np.where(np.arange(9)[:, None] == 3, np.nan, whole[0]), *whole[1:]]
    for rows in (whole, gaps):
        with pytest.raises(Stopped):
            ImputationPipeline().fit(rows, window=9, network=small(1), options=SHORT)
    plain, patterned = kept
    assert isinstance(plain, Mixture) and isinstance(patterned, Mixture)
    assert not any(isinstance(one, Patterned) for one in plain.strategies)
    (own,) = [one for one in patterned.strategies if isinstance(one, Patterned)]
    assert (~own.patterns).sum() == 1  # of the row 3 alone


def test_fitting_never_asks_for_covariates(monkeypatch: pytest.MonkeyPatch):
    kept: list[Any] = []

    class Stopped(Exception):
        pass

    def train(objective: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(objective.strategy)
        raise Stopped

    monkeypatch.setattr(fitting, "train", train)
    with pytest.raises(Stopped):
        ImputationPipeline().fit(np.ones((30, 2)), window=6, network=small(2), covariates=("feature 1",))
    target = kept[0](torch.ones(40, 6, 2, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert bool(target[..., 0].any()) and not bool(target[..., 1].any())


def test_some_windows_are_at_even_distances():
    data = Windows([series(np.arange(40.0))], 4)
    first = data.some(4)["values"][:, 0, 0] * float(data.scale[0]) + float(data.centre[0])
    torch.testing.assert_close(first, torch.tensor([0.0, 12.0, 24.0, 36.0]), atol=1e-4, rtol=0)
    assert len(data.some(1000)["values"]) == len(data)


def test_published_chains_are_trained_on_whole_steps():
    t = whole_steps(50)(SCHEDULES["csdi"](), 20_000, torch.Generator().manual_seed(0))
    index = t * 50
    torch.testing.assert_close(index, index.round(), atol=1e-9, rtol=0)
    counts = torch.bincount(index.round().long(), minlength=51)
    assert int(counts[0]) == 0 and len(counts) == 51
    assert float(((counts[1:] - 400) ** 2 / 400).sum()) < 93  # chi-square of 49 at 1e-4
    csdi = SeriesConfig(
        features=("a",),
        window=4,
        network=small_csdi(1),
        schedule="csdi",
        parametrisation="eps",
        conditioning="index-50",
    )
    times = times_of(csdi)
    assert times is not None
    assert float(times(SCHEDULES["csdi"](), 100, torch.Generator().manual_seed(0)).min()) >= 1 / 50
    assert times_of(SeriesConfig(features=("a",), window=4, network=small(1))) is None


@pytest.mark.parametrize("csdi", [False, True])
def test_objectives_draw_the_times_of_their_network(csdi: bool, monkeypatch: pytest.MonkeyPatch):
    kept: list[Any] = []

    class Stopped(Exception):
        pass

    def train(objective: Any, *arguments: Any, **options: Any) -> Any:
        kept.append(objective)
        raise Stopped

    monkeypatch.setattr(fitting, "train", train)
    with pytest.raises(Stopped):
        ImputationPipeline().fit(np.arange(20.0)[:, None], window=5, network=(small_csdi if csdi else small)(1))
    data = Windows([series(np.arange(20.0))], 5)
    sizes = Sizes(width=8, blocks=1, heads=1 if not csdi else 2)
    options = Train(network="csdi" if csdi else "ours", sizes=sizes)
    config = training.series_config(data, options)
    kept.append(training.objective_of(SeriesModel(config), config, data, options))
    for objective in kept:
        t = objective.denoising.times(objective.denoising.kernel.schedule, 200, torch.Generator().manual_seed(0))
        assert bool(((t * 50 - (t * 50).round()).abs() < 1e-9).all()) == csdi


def test_the_whole_model_is_where_training_left_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def moved(objective: nn.Module, *arguments: Any, **options: Any) -> Trained:
        objective.to("meta")
        return Trained(objective, objective, [{"seconds": 0.0}], is_main_process=False)

    monkeypatch.setattr(fitting, "train", moved)
    monkeypatch.setattr(training, "train_objective", moved)
    found = fitting.fitted([series(np.arange(20.0))], window=5, network=small(1), options=SHORT)
    data = Windows([series(np.arange(20.0))], 5)
    pipeline, _ = training.train(data, Train(sizes=Sizes(width=8, blocks=1), out=tmp_path))
    for model in (found.model, pipeline.model):
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_solvers_are_fitted_to_windows_as_they_are_drawn(monkeypatch: pytest.MonkeyPatch):
    pipeline, exact = exact_pipeline(6, 2, level="window", covariates=("feature 1",))
    rows = np.stack([np.arange(24.0), np.cos(np.arange(24.0))], 1)
    kept: list[Tensor] = []
    plain = exact.side

    def side(observed: Tensor, known: Tensor, stamps: Tensor, present: Tensor | None = None) -> Any:
        kept.extend([observed, known])
        return plain(observed, known, stamps, present)

    monkeypatch.setattr(exact, "side", side)
    flows(pipeline, Windows([series(rows)], 6, level="window"), Calibrate(fine=10, seed=1), [0, 1, 2, 3], 0)
    observed, known = kept
    assert bool(known[..., 1].all()) and not bool(known[..., 0].all())  # covariates are never hidden
    assert bool((observed[~known] == 0).all())
    torch.testing.assert_close(observed.sum(1), torch.zeros(4, 2), atol=1e-5, rtol=0)  # the level is of given cells


def test_every_window_is_measured_with_its_own_stamps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(comparison, "ELEMENTS", 1)  # a window at a time
    stamps = torch.arange(3.0)[:, None] * 10 + torch.arange(4.0)
    data = Windowed(np.zeros((3, 4, 1)), stamps, np.zeros(1), np.ones(1), ("a",))
    kept: list[Tensor] = []

    def draw(values: np.ndarray, when: Tensor, seed: int) -> np.ndarray:
        kept.append(when)
        return np.zeros((1, *values.shape))

    comparison.compare(data, [comparison.System("all", data.seen)], {"": draw}, 0)
    assert torch.equal(torch.cat(kept), stamps)
