"""Adapters around a pipeline of known answers: what scikit-learn demands, and the columns that sktime has."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from polydiff.core.errors import ArgumentError
from polydiff.timeseries.adapters import DiffusionForecaster, DiffusionImputer


class Plain:
    """A pipeline that fills with the means of training; its forecast is a line, its quantile q is that plus q."""

    def __init__(self, step: float = 0.0):
        self.config = types.SimpleNamespace(step=step)
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []

    def fit(self, X: Any, **options: Any) -> Plain:
        self.calls.append(("fit", X, options))
        self.means = np.nan_to_num(np.nanmean(np.asarray(X), 0))
        return self

    def impute(self, X: Any, **options: Any) -> Any:
        self.calls.append(("impute", X, options))
        filled = np.where(np.isnan(np.asarray(X)), self.means, np.asarray(X)).astype(np.asarray(X).dtype)
        return pd.DataFrame(filled, index=X.index, columns=X.columns) if isinstance(X, pd.DataFrame) else filled

    def forecast(self, X: pd.DataFrame, horizon: int, **options: Any) -> Any:
        self.calls.append(("forecast", X, options))
        line = np.arange(1, horizon + 1)[:, None] + 100 * np.arange(X.shape[1]) + np.asarray(X)[-1]
        if (covariates := options["covariates"]) is not None:
            line[:, 0] += covariates.to_numpy()[:, 0]
        if (levels := options["quantiles"]) is None:
            return pd.DataFrame(line, columns=X.columns)
        return [pd.DataFrame(line + level, columns=X.columns) for level in levels]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines that the adapters make are plain ones."""
    module = types.ModuleType("polydiff.timeseries.pipeline")
    module.ImputationPipeline = Plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polydiff.timeseries.pipeline", module)


def table() -> pd.DataFrame:
    values = {"a": [1.0, np.nan, 3, 5], "b": [np.nan, 2, 2, 8]}
    return pd.DataFrame(values, index=pd.date_range("2024-01-01", periods=4, freq="D"))


# ------------------------------------------------------------------------------------------------------- imputer


def test_all_checks_of_scikit_learn(trained: None) -> None:
    found = check_estimator(DiffusionImputer(), on_skip=None, on_fail=None)
    failed = {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"}
    assert failed == {} and sum(one["status"] == "passed" for one in found) > 30


def test_imputer_gives_what_the_pipeline_gives(trained: None) -> None:
    imputer = DiffusionImputer(window=24, level="window", count=7, point="mean", steps=5, seed=3)
    frame = table()
    filled = imputer.fit_transform(frame)
    assert isinstance(filled, np.ndarray) and filled.tolist() == [[1, 4], [3, 2], [3, 2], [5, 8]]
    (_, trained_on, options), (_, given, how) = imputer.pipeline_.calls
    pd.testing.assert_frame_equal(trained_on, frame)
    pd.testing.assert_frame_equal(given, frame)  # its dates included
    assert options == {
        "window": 24, "level": "window", "covariates": (), "network": None, "options": None, "seed": 3,
    }  # fmt: skip
    assert how == {"count": 7, "point": "mean", "steps": 5, "seed": 3}
    assert frame.isna().sum().sum() == 2
    assert list(imputer.get_feature_names_out()) == ["a", "b"] and imputer.n_features_in_ == 2
    assert imputer.transform(frame[:1])[0, 1] == 4  # other rows than it was trained on


def test_imputer_gives_tables_when_asked(trained: None) -> None:
    frame = table()
    filled = DiffusionImputer().set_output(transform="pandas").fit_transform(frame)
    assert isinstance(filled, pd.DataFrame) and filled.index.equals(frame.index) and list(filled) == ["a", "b"]


def test_arrays_keep_their_type(trained: None) -> None:
    values = table().to_numpy(np.float32)
    assert DiffusionImputer().fit(values).transform(values).dtype == np.float32
    assert DiffusionImputer().fit(values).get_feature_names_out().tolist() == ["x0", "x1"]
    assert DiffusionImputer().fit([[1, 2], [3, 4]]).transform([[np.nan, 0]]).tolist() == [[2, 0]]


def test_a_given_pipeline_is_used_as_it_is() -> None:
    given = Plain().fit(np.array([[7.0, 8.0]]))
    imputer = DiffusionImputer(pipeline=given).fit(table())
    assert imputer.pipeline_ is given and [call[0] for call in given.calls] == ["fit"]
    assert imputer.transform(table())[0, 1] == 8


def test_imputer_in_a_chain_and_cloned(trained: None) -> None:
    chain = make_pipeline(DiffusionImputer(count=9), StandardScaler())
    assert np.isfinite(chain.fit_transform(table())).all()
    assert np.asarray(chain.get_feature_names_out()).tolist() == ["a", "b"]
    copy = clone(DiffusionImputer(count=9, steps=4))
    assert isinstance(copy, DiffusionImputer)
    copy.set_params(steps=6)
    assert copy.get_params()["count"] == 9 and copy.get_params()["steps"] == 6 and not hasattr(copy, "pipeline_")


def test_wrong_tables_are_refused(trained: None) -> None:
    imputer = DiffusionImputer().fit(table())
    for wrong in (table()[["a"]], table().rename(columns={"b": "c"}), table().replace(8.0, np.inf)):
        with pytest.raises(ValueError):
            imputer.transform(wrong)


# ---------------------------------------------------------------------------------------------------- forecaster


def test_points_have_the_form_of_y(trained: None) -> None:
    y = table()
    forecaster = DiffusionForecaster(window=8, count=5, steps=3, seed=2).fit(y, fh=[1, 3])
    expected = pd.DatetimeIndex(["2024-01-05", "2024-01-07"])
    found = forecaster.predict()
    assert isinstance(found, pd.DataFrame) and found.to_numpy().tolist() == [[6, 109], [8, 111]]
    assert found.index.equals(expected) and list(found) == ["a", "b"]
    _, rows, how = forecaster.pipeline_.calls[-1]
    assert how == {"covariates": None, "quantiles": None, "count": 5, "point": "median", "steps": 3, "seed": 2}
    assert rows.index.tolist() == [0, 1, 2, 3]  # rows are steps
    one = DiffusionForecaster().fit(y["a"]).predict(2)
    assert isinstance(one, pd.Series) and one.name == "a" and one.tolist() == [7]
    assert one.index.tolist() == [pd.Timestamp("2024-01-06")]


def test_quantiles_and_intervals_have_the_columns_of_sktime(trained: None) -> None:
    forecaster = DiffusionForecaster().fit(table(), fh=range(1, 3))
    found = forecaster.predict_quantiles(alpha=[0.1, 0.5])
    assert found.columns.tolist() == [("a", 0.1), ("a", 0.5), ("b", 0.1), ("b", 0.5)]
    np.testing.assert_allclose(found, [[6.1, 6.5, 109.1, 109.5], [7.1, 7.5, 110.1, 110.5]])
    assert forecaster.predict_quantiles(2).columns.tolist()[:2] == [("a", 0.05), ("a", 0.95)]
    found = forecaster.predict_interval(coverage=[0.8, 0.5])
    sides = [(c, side) for c in (0.8, 0.5) for side in ("lower", "upper")]
    assert found.columns.tolist() == [(name, *rest) for name in "ab" for rest in sides]
    np.testing.assert_allclose(found.iloc[0], [6.1, 6.9, 6.25, 6.75, 109.1, 109.9, 109.25, 109.75])
    alone = DiffusionForecaster().fit(table()["a"].rename(None)).predict_interval(1)
    assert alone.columns.tolist() == [(0, 0.9, "lower"), (0, 0.9, "upper")]
    np.testing.assert_allclose(alone, [[6.05, 6.95]])


@pytest.mark.parametrize(
    "index, after",
    [
        (pd.RangeIndex(10, 14), [14, 15, 16]),
        (pd.Index([2, 4, 6, 8]), [10, 12, 14]),
        (pd.period_range("2024-11", periods=4, freq="M"), list(pd.period_range("2025-03", periods=3, freq="M"))),
        (pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"]),
         list(pd.to_datetime(["2024-05-31", "2024-06-30", "2024-07-31"]))),
        (pd.date_range("2024-03-08", periods=4, freq="B"),
         list(pd.to_datetime(["2024-03-14", "2024-03-15", "2024-03-18"]))),
    ],
)  # fmt: skip
def test_times_go_on_as_they_were(trained: None, index: pd.Index, after: list[Any]) -> None:
    forecaster = DiffusionForecaster().fit(table().set_axis(index.rename("time"), axis=0))
    assert forecaster.cutoff == index[-1]
    assert forecaster.predict([1, 2, 3]).index.tolist() == after and forecaster.predict(1).index.name == "time"
    if not isinstance(after[0], int):
        found = forecaster.predict(pd.Index([after[2], after[0]]))
        assert found.index.tolist() == [after[2], after[0]] and found["a"].tolist() == [8, 6]
        assert forecaster.predict(after[1])["a"].tolist() == [7]


def test_horizons_of_sktime_are_understood(trained: None) -> None:
    class Horizon:
        def to_relative(self, cutoff: Any) -> Horizon:
            assert cutoff == pd.Timestamp("2024-01-04")
            return self

        def to_pandas(self) -> pd.Index:
            return pd.Index([2, 1])

    assert DiffusionForecaster().fit(table()).predict(Horizon())["a"].tolist() == [7, 6]


def test_covariates_are_joined_and_their_future_is_passed_on(trained: None) -> None:
    y = table()["a"]
    X = pd.DataFrame({"holiday": [0.0, 1, 0, 0]}, index=y.index)
    future = pd.DataFrame({"holiday": [50.0, 70, 90]}, index=pd.date_range("2024-01-05", periods=3))
    forecaster = DiffusionForecaster().fit(y, X)
    assert forecaster.pipeline_.calls[0][2]["covariates"] == ("holiday",)
    assert list(forecaster.pipeline_.calls[0][1]) == ["a", "holiday"]
    found = forecaster.predict([2], X=future)
    assert found.tolist() == [5 + 2 + 70] and len(forecaster.pipeline_.calls[-1][2]["covariates"]) == 2
    for wrong in (None, future.iloc[:1], future.iloc[1:], future.rename(columns={"holiday": "rain"})):
        with pytest.raises(ArgumentError, match="^X"):
            forecaster.predict([2], X=wrong)
    with pytest.raises(ArgumentError, match="^X"):
        DiffusionForecaster().fit(y, X.iloc[1:])
    with pytest.raises(ArgumentError, match="different names"):
        DiffusionForecaster().fit(y, X.rename(columns={"holiday": "a"}))


def test_update_moves_the_start(trained: None) -> None:
    y = table()
    forecaster = DiffusionForecaster().fit(y.iloc[:3], fh=1)
    assert forecaster.predict().index[0] == pd.Timestamp("2024-01-04")
    forecaster.update(y.iloc[3:])
    assert forecaster.predict().index[0] == pd.Timestamp("2024-01-05") and len(forecaster.pipeline_.calls[-1][1]) == 4
    for wrong in (y.iloc[3:], y[["a"]], y["a"]):  # seen already, and other variables
        with pytest.raises(ArgumentError, match="^y"):
            forecaster.update(wrong)
    assert forecaster.cutoff == y.index[-1]


def test_a_pipeline_of_dates_gets_dates() -> None:
    y = table().set_axis(pd.period_range("2024-01-01", periods=4, freq="D"), axis=0)
    pipeline = Plain(step=86400.0)
    DiffusionForecaster(pipeline=pipeline).fit(y).predict(1)
    assert pipeline.calls[0][1].index.equals(table().index)


def test_parameters_are_those_of_scikit_learn(trained: None) -> None:
    copy = clone(DiffusionForecaster(count=3))
    assert isinstance(copy, DiffusionForecaster)
    copy.set_params(steps=4)
    assert copy.get_params()["count"] == 3 and copy.get_params()["steps"] == 4
    with pytest.raises(ValueError, match="not fitted"):
        copy.predict(1)


BEFORE, BETWEEN = pd.DatetimeIndex(["2024-01-04"]), pd.DatetimeIndex(["2024-01-05 12:00"])
PERIOD = pd.PeriodIndex(["2024-01-05"], freq="D")


@pytest.mark.parametrize("fh", [0, -1, [], [1, 1], 1.5, "a", [[1]], BEFORE, BETWEEN, PERIOD])
def test_wrong_horizons(trained: None, fh: Any) -> None:
    with pytest.raises(ArgumentError, match="^fh"):
        DiffusionForecaster().fit(table()).predict(fh)


def test_wrong_input_is_named(trained: None) -> None:
    uneven = table().set_axis(pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-04", "2024-01-05"]), axis=0)
    for wrong in (uneven, table().iloc[::-1], table().iloc[:0], [1.0, 2.0], table().set_axis(list("wxyz"), axis=0)):
        with pytest.raises(ArgumentError, match="^y"):
            DiffusionForecaster().fit(wrong)  # type: ignore[arg-type]
    forecaster = DiffusionForecaster().fit(table())
    with pytest.raises(ArgumentError, match="^fh"):
        forecaster.predict()
    for alpha in (1.5, [], [0.5, np.nan]):
        with pytest.raises(ArgumentError, match="^alpha"):
            forecaster.predict_quantiles(1, alpha=alpha)
    with pytest.raises(ArgumentError, match="^coverage"):
        forecaster.predict_interval(1, coverage=-0.1)
