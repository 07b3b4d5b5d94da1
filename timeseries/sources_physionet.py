"""PhysioNet 2012, set A: 4,000 stays of 48 hours in intensive care (Silva et al. 2012, Computing in Cardiology 39).

The grid of Tashiro et al. 2021 ("CSDI", arXiv:2107.03502, appendix E): 48 hours by 35 measured variables; the last
value in an hour counts, whole hours from 0 to 47. Stays without any of these values are left out, as in the paper's
code, which leaves 3,997; about 80 % of the cells are missing.

`csdi_split` is the paper's split to the bit, so that its published weights and figures can be compared with: held-out
cells and folds by numpy's legacy generator. Its normalisation sees the held-out cells and the test stays, which is a
leak: the mean and the standard deviation of every observed cell of all stays. What is reported with it must say so.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..core.downloads import download
from ..core.errors import ArgumentError, DataError
from .series import Split
from .sources_files import cached, find, fingerprint, members

__all__ = ["ATTRIBUTES", "Fold", "csdi_folds", "csdi_held", "csdi_split", "grid", "stays"]

URL = "https://physionet.org/files/challenge-2012/1.0.0/set-a.tar.gz"
SHA256, SIZE = "8cb250f179cd0952b4b9ebcf8954b63d70383131670fac1cfee13deaa13ca920", 6_632_372
RECORDS, ROWS = 4_000, 1_757_980
"""Of the whole set; altered copies with rows deleted are about."""

HOURS = 48
ATTRIBUTES = (
    "DiasABP", "HR", "Na", "Lactate", "NIDiasABP", "PaO2", "WBC", "pH", "Albumin", "ALT", "Glucose", "SaO2", "Temp",
    "AST", "Bilirubin", "HCO3", "BUN", "RespRate", "Mg", "HCT", "SysABP", "FiO2", "K", "GCS", "Cholesterol",
    "NISysABP", "TroponinT", "MAP", "TroponinI", "PaCO2", "Platelets", "Urine", "NIMAP", "Creatinine", "ALP",
)  # fmt: skip
"""The features, in the order of the paper's code."""


@dataclass(frozen=True)
class Fold:
    """One part of the paper's split.

    Attributes:
        values: (N, 48, 35) float64, normalised as in the paper, 0 where missing.
        seen: (N, 48, 35) bool, observed.
        given: (N, 48, 35) bool, observed and not held out.
        stamps: (48,) float64, hours.
        index: (N,) int64, which of the stays that are not empty, in ascending order of their numbers.
        centre, scale: (35,) float64, of the normalisation.
    """

    values: np.ndarray
    seen: np.ndarray
    given: np.ndarray
    stamps: np.ndarray
    index: np.ndarray
    centre: np.ndarray
    scale: np.ndarray


def stays(root: Path) -> np.ndarray:
    """The grid of every stay that is not empty, (N, 48, 35) float64, NaN = missing, ascending by number.

    Found as `set-a.tar.gz` (the official file, whose checksum is verified when it is downloaded), `set-a.tar.xz` or a
    folder `set-a`; the number of stays and rows is verified.

    Raises:
        DataError: it cannot be had, read, or is not whole.
    """
    folder = "physionet2012_set_a"
    path = find(root, folder, ("set-a.tar.gz", "set-a.tar.xz", "set-a"))
    if path is None:
        path = download("physionet2012", URL, root / folder / "set-a.tar.gz", SHA256, size=SIZE)

    def parse() -> dict[str, np.ndarray]:
        values, rows = grid(members(path, ".txt"))
        official = path.is_file() and fingerprint(path) == SHA256
        if not official and (len(values) != RECORDS or rows != ROWS):
            raise DataError(f"{path}: {len(values)} stays, {rows} rows; set A has {RECORDS} and {ROWS}: another copy")
        values = values[~np.isnan(values).all((1, 2))]
        where = np.flatnonzero(~np.isnan(values))
        return {"where": where, "cells": values.reshape(-1)[where], "stays": np.array(len(values))}

    have = cached(f"physionet2012-1-{fingerprint(path)[:16]}", parse)
    values = np.full((int(have["stays"]), HOURS, len(ATTRIBUTES)), np.nan)
    values.reshape(-1)[have["where"]] = have["cells"]
    return values


def grid(files: Iterable[tuple[str, bytes]]) -> tuple[np.ndarray, int]:
    """Records on the hourly grid.

    Args:
        files: (name, bytes) of each record: lines "HH:MM,Parameter,Value" under a heading.

    Returns:
        values (N, 48, 35), NaN = missing, in ascending order of names; and how many rows there were in all.

    Raises:
        DataError: a file that is no record, named.
    """
    bodies, counts = [], []
    for name, data in sorted(files):
        heading, _, body = data.decode("utf-8", "replace").replace("\r\n", "\n").partition("\n")
        if heading.strip() != "Time,Parameter,Value":
            raise DataError(f"{name}: begins with {heading[:40]!r}, expected the heading 'Time,Parameter,Value'")
        body = body.rstrip("\n") + "\n" if body.strip() else ""
        bodies.append(body)
        counts.append(body.count("\n"))
    values = np.full((len(bodies), HOURS, len(ATTRIBUTES)), np.nan)
    if not sum(counts):
        return values, 0
    try:
        table = pd.read_csv(
            io.StringIO("".join(bodies)),
            header=None,
            names=["time", "parameter", "value"],
            dtype={"time": "category", "parameter": "category", "value": "float64"},
            skip_blank_lines=False,
        )
        times = table["time"].cat
        hour = np.array([int(time.partition(":")[0]) for time in times.categories])[times.codes]
    except (ValueError, AttributeError) as error:  # pandas' ParserError is a ValueError
        raise DataError(f"records of PhysioNet 2012: {error}") from error
    names = table["parameter"].cat
    place = {name: k for k, name in enumerate(ATTRIBUTES)}
    feature = np.array([place.get(name, -1) for name in names.categories])[names.codes]
    stay = np.repeat(np.arange(len(bodies)), counts)
    use = (hour < HOURS) & (feature >= 0)
    # Rows come in the order of time, so that the last to be written is the last of the hour; a plain assignment with
    # repeated places does not promise this order, taking the last of each place does.
    flat = (stay[use] * HOURS + hour[use]) * len(ATTRIBUTES) + feature[use]
    cells = table["value"].to_numpy()[use]
    unique, first = np.unique(flat[::-1], return_index=True)
    values.reshape(-1)[unique] = cells[::-1][first]
    return values, len(table)


def csdi_held(seen: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """The cells that the paper's code holds out: floor(rate * observed) of each stay, one stay after another.

    Args:
        seen: (N, L, K) bool, every stay in ascending order; an empty one would draw nothing.
        rate: in [0, 1).
        seed: of numpy's legacy generator, seeded once.

    Returns:
        (N, L, K) bool, within `seen`.
    """
    if not 0 <= rate < 1:
        raise ArgumentError("rate", rate, "a share in [0, 1)")
    generator = np.random.RandomState(seed)
    held = np.zeros(seen.shape, dtype=bool)
    for own, mask in zip(held.reshape(len(held), -1), seen.reshape(len(seen), -1), strict=True):
        places = np.flatnonzero(mask)
        if len(places):
            own[generator.choice(places, int(len(places) * rate), replace=False)] = True
    return held


def csdi_folds(count: int, seed: int, fold: int) -> dict[Split, np.ndarray]:
    """Which stays the paper's code trains, validates and tests on: 70, 10 and 20 % by two shuffles of one seed."""
    if fold not in range(5):
        raise ArgumentError("fold", fold, "0, 1, 2, 3 or 4")
    index = np.arange(count)
    np.random.RandomState(seed).shuffle(index)
    start, end = math.floor(fold * 0.2 * count), math.floor((fold + 1) * 0.2 * count)
    rest = np.delete(index, np.arange(start, end))
    np.random.RandomState(seed).shuffle(rest)
    cut = math.floor(count * 0.7)
    return {"train": rest[:cut], "valid": rest[cut:], "test": index[start:end]}


def csdi_split(root: Path, *, seed: int = 1, fold: int = 0, rate: float = 0.1) -> Mapping[Split, Fold]:
    """PhysioNet 2012 split, masked and normalised as in the paper's code, leak included (see the module).

    Args:
        root: data root, see `core.downloads.data_folder`.
        seed: of masks and shuffles.
        fold: of five.
        rate: share of the observed cells that are held out, in train and valid too.
    """
    values = stays(root)
    seen = ~np.isnan(values)
    given = seen & ~csdi_held(seen, rate, seed)
    cells = values.reshape(-1, values.shape[-1])
    own = [column[~np.isnan(column)] for column in cells.T]
    centre, scale = np.array([column.mean() for column in own]), np.array([column.std() for column in own])
    values = np.where(seen, (values - centre) / scale, 0)
    stamps = np.arange(HOURS, dtype=np.float64)
    parts = csdi_folds(len(values), seed, fold)
    return {
        split: Fold(values[index], seen[index], given[index], stamps, index, centre, scale)
        for split, index in parts.items()
    }
