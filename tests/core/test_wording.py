"""Words and tables."""

from polydiff.core.wording import counted, lines


def test_numbers_of_things():
    assert [counted(n, "row") for n in (0, 1, 2, 12345)] == ["0 rows", "1 row", "2 rows", "12,345 rows"]


def test_columns_are_of_even_width():
    assert lines([{"figure": "a", "x": "1.5"}, {"figure": "longer one", "x": "–"}]) == [
        "figure        x",
        "a           1.5",
        "longer one    –",
    ]
