"""Text tables come back byte for byte but for their empty cells, and errors name file, column and row."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from polydiff.core.errors import DataError
from polydiff.timeseries.csv_text import MISSING, parse
from polydiff.timeseries.frames import read_file
from tests.timeseries.reading import csv, dates_of, filled

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
