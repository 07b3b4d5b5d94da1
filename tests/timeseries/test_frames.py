"""Reading and giving back: nothing but missing cells ever changes, and errors name column and row."""

import io
import sys
from decimal import Decimal
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from polydiff.core.errors import ArgumentError, DataError
from polydiff.timeseries.csv_text import MISSING, parse
from polydiff.timeseries.frames import read, read_file
from polydiff.timeseries.stamps import following, of_index, span

FILL = 7.25


def dates_of(reading: Any) -> Any:
    """The index of its first table."""
    return reading.index[0]


def filled(reading, value=FILL):
    """Arrays to write, other than the truth also where it is observed."""
    return [np.full(one.values.shape, value) for one in reading.series]


def table(rows=6, **columns):
    index = pd.date_range("2020-01-01", periods=rows, freq="D", name="day")
    return pd.DataFrame(columns or {"a": np.arange(rows) + 0.5, "b": np.arange(rows) * 2.0}, index=index)


def csv(tmp_path, text, name="x.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


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


# Stamps


@pytest.mark.parametrize(
    ("index", "stamps", "step"),
    [
        (pd.date_range("2020-01-01", periods=4, freq="h"), [0, 1, 2, 3], 3600),
        (pd.date_range("2020-01-01", periods=4, freq="h", tz="Europe/Rome").as_unit("s"), [0, 1, 2, 3], 3600),
        (pd.date_range("2020-03-28 22:00", periods=6, freq="h", tz="Europe/Rome"), [0, 1, 2, 3, 4, 5], 3600),
        (pd.date_range("2020-01-01", periods=6, freq="D")[[0, 1, 3, 4, 5]], [0, 1, 3, 4, 5], 86400),
        (pd.date_range("2021-01-01", periods=13, freq="MS"), range(13), 365 * 86400 / 12),
        (pd.DatetimeIndex(["2020-01-01", "2020-01-02", "2020-01-02 12:00", "2020-01-04"]), [0, 1, 1.5, 3], 86400),
        (pd.period_range("2020-01", periods=3, freq="M"), [0, 1, 2], 30 * 86400),
        (pd.period_range("2020-01", periods=5, freq="D")[[0, 1, 4]], [0, 1, 4], 86400),
        (pd.timedelta_range("0s", periods=3, freq="5min"), [0, 1, 2], 300),
        (pd.Index([10, 20, 40, 50]), [0, 1, 3, 4], 0),
        (pd.Index([0.0, 0.1, 0.2, 0.35]), [0, 1, 2, 3.5], 0),
        (pd.RangeIndex(5, 8), [0, 1, 2], 0),
        (pd.Index(["z", "a", "a"]), [0, 1, 2], 0),
        (pd.DatetimeIndex(["2020-01-01"]), [0], 0),
        (pd.DatetimeIndex(["0001-01-01", "9000-01-01"], dtype="datetime64[s]"), [0, 1], None),
    ],
)
def test_stamps_of_indices(index, stamps, step):
    found, seconds = of_index(index, "X")
    np.testing.assert_allclose(found, list(stamps), rtol=1e-12)
    assert found.dtype == np.float64
    if step is not None:
        assert seconds == pytest.approx(step)


def test_dates_with_the_day_first(tmp_path):
    for days in (("31/01/2020", "01/02/2020"), ("12/02/2020", "13/02/2020")):
        reading = read_file(csv(tmp_path, f"x,a\n{days[0]},1\n{days[1]},2\n"))
        assert reading.series[0].step == 86400


@pytest.mark.parametrize(
    "form",
    [
        "{d:02d}.{m:02d}.{y} {h:02d}:30",
        "{d}.{m}.{y} {h:02d}:30",
        "{d:02d}.{m:02d}.{yy} {h:02d}:30:00",
        "{m:02d}/{d:02d}/{y} {h:02d}:30",
        "{d:02d}/{m:02d}/{y} {h:02d}:30",
        "{d}-{m}-{y} {h:02d}:30:00",
        "{m}/{d}/{yy} {h:02d}:30",
        "{y}-{m:02d}-{d:02d} {h:02d}:30",
    ],
)
def test_the_order_of_day_and_month_is_that_of_even_steps_and_is_written_back(form, tmp_path):
    times = [{"y": 2023, "yy": 23, "m": 3, "d": day, "h": hour} for day in range(1, 13) for hour in (0, 12)]
    known = times[:4] + times[5:21]
    reading = read_file(csv(tmp_path, "when,a\n" + "".join(f"{form.format(**one)},1\n" for one in known)))
    assert reading.series[0].stamps.tolist() == [0, 1, 2, 3, *range(5, 21)]
    assert reading.series[0].step == 43200
    assert [(one.month, one.day, one.hour) for one in dates_of(reading)] == [(3, one["d"], one["h"]) for one in known]
    made = reading.written(filled(reading), ahead=[np.ones((3, 1))]).decode()
    assert [line.split(",")[0] for line in made.splitlines()[-3:]] == [form.format(**one) for one in times[21:]]


def test_dotted_dates_have_the_day_first_also_where_months_are_less_even(tmp_path):
    for count in (1, 2, 10):
        dates = [f"{day:02d}.03.2023" for day in range(1, count + 1)]
        reading = read_file(csv(tmp_path, "date;a\n" + "".join(f"{date};1\n" for date in dates)))
        assert [one.day for one in dates_of(reading)] == list(range(1, count + 1))
        assert {one.month for one in dates_of(reading)} == {3}
        made = reading.written(filled(reading), ahead=[np.ones((1, 1))]).decode()
        assert made.splitlines()[-1].startswith(f"{count + 1:02d}.03.2023")
    reading = read_file(csv(tmp_path, "date;a\n01.01.2023;1\n02.02.2023;1\n"))  # either way
    made = reading.written(filled(reading), ahead=[np.ones((1, 1))]).decode()
    assert made.splitlines()[-1].startswith("06.03.2023")


@pytest.mark.parametrize("dates", [["1/2/2023"], ["1/2/2023", "1/3/2023"], ["1/2/2023", "1/3/2023", "1/4/2023"]])
def test_dates_that_may_be_either_ask(dates, tmp_path):
    path = csv(tmp_path, "date,a\n" + "".join(f"{date},1\n" for date in dates))
    with pytest.raises(DataError, match=r"'1/2/2023' may have .*day_first=True.*--day-first"):
        read_file(path)
    frame = pd.DataFrame({"date": dates, "a": 1.0})
    with pytest.raises(DataError, match="X: dates such as"):
        read(frame)
    for day_first, month in ((True, 2), (False, 1)):
        assert dates_of(read_file(path, day_first=day_first))[0].month == month
        again = read([frame], day_first=day_first)
        assert dates_of(again)[0].month == month
        made = again.written(filled(again), ahead=[np.ones((1, 1))])[0]
        ahead = {
            1: "1/3/2023" if month == 1 else "2/2/2023",
            2: "1/4/2023" if month == 1 else "29/3/2023",
            3: "1/5/2023",
        }
        assert made["date"].iloc[-1] == ahead[len(dates)]


def test_days_and_months_with_one_left_out_ask_as_well(tmp_path):
    path = csv(tmp_path, "date,a\n" + "".join(f"03/{k:02d}/2023,1\n" for k in (1, 2, 4, 5, 6, 7)))
    with pytest.raises(DataError, match="month or the day first"):
        read_file(path)


def test_an_order_of_day_and_month_that_cannot_be(tmp_path):
    for text, day_first in (("13/02/2023", False), ("02/13/2023", True), ("02.13.2023", None)):
        with pytest.raises(DataError, match="day (first|second)"):
            read_file(csv(tmp_path, f"date,a\n{text},1\n"), day_first=day_first)
    with pytest.raises(DataError, match="is to hold the time stamps"):
        read_file(csv(tmp_path, "date,a\n02/13/2023,1\n13/02/2023,1\n"))
    with pytest.raises(DataError, match="row 2 .* is before row 1"):  # either way: first things first
        read_file(csv(tmp_path, "date,a\n02/03/2023,1\n01/02/2023,1\n"))
    assert read_file(csv(tmp_path, "date,a\n01/01/2023,1\n02/02/2023,1\n")).series[0].step == 32 * 86400


@pytest.mark.parametrize("column", ["date", "Timestamp", "anything"])
def test_a_column_of_dates_is_the_stamps(column):
    own = table().reset_index(names=column)
    reading = read(own)
    assert reading.names == ("a", "b")
    assert (reading.series[0].step, reading.series[0].stamps[-1]) == (86400, 5)
    pd.testing.assert_frame_equal(reading.written(filled(reading)), own)
    texts = own.assign(**{column: own[column].astype(str)})
    assert read(texts, time=column).series[0].step == 86400
    with pytest.raises(ArgumentError, match="time"):
        read(own, time="nothing")


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2020-01-31", periods=4, freq="ME"),
        pd.date_range("2020-01-01", periods=4, freq="7h", tz="UTC"),
        pd.period_range("2020-11", periods=4, freq="Q"),
        pd.RangeIndex(4),
        pd.Index([5, 8, 11, 14]),
        pd.Index([0.5, 1.0, 1.5, 2.0]),
        pd.timedelta_range("0s", periods=4, freq="5min"),
    ],
)
def test_following_goes_on(index):
    for known in (4, 3):
        ahead = following(index[:known], 4)
        assert len(ahead) == 4
        assert list(ahead[: 4 - known]) == list(index[known:])
    assert following(pd.DatetimeIndex(["2020-01-01", "2020-01-02", "2020-01-04", "2020-01-05"]), 1)[0] == pd.Timestamp(
        "2020-01-06"
    )
    assert list(following(pd.Index(["a", "b"]), 2)) == [2, 3]


@pytest.mark.parametrize(
    ("first", "step", "expected"),
    [
        ("2023-03-01 05:00", 3600.0, ["2023-03-01 06:00", "2023-03-01 07:00"]),
        ("2023-01-31", 365 * 86400 / 12, ["2023-02-28", "2023-03-31"]),
        ("2023-01-31", 28 * 86400, ["2023-02-28", "2023-03-28"]),
        ("2020-02-29", 365.25 * 86400, ["2021-02-28", "2022-02-28"]),
        ("2023-03-01", 0.0, ["2023-03-02", "2023-03-03"]),
    ],
)
def test_a_single_row_goes_on_in_the_step_of_the_model(first, step, expected, tmp_path):
    expected = list(pd.to_datetime(expected))
    index = pd.DatetimeIndex([first], name="date")
    assert list(following(index, 2, step)) == expected
    assert list(pd.DatetimeIndex(following(index.tz_localize("Asia/Tokyo"), 2, step)).tz_localize(None)) == expected
    frame = pd.DataFrame({"a": [1.0]}, index=index)
    for own in (frame, frame.reset_index(), frame.reset_index().astype({"date": str})):
        made = read([own]).written([np.ones((1, 1))], ahead=[np.ones((2, 1))], step=step)[0]
        stamps = made.index if own is frame else pd.to_datetime(made["date"])
        assert list(stamps[1:]) == expected
    made = read(frame["a"]).written([np.ones((1, 1))], ahead=[np.ones((2, 1))], step=step)
    assert list(made.index[1:]) == expected
    path = csv(tmp_path, frame.to_csv(date_format="%Y-%m-%d %H:%M"))
    lines = read_file(path).written([np.ones((1, 1))], ahead=[np.ones((2, 1))], step=step).decode().splitlines()
    assert [pd.Timestamp(line.split(",")[0]) for line in lines[2:]] == expected
    frame.to_parquet(tmp_path / "x.parquet")
    made = read_file(tmp_path / "x.parquet").written([np.ones((1, 1))], ahead=[np.ones((2, 1))], step=step)
    assert list(pd.read_parquet(io.BytesIO(made)).index[1:]) == expected


def test_two_rows_keep_their_own_step():
    index = pd.DatetimeIndex(["2023-03-01", "2023-03-03"])
    assert list(following(index, 1, 3600.0)) == [pd.Timestamp("2023-03-05")]
    assert list(following(pd.Index([4]), 1, 3600.0)) == [5]
    assert list(following(pd.to_timedelta(["1h"]), 1, 3600.0)) == [pd.Timedelta(hours=2)]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (pd.date_range("2023-03-01", "2023-04-09 23:00", freq="h"), "2023-03-01 to 2023-04-09, every hour"),
        (pd.date_range("2023-3-1", periods=2, freq="15min"), "2023-03-01 00:00 to 2023-03-01 00:15, every 15 minutes"),
        (pd.date_range("2023-03-01", periods=3, freq="D"), "2023-03-01 to 2023-03-03, every day"),
        (pd.date_range("2023-03-01", periods=3, freq="7D"), "2023-03-01 to 2023-03-15, every week"),
        (pd.date_range("2023-03-01", periods=9, freq="MS"), "2023-03-01 to 2023-11-01, every month"),
        (pd.period_range("2023Q1", periods=4, freq="Q"), "2023-01-01 to 2023-10-01, every 3 months"),
        (pd.date_range("2000-01-01", periods=9, freq="YS"), "2000-01-01 to 2008-01-01, every year"),
        (pd.date_range("2023", periods=5, freq="250ms"), "2023-01-01 00:00 to 2023-01-01 00:00, every 0.25 seconds"),
        (pd.DatetimeIndex(["2023-03-01"]), "2023-03-01"),
        (pd.RangeIndex(3), ""),
        (pd.Index([1.0, 2.0]), ""),
        (None, ""),
    ],
)  # fmt: skip
def test_the_span_of_rows_is_told(index, expected):
    assert span(index, 0.0 if index is None else of_index(index, "X")[1]) == expected


# CSV

PRSA = (
    b'\xef\xbb\xbf"No","date","PM2.5","say ""hi"", you"\r\n'
    b'1,2013-03-01 00:00,4.50, 7e0 \r\n2,2013-03-01 01:00,NA,\r\n3,2013-03-01 02:00,"6.0",-0\r\n\r\n'
)


def test_csv_comes_back_byte_for_byte(tmp_path):
    reading = read_file(csv(tmp_path, PRSA), keep=["No"])
    assert reading.names == ("PM2.5", 'say "hi", you')
    np.testing.assert_array_equal(reading.series[0].values, [[4.5, 7], [np.nan, np.nan], [6, 0]])
    assert (reading.series[0].step, reading.series[0].stamps.tolist()) == (3600, [0, 1, 2])
    assert reading.written([np.full((3, 2), np.nan)]) == PRSA
    assert reading.written(filled(reading)) == PRSA.replace(b"01:00,NA,", b"01:00,7.25,7.25")
    made = reading.written(filled(reading), {"0.5": [np.full((3, 2), 1.5)]})
    assert made.decode().splitlines()[:4] == [
        '\ufeff"No","date","PM2.5","say ""hi"", you",PM2.5@0.5,"say ""hi"", you@0.5"',
        "1,2013-03-01 00:00,4.50, 7e0 ,4.50, 7e0 ",
        "2,2013-03-01 01:00,7.25,7.25,1.5,1.5",
        '3,2013-03-01 02:00,"6.0",-0,"6.0",-0',
    ]


CELLS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["", "NA", "nan", " ", "?", "-", "1e3", " 2.50", "+4.", ".5", '"3.0"', '""', "null"]),
)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["\n", "\r\n"]), st.sampled_from(",;\t"))
def test_any_csv_comes_back_byte_for_byte(tmp_path_factory, data, columns, rows, end, separator):
    cells = data.draw(st.lists(st.lists(CELLS, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    lines = [separator.join(f"c{k}" for k in range(columns)), *(separator.join(row) for row in cells)]
    text = end.join(lines) + data.draw(st.sampled_from([end, "" if cells[-1][-1] else end]))
    path = csv(tmp_path_factory.mktemp("x"), text)
    reading = read_file(path)
    values = np.array([[np.nan if _blank(c) else float(c.strip('"')) for c in row] for row in cells])
    np.testing.assert_array_equal(reading.series[0].values, values)
    assert reading.written([np.full(values.shape, np.nan)]) == text.encode()
    new = np.random.default_rng(0).integers(-999, 999, size=values.shape) / 4  # decimals that every column has room for
    made = reading.written([new])
    assert made.count(end.encode()) == text.count(end)
    path.write_bytes(made)
    np.testing.assert_array_equal(read_file(path).series[0].values, np.where(np.isnan(values), new, values))
    for old, line in zip(cells, made.decode().split(end)[1:], strict=False):
        assert [b for a, b in zip(old, line.split(separator), strict=True) if not _blank(a)] == [
            a for a in old if not _blank(a)
        ]


def _blank(cell):
    return cell.strip().strip('"').lower() in MISSING


@pytest.mark.parametrize(
    ("text", "names", "stamps", "values"),
    [
        ("a,b\n1,2\n3,4\n", ("a", "b"), [0, 1], [[1, 2], [3, 4]]),
        ("a\n1\n\n3\n", ("a",), [0, 1, 2], [[1], [np.nan], [3]]),
        ("a\n1\n3", ("a",), [0, 1], [[1], [3]]),
        ("0,1\n1,2\n", ("0", "1"), [0], [[1, 2]]),
        (",a\n0,1\n2,3\n3,4\n4,5\n", ("a",), [0, 2, 3, 4], [[1], [3], [4], [5]]),
        (",a\nx,1\ny,3\n", ("a",), [0, 1], [[1], [3]]),
        (",a\n2020-01-01,1\n2020-01-03,3\n", ("a",), [0, 1], [[1], [3]]),
        (
            "when,a\n2020-01-01,1\n2020-01-03,3\n2020-01-04,3\n2020-01-05,3\n",
            ("a",),
            [0, 2, 3, 4],
            [[1], [3], [3], [3]],
        ),
        ("a;time\n1;0\n5;0.5\n6;2\n", ("a",), [0, 1, 4], [[1], [5], [6]]),
        ("a\tb\n1\t2\n\n\n", ("a", "b"), [0], [[1, 2]]),
        ("a,\n1,2\n", ("a", "column 2"), [0], [[1, 2]]),
        ("a,b,\n1,2,NA\n", ("a", "b", "column 3"), [0], [[1, 2, np.nan]]),
    ],
)
def test_forms_of_csv(text, names, stamps, values, tmp_path):
    reading = read_file(csv(tmp_path, text))
    assert reading.names == names
    np.testing.assert_allclose(reading.series[0].stamps, stamps)
    np.testing.assert_array_equal(reading.series[0].values, values)
    assert reading.written([np.full(np.shape(values), np.nan)]) == text.encode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", "row 2 has 1 cells, the heading has 2"),
        ("a,b\n1\n3,4\n", "row 1 has 1 cells"),
        ("a,b\n1,2\n\n3,4\n", "row 2 has 1 cells"),
        ("a,b\n1,2\n3,4,5\n", "row 2 has 3 cells"),
        ("a,b\n1,2\n3,high\n", "column 'b', row 2: 'high' is no number"),
        ("a,b\n1,2\n3,inf\n", "column 'b', row 2: inf"),
        ("a,b\n1,2\n3,1e999\n", "column 'b', row 2: 1e999"),
        ('a,b\n1,2\n3,"4,5"\n', "column 'b', row 2: '4,5' is no number; decimals need a point"),
        ("a|b\n1|2\n3|4,5\n", "column 'b', row 2: '4,5' is no number; decimals need a point"),
        ("a;b\n1;2,5\n3;1.234,5\n", "column 'b', row 2: '1.234,5' is no number; with decimal commas there can be no"),
        ("a;b\n1;2,5\n1.234;5\n", "column 'a', row 2: '1.234' is no number; with decimal commas"),
        ("a;b\n1;1,5\n3;1,234,5\n", "column 'b', row 2: '1,234,5' is no number; with decimal commas"),
        ("a;b\n1;1.234,5\n", "column 'b', row 1: '1.234,5' is no number"),
        ("a;b\n1;1,5\n3;inf\n", "column 'b', row 2: inf"),
        ("1,5;2;3\n3;4;5\n", "names of the columns"),
        ("a,b\n1,1_000\n", "column 'b', row 1: '1_000'"),
        ("a,a\n1,2\n", "two columns are called 'a'"),
        ("1.5,2\n3,4\n", "names of the columns"),
        ("date,b\n2020-01-02,2\n2020-01-01,4\n", "row 2 .2020-01-01.* is before row 1"),
        ("date,b\n2020-01-02,2\n2020-01-02,4\n", "rows 1 and 2 have the same time stamp"),
        ("date,b\n2020-01-02,2\n,4\n", "row 2 has no time stamp"),
        ("date,b\nsoon,2\n,4\n", "column 'date' is to hold the time stamps, and has 'soon'"),
        ("date\n2020-01-02\n", "no columns of values"),
        ("month,b\nMay,2\nJune,3\n", "column 'month', row 1: 'May'"),
        (b"a,b\n1,\xff\n", "0xff at position 6 is not UTF-8"),
        (b"PK\x03\x04\x00\x00", "zero bytes"),
    ],
)
def test_csv_that_cannot_be_used(text, message, tmp_path):
    path = csv(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_file(path)
    assert str(path) in str(caught.value)


def test_quoted_cells_hold_anything(tmp_path):
    text = 'id,"a\nb"\n"x, ""y""\nz",1\n"",\n5" pipe,3\n'
    reading = read_file(csv(tmp_path, text), keep=["id"])
    assert reading.names == ("a\nb",)
    assert reading.written(filled(reading)).decode() == text.replace('"",\n', '"",7.25\n')
    assert parse(text.encode(), "x").column(0) == ['x, "y"\nz', "", '5" pipe']


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_file(tmp_path / "none.csv")
    with pytest.raises(DataError, match="expected one of"):
        read_file(csv(tmp_path, "a\n1\n", "x.xlsx"))
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_file(tmp_path / "d.csv")


GERMAN = (
    "Zeit;Druck;Anzahl;leer;Name\r\n01.03.2023;10,21;5;;1,5 l\r\n02.03.2023;;;;x\r\n"
    '03.03.2023;"+1,5e1";-7;;1.5\r\n04.03.2023; 9,1 ;;NA;\r\n'
)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_come_and_go(separator, tmp_path):
    text = GERMAN.replace(";", separator)
    reading = read_file(csv(tmp_path, text), keep=["Name"])
    values = np.array([[10.21, 5], [np.nan, np.nan], [15, -7], [9.1, np.nan]])
    np.testing.assert_array_equal(reading.series[0].values[:, :2], values)
    assert [one.day for one in dates_of(reading)] == [1, 2, 3, 4]
    assert reading.written([np.full((4, 3), np.nan)]) == text.encode()
    third = [np.full((4, 3), 1 / 3)]
    made = reading.written(third, {"0.5": [np.full((5, 3), -2 / 3)]}, [np.full((1, 3), 2000 / 3)]).decode()
    own, more = "0,3333333333333333", "-0,6666666666666666"
    assert made.split("\r\n")[1:-1] == [
        line.replace(";", separator)
        for line in (
            f"01.03.2023;10,21;5;{own};1,5 l;10,21;5;{more}",
            f"02.03.2023;0,3333;0,33;{own};x;-0,6667;-0,67;{more}",
            f'03.03.2023;"+1,5e1";-7;{own};1.5;"+1,5e1";-7;{more}',
            f"04.03.2023; 9,1 ;0,33;{own};; 9,1 ;-0,67;{more}",
            f"05.03.2023;666,6667;666,67;666,6666666666666;;-0,6667;-0,67;{more}",
        )
    ]


def test_a_time_in_decimal_commas(tmp_path):
    for name in ("time", ""):
        reading = read_file(csv(tmp_path, f"{name};a\n0,5;1\n1;2\n2;2\n2,5;\n"))
        assert reading.series[0].stamps.tolist() == [0, 1, 3, 4]
        made = reading.written(filled(reading), ahead=[np.ones((1, 1))]).decode()
        assert made.splitlines()[-2:] == ["2,5;7.25", "3,0;1.0"]
    assert read_file(csv(tmp_path, "x;a\n0,5;1\n1,5;2\n")).names == ("x", "a")  # and no date


@pytest.mark.parametrize(
    ("cells", "value", "text"),
    [
        (["12.65", "3"], 12.649126461855401, "12.6491"),
        (["12.65", "3"], 12.6, "12.6"),
        (["12", "3"], 12.649126461855401, "12.65"),
        (["1e-3"], 0.000123456, "0.00012"),
        (["1.25E1", "2.5e+2"], 1 / 3, "0.333"),
        (["1e5"], 123456.789, "123456.79"),
        (["1"], -0.001, "0.0"),
        (["5e-324"], 1 / 3, "0.3333333333333333"),
        ([".5", "4."], 1 / 3, "0.333"),
        (["1"], 1e22 / 3, "3.3333333333333335e+21"),
        ([], 1 / 3, "0.3333333333333333"),
    ],
)
def test_filled_cells_have_two_decimals_more_than_their_column(cells, value, text, tmp_path):
    reading = read_file(csv(tmp_path, "a,b\n" + "".join(f"{cell},0.123456789\n" for cell in [*cells, "NA"])))
    rows = len(cells) + 1
    new = np.full((rows, 2), value)
    made = reading.written([new], {"0.5": [np.full((rows + 1, 2), value)]}, [new[:1]]).decode().splitlines()
    assert [made[-2].split(",")[k] for k in (0, 2)] == [text, text]
    assert [made[-1].split(",")[k] for k in (0, 2)] == [text, text]


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


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ('"date",a,id\r\n"2020-01-31",1,x\r\n"2020-02-29",2,y\r\n"2020-03-31",3,z\r\n', '"2020-04-30",0.5,\r\n'),
        ("date;a\n31/01/2020 23:00;1\n01/02/2020 00:00;2\n", "01/02/2020 01:00;0.5\n"),
        ("a,t\n1,0\n2,10\n", None),
        (",a\n0,1\n1,2\n", "2,0.5\n"),
        ("a\n1\n2\n", "0.5\n"),
        ("time,a\n0.5,1\n1,2\n", "1.5,0.5\n"),
    ],
)
def test_rows_ahead_of_csv(text, more, tmp_path):
    reading = read_file(csv(tmp_path, text), keep=["id"] if "id" in text else [])
    made = reading.written(filled(reading), ahead=[np.full((1, len(reading.names)), 0.5)]).decode()
    assert made == text + (more if more is not None else "0.5,0.5\n")
    assert reading.written(filled(reading)).decode() == text


def test_rows_ahead_of_csv_without_a_last_line_end(tmp_path):
    reading = read_file(csv(tmp_path, "a,b\n1,2\n3,4"))
    made = reading.written(filled(reading), {"0.5": [np.arange(6.0).reshape(3, 2)]}, [np.array([[5, 6.0]])])
    assert made == b"a,b,a@0.5,b@0.5\n1,2,1,2\n3,4,3,4\n5.0,6.0,4.0,5.0"
