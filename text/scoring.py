r"""The bound on -log2 p(text), token by token.

The bound of a chain is a sum over times, and each of its terms a sum over tokens: given what the network says of a
noisy text, tokens are independent. So a token's share of the prior, of the gaps (or of their rate, in continuous time)
and of the reconstruction is what the kernel says of a text of that one token. The shares add up to the bound on the
text. They are not -log2 p(token | the ones before): a share tells how surprising a token is given random parts of the
rest, early and late ones alike.

A text longer than the window that the model was trained on is scored in consecutive windows that do not see each
other, the last one shorter; that is the bound of a model that writes them independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.categorical import Tokens
from ..core.errors import ArgumentError
from ..core.grids import uniform
from ..core.kernel import Time
from ..core.randomness import Randomness, example_generators, mix, rand
from .drawing import Drawing, batches

__all__ = ["Score", "gathered", "shares", "token_bound"]

Denoise = Callable[[Tensor, Time], Tensor]


@dataclass(frozen=True)
class Score:
    """An upper bound on the bits of a text.

    Attributes:
        bits: of the whole text, the mean over draws.
        standard_error: of `bits`, over draws; nan for a single one.
        characters: Unicode code points of the text.
        tokens: the text in pieces.
        token_bits: each token's share of `bits`, (N,) float64.
    """

    bits: float
    standard_error: float
    characters: int
    tokens: tuple[str, ...]
    token_bits: Tensor

    @property
    def bits_per_character(self) -> float:
        """`bits` over `characters`."""
        return self.bits / self.characters

    @property
    def standard_error_per_character(self) -> float:
        """`standard_error` over `characters`."""
        return self.standard_error / self.characters


def token_bound(
    denoise: Denoise,
    kernel: Tokens,
    x_0: Tensor,
    *,
    steps: int | None = None,
    terms: int = 16,
    low: float = 1e-3,
    generator: Randomness = None,
) -> Tensor:
    """Each token's share of the full bound on -log p(x_0) in nats, (B, L) float64; unbiased for its expectation.

    Args:
        denoise: (x_t, t) -> belief; terms + 1 calls, or `steps` if that is less.
        kernel: of tokens; with rates where `steps` is None.
        x_0: tokens of B texts, (B, L) long.
        steps: equal steps of time of the chain whose bound it is; None for infinitely many.
        terms: times at which the gaps are met, at even distances from one random start per text.
        low: in continuous time, where the reconstruction takes over; any value gives a bound.
        generator: one, or a list with one per text.
    """
    for name, value in (("terms", terms), ("steps", steps)):
        if not (name == "steps" and value is None) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ArgumentError(name, value, "an integer >= 1")
    if x_0.ndim != 2 or x_0.numel() == 0:
        raise ArgumentError("x_0", x_0, "tokens (B, L), at least one")
    count, length = x_0.shape
    alone = x_0.reshape(-1, 1)

    def spread(t: Tensor) -> Tensor:
        return t.repeat_interleave(length)

    def single(belief: Tensor) -> Tensor:
        return belief.reshape(count * length, 1, kernel.K)

    ones = torch.ones(count, dtype=torch.float64)
    start = rand((count,), generator, dtype=torch.float64)
    total = kernel.marginal(alone, spread(ones)).kl(kernel.prior(alone)).to(torch.float64)
    if steps is None:
        last, _ = kernel.pace(torch.zeros(count, dtype=torch.float64), low)
        for k in range(terms):
            t, stretch = kernel.pace((start + k) / terms, low)
            x_t = kernel.marginal(x_0, t).sample(generator)
            rate = kernel.gap_rate(x_t.reshape(-1, 1), alone, single(denoise(x_t, t)), spread(t))
            total = total + spread(stretch).to(total) * rate.to(torch.float64) / terms
    else:
        grid = uniform(steps, kernel.schedule)
        inner, last = len(grid) - 2, ones * grid[-2]
        met = min(terms, inner)
        for k in range(met):
            place = ((start + k) / met * inner).long().clamp(max=inner - 1)
            t, s = grid[place], grid[place + 1]
            x_t = kernel.marginal(x_0, t).sample(generator)
            gap = kernel.gap(x_t.reshape(-1, 1), alone, single(denoise(x_t, t)), spread(s), spread(t))
            total = total + gap.to(torch.float64) * (inner / met)
    x_t = kernel.marginal(x_0, last).sample(generator)
    belief = single(denoise(x_t, last))
    total = total - kernel.likelihood(belief, spread(last)).log_prob(alone).to(torch.float64)
    return total.view(count, length)


def shares(
    bound: Callable[[Tensor, list[torch.Generator]], Tensor],
    texts: Sequence[Tensor],
    window: int,
    draws: int,
    drawing: Drawing,
) -> list[list[Tensor]]:
    """Independent draws of the shares of every token of every text: for each text `draws` tensors (N,).

    Args:
        bound: (windows (B, L), a generator for each) -> shares (B, L).
        texts: tokens, (N,) each, N >= 1.
        window: tokens to score at once, the last ones of a text may be fewer.
        draws: of each text.
        drawing: its seed and batch size; the draws of text i depend on (seed, i).
    """
    jobs = [
        (part, (i, j, draw))
        for i, tokens in enumerate(texts)
        for j, part in enumerate(tokens.split(window))
        for draw in range(draws)
    ]
    jobs.sort(key=lambda job: len(job[0]))  # stable; a batch holds windows of one length
    found: dict[tuple[int, int, int], Tensor] = {}
    for batch in batches(jobs, drawing.batch_size, lambda job: len(job[0])):
        generators = [example_generators(mix(drawing.seed, i, j), 1, [draw])[0] for _, (i, j, draw) in batch]
        rows = bound(torch.stack([part for part, _ in batch]), generators).cpu()
        found |= {place: row for (_, place), row in zip(batch, rows, strict=True)}
    return [
        [torch.cat([found[i, j, draw] for j in range(len(tokens.split(window)))]) for draw in range(draws)]
        for i, tokens in enumerate(texts)
    ]


def gathered(draws: list[Tensor], text: str, tokens: tuple[str, ...]) -> Score:
    """The score of a text from independent draws of its tokens' shares, nats, (N,) each."""
    shares = torch.stack(draws).cpu() / math.log(2)
    bits = shares.sum(1)
    error = float(bits.std() / math.sqrt(len(draws))) if len(draws) > 1 else math.nan
    return Score(float(bits.mean()), error, len(text), tokens, shares.mean(0))
