"""Evaluation: what is hidden, that nobody sees it, and that figures are those of metrics and baselines."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydiff.core.errors import ArgumentError
from polydiff.timeseries import baselines, comparison, metrics, sample
from polydiff.timeseries.comparison import System, Windowed, compare, hidden
from polydiff.timeseries.data import load, spaced
from polydiff.timeseries.evaluate import systems_of, table, windowed
from polydiff.timeseries.loading import load_model, trained_with
from polydiff.timeseries.options import Evaluate, Sample
from polydiff.timeseries.targets import Forecast, Random, share
from tests.timeseries.test_commands import polydiff, trained

CENTRE, SCALE = np.array([5.0, -1.0]), np.array([2.0, 0.5])


def data(count: int = 6) -> Windowed:
    rng = np.random.default_rng(1)
    values = CENTRE + SCALE * rng.standard_normal((count, 7, 2))
    values[0, 3, 1] = values[2, 0, 0] = np.nan
    return Windowed(values, torch.arange(7.0).expand(count, 7), CENTRE, SCALE, ("a", "b"))


def test_spaced_reaches_both_ends() -> None:
    assert spaced(10, 4) == [0, 3, 6, 9]
    assert spaced(3, 8) == [0, 1, 2]
    assert spaced(5, 1) == [0]
    assert spaced(1, 4) == [0]


def test_what_is_hidden_depends_on_window_and_seed_alone() -> None:
    seen = data().seen
    whole = hidden(share(0.5), seen, 0)
    assert torch.equal(hidden(share(0.5), seen[:3], 0), whole[:3])
    assert not torch.equal(hidden(share(0.5), seen, 1), whole)
    assert not (whole & ~seen).any()
    with pytest.raises(ArgumentError, match="hides a known cell"):
        hidden(share(0.0), seen, 0)


def test_the_truth_is_what_nobody_sees() -> None:
    found = data()
    target = hidden(Random(0.5, 0.5), found.seen, 0)
    calls: list[int] = []

    def oracle(values: np.ndarray, stamps: torch.Tensor, seed: int) -> np.ndarray:
        first = sum(calls)
        calls.append(len(values))
        part = slice(first, first + len(values))
        lacking = np.isnan(values)
        assert np.array_equal(lacking, np.isnan(found.values[part]) | target[part].numpy())
        assert np.array_equal(values[~lacking], found.values[part][~lacking])
        drawn = np.where(np.isnan(found.values[part]), 1e3, found.values[part])  # what is blind does not count
        return np.stack([drawn, drawn])

    done = compare(found, [System("half", target)], {"oracle": oracle}, 0, shown=3)["half"]["oracle"]
    assert done.figures["cells"] == int(target.sum())
    assert done.figures["MAE"] == pytest.approx(0, abs=1e-12)
    assert done.figures["CRPS"] == pytest.approx(0, abs=1e-12)
    assert sum(calls) == 6
    assert done.shown.shape == (2, 3, 7, 2)
    assert done.seconds > 0


def test_figures_are_in_deviations_and_do_not_depend_on_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    found = data()
    target = hidden(Random(0.5, 0.5), found.seen, 0)

    def off(values: np.ndarray, stamps: torch.Tensor, seed: int) -> np.ndarray:
        return np.stack([np.broadcast_to(CENTRE + k * SCALE, values.shape) for k in (-1.0, 1.0, 2.0)])

    whole = compare(found, [System("", target)], {"": off}, 0)[""][""].figures
    units = (found.values - CENTRE) / SCALE
    expected = np.abs(units - 1)[target.numpy()].mean()  # the median of -1, 1 and 2
    assert whole["MAE"] == pytest.approx(expected)
    monkeypatch.setattr(comparison, "ELEMENTS", 2 * 7 * 2 * 3)  # two windows at once
    parts = compare(found, [System("", target)], {"": off}, 0)[""][""].figures
    for name in ("CRPS", "CRPS exact", "MAE", "RMSE", "energy score", "CRPS-sum"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-12)


def test_groups_of_windows_draw_with_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "ELEMENTS", 1)
    seeds: list[int] = []

    def note(values: np.ndarray, stamps: torch.Tensor, seed: int) -> np.ndarray:
        seeds.append(seed)
        return np.zeros((1, *values.shape))

    compare(data(), [System("", data().seen)], {"": note}, 0)
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_systems_are_as_asked() -> None:
    found = data()
    options = Evaluate(targets=("random", "blocks", "series", "forecast"), rates=(0.25, 0.5), horizon=2)
    names = ["25 % of cells", "50 % of cells", "blocks", "whole features", "forecast of 2 steps"]
    systems = systems_of(found, options)
    assert [system.name for system in systems] == names
    for system in systems:
        assert not (system.target & ~found.seen).any()
    counts = found.seen.flatten(1).sum(1)
    assert systems[0].target.flatten(1).sum(1).tolist() == [round(0.25 * count) for count in counts.tolist()]
    assert torch.equal(systems[-1].target, Forecast(2)(found.seen))
    spared = systems_of(found, options, covariates=("a",))
    assert not any(system.target[..., 0].any() for system in spared)
    with pytest.raises(ArgumentError, match="--horizon"):
        systems_of(found, Evaluate(targets=("forecast",), horizon=7))


def test_windows_are_in_the_units_of_the_data() -> None:
    from statsmodels.datasets import elnino

    table = elnino.load_pandas().data
    assert table is not None
    source = table.drop(columns="YEAR").to_numpy(np.float64).ravel()
    windows = load("elnino", "test", window=36)
    found = windowed(windows, 3, 12, 0)
    start = int(732 * 0.8)
    assert found.values.shape == (3, 36, 1)
    np.testing.assert_allclose(found.values[0, :, 0], source[start : start + 36], rtol=1e-6)
    assert found.season == 12
    assert found.held is not None
    at_random = found.held(0.5)
    assert at_random.shape == (3, 36, 1)
    assert at_random.sum() == 54


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "elnino", "--data", "elnino")


def test_evaluate_writes_figures_and_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation"
    words = ["--targets", "random", "forecast", "--rates", 0.5, "--horizon", 4, "--windows", 4, "--samples", 6]
    assert polydiff("evaluate", "timeseries", "--model", run, *words, "--steps", 2, "--out", out) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"config.json", "results.json", "index.html"}
    results = json.loads((out / "results.json").read_text())
    assert list(results["systems"]) == ["50 % of cells", "forecast of 4 steps"]
    methods = ["polydiff", "mean", "median", "linear", "last", "seasonal"]
    rows = table(results)
    for found in results["systems"].values():
        assert list(found) == methods
        for name in ("CRPS", "CRPS exact", "CRPS-sum", "MAE", "RMSE", "energy score"):
            assert all(np.isfinite(found[method][name]) for method in methods)
        assert found["polydiff"]["samples"] == 6
    coverage = [row for row in rows if "coverage" in row["figure"]]
    assert len(coverage) == 4
    assert all(row[method] == "–" for row in coverage for method in methods[1:])
    assert "2 steps" in said and "seasonal" in said
    page = (out / "index.html").read_text()
    assert page.count("<img ") == 3 and "http-equiv" not in page and 'src="http' not in page
    # The same figures as by hand.
    data = windowed(load("elnino", "test", window=16), 4, 12, 0)
    assert data.held is not None
    target = data.held(0.5)
    given = np.where(target.numpy(), np.nan, data.values)
    ways: dict[str, Any] = {"linear": baselines.linear, "seasonal": partial(baselines.seasonal, period=12)}
    for name, way in ways.items():
        filled = (way(given, fallback=data.centre) - data.centre) / data.scale
        by_hand = metrics.figures(filled[None], (data.values - data.centre) / data.scale, target)
        for figure in ("CRPS", "MAE", "RMSE"):
            assert results["systems"]["50 % of cells"][name][figure] == pytest.approx(by_hand[figure], rel=1e-9)
    drawn = load_model(str(run)).samples(given[:1], 6, steps=2, seed=comparison.mix(0, 0) >> 1)
    assert np.isfinite(drawn).all()


def test_data_of_a_model(run: Path, tmp_path: Path) -> None:
    assert trained_with(str(run), None, ("co2",)).data == "elnino"
    assert trained_with(str(run), "co2", ("co2",)).data == "co2"
    assert trained_with("co2", None, ("co2",)).data == "co2"
    own = trained_with(str(run), "own.csv", ("co2",), carry=("site",), day_first=True)
    assert (own.data, own.carry, own.day_first) == ("own.csv", ("site",), True)
    with pytest.raises(ArgumentError, match="--data"):
        trained_with(str(tmp_path), None, ("co2",))


@pytest.mark.parametrize("length,most,window", [(10, 10, 4), (100, 30, 8), (100, 1, 8), (1000, 90, 40), (41, 40, 20)])
def test_stretches_cover_every_row_once(length: int, most: int, window: int) -> None:
    parts = sample.stretches(length, most, window)
    assert [row for part in parts for row in range(part.first, part.last)] == list(range(length))
    for part in parts:
        assert part.begin == max(0, part.first - window) or part.begin == part.first == 0
        assert part.end == min(length, part.last + window)
    if most >= 3 * window and length > most:
        assert max(part.end - part.begin for part in parts) <= most + 1


def test_long_tables_are_drawn_in_stretches(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_model(str(run))
    windows = load("elnino", "train", window=16)
    values = np.full((200, 1), 22.0)
    values[::3] = np.nan
    series = sample.Series(values, np.arange(200.0), windows.features, windows.step, "long")
    options = Sample(input=Path("x.csv"), samples=3, steps=2, horizon=9, progress=False)
    whole = sample.summaries(pipeline, series, options, [0.25])
    monkeypatch.setattr(sample, "HELD", 3 * 80)
    parts = sample.summaries(pipeline, series, options, [0.25])
    for found in (whole, parts):
        assert found.shape == (2, 209, 1)
        assert np.isfinite(found).all()
        seen = ~np.isnan(values)
        assert np.array_equal(found[0, :200][seen], values[seen])
        assert np.array_equal(found[1, :200][seen], values[seen])
    lone = ~seen[:, 0]
    assert len(set(parts[0, :200][lone, 0].tolist())) == lone.sum()  # each drawn by itself
    assert np.abs(parts - whole).max() < 8 * pipeline.model.scale.item()
