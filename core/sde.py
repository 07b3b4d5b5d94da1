r"""Stochastic one-step samplers of the reverse SDE (Song et al. 2021).

With f(t) = d log alpha_t/dt, g(t)^2 = -sigma_t^2 d lambda_t/dt and the score Sigma grad log q(x_t) =
(alpha_t m - x_t)/sigma_t^2 of a belief m,

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw

has the marginals of the forward process for every eta: eta = 1 is the reverse SDE (eq. 6), eta = 0 the
probability-flow ODE (eq. 13), where the score keeps the factor 1/2. `euler_maruyama` discretises it with f and g taken
at the beginning of each step.

`reverse_diffusion` (appendix E) reverses the forward chain of the grid itself, x_t = x_s + f_t(x_s) + G_t z,

    x_s = x_t - f_t(x_t) + G_t^2 score + G_t z,    f_t(x) = (alpha_t/alpha_s - 1) x,  G_t^2 = (1 - c) sigma_t^2

with c = (alpha_t sigma_s / (alpha_s sigma_t))^2: for variance preserving schedules f_t(x) = (sqrt(1 - beta) - 1) x and
G_t^2 = beta, for exploding ones f_t = 0 and G_t^2 = sigma_t^2 - sigma_s^2; sub-VP is no special case and neither is
alpha_1 = 0.

Both have weak order 1. Neither adds noise in the last interval: `reverse_diffusion` returns its mean there, and
`euler_maruyama`, for which an interval in which sigma falls to 0 is never short, the belief's mean.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .kernel import Time
from .randomness import Randomness
from .sampling import Steps, noisy, walk

__all__ = ["euler_maruyama", "reverse_diffusion"]


def reverse_diffusion(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """The reversed forward chain; weak order 1, n network calls.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        generator: one, or a list with one per example.
    """
    times, alpha, sigma = noisy(kernel, times)
    ratio = alpha[:-1] / alpha[1:]
    variance = forward_variance(alpha, sigma)
    pull = variance / sigma[:-1] ** 2
    of_x, of_mean = 2 - ratio - pull, pull * alpha[:-1]
    yield from walk(denoise, kernel, x, times, of_x, of_mean, variance.sqrt(), generator)


def euler_maruyama(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Euler-Maruyama of the reverse SDE; weak order 1, n network calls.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, alpha_t > 0 on the grid: f is infinite elsewhere.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        eta: >= 0; 1 the reverse SDE, 0 the probability-flow ODE.
        generator: one, or a list with one per example; unused for eta = 0.
    """
    if not 0 <= eta < float("inf"):
        raise ArgumentError("eta", eta, "a finite number >= 0")
    times, alpha, sigma = noisy(kernel, times)
    if bool((alpha == 0).any()):
        raise ArgumentError(
            "times",
            "a time at which alpha_t = 0",
            "alpha_t > 0, since the drift is infinite at 0: start below t = 1 or use `reverse_diffusion`",
        )
    t, step = times[:-1], times[:-1] - times[1:]
    drift, diffusion = kernel.schedule.drift(t).detach(), kernel.schedule.diffusion(t).detach()
    pull = (1 + eta**2) / 2 * diffusion**2 * step / sigma[:-1] ** 2
    of_x, of_mean = 1 - drift * step - pull, pull * alpha[:-1]
    of_x[-1], of_mean[-1] = 0, 1
    of_noise = eta * diffusion * step.sqrt() if eta > 0 else None
    yield from walk(denoise, kernel, x, times, of_x, of_mean, of_noise, generator)


def forward_variance(alpha: Tensor, sigma: Tensor) -> Tensor:
    """The variance sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2 of q(x_t | x_s) over a grid's intervals."""
    ratio = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    # 1 - c in two factors: c is close to 1 on fine grids.
    return sigma[:-1] ** 2 * ((1 - ratio) * (1 + ratio)).clamp_min(0)
