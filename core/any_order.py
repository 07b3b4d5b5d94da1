r"""Absorbing kernels as order-agnostic autoregression (Hoogeboom et al. 2022, "Autoregressive Diffusion Models").

An absorbing chain reveals the N tokens in a random order sigma, and its denoiser says p(x_k | the revealed ones) for
all hidden k at once. So the same network is an autoregressive model in every order, and its likelihood in that view is

    log p(x | sigma) = sum_j log p(x_sigma(j) | x_sigma(<j))                                   `order_log_prob`
    -log p(x) <= E_sigma[-log p(x | sigma)] = sum_j L_j,                                       `any_order_losses`
    L_j = E_sigma[1/(N - j + 1) sum_(k in sigma(>=j)) -log p(x_k | x_sigma(<j))]               (their eq. 2)

L_j is the mean loss of a hidden token when j - 1 are revealed; one j drawn at random gives N L_j, an unbiased estimate
from one network call (`any_order_nll`). sum_j L_j is also the ELBO of the chain in continuous time, whatever alpha.

Revealing k tokens together after j - 1 costs k L_j nats instead of L_j + ... + L_(j+k-1). For n calls `optimal_steps`
finds the counts of least total cost by dynamic programming (their section 3.3), and `steps_of` turns counts into a grid
for `any_order`.

A state with m of N tokens hidden is given to the denoiser at the time at which 1 - alpha_t = m/N; networks that ignore
t do not mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .categorical import Categorical
from .errors import ArgumentError
from .grids import check_times, unstack
from .randomness import Randomness, rand, randint
from .sampling import Step
from .schedules import Schedule, time_of
from .unmasking import Denoise, asked, mask_of, revealed, start_of, uniforms

__all__ = ["any_order", "any_order_losses", "any_order_nll", "optimal_steps", "order_log_prob", "steps_of"]


def any_order(
    denoise: Denoise,
    kernel: Categorical,
    x: Tensor,
    times: Tensor,
    *,
    order: Tensor | None = None,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """As many tokens per step as the schedule expects to be revealed, in a random or given order.

    After the step to s, round(M (1 - alpha_s) / (1 - alpha_start)) of M masks are left: `steps_of` gives the grid for
    one token a step, which is exact in law, or any other counts. Steps without a token to reveal call no network and
    carry the belief before, at first None.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: absorbing.
        x: the state at times[0]; known tokens stay.
        times: grid (n + 1,) or (n + 1, B).
        order: positions of the flattened state from the first to the last revealed, (N,) or (B, N); known ones are
            passed over. Random, one per example, by default.
        generator: one, or a list with one per example.
    """
    flat, hidden, left = start_of(kernel, x, times, None)
    key = visits(order, flat, generator)
    u = uniforms(x, generator)
    place = key.masked_fill(~hidden.cpu(), flat.shape[1]).argsort(dim=1, stable=True).argsort(1).to(x.device)
    many, belief, grid = hidden.sum(1, keepdim=True), None, unstack(check_times(times))
    for (t, s), (before, after) in zip(pairwise(grid), pairwise([many, *left]), strict=True):
        chosen = hidden & (place >= many - before) & (place < many - after)
        if bool(chosen.any()):
            belief = denoise(flat.view_as(x), asked(t))
            flat = revealed(flat, belief, chosen, u)
        yield Step(s, flat.view_as(x), belief)


def order_log_prob(denoise: Denoise, kernel: Categorical, x_0: Tensor, times: Tensor, *, order: Tensor) -> Tensor:
    """The exact log-probability, in nats per position (B, N), of what `any_order` draws from masks alone.

    Args:
        denoise: (x_t, t) -> belief; at most n calls.
        kernel: absorbing.
        x_0: tokens of B examples, without masks.
        times: grid (n + 1,) or (n + 1, B) of the sampler, such as `steps_of([1] * N, kernel.schedule)`.
        order: (N,) or (B, N).
    """
    data, mask = unmasked(kernel, x_0), mask_of(kernel)
    place = visits(order, data).to(x_0.device)
    _, _, left = start_of(kernel, torch.full_like(x_0, mask), times, None)
    N = data.shape[1]
    counts = [torch.full_like(left[0], N), *left]
    result = torch.zeros(data.shape, dtype=torch.float64, device=x_0.device)
    for t, (before, after) in zip(unstack(check_times(times))[:-1], pairwise(counts), strict=True):
        chosen = (place >= N - before) & (place < N - after)
        if bool(chosen.any()):
            belief = denoise(torch.where(place < N - before, data, mask).view_as(x_0), asked(t))
            result = torch.where(chosen, token_log_probs(belief, data), result)
    return result


def any_order_losses(denoise: Denoise, kernel: Categorical, x_0: Tensor, *, generator: Randomness = None) -> Tensor:
    """L_1 ... L_N of one random order per example, (B, N) in nats per token; N network calls.

    Their sum over the N is an unbiased estimate of the any-order bound on -log p(x_0), their mean over data what
    `optimal_steps` takes.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: absorbing.
        x_0: tokens of B examples, without masks.
        generator: one, or a list with one per example; draws the orders.
    """
    data, N = unmasked(kernel, x_0), x_0[0].numel()
    place = visits(None, data, generator).to(x_0.device)
    hidden = (torch.full((len(data), 1), N - revealed_ones, device=x_0.device) for revealed_ones in range(N))
    return torch.stack([mean_loss(denoise, kernel, x_0, place, many) for many in hidden], 1)


def any_order_nll(denoise: Denoise, kernel: Categorical, x_0: Tensor, *, generator: Randomness = None) -> Tensor:
    """N L_j for one j and one order drawn per example: an unbiased estimate of the any-order bound, (B,) in nats.

    One network call; arguments as `any_order_losses`.
    """
    data, N = unmasked(kernel, x_0), x_0[0].numel()
    place = visits(None, data, generator).to(x_0.device)
    many = 1 + randint(N, (len(data), 1), generator, device=x_0.device)
    return N * mean_loss(denoise, kernel, x_0, place, many)


def optimal_steps(losses: Tensor, n: int) -> Tensor:
    """The counts k_1 ... k_n, each >= 1, whose sum is N and whose cost sum_i k_i L_(1 + k_1 + ... + k_(i-1)) is least.

    Args:
        losses: L_1 ... L_N, (N,), finite.
        n: number of steps, 1 ... N.

    Returns:
        (n,) long. O(n N^2).
    """
    if losses.ndim != 1 or not bool(losses.isfinite().all()):
        raise ArgumentError("losses", losses, "finite losses (N,)")
    N = len(losses)
    if not isinstance(n, int) or not 1 <= n <= N:
        raise ArgumentError("n", n, f"an integer in 1 ... {N}")
    places = torch.arange(N + 1)
    # cost[a, b]: of going from a revealed tokens to b in one step.
    many = places - places[:-1].unsqueeze(1)
    cost = torch.where(many > 0, many * losses.detach().to("cpu", torch.float64).unsqueeze(1), torch.inf)
    best, came = torch.full((N + 1,), torch.inf, dtype=torch.float64), []
    best[0] = 0.0
    for _ in range(n):
        best, before = (best[:-1].unsqueeze(1) + cost).min(0)
        came.append(before)
    stops = [N]
    for before in reversed(came):
        stops.append(int(before[stops[-1]]))
    return torch.tensor(stops[::-1]).diff()


def steps_of(counts: Tensor | Sequence[int], schedule: Schedule) -> Tensor:
    """The grid on which `any_order` reveals these numbers of tokens: 1 - alpha is the share that is left, (n + 1,).

    Args:
        counts: (n,) integers >= 1; `[1] * N` for one token a step.
        schedule: the kernel's, with alpha_1 = 0.
    """
    numbers = torch.as_tensor(counts)
    if numbers.ndim != 1 or len(numbers) < 1 or numbers.is_floating_point() or not bool((numbers >= 1).all()):
        raise ArgumentError("counts", counts, "integers >= 1, (n,)")
    gone = numbers.cumsum(0).to(torch.float64) / int(numbers.sum())
    inner = time_of(lambda t: schedule(t)[0].detach(), gone[:-1])
    return check_times(torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)]))


def visits(order: Tensor | None, flat: Tensor, generator: Randomness = None) -> Tensor:
    """When each position is visited, (B, N) on the CPU; an ArgumentError unless the order is one. None: at random."""
    N = flat.shape[1]
    if order is None:
        return rand(flat.shape, generator, dtype=torch.float64, device="cpu").argsort(1).argsort(1)
    if order.shape not in ((N,), flat.shape) or not bool((order.sort(-1).values.cpu() == torch.arange(N)).all()):
        raise ArgumentError(
            "order", order, f"every position in 0 ... {N - 1} once, shape ({N},) or {tuple(flat.shape)}"
        )
    return order.cpu().expand(flat.shape).argsort(1)


def unmasked(kernel: Categorical, x_0: Tensor) -> Tensor:
    """The tokens as (B, N), or an ArgumentError unless there are some and none of them is the mask."""
    mask = mask_of(kernel)
    if x_0.numel() == 0 or bool((x_0 == mask).any()):
        raise ArgumentError("x_0", x_0, f"tokens (B, *dims), at least one and none the mask {mask}")
    return x_0.flatten(1)


def token_log_probs(belief: Tensor, data: Tensor) -> Tensor:
    """The belief's log-probabilities of the tokens (B, N), float64."""
    return belief.flatten(1, -2).gather(-1, data.unsqueeze(-1)).squeeze(-1).to(torch.float64)


def mean_loss(denoise: Denoise, kernel: Categorical, x_0: Tensor, place: Tensor, many: Tensor) -> Tensor:
    """-log p of a hidden token on average, (B,), the `many` (B, 1) last visited hidden."""
    data, mask = x_0.flatten(1), mask_of(kernel)
    hidden = place >= data.shape[1] - many
    t = time_of(lambda u: kernel.schedule(u)[0].detach(), 1 - many.squeeze(1).cpu() / data.shape[1])
    belief = denoise(torch.where(hidden, mask, data).view_as(x_0), t)
    return -torch.where(hidden, token_log_probs(belief, data), 0.0).sum(1) / many.squeeze(1)
