r"""Stochastic interpolants: a process between two data sets (Albergo, Boffi & Vanden-Eijnden 2023).

    x_t = alpha_t x_0 + sigma_t x_1 + gamma_t z,    z ~ N(0, Sigma),    gamma_0 = gamma_1 = 0

for pairs (x_0, x_1) of two laws. Given the ends, every law q(x_s | x_t, x_0, x_1), s < t, with mean

    alpha_s x_0 + sigma_s x_1 + sqrt(gamma_s^2 - v) (x_t - alpha_t x_0 - sigma_t x_1)/gamma_t    and variance v Sigma

keeps these marginals (DDIM's family, with two ends); `bridge` puts beliefs about the ends in their place and takes
v = eta^2 (gamma_s^2 - (sigma_s gamma_t/sigma_t)^2). As the grid is refined,

    eta = 0    is the flow dx/dt = E[alpha' x_0 + sigma' x_1 + gamma' z | x_t], which carries the one law to the other;
    eta = 1    is the Markov diffusion with the same marginals, in which x_1 drops out: it needs E[x_0 | x_t] alone.

For alpha = 1 - t, sigma = t and gamma^2 = 2 a^2 t (1 - t), eta = 1 is bridge matching: a Brownian bridge of variance
2 a^2 per unit of time towards the belief (and the Schroedinger bridge, where the pairs are coupled as its ends are).

Both beliefs are learned by `Denoising`: E[x_0 | x_t] on an `Interpolant`, E[x_1 | x_t] on the one with swapped ends,
read at 1 - t (`mirrored`) where the schedule is symmetric. Pairs are drawn by `partner`, or given in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, TensorPath
from .kernel import Time
from .noise import Noise
from .randomness import Randomness
from .sampling import Step, columns, prepared
from .schedules import RectifiedFlow, Schedule

__all__ = ["Interpolant", "bridge", "brownian", "mirrored"]


def brownian(scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    """gamma_t = scale sqrt(2 t (1 - t)) (Albergo et al. 2023, sec. 3)."""
    if not (math.isfinite(scale) and scale >= 0):
        raise ArgumentError("scale", scale, "a number >= 0")
    return lambda t: scale * (2 * t * (1 - t)).clamp_min(0).sqrt()


class Interpolant(TensorPath):
    """The path between two data sets with latent noise.

    Args:
        partner: `partner(x_0, generator)` -> x_1: a draw from the other data, independent or matched.
        schedule: (1, 0) at t = 0, (0, 1) at t = 1; straight by default.
        gamma: t -> gamma_t >= 0; `brownian()` by default.
        noise: the law of z, bound to its structure.
    """

    def __init__(
        self,
        partner: Callable[[Tensor, Randomness], Tensor],
        schedule: Schedule | None = None,
        gamma: Callable[[Tensor], Tensor] | None = None,
        noise: Noise | None = None,
    ):
        super().__init__(schedule if schedule is not None else RectifiedFlow(), noise)
        self.partner = partner
        self.gamma = gamma if gamma is not None else brownian()

    def pair(self, x_0: Tensor, generator: Randomness = None) -> Tensor:
        return self.partner(x_0, generator)

    def interpolate(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: Randomness = None) -> Tensor:
        """A draw of x_t between the two ends."""
        alpha_t, sigma_t = self.schedule(t)
        z = self.noise.draw(x_0, generator)
        return self.combine((alpha_t, x_0), (sigma_t, x_1), (self.gamma(t), z))


def mirrored(denoise: Callable[[Tensor, Time], Belief]) -> Callable[[Tensor, Time], Belief]:
    """A denoiser of the path with its ends swapped, read on the path itself: (x, t) -> denoise(x, 1 - t)."""
    return lambda x, t: denoise(x, 1 - t)


def bridge(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Interpolant,
    x: Tensor,
    times: Tensor,
    *,
    other: Callable[[Tensor, Time], Belief] | None = None,
    eta: float = 1.0,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """From the one data set to the other: a diffusion for eta = 1, an ODE solver of order 1 for eta = 0.

    Args:
        denoise: (x_t, t) -> belief about x_0.
        kernel: the interpolant.
        x: the state at times[0], for times[0] = 1 an x_1.
        times: grid (n + 1,) or (n + 1, B); n network calls, of `other` too where it is used. gamma changes fastest at
            both ends, so a grid that is dense there, such as sin^2(pi u/2) for even u, has the smaller error.
        other: (x_t, t) -> belief about x_1. Not needed for eta = 1, nor where gamma is 0: x_t and x_0 tell x_1 there.
        eta: in [0, 1].
        generator: one, or a list with one per example; unused for eta = 0.
    """
    if not isinstance(kernel, Interpolant):
        raise ArgumentError("kernel", kernel, "an interpolant")
    if not 0 <= eta <= 1:
        raise ArgumentError("eta", eta, "a number in [0, 1]")
    times, alpha, sigma = prepared(kernel, times)
    gamma = kernel.gamma(times)
    alpha_t, alpha_s, sigma_t, sigma_s = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    gamma_t, gamma_s = gamma[:-1], gamma[1:]
    kept = sigma_s / sigma_t
    fresh = eta**2 * (gamma_s**2 - (kept * gamma_t) ** 2).clamp_min(0)
    of_x = torch.where(gamma_t > 0, (gamma_s**2 - fresh).clamp_min(0).sqrt() / gamma_t, kept)
    of_1 = sigma_s - of_x * sigma_t
    used = of_1.abs() > 1e-12 * sigma_s
    if other is None and bool(used.any()):
        raise ArgumentError("other", other, "a denoiser of x_1: with this eta and gamma it is needed")
    calls = used.reshape(len(used), -1).any(1).tolist()
    table = columns(times[:-1], times[1:], of_x, alpha_s - of_x * alpha_t, of_1, fresh.sqrt())
    return _bridged(denoise, kernel, x, list(zip(*table, calls, strict=True)), other, eta, generator)


def _bridged(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Interpolant,
    x: Tensor,
    rows: list[tuple[Time, Time, Time, Time, Time, Time, bool]],
    other: Callable[[Tensor, Time], Belief] | None,
    eta: float,
    generator: Randomness,
) -> Iterator[Step[Tensor]]:
    for t, s, a, b, c, d, call in rows:
        belief = denoise(x, t)
        terms = [(a, x), *belief.times(b)]
        if call and other is not None:
            terms.extend(other(x, t).times(c))
        if eta > 0:
            terms.append((d, kernel.noise.draw(x, generator)))
        x = kernel.combine(*terms)
        yield Step(s, x, belief)
