r"""Noise laws and paths for positions of atoms: states (rows, 3), rows of all molecules one after another.

`Harmonic` is the law of a molecule whose bonds are springs (Jing et al. 2023, "EigenFold", sec. 3; Stark et al. 2024,
"Harmonic Self-Conditioned Flow Matching", sec. 3.2). With L the Laplacian of the bond graph and k the springs'
strength, in every coordinate by itself

    p(x) ~ exp(-k/2 sum over bonds |x_i - x_j|^2) = N(0, (k L)^+),

so bonded atoms start close together. A connected graph leaves nothing but the centre of mass undetermined, and the law
lives on centred states, 3 (N - 1) dimensions. The shape of some of the atoms has a law of the same kind: marginalising
the others, C_S = P_S C P_S for the covariance C = (k L)^+ and P_S the projection on centred positions of S. Here it is
not independent of the other atoms: given the shape of S these move, C P_S C_S^+ times what S has moved, and `blend`
carries them along. That keeps draws of the conditional law draws of it (Matheron's rule).

`Aligned` pairs data with noise that is turned onto them first (Klein et al. 2023, "Equivariant flow matching"; Song et
al. 2023; Hassan et al. 2024, "ET-Flow").
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from ..core.clouds import Centred
from ..core.errors import ArgumentError
from ..core.gaussian import TensorPath
from ..core.noise import checked_mask, own_view
from ..core.randomness import Randomness
from ..core.schedules import Schedule
from .alignment import kabsch

__all__ = ["Aligned", "Harmonic"]

CONNECTED = 1e-9
"""Least second eigenvalue of the Laplacian of a connected graph: a chain of n atoms has about (pi/n)^2."""


class Harmonic(Centred):
    """N(0, (strength L)^+) on ragged batches of molecules, L the Laplacian of the bond graph.

    `given(index=, num_graphs=, bonds=)` decomposes the Laplacians of all molecules at once, padded, in float64.

    Args:
        strength: of every bond, in 1/unit^2 for states in that unit, > 0: a bond's vector has variance at most
            1/strength in each coordinate, and exactly that where it is part of no ring.
    """

    def __init__(self, strength: float = 1.0):
        super().__init__()
        if not (math.isfinite(strength) and strength > 0):
            raise ArgumentError("strength", strength, "a finite number > 0")
        self.strength = float(strength)
        for name in ("covariance", "root", "whitening"):  # (B, n, n), 0 on the padding
            self.register_buffer(name, torch.zeros(0, 0, 0, dtype=torch.float64), persistent=False)
        self.register_buffer("volume", torch.zeros(0, dtype=torch.float64), persistent=False)
        self.covariance: Tensor
        self.root: Tensor
        self.whitening: Tensor
        self.volume: Tensor
        """log pseudo-determinant of the covariance in one coordinate, (B,)"""

    def given(self, **structure: Tensor | int) -> Self:
        """`index=` (rows,) long, ascending, `num_graphs=` B, and `bonds=` (2, M) long: rows, each bond once."""
        if not structure:
            return self
        bonds = structure.get("bonds")
        if structure.keys() != {"index", "num_graphs", "bonds"} or not isinstance(bonds, Tensor):
            raise ArgumentError("structure", sorted(structure), "index (rows,), num_graphs and bonds (2, M)")
        del structure["bonds"]
        view = super().given(**structure)
        check_bonds(bonds, view.index)
        sizes, place = view.layout.sizes, view.layout.places()
        width = int(sizes.max()) if len(sizes) else 0
        laplacian = torch.zeros(view.num_graphs, width, width, dtype=torch.float64, device=bonds.device)
        one, two, graph = place[bonds[0]], place[bonds[1]], view.index[bonds[0]]
        spring = laplacian.new_tensor(self.strength)
        for i, j, sign in ((one, two, -1), (two, one, -1), (one, one, 1), (two, two, 1)):
            laplacian.index_put_((graph, i, j), sign * spring, accumulate=True)
        values, vectors = torch.linalg.eigh(laplacian)
        # Ascending: padding and the centre of mass come first, with eigenvalues 0.
        real = torch.arange(width, device=sizes.device) > (width - sizes).unsqueeze(1)
        loose = (real & (values < CONNECTED * self.strength)).any(1)
        if bool(loose.any()):
            which = loose.nonzero().flatten().tolist()
            raise ArgumentError("bonds", f"graph {which[0]} in several pieces", "bonds that connect each graph")
        view._hold(torch.where(real, 1 / values, 0.0), vectors)
        return view

    def _hold(self, variances: Tensor, axes: Tensor) -> None:
        """Keep the law with these variances (B, n), 0 where nothing is random, along these axes (B, n, n)."""
        there = variances > 0
        known = torch.where(there, variances, 1.0)
        for name, values in (("covariance", known), ("root", known.sqrt()), ("whitening", known.rsqrt())):
            # Symmetric roots are unique, so that a seed means the same draw however equal eigenvalues are split.
            setattr(self, name, (axes * torch.where(there, values, 0.0).unsqueeze(1)) @ axes.mT)
        self.volume = known.log().sum(1)

    def times(self, matrices: Tensor, x: Tensor) -> Tensor:
        """One matrix (B, n, n) per molecule times its rows, (rows, D)."""
        self.examples(x)
        graph, place = self.layout.on(x.device), self.layout.places().to(x.device)
        padded = x.new_zeros(self.num_graphs, matrices.shape[1], x.shape[1])
        padded[graph, place] = x
        return (matrices.to(x) @ padded)[graph, place]

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        # Projected again for the rounding of the product.
        return self.project(self.times(self.root, self.standard(like, generator)))

    def squares(self, x: Tensor) -> Tensor:
        return self.total(self.times(self.whitening, self.project(x)) ** 2)

    def log_det(self, like: Tensor) -> Tensor:
        return self.volume.to(like) * like.shape[1]

    def part(self, mask: Tensor) -> Harmonic:
        """The law of the masked rows' shape: their coordinates from their own centre."""
        view = own_view(self)
        view.rows = self.counted(checked_mask(mask))
        inner = view._centring()
        variances, axes = torch.linalg.eigh(inner @ self.covariance @ inner)
        rank = (view.counts(self.covariance.new_empty(len(self.index))) - 1).clamp_min(0)
        width = variances.shape[1]
        real = torch.arange(width, device=rank.device) >= (width - rank).unsqueeze(1)
        view._hold(torch.where(real, variances, 0.0), axes)
        return view

    def blend(self, mask: Tensor, known: Tensor, x: Tensor) -> Tensor:
        """The masked rows take the known ones' shape; the others and the centre follow as the law couples them."""
        part = self.part(mask)
        moved = part.project(known) - part.project(x)
        # C P_S C_S^+: the whitening of the part is 0 off its rows.
        return x + self.times(self.covariance, part.times(part.whitening, part.times(part.whitening, moved)))

    def taken(self, index: Tensor, like: Tensor) -> Self:
        view = super().taken(index, like)
        for name in ("covariance", "root", "whitening", "volume"):
            setattr(view, name, getattr(self, name)[index])
        return view

    def _centring(self) -> Tensor:
        """The projections on centred positions of the rows that count, (B, n, n)."""
        assert self.rows is not None
        there = self.covariance.new_zeros(self.covariance.shape[:2])
        there[self.layout.on(there.device), self.layout.places().to(there.device)] = self.rows.squeeze(1).to(there)
        share = there / there.sum(1, keepdim=True).clamp_min(1)
        return torch.diag_embed(there) - there.unsqueeze(2) * share.unsqueeze(1)


class Aligned(TensorPath):
    """x_t = alpha_t x_0 + sigma_t R x_1: noise turned onto the data, molecule by molecule, before the two are paired.

    Paths get shorter and cross less. The price: x_1 depends on x_0, so the marginals of this path are no densities of
    the Gaussian kernel of the same law and give no bound on a likelihood. The learned field is equivariant all the
    same, and every R x_1 is as likely under the law as x_1: sampling starts from the unturned law,
    `Gaussian(schedule, noise)`, with any deterministic solver.

    Args:
        schedule: alpha_t, sigma_t.
        noise: `Centred` or `Harmonic`, on states (rows, 3).
    """

    def __init__(self, schedule: Schedule, noise: Centred):
        if not isinstance(noise, Centred):
            raise ArgumentError("noise", noise, "a law of clouds: Centred or Harmonic")
        super().__init__(schedule, noise)

    def pair(self, x_0: Tensor, generator: Randomness = None) -> Tensor:
        """Draws of the law, each turned by the proper rotation that brings it closest to x_0."""
        law = self.noise
        assert isinstance(law, Centred)
        return kabsch(law.draw(x_0, generator), x_0, law.index, law.num_graphs)


def check_bonds(bonds: Tensor, index: Tensor) -> None:
    """An ArgumentError unless bonds (2, M) join two rows of one molecule, each pair once."""
    if bonds.ndim != 2 or bonds.shape[0] != 2 or bonds.dtype != torch.long:
        raise ArgumentError("bonds", bonds, "a long tensor (2, M) of rows")
    if bonds.numel() and not 0 <= int(bonds.min()) <= int(bonds.max()) < len(index):
        raise ArgumentError("bonds", (int(bonds.min()), int(bonds.max())), f"rows in 0 ... {len(index) - 1}")
    if bool((index[bonds[0]] != index[bonds[1]]).any()):
        raise ArgumentError("bonds", bonds, "bonds within one graph")
    low, high = bonds.min(0).values, bonds.max(0).values
    if bool((low == high).any()) or len((low * len(index) + high).unique()) != bonds.shape[1]:
        raise ArgumentError("bonds", bonds, "each bond once, between two different rows")
