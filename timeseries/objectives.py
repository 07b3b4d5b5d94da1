r"""The loss of imputation: hide some of what is seen, noise it, ask for it.

A window is *posed* to a model as given cells, noised cells and counted ones (see `kernel`). With w(t) the weight of
the denoising loss (`core.objectives`) and n a constant, the loss of a window is

    loss = w(t) / n * sum over its counted cells of (x_0 - belief)^2.

Every counted cell of the training set weighs the same, and a window as much as it has counted cells. The published
loss divides by the number of counted cells in the batch instead (Tashiro et al. 2021, algorithm 1), which is the mean
over the same cells, but a window's share then depends on its neighbours, and on how a batch is split into parts and
processes. Training averages losses over the global batch, so n = the mean number of counted cells per window
(`targets.typical`) makes that average the published per-cell mean in expectation, and exactly so where all windows
have n counted cells. A window that has none counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core.denoisers import Denoiser
from ..core.errors import ArgumentError
from ..core.gaussian import Gaussian
from ..core.objectives import Denoising, Look, Times, Weight, simple
from ..core.randomness import Randomness
from ..core.structure import opened
from .kernel import Targets
from .scaling import LevelOf, series_level
from .targets import Strategy

__all__ = ["Imputation", "pose"]


def pose(
    values: Tensor,
    known: Tensor,
    stamps: Tensor,
    *,
    counted: Tensor | None = None,
    present: Tensor | None = None,
    blind: bool = True,
) -> dict[str, Any]:
    """The batch that asks for what is not known: "x_0", "structure", "observed", "known", "stamps", "present".

    Args:
        values: (B, L, K) floating; what is neither known nor counted may be anything.
        known: (B, L, K) bool, the given cells.
        stamps: (B, L), time in steps of the series.
        counted: (B, L, K) bool, the cells that are asked for and whose truth is in `values`; none of them known.
            Without it nothing is compared with a truth: every noised cell counts and x_0 is 0, as for sampling.
        present: (B, L) bool, False on padding rows, which are neither given nor noised.
        blind: whether the cells that are neither known nor counted are noised too.

    Raises:
        ArgumentError: wrong types or shapes, or a cell that is known and counted.
    """
    check_cells("values", values, None, values)
    check_cells("known", known, torch.bool, values)
    if stamps.shape != values.shape[:2]:
        raise ArgumentError("stamps", tuple(stamps.shape), f"{tuple(values.shape[:2])}, one per row")
    there = torch.ones_like(known)
    if present is not None:
        if present.shape != values.shape[:2] or present.dtype != torch.bool:
            raise ArgumentError("present", present, f"bool {tuple(values.shape[:2])}, one per row")
        there = present.unsqueeze(-1).expand_as(known)
    known = known & there
    if counted is None:
        x_0, structure = torch.zeros_like(values), {"mask": there & ~known}
    else:
        check_cells("counted", counted, torch.bool, values)
        counted = counted & there
        if bool((counted & known).any()):
            raise ArgumentError("counted", "a cell that is known", "cells that are not known")
        x_0 = values.masked_fill(~counted, 0)
        structure = {"mask": there & ~known, "counted": counted} if blind else {"mask": counted}
    batch = {
        "x_0": x_0,
        "structure": structure,
        "observed": values.masked_fill(~known, 0),
        "known": known,
        "stamps": stamps,
    }
    return batch if present is None else {**batch, "present": present}


@final
class Imputation(nn.Module):
    """Train a denoiser to fill gaps.

    Args:
        denoiser: the module that learns, of a network `network(x, c, *, observed, known, stamps, present=None)`.
        kernel: Gaussian with the law `Targets`.
        strategy: draws the targets of windows that come without.
        per: n, the number of counted cells that make a loss of one; `targets.typical` of the training data.
        weight: of the error, see `core.objectives`; `simple` is the published one.
        times: the law of t.
        blind: whether cells that are missing in the data are noised too, as at the time of imputing.
        level: of a window, subtracted once its given cells are known, see `scaling.LEVEL_OF`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kernel: Gaussian,
        strategy: Strategy,
        per: float,
        *,
        weight: Weight = simple,
        times: Times | None = None,
        blind: bool = True,
        level: LevelOf = series_level,
    ):
        super().__init__()
        if not isinstance(kernel, Gaussian) or not isinstance(kernel.noise, Targets):
            raise ArgumentError("kernel", kernel, "a Gaussian kernel with the law Targets, as `kernel.targets` makes")
        if not (math.isfinite(per) and per > 0):
            raise ArgumentError("per", per, "a finite number > 0 of counted cells")
        self.denoising = Denoising(denoiser, kernel, weight, times)
        self.strategy, self.per, self.blind, self.level = strategy, float(per), bool(blind), level

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-window losses (B,).

        Args:
            batch: "values" (B, L, K), "seen" (B, L, K) bool, "stamps" (B, L), perhaps "present" (B, L) bool; and
                perhaps "target" (B, L, K) bool within "seen", the cells that are asked for, which the strategy draws
                otherwise. Whatever else there is goes to the network.
            generator: one, or a list with one per window; draws the targets, then t and the noise.
        """
        return self.loss(self.denoising.look(opened(self.denoising.kernel, self.posed(batch, generator)), generator))

    def posed(self, batch: Mapping[str, Any], generator: Randomness = None) -> dict[str, Any]:
        """The batch with targets drawn, as networks, kernel and bounds take it; arguments as in `forward`."""
        missing = {"values", "seen", "stamps"} - batch.keys()
        if missing:
            raise ArgumentError("batch", sorted(batch), f"{sorted(missing)} too")
        values, seen, present, target = batch["values"], batch["seen"], batch.get("present"), batch.get("target")
        check_cells("values", values, None, values)
        check_cells("seen", seen, torch.bool, values)
        if present is not None:
            seen = seen & present.unsqueeze(-1)
        if target is None:
            target = self.strategy(seen, generator, present)
        else:
            check_cells("target", target, torch.bool, values)
            if bool((target & ~seen).any()):
                raise ArgumentError("target", "a cell that is not seen", "cells whose truth is known")
        known = seen & ~target
        rest = {name: batch[name] for name in batch.keys() - {"values", "seen", "stamps", "present", "target"}}
        values = values - self.level(values, known)
        posed = pose(values, known, batch["stamps"], counted=target, present=present, blind=self.blind)
        return {**rest, **posed}

    def loss(self, look: Look) -> Tensor:
        """The weighted error of the belief over `per` counted cells, (B,)."""
        error = look.kernel.error(look.x_0, look.belief, look.t)
        return self.denoising.weight(look.kernel.schedule, look.t).to(error) * error / self.per


def check_cells(name: str, cells: Any, dtype: torch.dtype | None, like: Tensor) -> None:
    """An ArgumentError unless cells is a tensor (B, L, K) of like's shape and of the dtype, floating if None."""
    kind = "floating" if dtype is None else str(dtype)
    sound = isinstance(cells, Tensor) and cells.ndim == 3 and cells.shape == like.shape
    if not sound or (cells.dtype != dtype if dtype is not None else not cells.is_floating_point()):
        raise ArgumentError(name, cells, f"a {kind} tensor (B, L, K)")
