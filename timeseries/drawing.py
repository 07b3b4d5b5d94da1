"""How gaps are drawn: the options that imputation and forecasting share, and the default solver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor

from ..core import grids
from ..core.dpm_solver_sde import dpm_solver_pp_sde
from ..core.errors import ArgumentError, check_counts
from ..core.sampling import Step
from ..core.schedules import Schedule

__all__ = [
    "DEFAULT_GRID",
    "DEFAULT_SAMPLER",
    "DEFAULT_STEPS",
    "Drawing",
    "Fill",
    "Grid",
    "How",
    "Sampler",
    "even",
    "snapped",
]

Sampler: TypeAlias = Callable[..., Iterator[Step[Tensor]]]
"""`sampler(denoise, kernel, x, times, generator=)`, such as `core.ddim.ddim`."""

Fill: TypeAlias = Callable[..., Iterator[Step[Tensor]]]
"""`fill(denoise, kernel, x, times, known=, mask=, generator=)`, such as `core.inpainting.repaint`."""

Grid: TypeAlias = Callable[[int, Schedule], Tensor]
"""`grid(steps, schedule)` -> times, such as `core.grids.uniform`."""

DEFAULT_STEPS = 10
"""Network calls."""
DEFAULT_SAMPLER: Sampler = dpm_solver_pp_sde
"""Where the model has no solver calibrated for so many calls. Ancestral sampling needs 50 calls for intervals as wide:
with 10 it covers too little."""


def even(steps: int, schedule: Schedule) -> Tensor:
    """Equal intervals of log-SNR, within [-8, 9]: below nothing of the data is seen, above nothing is left to draw."""
    return grids.log_snr(steps, schedule, -8.0, 9.0)


DEFAULT_GRID: Grid = even


CELLS = {"cpu": 1 << 14, "cuda": 1 << 21}
"""Cells in the network at once by default. A cell takes about 4 KB: 64 numbers of 4 bytes in 16 tensors at a time. On a
processor ten windows of 48 x 35 cells take half the time of a hundred at once, whose tensors no cache holds."""


class How(TypedDict, total=False):
    """The keywords of `Drawing`, where functions take them."""

    steps: int
    sampler: Sampler | None
    grid: Grid
    fill: Fill | None
    seed: int
    first: int
    batch_size: int | None
    precision: torch.dtype


@dataclass(frozen=True)
class Drawing:
    """Options of drawing.

    Raises:
        ArgumentError: one that cannot be used.
    """

    steps: int = DEFAULT_STEPS
    """Intervals of the time grid: network calls of most samplers."""
    sampler: Sampler | None = None
    """By default the solver that was calibrated for so many calls, if the model has one, else `DEFAULT_SAMPLER`."""
    grid: Grid = DEFAULT_GRID
    """Of times; calibrated solvers have their own."""
    fill: Fill | None = None
    """In place of a sampler, for a model that was trained with no given cells: every cell is drawn, and `fill` keeps
    the given ones in, as `core.inpainting.repaint` does, or `replacement.particles(n)`."""
    seed: int = 0
    """Sample s of a window depends on this, the number of its series, its place there and s alone."""
    first: int = 0
    """Number of the first sample."""
    batch_size: int | None = None
    """Samples of windows in the network at once; None for what suits the device. Changes no more than
    rounding."""
    precision: torch.dtype = torch.float32
    """torch.bfloat16 runs the network in autocast."""

    def __post_init__(self):
        check_counts(steps=self.steps, **({} if self.batch_size is None else {"batch_size": self.batch_size}))
        for name in ("sampler", "grid", "fill"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name == "grid"):
                raise ArgumentError(name, value, "a function, such as polydiff.core.ddim.ddim")
        if self.sampler is not None and self.fill is not None:
            raise ArgumentError("sampler", self.sampler, "None: here `fill` says how gaps are filled")
        for name in ("seed", "first"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ArgumentError(name, value, "an integer >= 0")
        if self.precision not in (torch.float32, torch.bfloat16):
            raise ArgumentError("precision", self.precision, "torch.float32 or torch.bfloat16")

    def rows(self, cells: int, device: torch.device) -> int:
        """States of so many cells that pass through the network at once."""
        if self.batch_size is not None:
            return self.batch_size
        return max(1, CELLS.get(device.type, CELLS["cpu"]) // max(1, cells))


def snapped(times: Tensor, T: int) -> Tensor:
    """The grid on the times i/T that a network of T indices knows: the nearest ones, none twice.

    Args:
        times: (n + 1,), from 1 to 0.
        T: number of indices.

    Raises:
        ArgumentError: more than T intervals.
    """
    count = len(times) - 1
    if count > T:
        raise ArgumentError("steps", count, f"at most {T}, the steps of the chain that the model was trained on")
    place = [round(T * t) for t in times.tolist()]
    for i in range(count - 1, -1, -1):  # at least so far from the data
        place[i] = max(place[i], place[i + 1] + 1, count - i)
    for i in range(count):  # at most so far from the noise
        place[i] = min(place[i], T - i)
    return torch.tensor(place, dtype=torch.float64) / T
