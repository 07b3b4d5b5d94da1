"""How methods for tokens are tried on a domain's smallest case; see `trials`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .ancestral import ancestral
from .any_order import any_order, any_order_losses, any_order_nll, optimal_steps, order_log_prob, steps_of
from .case import Case
from .objectives import Denoising, low_discrepancy
from .sampling import last
from .score_entropy import ScoreEntropy, unmasking
from .sharpening import sharpened, temperature, top_k, top_p, without
from .trials import check, check_equal, denoise, generators, grid, half, run_twice

__all__ = ["mdlm", "ordered", "planned", "revealing", "score_entropy", "sharper"]


def revealing(sampler: Callable[..., Iterator[Any]]) -> Callable[[Case], None]:
    """How a sampler of absorbing kernels is run: it reveals every token, and leaves those alone that are known."""

    def run(case: Case) -> None:
        kernel: Any = case.kernel
        known = half(case, case.x_0)

        def draw(case: Case, x: Tensor, own: list[torch.Generator]) -> Tensor:
            return last(sampler(denoise(case), kernel, x, grid(case), generator=own))

        check((run_twice(case, draw) != kernel.mask).all(), "a mask is left")
        filled = run_twice(case, lambda case, x, own: draw(case, kernel.blend(known, case.x_0, x), own))
        check_equal(kernel.blend(known, case.x_0, filled), filled, "a known token has changed")

    return run


def planned(case: Case) -> None:
    """The steps of least total loss, and sampling by them."""
    kernel: Any = case.kernel
    losses = any_order_losses(denoise(case), kernel, case.x_0, generator=generators(case)).mean(0)
    counts = optimal_steps(losses, 3)
    check(len(counts) == 3 and int(counts.sum()) == len(losses), f"steps {counts.tolist()} of {len(losses)} tokens")
    times = steps_of(counts, kernel.schedule)
    run_twice(case, lambda case, x, own: last(any_order(denoise(case), kernel, x, times, generator=own)))


def ordered(case: Case) -> None:
    """The likelihood in one order and the bound over orders: of what is certain, nothing."""
    kernel: Any = case.kernel
    count, tokens = len(case.x_0), case.x_0[0].numel()
    for belief in (denoise(case), lambda x, t: kernel.certain(case.x_0)):
        parts = order_log_prob(
            belief, kernel, case.x_0, steps_of([1] * tokens, kernel.schedule), order=torch.arange(tokens)
        )
        check(parts.shape == (count, tokens), f"log-probabilities of shape {tuple(parts.shape)}")
        bound = any_order_nll(belief, kernel, case.x_0, generator=generators(case))
        check(bound.shape == (count,) and (parts <= 0).all() and (bound >= 0).all(), "not log-probabilities")
        check(parts.isfinite().all() & bound.isfinite().all(), "numbers that are not finite")
    check(float(parts.abs().max()) == float(bound.abs().max()) == 0, "certainty costs")


def mdlm(case: Case) -> Denoising:
    """The weighted cross-entropy that is the continuous bound of absorbing chains."""
    return Denoising(case.denoiser, case.kernel, unmasking, low_discrepancy())


def score_entropy(case: Case) -> ScoreEntropy:
    """The continuous bound as a loss."""
    return ScoreEntropy(case.denoiser, case.kernel)


def sharper(case: Case) -> None:
    """Beliefs with other temperatures, without the unlikely and without a symbol; changes of nothing change nothing."""
    kernel: Any = case.kernel

    def draw(*changes: Callable[[Tensor], Tensor]) -> Tensor:
        belief = sharpened(denoise(case), *changes)
        return run_twice(
            case, lambda case, x, own: last(ancestral(belief, kernel, x, grid(case), generator=own))
        )  # fmt: skip

    plain = draw()
    for change in (temperature(1.0), top_p(1.0), top_k(kernel.K)):
        check_equal(draw(change), plain, "a change of nothing changes the result")
    for change in (temperature(0.5), temperature(0.0), top_p(0.5), top_k(2)):
        draw(change)
    symbol = int(plain.flatten()[0])
    check((draw(without(symbol)) != symbol).all(), "a forbidden symbol")
