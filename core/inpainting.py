r"""Inpainting for any kernel: p(unknown | known) from a denoiser that was trained for neither.

`repaint` (Lugmayr et al. 2022, algorithm 1): after every step the known part is put back at its own noise, drawn from
q(x_s | known), and now and then the chain goes some steps back to noise and comes down again, so that the two parts
grow together. It has no target that it reaches: the known part's noise is drawn without a look at the unknown one.

`particle_inpaint` is a particle filter whose target is exact. Let p be the sampler's own chain on the grid and y the
known part. K particles per example move by

    x_s^known ~ q(x_s | x_t, x_0 = y),    the rest ~ p(x_s | x_t),    log L += log p(x_s^known | x_t) - log q(...),

an importance sampler for p(path | x_0^known = y), as the known part's bridge ends in y. They are selected by
L psi, psi = p(y | x_t) read off the belief (the likelihood of the ELBO's last term), which is the twist of Wu et al.
2023 ("Practical and Asymptotically Exact Conditional Sampling in Diffusion Models", eq. 9) and at the last step the
model's own law of y. Particles that were selected go on with L = 1/psi. Trippe et al. 2023 (SMCDiff) share one noised
path of y among all particles, which is exact only if q is the law of the model's own chain; here each particle has
its own and its weight, so that as K grows the law of a particle is the chain's conditional law for any denoiser.
(On Gaussian states the chain ends in a mean: the unknown part is the conditional law but for the noise of t_1.)

Both need of the kernel nothing but its laws, `blend`, `take` and the restriction of `log_prob` to a mask; of clouds
without a place in space the shape of the known part is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import ArgumentError
from .grids import check_times, unstack
from .kernel import Kernel, Time
from .randomness import Randomness, rand, seeded
from .sampling import Step

__all__ = ["jumps", "particle_inpaint", "repaint", "systematic"]

X = TypeVar("X")


def jumps(steps: int, jump: int = 10, resamples: int = 10) -> list[int]:
    """The walk of `repaint` over a grid: places 0 (noise) ... steps (data), neighbours differ by 1.

    The places `jump` apart, counted from the last before the data, are left towards noise `resamples` - 1 times, each
    time by `jump` steps, unless that would lead past the noise (Lugmayr et al. 2022, figure 9).
    """
    for name, number in (("steps", steps), ("jump", jump), ("resamples", resamples)):
        if not isinstance(number, int) or number < 1:
            raise ArgumentError(name, number, "an integer >= 1")
    left = {steps - 1 - j: resamples - 1 for j in range(0, steps - jump, jump)}
    place, walk = 0, [0]
    while place < steps:
        place += 1
        walk.append(place)
        if left.get(place, 0) > 0:
            left[place] -= 1
            walk.extend(range(place - 1, place - jump - 1, -1))
            place -= jump
    return walk


def repaint(
    denoise: Callable[[X, Time], Any],
    kernel: Kernel[X, Any],
    x: X,
    times: Tensor,
    *,
    known: X,
    mask: Any,
    jump: int = 10,
    resamples: int = 10,
    generator: Randomness = None,
) -> Iterator[Step[X]]:
    """Ancestral sampling with the known part put back; yields a step per network call and per step back to noise.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: any.
        x: the state at times[0], usually `kernel.prior(known).sample(generator)`.
        times: grid (n + 1,) or (n + 1, B).
        known: x_0 where the mask is True; finite elsewhere.
        mask: as in `kernel.blend`, True = known.
        jump: steps that each jump back goes.
        resamples: how often each stretch is gone down; 1 is plain replacement. Network calls: see `jumps`.
        generator: one, or a list with one per example.
    """
    grid = unstack(check_times(times))
    check_known(kernel, known, x)
    walk = jumps(len(grid) - 1, jump, resamples)
    # The known part has a stream of its own: with nothing known this is ancestral sampling, number by number.
    apart = branched(generator)
    belief: Any = None
    for start, end in zip(walk[:-1], walk[1:], strict=True):
        t, s = grid[start], grid[end]
        if end < start:
            x = kernel.transition(x, t, s).sample(generator)
        else:
            belief = denoise(x, t)
            if end == len(grid) - 1:
                x = kernel.blend(mask, known, kernel.conclude(belief, generator))
            else:
                fresh = kernel.reverse(x, belief, s, t).sample(generator)
                x = kernel.blend(mask, kernel.marginal(known, s).sample(apart), fresh)
        yield Step(s, x, belief)


def particle_inpaint(
    denoise: Callable[[X, Time], Any],
    kernel: Kernel[X, Any],
    x: X,
    times: Tensor,
    *,
    known: X,
    mask: Any,
    particles: int,
    threshold: float = 0.5,
    generator: Randomness = None,
) -> Iterator[Step[X]]:
    """Draws of p(unknown | known), exact for the sampler's chain as the number of particles grows.

    The batch holds B problems of K consecutive examples, the particles: index = arange(B).repeat_interleave(K) with
    `kernel.take(known, index)` and `kernel.taken(index, known)` repeats states and structure; masks, conditions and
    columns of times are repeated by the caller. Problems do not affect one another. At the end every particle has the
    same weight and any one of them, say the first, is a fair draw; the K of one problem are not independent.

    Args:
        denoise: (x_t, t) -> belief, for B K examples.
        kernel: any whose laws have densities by elements, bound to B K examples.
        x: the state at times[0], B K draws of `kernel.prior`.
        times: grid (n + 1,) or (n + 1, B K); n network calls.
        known: x_0 where the mask is True, B K examples; finite elsewhere.
        mask: as in `kernel.blend`, True = known.
        particles: K.
        threshold: particles are selected when their effective number falls to this share of K; 1 = at every step.
        generator: one, or a list with one per example.

    A problem whose known part the model rules out for all its particles goes on with equal weights.
    """
    grid = unstack(check_times(times))
    count = check_known(kernel, known, x)
    if not isinstance(particles, int) or particles < 1 or count % particles:
        raise ArgumentError("particles", particles, f"a divisor of the {count} examples")
    if not 0 <= threshold <= 1:
        raise ArgumentError("threshold", threshold, "a number in [0, 1]")
    first = generator[::particles] if isinstance(generator, Sequence) else generator
    log_weights: Tensor | None = None
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        belief = denoise(x, t)
        twist = kernel.likelihood(belief, t).log_prob(known, mask).to(torch.float64).reshape(-1, particles)
        # At alpha_t = 0 nothing is seen of x_0 and every density is 0; so it is for what the model rules out.
        best = twist.amax(1, keepdim=True)
        twist = torch.where(best.isfinite(), twist, 0.0)
        if log_weights is None:
            log_weights = torch.zeros_like(twist)
        concluding = s is grid[-1]
        if concluding:
            x = kernel.blend(mask, known, kernel.conclude(belief, generator))
        else:
            model = kernel.reverse(x, belief, s, t)
            bridge = kernel.posterior(x, kernel.certain(known), s, t)
            x = kernel.blend(mask, bridge.sample(generator), model.sample(generator))
            log_weights = log_weights + (model.log_prob(x, mask) - bridge.log_prob(x, mask)).reshape(-1, particles)
        total = log_weights + twist
        total = total.masked_fill((total == -math.inf).all(1, keepdim=True), 0.0)
        place = systematic(total, first)
        if not concluding:
            few = (2 * total.logsumexp(1) - (2 * total).logsumexp(1)).exp() <= threshold * particles
            stay = torch.arange(particles, device=place.device)
            place = torch.where(few.unsqueeze(1), place, stay)
            log_weights = torch.where(few.unsqueeze(1), -twist.gather(1, place), log_weights)
        start = torch.arange(0, count, particles, device=place.device).unsqueeze(1)
        x = kernel.take(x, (start + place).flatten())
        yield Step(s, x, belief)


def systematic(log_weights: Tensor, generator: Randomness = None) -> Tensor:
    """Systematic selection: of K particles with weights w, number i is chosen floor(K w_i) or ceil(K w_i) times.

    The K equally spaced points also turn by one uniform number, so that each slot alone is a draw by weight.

    Args:
        log_weights: (B, K), unnormalised.
        generator: one, or a list with one per row.

    Returns:
        which particle each slot takes, (B, K) long.
    """
    count, particles = log_weights.shape
    cumulative = log_weights.to(torch.float64).softmax(1).cumsum(1)
    turn = particles * rand((count, 1), generator, dtype=torch.float64, device=log_weights.device)
    points = (turn + torch.arange(particles, device=turn.device)) % particles / particles
    place = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    return place.clamp(max=particles - 1)


def branched(generator: Randomness) -> Randomness:
    """Streams that follow from the given ones and leave them where they are."""
    if isinstance(generator, Sequence):
        return [branched_once(one) for one in generator]
    return branched_once(torch.default_generator if generator is None else generator)


def branched_once(generator: torch.Generator) -> torch.Generator:
    key = torch.empty((), dtype=torch.int64, device=generator.device).random_(generator=generator.clone_state())
    return seeded(int(key), 1)


def check_known(kernel: Kernel[X, Any], known: X, x: X) -> int:
    """The number of examples, or an ArgumentError unless known and x have as many."""
    count = kernel.examples(x)
    if kernel.examples(known) != count:
        raise ArgumentError("known", known, f"a state of {count} examples, as many as x")
    return count
