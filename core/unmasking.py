r"""Samplers of absorbing kernels, which reveal tokens that stay: first hitting, cached ancestral, confidence.

Under an absorbing kernel a token of x_t is either x_0's or the mask, and the reverse chain turns masks into tokens,
each once. Which samplers have the law of the chain, and which trade it for fewer network calls:

    first_hitting   the chain in continuous time, exactly: every masked token has its own time tau of revealing, with
                    1 - alpha_tau uniform on [0, 1 - alpha_t], and is drawn from the belief about the state at that
                    time. One network call per masked token instead of one per step (Zheng et al. 2024, "Masked
                    Diffusion Models are Secretly Time-Agnostic Masked Models", section 4). With an exact denoiser it
                    draws from the data's joint law; T ancestral steps reveal some tokens together, which for two tokens
                    and alpha = 1 - t is (1 - 1/T) p + (1/T) p_1 p_2.
    cached          T ancestral steps, draw by draw; no network call where nothing has changed since the last one
                    (Sahoo et al. 2024, "Simple and Effective Masked Diffusion Language Models", section 4.2).
    any_order       a given number of tokens per step in random or given order: the same model in another view, with
                    a file of its own. One token a step is exact in law too.
    confidence      the tokens of which the network is surest first (Chang et al. 2022, "MaskGIT", section 3.2). Not
                    the model's law: sharper.

Known tokens, that is, any that are not the mask at the start, are never touched: all four infill. States are long
(B, *dims). What a step draws for a position depends on uniform numbers of that position alone, so with one generator
per example the neighbours in the batch do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from .categorical import Categorical
from .distributions import Discrete
from .errors import ArgumentError
from .grids import check_times, unstack
from .kernel import Time
from .layout import Dense
from .randomness import Randomness, rand
from .sampling import Step
from .schedules import time_of

__all__ = ["cached", "confidence", "cosine", "entropy", "first_hitting", "margin", "probability", "top"]

Denoise: TypeAlias = Callable[[Tensor, Time], Tensor]
"""(x_t, t) -> belief, log-probabilities (B, *dims, K)."""

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities (R, K), tokens drawn from them (R,)) -> how sure, (R,), larger is surer."""

NEAREST = 2.0**-40
"""The least share of a token's noise at which it is revealed: nearer to the data 1 - alpha would round to 0."""

LATEST = 1 - 2.0**-24
"""The latest time that denoisers are asked about: at t = 1, where alpha is 0, no known token would be possible."""


def first_hitting(
    denoise: Denoise,
    kernel: Categorical,
    x: Tensor,
    times: Tensor,
    *,
    per_call: int = 1,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """The continuous reverse chain from times[0] to 0, one step per revealed token.

    Args:
        denoise: (x_t, t) -> belief; called with one time per example, as many times as the example with the most masks
            has masks, divided by `per_call`.
        kernel: absorbing, with any schedule.
        x: the state at times[0]; known tokens stay.
        times: grid (n + 1,) or (n + 1, B), of which only the first time is read: there are no steps to skip.
        per_call: tokens that are revealed together; exact for 1. For more each group is drawn from the belief at the
            time of its first, so that tokens of a group do not see one another.
        generator: one, or a list with one per example.

    Yields steps whose t (B,) is the time of the last token revealed, 0.0 in the last step.
    """
    if not isinstance(per_call, int) or per_call < 1:
        raise ArgumentError("per_call", per_call, "an integer >= 1")
    mask, start = mask_of(kernel), check_times(times)[0].reshape(-1, 1)
    flat, u = x.flatten(1), uniforms(x, generator)
    hidden = flat == mask
    noise = (1 - kernel.schedule(start)[0].detach()) * rand(flat.shape, generator, dtype=torch.float64).clamp_min(
        NEAREST
    )
    hit = torch.minimum(time_of(lambda t: kernel.schedule(t)[0], 1 - noise), start)
    hit, order = hit.masked_fill(~hidden.cpu(), -1.0).sort(1, descending=True)
    place = order.argsort(1).to(x.device)
    many = hidden.sum(1).cpu()
    # Examples that are finished, or had nothing to reveal, are asked about at a time that they have been at.
    end = hit.gather(1, (many - 1).clamp_min(0).unsqueeze(1)).clamp_min(0)
    hit = torch.maximum(hit, torch.where(many.unsqueeze(1) > 0, end, start))
    most = int(many.max()) if len(many) else 0
    if most == 0:
        yield Step(0.0, x, None)
    for first in range(0, most, per_call):
        after = first + per_call
        belief = denoise(flat.view_as(x), asked(hit[:, first]))
        flat = revealed(flat, belief, hidden & (place >= first) & (place < after), u)
        yield Step(hit[:, after - 1] if after < most else 0.0, flat.view_as(x), belief)


def confidence(
    denoise: Denoise,
    kernel: Categorical,
    x: Tensor,
    times: Tensor,
    *,
    criterion: Criterion | None = None,
    temperature: float = 0.0,
    share: Callable[[Tensor], Tensor] | None = None,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Every step draws all masked tokens and keeps those of which the network is surest.

    Args:
        denoise: (x_t, t) -> belief; called in steps that reveal something, the others carry the belief before or None.
        kernel: absorbing.
        x: the state at times[0]; known tokens stay.
        times: grid (n + 1,) or (n + 1, B).
        criterion: `probability` (MaskGIT's, the default), `top`, `margin`, `entropy`, or any function of that form.
        temperature: of the order: standard Gumbel noise times `temperature` times s is added to the criterion, as
            MaskGIT does. 0 is the plain order, infinitely much a random one.
        share: s -> the share of the masks at the start that is left at s, rounded to whole tokens; by default the
            schedule's, (1 - alpha_s) / (1 - alpha_start); `cosine` is MaskGIT's.
        generator: one, or a list with one per example.
    """
    if not temperature >= 0:
        raise ArgumentError("temperature", temperature, "a number >= 0")
    surest = probability if criterion is None else criterion
    flat, hidden, left = start_of(kernel, x, times, share)
    belief = None
    for (t, s), after in zip(pairwise(unstack(check_times(times))), left, strict=True):
        # Drawn whether they are used or not, so that a step of a neighbour moves nobody's stream.
        u = uniforms(x, generator)
        noise = gumbel(uniforms(x, generator)) if temperature else None
        count = hidden.sum(1, keepdim=True) - after
        if bool((count > 0).any()):
            belief = denoise(flat.view_as(x), asked(t))
            rows = belief.flatten(1, -2)[hidden]
            tokens = Discrete(rows).inverse(u[hidden])
            score = torch.full(flat.shape, -torch.inf, dtype=torch.float64, device=x.device)
            score[hidden] = surest(rows, tokens).to(torch.float64).clamp_min(torch.finfo(torch.float64).min)
            if noise is not None:
                score = score + temperature * torch.as_tensor(s).reshape(-1, 1).to(x.device) * noise
            place = score.argsort(dim=1, descending=True, stable=True).argsort(1)
            drawn = flat.masked_scatter(hidden, tokens)
            chosen = hidden & (place < count)
            flat, hidden = torch.where(chosen, drawn, flat), hidden & ~chosen
        yield Step(s, flat.view_as(x), belief)


def cached(
    denoise: Denoise,
    kernel: Categorical,
    x: Tensor,
    times: Tensor,
    *,
    among: Callable[[Tensor], Denoise] | None = None,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """`ancestral` for absorbing kernels without calls whose answer is known: the same draws from the same generator.

    The network must ignore t (for absorbing kernels the best belief does): an example that has not changed keeps its
    belief while t falls, which for a network that is told t is another sampler. And the belief must be certain of
    revealed tokens, as every reading of `TokenDenoiser` is.

    Args:
        denoise: (x_t, t) -> belief for all B examples; called only when some example has changed.
        kernel: absorbing.
        x: the state at times[0]; known tokens stay.
        times: grid (n + 1,) or (n + 1, B); at most n calls.
        among: index (M,) -> the denoiser for those examples alone, so that only changed ones go through the network;
            `lambda index: denoise` where nothing in it belongs to single examples.
        generator: one, or a list with one per example.

    Tokens are drawn only where the uniform number does not leave the mask in place: no work in K on those that stay.
    """
    mask, grid = mask_of(kernel), unstack(check_times(times))
    flat, belief = x.flatten(1), None
    stale = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for t, s in pairwise(grid):
        belief = refreshed(denoise, kernel, flat.view_as(x), t, belief, stale, among)
        u, hidden, rows = uniforms(x, generator), flat == mask, belief.flatten(1, -2)
        if s is grid[-1]:
            tokens = Discrete(rows[hidden]).inverse(u[hidden])
        else:
            hidden = hidden & ~stays(kernel, rows, u, s, t, mask)
            row = hidden.nonzero()[:, 0].cpu()
            ends = [time[row] if isinstance(time, Tensor) else time for time in (s, t)]
            law = kernel.posterior(flat[hidden], rows[hidden], *ends)
            tokens = law.inverse(u[hidden])
        before, flat = flat, flat.masked_scatter(hidden, tokens)
        stale = (flat != before).any(1)
        yield Step(s, flat.view_as(x), belief)


def probability(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """log p of the token drawn (MaskGIT's confidence)."""
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def top(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """log p of the most probable token, whatever was drawn."""
    return log_probs.amax(-1)


def margin(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """How much more probable the best token is than the second."""
    best = log_probs.topk(2, -1).values.exp()
    return best[..., 0] - best[..., 1]


def entropy(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """The negative entropy of the belief in nats."""
    return torch.where(log_probs > -torch.inf, log_probs.exp() * log_probs, 0.0).sum(-1)


def cosine(s: Tensor) -> Tensor:
    """sin(pi s / 2): MaskGIT's cosine schedule in its progress 1 - s, few tokens first."""
    return torch.sin(torch.pi / 2 * s)


def mask_of(kernel: Categorical) -> int:
    """The mask, or an ArgumentError unless the kernel is an absorbing one."""
    mask = kernel.mask if isinstance(kernel, Categorical) else None
    if mask is None:
        raise ArgumentError("kernel", kernel, "an absorbing kernel; `ancestral` serves every kernel")
    if not isinstance(kernel.layout, Dense):
        raise ArgumentError("kernel", kernel, "a kernel of dense states (B, *dims); `ancestral` serves ragged ones too")
    return mask


def asked(t: Time) -> Time:
    """t, at most `LATEST`."""
    return t.clamp(max=LATEST) if isinstance(t, Tensor) else min(t, LATEST)


def uniforms(x: Tensor, generator: Randomness) -> Tensor:
    """A uniform number for every position, (B, N) float64 on x's device."""
    return rand(x.shape, generator, dtype=torch.float64, device=x.device).flatten(1)


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones, all finite."""
    return -(-u.clamp_min(torch.finfo(torch.float64).tiny).log()).log()


def revealed(flat: Tensor, belief: Tensor, chosen: Tensor, u: Tensor) -> Tensor:
    """The tokens (B, N) with the chosen ones drawn from the belief by their uniform numbers."""
    return flat.masked_scatter(chosen, Discrete(belief.flatten(1, -2)[chosen]).inverse(u[chosen]))


def start_of(
    kernel: Categorical, x: Tensor, times: Tensor, share: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(tokens (B, N), which are masked, how many masks (B, 1) are left after each step)."""
    mask, times = mask_of(kernel), check_times(times)
    flat = x.flatten(1)
    hidden = flat == mask
    noise = 1 - kernel.schedule(times)[0].detach()
    shares = noise[1:] / noise[:1] if share is None else share(times[1:]).clamp(0, 1)
    shares[-1] = 0.0
    left = hidden.sum(1, keepdim=True).cpu() * shares.reshape(len(shares), -1, 1)
    # Halves go down, whatever the rounding of the schedule.
    counts = (left - 1e-9).round().long()
    # Never more than before, whatever the function of the share.
    return flat, hidden, list(counts.cummin(0).values.to(x.device))


def refreshed(
    denoise: Denoise,
    kernel: Categorical,
    x: Tensor,
    t: Time,
    belief: Tensor | None,
    stale: Tensor,
    among: Callable[[Tensor], Denoise] | None,
) -> Tensor:
    """The belief, asked for again where x has changed."""
    index = stale.nonzero().flatten()
    if belief is not None and len(index) == 0:
        return belief
    if belief is None or among is None or len(index) == len(stale):
        return denoise(x, asked(t))
    fresh = among(index)(kernel.take(x, index), asked(t[index.cpu()] if isinstance(t, Tensor) else t))
    return belief.index_copy(0, index, fresh)


def stays(kernel: Categorical, rows: Tensor, u: Tensor, s: Time, t: Time, mask: int) -> Tensor:
    """Where u surely leaves a mask in place, (B, N): where it falls in the mask's share of the distribution function.

    That is inverted from symbol 0 on, and what lies below the mask there is (1 - share) belief(x_0 < mask). The edges
    are left to the full inversion, with room for single precision.
    """
    noise_t, noise_s = (1 - kernel.schedule(torch.as_tensor(time, dtype=torch.float64))[0] for time in (t, s))
    share = (noise_s / noise_t).reshape(-1, 1).to(u.device)
    alone = mask == rows.shape[-1] - 1
    below = (1 - share) * (1.0 if alone else rows[..., :mask].to(torch.float64).exp().sum(-1))
    return (u > below + 1e-5) & (u < below + share - 1e-5)
