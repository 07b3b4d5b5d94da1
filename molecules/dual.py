r"""The dual encoder of GeoDiff (Xu et al. 2022, arXiv:2203.02923, section 4.2): distances only, near and far apart.

A global branch sends SchNet's messages (Schuett et al. 2017, arXiv:1706.08566) between all pairs of atoms, a local one
GINE's (Hu et al. 2020, arXiv:1905.12265) along bonds, angles and torsions: pairs of at most three hops. Each pair is
described by its distance times an embedding of its kind, and each branch ends in one number per pair, from
[h_i h_j, e_ij], which pulls the two atoms together or apart:

    F_i = sum_j s_ij (p_i - p_j) / d_ij  (far, all pairs)  +  the same (near)  +  sum_j r_ij (y_i - y_j)

What is different from the published program, on purpose: a pair's kind is the graph's own (there, pairs of two hops
were taken for those of three); every ordered pair is counted once, so the pull is not doubled; both branches have an
encoder of pairs of their own (there, that of the local branch was never trained); no pair is left out by a limit of
neighbours or a radius, and sums of what is far are damped smoothly instead; the network is told the time; and the
displacements y from the draft have a pull of their own, without which no rotation of the draft could be undone.

All that it knows of a shape are distances: it cannot tell a molecule from its mirror image. `network` can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GINEConv
from torch_geometric.nn.models.schnet import InteractionBlock
from torch_geometric.utils import scatter

from ..core.config import Range, check_fields
from ..core.errors import ConfigError
from ..core.layers import Conditioning, zeroed
from .graphs import ATOM_SIZES, EDGE_SIZES
from .layers import RadialBasis, checked_input, soft_length

__all__ = ["Dual", "DualConfig"]

LOCAL_HOPS = 3
NEIGHBOURHOOD = 5.0
"""Å, where the pull of a pair is half of that of a near one with the same number."""


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """Sizes of a `Dual` encoder; the defaults of width and depth are those of the paper.

    Raises:
        ConfigError: a value out of its range, an odd width.
    """

    width: Annotated[int, Range(2, 4096)] = 128
    """Numbers of an atom and of a pair."""
    depth: Annotated[int, Range(1, 64)] = 6
    """Rounds of messages between all pairs."""
    local_depth: Annotated[int, Range(1, 64)] = 4
    """Rounds of messages along bonds, angles and torsions."""
    radial: Annotated[int, Range(2, 512)] = 24
    """Functions of a distance."""
    levels: Annotated[int, Range(1, 1000)] = 2
    """Levels of theory that it can be told."""
    scale: Annotated[float, Range(1e-3, 1e3)] = 1.0
    """Å in one unit of the input, the `scale` of the displacements."""

    def __post_init__(self):
        check_fields(self)
        if self.width % 2:
            raise ConfigError("width", self.width, "an even number")

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, by formula."""
        w = self.width
        described = (2 * self.radial + 3) * w + w + w * (w + 1) + sum(EDGE_SIZES) * w
        interaction = 2 * w * (w + 1) + w * w + 2 * w * (w + 1)
        readout = (2 * w * w + w) + (w * w // 2 + w // 2) + 2 * (w // 2 + 1)
        per_round = self.depth * interaction + self.local_depth * 2 * w * (w + 1)
        told = 2 * w * (w + 1) + (self.levels + 1) * w + 2 * w * (w + 1)
        return sum(ATOM_SIZES) * w + told + 2 * (described + readout) + per_round

    def build(self) -> Dual:
        """A freshly initialised network of these sizes."""
        return Dual(self)


class Described(nn.Module):
    """Numbers of every pair: a perceptron of its distances times an embedding of what the graph says of it."""

    def __init__(self, config: DualConfig):
        super().__init__()
        w = config.width
        self.distances = nn.Sequential(nn.Linear(2 * config.radial + 3, w), nn.SiLU(), nn.Linear(w, w))
        self.kinds = nn.ModuleList(nn.Embedding(size, w) for size in EDGE_SIZES)

    def forward(self, distances: Tensor, edge: Tensor) -> Tensor:
        """Features of distances (E, 2 radial + 3) and columns of the graph (E, 3) -> (E, F)."""
        kind = sum(embedding(edge[:, k]) for k, embedding in enumerate(self.kinds))
        return self.distances(distances) * kind


class Readout(nn.Module):
    """Two numbers of every pair, the same in both directions: the pull of positions and that of displacements."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width // 2), nn.SiLU(),
            zeroed(nn.Linear(width // 2, 2)),
        )  # fmt: skip

    def forward(self, h: Tensor, pair: Tensor, edge_index: Tensor) -> Tensor:
        """h (rows, F), pair (E, F), edge_index (2, E) -> (E, 2)."""
        i, j = edge_index
        return self.layers(torch.cat([h[i] * h[j], pair], dim=1))


class Dual(nn.Module):
    """See the module's docstring.

    Args:
        config: sizes.
    """

    def __init__(self, config: DualConfig):
        super().__init__()
        self.config = config
        w = config.width
        self.atoms = nn.ModuleList(nn.Embedding(size, w) for size in ATOM_SIZES)
        self.radial = RadialBasis(config.radial)
        self.conditioning = Conditioning(w, w, config.levels)
        self.told = nn.Linear(w, 2 * w)
        self.far, self.near = Described(config), Described(config)
        # An infinite cutoff makes SchNet's envelope 1; its own one is periodic and would return beyond the cutoff.
        self.interactions = nn.ModuleList(InteractionBlock(w, w, w, math.inf) for _ in range(config.depth))
        self.convolutions = nn.ModuleList(
            GINEConv(nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))) for _ in range(config.local_depth)
        )
        self.pull_far, self.pull_near = Readout(w), Readout(w)

    def forward(self, x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        """A vector for every atom; arguments, result and errors as those of `network.Equivariant`."""
        checked_input(x, c, graph, level, draft, self.config.levels)
        kind = torch.promote_types(x.dtype, torch.float32)
        moved, draft = x.to(kind), draft.to(kind) * self.config.scale
        where = draft + moved * self.config.scale
        i, j = graph.edge_index
        between, apart = where[i] - where[j], moved[i] - moved[j]
        distance, before = soft_length(between), soft_length(draft[i] - draft[j])
        direction = between / distance.unsqueeze(1)
        stretch = ((distance - before) / self.config.scale).asinh()
        few = torch.stack([stretch, (apart * direction).sum(1).asinh(), (distance * 0.1).log1p()], dim=1)
        distances = torch.cat([self.radial(distance), self.radial(before), few], dim=1)
        weight = (0.25 / (1 + (distance / NEIGHBOURHOOD) ** 2)).unsqueeze(1)

        scale, shift = self.told(self.conditioning(c, level))[graph.batch].chunk(2, dim=1)
        start = sum(embedding(graph.atom[:, k]) for k, embedding in enumerate(self.atoms))
        start = start * (1 + scale) + shift

        # Messages run from edge_index[0] to edge_index[1] there; all pairs are listed in both directions.
        h, pair = start, self.far(distances, graph.edge)
        for interaction in self.interactions:
            h = h + interaction(h, graph.edge_index, distance, pair * weight.to(pair)) / 4
        numbers = self.pull_far(h, pair, graph.edge_index)

        near = ((graph.edge[:, 1] > 0) & (graph.edge[:, 1] <= LOCAL_HOPS)).nonzero().squeeze(1)
        h, pair, edges = start, self.near(distances[near], graph.edge[near]), graph.edge_index[:, near]
        for convolution in self.convolutions:
            h = h + nn.functional.silu(convolution(h, edges, pair))
        numbers = numbers.to(kind).index_add(0, near, self.pull_near(h, pair, edges).to(kind))

        with torch.autocast(x.device.type, enabled=False):
            pulls = weight * (numbers[:, :1] * direction + numbers[:, 1:] * apart)
            return scatter(pulls, i, dim=0, dim_size=len(x), reduce="sum").to(x.dtype)
