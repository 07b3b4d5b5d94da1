r"""DPM-Solver++ 2M: multistep exponential integrator of order 2 in the belief (Lu et al. 2022b, algorithm 2).

With h = (lambda_s - lambda_t)/2 (half-log-SNR steps) and D the belief extrapolated to the middle of the step,

    x_s = sigma_s/sigma_t x_t - alpha_s (e^(-h) - 1) D,    D = (1 + 1/(2 r)) x_0(t) - 1/(2 r) x_0(t_previous),  r = h_prev/h.

The first step, and the last one to sigma = 0 where h is infinite, have order 1 (D = x_0(t)); so has the second one if the
grid began at alpha = 0, since h_prev is infinite there. e^(-h) = alpha_t sigma_s / (alpha_s sigma_t) stays finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .gaussian import Belief
from .kernel import Path, Time
from .randomness import Randomness
from .sampling import Step, columns, prepared

__all__ = ["dpm_solver_pp_2m"]


def dpm_solver_pp_2m(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Order 2 with one network call per interval.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, or any path.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B); uniform log-SNR suits it.
        generator: not used; all samplers are called alike.
    """
    times, alpha, sigma = prepared(kernel, times)
    of_x = sigma[1:] / sigma[:-1]
    of_mean = alpha[1:] - of_x * alpha[:-1]
    half = alpha.log() - sigma.log()
    h = half[1:] - half[:-1]
    lean = torch.zeros_like(h)
    lean[1:-1] = h[1:-1] / (2 * h[:-2])
    table = columns(times[:-1], times[1:], of_x, of_mean * (1 + lean), -of_mean * lean)
    previous = None
    for i, (t, s, a, b, c) in enumerate(zip(*table, strict=True)):
        belief = denoise(x, t)
        # The mean is needed twice, so it is computed, not summed anew.
        terms = [(a, x), (b, belief.mean)]
        if previous is not None and i < len(h) - 1:
            terms.append((c, previous))
        x, previous = kernel.combine(*terms), belief.mean
        yield Step(s, x, belief)
