r"""Series longer than a window: sample paths that are coherent from end to end.

Imputation takes two passes, each of which fills all its windows at once. With W the window, q = W // 4 and n windows in
the first pass,

    pass 1    [----W----]       [----W----]       [----W----]          apart by W - 2 q rows at most
    pass 2  [..q|  |q..]  [..q|      |q..]    [..q|      |q..]  …      the stretches between them and at both ends

a window of the second pass lies around its stretch and sees, besides what was observed, what the first pass drew for
*the same sample* on both sides, at least q rows of it. So every row is drawn once, no window waits for more than one
other, and a path goes through its seams without a break.

A forecast goes block by block: each window ends in W // 2 new rows at most, and begins with what was observed or drawn
before, the path's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.errors import check_counts
from .filling import Window

__all__ = ["Paths", "Stretch", "ahead", "interleaved", "run"]

Stretch = tuple[int, int]
"""(start, stop) of a window's rows."""


def interleaved(length: int, window: int) -> list[list[Stretch]]:
    """The windows of every pass over a series: one window where it fits, else two passes (see the module).

    Windows of a pass draw disjoint rows, and all rows are covered. Those of the second pass overlap only rows of the
    first, never one another's stretches.
    """
    check_counts(length=length, window=window)
    if length <= window:
        return [[(0, length)]]
    widest = window - 2 * (window // 4)
    count = -(-(length - widest) // (window + widest))
    free = length - count * window
    # Where the stretches between the windows end, rounded so that none is longer than `widest`.
    ends = [free * (i + 1) // (count + 1) for i in range(count + 1)]
    first = [(end + i * window, end + (i + 1) * window) for i, end in enumerate(ends[:-1])]
    second: list[Stretch] = []
    for i, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if end > begin:
            start = begin + i * window - (window - (end - begin)) // 2
            start = max(0, min(start, length - window))
            second.append((start, start + window))
    return [first, second] if second else [first]


def ahead(length: int, horizon: int, window: int) -> list[list[Stretch]]:
    """The windows of a forecast of `horizon` rows that follow `length` known ones, one in each pass."""
    check_counts(length=length, horizon=horizon, window=window)
    total, block = length + horizon, max(1, window // 2)
    ends = [*range(length + block, total, block), total]
    return [[(max(0, end - window), end)] for end in ends]


@dataclass
class Paths:
    """A series on its way to being filled."""

    values: Tensor
    """(T, K) float64, NaN where missing: what is known of it."""
    stamps: Tensor
    """(T,) float64, in steps."""
    number: int
    """Of the series in the call."""
    passes: list[list[Stretch]]
    """Windows by pass."""
    drawn: Tensor = field(init=False)
    """(S, T, K), or (1, T, K) as long as the samples do not differ."""

    def __post_init__(self):
        self.drawn = self.values.unsqueeze(0)

    def windows(self, number: int, samples: range) -> list[list[Window]]:
        """The windows of a pass; one for all samples where they see the same, else one for each of them."""
        found: list[list[Window]] = []
        if number >= len(self.passes):
            return found
        place = sum(map(len, self.passes[:number]))
        for i, (start, stop) in enumerate(self.passes[number]):
            stamps, key = self.stamps[start:stop], (self.number, place + i)
            rows = self.drawn[:, start:stop]
            if torch.equal(rows[0].isnan(), self.values[start:stop].isnan()):
                found.append([Window(rows[0], stamps, key, samples)])
            else:
                found.append([Window(own, stamps, key, range(s, s + 1)) for s, own in zip(samples, rows, strict=True)])
        return found

    def put(self, number: int, samples: Sequence[Tensor]) -> None:
        """Write the samples (S, L, K) of the windows of a pass."""
        for (start, stop), new in zip(self.passes[number], samples, strict=True):
            if len(self.drawn) == 1 and len(new) > 1:
                self.drawn = self.drawn.repeat(len(new), 1, 1)
            elif self.drawn is not self.values and self.drawn.data_ptr() == self.values.data_ptr():
                self.drawn = self.drawn.clone()
            self.drawn[:, start:stop] = new


def run(fill: Callable[[Sequence[Window]], list[Tensor]], series: Sequence[Paths], samples: range) -> list[Tensor]:
    """Samples (S, T, K) of each series: the passes in turn, windows of all series together in each.

    Args:
        fill: windows -> samples (S, L, K) of each, S the number of its samples.
        series: to be filled.
        samples: numbers of the samples.
    """
    for number in range(max(len(one.passes) for one in series)):
        jobs = [one.windows(number, samples) for one in series]
        found = iter(fill([window for one in jobs for each in one for window in each]))
        for one, windows in zip(series, jobs, strict=True):
            if windows:
                one.put(number, [torch.cat([next(found) for _ in each]) for each in windows])
    return [one.drawn.expand(len(samples), -1, -1) for one in series]
