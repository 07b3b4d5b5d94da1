"""One round of messages between all pairs of atoms of padded molecules; `network` has the mathematics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layers import zeroed
from .layers import soft_length

__all__ = ["CHIRAL", "HEADS", "SUMS", "Block", "Pairs", "modulated"]

HEADS = 8
SUMS = 7
"""Weights of the sums over neighbours: one, three of the direction, three of the difference of displacements."""
CHIRAL = (4, 2)
"""Scalars and vectors that `chirality` gives an atom."""


@dataclass(frozen=True)
class Pairs:
    """What a group of b molecules of n places tells every block.

    Attributes:
        own: (b, n, n, pair_features) of receiver i and sender j.
        sides: (b n, n, 4), one and the direction from i to j.
        sums: (b n, SUMS, n), weights of the sums over j, zero where there is no pair.
        weight: (b, 1, n, n), the first of these.
        chiral: (b, n, 4), signed volumes.
        pull: (b, n, 3, 2), directions that raise them.
        condition: (b, F), of time and level.
    """

    own: Tensor
    sides: Tensor
    sums: Tensor
    weight: Tensor
    chiral: Tensor
    pull: Tensor
    condition: Tensor


def heads(x: Tensor) -> Tensor:
    """(b, n, 3 or 4, U) to (b, HEADS, n, 3 or 4 U / HEADS)."""
    return x.unflatten(3, (HEADS, -1)).permute(0, 3, 1, 2, 4).flatten(3)


def normal(v: Tensor) -> Tensor:
    """Vectors (..., 3, F) in units of their mean length, equivariantly; lengths far below 0.1 stay small."""
    return v * (v.square().sum(-2, keepdim=True).mean(-1, keepdim=True) + 1e-2).rsqrt()


def modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm with scale - 1 and shift."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)


class Block(nn.Module):
    """Messages of all pairs, their sums, then scalars and vectors of each atom with one another.

    Args:
        width: F.
        vectors: U.
        pair_features: of `Pairs.own`.
        chiral: whether signed volumes come with the pairs; without, the block commutes with reflections.
    """

    def __init__(self, width: int, vectors: int, pair_features: int, chiral: bool = True):
        super().__init__()
        w, u = self.width, self.vectors = width, vectors
        self.of_scalars = nn.Linear(w, 2 * w + u)
        self.of_vectors = nn.Linear(u, 2 * w + 3 * u, bias=False)
        self.own = nn.Linear(pair_features, w, bias=False)
        self.dots = nn.Linear(HEADS, w, bias=False)
        self.message = nn.Linear(w, w)
        self.weights = nn.Linear(w, HEADS, bias=False)
        self.collect = nn.Linear(w + u, w)
        self.collect_vectors = nn.Linear(2 * w + u, u, bias=False)
        self.chiral = nn.Linear(CHIRAL[0], w, bias=False) if chiral else None
        self.pull = nn.Linear(CHIRAL[1], u, bias=False) if chiral else None
        self.pull_gate = nn.Linear(w, u) if chiral else None
        self.mix = nn.Linear(u, 2 * u, bias=False)
        self.hidden = nn.Linear(w + 2 * u + 1, 2 * w)
        self.update = nn.Linear(2 * w, w + u)
        self.modulation = zeroed(nn.Linear(w, 6 * w))

    def forward(self, h: Tensor, v: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """h (b, n, F), v (b, n, 3, U) -> the same."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(pairs.condition)[:, None].chunk(6, dim=2)
        normed = modulated(h, scale_1, shift_1)
        if self.chiral is not None:
            normed = normed + self.chiral(pairs.chiral)
        S, V = self.exchange(normed, normal(v), pairs)
        h = torch.addcmul(h, 1 + gate_1, self.collect(S).to(h.dtype))
        v = v + self.mixed(self.collect_vectors, V)
        if self.pull is not None and self.pull_gate is not None:
            pulled = F.linear(pairs.pull, self.pull.weight.to(pairs.pull.dtype))
            v = v + pulled * self.pull_gate(normed)[:, :, None]

        normed, unit = modulated(h, scale_2, shift_2), normal(v)
        first, second = self.mixed(self.mix, unit).chunk(2, dim=3)
        size = (v.square().sum(2).mean(2, keepdim=True) + 1e-4).log()
        said = [normed, soft_length(first.transpose(2, 3), 0.1), (first * second).sum(2), size]
        change, gate = self.update(F.silu(self.hidden(torch.cat(said, dim=2)))).split([self.width, self.vectors], 2)
        return torch.addcmul(h, 1 + gate_2, change.to(h.dtype)), torch.addcmul(v, second, gate[:, :, None].to(v.dtype))

    def exchange(self, h: Tensor, v: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The sums over neighbours: scalars (b, n, F + U) and vectors (b, n, 3, 2 F + U)."""
        (b, n, w), u = h.shape, self.vectors
        a_i, b_j, values = self.of_scalars(h).to(v.dtype)[:, :, None].split([w, w, u], dim=3)
        p_i, q_j, vectors, left, right = self.mixed(self.of_vectors, v).split([w, w, u, u, u], dim=3)
        pre = F.linear(pairs.own, self.own.weight).to(v.dtype)
        with torch.autocast(h.device.type, enabled=False):
            # Results of products are fresh: adding to them in place is safe and saves passes over the largest arrays.
            dots = heads(left) @ heads(right).transpose(2, 3) * (u // HEADS) ** -0.5
            dots = dots.permute(0, 2, 3, 1).reshape(-1, HEADS)
            pre = torch.addmm(pre.view(-1, w), dots, self.dots.weight.to(v.dtype).T).view(b * n, n, w)
            pre = torch.baddbmm(pre, pairs.sides, torch.cat([a_i, p_i], dim=2).view(b * n, 4, w)).view(b, n, n, w)
            of_j = torch.bmm(pairs.sides, torch.cat([b_j, q_j], dim=2).view(b * n, 4, w))
            pre += of_j.view(b, n, n, w).transpose(1, 2)
        m = F.silu(self.message(F.silu(pre.to(pairs.own.dtype))))
        weights = self.weights(m).permute(0, 3, 1, 2)
        with torch.autocast(h.device.type, enabled=False):
            near = torch.bmm(pairs.sums, m.to(v.dtype).view(b * n, n, w)).view(b, n, SUMS, w)
            far = (weights.to(v.dtype) * pairs.weight) @ heads(torch.cat([values, vectors], dim=2))
            far = far.view(b, HEADS, n, 4, -1).permute(0, 2, 3, 1, 4).flatten(3)
        S = torch.cat([near[:, :, 0], far[:, :, 0]], dim=2)
        return S, torch.cat([near[:, :, 1:4], near[:, :, 4:], far[:, :, 1:]], dim=3)

    @staticmethod
    def mixed(layer: nn.Linear, v: Tensor) -> Tensor:
        """A product with vectors (..., 3, F), in full precision: rounding them is no rotation."""
        with torch.autocast(v.device.type, enabled=False):
            return F.linear(v, layer.weight.to(v.dtype))
