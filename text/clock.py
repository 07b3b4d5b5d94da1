r"""The mutual-information clock: a schedule under which what x_t tells about x_0 falls linearly in t.

    I(x_t; x_0) = (1 - t) H(x_0),      x_0 of the unigram law, x_t from the chain

(Austin et al. 2021, "Structured Denoising Diffusion Models in Discrete State-Spaces", sec. 3.1 and A.6). For absorbing
chains this is alpha_t = 1 - t, whatever the unigrams: D3PM's 1/(T - t + 1).
"""

from __future__ import annotations

import math

import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ..core.categorical import Tokens
from ..core.errors import ArgumentError
from ..core.schedules import Tabulated

__all__ = ["information", "mutual_information"]


def information(kernel: Tokens, unigrams: Tensor, t: float) -> float:
    """I(x_t; x_0) in nats for x_0 ~ unigrams (K,); time and memory of the rows of all symbols with unigrams > 0."""
    (some,) = (unigrams > 0).nonzero(as_tuple=True)
    p = (unigrams[some] / unigrams.sum()).to(torch.float64).unsqueeze(1)
    rows = kernel.rows(some.unsqueeze(0), 0.0, t).squeeze(0)
    reached = (p * rows.exp()).sum(0).log()
    return max(float((p * rows.exp() * (rows - reached).masked_fill(rows == -math.inf, 0.0)).sum()), 0.0)


def mutual_information(kernel: Tokens, unigrams: Tensor, steps: int = 1000, nodes: int = 512) -> Tabulated:
    """The schedule of `steps` times for the chain of a kernel; alpha_1 = 0.

    Args:
        kernel: a chain in continuous time under any schedule with alpha_1 = 0, of which only the chain counts.
        unigrams: counts or probabilities (K,), of more than one symbol.
        steps: T; the schedule is exact at i/T and smooth between.
        nodes: at which the information is computed, to be interpolated by monotone cubics.

    Returns:
        A schedule to build the same chain with again.
    """
    unigrams = unigrams.detach().to("cpu", torch.float64)
    if unigrams.shape != (kernel.K,) or not bool((unigrams >= 0).all()) or int((unigrams > 0).sum()) < 2:
        raise ArgumentError("unigrams", unigrams, f"counts ({kernel.K},) >= 0 of at least two symbols")
    if not isinstance(steps, int) or steps < 1:
        raise ArgumentError("steps", steps, "an integer >= 1")
    if float(kernel.schedule(torch.ones((), dtype=torch.float64))[0]) > 0:
        raise ArgumentError("kernel", kernel.schedule, "a schedule with alpha_1 = 0")
    p = unigrams / unigrams.sum()
    entropy = float(-torch.xlogy(p, p).sum())
    # Dense at both ends, where alpha and the information are each other's square or worse.
    place = torch.linspace(0, math.pi / 2, nodes + 1, dtype=torch.float64)
    times = torch.sin(math.pi / 2 * torch.sin(place) ** 2) ** 2
    alpha = kernel.schedule(times)[0]
    share = torch.tensor([1.0, *(information(kernel, p, float(t)) / entropy for t in times[1:-1]), 0.0])
    angle = torch.asin(share.clamp(0, 1).sqrt()).flip(0).numpy()
    rising = [0, *(i for i in range(1, len(angle)) if angle[i] > max(angle[:i]))]
    curve = PchipInterpolator(angle[rising], torch.asin(alpha.clamp(0, 1)).flip(0).numpy()[rising])
    wanted = 1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps
    alphas = torch.from_numpy(curve(torch.asin(wanted.sqrt()).numpy())).sin()
    return Tabulated([*alphas[:-1].square().tolist(), 0.0])
