"""Pictures of series: what was observed, what was drawn and how sure it is; and whether that was right.

Figures are made without pyplot and its global state, so they need no screen and nobody has to close them. `Report`
takes them as they are; `png` makes bytes of them for files.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.errors import ArgumentError

if TYPE_CHECKING:  # it takes a second to load, which only pictures are to pay for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration", "png", "series"]

BLUE, BLACK, ORANGE = "#2f6fb5", "#222222", "#d9662b"
MOST = 24
"""Features in one picture by default."""


def series(
    stamps: ArrayLike,
    observed: ArrayLike,
    quantiles: ArrayLike | None = None,
    levels: Sequence[float] = (),
    *,
    held_out: ArrayLike | None = None,
    paths: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
    most: int = MOST,
) -> Figure:
    """Observed points, the median and bands of the drawn, for each feature in a panel of its own.

    Levels that lie opposite, such as 0.05 and 0.95, make a band, wider ones in lighter colour; the level 0.5 a line.

    Args:
        stamps: (L,), numbers or dates.
        observed: (L, K) or (L,), NaN where nothing was given.
        quantiles: (Q, L, K) or (Q, L), of every cell; at given cells usually the observed value. NaN leaves a gap.
        levels: their Q levels, in any order.
        held_out: as `observed`: the truth at cells that were not given; NaN elsewhere.
        paths: (S, L, K) or (S, L), single samples, drawn thin.
        names: of the K features.
        title: above all.
        most: panels at most; the first ones are shown, and the title says of how many.

    Raises:
        ArgumentError: shapes that do not fit, or levels outside 0 to 1 or without their opposite.
    """
    times = np.asarray(stamps)
    values = _cells("observed", observed, 0, None)
    length, count = values.shape
    if times.shape != (length,):
        raise ArgumentError("stamps", times, f"shape ({length},), one for each row")
    found = None if quantiles is None else _cells("quantiles", quantiles, 1, values.shape)
    pairs = _pairs(levels, 0 if found is None else len(found))
    truth = None if held_out is None else _cells("held_out", held_out, 0, values.shape)
    lines = None if paths is None else _cells("paths", paths, 1, values.shape)
    if names is not None and len(names) != count:
        raise ArgumentError("names", len(names), f"{count} names, one for each feature")
    if most < 1:
        raise ArgumentError("most", most, "a number of panels from 1")
    shown = min(count, most)
    across = 1 if shown == 1 else 2 if shown <= 8 else 3
    down = math.ceil(shown / across)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 if down == 1 else 0.6 + 1.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for k, axes in enumerate(panels[:shown]):
        if lines is not None:
            axes.plot(times, lines[:, :, k].T, color=BLUE, linewidth=0.5, alpha=0.4)
        if found is not None:
            _bands(axes, times, found[:, :, k], levels, pairs)
        if truth is not None:
            axes.plot(times, truth[:, k], "o", color=ORANGE, markersize=3, markerfacecolor="none", label="held out")
        axes.plot(times, values[:, k], "o", color=BLACK, markersize=2.5, label="observed")
        if names is not None:
            axes.set_title(names[k], fontsize="medium")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize="small")
    for axes in panels[shown:]:
        axes.set_visible(False)
    for axes in panels[shown - across : shown]:  # the lowest panel of each column says the time
        axes.tick_params(labelbottom=True)
    if np.issubdtype(times.dtype, np.datetime64):
        for axes in panels[:shown]:
            axes.tick_params(axis="x", rotation=30)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small", frameon=False)
    caption = title if shown == count else f"{title} ({shown} of {count} features)".strip()
    if caption:
        figure.suptitle(caption)
    return figure


def calibration(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Whether uncertainty is right: shares below quantiles, coverage of intervals, and the PIT histogram.

    Dashed lines are what a perfect forecaster reaches with as many samples; below 1 in the histogram's middle and
    above at its ends means intervals that are too narrow.

    Args:
        found: name -> figures of `metrics.figures`, one or several.

    Raises:
        ArgumentError: nothing to draw, or figures without counted cells.
    """
    if not found:
        raise ArgumentError("found", found, "figures under a name")
    for name, one in found.items():
        if not one["cells"]:
            raise ArgumentError(f"found[{name!r}]", one["cells"], "figures of one cell or more")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for i, (name, one) in enumerate(found.items()):
        colour = f"C{i}"
        for axes, rows, share in ((left, one["quantiles"], "share"), (middle, one["intervals"], "coverage")):
            levels = [row["level"] for row in rows]
            axes.plot(levels, [row["expected"] for row in rows], "--", color=colour, linewidth=1)
            axes.plot(levels, [row[share] for row in rows], "o-", color=colour, markersize=3, label=name)
        bins = len(one["PIT"])
        right.stairs([share * bins for share in one["PIT"]], np.linspace(0, 1, bins + 1), color=colour)
    right.axhline(1, color="grey", linestyle="--", linewidth=1)
    left.set(xlabel="level of the quantile", ylabel="share of truths below", xlim=(0, 1), ylim=(0, 1))
    middle.set(xlabel="level of the interval", ylabel="coverage", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    right.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    return figure


def png(figure: Figure, *, resolution: int = 150) -> bytes:
    """The picture as a PNG file, the same bytes for the same picture.

    Args:
        figure: any.
        resolution: dots per inch.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=resolution, metadata={"Software": None})
    return content.getvalue()


def _bands(
    axes: Axes, times: NDArray[Any], found: NDArray[np.float64], levels: Sequence[float], pairs: list[tuple[int, int]]
) -> None:
    for low, high in pairs:
        if low == high:
            axes.plot(times, found[low], color=BLUE, linewidth=1.2, label="median")
        else:
            label = f"{100 * (levels[high] - levels[low]):g} %"
            shade = 0.15 + 0.3 * (1 - (levels[high] - levels[low]))
            axes.fill_between(times, found[low], found[high], color=BLUE, alpha=shade, linewidth=0, label=label)


def _pairs(levels: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Places of opposite levels, the widest first; that of the median is its own."""
    if len(levels) != count:
        raise ArgumentError("levels", list(levels), f"{count} levels, one for each quantile")
    if not all(0 <= level <= 1 for level in levels):
        raise ArgumentError("levels", list(levels), "levels from 0 to 1")
    order = sorted(range(count), key=lambda i: levels[i])
    pairs = [(order[i], order[-1 - i]) for i in range((count + 1) // 2)]
    for low, high in pairs:
        if abs(levels[low] + levels[high] - 1) > 1e-6:
            raise ArgumentError("levels", list(levels), "levels in opposite pairs, such as 0.05 and 0.95, and 0.5")
    return pairs


def _cells(name: str, values: ArrayLike, leading: int, shape: tuple[int, ...] | None) -> NDArray[np.float64]:
    """Values with one more axis if there is no axis of features, checked."""
    cells = np.asarray(values, dtype=np.float64)
    if cells.ndim == leading + 1:
        cells = cells[..., None]
    expected = "(L, K) or (L,), none 0" if shape is None else f"{('…',) * leading + shape}, as observed"
    if cells.ndim != leading + 2 or (0 in cells.shape if shape is None else cells.shape[leading:] != shape):
        raise ArgumentError(name, cells, f"shape {expected}")
    return cells
