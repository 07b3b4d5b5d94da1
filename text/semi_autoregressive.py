r"""Texts of any length from a network with a fixed window: fill a block, move on (Sahoo et al. 2024, section 4.2).

The network sees `window` places. They hold the last `context` tokens of the text so far, which are known, and places to
fill; what is filled is appended and the window moves. While there are fewer than `context` tokens the window holds all
of them and more places to fill, so that the network never sees another length than the one that it was trained on; what
is drawn past `length` is dropped. With an exact denoiser and a sampler that is exact given the known part, the text has
the law of an autoregressive chain of blocks that remembers `context` tokens.

Inside a block any sampler of the core works. `clamped` makes one of the absorbing kernel's samplers keep known tokens,
clean, where the network reads them as revealed; for other kernels `repaint` is such a sampler as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..core.ancestral import ancestral
from ..core.categorical import Tokens
from ..core.errors import ArgumentError
from ..core.grids import check_times
from ..core.kernel import Time
from ..core.randomness import Randomness
from ..core.sampling import Step
from ..core.unmasking import LATEST

__all__ = ["Fill", "clamped", "semi_autoregressive"]

Fill: TypeAlias = Callable[..., Iterator[Step[Tensor]]]
"""`fill(denoise, kernel, x, times, known=, mask=, generator=)`, of the form of `inpainting.repaint`."""


def clamped(sampler: Callable[..., Iterator[Step[Tensor]]] = ancestral) -> Fill:
    """A sampler of absorbing kernels that starts with the known part in place, where the chain leaves it.

    Args:
        sampler: `sampler(denoise, kernel, x, times, generator=)`; bind options with `functools.partial`.
    """

    def fill(
        denoise: Callable[[Tensor, Time], Tensor],
        kernel: Tokens,
        x: Tensor,
        times: Tensor,
        *,
        known: Tensor,
        mask: Tensor,
        generator: Randomness = None,
    ) -> Iterator[Step[Tensor]]:
        if kernel.mask is None:
            raise ArgumentError("kernel", kernel, "an absorbing kernel; `repaint` fills with any other")
        times = check_times(times)
        # At alpha_1 = 0 known tokens would be impossible.
        times = torch.cat([times[:1].clamp(max=LATEST), times[1:]])
        for step in sampler(denoise, kernel, kernel.blend(mask, known, x), times, generator=generator):
            yield step._replace(x=kernel.blend(mask, known, step.x))

    return fill


def semi_autoregressive(
    denoise: Callable[[Tensor, Time], Tensor],
    kernel: Tokens,
    x: Tensor,
    times: Tensor,
    *,
    length: int,
    window: int,
    context: int,
    fill: Fill | None = None,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Continue texts to `length` tokens; yields the text so far with the block at work, for every step of every block.

    Args:
        denoise: (x_t, t) -> belief, for states (B, window).
        kernel: of tokens, unbound.
        x: the prompt, tokens (B, P) long without masks, P >= 0; it stays.
        times: grid (n + 1,) or (n + 1, B) of each block.
        length: of the result, > P.
        window: places that the network sees.
        context: how many of the last tokens each block sees, 0 ... window - 1; window - context are new per block.
        fill: sampler of the unknown places of a window, `clamped(ancestral)` by default.
        generator: one, or a list with one per example.

    Yields steps whose x is (B, P + what is filled or at work, at most length); the last is (B, length).
    """
    check(kernel, x, length, window, context)
    filler: Any = clamped() if fill is None else fill
    text = x
    while text.shape[1] < length:
        seen = min(text.shape[1], context)
        before, tail = text, text[:, text.shape[1] - seen :]
        like = torch.cat([tail, tail.new_zeros(len(x), window - seen)], 1)
        known = torch.arange(window, device=x.device).expand(like.shape) < seen
        start = kernel.prior(like).sample(generator)
        for step in filler(denoise, kernel, start, times, known=like, mask=known, generator=generator):
            text = torch.cat([before, step.x[:, seen:]], 1)[:, :length]
            yield step._replace(x=text)


def check(kernel: Tokens, x: Tensor, length: int, window: int, context: int) -> None:
    """An ArgumentError unless the sizes fit one another and the prompt holds tokens."""
    if x.ndim != 2 or x.dtype != torch.long or len(x) == 0:
        raise ArgumentError("x", x, "a prompt of tokens, long (B, P) with B >= 1")
    if kernel.mask is not None and bool((x == kernel.mask).any()):
        raise ArgumentError("x", x, f"a prompt without the mask {kernel.mask}")
    if not isinstance(window, int) or window < 1:
        raise ArgumentError("window", window, "an integer >= 1")
    if not isinstance(context, int) or not 0 <= context < window:
        raise ArgumentError("context", context, f"an integer in 0 ... {window - 1}, less than the window")
    if not isinstance(length, int) or length <= x.shape[1]:
        raise ArgumentError("length", length, f"an integer above the prompt's {x.shape[1]}")
