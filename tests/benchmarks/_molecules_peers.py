"""GeoDiff as it was published, written anew: the peer of `molecules_mini` (Xu et al., ICLR 2022, arXiv:2203.02923).

**Frame.** Variance exploding: x = x_0 + sigma noise with sigma = sqrt((1 - a) / a), a the running product of 1 - beta;
beta rises as a sigmoid on [-6, 6] from 1e-7 to 2e-3 in T = 5000 steps; so sigma goes from 0.0022 to 12.2 Angstrom.

**Network**, 793,858 trainable parameters, not told the time. Edges are all bonded, two- and three-hop pairs ("local")
and all pairs within 10 Angstrom, both directions stored. An edge is MLP(d) * Embedding(type). The global branch is a
SchNet of six blocks over all edges, the local one a GIN of four over the local edges; each reads a number s out of
h_i * h_j and the edge, and moves atom i by sum_e (x_i - x_j) / d s.

**Faults that are part of the recipe** and kept: the local branch uses the global edge encoder, so that 29,568
parameters never learn; every undirected edge is counted twice in the readout; the target is the change of distances
carried to positions by the chain rule, which is no noise of the diffusion; distances cannot tell mirror images apart.

**Loss** 2 |global|^2 + 5 |local|^2, a mean over atoms, t and T - 1 - t in pairs; Adam 1e-3 with betas (0.95, 0.999),
gradients clipped to a norm of 1e4, batches of 64, no averaged weights. (Its two optimizers are one for Adam; its
plateau rule looks every 5000 steps and waits for ten such looks.)

**Sampler** ("ld"): annealed Langevin through all T steps, step 1e-6 (sigma / 0.01)^2, the global branch weighted by
`w_global` and only below sigma = 0.5, clipped to 1000 per atom; a molecule that became NaN is drawn once more with the
local branch clipped to 20.

**Kinder to the peer than its own code:** whole batches of different molecules per call instead of one molecule; the
global branch is not computed where its sampler throws it away (`skip=False` does as published); edges of the molecular
graph are built once. Its radius graph keeps at most 32 neighbours, which no molecule of QM9 exceeds.

**Parity** was checked once against the public code (commit ea0ca48, run outside this repository with stand-ins for
dependencies that cannot be installed) with the same random weights on a batch of seven molecules of 9-27 atoms,
positions clean and with noise of 0.3 and 5 Angstrom: edges and types equal; numbers on edges within 7e-13 in float64
(to 196) and 5e-4 in float32; loss and gradients within 5e-8 relative (sigma is float32 in both); 40 steps of the
sampler, same noise, with and without clips and `skip`, within 3e-14 Angstrom in float64 (positions to 51).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from rdkit import Chem
from torch import Tensor, nn
from torch.nn import functional as F

from polydiff.core.randomness import Randomness, randint, randn
from polydiff.molecules.graphs import ELEMENTS

__all__ = ["Edges", "GeoDiff", "edge_types"]

WIDTH, CUTOFF, T = 128, 10.0, 5000
BETAS = (1e-7, 2e-3)
BOND_CODES = (0, 1, 2, 3, 12, 20)
"""Our kinds of bonds (none, single, double, triple, aromatic, other) as RDKit numbers them, as its embedding does."""
HOP_CODES = {2: 23, 3: 24}
STEP, GLOBAL_BELOW, CLIP, RETRY_CLIP = 1e-6, 0.5, 1000.0, 20.0


class Edges(NamedTuple):
    """Edges of one call, both directions: ends (E,), types (E,), lengths (E,) and directions (x_i - x_j) / d (E, 3)."""

    i: Tensor
    j: Tensor
    type: Tensor
    length: Tensor
    towards: Tensor


def edge_types(graph: Any) -> Tensor:
    """GeoDiff's number of every ordered pair of a molecule: 0 none, 1-21 bonds, 23 two hops, 24 three hops, (E,)."""
    bond, hops = graph.edge[:, 0], graph.edge[:, 1]
    types = torch.tensor(BOND_CODES, device=bond.device)[bond]
    for far, code in HOP_CODES.items():
        types = torch.where((bond == 0) & (hops == far), code, types)
    return types


class Part(NamedTuple):
    """Some of the molecules of a batch, as far as the sampler looks at them."""

    atom: Tensor
    edge: Tensor
    edge_index: Tensor
    batch: Tensor
    num_graphs: int


def chosen(graph: Any, which: Tensor) -> Part:
    """The molecules of a batch that `which` (B,) names, in order."""
    rows = which[graph.batch]
    edges = rows[graph.edge_index[0]]
    place, number = rows.cumsum(0) - 1, which.cumsum(0) - 1
    index = place[graph.edge_index[:, edges]]
    return Part(graph.atom[rows], graph.edge[edges], index, number[graph.batch[rows]], int(which.sum()))


def atomic_numbers(graph: Any) -> Tensor:
    """Z of every atom, (rows,)."""
    numbers = [Chem.GetPeriodicTable().GetAtomicNumber(symbol) for symbol in ELEMENTS]
    return torch.tensor(numbers, device=graph.atom.device)[graph.atom[:, 0]]


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def shifted_softplus(x: Tensor) -> Tensor:
    """SchNet's activation; the shift is log 2 rounded to float32, as published."""
    return F.softplus(x) - 0.6931471824645996


@final
class EdgeEncoder(nn.Module):
    """MLP(d) * Embedding(type)."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(100, WIDTH)
        self.distance = perceptron(1, WIDTH, WIDTH)

    def forward(self, edges: Edges) -> Tensor:
        return self.distance(edges.length[:, None]) * self.kind(edges.type)


@final
class SchNetBlock(nn.Module):
    """A continuous-filter convolution and its update."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.before, self.after = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.update = nn.Linear(WIDTH, WIDTH)
        nn.init.xavier_uniform_(self.before.weight)
        nn.init.xavier_uniform_(self.after.weight)
        nn.init.zeros_(self.after.bias)

    def forward(self, h: Tensor, edges: Edges, features: Tensor) -> Tensor:
        weights = self.filter[1](shifted_softplus(self.filter[0](features)))
        weights = weights * (edges.length <= CUTOFF).to(weights)[:, None]
        met = torch.zeros_like(h).index_add(0, edges.i, self.before(h)[edges.j] * weights)
        return h + self.update(shifted_softplus(self.after(met)))


@final
class Branch(nn.Module):
    """Either encoder with its readout of one number per edge."""

    def __init__(self, blocks: nn.ModuleList, atoms: nn.Embedding):
        super().__init__()
        self.atoms, self.blocks = atoms, blocks
        self.read = perceptron(2 * WIDTH, WIDTH, WIDTH // 2, 1)

    def forward(self, z: Tensor, edges: Edges, features: Tensor) -> Tensor:
        h = self.atoms(z)
        for k, block in enumerate(self.blocks):
            if isinstance(block, SchNetBlock):
                h = block(h, edges, features)
            else:  # GIN with bonds: relu messages, a residual, no activation after the last
                met = h.index_add(0, edges.i, F.relu(h[edges.j] + features))
                new = block(met)
                h = h + (F.relu(new) if k < len(self.blocks) - 1 else new)
        return self.read(torch.cat([h[edges.i] * h[edges.j], features], -1)).squeeze(-1)


@final
class GeoDiff(nn.Module):
    """Network, loss and sampler; see the module's docstring. Calling it is the loss of a batch of `Conformers`."""

    def __init__(self) -> None:
        super().__init__()
        self.edge_encoder, self.dead_edge_encoder = EdgeEncoder(), EdgeEncoder()
        self.far = Branch(nn.ModuleList(SchNetBlock() for _ in range(6)), nn.Embedding(100, WIDTH, max_norm=10.0))
        self.near = Branch(nn.ModuleList(perceptron(WIDTH, WIDTH, WIDTH) for _ in range(4)), nn.Embedding(100, WIDTH))
        beta = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (BETAS[1] - BETAS[0]) + BETAS[0]
        a = (1 - beta.float()).cumprod(0)
        self.register_buffer("sigma", ((1 - a) / a).sqrt(), persistent=False)
        self.sigma: Tensor

    # ------------------------------------------------------------------------------------------------------ network

    def edges(self, graph: Any, x: Tensor, types: Tensor, local: bool) -> Edges:
        """All edges at x (rows, 3), or the local ones alone."""
        i, j = graph.edge_index
        if local:
            near = types > 0
            i, j, types = i[near], j[near], types[near]
        apart = x[i] - x[j]
        length = apart.norm(dim=-1)
        if not local:
            kept = (length <= CUTOFF) | (types > 0)
            i, j, types, apart, length = (part[kept] for part in (i, j, types, apart, length))
        return Edges(i, j, types, length, apart / length[:, None])

    @staticmethod
    def moved(edges: Edges, s: Tensor, rows: int) -> Tensor:
        """Numbers on edges (E,) carried to positions (rows, 3), every undirected edge twice."""
        force = edges.towards * s[:, None]
        zero = force.new_zeros(rows, 3)
        return zero.index_add(0, edges.i, force).index_add(0, edges.j, -force)

    def look(self, z: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Edges]:
        """(numbers of all edges, numbers of the local ones, the local edges): one call as published."""
        features = self.edge_encoder(edges)
        local = edges.type > 0
        inner = Edges(*(part[local] for part in edges))
        return self.far(z, edges, features), self.near(z, inner, features[local]), inner

    # --------------------------------------------------------------------------------------------------------- loss

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Losses (B,) of a batch whose states are positions in Angstrom; their mean is the mean over atoms."""
        x_0, graph = batch["x_0"], batch["graph"]
        index, B = batch["structure"]["index"], batch["structure"]["num_graphs"]
        half = B // 2 + 1
        drawn = randint(T, (B,), generator, device=x_0.device)
        t = torch.cat([drawn[:half], T - 1 - drawn[:half]])[:B]
        sigma = self.sigma[t][index]
        x = x_0 + noise(x_0, index, B, generator) * sigma[:, None]
        types = edge_types(graph)
        edges = self.edges(graph, x, types, local=False)
        far, near, inner = self.look(atomic_numbers(graph), edges)
        clean = (x_0[edges.i] - x_0[edges.j]).norm(dim=-1)
        target = (clean - edges.length) / sigma[edges.i]
        local = edges.type > 0
        outer = torch.where(local, 0.0, far - target)
        error = 2 * self.moved(edges, outer, len(x)).square().sum(-1)
        error = error + 5 * self.moved(inner, near - target[local], len(x)).square().sum(-1)
        return error.new_zeros(B).index_add(0, index, error) * (B / len(x))

    # ------------------------------------------------------------------------------------------------------ sampler

    @torch.no_grad()
    def sample(
        self,
        graph: Any,
        generator: torch.Generator | None = None,
        *,
        w_global: float = 0.3,
        steps: int = T,
        skip: bool = True,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Positions (rows, 3) in Angstrom and which molecules (B,) came out finite, the retry included.

        Args:
            graph: a batch as `molecules.graphs` makes it, one conformer of each.
            w_global: weight of the global branch.
            steps: fewer than T take the noisiest alone (for timing; as the original's `n_steps`).
            skip: leave the global branch out where it would be discarded.
            start: standard normal rows to start from.
        """
        rows, B = len(graph.atom), int(graph.num_graphs)
        z = torch.randn(rows, 3, generator=generator) if start is None else start
        x = self._langevin(graph, z, generator, w_global, steps, skip, None)
        bad = x.new_zeros(B, dtype=torch.bool)
        bad[graph.batch[~x.isfinite().all(-1)]] = True
        if bad.any():
            again = chosen(graph, bad)
            z = torch.randn(len(again.atom), 3, generator=generator)
            x[bad[graph.batch]] = self._langevin(again, z, generator, w_global, steps, skip, RETRY_CLIP)
            finite = x.new_ones(B, dtype=torch.bool)
            finite[graph.batch[~x.isfinite().all(-1)]] = False
            return x, finite
        return x, ~bad

    def _langevin(
        self,
        graph: Any,
        z: Tensor,
        generator: torch.Generator | None,
        w_global: float,
        steps: int,
        skip: bool,
        clip_local: float | None,
    ) -> Tensor:
        index, B, rows = graph.batch, int(graph.num_graphs), len(graph.atom)
        count = torch.bincount(index, minlength=B)[:, None]
        atoms, types = atomic_numbers(graph), edge_types(graph)
        x = z * self.sigma[-1]
        for k in range(T - 1, T - 1 - steps, -1):
            sigma = self.sigma[k]
            far = bool(sigma < GLOBAL_BELOW)
            pull = torch.zeros_like(x)
            if far or not skip:
                edges = self.edges(graph, x, types, local=False)
                outer, near, inner = self.look(atoms, edges)
                if far:
                    outer = torch.where(edges.type > 0, 0.0, outer)
                    pull = w_global * clipped(self.moved(edges, outer, rows), CLIP)
            else:
                inner = self.edges(graph, x, types, local=True)
                near = self.near(atoms, inner, self.edge_encoder(inner))
            score = self.moved(inner, near, rows)
            if clip_local is not None:
                score = clipped(score, clip_local)
            score = score + pull
            step = STEP * (sigma / 0.01) ** 2
            x = x + step * score / sigma + torch.randn(rows, 3, generator=generator) * (2 * step).sqrt()
            x = x - (x.new_zeros(B, 3).index_add(0, index, x) / count)[index]
        return x


def clipped(force: Tensor, limit: float) -> Tensor:
    """Rows shortened to at most `limit`."""
    length = force.norm(dim=-1, keepdim=True)
    return force * torch.where(length > limit, limit / length, torch.ones_like(length))


def noise(like: Tensor, index: Tensor, num_graphs: int, generator: Randomness) -> Tensor:
    """Standard normal rows; with a list of generators, each molecule's from its own."""
    if not isinstance(generator, list):
        return randn(like.shape, generator, dtype=like.dtype, device=like.device)
    sizes = torch.bincount(index, minlength=num_graphs).tolist()
    parts = [torch.randn(n, 3, generator=one, dtype=like.dtype) for n, one in zip(sizes, generator, strict=True)]
    return torch.cat(parts).to(like.device)
