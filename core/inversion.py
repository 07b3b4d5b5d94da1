r"""From data to latents and back: the ODE run up the grid, and mixtures of latents (Song et al. 2021, DDIM).

`encode` follows the same flow as the deterministic samplers, from t = 0 to the grid's first time. At t = 0 there is no
noise to predict, so the first interval mirrors the samplers' last one, x_0 = m(x, t_1): it takes the noise that the
denoiser sees in alpha x_0,

    x_(t_1) = alpha x_0 + sigma eps(alpha x_0, t_1) = 2 alpha x_0 - alpha m(alpha x_0, t_1),

which for small sigma is its inverse up to order 4 in sigma. The other intervals are exponential Adams-Bashforth; order
1 is DDIM inversion. Decoding with the same space, clock and order returns to the data with an error of that order.

Latents lie near a sphere, so their mixtures should too: `slerp` moves along great circles, example by example, with the
lengths and angles of the kernel's noise law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .gaussian import Belief, Gaussian
from .grids import unstack
from .kernel import Path, Time
from .multistep import multistep_rows
from .randomness import Randomness
from .sampling import Step, last, prepared
from .spaces import Clock, Space, half_log_snr, noise
from .tableau import Row, follow

__all__ = ["encode", "interpolate", "slerp"]


def encode(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    times: Tensor,
    *,
    space: Space = noise,
    clock: Clock = half_log_snr,
    order: int = 2,
    generator: Randomness = None,
) -> Iterator[Step[Tensor]]:
    """Data to latents; one network call per interval.

    Args:
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: Gaussian, or any path.
        x: data, the state at t = 0.
        times: the grid (n + 1,) or (n + 1, B) on which the latents are to be decoded, falling to 0; its steps come in
            reverse order.
        space, clock, order: of the multistep method, see `exponential_adams_bashforth`.
        generator: not used; all samplers are called alike.
    """
    times, alpha, _ = prepared(kernel, times)
    weight, first = unstack(alpha)[-2], unstack(times)[-2]
    rows = [Row(None, [(0, weight)], [], None), Row(first, [(0, 2 * weight)], [(0, -weight)], first)]
    if len(times) > 2:
        rising = multistep_rows(times[:-1].flip(0), kernel.schedule, space, clock, order, taper=False)
        rows += [moved(row, 2, 1) for row in rising]
    yield from follow(rows, denoise, kernel, x)


def moved(row: Row, states: int, beliefs: int) -> Row:
    """The row of a table to which so many states and beliefs were put in front."""
    return row._replace(
        states=[(j + states, weight) for j, weight in row.states],
        beliefs=[(j + beliefs, weight) for j, weight in row.beliefs],
    )


def slerp(kernel: Gaussian, x: Tensor, y: Tensor, share: Time) -> Tensor:
    """The state that lies `share` of the way from x to y on the great circle of each example.

    (sin((1 - share) angle) x + sin(share angle) y) / sin(angle): unit lengths keep theirs, unequal ones blend. For
    opposite states every great circle is shortest and the result is not defined.

    Args:
        kernel: whose noise law measures.
        x, y: states of B examples.
        share: in [0, 1], a number or (B,).
    """
    angle = angles(kernel, x, y)
    share = torch.as_tensor(share, dtype=torch.float64, device=angle.device)
    # sinc keeps the limit for equal states: sin(a angle)/sin(angle) -> a.
    whole = torch.sinc(angle / torch.pi)
    of_x, of_y = (part * torch.sinc(part * angle / torch.pi) / whole for part in (1 - share, share))
    return kernel.combine((of_x, x), (of_y, y))


def angles(kernel: Gaussian, x: Tensor, y: Tensor) -> Tensor:
    """The angle between the states of each example, (B,) in [0, pi], without the cancellation of an arccosine."""

    def length(*terms: tuple[Time, Tensor]) -> Tensor:
        return kernel.noise.squares(kernel.combine(*terms)).double().sqrt()

    unit_x, unit_y = (1 / length((1.0, z)).clamp_min(torch.finfo(torch.float64).tiny) for z in (x, y))
    return 2 * torch.atan2(length((unit_x, x), (-unit_y, y)), length((unit_x, x), (unit_y, y)))


def interpolate(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    y: Tensor,
    times: Tensor,
    shares: list[float],
    *,
    sampler: Callable[..., Iterator[Step[Tensor]]],
    order: int = 2,
) -> list[Tensor]:
    """Data between two data: encoded, mixed by `slerp`, decoded; one state per share.

    Args:
        denoise, kernel, times: as `encode`.
        x, y: data of B examples each.
        shares: how far from x to y, each in [0, 1].
        sampler: decodes; a deterministic one.
        order: of the encoding.
    """
    one, two = (last(encode(denoise, kernel, z, times, order=order)) for z in (x, y))
    return [last(sampler(denoise, kernel, slerp(kernel, one, two, share), times)) for share in shares]
