r"""Tau-leaping: the reverse chain of tokens in steps, each token moving on its own while the rates stand still.

In continuous time a token at x jumps to y backwards with the rate

    R_t[y, x] s_y,    s_y = q_t(y in that place | the other tokens) / q_t(x_t)
                          = sum_x_0 belief(x_0) q(y | x_0) / q(x | x_0),

R the forward rates, s the score of discrete diffusion, for a belief about x_0 given x_t (`Tokens.score`). A step from t
to s over which tokens move independently can be made in two ways (Lou et al. 2024, "Discrete Diffusion Modeling by
Estimating the Ratios of the Data Distribution", section 4.2):

    tau_leaping   freezes the rates at t: a token jumps with probability (t - s) sum_y R_t[y, x] s_y, at most 1, to y by
                  its share (Campbell et al. 2022, "A Continuous Time Framework for Discrete Denoising Models", section
                  4.3, with at most one jump a step, as symbols have no order). Even of a single token it has the right
                  law only in the limit of small steps.
    analytic      runs the score back too: p(x_s = y | x_t) = Q_{t|s}[y, x] (s Q_{t|s}^-1)_y, Tweedie's formula for
                  tokens (their theorem 4.2). As s = (belief / q(x | .)) Q_{t|0}, the inverse leaves
                  (belief / q(x | .)) Q_{s|0}, and the product is the posterior q(x_s | x_t, x_0) with x_0 integrated
                  over the belief: **the analytic sampler is `ancestral`**, number by number. It has the exact law of
                  every single token on any grid; what a step loses is only the dependence among tokens that move in it.

So with beliefs there is nothing that tau-leaping gains; it is here to compare with, and for absorbing kernels with
alpha = 1 - t it is the same thing once more, (t - s)/t being both its probability of a jump and the posterior's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .ancestral import ancestral
from .categorical import Tokens
from .distributions import Discrete
from .errors import ArgumentError
from .grids import check_times, unstack
from .kernel import Time, interior
from .randomness import Randomness, rand
from .sampling import Step

__all__ = ["analytic", "tau_leaping"]


def tau_leaping(
    denoise: Callable[[Tensor, Time], Tensor],
    kernel: Tokens,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Steps with rates frozen at their start; the last interval draws x_0 from the belief.

    Args:
        denoise: (x_t, t) -> belief, log-probabilities (B, *dims, K).
        kernel: any of tokens with rates.
        x: the state at times[0], usually `kernel.prior(like).sample(generator)`.
        times: grid (n + 1,) or (n + 1, B); n network calls.
        generator: one, or a list with one per example.
    """
    check_tokens(kernel)
    grid = unstack(check_times(times))
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        belief = denoise(x, t)
        # First whether a token jumps, then where to: rare symbols do not compete with staying in one sum.
        jump, u = (kernel.layout.random(rand, x, generator, torch.float64) for _ in range(2))
        log_rates = reverse_rates(kernel, x, belief, t)
        length = kernel.layout.spread(torch.as_tensor(t - s, dtype=torch.float64, device=x.device), x)
        moved = jump < length * log_rates.logsumexp(-1).exp()
        x = x.masked_scatter(moved, Discrete(log_rates[moved].log_softmax(-1)).inverse(u[moved]))
        yield Step(s, x, belief)
    belief = denoise(x, grid[-2])
    yield Step(grid[-1], kernel.conclude(belief, generator), belief)


def analytic(
    denoise: Callable[[Tensor, Time], Tensor],
    kernel: Tokens,
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Analytic tau-leaping (Tweedie's formula for tokens), which for beliefs is `ancestral`; arguments as there."""
    check_tokens(kernel)
    yield from ancestral(denoise, kernel, x, times, generator=generator)


def reverse_rates(kernel: Tokens, x_t: Tensor, belief: Tensor, t: Time) -> Tensor:
    """log of the rates per unit of t at which x_t jumps back to every y, -inf at x_t itself, (B, *dims, K)."""
    t = interior(t, belief.dtype)
    return kernel.rates(x_t, kernel.at(t), belief.dtype) + kernel.score(x_t, belief, t)


def check_tokens(kernel: Tokens) -> None:
    """An ArgumentError unless the kernel is one of tokens."""
    if not isinstance(kernel, Tokens):
        raise ArgumentError("kernel", kernel, "a kernel of tokens; `ancestral` serves every kernel")
