"""Windows filled: states of many windows and many samples of each in one batch.

A batch holds windows of one length and the same number of samples of each, window after window. What the network knows
of a window before it sees a state (`network.side`) is computed once for all its samples in the batch and all calls.
Windows of other lengths are never padded to share a batch, so that what is drawn for one depends on nothing but itself
and its numbers.

A window without any given cell is drawn from the model as everything else; its level is then that of the training data.
One without missing cells is given back and costs no call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.gaussian import Gaussian
from ..core.randomness import seeded
from ..core.sampling import last
from .drawing import Drawing, Sampler
from .model import SeriesModel

__all__ = ["Plan", "Window", "fill"]


class Window(NamedTuple):
    """What is known of a window, and what is to be drawn of it."""

    values: Tensor
    """(L, K) float64 in the units of the data, NaN where missing."""
    stamps: Tensor
    """(L,) float64, in steps."""
    key: tuple[int, int]
    """Number of the series and place of the window in it."""
    samples: range
    """Numbers of the samples to draw."""


class Plan(NamedTuple):
    """How windows are filled: what `ImputationPipeline.plan` makes of options of drawing."""

    model: SeriesModel
    kernel: Gaussian
    sampler: Sampler
    times: Tensor | None
    """None where the sampler has its own."""
    drawing: Drawing


def fill(plan: Plan, windows: Sequence[Window]) -> list[Tensor]:
    """Samples (S, L, K) of each window, float64 on the CPU, the given cells as they came."""
    found: list[list[Tensor]] = [[] for _ in windows]
    jobs: list[tuple[int, Window]] = []
    for place, window in enumerate(windows):
        if not bool(window.values.isnan().any()):
            found[place].append(window.values.expand(len(window.samples), -1, -1))
            continue
        most = plan.drawing.rows(window.values.numel(), plan.model.centre.device)
        for begin in range(0, len(window.samples), most):
            jobs.append((place, window._replace(samples=window.samples[begin : begin + most])))
    for batch in batches(plan, jobs):
        drawn = filled(plan, [window for _, window in batch])
        for (place, _), samples in zip(batch, drawn, strict=True):
            found[place].append(samples)
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in found]


def batches(plan: Plan, jobs: Sequence[tuple[int, Window]]) -> Iterator[list[tuple[int, Window]]]:
    """Neighbours of one length and number of samples, as many as pass through the network at once."""
    for _, alike in groupby(jobs, lambda job: (len(job[1].values), len(job[1].samples))):
        same = list(alike)
        cells, count = same[0][1].values.numel(), len(same[0][1].samples)
        size = max(1, plan.drawing.rows(cells, plan.model.centre.device) // count)
        yield from (same[i : i + size] for i in range(0, len(same), size))


@torch.no_grad()
def filled(plan: Plan, windows: Sequence[Window]) -> Tensor:
    """One batch: samples (B, S, L, K)."""
    model, drawing, count = plan.model, plan.drawing, len(windows[0].samples)
    network, device = model.denoiser.network, model.centre.device
    dtype = next(model.parameters()).dtype
    values = torch.stack([window.values for window in windows])
    stamps = torch.stack([window.stamps - window.stamps[0] for window in windows]).to(device, dtype)
    given = ~values.isnan()
    known = given.to(device)
    z, level = model.normalised(values.to(device), known)
    if drawing.fill is not None:  # the model was trained with no given cells, and so with the series' level alone
        z, level = torch.where(known, z + level, 0), torch.zeros_like(level)
    observed = z.to(dtype)
    generators = [seeded(drawing.seed, *window.key, s) for window in windows for s in window.samples]
    like = observed.new_zeros(1).expand(len(generators), *observed.shape[1:])
    with torch.autocast(device.type, drawing.precision, enabled=drawing.precision != torch.float32):
        if drawing.fill is None:
            bound = plan.kernel.given(mask=~known.repeat_interleave(count, 0))
            side = network.side(observed, known, stamps)  # pyright: ignore[reportCallIssue]
            denoise = model.denoiser.given(bound, side=side)
            x = bound.prior(like).sample(generators)
            x = last(plan.sampler(denoise, bound, x, plan.times, generator=generators))
        else:
            bound = plan.kernel.given(mask=torch.ones_like(known).repeat_interleave(count, 0))
            side = network.side(torch.zeros_like(observed), torch.zeros_like(known), stamps)  # pyright: ignore[reportCallIssue]
            denoise = model.denoiser.given(bound, side=side)
            x = bound.prior(like).sample(generators)
            kept = {"known": observed.repeat_interleave(count, 0), "mask": known.repeat_interleave(count, 0)}
            x = last(drawing.fill(denoise, bound, x, plan.times, generator=generators, **kept))
    drawn = model.restored(x.view(len(windows), count, *x.shape[1:]), level.unsqueeze(1)).cpu()
    return torch.where(given.unsqueeze(1), values.unsqueeze(1), drawn)
