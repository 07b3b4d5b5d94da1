r"""Sharpening: beliefs with less spread than the denoiser's, or without some symbols; wrappers of a bound denoiser.

    temperature T   belief^(1/T), normalised; T -> 0 leaves the most probable symbols
    top_k           the k most probable symbols
    top_p           the nucleus: the smallest set of most probable symbols that holds at least p (Holtzman et al. 2020,
                    "The Curious Case of Neural Text Degeneration", section 3.1)
    without         all but the given symbols

Each changes log-probabilities (..., K) into log-probabilities and is exact: -inf stays -inf, the rest is normalised
again. They compose in the order in which they are given: `sharpened(denoise, temperature(0.8), top_p(0.95))` cuts the
nucleus of the tempered belief. All samplers take the wrapped denoiser. What it samples is no longer the model's law,
and bounds computed with it are not the model's: of a symbol that was cut off they say infinity.

A belief is about x_0, which is never the mask of an absorbing kernel; for a network that has not learnt this,
`without(kernel.mask)` makes it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import ArgumentError
from .kernel import Time

__all__ = ["Change", "sharpened", "temperature", "top_k", "top_p", "without"]

Change: TypeAlias = Callable[[Tensor], Tensor]
"""log-probabilities (..., K) -> log-probabilities (..., K)."""


def sharpened(denoise: Callable[[Tensor, Time], Tensor], *changes: Change) -> Callable[[Tensor, Time], Tensor]:
    """A bound denoiser whose belief goes through the changes, in their order.

    Args:
        denoise: (x_t, t) -> belief, log-probabilities (B, *dims, K).
        changes: `temperature(...)`, `top_k(...)`, `top_p(...)`, `without(...)`; none leaves the belief as it is.
    """

    def denoise_(x_t: Tensor, t: Time) -> Tensor:
        belief = denoise(x_t, t)
        for change in changes:
            belief = change(belief)
        return belief

    return denoise_


def temperature(T: float) -> Change:
    """belief^(1/T), normalised.

    Args:
        T: >= 0; 1 changes nothing, 0 is the limit: the most probable symbols, equally if there are several.
    """
    if not (math.isfinite(T) and T >= 0):
        raise ArgumentError("T", T, "a finite number >= 0")

    def tempered(log_probs: Tensor) -> Tensor:
        # From the largest, so that small T cannot overflow and the best symbol stays at 0.
        away = log_probs - log_probs.amax(-1, keepdim=True)
        if T == 0:
            return kept(torch.zeros_like(log_probs), away == 0)
        return (away / T).log_softmax(-1)

    return tempered


def top_k(k: int) -> Change:
    """The k most probable symbols, normalised; of equals at the edge some.

    Args:
        k: >= 1; K and more change nothing.
    """
    if not isinstance(k, int) or k < 1:
        raise ArgumentError("k", k, "an integer >= 1")

    def cut(log_probs: Tensor) -> Tensor:
        best = log_probs.topk(min(k, log_probs.shape[-1]), -1).indices
        return kept(log_probs, torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, best, True))

    return cut


def top_p(p: float) -> Change:
    """The nucleus: symbols in falling order until their probabilities reach p, normalised.

    Args:
        p: in (0, 1]; 1 changes nothing. The symbol that passes p is in, so at least one is.
    """
    if not 0 < p <= 1:
        raise ArgumentError("p", p, "a probability in (0, 1]")

    def cut(log_probs: Tensor) -> Tensor:
        if p == 1:
            return log_probs
        falling, order = log_probs.sort(dim=-1, descending=True, stable=True)
        probabilities = falling.to(torch.float64).exp()
        before = probabilities.cumsum(-1) - probabilities
        # The first by name: rounding could otherwise leave nothing for a tiny p.
        inside = (before < p).index_fill(-1, torch.zeros(1, dtype=torch.long, device=before.device), True)
        return kept(log_probs, torch.zeros_like(inside).scatter(-1, order, inside))

    return cut


def without(*symbols: int) -> Change:
    """All but these symbols, normalised.

    A position whose belief holds nothing else keeps it: known text that contains a forbidden symbol stays known.
    """
    if not symbols or any(not isinstance(symbol, int) or symbol < 0 for symbol in symbols):
        raise ArgumentError("symbols", symbols, "at least one symbol, integers >= 0")

    def cut(log_probs: Tensor) -> Tensor:
        if max(symbols) >= log_probs.shape[-1]:
            raise ArgumentError("symbols", symbols, f"symbols in 0 ... {log_probs.shape[-1] - 1}")
        keep = torch.ones(log_probs.shape[-1], dtype=torch.bool, device=log_probs.device)
        keep[list(symbols)] = False
        nothing = ((log_probs == -math.inf) | ~keep).all(-1, keepdim=True)
        return torch.where(nothing, log_probs, kept(log_probs, keep | nothing))

    return cut


def kept(log_probs: Tensor, keep: Tensor) -> Tensor:
    """log-probabilities of the symbols where keep is True, normalised."""
    return log_probs.masked_fill(~keep, -math.inf).log_softmax(-1)
