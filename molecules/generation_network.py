r"""The network of unconditional generation: positions and types of atoms to a vector and a law of types for every atom.

There is no graph yet: what a pair of atoms knows of itself is its distance alone, and the types, partly masked, start
the atoms' features. Everything else are the blocks of `network`, without their signed volumes: messages between all
pairs, no cutoff, angles and torsions seen within a block. So vectors turn and mirror with the positions and logits do
not change at all (E(3)), both move with their atoms under permutations, and nothing depends on the place of the
molecule, nor on those beside it in the batch. The generated law has the same symmetries: a molecule and its mirror
image are equally likely (Hoogeboom et al. 2022; Xu et al. 2022, proposition 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import Range, check_fields
from ..core.errors import ArgumentError, ConfigError
from ..core.layers import Conditioning, zeroed
from .blocks import HEADS, SUMS, Block, Pairs, modulated
from .layers import RadialBasis, grouped, soft_length, squared
from .network import MOST_PAIRS, NEIGHBOURHOOD

__all__ = ["Generator", "GeneratorConfig"]

MAX_PARAMETERS = 1_000_000_000
LARGEST_WASTE = 1.25
"""Pairs of a group's largest molecule to those of its smallest."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of a `Generator`.

    Raises:
        ConfigError: a value out of its range, an odd width, vectors that are no multiple of 8.
    """

    types: Annotated[int, Range(1, 120)]
    """Types of atoms that it may say; it may also be shown the next one, which stands for a mask."""
    width: Annotated[int, Range(8, 4096)] = 64
    """Scalars of an atom."""
    vectors: Annotated[int, Range(8, 4096)] = 32
    """Vectors of an atom; a multiple of 8. Each costs three times a scalar."""
    depth: Annotated[int, Range(1, 64)] = 5
    """Blocks."""
    radial: Annotated[int, Range(2, 512)] = 24
    """Functions of a distance."""
    scale: Annotated[float, Range(1e-3, 1e3)] = 1.0
    """Å in one unit of the input."""

    def __post_init__(self):
        check_fields(self)
        if self.width % 2:
            raise ConfigError("width", self.width, "an even number")
        if self.vectors % HEADS:
            raise ConfigError("vectors", self.vectors, f"a multiple of {HEADS}")
        if (self.width + self.vectors) ** 2 * self.depth > MAX_PARAMETERS // 20:
            raise ConfigError(
                "network size", f"width {self.width}, depth {self.depth}", f"about {MAX_PARAMETERS} parameters"
            )

    def build(self) -> Generator:
        """A freshly initialised network of these sizes."""
        return Generator(self)


class Generator(nn.Module):
    """See the module's docstring.

    Args:
        config: sizes.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        w, u = config.width, config.vectors
        self.types = nn.Embedding(config.types + 1, w)
        self.size = nn.Linear(1, w)
        self.first = nn.Linear(w, w)
        self.moved = nn.Linear(1, u, bias=False)
        self.radial = RadialBasis(config.radial)
        self.conditioning = Conditioning(w, w, 0)
        self.blocks = nn.ModuleList(Block(w, u, config.radial + 2, chiral=False) for _ in range(config.depth))
        self.modulation = zeroed(nn.Linear(w, 2 * w))
        self.last_vectors = nn.Linear(u, u, bias=False)
        self.gate = nn.Linear(w, u)
        self.output = zeroed(nn.Linear(u, 1, bias=False))
        self.kept = zeroed(nn.Linear(w, 1))
        self.logits = zeroed(nn.Linear(w, config.types))

    def forward(self, xs: tuple[Tensor, Tensor], c: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """A vector and logits for every atom.

        Args:
            xs: positions (rows, 3) in units of `scale`, and types (rows,) long in 0 ... `types`, the last the mask.
            c: noise level (B,), in about [0, 1000].
            index: which molecule each row belongs to, (rows,) long, ascending in 0 ... B - 1.

        Returns:
            vectors (rows, 3) in the dtype of the positions, logits (rows, `types`).

        Raises:
            ArgumentError: shapes that do not fit each other.
        """
        x, types = xs
        check_input(x, types, c, index)
        kind = torch.promote_types(x.dtype, torch.float32)
        counts = torch.bincount(index, minlength=len(c))
        centre = x.new_zeros(len(c), 3, dtype=kind).index_add(0, index, x.to(kind)) / counts.clamp_min(1)[:, None]
        moved = x.to(kind) - centre[index]
        condition = self.conditioning(c)
        h = self.types(types) + self.size(counts.to(kind).log1p().to(self.size.weight)[:, None])[index]
        h = self.first(F.silu(h)).to(kind)
        # One row more, where padding looks.
        atoms = [F.pad(one, (0, 0, 0, 1)) for one in (h, moved)]
        ptr = F.pad(counts.cumsum(0), (1, 0))
        sizes = counts.tolist()
        vectors, logits, rows = [], [], []
        for members in grouped(sizes, MOST_PAIRS.get(x.device.type, 1_000_000), LARGEST_WASTE):
            places, present = squared(sizes, members, ptr, len(x))
            h_, moved_ = (one[places] for one in atoms)
            of_group = condition[torch.tensor(members, device=x.device)]
            vector, logit = self.run(h_, moved_, self.pairs(moved_, present, of_group))
            vectors.append(vector[present])
            logits.append(logit[present])
            rows.append(places[present])
        if not rows:
            return x, self.logits(h)
        order = torch.cat(rows)
        said = torch.cat(logits)
        return (
            x.new_zeros(x.shape).index_copy(0, order, torch.cat(vectors).to(x.dtype)),
            said.new_zeros(said.shape).index_copy(0, order, said),
        )

    def pairs(self, moved: Tensor, present: Tensor, condition: Tensor) -> Pairs:
        """The geometry of a group from centred positions (b, n, 3) in units of `scale`."""
        b, n = present.shape
        apart = moved[:, None] - moved[:, :, None]
        between = apart * self.config.scale
        distance = soft_length(between)
        direction = between / distance.unsqueeze(3)
        few = torch.stack([soft_length(apart).log1p(), (distance * 0.1).log1p()], dim=3)
        paired = present[:, :, None] & present[:, None] & ~torch.eye(n, dtype=torch.bool, device=moved.device)
        weight = torch.where(paired, 0.25 / (1 + (distance / NEIGHBOURHOOD) ** 2), 0)
        ones = torch.ones_like(weight).unsqueeze(3)
        sums = torch.cat([ones, direction, apart], dim=3) * weight.unsqueeze(3)
        nothing = moved.new_zeros(0)
        return Pairs(
            torch.cat([self.radial(distance), few], dim=3),
            torch.cat([ones, direction], dim=3).view(b * n, n, 4),
            sums.transpose(2, 3).reshape(b * n, SUMS, n),
            weight[:, None],
            nothing,
            nothing,
            condition,
        )

    def run(self, h: Tensor, moved: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """The blocks and the readout of a group, (b, n, 3) and (b, n, types)."""
        v = moved[:, :, :, None] * self.moved.weight[:, 0].to(moved.dtype)
        for block in self.blocks:
            h, v = block(h, v, pairs)
        h = modulated(h, *self.modulation(pairs.condition)[:, None].to(h.dtype).chunk(2, dim=2))
        v = Block.mixed(self.last_vectors, v) * self.gate(h).to(v.dtype)[:, :, None]
        return Block.mixed(self.output, v).squeeze(3) + moved * self.kept(h).to(v.dtype), self.logits(h)


def check_input(x: Tensor, types: Tensor, c: Tensor, index: Tensor) -> None:
    """An ArgumentError for shapes that do not fit one another."""
    if x.ndim != 2 or x.shape[1] != 3 or not x.is_floating_point():
        raise ArgumentError("xs[0]", x, "positions (rows, 3), floating")
    if types.shape != x.shape[:1] or types.dtype != torch.long:
        raise ArgumentError("xs[1]", types, f"types ({len(x)},), long")
    if index.shape != x.shape[:1] or index.dtype != torch.long:
        raise ArgumentError("index", index, f"a long tensor ({len(x)},): whose row is whose")
    if c.ndim != 1:
        raise ArgumentError("c", c, "one number per molecule, shape (B,)")
