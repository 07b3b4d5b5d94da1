"""What users bring, and the form in which results go back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from polydiff.core.errors import ArgumentError
from polydiff.timeseries.frames import read_file
from polydiff.timeseries.series import ratio
from polydiff.timeseries.tables import placed, taken

NAN = np.nan
ROWS = np.array([[1.0, NAN], [NAN, 4.0], [5.0, 6.0]])
NEW = np.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])


def test_arrays_tensors_and_nested_lists():
    for data in (ROWS, torch.from_numpy(ROWS), ROWS.tolist()):
        table = taken(data)
        found = table.filled([NEW])
        assert type(found) is (torch.Tensor if isinstance(data, torch.Tensor) else np.ndarray)
        np.testing.assert_array_equal(np.asarray(found), [[1, 20], [30, 4], [5, 6]])
        np.testing.assert_array_equal(np.asarray(table.future([NEW[:2]])), NEW[:2])
        np.testing.assert_array_equal(table.paths([np.stack([NEW, -NEW])]), np.stack([NEW, -NEW]))
        assert np.asarray(table.stacked([found, found])).shape == (2, 3, 2)


def test_many_series_in_an_array():
    data = np.stack([ROWS, ROWS + 1, ROWS + 2]).astype(np.float32)
    table = taken(data)
    assert len(table.series) == 3
    assert table.future([NEW] * 3).shape == (3, 3, 2)
    assert table.future([NEW] * 3).dtype == np.float32
    samples = table.paths([np.stack([NEW + i, NEW - i]) for i in range(3)])
    assert samples.shape == (2, 3, 3, 2)
    assert samples[1, 2, 0, 0] == 8
    one = taken(data[:1])
    assert one.filled([NEW]).shape == (1, 3, 2)
    assert one.paths([NEW[None]]).shape == (1, 1, 3, 2)


def test_columns_go_by_name():
    data = pd.DataFrame(ROWS, columns=["b", "a"])
    table = taken(data, ("a", "b"))
    (series,) = table.series
    assert series.names == ("a", "b")
    np.testing.assert_array_equal(series.values, ROWS[:, ::-1])
    found = table.filled([NEW])  # in the model's order
    np.testing.assert_array_equal(found.to_numpy(), [[1, 10], [40, 4], [5, 6]])
    future = table.future([NEW[:1]])
    assert list(future.columns) == ["b", "a"]
    assert future.to_numpy().tolist() == [[20.0, 10.0]]
    np.testing.assert_array_equal(table.paths([NEW[None]])[0], NEW[:, ::-1])


def test_three_columns_in_another_order():
    # A cycle, whose inverse is another one.
    data = pd.DataFrame([[1.0, 2.0, NAN]], columns=["c", "a", "b"])
    table = taken(data, ("a", "b", "c"))
    np.testing.assert_array_equal(table.series[0].values, [[2, NAN, 1]])
    assert table.filled([np.array([[7.0, 8.0, 9.0]])]).to_numpy().tolist() == [[1.0, 2.0, 8.0]]


@pytest.mark.parametrize(
    ("names", "features", "order"),
    [
        (("a", "b"), ("a", "b"), (0, 1)),
        (("b", "a"), ("a", "b"), (1, 0)),
        (("feature 0", "feature 1"), ("b", "a"), (0, 1)),
        (("b", "a"), ("feature 0", "feature 1"), (0, 1)),
    ],
)
def test_places(names: tuple[str, ...], features: tuple[str, ...], order: tuple[int, ...]):
    assert placed(names, features, "X") == order


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "the features of the model: a, b"),
        (("a", "c"), "the features of the model: a, b"),
        (("a", "b", "c"), "the features of the model: a, b"),
        (("feature 0",), "got '1 column', expected 2, as the model has"),
    ],
)
def test_other_features_are_refused(names: tuple[str, ...], message: str):
    with pytest.raises(ArgumentError, match=message):
        placed(names, ("a", "b"), "X")


def test_steps_of_the_model():
    assert ratio(3600, 1800) == 2
    assert ratio(0, 1800) == ratio(1800, 0) == 1
    assert ratio(31 * 86400, 30.4 * 86400) == 1  # months


@pytest.mark.parametrize(
    ("index", "ahead"),
    [
        (pd.date_range("2020-01-01", periods=3, freq="D"), list(pd.date_range("2020-01-04", periods=2, freq="D"))),
        (pd.period_range("2020-01", periods=3, freq="M"), list(pd.period_range("2020-04", periods=2, freq="M"))),
        (pd.RangeIndex(3), [3, 4]),
        (pd.Index([10, 20, 30]), [40, 50]),
    ],
)
def test_the_index_goes_on(index: pd.Index, ahead: list):
    table = taken(pd.DataFrame(ROWS, columns=["a", "b"], index=index))
    assert list(table.future([NEW[:2]]).index) == ahead


def test_columns_of_pandas():
    data = pd.Series([1.0, NAN, 3.0], index=pd.date_range("2020-01-01", periods=3, freq="h"), name="load")
    table = taken(data)
    found = table.filled([np.array([[0.0], [2.0], [0.0]])])
    pd.testing.assert_series_equal(found, data.fillna(2.0))
    future = table.future([np.array([[4.0], [5.0]])])
    assert isinstance(future, pd.Series)
    assert future.name == "load"
    assert future.tolist() == [4.0, 5.0]
    assert future.index[0] == pd.Timestamp("2020-01-01 03:00")


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists(kind: Any):
    data = kind([ROWS, ROWS[:2]])
    table = taken(data)
    assert [one.shape for one in table.future([NEW, NEW])] == [(3, 2), (3, 2)]
    assert [one.shape for one in table.filled([NEW, NEW[:2]])] == [(3, 2), (2, 2)]
    assert [one.shape for one in table.paths([NEW[None], NEW[None, :2]])] == [(1, 3, 2), (1, 2, 2)]
    frames = taken([pd.DataFrame(ROWS), pd.DataFrame(ROWS[:2])])
    assert [list(one.index) for one in frames.future([NEW, NEW])] == [[3, 4, 5], [2, 3, 4]]


def test_files(tmp_path: Path):
    (tmp_path / "gaps.csv").write_text("time,a\n2020-01-01,1.50\n2020-01-02,\n2020-01-03,3\n")
    table = taken(read_file(tmp_path / "gaps.csv"), ("a",))
    found = table.filled([np.array([[0.0], [2.0], [0.0]])])
    lines = found.decode().splitlines()
    assert lines[:2] == ["time,a", "2020-01-01,1.50"]
    assert lines[2].startswith("2020-01-02,2")
    future = table.future([np.array([[4.0]])])
    assert future.index[0] == pd.Timestamp("2020-01-04")
