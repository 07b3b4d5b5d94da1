"""Fitting on one's own series: what is chosen, what is held out, and that it learns."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from polydiff.core.errors import ArgumentError
from polydiff.core.interruption import Interrupted
from polydiff.core.options import TrainingOptions
from polydiff.timeseries.data import WINDOW, Windows
from polydiff.timeseries.fitting import (
    JUDGES,
    fitted,
    hidden,
    judged,
    level_for,
    network_for,
    options_for,
    strategy_for,
    window_for,
)
from polydiff.timeseries.pipeline import ImputationPipeline
from polydiff.timeseries.series import Series
from polydiff.timeseries.targets import Mixture, Patterned
from tests.timeseries.exact import small, small_csdi

SHORT = TrainingOptions(steps=3, batch_size=4, warmup=0, progress=False, checkpoint_every=0, cpu=True)


def series(values: Any, names: tuple[str, ...] | None = None) -> Series:
    """Rows as a series."""
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    return Series(values, np.arange(len(values)) * 1.0, names or tuple(f"feature {k}" for k in range(values.shape[1])))


WAVES = np.stack([np.sin(np.arange(120) / 5), 50 + 10 * np.cos(np.arange(120) / 5)], 1)


@pytest.mark.parametrize(
    ("lengths", "window"),
    [
        ([48] * 10, 48),
        ([30, 96] * 5, 96),
        ([97] * 10, 24),
        ([1000], WINDOW),
        ([100], 25),
        ([12], 8),
        ([5], 5),
        ([1], 1),
    ],
)
def test_windows_suit_the_data(lengths: list[int], window: int):
    assert window_for([series(np.zeros(length)) for length in lengths]) == window


def test_series_that_drift_are_recognised():
    t = np.arange(500)
    wave, trend = np.sin(t / 3), t / 20
    assert level_for([series(wave)], 48) == "series"
    assert level_for([series(wave + trend)], 48) == "window"
    assert level_for([series(1e200 * (wave + trend))], 48) == "window"  # squares that would overflow
    assert level_for([series(1000 + wave)], 48) == "series"  # a mean far from 0 is no drift
    assert level_for([series(np.full(500, 3.0))], 48) == "series"
    # Windows of their own: their means say something.
    assert level_for([series(wave[:40] + 10 * i) for i in range(20)], 40) == "series"
    gaps = np.where(t % 2 == 0, np.nan, wave + trend)
    assert level_for([series(gaps)], 48) == "window"


def test_sizes_and_steps():
    little, much = series(np.zeros((100, 3))), series(np.zeros((20_000, 3)))
    assert network_for([little]).width < network_for([much]).width
    assert network_for([little]).features == 3
    counts = []
    for one in (little, much):
        options = options_for(10, network_for([one]), 7)
        assert 200 <= options.steps <= 3000
        assert options.seed == 7
        assert not options.progress
        counts.append(options.steps)
    found = options_for(48, network_for([series(np.zeros((1000, 200)))]), 0)
    assert (found.steps, found.batch_size) == (200, 8)
    assert counts[0] > counts[1]


def test_gaps_of_the_data_are_among_the_targets():
    seen = torch.ones(5, 4, 2, dtype=torch.bool)
    whole = strategy_for(seen, 4)
    assert isinstance(whole, Mixture)
    assert not any(isinstance(one, Patterned) for one in whole.strategies)
    seen[0, 0, 0] = False
    gaps = strategy_for(seen, 4)
    assert isinstance(gaps, Mixture)
    assert any(isinstance(one, Patterned) for one in gaps.strategies)


def test_what_is_held_out():
    values = WAVES.copy()
    values[::7, 0] = np.nan
    one = series(values)
    mask = hidden(one, 0.1, (), 0)
    assert mask.sum() == round(0.1 * (~np.isnan(values)).sum())
    assert not (mask & np.isnan(values)).any()
    assert (mask == hidden(one, 0.1, (), 0)).all()
    assert (mask != hidden(one, 0.1, (), 1)).any()
    assert not hidden(one, 0.5, ("feature 1",), 0)[:, 1].any()
    assert not hidden(one, 0.0, (), 0).any()


def test_held_out_cells_are_not_trained_on(monkeypatch: pytest.MonkeyPatch):
    seen: list[Windows] = []
    import polydiff.timeseries.fitting as fitting

    plain = fitting.train

    def train(objective: Any, data: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(data)
        return plain(objective, data, *arguments, **options)

    monkeypatch.setattr(fitting, "train", train)
    found = fitted([series(WAVES)], window=12, network=small(2), options=SHORT, held_out_share=0.2)
    (data,) = seen
    truth = found.held[0]
    assert (~np.isnan(truth)).sum() == round(0.2 * 240)
    place = ~np.isnan(truth)
    assert (truth[place] == WAVES[place]).all()
    assert np.isnan(found.shown[0].values[place]).all()
    assert (found.shown[0].values[~place] == WAVES[~place]).all()
    assert data.stride == 1
    batch = data.batch(range(len(data)))
    rows = np.arange(120 - 12 + 1)[:, None] + np.arange(12)
    assert (batch["seen"].numpy() == ~place[rows]).all()
    # The units are those of the cells that were shown.
    shown = np.where(place, np.nan, WAVES)
    np.testing.assert_allclose(found.model.centre.numpy(), np.nanmean(shown, 0))
    np.testing.assert_allclose(found.model.scale.numpy(), np.nanstd(shown, 0))


def test_figures_on_held_out_cells():
    shown = [series(np.array([[1.0, np.nan], [np.nan, 4.0], [3.0, 0.0]]))]
    held = [np.array([[np.nan, 2.0], [8.0, np.nan], [np.nan, np.nan]])]

    def draw(chosen: Any) -> list[Tensor]:
        samples = np.repeat(np.nan_to_num(chosen[0].values, nan=0.0)[None], 101, 0)
        samples[:, 0, 1] = np.linspace(0, 4, 101)  # truth 2 within
        samples[:, 1, 0] = np.linspace(5, 7, 101)  # truth 8 without; median 6
        return [torch.from_numpy(samples)]

    found = judged(draw, shown, held)
    assert found["held-out cells"] == 2
    assert found["coverage of 90 %"] == 0.5
    # The deviations of the shown cells are 1 and 2.
    assert found["MAE in standard deviations"] == pytest.approx((0 / 2 + 2 / 1) / 2)
    assert judged(draw, shown, [np.full((3, 2), np.nan)]) == {}


def test_it_learns_and_is_the_same_twice(tmp_path: Path):
    rng = np.random.default_rng(0)
    X = WAVES + 0.05 * rng.normal(size=WAVES.shape)
    X[rng.random(X.shape) < 0.1] = np.nan
    options = TrainingOptions(
        steps=80, batch_size=16, learning_rate=5e-3, warmup=5, ema=0.9, progress=False, checkpoint_every=0, cpu=True
    )  # fmt: skip

    def fit(options: TrainingOptions, **more: Any) -> ImputationPipeline:
        return ImputationPipeline().fit(X, window=12, network=small(2), options=options, seed=1, **more)

    pipeline = fit(options, folder=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert not pipeline.model.training
    assert pipeline.config.window == 12
    assert pipeline.validation["held-out cells"] > 0
    filled = pipeline.impute(X, count=20)
    missing = np.isnan(X)
    scale = np.nanstd(X, 0)
    error = (np.abs(filled - WAVES) / scale)[missing].mean()
    mean = (np.abs(np.nanmean(X, 0) - WAVES) / scale)[missing].mean()
    assert error < 0.6 * mean
    once, again = fit(SHORT, held_out_share=0), fit(SHORT, held_out_share=0)
    np.testing.assert_array_equal(again.impute(X, count=3), once.impute(X, count=3))
    pipeline.save_pretrained(tmp_path / "model")
    read = ImputationPipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(read.impute(X, count=3), pipeline.impute(X, count=3))


def test_averaged_weights_are_what_is_kept(monkeypatch: pytest.MonkeyPatch):
    import polydiff.timeseries.fitting as fitting

    kept: list[Any] = []
    plain = fitting.train

    def train(*arguments: Any, **options: Any) -> Any:
        kept.append(plain(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(fitting, "train", train)
    found = fitted([series(WAVES)], window=12, network=small(2), options=SHORT)
    average = dict(kept[0].ema.named_parameters())
    for name, value in found.model.denoiser.named_parameters():
        assert torch.equal(value, average[f"denoising.denoiser.{name}"])
    assert kept[0].ema is not kept[0].objective


def test_tables_with_dates_and_covariates():
    index = pd.date_range("2020-01-01", periods=60, freq="30min")
    table = pd.DataFrame(WAVES[:60], columns=["sales", "price"], index=index)
    pipeline = ImputationPipeline().fit(table, window=10, covariates=["price"], network=small(2), options=SHORT)
    assert pipeline.config.step == 1800
    assert pipeline.config.covariates == ("price",)
    future = pd.DataFrame({"price": [1.0, 2.0]})
    found = pipeline.forecast(table, 2, covariates=future, count=3, steps=2)
    assert list(found.index) == list(pd.date_range("2020-01-02 06:00", periods=2, freq="30min"))
    assert found["price"].tolist() == [1.0, 2.0]


def test_published_network_and_ragged_lists():
    parts = [WAVES[:20], WAVES[:13] + 1, WAVES[:7]]
    pipeline = ImputationPipeline().fit(parts, window=20, network=small_csdi(2), options=SHORT)
    assert pipeline.config.schedule == "csdi"
    assert pipeline.config.indices == 50
    gaps = [np.where(np.arange(len(one))[:, None] % 3 == 1, np.nan, one) for one in parts]
    assert all(np.isfinite(one).all() for one in pipeline.impute(gaps, count=2, steps=2))


def test_constant_features_come_back_as_the_constant():
    values = np.stack([WAVES[:, 0], np.full(120, 7.25)], 1)
    pipeline = ImputationPipeline().fit(values, window=12, network=small(2), options=SHORT, held_out_share=0)
    assert pipeline.validation == {}
    assert float(pipeline.model.centre[1]) == 7.25
    X = np.where(np.arange(120)[:, None] % 5 == 2, np.nan, values)
    assert (pipeline.impute(X, count=2, steps=2)[:, 1] == 7.25).all()


def test_what_cannot_be_fitted():
    pipeline = ImputationPipeline()
    with pytest.raises(ArgumentError, match="'b'.*observed"):
        pipeline.fit(pd.DataFrame({"a": [1.0, 2.0], "b": [np.nan, np.nan]}), options=SHORT)
    with pytest.raises(ArgumentError, match="covariates"):
        pipeline.fit(pd.DataFrame({"a": [1.0, 2.0]}), covariates=["b"], options=SHORT)
    with pytest.raises(ArgumentError, match="held_out_share"):
        pipeline.fit(WAVES, held_out_share=1.0, options=SHORT)
    assert not pipeline.is_fitted


def stopped(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Training gets a signal as soon as it asks for the batch after so many."""
    plain, asked = Windows.batch, []

    def batch(self: Windows, indices: Any) -> Any:
        if len(indices) == SHORT.batch_size:
            asked.append(1)
            if len(asked) == after + 1:
                signal.raise_signal(signal.SIGTERM)
        return plain(self, indices)

    monkeypatch.setattr(Windows, "batch", batch)


def test_an_interruption_tells_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    one = series(WAVES)
    whole = fitted([one], window=12, network=small(2), options=SHORT)
    for folder, said in ((None, "; nothing is kept\n"), (tmp_path / "run", f"saved in {tmp_path / 'run'}: resume it")):
        with monkeypatch.context() as patched:
            stopped(patched, 1)
            with pytest.raises(Interrupted):
                fitted([one], window=12, network=small(2), options=SHORT, folder=folder, resume=folder is not None)
        assert said in capfd.readouterr().err
    resumed = fitted([one], window=12, network=small(2), options=SHORT, folder=tmp_path / "run", resume=True)
    same = resumed.model.state_dict()
    assert all(torch.equal(same[name], value) for name, value in whole.model.state_dict().items())


def test_intervals_of_the_judges_are_not_too_narrow():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1, 20_000))
    shown = [series(np.concatenate([np.full((1, 20_000), np.nan), rng.normal(size=(2, 20_000))]))]
    held = [np.concatenate([truth, np.full((2, 20_000), np.nan)])]

    def draw(chosen: Any) -> list[Tensor]:
        return [torch.from_numpy(rng.normal(size=(JUDGES, 3, 20_000)))]

    found = judged(draw, shown, held)["coverage of 90 %"]
    assert abs(found - 0.9) < 4 * (0.09 / 20_000) ** 0.5


def test_few_rows_and_paths_are_drawn_to_judge():
    asked: list[Any] = []

    def draw(chosen: Any) -> list[Tensor]:
        asked.extend(len(one) for one in chosen)
        return [torch.zeros(3, len(one), 4, dtype=torch.float64) for one in chosen]

    one = series(np.zeros((3000, 4)))
    judged(draw, [one], [np.zeros((3000, 4))])
    assert asked == [256]
    judged(draw, [one] * 3, [np.zeros((3000, 4))] * 3)
    assert asked[1:] == [256]
    wide = series(np.zeros((3000, 400)))
    held = [np.full((3000, 400), np.nan)]
    held[0][-1] = 0.0
    lengths: list[int] = []

    def draw_wide(chosen: Any) -> list[Tensor]:
        lengths.append(len(chosen[0]))
        return [torch.zeros(3, lengths[-1], 400, dtype=torch.float64)]

    assert judged(draw_wide, [wide], held)["held-out cells"] == 400
    assert lengths == [WINDOW]  # its context
