"""Windows: which rows they hold, what they leave out, and held-out cells by their laws."""

import numpy as np
import pytest
import torch

from polydiff.core.errors import ArgumentError, DataError
from polydiff.timeseries.data import Windows, held_out, load
from polydiff.timeseries.series import Series

UNIT = (np.zeros(1), np.ones(1))


def counting(length, label="s", begin=0):
    """A series whose values are its rows' numbers, from 1."""
    values = np.arange(begin + 1, begin + length + 1, dtype=np.float64)[:, None]
    return Series(values, np.arange(begin, begin + length, dtype=np.float64), ("a",), 3600.0, label)


def rows(windows):
    batch = windows.batch(range(len(windows)))
    return [values[seen].tolist() for values, seen in zip(batch["values"], batch["seen"], strict=True)]


# Held-out cells


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_held_out_is_a_share_of_each_windows_observed_cells(rate):
    seen = np.random.default_rng(0).random((12, 9, 4)) < 0.6
    held = held_out(seen, rate, 3)
    assert held.dtype == bool
    assert not (held & ~seen).any()
    assert held.sum((1, 2)).tolist() == [round(rate * n) for n in seen.sum((1, 2)).tolist()]


def test_held_out_depends_on_seed_place_and_mask_alone():
    seen = np.random.default_rng(0).random((12, 9, 4)) < 0.6
    held = held_out(seen, 0.4, 3)
    np.testing.assert_array_equal(held_out(torch.from_numpy(seen), 0.4, 3), held)
    np.testing.assert_array_equal(held_out(seen[:5], 0.4, 3), held[:5])
    np.testing.assert_array_equal(held_out(seen[0], 0.4, 3), held[0])
    assert (held_out(seen, 0.4, 4) != held).any()
    same = held_out(np.repeat(seen[:1], 4, 0), 0.4, 3)
    assert len({one.tobytes() for one in same}) == 4
    assert not (held & ~held_out(seen, 0.7, 3)).any()  # nested


def test_held_out_is_uniform():
    """Chi-square over 10 cells, 4,000 windows, 3 cells each; 99.9 % of 9 degrees of freedom (variance less by 0.7)."""
    held = held_out(np.ones((4000, 5, 2), dtype=bool), 0.3, 0).reshape(4000, 10).sum(0)
    expected = 4000 * 0.3
    assert ((held - expected) ** 2).sum() / expected / 0.7 * 9 / 10 < 27.88


def test_held_out_checks_its_input():
    seen = np.ones((2, 3, 4), dtype=bool)
    for rate in (-0.1, 1.1, float("nan"), True):
        with pytest.raises(ArgumentError, match="rate"):
            held_out(seen, rate, 0)
    for seed in (-1, 0.5, True):
        with pytest.raises(ArgumentError, match="seed"):
            held_out(seen, 0.1, seed)  # pyright: ignore[reportArgumentType]
    for mask in (seen[0, 0], seen.astype(float)):
        with pytest.raises(ArgumentError, match="observed"):
            held_out(mask, 0.1, 0)


# Windows


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts", "remainder"),
    [
        (10, 4, 4, [1, 5], 2),
        (12, 4, 4, [1, 5, 9], 0),
        (10, 4, 3, [1, 4, 7], 0),
        (11, 4, 3, [1, 4, 7, 8], 0),
        (6, 4, 1, [1, 2, 3], 0),
        (4, 4, 1, [1], 0),
        (3, 1, 1, [1, 2, 3], 0),
    ],
)
def test_which_rows_windows_hold(length, window, stride, starts, remainder):
    windows = Windows([counting(length)], window, stride=stride, scaling=UNIT)
    assert rows(windows) == [[float(k) for k in range(start, start + window)] for start in starts]
    assert windows.remainder == remainder
    assert not windows.ragged
    assert "present" not in windows.batch([0])


def test_windows_never_cross_from_one_series_to_the_next():
    series = [counting(5), counting(3, begin=100), counting(2, begin=200), counting(0), counting(8, begin=300)]
    windows = Windows(series, 3, stride=2, scaling=UNIT)
    assert rows(windows) == [
        [1, 2, 3], [3, 4, 5], [101, 102, 103], [201, 202], [301, 302, 303], [303, 304, 305], [305, 306, 307],
        [306, 307, 308],
    ]  # fmt: skip


def test_short_series_are_padded():
    windows = Windows([counting(6), counting(2, begin=50)], 4, scaling=UNIT)
    assert windows.ragged
    assert windows.remainder == 2
    batch = windows.batch([0, 1])
    assert batch["present"].tolist() == [[True] * 4, [True, True, False, False]]
    assert batch["values"][1, :, 0].tolist() == [51, 52, 0, 0]
    assert batch["seen"][1, :, 0].tolist() == [True, True, False, False]
    assert batch["stamps"][1, :2].tolist() == [0, 1]
    assert "present" in windows.batch([0])


def test_missing_cells_are_zero_and_empty_windows_are_left_out():
    values = np.arange(1.0, 25.0).reshape(12, 2)
    values[4:8] = np.nan
    values[1, 0] = values[9, 1] = np.nan
    windows = Windows([Series(values, np.arange(12.0), ("a", "b"))], 4, scaling=(np.ones(2), np.full(2, 2.0)))
    assert (len(windows), windows.dropped) == (2, 1)
    batch = windows.batch([0, 1])
    kept = torch.from_numpy(values[[0, 1, 2, 3, 8, 9, 10, 11]].reshape(2, 4, 2))
    torch.testing.assert_close(batch["values"], torch.nan_to_num((kept - 1) / 2).float())
    assert (batch["seen"] == ~kept.isnan()).all()
    assert batch["values"].dtype == torch.float32
    with pytest.raises(DataError, match="no observed"):
        Windows([Series(np.full((5, 1), np.nan), np.arange(5.0), ("a",))], 3, scaling=UNIT)


def test_stamps_count_from_the_windows_first_row_to_full_precision():
    stamps = 1e9 + np.array([0.0, 1, 2.25, 3, 4, 7])
    windows = Windows([Series(np.ones((6, 1)), stamps, ("a",))], 3, scaling=UNIT)
    assert windows.batch([0, 1])["stamps"].tolist() == [[0, 1, 2.25], [0, 1, 4]]


def test_indices():
    windows = Windows([counting(12)], 4, scaling=UNIT)
    assert (windows.batch(torch.tensor([-1, 0]))["values"][:, 0, 0] == torch.tensor([9.0, 1.0])).all()
    assert windows[1]["values"][0, 0] == 5
    assert windows.batch([])["values"].shape == (0, 4, 1)
    for bad in (3, -4):
        with pytest.raises(IndexError, match="3 windows"):
            windows.batch([bad])


def test_scaling_is_fitted_side_by_side_whatever_the_stride():
    series = [counting(11), counting(3, begin=40)]
    one, other = Windows(series, 4, stride=1, level="window"), Windows(series, 4, level="window")
    assert one.scale == other.scale
    parts = [np.arange(1, 5), np.arange(5, 9), np.arange(9, 12), np.arange(41, 44)]
    left = np.concatenate([part - part.mean() for part in parts])
    np.testing.assert_allclose(one.scale, left.std(), rtol=1e-12)
    assert one.centre[0] == pytest.approx(np.concatenate(parts).mean())


def test_fingerprint_tells_sets_apart():
    def make(values=1.0, window=4, stride=2, stamp=0.0, scale=1.0):
        series = counting(12)
        changed = series.values.copy()
        changed[3] *= values
        stamps = series.stamps.copy()
        stamps[-1] += stamp
        own = Series(changed, stamps, ("a",))
        return Windows([own], window, stride=stride, scaling=(np.zeros(1), np.full(1, scale))).fingerprint()

    assert make() == make()
    assert len({make(), make(2.0), make(np.nan), make(window=5), make(stride=1), make(stamp=1), make(scale=2)}) == 7


def test_errors():
    for window in (0, 2.5, True):
        with pytest.raises(ArgumentError, match="window"):
            Windows([counting(5)], window)  # pyright: ignore[reportArgumentType]
    for stride in (0, 5, 1.5):
        with pytest.raises(ArgumentError, match="stride"):
            Windows([counting(5)], 4, stride=stride)  # pyright: ignore[reportArgumentType]
    for series in ([], [counting(0)]):
        with pytest.raises(DataError, match="no rows"):
            Windows(series, 4, scaling=UNIT)
    other = Series(np.ones((5, 1)), np.arange(5.0), ("b",), label="second")
    with pytest.raises(DataError, match="second"):
        Windows([counting(5), other], 4)


def test_published_masks_are_used_where_there_are_some():
    masks = np.zeros((3, 4, 1), dtype=bool)
    masks[1, 2] = True
    windows = Windows([counting(12)], 4, scaling=UNIT, held=lambda rate, seed: masks)
    assert (windows.held(0.1, 0) == torch.from_numpy(masks)).all()
    drawn = Windows([counting(12)], 4, scaling=UNIT).held(0.5, 7)
    np.testing.assert_array_equal(drawn, held_out(np.ones((3, 4, 1), dtype=bool), 0.5, 7))


# Loading


def write(path, table):
    path.write_text("a,b\n" + "".join(",".join(map(str, row)) + "\n" for row in table))


def test_own_files_are_split_by_time_and_scaled_by_training_rows(tmp_path):
    table = np.random.default_rng(0).normal(size=(100, 2)).round(3)
    write(tmp_path / "x.csv", table)
    parts = {split: load(tmp_path / "x.csv", split, window=5, stride=5) for split in ("train", "valid", "test")}
    assert [len(part) for part in parts.values()] == [14, 3, 3]
    train = parts["train"]
    np.testing.assert_allclose(train.centre, table[:70].mean(0), rtol=1e-12)
    np.testing.assert_allclose(train.scale, table[:70].std(0), rtol=1e-12)
    for split, window, row in (("train", 0, 0), ("train", -1, 65), ("valid", 0, 70), ("test", -1, 95)):
        part = parts[split]
        np.testing.assert_array_equal(part.centre, train.centre)
        raw = part.batch([window])["values"][0].numpy() * part.scale + part.centre
        np.testing.assert_allclose(raw, table[row : row + 5], atol=1e-5)
    table[70:] = 1e9
    write(tmp_path / "x.csv", table)
    assert load(tmp_path / "x.csv", window=5, stride=5).fingerprint() == train.fingerprint()


def test_a_folder_is_many_series(tmp_path):
    for k, rows in enumerate((20, 40)):
        write(tmp_path / f"{k}.csv", np.arange(2 * rows).reshape(rows, 2) + 1000 * k)
    windows = load(tmp_path, window=7)
    assert windows.features == ("a", "b")
    assert len(windows) == (14 - 6) + (28 - 6)
    (tmp_path / "2.csv").write_text("a,c\n1,2\n")
    with pytest.raises(DataError, match=r"2\.csv has columns"):
        load(tmp_path)


def test_default_strides_and_what_a_set_brings():
    train, test = load("sunspots"), load("sunspots", "test")
    assert (train.stride, test.stride, train.window, train.season) == (1, 22, 22, 11)
    np.testing.assert_array_equal(train.scale, test.scale)
    assert load("co2").level == "window"
    assert load("co2", level="series").scale > 2 * load("co2").scale


def test_load_errors(tmp_path):
    with pytest.raises(DataError, match="co2"):
        load(tmp_path / "none")
    with pytest.raises(DataError, match="no files"):
        load(tmp_path)
    with pytest.raises(ArgumentError, match="split"):
        load("co2", "all")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="window"):
        load("co2", window=0)
    (tmp_path / "x.csv").write_text("a,b\n" + "1,\n" * 20 + "1,2\n" * 4)
    with pytest.raises(DataError, match=r"x\.csv \(train\).*'b' without an observed"):
        load(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="too few"):
        load(tmp_path / "y.csv")
