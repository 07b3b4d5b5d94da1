"""Beijing Multi-Site Air Quality (Zhang, Guo, Dong, He, Xu, Chen 2017, Proc. R. Soc. A 473; UCI 501): 12 stations.

Every hour from March 2013 to February 2017: six pollutants, temperature, pressure, dew point, rain and speed of the
wind; its direction, which is no number, is left out. About 1.6 % of the cells are missing, in stretches.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..core.errors import DataError
from .series import Split
from .sources_files import cached, fetch, find, fingerprint, members

__all__ = ["POLLUTANTS", "borders", "stations"]

URL = "https://archive.ics.uci.edu/static/public/501/beijing+multi+site+air+quality+data.zip"
FILES = (
    "beijing+multi+site+air+quality+data.zip",
    "PRSA2017_Data_20130301-20170228.zip",
    "PRSA_Data_20130301-20170228.zip",
    "PRSA_Data_20130301-20170228.tar.xz",
    "PRSA_Data_20130301-20170228",
)
"""UCI's archive, the one in it, and what people make of it."""

POLLUTANTS = ("PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
STATIONS, ROWS = 12, 35_064
TRAIN, VALID = 28, 10
"""Months, as in BenchPOTS (Du et al. 2024, arXiv:2406.12747); the rest, 10 months, is for tests."""


def stations(root: Path) -> dict[str, np.ndarray]:
    """Station -> (35,064, 11) float64, NaN = missing, in the order of their names; found, or downloaded from UCI.

    No checksum is published: that there are 12 stations with these columns and all hours of the four years is verified.
    """
    folder = "beijing_air_quality"
    path = find(root, folder, FILES)
    if path is None:
        path = fetch("beijing", URL, root / folder / FILES[0], parse)
    have = cached(f"beijing-1-{fingerprint(path)[:16]}", lambda: parse(path))
    return {name: have[name] for name in sorted(have)}


def borders() -> dict[Split, tuple[int, int]]:
    """First row of each split and the row after its last."""
    month = pd.date_range("2013-03-01", periods=ROWS, freq="h").to_period("M").asi8
    first, second = np.searchsorted(month - month[0], [TRAIN, TRAIN + VALID]).tolist()
    return {"train": (0, first), "valid": (first, second), "test": (second, ROWS)}


def parse(path: Path) -> dict[str, np.ndarray]:
    """The tables of the stations in an archive or folder.

    Raises:
        DataError: naming the archive, and the table that is not whole.
    """
    found: dict[str, np.ndarray] = {}
    hours = pd.date_range("2013-03-01", periods=ROWS, freq="h")
    for name, data in members(path, ".csv"):
        if not (match := re.fullmatch(r"PRSA_Data_(\w+)_20130301-20170228\.csv", name)):
            continue
        try:
            # One cell is a blank where the others have NA.
            table = pd.read_csv(io.BytesIO(data), na_values=[" "])
            values = table[list(POLLUTANTS)].to_numpy(np.float64)
            when = pd.to_datetime(table[["year", "month", "day", "hour"]])
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}: {name} is not a table of a station of UCI 501 ({error})") from error
        if len(values) != ROWS or (when.to_numpy() != hours.to_numpy()).any():
            raise DataError(f"{path}: {name} has {len(values)} rows, expected each hour of four years, {ROWS}")
        found[match[1]] = values
    if len(found) != STATIONS:
        raise DataError(f"{path}: {len(found)} stations, expected {STATIONS} files PRSA_Data_*_20130301-20170228.csv")
    return found
