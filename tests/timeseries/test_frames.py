"""Reading and giving back: nothing but missing cells ever changes, and errors name column and row."""

import io
import sys
from decimal import Decimal
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from polydiff.core.errors import ArgumentError, DataError
from polydiff.timeseries.frames import read, read_file
from tests.timeseries.reading import FILL, filled, table

# Arrays


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_come_back_bit_for_bit(shape, dtype):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    x[np.random.default_rng(1).random(shape) < 0.4] = np.nan
    before = x.copy()
    reading = read(x)
    made = reading.written(filled(reading))
    assert (made.dtype, made.shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(made, np.where(np.isnan(x), np.asarray(FILL, dtype), x))
    np.testing.assert_array_equal(x, before)
    assert len(reading.series) == (shape[0] if len(shape) == 3 else 1)
    np.testing.assert_array_equal(np.stack([one.values for one in reading.series]).reshape(shape), x.astype(np.float64))
    assert reading.series[0].stamps.tolist() == list(range(shape[-2]))


def test_each_array_of_many_gets_its_own_cells():
    x = np.full((3, 2, 2), np.nan)
    made = read(x).written([np.full((2, 2), k) for k in range(3)])
    assert made[:, 0, 0].tolist() == [0, 1, 2]


def test_integers_tensors_and_lists():
    whole = np.arange(6).reshape(3, 2)
    made = read(whole).written([np.full((3, 2), 9.0)])
    np.testing.assert_array_equal(made, whole)
    assert made.dtype == whole.dtype
    tensor = torch.tensor([[1.5, torch.nan]], dtype=torch.bfloat16)
    made = read(tensor).written([np.full((1, 2), FILL)])
    assert made.dtype == torch.bfloat16
    assert made.tolist() == [[1.5, FILL]]
    assert tensor.isnan().any()
    assert read([[1, None], [2.5, 3]]).series[0].values[1].tolist() == [2.5, 3]
    parts = [np.ones((3, 2)), np.full((5, 2), np.nan), np.ones((2, 4, 2))]
    reading = read(parts)
    assert [len(one) for one in reading.series] == [3, 5, 4, 4]
    made = reading.written(filled(reading))
    assert [one.shape for one in made] == [(3, 2), (5, 2), (2, 4, 2)]
    assert (made[1] == FILL).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([[1.0, np.inf]]), r"X\[0, 1\]: inf"),
        (np.array([[[1.0, 2], [-np.inf, 1]]]), r"X\[0, 1, 0\]: -inf"),
        (np.array([[1.0, "x"]], dtype=object), r"X\[0, 1\]: 'x' is no number"),
        (np.array([["1", "2"]]), r"X\[0, 0\]"),
        (np.array([[1 + 2j]]), r"X\[0, 0\]"),
        (np.ones(3), r"\(L, K\)"),
        (np.ones((0, 3)), r"\(L, K\)"),
        (np.ones((2, 3, 0)), r"\(L, K\)"),
        (np.ones((1, 2, 3, 4)), r"\(L, K\)"),
        ([], "empty list"),
        ([[1.0], [1.0, 2.0]], "different lengths"),
        ([["a", "b"]], r"X\[0, 0\]"),
        ([np.ones((2, 2)), np.array([[1.0, np.inf]])], r"X\[1\]\[0, 1\]"),
        ([np.ones((2, 2)), np.ones((2, 3))], r"X\[1\] has columns"),
        (pd.DataFrame(), "no columns"),
        (pd.DataFrame({"a": []}), "no rows"),
    ],
)
def test_arrays_that_cannot_be_used(data, message):
    with pytest.raises(DataError, match=message):
        read(data)


def test_what_is_no_series():
    for data in (3.0, "x.csv", None, {"a": [1]}):
        with pytest.raises(ArgumentError, match="X"):
            read(data)
    with pytest.raises(ArgumentError, match="masked"):
        read(np.ma.masked_array([[1.0]], [[True]]))


def test_written_checks_what_it_gets():
    reading = read(np.array([[1.0, np.nan]]))
    for bad in ([np.zeros((2, 2))], [], [np.zeros((1, 2))] * 2):
        with pytest.raises(ArgumentError, match="filled"):
            reading.written(bad)
    with pytest.raises(ArgumentError, match="infinite"):
        reading.written([np.array([[0.0, np.inf]])])
    assert reading.written([np.array([[np.inf, 2.0]])]).tolist() == [[1.0, 2.0]]  # nobody looks at observed cells
    assert np.isnan(reading.written([np.full((1, 2), np.nan)])[0, 1])
    with pytest.raises(ArgumentError, match="extra"):
        reading.written([np.zeros((1, 2))], {"0.5": [np.zeros((1, 2))]})


# Tables


def test_tables_come_back_as_they_were():
    own = table(
        5,
        plain=[1.5, np.nan, 2.5, 1e-320, -0.0],
        single=np.array([1, np.nan, np.nan, 0.1, 5], dtype=np.float32),
        whole=[1, 2, 3, 4, 5],
        nullable=pd.array([1, None, 3, 2**53 + 1, 5], dtype="Int64"),
        flag=pd.array([True, None, False, True, True], dtype="boolean"),
        mixed=pd.Series([1, None, 2.5, Decimal("1.10"), True], dtype=object).array,
        arrow=pd.array([1.5, None, 3.0, 4.0, 5.0], dtype="float64[pyarrow]"),
        empty=[np.nan] * 5,
        constant=[4.0] * 5,
    )
    before = own.copy(deep=True)
    reading = read(own)
    assert reading.names == tuple(own.columns)
    made = reading.written(filled(reading))
    pd.testing.assert_frame_equal(own, before)
    assert list(made.dtypes) == list(own.dtypes)
    pd.testing.assert_index_equal(made.index, own.index)
    assert isinstance(made.index, pd.DatetimeIndex)
    assert made.index.freq == "D"
    assert list(made.columns) == list(own.columns)
    kept = own.notna()
    pd.testing.assert_frame_equal(made.where(kept), own.where(kept))
    assert np.signbit(made["plain"].iloc[4])
    assert made["nullable"].tolist() == [1, 7, 3, 2**53 + 1, 5]
    assert made["flag"].tolist()[1] is True
    assert made["mixed"].tolist() == [1, FILL, 2.5, Decimal("1.10"), True]
    assert made["single"].tolist()[1:3] == [FILL, FILL]
    assert (made["empty"] == FILL).all()
    assert not made.isna().any().any()


def test_integers_are_rounded_not_cut():
    own = table(4, n=pd.array([1, None, None, None], dtype="Int64"))
    made = read(own).written([np.array([[0.0], [7.75], [-7.75], [np.nan]])])
    assert made["n"].tolist() == [1, 8, -8, pd.NA]


def test_kept_columns_and_extra_columns():
    own = table(3, name=["x", "y", None], a=[1.0, np.nan, 3.0], b=[np.nan, 5.0, 6.0])
    with pytest.raises(DataError, match=r"column 'name', row 1: 'x' is no number"):
        read(own)
    reading = read(own, keep=["name"])
    assert reading.names == ("a", "b")
    low = np.array([[1.0, 2], [3, 4], [5, 6]])
    made = reading.written(filled(reading), {"0.05": [low], "0.95": [low + 10]})
    assert list(made.columns) == ["name", "a", "b", "a@0.05", "b@0.05", "a@0.95", "b@0.95"]
    assert made["b@0.95"].tolist() == [12, 14, 16]
    assert made[["name"]].equals(own[["name"]])
    with pytest.raises(ArgumentError, match="keep"):
        read(own, keep=["nobody"])
    with pytest.raises(DataError, match="no columns of values"):
        read(own, keep=["name", "a", "b"])


def test_a_series_of_pandas_comes_back_as_one():
    own = table()["a"].copy()
    own.iloc[2] = np.nan
    made = read(own).written([np.full((6, 1), FILL)])
    assert isinstance(made, pd.Series)
    assert made.iloc[2] == FILL
    assert made.drop(own.index[2]).equals(own.drop(own.index[2]))
    assert made.name == own.name
    assert read(own.rename(None)).written([np.zeros((6, 1))]).name is None


def test_lists_of_tables():
    parts = (table(3), table(5))
    reading = read(parts)
    assert [len(one) for one in reading.series] == [3, 5]
    made = reading.written(filled(reading))
    assert isinstance(made, tuple)
    for one, other in zip(made, parts, strict=True):
        pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.assign(b=[1, 2, np.inf, 4, 5, 6]), "column 'b', row 3: inf"),
        (lambda t: t.assign(b=[1, 2, 3, "n/a", 5, 6]), "column 'b', row 4: 'n/a' is no number"),
        (lambda t: t.assign(b=pd.Categorical(list("aabbcc"))), "column 'b', row 1"),
        (lambda t: t.assign(b=pd.Timestamp("2020")), "column 'b', row 1"),
        (lambda t: t.assign(b=1j), "column 'b', row 1"),
        (lambda t: t.iloc[::-1], "row 2 .*2020-01-05.* is before row 1"),
        (lambda t: t.iloc[[0, 1, 1, 2]], "rows 2 and 3 have the same time stamp, 2020-01-02"),
        (lambda t: t.iloc[[0, 2, 1, 2]], "rows 2 and 4 have the same"),
        (lambda t: t.set_axis(pd.DatetimeIndex([*t.index[:3], pd.NaT, *t.index[4:]])), "row 4 has no time stamp"),
        (lambda t: t.set_axis([0, 1, 2, 3, np.inf, 5.0]), "row 5 has the time stamp inf"),
        (lambda t: t.set_axis(["a", "a"], axis=1), "two columns are called 'a'"),
        (lambda t: t.set_axis([3, "3"], axis=1), "two columns are called '3'"),
        (lambda t: t.set_axis(pd.MultiIndex.from_arrays([range(6), range(6)])), "2 levels"),
        (
            lambda t: t.reset_index().assign(day=["x"] * 6).rename(columns={"day": "date"}),
            "column 'date'.*'x' in row 1",
        ),
    ],
)
def test_tables_that_cannot_be_used(make, message):
    with pytest.raises(DataError, match=message):
        read(make(table()))


# Parquet


def test_parquet_comes_back(tmp_path):
    own = table(3, a=[1.0, np.nan, 3.0], n=pd.array([1, None, 3], dtype="Int32"), id=["x", "y", "z"])
    path = tmp_path / "x.parquet"
    own.to_parquet(path)
    reading = read_file(path, keep=["id"])
    assert reading.series[0].step == 86400
    made = pd.read_parquet(io.BytesIO(reading.written(filled(reading), {"0.5": [np.zeros((3, 2))]})))
    expected = own.assign(a=[1.0, FILL, 3.0], n=pd.array([1, 7, 3], dtype="Int32"), **{"a@0.5": 0.0, "n@0.5": 0.0})
    pd.testing.assert_frame_equal(made, expected, check_freq=False)


def test_parquet_that_cannot_be_read(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as parquet"):
        read_file(tmp_path / "x.parquet")
    table().to_parquet(tmp_path / "x.parquet")
    with (
        mock.patch.dict(sys.modules, {"pyarrow": None, "fastparquet": None}),
        pytest.raises(DataError, match="pip install"),
    ):
        read_file(tmp_path / "x.parquet")


def test_bad_cells_of_parquet_name_the_file(tmp_path):
    table(2, a=[1.0, np.inf]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: column 'a', row 2"):
        read_file(tmp_path / "x.parquet")


# Rows ahead


def test_rows_ahead_of_arrays():
    x = np.arange(12.0).reshape(2, 3, 2)
    later = [np.full((4, 2), k + 0.75) for k in range(2)]
    made = read(x).written(list(x), ahead=later)
    np.testing.assert_array_equal(made, np.concatenate([x, np.stack(later)], 1))
    assert read(x[0].astype(int)).written([x[0]], ahead=later[:1])[3:].tolist() == [[1, 1]] * 4
    tensor = torch.from_numpy(x[0])
    assert read(tensor).written([x[0]], ahead=later[:1]).shape == (7, 2)
    for bad in (
        later[:1],
        [np.zeros((4, 3))] * 2,
        [np.zeros(4)] * 2,
        [later[0], later[1][:2]],
        [later[0], later[1] * np.inf],
    ):
        with pytest.raises(ArgumentError, match="ahead"):
            read(x).written(list(x), ahead=bad)


def test_rows_ahead_of_tables():
    own = table(3, n=[1, 2, 3], a=[0.5, np.nan, 1.0], id=["x", "y", "z"])
    reading = read(own, keep=["id"])
    quantile = np.arange(10.0).reshape(5, 2)
    made = reading.written(filled(reading), {"0.5": [quantile]}, [np.array([[4.4, 1], [5.6, 2]])])
    assert list(made.index) == list(pd.date_range("2020-01-01", periods=5))
    assert made["n"].tolist() == [1, 2, 3, 4, 6]
    assert made["n"].dtype == own["n"].dtype
    assert made["a"].tolist() == [0.5, FILL, 1, 1, 2]
    assert made["id"].isna().tolist() == [False, False, False, True, True]
    assert made["a@0.5"].tolist() == [1, 3, 5, 7, 9]
    dated = read(table(3).reset_index(names="date"))
    made = dated.written(filled(dated), ahead=[np.ones((2, 2))])
    assert list(made["date"]) == list(pd.date_range("2020-01-01", periods=5))
    assert list(made.index) == [0, 1, 2, 3, 4]
    with pytest.raises(ArgumentError, match=r"extra 0\.5"):
        dated.written(filled(dated), {"0.5": [np.ones((3, 2))]}, [np.ones((2, 2))])
