r"""The denoising network of molecules: equivariant messages between all pairs of atoms.

Every atom has F scalars h and U vectors v, as in PaiNN (Schuett et al. 2021, arXiv:2102.03150). A
block forms one message for every ordered pair of atoms from what both are, what the graph says of the pair, its
distance now and in the draft, the displacements y from the draft, and the invariants dir_ij . v_i, dir_ij . v_j and
v_i . v_j, so that angles and torsions are seen within a block:

    m_ij = silu(W silu(G g_ij + A_i + B_j + dir_ij . (P v_i - Q v_j) + D <v_i, v_j>))
    S_i  = sum_j w_ij m_ij           V_i = sum_j w_ij m_ij dir_ij          Y_i = sum_j w_ij m_ij (y_j - y_i)
    T_i  = sum_j w_ij (a m_ij) (h_j, v_j)     by heads

with w_ij = 1 / (1 + (d_ij / 5 Å)^2) / 4, so that sums over 2 and over 200 atoms are alike and no pair is left out. The
rest happens per atom. Directions occur only as such and in dot products, so outputs turn and mirror with the input; the
only exception are the signed volumes of the specified centres (`layers.chirality`), which know left from right. Time
and level of theory modulate every layer norm (Peebles & Xie 2023). The output starts at zero.

The pairs of a molecule are all there, so messages are computed on padded arrays (b, n, n, F) of molecules of similar
sizes, and the sums over j, vectors included, are one batched product (7, n) @ (n, F) per atom. Of 18 molecules of 18
atoms, F = 64, forward and backward on one busy thread, those sums took 1.4 ms against 51 ms with `index_add` on lists
of edges, and bringing atoms to their pairs 2.8 ms against 69 ms. On processors groups are kept so small that they stay
in the cache. Under autocast the products with F x F weights run in bfloat16; positions, distances and all products with
vectors in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import Range
from ..core.errors import ConfigError
from ..core.layers import Conditioning, zeroed
from .graphs import ATOM_SIZES, EDGE_SIZES
from .layers import Grid, RadialBasis, checked_input, chirality, edge_table, grids, soft_length

__all__ = ["Equivariant", "EquivariantConfig"]

MAX_PARAMETERS = 1_000_000_000
HEADS = 8
SUMS = 7
"""Weights of the sums over neighbours: one, three of the direction, three of the difference of displacements."""
CHIRAL = (4, 2)
"""Scalars and vectors that `chirality` gives an atom."""
NEIGHBOURHOOD = 5.0
"""Å, where the weight of a neighbour is half of that of a near one."""
MOST_PAIRS = {"cpu": 6_000}
"""Pairs of a group, so that its arrays stay in the cache; elsewhere large, for the device is to be filled."""


@dataclass(frozen=True, kw_only=True)
class EquivariantConfig:
    """Sizes of an `Equivariant` network.

    Raises:
        ConfigError: a value out of its range, an odd width, vectors that are no multiple of 8.
    """

    width: Annotated[int, Range(8, 4096)] = 64
    """Scalars of an atom."""
    vectors: Annotated[int, Range(8, 4096)] = 32
    """Vectors of an atom; a multiple of 8. Each costs three times a scalar."""
    depth: Annotated[int, Range(1, 64)] = 4
    """Blocks."""
    radial: Annotated[int, Range(2, 512)] = 24
    """Functions of a distance."""
    levels: Annotated[int, Range(1, 1000)] = 2
    """Levels of theory that it can be told."""
    scale: Annotated[float, Range(1e-3, 1e3)] = 1.0
    """Å in one unit of the input, the `scale` of the displacements."""

    def __post_init__(self):
        for name, low, high in (
            ("width", 8, 4096), ("vectors", 8, 4096), ("depth", 1, 64), ("radial", 2, 512), ("levels", 1, 1000),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(name, value, f"an integer from {low} to {high}")
        if self.width % 2:
            raise ConfigError("width", self.width, "an even number")
        if self.vectors % HEADS:
            raise ConfigError("vectors", self.vectors, f"a multiple of {HEADS}")
        if not 1e-3 <= self.scale <= 1e3:
            raise ConfigError("scale", self.scale, "Å between 0.001 and 1000")
        if self.num_parameters > MAX_PARAMETERS:
            raise ConfigError("network size", f"{self.num_parameters} parameters", f"at most {MAX_PARAMETERS}")

    @property
    def pair_features(self) -> int:
        """Numbers that a pair has of its own, the same for all blocks."""
        return 2 * self.radial + sum(EDGE_SIZES) + 4

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, by formula."""
        w, u = self.width, self.vectors
        message = (2 * w + u) * (w + 1) + (2 * w + 3 * u) * u + self.pair_features * w + 2 * HEADS * w + w * (w + 1)
        collect = w * (w + u + 1) + (2 * w + u) * u + CHIRAL[0] * w + CHIRAL[1] * u + u * (w + 1)
        update = 2 * u * u + 2 * w * (w + 2 * u + 2) + (w + u) * (2 * w + 1)
        total = self.depth * (message + collect + update + 6 * w * (w + 1))
        total += sum(ATOM_SIZES) * w + w * (w + 1) + u  # atoms; x to vectors
        total += 2 * w * (w + 1) + (self.levels + 1) * w  # conditioning
        return total + 2 * w * (w + 1) + u * u + u * (w + 1) + u + (w + 1)

    def build(self) -> Equivariant:
        """A freshly initialised network of these sizes."""
        return Equivariant(self)


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
    """Messages of all pairs, their sums, then scalars and vectors of each atom with one another."""

    def __init__(self, config: EquivariantConfig):
        super().__init__()
        w, u = self.width, self.vectors = config.width, config.vectors
        self.of_scalars = nn.Linear(w, 2 * w + u)
        self.of_vectors = nn.Linear(u, 2 * w + 3 * u, bias=False)
        self.own = nn.Linear(config.pair_features, w, bias=False)
        self.dots = nn.Linear(HEADS, w, bias=False)
        self.message = nn.Linear(w, w)
        self.weights = nn.Linear(w, HEADS, bias=False)
        self.collect = nn.Linear(w + u, w)
        self.collect_vectors = nn.Linear(2 * w + u, u, bias=False)
        self.chiral = nn.Linear(CHIRAL[0], w, bias=False)
        self.pull = nn.Linear(CHIRAL[1], u, bias=False)
        self.pull_gate = nn.Linear(w, u)
        self.mix = nn.Linear(u, 2 * u, bias=False)
        self.hidden = nn.Linear(w + 2 * u + 1, 2 * w)
        self.update = nn.Linear(2 * w, w + u)
        self.modulation = zeroed(nn.Linear(w, 6 * w))

    def forward(self, h: Tensor, v: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """h (b, n, F), v (b, n, 3, U) -> the same."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(pairs.condition)[:, None].chunk(6, dim=2)
        normed = modulated(h, scale_1, shift_1)
        normed = normed + self.chiral(pairs.chiral)
        S, V = self.exchange(normed, normal(v), pairs)
        h = torch.addcmul(h, 1 + gate_1, self.collect(S).to(h.dtype))
        pulled = F.linear(pairs.pull, self.pull.weight.to(pairs.pull.dtype)) * self.pull_gate(normed)[:, :, None]
        v = v + self.mixed(self.collect_vectors, V) + pulled

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


class Equivariant(nn.Module):
    """See the module's docstring.

    Args:
        config: sizes.
    """

    def __init__(self, config: EquivariantConfig):
        super().__init__()
        self.config = config
        w, u = config.width, config.vectors
        self.atoms = nn.ModuleList(nn.Embedding(size, w) for size in ATOM_SIZES)
        for embedding in self.atoms:
            nn.init.normal_(embedding.weight, std=len(ATOM_SIZES) ** -0.5)  # pyright: ignore[reportArgumentType]
        self.first = nn.Linear(w, w)
        self.moved = nn.Linear(1, u, bias=False)
        self.radial = RadialBasis(config.radial)
        self.conditioning = Conditioning(w, w, config.levels)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.modulation = zeroed(nn.Linear(w, 2 * w))
        self.last_vectors = nn.Linear(u, u, bias=False)
        self.gate = nn.Linear(w, u)
        self.output = zeroed(nn.Linear(u, 1, bias=False))
        self.kept = zeroed(nn.Linear(w, 1))

    def forward(self, x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        """A vector for every atom.

        Args:
            x: displacements from the draft (rows, 3), in units of `scale`.
            c: noise level (B,), in about [0, 1000].
            graph: the batch of graphs, `graphs.batch`.
            level: of theory, (B,) long, below `levels`.
            draft: (rows, 3) in units of `scale`; zeros where there is none. Only its shape matters, not its place.

        Returns:
            (rows, 3) in the dtype of x.

        Raises:
            ArgumentError: shapes that do not fit each other, a level out of range.
        """
        checked_input(x, c, graph, level, draft, self.config.levels)
        kind = torch.promote_types(x.dtype, torch.float32)
        moved, draft = x.to(kind), draft.to(kind) * self.config.scale
        where = draft + moved * self.config.scale
        condition = self.conditioning(c, level)
        h = sum(embedding(graph.atom[:, k]) for k, embedding in enumerate(self.atoms))
        h = self.first(F.silu(h)).to(kind)  # pyright: ignore[reportArgumentType]
        hands = chirality(where, graph.chiral_index)
        # One row more, where padding looks.
        atoms = [
            F.pad(one, (0, 0) * (one.ndim - 1) + (0, 1)) for one in (h, moved, where, draft, *vars(hands).values())
        ]
        table = edge_table(kind, x.device)
        outputs: list[Tensor] = []
        rows: list[Tensor] = []
        for grid in grids(graph, MOST_PAIRS.get(x.device.type, 1_000_000), 1.25):
            h, moved_, where_, draft_, chiral, pull = (one[grid.rows] for one in atoms)
            pairs = self.pairs(grid, moved_, where_, draft_, chiral, pull, condition[grid.graphs], table)
            outputs.append(self.run(h, moved_, pairs)[grid.present])
            rows.append(grid.rows[grid.present])
        return x.new_zeros(x.shape).index_copy(0, torch.cat(rows), torch.cat(outputs).to(x.dtype))

    def pairs(
        self,
        grid: Grid,
        moved: Tensor,
        where: Tensor,
        draft: Tensor,
        chiral: Tensor,
        pull: Tensor,
        condition: Tensor,
        table: Tensor,
    ) -> Pairs:
        """The geometry of a group from positions (b, n, 3), displacements in units of `scale`, the others in Å."""
        b, n = grid.present.shape
        between = where[:, None] - where[:, :, None]
        distance = soft_length(between)
        direction = between / distance.unsqueeze(3)
        apart = moved[:, None] - moved[:, :, None]
        before = soft_length(draft[:, None] - draft[:, :, None])
        stretch = (distance - before) / self.config.scale
        along = (apart * direction).sum(3)
        few = torch.stack([stretch.asinh(), along.asinh(), soft_length(apart).log1p(), (distance * 0.1).log1p()], dim=3)
        own = torch.cat([self.radial(distance), self.radial(before), table[grid.codes], few], dim=3)
        paired = grid.present[:, :, None] & grid.present[:, None] & ~torch.eye(n, dtype=torch.bool, device=where.device)
        weight = torch.where(paired, 0.25 / (1 + (distance / NEIGHBOURHOOD) ** 2), 0)
        ones = torch.ones_like(weight).unsqueeze(3)
        sums = torch.cat([ones, direction, apart], dim=3) * weight.unsqueeze(3)
        if torch.is_autocast_enabled(own.device.type):
            own = own.to(torch.get_autocast_dtype(own.device.type))  # once, not in every block
        return Pairs(
            own,
            torch.cat([ones, direction], dim=3).view(b * n, n, 4),
            sums.transpose(2, 3).reshape(b * n, SUMS, n),
            weight[:, None],
            chiral,
            pull,
            condition,
        )

    def run(self, h: Tensor, moved: Tensor, pairs: Pairs) -> Tensor:
        """The blocks and the readout of a group, (b, n, 3)."""
        v = moved[:, :, :, None] * self.moved.weight[:, 0].to(moved.dtype)
        for block in self.blocks:
            h, v = block(h, v, pairs)
        h = modulated(h, *self.modulation(pairs.condition)[:, None].to(h.dtype).chunk(2, dim=2))
        v = Block.mixed(self.last_vectors, v) * self.gate(h).to(v.dtype)[:, :, None]
        return Block.mixed(self.output, v).squeeze(3) + moved * self.kept(h).to(v.dtype)
