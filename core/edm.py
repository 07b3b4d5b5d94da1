r"""EDM's stochastic sampler: Heun steps with fresh noise before each (Karras et al. 2022, algorithm 2).

With u_t = sigma_t/alpha_t, a step from t to s first raises the noise to u_hat = (1 + gamma) u_t,

    x_hat = alpha_hat (x_t/alpha_t + sqrt(u_hat^2 - u_t^2) S_noise z),
    gamma = min(S_churn/n, sqrt(2) - 1)  where S_min <= u_t <= S_max, else 0,

and then takes Heun's step of the probability-flow ODE in exploding coordinates from t_hat to s. t_hat is the time at
which the log-SNR is -2 log u_hat, so the algorithm serves every schedule; with S_noise = 1 raising the noise is the
kernel's transition from t to t_hat. There is no time beyond 1, so u_hat stops at u_1, and a step that starts at t = 1
has no churn. Without churn this is `heun` in `exploding` coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .kernel import Time
from .ode import line
from .randomness import Randomness
from .sampling import Steps, columns, noisy
from .tableau import Row, follow

__all__ = ["stochastic_heun"]


def stochastic_heun(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Order 2 in the limit of no churn; 2 n - 1 network calls. `karras` grids suit it.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, alpha_t > 0 on the grid.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        churn: S_churn >= 0, spread over the n steps.
        churn_min: S_min, the lowest sigma/alpha that is raised.
        churn_max: S_max, the highest one.
        churn_noise: S_noise > 0, standard deviation of the fresh noise; slightly above 1 makes up for lost detail.
        generator: one, or a list with one per example; unused for churn = 0.
    """
    for name, value in (("churn", churn), ("churn_noise", churn_noise)):
        if not 0 <= value < math.inf or (value == 0 and name == "churn_noise"):
            raise ArgumentError(name, value, "a finite number " + (">= 0" if name == "churn" else "> 0"))
    if not 0 <= churn_min <= churn_max:
        raise ArgumentError("churn_min, churn_max", (churn_min, churn_max), "0 <= churn_min <= churn_max")
    times, alpha, sigma = noisy(kernel, times)
    if bool((alpha == 0).any()):
        raise ArgumentError(
            "times", "a time at which alpha_t = 0", "alpha_t > 0, as sigma/alpha is infinite: start below 1"
        )
    u = sigma / alpha
    within = ((u >= churn_min) & (u <= churn_max))[:-1].to(u)
    gamma = within * min(churn / (len(times) - 1), math.sqrt(2) - 1)
    raised, alpha_hat, u_hat = lifted(kernel, times[:-1], alpha[:-1], u[:-1], gamma)
    scale = alpha_hat / alpha[:-1]
    fresh = alpha_hat * churn_noise * ((u_hat - u[:-1]) * (u_hat + u[:-1])).clamp_min(0).sqrt()
    k, sigma_hat, step = alpha[1:], alpha_hat * u_hat, u[1:] - u_hat
    whole = line(k, step, 1 / alpha_hat, 0.0, alpha_hat, sigma_hat)
    half = line(k, step / 2, 1 / alpha_hat, 0.0, alpha_hat, sigma_hat)
    inner = slice(1, -1)
    slope = line(k[:-1], step[:-1] / 2, torch.zeros_like(k[:-1]), 0.0, alpha[inner], sigma[inner])
    corrections = [*zip(*columns(*(weight[:-1] for weight in half), *slope), strict=True), None]
    table = zip(*columns(times[1:], raised, scale, fresh, *whole), corrections, strict=True)
    rows: list[Row] = []
    calls = 0
    for s, t, a, b, of_x, of_mean, correction in table:
        if churn > 0:
            # Drawn even where the weight is 0, so that the range of churn does not shift the noise of later steps.
            rows.append(Row(None, [(len(rows), a)], [], None, b))
        now = len(rows)
        if correction is None:
            rows.append(Row(t, [(now, of_x)], [(calls, of_mean)], s))
        else:
            c, d, e, f = correction
            rows.append(Row(t, [(now, of_x)], [(calls, of_mean)], None))
            rows.append(Row(s, [(now, c), (now + 1, e)], [(calls, d), (calls + 1, f)], s))
            calls += 2
    yield from follow(rows, denoise, kernel, x, generator)


def lifted(kernel: Gaussian, t: Tensor, alpha: Tensor, u: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(t_hat, alpha_hat, u_hat), at most those of t = 1 and unchanged where gamma = 0."""
    target = torch.maximum(kernel.schedule.inverse(-2 * ((1 + gamma) * u).log()).detach(), t)
    raised = torch.where(gamma > 0, target, t)
    alpha_hat, sigma_hat = kernel.schedule(raised)
    return raised, alpha_hat.detach(), (sigma_hat / alpha_hat).detach()
