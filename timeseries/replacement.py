"""Imputation by a model that was trained without given cells: the comparison that CSDI's paper makes (section 6.1).

Such a model draws whole windows (`targets.share(1)` in training), and how to fill gaps with it is a matter of sampling:
`core.inpainting.repaint` puts the given cells back at their own noise after every step (with `resamples=1` the plain
replacement that the paper compares with), and `particles` is exact in the limit of many of them. Both are `fill=`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.denoisers import Conditioned
from ..core.errors import ArgumentError
from ..core.gaussian import Belief, Gaussian
from ..core.inpainting import particle_inpaint
from ..core.randomness import Randomness, randint, seeded
from ..core.sampling import Step
from .drawing import Fill

__all__ = ["particles"]


def particles(count: int, threshold: float = 0.5) -> Fill:
    """A `fill` by a particle filter, see `core.inpainting.particle_inpaint`: `count` states for every sample.

    Args:
        count: of particles; each sample costs as many states in the network, beyond `batch_size`.
        threshold: effective share of them at which they are selected.

    Raises:
        ArgumentError: no count.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ArgumentError("particles", count, "an integer >= 1")

    def fill(
        denoise: Conditioned[Tensor, Belief],
        kernel: Gaussian,
        x: Tensor,
        times: Tensor,
        *,
        known: Tensor,
        mask: Tensor,
        generator: Randomness = None,
    ) -> Iterator[Step[Tensor]]:
        index = torch.arange(len(x), device=x.device).repeat_interleave(count)
        wide = kernel.taken(index, known)
        many: Randomness = generator
        if isinstance(generator, Sequence):
            # Streams of a sample's particles follow from the sample's own.
            keys = [int(randint(2**62, (), own)) for own in generator]
            many = [seeded(key, particle) for key in keys for particle in range(count)]
        steps = particle_inpaint(
            denoise.denoiser.given(wide, **denoise.condition),
            wide,
            wide.prior(known[index]).sample(many),
            times,
            known=known[index],
            mask=mask[index],
            particles=count,
            threshold=threshold,
            generator=many,
        )
        for step in steps:
            yield Step(step.t, step.x[::count], None)

    return fill
