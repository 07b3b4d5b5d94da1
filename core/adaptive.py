r"""The probability-flow ODE by Dormand and Prince's embedded pair, with step sizes of each example's own.

In straight-path coordinates y = x/(alpha + sigma), u = sigma/(alpha + sigma) the flow is

    dy/du = eps - m = (y - m)/u

(see `ode`), finite at alpha = 0 and everywhere above sigma = 0. The fifth-order solution is kept, its difference to the
embedded fourth-order one, e, decides: a step is accepted where

    |e| <= atol sqrt(d) + rtol max(|y|, |y_new|)

in the norm of the noise law with d its dimensions, one number per example. Every example has its own time, step and
decision, so that neighbours in a batch change nothing for each other (a batch solver with one norm couples them); the
batch runs until the slowest example arrives, and this, the only thing that must be known on the host, is asked once per
step. Dormand & Prince 1980; step control as Hairer, Norsett & Wanner 1993, II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .grids import unstack
from .kernel import Time
from .randomness import Randomness
from .sampling import Step, prepared

__all__ = ["adaptive"]

PLACES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The last row is the fifth-order solution, whose slope is the first of the next step."""
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Fifth-order weights minus fourth-order ones."""


def adaptive(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    max_steps: int = 10_000,
    generator: Randomness = None,
) -> Generator[Step[Tensor], Tensor | None, int]:
    """Yields the state at every time of the grid, with the latest belief, and returns the number of network calls.

    A state that is sent begins anew, with a first step of its own.

    Args:
        denoise: (x_t, t) -> belief, t (B,); only its mean is used.
        kernel: Gaussian.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B) of stops, not of steps: (1, 1e-3, 0) is enough. As in every sampler the last
            interval, down to 0, is the belief's mean: one call.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in units of the noise's standard deviation.
        max_steps: the most attempted steps; an ArgumentError names the tolerances when they do not suffice.
        generator: not used; all samplers are called alike.
    """
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value >= 0):
            raise ArgumentError(name, value, "a number >= 0")
    if rtol + atol == 0:
        raise ArgumentError("rtol, atol", (rtol, atol), "at least one positive tolerance")
    times, alpha, sigma = prepared(kernel, times)
    count = kernel.examples(x)
    u = (sigma / (alpha + sigma)).reshape(len(times), -1).expand(-1, count)
    flow = Flow(denoise, kernel, rtol, atol)
    here, belief = u[0], None
    y, step, slope = kernel.combine((1 / flow.place(here)[1], x)), None, None
    attempts = 0
    for stop, t in zip(u[1:-1], unstack(times)[1:-1], strict=True):
        while True:
            arrived = here <= stop
            if bool(arrived.all()):
                break
            if attempts == max_steps:
                raise ArgumentError("rtol, atol", (rtol, atol), f"tolerances that max_steps = {max_steps} steps meet")
            attempts += 1
            if slope is None or step is None:
                slope = flow.slope(y, here)
                step = flow.first_step(y, slope)
            h = torch.minimum(step, here - stop)
            new, new_slope, error = flow.attempt(y, slope, here, h)
            # A comparison with NaN is false: such a step is tried again, smaller.
            accepted = (error <= 1) | arrived
            keep = kernel.noise.spread(accepted.to(x.dtype), x) > 0
            y, slope = kernel.blend(keep, new, y), kernel.blend(keep, new_slope, slope)
            reached = torch.where(step >= here - stop, stop, here - h)
            factor = (0.9 * error.clamp_min(1e-10) ** -0.2).clamp(0.2, 10.0).nan_to_num(0.2)
            grown = torch.where(accepted & (h < step), torch.maximum(step, h * factor), h * factor)
            step = torch.where(arrived, step, grown)
            here = torch.where(accepted & ~arrived, reached, here)
        sent = yield Step(t, kernel.combine((flow.place(here)[1], y)), flow.belief)
        if sent is not None:
            y, step, slope = kernel.combine((1 / flow.place(here)[1], sent)), None, None
    final = unstack(times)[-2]
    belief = denoise(kernel.combine((flow.place(here)[1], y)), final)
    yield Step(unstack(times)[-1], kernel.combine(*belief.times(1.0)), belief)
    return flow.calls + 1


class Flow:
    """The right-hand side in straight-path coordinates, and one attempted step."""

    def __init__(self, denoise: Callable[[Tensor, Time], Belief], kernel: Gaussian, rtol: float, atol: float):
        self.denoise, self.kernel, self.rtol, self.atol = denoise, kernel, rtol, atol
        self.calls = 0
        self.belief: Belief | None = None
        """of the latest call"""

    @torch.no_grad()
    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(t, alpha + sigma) at u, each (B,)."""
        t = self.kernel.schedule.inverse(2 * (torch.log1p(-u) - u.log()))
        alpha, sigma = self.kernel.schedule(t)
        return t, alpha + sigma

    def slope(self, y: Tensor, u: Tensor) -> Tensor:
        """dy/du = (y - m)/u."""
        t, k = self.place(u)
        self.belief = self.denoise(self.kernel.combine((k, y)), t)
        self.calls += 1
        return self.kernel.combine((1 / u, y), *self.belief.times(-1 / u))

    @torch.no_grad()
    def length(self, y: Tensor) -> Tensor:
        """Root mean square in the norm of the noise law, (B,) float64 on the CPU, where the times are."""
        squares, dims = self.kernel.noise.squares(y), self.kernel.dims(y)
        return (squares.double() / dims.double().clamp_min(1)).sqrt().cpu()

    def first_step(self, y: Tensor, slope: Tensor) -> Tensor:
        """A hundredth of the way in which y changes by its own size (Hairer et al., II.4, without the second call)."""
        size, speed = self.length(y), self.length(slope)
        return (0.01 * (size + self.atol) / speed.clamp_min(1e-10)).nan_to_num(1e-3).clamp(1e-6, 0.1)

    def attempt(self, y: Tensor, slope: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(y, its slope, error relative to the tolerance) at u - h."""
        slopes, new = [slope], y
        for place, weights in zip(PLACES[1:], STAGES[1:], strict=True):
            moves = [(-h * weight, p) for weight, p in zip(weights, slopes, strict=True) if weight]
            new = self.kernel.combine((1.0, y), *moves)
            slopes.append(self.slope(new, u - place * h))
        wrong = self.length(
            self.kernel.combine(*((h * weight, p) for weight, p in zip(ERROR, slopes, strict=True) if weight))
        )
        allowed = self.atol + self.rtol * torch.maximum(self.length(y), self.length(new))
        return new, slopes[-1], wrong / allowed
