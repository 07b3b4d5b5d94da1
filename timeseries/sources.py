"""Named sets of time series, and how each is split; `frames` has the user's own files.

Nothing is downloaded for these, which come with statsmodels; train, valid and test are the first 60 %, the next 20 %
and the last 20 % of the rows:

`co2`         weekly CO2 over Mauna Loa 1958-2001 (Keeling and Whorf 2004), 2,284 weeks, 59 of them missing.
`elnino`      monthly sea surface temperature 1950-2010 (NOAA), 732 months.
`sunspots`    yearly sunspots 1700-2008 (NOAA), 309 years.
`macrodata`   12 quarterly figures of the economy of the United States 1959-2009 (Federal Reserve, BLS), 203 quarters.

Official sources, downloaded unless they are found under the data root:

`physionet2012`       stays in intensive care, 48 hours by 35 values, 80 % missing; each stay is a window. Split as in
                      CSDI (seed 1, fold 0), see `sources_physionet`; normalised by the training stays.
`physionet2012-csdi`  the same stays with the paper's normalisation, which leaks, and the paper's held-out cells.
`beijing`             12 stations of air quality by the hour, 11 values each, March 2013 - February 2017 (Zhang et al.
                      2017, Proc. R. Soc. A 473; UCI 501); the split by time of BenchPOTS (Du et al. 2024,
                      arXiv:2406.12747): the first 28 months, the next 10, the last 10. Each station is a series.
`beijing-joint`       the same as one series of 132 values, as in BenchPOTS.
`etth1`, `etth2`      load and oil temperature of two transformers by the hour (Zhou et al. 2021, Informer,
                      arXiv:2012.07436); its published split: 12, 4 and 4 months of 30 days; the rest is left out.
`electricity`         321 consumers by the hour, 2012-2014; `solar`: 137 plants of Alabama every 10 minutes, 2006;
`exchange`            rates of 8 currencies by the day, 1990-2016: the files and the split (60, 20 and 20 %) of Lai et
                      al. 2018, LSTNet, arXiv:1703.07015. (GluonTS has other versions of the three.)

Files are verified by a published checksum (PhysioNet), by that of the source repository's file (ETT, and, as git's own,
electricity, solar, exchange), or, where none is published (Beijing), by stations, rows and columns.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.downloads import download
from ..core.errors import DataError
from .scaling import Level
from .series import Series, Source, Split, by_share
from .sources_beijing import POLLUTANTS, borders, stations
from .sources_files import blob_id, cached, fetch, find, fingerprint
from .sources_physionet import ATTRIBUTES, HOURS, csdi_folds, csdi_held, stays

__all__ = ["NAMES", "Source", "Split"]

HOUR, DAY = 3600.0, 86400.0

ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f/ETT-small/"
ETT_FILES = {
    "ETTh1": ("f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066", 2_589_657),
    "ETTh2": ("a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b", 2_417_960),
}
ETT_ROWS = 17_420
ETT_MONTH = 30 * 24

LSTNET = "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/7f402f185cc2435b5e66aed13a3b560ed142e023/"


def _regular(values: np.ndarray, names: tuple[str, ...], step: float, label: str) -> Series:
    return Series(values, np.arange(len(values), dtype=np.float64), names, step, label)


def _table(module: Any) -> pd.DataFrame:
    """The table of a data set of statsmodels."""
    return module.load_pandas().data


def co2(root: Path) -> Source:
    """Weekly averages with the gaps they have."""
    from statsmodels.datasets import co2 as data

    table = _table(data)
    series = _regular(table[["co2"]].to_numpy(np.float64), ("co2",), 7 * DAY, "co2")
    return Source("co2", series.names, by_share(series), window=104, level="window", season=52)


def elnino(root: Path) -> Source:
    from statsmodels.datasets import elnino as data

    table = _table(data).drop(columns="YEAR")
    series = _regular(table.to_numpy(np.float64).reshape(-1, 1), ("temperature",), 365.25 / 12 * DAY, "elnino")
    return Source("elnino", series.names, by_share(series), window=36, season=12)


def sunspots(root: Path) -> Source:
    from statsmodels.datasets import sunspots as data

    table = _table(data)
    values = table[["SUNACTIVITY"]].to_numpy(np.float64)
    series = _regular(values, ("sunspots",), 365.25 * DAY, "sunspots")
    return Source("sunspots", series.names, by_share(series), window=22, season=11)


def macrodata(root: Path) -> Source:
    from statsmodels.datasets import macrodata as data

    table = _table(data).drop(columns=["year", "quarter"])
    series = _regular(table.to_numpy(np.float64), tuple(table.columns), 365.25 / 4 * DAY, "macrodata")
    return Source("macrodata", series.names, by_share(series), window=20, level="window", season=4)


def physionet2012(root: Path, *, paper: bool = False) -> Source:
    """Every stay a series of 48 hours, of the folds of seed 1.

    Args:
        root: data root.
        paper: with the normalisation and the held-out cells of the paper's code; else by the training stays.
    """
    values = stays(root)
    folds = csdi_folds(len(values), seed=1, fold=0)
    stamps = np.arange(HOURS, dtype=np.float64)
    parts: dict[Split, tuple[Series, ...]] = {
        split: tuple(Series(values[i], stamps, ATTRIBUTES, HOUR, f"stay {i}") for i in index.tolist())
        for split, index in folds.items()
    }
    if not paper:
        return Source("physionet2012", ATTRIBUTES, parts, window=HOURS)
    own = [column[~np.isnan(column)] for column in values.reshape(-1, values.shape[-1]).T]
    scaling = np.array([column.mean() for column in own]), np.array([column.std() for column in own])
    seen = ~np.isnan(values)
    return Source(
        "physionet2012-csdi",
        ATTRIBUTES,
        parts,
        window=HOURS,
        scaling=scaling,
        held=lambda split, rate, seed: csdi_held(seen, rate, seed)[folds[split]],
    )


def beijing(root: Path, *, joint: bool = False) -> Source:
    """Stations in the order of their names.

    Args:
        root: data root.
        joint: one series of all stations, features named `station_value`; else one series each.
    """
    have = stations(root)
    if joint:
        columns = tuple(f"{label}_{name}" for label in have for name in POLLUTANTS)
        whole = [_regular(np.concatenate(list(have.values()), 1), columns, HOUR, "beijing-joint")]
    else:
        whole = [_regular(values, POLLUTANTS, HOUR, label) for label, values in have.items()]
    parts: dict[Split, tuple[Series, ...]] = {
        split: tuple(one.cut(*border) for one in whole) for split, border in borders().items()
    }
    return Source("beijing-joint" if joint else "beijing", whole[0].names, parts, window=48, season=24)


def ett(root: Path, *, name: str) -> Source:
    """A transformer by the hour.

    Args:
        root: data root.
        name: ETTh1 or ETTh2.
    """
    path = find(root, "ett", (f"{name}.csv.gz", f"{name}.csv"))
    if path is None:
        checksum, size = ETT_FILES[name]
        path = download(name.lower(), f"{ETT}{name}.csv", root / "ett" / f"{name}.csv", checksum, size=size)
    table = pd.read_csv(io.BytesIO(_unpacked(path)))
    if list(table.columns[:1]) != ["date"] or table.shape != (ETT_ROWS, 8):
        raise DataError(f"{path}: {table.shape[0]} rows, columns {list(table.columns)}; {name} has {ETT_ROWS} and 8")
    columns = tuple(map(str, table.columns[1:]))
    series = _regular(table[list(columns)].to_numpy(np.float64), columns, HOUR, name.lower())
    first, second, third = 12 * ETT_MONTH, 16 * ETT_MONTH, 20 * ETT_MONTH
    parts: dict[Split, tuple[Series, ...]] = {
        "train": (series.cut(0, first),), "valid": (series.cut(first, second),), "test": (series.cut(second, third),)
    }  # fmt: skip
    return Source(name.lower(), columns, parts, window=96, season=24)


@dataclass(frozen=True)
class _Table:
    """A file of the repository of LSTNet: comma-separated numbers, no heading, no gaps."""

    file: str
    blob: str
    rows: int
    columns: int
    step: float
    window: int
    season: int
    level: Level = "series"


TABLES = {
    "electricity": _Table(
        "electricity/electricity.txt.gz", "df158a9fff65428ece107200432a72c992d5e4e9", 26_304, 321, HOUR, 168, 24
    ),
    "solar": _Table(
        "solar-energy/solar_AL.txt.gz", "08a1f235546b3708309ff4fb544a54bb82e4f5e7", 52_560, 137, 600.0, 144, 144
    ),
    "exchange": _Table(
        "exchange_rate/exchange_rate.txt.gz", "d72d0d7a5d5d06ecd1cf4c79396180b2962be101", 7_588, 8, DAY, 60, 0, "window"
    ),
}  # fmt: skip


def lstnet(root: Path, *, name: str) -> Source:
    """One of the tables of LSTNet.

    Args:
        root: data root.
        name: of the set, a key of TABLES.
    """
    about = TABLES[name]
    folder, _, file = about.file.rpartition("/")
    path = find(root, folder, (file, file.removesuffix(".gz")))
    if path is None:

        def check(part: Path) -> None:
            if (got := blob_id(part)) != about.blob:
                raise DataError(f"git id {got}, expected {about.blob}")

        path = fetch(name, LSTNET + about.file, root / folder / file, check)

    def parse() -> dict[str, np.ndarray]:
        try:
            table = pd.read_csv(io.BytesIO(_unpacked(path)), header=None)
            values = table.to_numpy(np.float64)
        except ValueError as error:
            raise DataError(f"{path}: cannot be read as a table of numbers ({error})") from error
        if values.shape != (about.rows, about.columns):
            raise DataError(f"{path}: {values.shape}, {name} has {about.rows} rows of {about.columns} numbers")
        return {"values": values}

    values = cached(f"{name}-1-{fingerprint(path)[:16]}", parse)["values"]
    columns = tuple(f"{name} {k}" for k in range(about.columns))
    series = _regular(values, columns, about.step, name)
    return Source(name, columns, by_share(series), window=about.window, level=about.level, season=about.season)


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked if its name says that it is packed."""
    try:
        data = path.read_bytes()
        return (
            gzip.decompress(data) if path.suffix == ".gz" else lzma.decompress(data) if path.suffix == ".xz" else data
        )
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to have it fetched again") from error


NAMES: Mapping[str, Callable[[Path], Source]] = {
    "co2": co2,
    "elnino": elnino,
    "sunspots": sunspots,
    "macrodata": macrodata,
    "physionet2012": physionet2012,
    "physionet2012-csdi": partial(physionet2012, paper=True),
    "beijing": beijing,
    "beijing-joint": partial(beijing, joint=True),
    "etth1": partial(ett, name="ETTh1"),
    "etth2": partial(ett, name="ETTh2"),
    "electricity": partial(lstnet, name="electricity"),
    "solar": partial(lstnet, name="solar"),
    "exchange": partial(lstnet, name="exchange"),
}
"""The edge: names that users type to the functions that find them under a data root."""
