r"""SDE-DPM-Solver++: exponential integrators of the reverse SDE in the belief (Lu et al. 2022b, section 5).

Let h = (lambda_s - lambda_t)/2, H = (1 + eta) h, and D(u) the belief along the step, u = 0 at t and 1 at s. The exact
solution of the reverse SDE with noise scaled by sqrt(eta) is

    x_s = sigma_s/sigma_t e^(-eta h) x_t + alpha_s H int_0^1 e^(-H (1 - u)) D(u) du + sigma_s sqrt(1 - e^(-2 eta h)) z.

eta = 1 is the reverse SDE, eta = 0 the probability-flow ODE; in between, eta is the square of `euler_maruyama`'s. The
orders differ in D(u):

    1   D constant: x_0(t); with eta = 1 that is ancestral sampling
    2   2M: D constant, extrapolated to the middle of the step; with eta = 0 that is `dpm_solver_pp_2m`
    3   3M: D(u) the quadratic through the last three beliefs, integrated exactly:
        I_0 = 1 - e^(-H),  I_1 = 1 - I_0/H,  I_2 = 1 - 2 I_1/H,  I_k = H int_0^1 e^(-H (1 - u)) u^k du

The published 3M takes half of the quadratic's last coefficient, as if a divided difference were a derivative, and so
has order 2. The first steps use the order that their history allows, and the last one, to sigma = 0 where h is
infinite, returns the belief's mean. A belief from alpha_t = 0, infinitely far away in h, adds nothing to later steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .kernel import Time
from .multistep import lagged_rows
from .randomness import Randomness
from .sampling import Steps, columns, noisy
from .tableau import follow

__all__ = ["dpm_solver_pp_sde"]


def dpm_solver_pp_sde(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    order: int = 2,
    eta: float = 1.0,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Multistep, one network call per interval; of its order for eta = 0.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B); uniform log-SNR suits it.
        order: 1, 2 or 3.
        eta: in [0, 1]; 1 the reverse SDE, 0 the probability-flow ODE.
        generator: one, or a list with one per example; unused for eta = 0.
    """
    if order not in (1, 2, 3):
        raise ArgumentError("order", order, "1, 2 or 3")
    if not 0 <= eta <= 1:
        raise ArgumentError("eta", eta, "a number in [0, 1]")
    times, alpha, sigma = noisy(kernel, times)
    half = alpha.log() - sigma.log()
    h = half[1:] - half[:-1]
    # e^(-h), which stays finite at both ends; 0^0 = 1 for eta = 0.
    decay = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    of_x = sigma[1:] / sigma[:-1] * decay**eta
    of_noise = sigma[1:] * (-torch.expm1(2 * eta * decay.log())).sqrt() if eta > 0 else torch.zeros_like(h)
    weights = [alpha[1:] * weight for weight in quadrature(h, (1 + eta) * h, order)]
    rows = lagged_rows(times, [of_x], weights)
    if eta > 0:
        # The last interval ends at data and has no noise.
        scales = [*columns(of_noise[:-1])[0], None]
        rows = [row._replace(noise=scale) for row, scale in zip(rows, scales, strict=True)]
    yield from follow(rows, denoise, kernel, x, generator)


def quadrature(h: Tensor, H: Tensor, order: int) -> list[Tensor]:
    """Weights of the newest belief and of `order` - 1 older ones in each step's integral, each of h's shape."""
    whole = -torch.expm1(-H)  # I_0
    zero = torch.zeros_like(h)
    if order == 1:
        return [whole]
    near, far = zero.clone(), zero.clone()  # h/h_previous, h/h_before
    near[1:-1] = h[1:-1] / h[:-2]
    if order == 2:
        lean = near / 2
        return [whole * (1 + lean), -whole * lean]
    far[2:-1] = h[2:-1] / h[:-3]
    finite = torch.where(H.isfinite(), H, 1.0)
    first = 1 + torch.expm1(-finite) / finite  # I_1
    second = 1 - 2 * first / finite  # I_2
    # D(u) = m_0 + (near (m_0 - m_1) + b c) u + c u^2, c = (near (m_0 - m_1) - far (m_1 - m_2)) a,
    # a = 1/(r_0 + r_1) and b = r_0 with r_0 = 1/near, r_1 = 1/far the distances of the older beliefs.
    total = torch.where(near + far > 0, near + far, 1.0)
    bend = second * near * far / total + first * far / total  # of c/a, with a b = far/total
    newest, oldest = near * (first + bend), far * bend
    return [whole + newest, -newest - oldest, oldest]
