"""Named sets: parsing against hand-made records, the published split against numpy's own legacy functions."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polydiff.core.errors import ArgumentError, DataError
from polydiff.timeseries import sources, sources_beijing, sources_files, sources_physionet
from polydiff.timeseries.series import Series, by_share
from polydiff.timeseries.sources import NAMES, TABLES, lstnet
from polydiff.timeseries.sources_files import blob_id, cached, fetch, find, fingerprint, members
from polydiff.timeseries.sources_physionet import ATTRIBUTES, csdi_folds, csdi_held, csdi_split, grid, stays

DATA = Path(os.environ.get("POLYDIFF_DATA", "."))
NOWHERE = "http://127.0.0.1:9/nothing"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDIFF_CACHE", str(tmp_path / "cache"))


def record(*rows):
    return ("Time,Parameter,Value\n" + "".join(f"{row}\n" for row in rows)).encode()


def tarred(path, files, mode: Any = "w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# PhysioNet


def test_the_last_value_of_an_hour_counts():
    place = {name: k for k, name in enumerate(ATTRIBUTES)}
    files = [
        ("2.txt", record("00:00,RecordID,2", "00:00,Weight,70", "00:07,HR,73", "00:59,HR,80", "01:00,HR,90.5")),
        ("1.txt", record("47:59,pH,7.35", "48:00,pH,7", "48:00,HR,60", "03:10,K,4", "03:20,K,")),
        ("3.txt", record().rstrip(b"\n")),
    ]
    values, rows = grid(iter(files))
    assert (values.shape, rows) == ((3, 48, 35), 10)
    expected = np.full((3, 48, 35), np.nan)
    expected[1, 0, place["HR"]], expected[1, 1, place["HR"]] = 80, 90.5
    expected[0, 47, place["pH"]] = 7.35  # the last value of K in hour 3 is missing, and so is the cell
    np.testing.assert_array_equal(values, expected)


def test_records_survive_other_line_ends_and_what_is_none_is_named():
    values, rows = grid(
        [("1.txt", b"Time,Parameter,Value\r\n00:01,HR,5\r\n00:02,HR,6"), ("2.txt", record("00:01,HR,7"))]
    )
    assert rows == 3
    assert values[:, 0, ATTRIBUTES.index("HR")].tolist() == [6, 7]
    with pytest.raises(DataError, match=r"5\.txt"):
        grid([("5.txt", b"Age,54\n")])
    for rows in ("00:01,HR,high", "noon,HR,5", "00:01,HR,5,6"):
        with pytest.raises(DataError, match="PhysioNet"):
            grid([("1.txt", record("00:00,HR,5", rows))])


@pytest.mark.parametrize(("rate", "seed"), [(0.1, 1), (0.5, 1), (0.9, 3), (0.0, 1)])
def test_held_out_cells_are_those_of_the_legacy_generator(rate, seed):
    seen = np.random.default_rng(0).random((20, 6, 5)) < 0.3
    seen[7] = False
    np.random.seed(seed)  # noqa: NPY002 (the published masks are made this way)
    expected = np.zeros_like(seen)
    for k, mask in enumerate(seen):
        places = [i for i, one in enumerate(mask.ravel().tolist()) if one]
        if places:
            chosen = np.random.choice(places, int(len(places) * rate), replace=False)  # noqa: NPY002
            expected[k].flat[chosen] = True
    np.testing.assert_array_equal(csdi_held(seen, rate, seed), expected)
    for bad in (1.0, -0.1):
        with pytest.raises(ArgumentError, match="rate"):
            csdi_held(seen, bad, 1)


@pytest.mark.parametrize("fold", range(5))
def test_folds_are_two_shuffles_of_one_seed(fold):
    np.random.seed(1)  # noqa: NPY002
    index = np.arange(3997)
    np.random.shuffle(index)  # noqa: NPY002
    folds = csdi_folds(3997, 1, fold)
    start, end = int(fold * 0.2 * 3997), int((fold + 1) * 0.2 * 3997)
    np.testing.assert_array_equal(folds["test"], index[start:end])
    rest = np.concatenate([index[:start], index[end:]])
    np.random.seed(1)  # noqa: NPY002
    np.random.shuffle(rest)  # noqa: NPY002
    np.testing.assert_array_equal(np.concatenate([folds["train"], folds["valid"]]), rest)
    assert len(folds["train"]) == 2797
    assert sorted(np.concatenate(list(folds.values()))) == list(range(3997))
    with pytest.raises(ArgumentError, match="fold"):
        csdi_folds(10, 1, 5)


def test_a_copy_that_is_not_whole_is_refused(tmp_path, monkeypatch):
    files = {f"set-a/{k}.txt": record(f"00:00,HR,{k}", "01:00,pH,7") for k in (11, 12)} | {"set-a/13.txt": record()}
    tarred(tmp_path / "set-a.tar.gz", files)
    with pytest.raises(DataError, match=r"set-a.tar.gz: 3 stays, 4 rows; set A has 4000"):
        stays(tmp_path)
    monkeypatch.setattr(sources_physionet, "RECORDS", 3)
    monkeypatch.setattr(sources_physionet, "ROWS", 4)
    values = stays(tmp_path)  # the empty stay is left out
    assert np.isnan(values).sum() == values.size - 4
    assert values[:, 0, ATTRIBUTES.index("HR")].tolist() == [11, 12]
    (tmp_path / "other" / "set-a").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "other" / name).write_bytes(data)
    np.testing.assert_array_equal(stays(tmp_path / "other"), values)
    np.testing.assert_array_equal(stays(tmp_path / "other"), values)  # from what was kept


def test_the_papers_split_has_the_papers_normalisation(monkeypatch):
    generator = np.random.default_rng(0)
    values = generator.normal(3, 2, (50, 48, 35))
    values[generator.random(values.shape) < 0.8] = np.nan
    monkeypatch.setattr(sources_physionet, "stays", lambda root: values)
    monkeypatch.setattr(sources, "stays", lambda root: values)
    split = csdi_split(Path(), rate=0.1)
    source = NAMES["physionet2012-csdi"](Path())
    assert source.scaling is not None
    assert source.held is not None
    for name, part in split.items():
        raw = values[part.index]
        np.testing.assert_array_equal(part.seen, ~np.isnan(raw))
        np.testing.assert_allclose(part.values * part.scale + part.centre, np.where(part.seen, raw, part.centre))
        assert (part.values[~part.seen] == 0).all()
        assert not (part.given & ~part.seen).any()
        lost = (part.seen & ~part.given).sum((1, 2))
        np.testing.assert_array_equal(lost, np.floor(0.1 * part.seen.sum((1, 2))))
        np.testing.assert_array_equal(source.held(name, 0.1, 1), part.seen & ~part.given)
        np.testing.assert_array_equal(np.stack([one.values for one in source.parts[name]]), raw)
        np.testing.assert_allclose(source.scaling, (part.centre, part.scale), rtol=1e-12)
    np.testing.assert_allclose(split["train"].centre, np.nanmean(values, (0, 1)), rtol=1e-12)
    np.testing.assert_allclose(split["train"].scale, np.nanstd(values, (0, 1)), rtol=1e-12)
    assert NAMES["physionet2012"](Path()).scaling is None


@pytest.mark.skipif(find(DATA, "physionet2012_set_a", ("set-a.tar.gz", "set-a.tar.xz")) is None, reason="no PhysioNet")
def test_the_real_split_has_the_known_counts():
    split = csdi_split(DATA)
    assert {name: len(part.index) for name, part in split.items()} == {"train": 2797, "valid": 401, "test": 799}
    assert int((split["test"].seen & ~split["test"].given).sum()) == 25_718


# Beijing, ETT, LSTNet


def test_months_of_beijing():
    borders = sources_beijing.borders()
    hours = np.datetime64("2013-03-01T00") + np.arange(sources_beijing.ROWS)
    assert [str(hours[start]) for start, _ in borders.values()] == ["2013-03-01T00", "2015-07-01T00", "2016-05-01T00"]
    assert [stop for _, stop in borders.values()] == [*[start for start, _ in borders.values()][1:], len(hours)]
    assert str(hours[-1]) == "2017-02-28T23"


def test_beijing_must_be_whole(tmp_path, monkeypatch):
    heading = "No,year,month,day,hour," + ",".join(sources_beijing.POLLUTANTS) + ",wd,station\n"
    row = "1,2013,3,1,{},4,NA, ,7,300,77,-0.7,1023,-18.8,0,4.4,N,A\n"
    table = (heading + row.format(0) + row.format(1)).encode()
    monkeypatch.setattr(sources_beijing, "ROWS", 2)
    inner = zipped(
        {"x/PRSA_Data_B_20130301-20170228.csv": table, "x/PRSA_Data_A_20130301-20170228.csv": table, "y.csv": b""}
    )
    (tmp_path / "beijing+multi+site+air+quality+data.zip").write_bytes(
        zipped({"PRSA2017.zip": inner, "note.csv": b"a"})
    )
    with pytest.raises(DataError, match="2 stations, expected 12"):
        sources_beijing.stations(tmp_path)
    monkeypatch.setattr(sources_beijing, "STATIONS", 2)
    found = sources_beijing.stations(tmp_path)
    assert list(found) == ["A", "B"]
    np.testing.assert_array_equal(found["A"][1], [4, np.nan, np.nan, 7, 300, 77, -0.7, 1023, -18.8, 0, 4.4])
    for bad in (table[: len(heading) + 60], (heading + row.format(0) + row.format(2)).encode(), b"No,year\n1,2\n"):
        (tmp_path / "bad.zip").write_bytes(zipped({"PRSA_Data_A_20130301-20170228.csv": bad}))
        with pytest.raises(DataError, match="PRSA_Data_A"):
            sources_beijing.parse(tmp_path / "bad.zip")


def test_ett_has_its_published_months(tmp_path):
    rows = sources.ETT_ROWS
    body = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n" + "".join(f"x,{k},1,2,3,4,5,6\n" for k in range(rows))
    (tmp_path / "ETTh1.csv.gz").write_bytes(gzip.compress(body.encode(), 1))
    source = NAMES["etth1"](tmp_path)
    assert {split: (len(one), one.values[0, 0]) for split, (one,) in source.parts.items()} == {
        "train": (8640, 0), "valid": (2880, 8640), "test": (2880, 11520)
    }  # fmt: skip
    assert source.features == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    (tmp_path / "ETTh2.csv").write_text(body[:1000] + "\n")
    with pytest.raises(DataError, match="ETTh2"):
        NAMES["etth2"](tmp_path)
    (tmp_path / "ETTh1.csv.gz").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(DataError, match="cannot be read"):
        NAMES["etth1"](tmp_path)


def test_tables_of_lstnet(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "exchange", sources._Table("exchange_rate/x.txt.gz", "", 10, 3, 86400.0, 4, 0))
    (tmp_path / "exchange_rate").mkdir()
    values = np.random.default_rng(0).normal(size=(10, 3))
    text = "\n".join(",".join(map(repr, row)) for row in values.tolist())
    (tmp_path / "exchange_rate" / "x.txt.gz").write_bytes(gzip.compress(text.encode()))
    source = lstnet(tmp_path, name="exchange")
    np.testing.assert_array_equal(np.concatenate([part[0].values for part in source.parts.values()]), values)
    assert [len(part[0]) for part in source.parts.values()] == [6, 2, 2]
    (tmp_path / "exchange_rate" / "x.txt.gz").write_bytes(gzip.compress(text.rpartition("\n")[0].encode()))
    with pytest.raises(DataError, match="exchange"):
        lstnet(tmp_path, name="exchange")


@pytest.mark.parametrize(
    ("name", "module", "url"),
    [
        ("physionet2012", sources_physionet, "URL"),
        ("beijing", sources_beijing, "URL"),
        ("etth2", sources, "ETT"),
        ("solar", sources, "LSTNET"),
    ],
)
def test_offline_says_the_way_out(name, module, url, tmp_path, monkeypatch):
    monkeypatch.setattr(module, url, NOWHERE)
    with pytest.raises(DataError, match=rf"{name}: .*127\.0\.0\.1.*--data-root"):
        NAMES[name](tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


# The embedded ones


@pytest.mark.parametrize(
    ("name", "rows", "features", "missing"),
    [("co2", 2284, 1, 59), ("elnino", 732, 1, 0), ("sunspots", 309, 1, 0), ("macrodata", 203, 12, 0)],
)
def test_embedded_sets(name, rows, features, missing, tmp_path):
    source = NAMES[name](tmp_path)
    series = [one for split in ("train", "valid", "test") for one in source.parts[split]]
    values = np.concatenate([one.values for one in series])
    assert values.shape == (rows, features)
    assert np.isnan(values).sum() == missing
    assert len(source.features) == features
    np.testing.assert_array_equal(np.concatenate([one.stamps for one in series]), np.arange(rows))
    assert all(len(one) >= source.window for one in series)


def test_known_values_are_in_their_places(tmp_path):
    # January 1950 is the first month, and the year runs along the row, not down the column.
    elnino = NAMES["elnino"](tmp_path).parts["train"][0].values[:, 0]
    assert (elnino[0], elnino[1]) == (23.11, 24.20)
    assert NAMES["co2"](tmp_path).parts["train"][0].values[0, 0] == 316.1
    assert NAMES["macrodata"](tmp_path).features[:2] == ("realgdp", "realcons")


def test_by_share_is_a_partition():
    series = Series(np.arange(23.0)[:, None], np.arange(23.0), ("a",))
    parts = by_share(series, train=0.7, valid=0.15)
    assert [len(part) for (part,) in parts.values()] == [16, 3, 4]
    np.testing.assert_array_equal(np.concatenate([part.values for (part,) in parts.values()]), series.values)


# Files


def test_members_of_every_kind_of_archive(tmp_path):
    files = {"d/b.txt": b"2", "d/a.txt": b"1", "d/.hidden.txt": b"x", "d/c.csv": b"3"}
    expected = {("a.txt", b"1"), ("b.txt", b"2")}
    for mode in ("w:gz", "w:xz", "w"):
        assert set(members(tarred(tmp_path / "x.tar", files, mode), ".txt")) == expected
    (tmp_path / "x.zip").write_bytes(zipped({"inner.zip": zipped(files)}))
    assert set(members(tmp_path / "x.zip", ".txt")) == expected
    (tmp_path / "d").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert list(members(tmp_path / "d", ".txt")) == sorted(expected)
    (tmp_path / "bad.tar.gz").write_bytes(b"\x1f\x8b no archive")
    with pytest.raises(DataError, match=r"bad\.tar\.gz"):
        list(members(tmp_path / "bad.tar.gz", ".txt"))


def test_fetch_checks_before_the_file_has_its_name(tmp_path):
    (tmp_path / "source").write_bytes(b"content")
    url, place = (tmp_path / "source").as_uri(), tmp_path / "new" / "file"

    def refuse(part):
        assert part.read_bytes() == b"content"
        raise DataError("not what it should be")

    with pytest.raises(DataError, match=r"set: .*not what it should be.*--data-root"):
        fetch("set", url, place, refuse)
    assert not list(place.parent.iterdir())
    assert fetch("set", url, place, lambda part: None).read_bytes() == b"content"
    fetch("set", NOWHERE, place, refuse)  # what is there is not fetched again
    assert [file.name for file in place.parent.iterdir()] == ["file"]


def test_blob_id_is_gits(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")
    assert blob_id(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_kept_arrays_are_read_again_and_broken_ones_made_again(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"a": np.arange(5.0)}

    for _ in range(2):
        np.testing.assert_array_equal(cached("key", make)["a"], np.arange(5.0))
    assert len(calls) == 1
    file = sources_files.cache_folder() / "key.npz"
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(cached("key", make)["a"], np.arange(5.0))
    assert len(calls) == 2


def test_fingerprint_follows_the_content(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"1")
    one, folder = fingerprint(tmp_path / "d" / "a"), fingerprint(tmp_path / "d")
    (tmp_path / "d" / "a").write_bytes(b"22")
    assert fingerprint(tmp_path / "d" / "a") != one
    assert fingerprint(tmp_path / "d") != folder


def test_places_are_tried_in_order(tmp_path):
    assert find(tmp_path, "f", ("a", "b")) is None
    for name in ("b", "f/b", "timeseries/f/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        assert find(tmp_path, "f", ("a", "b")) == tmp_path / name
