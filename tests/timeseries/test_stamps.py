"""Times of rows: which steps they are, which order of day and month they have, and how they go on."""

import io

import numpy as np
import pandas as pd
import pytest

from polydiff.core.errors import ArgumentError, DataError
from polydiff.timeseries.frames import read, read_file
from polydiff.timeseries.stamps import following, of_index, span
from tests.timeseries.reading import csv, dates_of, filled, table


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
