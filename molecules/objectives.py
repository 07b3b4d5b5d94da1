r"""Losses of the literature on conformers that are not the denoising loss. They are for comparison.

Both ask the network for something else than E[x_1 | x_t]. What it learns is therefore no score of the noisy data: no
density belongs to it, likelihoods and ELBOs computed from it mean nothing, and samplers that take it for the noise are
heuristics.

GeoDiff (Xu et al. 2022, arXiv:2203.02923, section 4.3 and its program) writes the positions as P_t = alpha_t P_0 +
sigma_t x_1 and asks for the noise of the *distances*, carried to positions by the chain rule:

    e_i = sum_j (d_ij(P_t) - alpha_t d_ij(P_0)) / sigma_t  (P_t,i - P_t,j) / d_ij(P_t)

For little noise e = K x_1 with the stiffness matrix K, the sum over pairs of u_ij u_ij' on the difference of i and j,
whose mean eigenvalue over the 3 N coordinates is (N - 1) / 3: the target of a molecule of 44 atoms is 14 times its
noise, along some directions more than others. `normalised` divides by that mean, so that sizes are alike; the
directions remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from ..core.clouds import Centred
from ..core.denoisers import GaussianDenoiser
from ..core.errors import ArgumentError
from ..core.gaussian import TensorPath
from ..core.objectives import Denoising, Look, Times, Weight, flow_velocity, opened, simple
from ..core.randomness import Randomness
from .alignment import kabsch

__all__ = ["AlignedTarget", "ChainRule", "chain_rule"]


def chain_rule(P_t: Tensor, P_0: Tensor, alpha: Tensor, sigma: Tensor, edge_index: Tensor) -> Tensor:
    """GeoDiff's target e, the noise of distances at the positions, (rows, 3); 0 along pairs that coincide.

    Args:
        P_t, P_0: noisy and clean positions (rows, 3), of one unit.
        alpha, sigma: of each row, (rows, 1), sigma > 0; equal within a molecule.
        edge_index: (2, E) pairs, each in both directions.
    """
    i, j = edge_index
    between = P_t[i] - P_t[j]
    now, before = between.norm(dim=1, keepdim=True), (P_0[i] - P_0[j]).norm(dim=1, keepdim=True)
    direction = torch.where(now > 0, between / now.clamp_min(torch.finfo(now.dtype).tiny), 0)
    return torch.zeros_like(P_t).index_add(0, i, (now - alpha[i] * before) / sigma[i] * direction)


def checked(denoiser: GaussianDenoiser, kernel: TensorPath) -> None:
    """An ArgumentError unless the kernel is one of centred clouds."""
    if not isinstance(kernel, TensorPath) or not isinstance(kernel.noise, Centred):
        raise ArgumentError("kernel", kernel, "a kernel of clouds, whose law is Centred")
    if not isinstance(denoiser, GaussianDenoiser):
        raise ArgumentError("denoiser", denoiser, "a GaussianDenoiser")


def draft_of(batch: Mapping[str, Any]) -> Tensor:
    """The draft of a batch, zeros if it has none."""
    draft = batch.get("draft")
    return torch.zeros_like(batch["x_0"]) if draft is None else draft


@final
class ChainRule(nn.Module):
    """The squared error of the noise that a denoiser sees against GeoDiff's chain-rule target, per degree of freedom.

    No density belongs to what is learned: never use it for likelihoods.

    Args:
        denoiser: the module that learns.
        kernel: Gaussian, of centred clouds.
        times: the law of t.
        normalised: divide the target by (N - 1) / 3, the mean eigenvalue of the stiffness matrix of N atoms of which
            all pairs count; False is the published target.
    """

    def __init__(
        self, denoiser: GaussianDenoiser, kernel: TensorPath, times: Times | None = None, normalised: bool = True
    ):
        super().__init__()
        checked(denoiser, kernel)
        self.denoising = Denoising(denoiser, kernel, simple, times)
        self.normalised = bool(normalised)

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,). The batch holds "x_0", "graph", "structure" and usually "draft"."""
        given = opened(self.denoising.kernel, batch)
        return self.loss(self.denoising.look(given, generator), batch["graph"].edge_index, draft_of(batch))

    def loss(self, look: Look, edge_index: Tensor, draft: Tensor) -> Tensor:
        """The error of the belief's noise (x_t - alpha_t belief) / sigma_t, (B,)."""
        kernel = look.kernel
        law = kernel.noise
        numbers = kernel.schedule(look.t)
        alpha, sigma = (law.spread(number, look.x_0) for number in numbers)
        P_t = look.x_t + alpha * draft
        target = chain_rule(P_t, look.x_0 + draft, alpha, sigma, edge_index)
        if self.normalised:
            target = target * law.spread(3 / (law.counts(look.x_0) - 1).clamp_min(1), target)
        seen = (look.x_t - alpha * look.belief.mean) / sigma
        return law.total((seen - target) ** 2) / kernel.dims(look.x_0).clamp_min(1)


@final
class AlignedTarget(nn.Module):
    """The denoising loss against x_0 turned onto x_t, GeoDiff-A (Xu et al. 2022, section 4.3).

    Clean positions are rotated by Kabsch's rotation onto the noisy ones before they are the target, so that the network
    is not asked for the rotation that noise happens to have. That changes the target with the noise: no density
    belongs to what is learned; never use it for likelihoods. `kernel.Aligned` turns the noise instead.

    Args:
        denoiser: the module that learns.
        kernel: Gaussian or a path, of centred clouds.
        weight: of the error, see `core.objectives`.
        times: the law of t.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        kernel: TensorPath,
        weight: Weight = flow_velocity,
        times: Times | None = None,
    ):
        super().__init__()
        checked(denoiser, kernel)
        self.denoising = Denoising(denoiser, kernel, weight, times)

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,). The batch holds "x_0", "structure", conditions and usually "draft"."""
        given = opened(self.denoising.kernel, batch)
        return self.loss(self.denoising.look(given, generator), draft_of(batch))

    def loss(self, look: Look, draft: Tensor) -> Tensor:
        """The weighted error of the belief about the turned x_0, (B,)."""
        law = look.kernel.noise
        alpha = law.spread(look.kernel.schedule(look.t)[0], look.x_0)
        turned = kabsch(look.x_0 + draft, look.x_t + alpha * draft, law.index, law.num_graphs) - draft
        return self.denoising.loss(look._replace(x_0=law.project(turned)))
