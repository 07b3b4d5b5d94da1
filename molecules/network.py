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

from ..core.config import Range, check_fields
from ..core.errors import ConfigError
from ..core.layers import Conditioning, zeroed
from .blocks import CHIRAL, HEADS, SUMS, Block, Pairs, modulated
from .graphs import ATOM_SIZES, EDGE_SIZES
from .layers import Grid, RadialBasis, checked_input, chirality, edge_table, grids, soft_length

__all__ = ["Equivariant", "EquivariantConfig"]

MAX_PARAMETERS = 1_000_000_000
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
        check_fields(self)
        if self.width % 2:
            raise ConfigError("width", self.width, "an even number")
        if self.vectors % HEADS:
            raise ConfigError("vectors", self.vectors, f"a multiple of {HEADS}")
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
        self.blocks = nn.ModuleList(Block(w, u, config.pair_features) for _ in range(config.depth))
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
