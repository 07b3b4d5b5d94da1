r"""DDIM(eta): processes with the same marginals, from deterministic to ancestral (Song et al. 2021, eq. 12).

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z,
    v = eta^2 (1 - c) sigma_s^2,    eps = (x_t - alpha_t x_0) / sigma_t

with (1 - c) sigma_s^2 the posterior variance, so eta = 1 is ancestral sampling and eta = 0 an ODE solver of order 1. In
the last interval, where sigma_s = 0, there is no noise and none is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .kernel import Time
from .randomness import Randomness
from .sampling import Steps, noisy, prepared, walk

__all__ = ["ddim"]


def ddim(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Deterministic for eta = 0, ancestral for eta = 1.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B); n network calls.
        eta: in [0, 1].
        generator: one, or a list with one per example; unused for eta = 0.
    """
    if not 0 <= eta <= 1:
        raise ArgumentError("eta", eta, "a number in [0, 1]")
    times, alpha, sigma = (noisy if eta > 0 else prepared)(kernel, times)
    alpha_t, alpha_s, sigma_t, sigma_s = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    share = eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2).clamp_min(0)
    of_eps = sigma_s * (1 - share).sqrt()
    of_x, of_mean = of_eps / sigma_t, alpha_s - of_eps * alpha_t / sigma_t
    of_noise = sigma_s * share.sqrt()
    yield from walk(denoise, kernel, x, times, of_x, of_mean, of_noise if eta > 0 else None, generator)
