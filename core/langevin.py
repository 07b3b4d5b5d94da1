r"""Langevin dynamics at a noise level: correctors, predictor-corrector sampling, annealed Langevin.

A Langevin step with the noise law's own metric as preconditioner,

    x_t + epsilon Sigma grad log q(x_t) + sqrt(2 epsilon) Sigma^(1/2) z,

where Sigma grad log q(x_t) = (alpha_t m - x_t)/sigma_t^2 for the belief's mean m, leaves q(x_t) invariant as
epsilon -> 0, on masked and centred states too. Three step sizes:

    langevin              epsilon = step sigma_t^2
    corrector             epsilon = 2 share (snr |z|/|score|)^2, per example (Song et al. 2021, algorithms 4 and 5),
                          but at most (sigma_t |z|/2)^2
    annealed_langevin     epsilon = step sigma_t^2 / 2 at every level (Song & Ermon 2019, algorithm 1)

The norms are those of whitened vectors, z' Sigma^+ z, one per example: a mean over the batch would couple its members.
In few dimensions one example's score is often almost 0, where the authors' code leans on the mean; the limit keeps its
step short. It is not met in many dimensions, where norms hardly vary. A step whose size depends on the state keeps the
law only where the size hardly varies: normal data came out up to 1.7 times too wide in one dimension, 1.1 times in 16.
`share` is 1 - beta, the squared drift (alpha_t/alpha_s)^2 of the forward chain between two times of the grid. It is 1
where noise explodes and 0 at alpha_t = 0, where the state is noise already and there is nothing to correct.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .grids import unstack
from .kernel import Time
from .randomness import Randomness
from .sampling import Step, Steps, columns, noisy

__all__ = ["annealed_langevin", "corrector", "langevin", "predictor_corrector"]


def langevin(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    t: Time,
    *,
    step: float = 0.1,
    generator: Randomness = None,
) -> Step[Tensor]:
    """One step of fixed size at time t. On data of variance V the stationary variance of the chain is
    V_t / (1 - step sigma_t^2 / (2 V_t)) with V_t = alpha_t^2 V + sigma_t^2.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian.
        x: a state at time t.
        t: number, or (B,).
        step: epsilon/sigma_t^2, in (0, 2).
        generator: one, or a list with one per example.
    """
    check_step(step, 2)
    return fixed(denoise, kernel, x, level(kernel, t), step, generator)


def corrector(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    t: Time,
    *,
    snr: float = 0.16,
    share: Time = 1.0,
    generator: Randomness = None,
) -> Step[Tensor]:
    """One step at time t whose size makes the move `snr` times as long as its noise, per example.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian.
        x: a state at time t.
        t: number, or (B,).
        snr: r of the paper, the ratio of the two norms, > 0.
        share: the factor of epsilon, in [0, 1], see the module; number or (B,).
        generator: one, or a list with one per example.
    """
    check_snr(snr)
    return corrected(denoise, kernel, x, level(kernel, t), snr, share, generator)


def predictor_corrector(
    predictor: Callable[..., Steps[Tensor]], corrections: int = 1, snr: float = 0.16
) -> Callable[..., Iterator[Step[Tensor]]]:
    """A sampler that corrects the state before each step of another one, as the authors' code does.

    The network is called `corrections` + (the predictor's calls) times per interval.

    Args:
        predictor: any sampler that goes on from a state sent to it: ancestral, reverse_diffusion, euler_maruyama, ddim,
            euler, heun. Multistep ones do too, and remember the beliefs that their own calls gave.
        corrections: Langevin steps per interval, >= 0.
        snr: as in `corrector`.
    """
    if not isinstance(corrections, int) or corrections < 0:
        raise ArgumentError("corrections", corrections, "an integer >= 0")
    check_snr(snr)

    def sampler(
        denoise: Callable[[Tensor, Time], Belief],
        kernel: Gaussian,
        x: Tensor,
        times: Tensor,
        *,
        generator: Randomness = None,
        **options: object,
    ) -> Iterator[Step[Tensor]]:
        """Arguments as the predictor's."""
        times, alpha, sigma = noisy(kernel, times)
        (shares,) = columns((alpha[:-1] / alpha[1:]) ** 2)

        def correct(x: Tensor, at: Level, share: Time) -> Tensor:
            for _ in range(corrections):
                x = corrected(denoise, kernel, x, at, snr, share, generator).x
            return x

        places = zip(levels(times, alpha, sigma), shares, strict=True)
        steps = predictor(denoise, kernel, correct(x, *next(places)), times, generator=generator, **options)
        yield (step := next(steps))
        for at, share in places:
            yield (step := steps.send(correct(step.x, at, share)))

    return sampler


def annealed_langevin(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    moves: int = 100,
    step: float = 0.2,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Langevin dynamics at one noise level after the other, and the mean at the end; n moves + 1 network calls.

    Between levels x_t/alpha_t is kept (x_t itself on exploding schedules). The first step covers the levels times[0]
    and times[1]. The paper's epsilon is step times the variance of the last level: 2e-5 and sigma = 0.01 are step 0.2.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, alpha_t > 0 on the grid.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B): n noise levels, then 0.
        moves: Langevin steps per level, >= 1.
        step: alpha_i / sigma_i^2 of the paper, 2 epsilon / sigma_t^2 of this module, in (0, 4).
        generator: one, or a list with one per example.
    """
    if not isinstance(moves, int) or moves < 1:
        raise ArgumentError("moves", moves, "an integer >= 1")
    check_step(step, 4)
    times, alpha, sigma = noisy(kernel, times)
    if bool((alpha == 0).any()):
        raise ArgumentError(
            "times", "a time at which alpha_t = 0", "alpha_t > 0, as x_t/alpha_t is kept: start below 1"
        )
    scale = torch.cat([alpha.new_ones(alpha[:1].shape), alpha[1:-1] / alpha[:-2]])
    grid, here = unstack(times), levels(times, alpha, sigma)
    for i, (at, kept) in enumerate(zip(here, columns(scale)[0], strict=True)):
        reached = Step(at.t, kernel.combine((kept, x)) if i > 0 else x, None)
        for _ in range(moves):
            reached = fixed(denoise, kernel, reached.x, at, step / 2, generator)
        x = reached.x
        if i > 0:
            yield reached
    belief = denoise(x, grid[-2])
    yield Step(grid[-1], belief.mean, belief)


class Level(NamedTuple):
    """A noise level: floats, or float64 tensors (B,)."""

    t: Time
    alpha: Time
    sigma: Time


def level(kernel: Gaussian, t: Time) -> Level:
    """That of a time."""
    alpha, sigma = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))
    return Level(t, alpha.item(), sigma.item()) if alpha.ndim == 0 else Level(t, alpha.detach(), sigma.detach())


def levels(times: Tensor, alpha: Tensor, sigma: Tensor) -> list[Level]:
    """Those of a grid's times, without the last, where there is no noise."""
    return [Level(*numbers) for numbers in zip(*columns(times[:-1], alpha[:-1], sigma[:-1]), strict=True)]


def fixed(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    at: Level,
    step: float,
    generator: Randomness,
) -> Step[Tensor]:
    """A step with epsilon = step sigma^2."""
    belief = denoise(x, at.t)
    terms = (1 - step, x), *belief.times(step * at.alpha)
    return Step(at.t, kernel.noise.perturbed(math.sqrt(2 * step) * at.sigma, generator, *terms), belief)


def corrected(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    at: Level,
    snr: float,
    share: Time,
    generator: Randomness,
) -> Step[Tensor]:
    """A step with epsilon = min(2 share (snr |z|/|score|)^2, (sigma |z|/2)^2)."""
    belief, sigma = denoise(x, at.t), near(at.sigma, x)
    towards = kernel.combine((-1.0, x), *belief.times(at.alpha))  # sigma^2 times the score
    length = kernel.noise.norm(towards)
    z = kernel.noise.draw(x, generator)
    reach = snr * sigma * (2 * near(share, x)) ** 0.5
    # sqrt(epsilon)/sigma; 0 in a cloud of one point, which has neither noise nor score.
    root = kernel.noise.norm(z) * reach / length.clamp_min(2 * reach).clamp_min(torch.finfo(x.dtype).tiny)
    of_noise = root * (math.sqrt(2) * sigma)
    return Step(at.t, kernel.combine((1.0, x), (root**2, towards), (of_noise, z)), belief)


def near(number: Time, x: Tensor) -> Time:
    """number in the dtype and on the device of x."""
    return number.to(x) if isinstance(number, Tensor) else number


def check_snr(snr: float) -> None:
    """An ArgumentError unless 0 < snr < inf."""
    if not 0 < snr < math.inf:
        raise ArgumentError("snr", snr, "a positive finite number")


def check_step(step: float, limit: float) -> None:
    """An ArgumentError unless 0 < step < limit, beyond which the chain diverges where the data have no variance."""
    if not 0 < step < limit:
        raise ArgumentError("step", step, f"a number in (0, {limit})")
