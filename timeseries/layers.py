"""What the networks of time series share: checking of windows, folding of samples, cells that are masked.

A window has L rows (times) and K columns (features). The *side* of a window is all that a network knows besides the
noisy state x and its noise level c; it is computed once per window, and x may hold S states of every window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ArgumentError

__all__ = ["Cells", "Network", "Side", "attention", "cells", "per_state", "states_of"]

MOST_SCORES = 2**25
"""Weights of an attention that are written out in training on processors; 128 MB in float32."""


@dataclass(frozen=True)
class Cells:
    """The cells of B windows.

    Attributes:
        observed: (B, L, K), values of the given cells, exactly 0 elsewhere.
        known: (B, L, K) bool, the given cells.
        free: (B, L, K) bool, cells whose state the network reads: neither given nor on a padding row.
        present: (B, L) bool, False on padding rows; None if there is none.
    """

    observed: Tensor
    known: Tensor
    free: Tensor
    present: Tensor | None

    @property
    def windows(self) -> int:
        """B."""
        return self.known.shape[0]

    def repeated(self, count: int) -> Tensor | None:
        """`present` for `count` states of every window (B * count, L), window-major."""
        if self.present is None or count == 1:
            return self.present
        return self.present.repeat_interleave(count, 0)


class Side(Protocol):
    """What a network knows of B windows before it sees a state."""

    @property
    def cells(self) -> Cells:
        """Given values, masks."""
        ...


SideT = TypeVar("SideT", bound=Side)


class Network(nn.Module, ABC, Generic[SideT]):
    """A network called `network(x, c, observed=, known=, stamps=, present=)`, or with `side=`."""

    @abstractmethod
    def side(self, observed: Tensor, known: Tensor, stamps: Tensor, present: Tensor | None = None) -> SideT:
        """What does not depend on the state; arguments as of `forward`."""

    @abstractmethod
    def output_of(self, states: Tensor, c: Tensor, side: SideT, mask: Tensor | None) -> Tensor:
        """A number for every cell, (B * S, L, K); anything on padding rows.

        Args:
            states: (B, S, L, K), 0 in cells that are not to be read.
            c: (B * S,).
            side: of the windows.
            mask: bool (B * S, 1, 1, L), False on padding rows; None if there is none.
        """

    @final
    def forward(
        self,
        x: Tensor,
        c: Tensor,
        *,
        observed: Tensor | None = None,
        known: Tensor | None = None,
        stamps: Tensor | None = None,
        present: Tensor | None = None,
        side: SideT | None = None,
    ) -> Tensor:
        """A number for every cell, of which the parametrisation makes a belief.

        Args:
            x: states (B * S, L, K), S of every window one after another; read where nothing is given.
            c: what the network is told of time (B * S,): noise levels in about [0, 1000], or steps.
            observed: (B, L, K), values of given cells; not read elsewhere.
            known: (B, L, K) bool, the given cells.
            stamps: (B, L), times of the rows in steps of the series; real numbers.
            present: (B, L) bool, False on padding rows.
            side: instead of these four, `side(...)` of them.

        Returns:
            (B * S, L, K), zero on padding rows.

        Raises:
            ArgumentError: shapes or types that do not fit; neither a side nor what makes one.
        """
        if side is None:
            if observed is None or known is None or stamps is None:
                raise ArgumentError("observed, known, stamps", None, "all three, or side")
            side = self.side(observed, known, stamps, present)
        found = side.cells
        present = found.repeated(states_of(x, c, found))
        states = per_state(x, found.windows).masked_fill(~found.free[:, None], 0)
        y = self.output_of(states, c, side, None if present is None else present[:, None, None])
        return y if present is None else y.masked_fill(~present[:, :, None], 0)


def cells(observed: Tensor, known: Tensor, stamps: Tensor, present: Tensor | None, features: int) -> Cells:
    """The cells of a batch, checked; what stands in `observed` where nothing is known is never read.

    Args:
        observed: (B, L, K) floating, values of the given cells.
        known: (B, L, K) bool, the given cells.
        stamps: (B, L), times of the rows in steps of the series.
        present: (B, L) bool, False on padding rows; None: all rows are real.
        features: K.

    Raises:
        ArgumentError: shapes or types that do not fit.
    """
    if observed.ndim != 3 or observed.shape[2] != features or not observed.is_floating_point():
        raise ArgumentError("observed", observed, f"floating of shape (windows, rows, {features})")
    if known.shape != observed.shape or known.dtype != torch.bool:
        raise ArgumentError("known", known, f"bool of shape {tuple(observed.shape)}")
    if stamps.shape != observed.shape[:2]:
        raise ArgumentError("stamps", stamps, f"shape {tuple(observed.shape[:2])}, a number for every row")
    if present is not None:
        if present.shape != observed.shape[:2] or present.dtype != torch.bool:
            raise ArgumentError("present", present, f"bool of shape {tuple(observed.shape[:2])}, or None")
        known = known & present[:, :, None]
    free = ~known if present is None else ~known & present[:, :, None]
    return Cells(observed.masked_fill(~known, 0), known, free, present)


def states_of(x: Tensor, c: Tensor, cells: Cells) -> int:
    """S, the number of states per window.

    Raises:
        ArgumentError: x is not (B * S, L, K) or c not (B * S,).
    """
    shape = cells.known.shape
    if x.ndim != 3 or x.shape[1:] != shape[1:] or not x.shape[0] or x.shape[0] % shape[0]:
        raise ArgumentError("x", x, f"shape (S * {shape[0]}, {shape[1]}, {shape[2]}), S states of every window")
    if c.shape != x.shape[:1]:
        raise ArgumentError("c", c, f"one noise level per state, shape ({x.shape[0]},)")
    return x.shape[0] // shape[0]


def per_state(x: Tensor, windows: int) -> Tensor:
    """(B * S, ...) seen as (B, S, ...)."""
    return x.unflatten(0, (windows, -1))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, finite also where nothing may be seen.

    On a processor the fused kernel's forward and backward took 0.8 to 1.4 times as long as with weights written out, in
    bfloat16 nine times; so, where they are few enough, they are written out when there will be a backward.

    Args:
        q: (N, H, L, D).
        k, v: (N, H, M, D).
        mask: bool, broadcast to (N, H, L, M), True where a key is seen.
        dropout: probability of dropping a weight.

    Returns:
        (N, H, L, D).
    """
    few = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= MOST_SCORES
    if not (q.device.type == "cpu" and q.requires_grad and few):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(3)
        return (F.dropout(weights, dropout) if dropout else weights) @ v
