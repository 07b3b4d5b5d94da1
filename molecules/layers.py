"""Geometry that molecular networks are told: smooth distances, radial bases, chirality, and molecules as padded grids.

Everything here is made of differences of positions, by functions that have all derivatives where atoms coincide, and
works in at least float32, whatever the precision of the network around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ArgumentError
from .graphs import EDGE_SIZES

__all__ = ["Chirality", "Grid", "RadialBasis", "checked_input", "chirality", "grids", "soft_length"]

SOFTNESS = 0.1
"""Å: distances are sqrt(|r|^2 + SOFTNESS^2), as smooth at r = 0 as anywhere and one to one."""

NO_EDGE = math.prod(EDGE_SIZES)
"""The code of a place of a grid where there is no edge: an atom with itself, or padding."""


def soft_length(r: Tensor, softness: float = SOFTNESS) -> Tensor:
    """sqrt(|r|^2 + softness^2) of vectors along the last dimension."""
    return (r.square().sum(-1) + softness**2).sqrt()


class RadialBasis(nn.Module):
    """Gaussians of log(1 + d / 1 Å): fine at bond lengths, coarse far away, and no cutoff.

    Args:
        count: number of functions.
        reach: Å, where the last one has its centre.
    """

    def __init__(self, count: int, reach: float = 30.0):
        super().__init__()
        last = math.log1p(reach)
        self.register_buffer("centres", torch.linspace(0, last, count, dtype=torch.float64), persistent=False)
        self.centres: Tensor
        self.rate = 0.5 * ((count - 1) / last) ** 2 if count > 1 else 0.5

    def forward(self, d: Tensor) -> Tensor:
        """d (...) in Å, >= 0 -> (..., count)."""
        offset = d.log1p().unsqueeze(-1) - self.centres.to(d)
        return offset.square_().mul_(-self.rate).exp_() if not d.requires_grad else (-self.rate * offset**2).exp()


@dataclass(frozen=True)
class Chirality:
    """What specified centres say of each atom.

    Attributes:
        scalars: (rows, 4): signed volumes and numbers of the centres that the atom is, then of those it is bonded to.
        vectors: (rows, 3, 2): the directions that raise the volumes; the same for volumes that are too small only.
    """

    scalars: Tensor
    vectors: Tensor


def chirality(x: Tensor, chiral_index: Tensor) -> Chirality:
    """Signed volumes of the specified tetrahedral centres and their gradients.

    With unit vectors u_a ... u_d from the centre to its neighbours (u_d = 0 where d is the centre itself: three
    neighbours), s = det[u_a - u_d, u_b - u_d, u_c - u_d] is positive in the asked configuration and does not depend on
    which even permutation of the neighbours was written down. A reflection changes its sign; a reflection together
    with the exchange of two neighbours does not, so s is a true scalar of the geometry and the graph, and the cross
    products that are its gradient by the u are true vectors. s and they are pseudo-scalars of the geometry alone,
    which is what tells a molecule from its mirror image.

    Args:
        x: positions (rows, 3).
        chiral_index: (5, C) long, rows centre, a, b, c, d.
    """
    rows = x.shape[0]
    centre, *around = chiral_index.unbind(0)
    r = torch.stack([x[one] - x[centre] for one in around])
    u = r / soft_length(r).unsqueeze(-1)
    a, b, c = u[:3] - u[3]
    to_a, to_b, to_c = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    volume = (a * to_a).sum(-1)
    pull = torch.stack([to_a, to_b, to_c, -(to_a + to_b + to_c)])
    pull = torch.stack([pull, pull * torch.sigmoid(-4 * volume)[None, :, None]], dim=-1)
    said = torch.stack([volume, torch.ones_like(volume)], dim=-1)
    everyone = chiral_index[1:].reshape(-1)
    zeros = x.new_zeros
    return Chirality(
        torch.cat(
            [
                zeros(rows, 2).index_add(0, centre, said),
                zeros(rows, 2).index_add(0, everyone, said.repeat(4, 1)),
            ],
            dim=1,
        ),
        zeros(rows, 3, 2).index_add(0, everyone, pull.flatten(0, 1)),
    )


@dataclass(frozen=True)
class Grid:
    """Molecules of similar sizes as one padded array of b molecules of n places.

    Attributes:
        graphs: (b,) numbers of the molecules.
        rows: (b, n) their rows; the number of all rows where there is no atom.
        present: (b, n) bool, whether there is one.
        codes: (b, n, n) long, the edge's columns as one number, `NO_EDGE` where there is none.
    """

    graphs: Tensor
    rows: Tensor
    present: Tensor
    codes: Tensor


def grids(graph: Any, most: int, waste: float) -> Iterator[Grid]:
    """The molecules of a batch in groups of similar sizes. What a molecule is grouped with changes only its padding.

    Args:
        graph: a batch of graphs.
        most: pairs of a group, unless it has one molecule only.
        waste: the pairs of its largest molecule to those of its smallest, at most.
    """
    device, ptr = graph.edge_index.device, graph.ptr
    sizes = (ptr[1:] - ptr[:-1]).tolist()
    groups = grouped(sizes, most, waste)
    # Where the square of a molecule starts among all squares, one behind the other, and how wide it is.
    start, width, total = [0] * len(sizes), [0] * len(sizes), 0
    for members in groups:
        n = sizes[members[0]]
        for k in members:
            start[k], width[k], total = total, n, total + n * n
    starts, widths = torch.tensor([start, width], device=device).unbind(0)
    i, j = graph.edge_index
    k = graph.batch[i]
    first = ptr[k]
    place = starts[k] + (i - first) * widths[k] + (j - first)
    code = graph.edge[:, 0]
    for column, size in enumerate(EDGE_SIZES[1:], start=1):
        code = code * size + graph.edge[:, column]
    codes = torch.full((total,), NO_EDGE, device=device).index_copy(0, place, code)
    num_rows = int(sum(sizes))
    for members in groups:
        n, b = sizes[members[0]], len(members)
        chosen = torch.tensor(members, device=device)
        rows, present = squared(sizes, members, ptr, num_rows)
        yield Grid(chosen, rows, present, codes[start[members[0]] :][: b * n * n].view(b, n, n))


def grouped(sizes: Sequence[int], most: int, waste: float) -> list[list[int]]:
    """The numbers of molecules of these sizes in groups, largest first in each; arguments as in `grids`."""
    groups: list[list[int]] = []
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        n = sizes[groups[-1][0]] if groups else 0
        if n and (len(groups[-1]) + 1) * n * n <= most and n * n <= waste * max(sizes[k], 1) ** 2:
            groups[-1].append(k)
        elif sizes[k]:
            groups.append([k])
    return groups


def squared(sizes: Sequence[int], members: Sequence[int], ptr: Tensor, absent: int) -> tuple[Tensor, Tensor]:
    """A group's rows (b, n), `absent` where there is no atom, and whether there is one; ptr (B + 1,) of all rows."""
    local = torch.arange(sizes[members[0]], device=ptr.device)
    present = local < torch.tensor([sizes[k] for k in members], device=ptr.device)[:, None]
    return torch.where(present, ptr[torch.tensor(members, device=ptr.device)][:, None] + local, absent), present


def edge_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(NO_EDGE + 1, sum(EDGE_SIZES)): an edge's code to its columns one-hot; zeros where there is no edge."""
    code = torch.arange(NO_EDGE, device=device)
    columns: list[Tensor] = []
    for size in reversed(EDGE_SIZES):
        columns.insert(0, nn.functional.one_hot(code % size, size))
        code = code // size
    return nn.functional.pad(torch.cat(columns, dim=1), (0, 0, 0, 1)).to(dtype)


def checked_input(x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor, levels: int) -> None:
    """Raises ArgumentError for what does not fit the batch of graphs; levels are looked at on the CPU only."""
    rows, count = graph.atom.shape[0], graph.num_graphs
    if x.shape != (rows, 3) or not x.is_floating_point():
        raise ArgumentError("x", x, f"shape ({rows}, 3), one row per atom of the graphs, floating")
    if draft.shape != x.shape:
        raise ArgumentError("draft", draft, f"the shape of x, ({rows}, 3)")
    for name, value in (("c", c), ("level", level)):
        if value.shape != (count,):
            raise ArgumentError(name, value, f"one number per graph, shape ({count},)")
    if level.dtype != torch.long:
        raise ArgumentError("level", level, "long integers")
    if level.device.type == "cpu" and count and not 0 <= int(level.min()) <= int(level.max()) < levels:
        raise ArgumentError("level", level.tolist(), f"numbers from 0 to {levels - 1}")
