"""How gaps are filled, for every kernel, and how an absorbing model is told the time.

`clamped` (see `semi_autoregressive`) fills with absorbing kernels: known tokens are tokens that have been revealed, so
conditioning is exact. Other kernels move known tokens too; there `repaint` of the core puts them back at their own
noise, and `particles` weighs several tries so that the law is the model's as their number grows. All three have the
form of `repaint`, and all keep the known tokens to the letter.

For an absorbing chain the best belief does not depend on the time (Zheng et al. 2024, "Masked Diffusion Models are
Secretly Time-Agnostic Masked Models"), but a network is trained at times that tell how much is masked. In a text with a
gap little is masked however early the sampler thinks it is; so `by_share` tells the network, whatever the sampler's
time, that at which the share of masked tokens that it sees is the expected one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..core.categorical import Tokens
from ..core.errors import ArgumentError
from ..core.inpainting import particle_inpaint
from ..core.kernel import Time
from ..core.randomness import Randomness, randint, seeded
from ..core.sampling import Step
from ..core.schedules import time_of
from .semi_autoregressive import Fill

__all__ = ["by_share", "particles", "window_by_window"]

Denoise = Callable[[Tensor, Time], Tensor]


def by_share(denoise: Denoise, kernel: Tokens) -> Denoise:
    """A bound denoiser of an absorbing kernel that reads the time off the state: 1 - alpha_t = the share of masks.

    Args:
        denoise: (x_t, t) -> belief.
        kernel: absorbing.
    """
    schedule, mask = kernel.schedule, kernel.mask
    if mask is None:
        raise ArgumentError("kernel", kernel, "an absorbing kernel")

    def timed(x_t: Tensor, t: Time) -> Tensor:
        flat = x_t.flatten(1)
        # Half a token where there is no mask: at neither end of time, where a revealed one would be impossible.
        share = (flat == mask).sum(1).cpu().to(torch.float64).clamp_min(0.5) / flat.shape[1]
        return denoise(x_t, time_of(lambda u: schedule(u)[0].detach(), 1 - share))

    return timed


def particles(count: int, threshold: float = 0.5) -> Fill:
    """Fill by a particle filter: every text is tried `count` times at once, and one fair draw is kept.

    Args:
        count: of particles for each text; as many times the work.
        threshold: as in `core.inpainting.particle_inpaint`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError("particles", count, "an integer >= 1")

    def fill(
        denoise: Denoise,
        kernel: Tokens,
        x: Tensor,
        times: Tensor,
        *,
        known: Tensor,
        mask: Tensor,
        generator: Randomness = None,
    ) -> Iterator[Step[Tensor]]:
        index = torch.arange(len(x), device=x.device).repeat_interleave(count)
        many: Randomness = generator
        if isinstance(generator, Sequence):
            # Streams of a text's particles follow from the text's own.
            keys = [int(randint(2**62, (), own)) for own in generator]
            many = [seeded(key, particle) for key in keys for particle in range(count)]
        columns = times if times.ndim == 1 else times[:, index.cpu()]
        start = kernel.prior(known[index]).sample(many)
        steps = particle_inpaint(
            denoise,
            kernel,
            start,
            columns,
            known=known[index],
            mask=mask[index],
            particles=count,
            threshold=threshold,
            generator=many,
        )
        for step in steps:
            yield Step(step.t, step.x[::count], step.belief[::count])

    return fill


def window_by_window(fill: Callable[[Tensor, Tensor], Tensor], rows: Tensor, hidden: Tensor, window: int) -> Tensor:
    """Texts with their gaps filled from left to right, each gap with a quarter of a window on both sides where there is
    as much; a text no longer than the window at once.

    Args:
        fill: (tokens (B, L), which are known (B, L)) -> tokens (B, L), L at most the window; known ones stay.
        rows: (B, N) tokens; any number in gaps.
        hidden: (N,), True in gaps.
        window: tokens to look at at once.
    """
    hidden, total = hidden.clone(), len(hidden)
    while bool(hidden.any()):
        place = int(hidden.nonzero()[0])
        start = max(0, min(place - window // 4, total - window))
        stop = min(start + window, total)
        # What lies near the right edge has seen little of what follows, and is left to the next window.
        end = stop if stop == total else max(place + 1, stop - window // 4)
        found = fill(rows[:, start:stop], ~hidden[start:stop].expand(len(rows), -1))
        rows = torch.cat([rows[:, :start], found[:, : end - start], rows[:, end:]], 1)
        hidden[:end] = False
    return rows
