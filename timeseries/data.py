"""Windows of time series for training and evaluation, in memory, normalised by what training observed.

A window is W rows of a series; where the series ends sooner, the rows after its end are padding (`present` False).
Windows never cross the border between two series or two splits. Those without any observed cell teach and count
nothing and are left out (`Windows.dropped`). Stamps count from a window's first row, so that a network cannot know
where in history it is.

For evaluation some observed cells are held out: `held_out` draws them by a seed, window by window.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import final, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.downloads import data_folder
from ..core.errors import ArgumentError, DataError
from ..core.wording import counted
from .checks import TABLES
from .frames import read_file
from .scaling import Level, constants, fit_scale
from .series import Series, Source, Split, by_share
from .sources import NAMES

__all__ = ["NAMES", "WINDOW", "Windows", "held_out", "load", "own", "spaced"]

SPLITS: tuple[Split, ...] = get_args(Split)
WINDOW = 48
"""Rows of a window of the user's own series, unless asked otherwise."""

Held = Callable[[float, int], np.ndarray]


def held_out(observed: np.ndarray | Tensor, rate: float, seed: int) -> np.ndarray:
    """Cells to hide and to be judged by: of each window round(rate * observed cells) of them, uniformly.

    The cells of window i depend on (seed, i) and its mask alone, and those of a lower rate are among those of a higher.

    Args:
        observed: bool (N, L, K), or (L, K) for one window; the result is like it, and within it.
        rate: in [0, 1].
        seed: a nonnegative integer.
    """
    if isinstance(rate, bool) or not 0 <= rate <= 1:
        raise ArgumentError("rate", rate, "a share from 0 to 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentError("seed", seed, "a nonnegative integer")
    seen = np.asarray(observed)
    if seen.ndim not in (2, 3) or seen.dtype != bool:
        raise ArgumentError("observed", observed, "bool (N, L, K) or (L, K)")
    held = np.zeros(seen.shape, dtype=bool)
    count = len(seen) if seen.ndim == 3 else 1
    for i, (own, mask) in enumerate(zip(held.reshape(count, -1), seen.reshape(count, -1), strict=True)):
        places = np.random.default_rng([seed, i]).permutation(np.flatnonzero(mask))
        own[places[: round(rate * len(places))]] = True
    return held


def spaced(total: int, count: int) -> list[int]:
    """`count` numbers below `total` at even distances, from the first to the last; all where there are fewer."""
    count = min(count, total)
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


@final
class Windows(Dataset[dict[str, Tensor]]):
    """Windows of W rows of one or several series of the same K features.

    Args:
        series: at least one; each is cut on its own.
        window: W, rows.
        stride: rows from one window to the next, 1 … W; W by default. With a smaller stride one more window reaches the
            end of each series; with W the rows left over (`remainder`) are in no window.
        level: of the normalisation, see `scaling`; only stored, where `scaling` is given.
        scaling: centre and scale, float64 (K,); None: fitted on these series, cut in windows side by side.
        name: in messages.
        season: rows of a season, for baselines; 0 = none.
        held: published cells to hold out, `held(rate, seed)` -> (N, W, K); None: `held_out`.

    Attributes:
        features: names, K.
        centre, scale: float64 (K,).
        spread: the scale for a model, float64 (K,): 0 for features of which these series have one value alone.
        step: seconds between rows, 0 for plain rows.
        dropped: windows without any observed cell, left out.
        remainder: rows at the ends of series that no window holds.
        ragged: whether some windows have padding.

    Raises:
        ArgumentError: window, stride, or a feature that was never observed where the scaling is to be fitted.
        DataError: no series, different features, or nothing observed.
    """

    def __init__(
        self,
        series: Sequence[Series],
        window: int,
        *,
        stride: int | None = None,
        level: Level = "series",
        scaling: tuple[np.ndarray, np.ndarray] | None = None,
        name: str = "series",
        season: int = 0,
        held: Held | None = None,
    ):
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ArgumentError("window", window, "a positive number of rows")
        stride = window if stride is None else stride
        if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= window:
            raise ArgumentError("stride", stride, f"rows from 1 to the window, {window}")
        if not series or not any(len(one) for one in series):
            raise DataError(f"{name}: no rows")
        if odd := next((one for one in series if one.names != series[0].names), None):
            raise DataError(f"{name}: {odd.label} has columns {odd.names}, {series[0].label} has {series[0].names}")
        series = [one.paced(series[0].step) for one in series]
        self.name, self.window, self.stride, self.level, self.season = name, window, stride, level, season
        self.features, self.step = series[0].names, series[0].step
        if scaling is None:
            scaling = fit_scale(_side_by_side(series, window), level, self.features)
        self.centre, self.scale = (np.asarray(each, dtype=np.float64) for each in scaling)
        values = np.concatenate([one.values for one in series])
        self.spread = np.where(constants([values]), 0.0, self.scale)
        seen = ~np.isnan(values)
        values = np.where(seen, (values - self.centre) / self.scale, 0)
        self._values = torch.from_numpy(values.astype(np.float32))
        self._seen = torch.from_numpy(seen)
        self._stamps = torch.from_numpy(np.concatenate([one.stamps for one in series]).astype(np.float64))
        starts, lengths, self.remainder = _places([len(one) for one in series], window, stride)
        known = np.concatenate([[0], np.cumsum(seen.sum(1))])
        some = known[starts + lengths] > known[starts]
        self.dropped = int((~some).sum())
        if not some.any():
            raise DataError(f"{name}: no observed value in any of {len(starts)} windows of {window} rows")
        if held is not None and self.dropped:
            raise ArgumentError(
                "held", f"{self.dropped} windows without an observed cell", "none, where cells are given"
            )
        self._starts, self._lengths = torch.from_numpy(starts[some]), torch.from_numpy(lengths[some])
        self.ragged, self._held = bool((self._lengths < window).any()), held

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Many windows at once.

        Returns:
            "values": float32 (B, W, K), normalised, 0 where missing; "seen": bool (B, W, K), the observed cells;
            "stamps": float32 (B, W), from the window's first row; "present": bool (B, W), only where `ragged`.

        Raises:
            IndexError: there is no such window; negative ones count from the end.
        """
        places = torch.as_tensor(indices, dtype=torch.int64)
        if places.numel() and not -len(self) <= int(places.min()) <= int(places.max()) < len(self):
            raise IndexError(f"{self.name}: {len(self)} windows, asked for {int(places.min())} … {int(places.max())}")
        places = places.remainder(len(self))
        start, length = self._starts[places, None], self._lengths[places, None]
        offset = torch.arange(self.window)
        rows = start + torch.minimum(offset, length - 1)
        inside = (offset < length).unsqueeze(2)
        made = {
            "values": torch.where(inside, self._values[rows], 0),
            "seen": self._seen[rows] & inside,
            "stamps": (self._stamps[rows] - self._stamps[start]).float(),
        }
        return made | {"present": inside.squeeze(2)} if self.ragged else made

    def some(self, count: int) -> dict[str, Tensor]:
        """So many windows at even distances, or all, as a batch."""
        return self.batch(spaced(len(self), count))

    def held(self, rate: float, seed: int) -> Tensor:
        """Observed cells to hold out at a missing rate, bool (N, W, K); as published where the set has such masks."""
        if self._held is not None:
            return torch.from_numpy(self._held(rate, seed))
        return torch.from_numpy(held_out(self.batch(torch.arange(len(self)))["seen"], rate, seed))

    def fingerprint(self) -> str:
        """SHA-256 over values, stamps, windows and normalisation: equal sets have equal fingerprints."""
        digest = hashlib.sha256(f"{self.features} {self.window} {self.level} {self.step}".encode())
        for part in (self._values, self._seen, self._stamps, self._starts, self._lengths):
            digest.update(part.contiguous().numpy().data)
        digest.update(self.centre.tobytes() + self.scale.tobytes())
        return digest.hexdigest()


def _side_by_side(series: Sequence[Series], window: int) -> list[np.ndarray]:
    """Every row once, in windows from the start of each series; the last may be short."""
    return [one.values[start : start + window] for one in series for start in range(0, len(one), window)]


def _places(lengths: Sequence[int], window: int, stride: int) -> tuple[np.ndarray, np.ndarray, int]:
    """First row of each window among all rows, how many rows it has, and how many rows are in none."""
    starts, sizes, remainder, begin = [], [], 0, 0
    for length in lengths:
        own = list(range(0, length - window + 1, stride)) if length >= window else [0] * (length > 0)
        if own and length > window and stride < window and own[-1] + window < length:
            own.append(length - window)
        if own:
            remainder += max(0, length - own[-1] - window)
        starts += [begin + start for start in own]
        sizes += [min(window, length)] * len(own)
        begin += length
    return np.array(starts, dtype=np.int64), np.array(sizes, dtype=np.int64), remainder


def load(
    source: str | os.PathLike[str],
    split: Split = "train",
    *,
    window: int | None = None,
    stride: int | None = None,
    level: Level | None = None,
    data_root: str | os.PathLike[str] | None = None,
    carry: Sequence[str] = (),
    day_first: bool | None = None,
) -> Windows:
    """A data set by name (`NAMES`), or the user's own files; the normalisation is that of its training part.

    Args:
        source: a name, see `sources`; a CSV or parquet file, or a folder of them with the same columns, one series a
            file: the first 70 % of the rows of each are trained on, 15 % validate, the last 15 % test.
        split: "train", "valid" or "test".
        window: rows; default: that of the set, 48 for own files.
        stride: default: 1 to train on, the window (nothing counted twice) otherwise.
        level: of the normalisation, see `scaling`; default: that of the set.
        data_root: where the named sets lie or are downloaded to; default: environment variable POLYDIFF_DATA, else
            `~/.cache/polydiff`. Files already there are only read.
        carry: columns of files that are no features.
        day_first: see `frames.read`; of own files.

    Raises:
        DataError: names the file, set or column at fault, and the way out. ArgumentError: what cannot be used.
    """
    if split not in SPLITS:
        raise ArgumentError("split", split, "'train', 'valid' or 'test'")
    named = NAMES.get(os.fspath(source))
    if named is not None and carry:
        raise ArgumentError("carry", list(carry), f"nothing: {source} has features alone")
    path = Path(source).expanduser()
    found = own(path, carry=carry, day_first=day_first) if named is None else named(data_folder(data_root))
    window, level = found.window if window is None else window, found.level if level is None else level
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ArgumentError("window", window, "a positive number of rows")
    scaling = found.scaling
    if scaling is None:
        try:
            scaling = fit_scale(_side_by_side(found.parts["train"], window), level, found.features)
        except ArgumentError as error:
            if error.argument != "windows":
                raise
            raise DataError(f"{found.name} (train): {error.got}, expected {error.expected}") from error
    return Windows(
        found.parts[split],
        window,
        stride=(1 if split == "train" else window) if stride is None else stride,
        level=level,
        scaling=scaling,
        name=f"{found.name} ({split})",
        season=found.season,
        held=None if found.held is None or window != found.window else partial(found.held, split),
    )


def own(path: Path, *, carry: Sequence[str] = (), day_first: bool | None = None) -> Source:
    """The user's own file, or the files of a folder in the order of their names, each split by time 70 / 15 / 15 %.

    Raises: DataError, naming the file, and the column and row at fault.
    """
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(TABLES)]
        if not files:
            raise DataError(f"{path}: no files {', '.join(TABLES)}")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: neither a data set ({', '.join(NAMES)}) nor a file or folder of {', '.join(TABLES)}")
    series = [one for file in files for one in read_file(file, keep=carry, day_first=day_first).series]
    if odd := next((one for one in series if one.names != series[0].names), None):
        raise DataError(f"{path}: {odd.label} has columns {odd.names}, {series[0].label} has {series[0].names}")
    cuts = [by_share(one, train=0.7, valid=0.15) for one in series]
    parts: dict[Split, tuple[Series, ...]]
    parts = {split: tuple(part for cut in cuts for part in cut[split] if len(part)) for split in SPLITS}
    if not parts["train"]:
        raise DataError(f"{path}: {counted(max(map(len, series)), 'row')}, too few to train on")
    return Source(path.name, series[0].names, parts, window=WINDOW)
