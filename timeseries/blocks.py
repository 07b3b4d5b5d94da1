"""The blocks of the network of time series: attention along one axis beside a perceptron, and how they know the time.

A block reads its cells once: after one layer norm, scaled and shifted by what the noise level says, attention and
perceptron work side by side (Wang & Komatsuzaki 2021, GPT-J; Chowdhery et al. 2022) and are added in one product,

    n = LN(h) (1 + scale(c)) + shift(c),        h <- h + W [attention(n), gelu(V n)].

Pairs of features of the queries and keys over time are turned by angles proportional to the row's time (Su et al. 2021,
arXiv:2104.09864, with real-valued times), so what attends sees differences of times, and series may be irregular.

Over many features attention is induced (Lee et al. 2019, arXiv:1810.00825, section 3.1): a few learned points attend to
all features and every feature attends to these points: linear work, and permuting features still permutes the result.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layers import zeroed
from .layers import attention

__all__ = ["FeatureBlock", "Mixer", "TimeBlock", "modulated", "rotation", "waves"]

SHORTEST, LONGEST = 3.0, 3_000.0
"""Periods, in steps, of the waves that describe a row's time: two samples of a wave at least, a window at most."""
SLOWEST = 500.0
"""Steps in which the slowest pair of a query turns by one radian; the fastest needs one step."""


def waves(stamps: Tensor, width: int) -> Tensor:
    """(..., width), sines and cosines of times (...) in steps, with periods from `SHORTEST` to `LONGEST`."""
    half = width // 2
    stamps = stamps.to(torch.promote_types(stamps.dtype, torch.float32))
    share = torch.arange(half, device=stamps.device, dtype=stamps.dtype) / max(half - 1, 1)
    angles = stamps.unsqueeze(-1) * (2 * math.pi / SHORTEST * (SHORTEST / LONGEST) ** share)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotation(stamps: Tensor, pairs: int) -> Tensor:
    """Rows (B, L) to the complex numbers (B, L, pairs) that turn pairs of features of their queries and keys."""
    stamps = stamps.to(torch.promote_types(stamps.dtype, torch.float32))
    share = torch.arange(pairs, device=stamps.device, dtype=stamps.dtype) / max(pairs - 1, 1)
    angles = (stamps - stamps[:, :1]).unsqueeze(-1) * SLOWEST**-share  # small numbers are exact
    return torch.polar(torch.ones_like(angles), angles)


def turned(q: Tensor, by: Tensor) -> Tensor:
    """Queries and keys (R, L, K, W), neighbouring features being pairs, turned by `by` (R, L, 1, W / 2)."""
    whole = q.to(torch.promote_types(q.dtype, torch.float32)).unflatten(3, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(whole) * by).flatten(3).to(q.dtype)


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of h (R, L, K, C) with scale - 1 and shift, (R, 1, 1, C)."""
    n = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)
    kind = n.device.type
    return n.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else n  # once for all readers


class Mixer(nn.Module):
    """What both kinds of block share: the products before and after attention and perceptron.

    Args:
        width: C.
        heads: of the attention, a divisor of C.
        dropout: probability of dropping a feature of what is added, in training.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.hidden = nn.Linear(width, 2 * width)
        self.output = zeroed(nn.Linear(3 * width, width))
        self.dropout = nn.Dropout(dropout)

    def split(self, n: Tensor) -> Tensor:
        """Cells (..., C) to queries, keys and values (..., 3, heads, D)."""
        return self.qkv(n).unflatten(-1, (3, self.heads, -1))

    def forward(self, h: Tensor, n: Tensor, attended: Tensor) -> Tensor:
        """h with what attention found in n (both (R, L, K, C)) and what the perceptron makes of n."""
        more = F.gelu(self.hidden(n))
        return h + self.dropout(self.output(torch.cat([attended, more.to(attended.dtype)], dim=3)))


class TimeBlock(nn.Module):
    """Attention over time, each feature by itself; arguments as of `Mixer`."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.mixer = Mixer(width, heads, dropout)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor, by: Tensor, mask: Tensor | None) -> Tensor:
        """h (R, L, K, C); by (R, L, 1, D / 2); mask (R, 1, 1, L) bool, rows that are seen -> h."""
        R, L, K, C = h.shape
        n = modulated(h, scale, shift)
        qk, v = self.mixer.qkv(n).split([2 * C, C], dim=3)
        parts = *turned(qk, by.repeat(1, 1, 1, 2 * self.mixer.heads)).chunk(2, dim=3), v
        q, k, v = (
            part.unflatten(3, (self.mixer.heads, -1)).permute(0, 2, 3, 1, 4).reshape(R * K, self.mixer.heads, L, -1)
            for part in parts
        )
        seen = None if mask is None else mask.repeat_interleave(K, 0)
        y = attention(q, k, v, seen).unflatten(0, (R, K)).permute(0, 3, 1, 2, 4).reshape(R, L, K, C)
        return self.mixer(h, n, y)


class FeatureBlock(nn.Module):
    """Attention over features, each time by itself.

    Args:
        width, heads, dropout: as of `Mixer`.
        inducing: points between the features, 0 for attention of all to all.
    """

    def __init__(self, width: int, heads: int, dropout: float, inducing: int):
        super().__init__()
        self.mixer = Mixer(width, heads, dropout)
        self.points = nn.Parameter(torch.randn(heads, inducing, width // heads)) if inducing else None
        self.told = nn.Linear(width, 2 * width) if inducing else None

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """h (R, L, K, C) -> the same."""
        R, L, K, C = h.shape
        n = modulated(h, scale, shift)
        q, k, v = self.mixer.split(n).view(R * L, K, 3, self.mixer.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.points is not None and self.told is not None:
            found = attention(self.points.to(q.dtype).expand(R * L, -1, -1, -1), k, v)  # (R L, heads, points, D)
            k, v = self.told(found.transpose(1, 2).flatten(2)).unflatten(2, (2, self.mixer.heads, -1)).unbind(2)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        y = attention(q, k, v).transpose(1, 2).reshape(R, L, K, C)
        return self.mixer(h, n, y)
