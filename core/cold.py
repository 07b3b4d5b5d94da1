r"""Cold diffusion: any degradation D(x_0, t) in the place of noise (Bansal et al. 2023).

D(x_0, 0) = x_0, and D is harsher the larger t: blur, masks, pixelation. A denoiser learns to restore x_0 from D(x_0, t)
by `Denoising` on a `Cold` path, and `cold` samples by

    x_s = x_t - D(x_0_hat, t) + D(x_0_hat, s)                                                         (algorithm 2)

which takes no harm from errors of the restoration as far as D is linear in its severity, where the plain
x_s = D(x_0_hat, s) does. The paper's D for noise is alpha_t x_0_hat + sigma_t x_1_hat, x_1_hat = (x_t - alpha_t
x_0_hat)/sigma_t: on any path `cold` takes D to be `interpolate` with that x_1_hat, so on a Gaussian kernel it is DDIM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .gaussian import Belief, TensorPath
from .kernel import Path, Time
from .noise import Noise
from .randomness import Randomness
from .sampling import Step, columns, prepared
from .schedules import RectifiedFlow, Schedule

__all__ = ["Cold", "cold"]


class Cold(TensorPath):
    """The path of a deterministic degradation.

    Args:
        degrade: `degrade(x_0, t)` -> D(x_0, t), t (B,) in [0, 1]; the identity at 0.
        schedule: gives the time its meaning for weights and for what the network is told; straight by default.
        noise: the law that knows the layout of the states and the metric of errors; nothing is drawn from it.
    """

    def __init__(
        self,
        degrade: Callable[[Tensor, Tensor], Tensor],
        schedule: Schedule | None = None,
        noise: Noise | None = None,
    ):
        super().__init__(schedule if schedule is not None else RectifiedFlow(), noise)
        self.degrade = degrade

    def pair(self, x_0: Tensor, generator: Randomness = None) -> Tensor:
        """D(x_0, 1)."""
        return self.degrade(x_0, torch.ones(self.examples(x_0), dtype=torch.float64))

    def interpolate(self, x_0: Tensor, x_1: Tensor, t: Tensor, generator: Randomness = None) -> Tensor:
        """D(x_0, t), whatever x_1 is."""
        return self.degrade(x_0, t)


def cold(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Bansal et al. 2023, algorithm 2; one network call per interval.

    Args:
        denoise: (x_t, t) -> belief about x_0.
        kernel: a `Cold` path, or any other without latent noise.
        x: the degraded state at times[0].
        times: grid (n + 1,) or (n + 1, B).
        generator: one, or a list with one per example; handed to the path. `Cold` and Gaussian ones draw nothing.
    """
    times, alpha, sigma = prepared(kernel, times)
    count = kernel.examples(x)
    numbers = columns(times[:-1], times[1:], 1 / sigma[:-1], -alpha[:-1] / sigma[:-1])
    wide = times.reshape(len(times), -1).expand(-1, count)
    for (t, s, of_x, of_mean), now, then in zip(zip(*numbers, strict=True), wide[:-1], wide[1:], strict=True):
        belief = denoise(x, t)
        x_1 = kernel.combine((of_x, x), *belief.times(of_mean))
        x_0 = belief.mean
        before, after = (kernel.interpolate(x_0, x_1, u, generator) for u in (now, then))
        x = kernel.combine((1.0, x), (-1.0, before), (1.0, after))
        yield Step(s, x, belief)
