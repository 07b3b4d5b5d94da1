r"""Consistency functions: where the probability-flow ODE through (x_t, t) ends, in one call (Song et al. 2023).

f(x_t, t) is the state that the flow through x_t has at t_min, divided by alpha there; as a belief it is used like any
other. In terms of rho = sigma/alpha, the reading `consistency` keeps the boundary condition f(x, t_min) = x/alpha,

    f = c_skip x_t + c_out F(c_in x_t),    c_skip = s^2 / ((rho - rho_min)^2 + s^2) / alpha,
    c_out = s (rho - rho_min) / sqrt(rho^2 + s^2),    c_in = 1 / (alpha sqrt(rho^2 + s^2))

(Song et al. 2023, appendix C, s = sigma_data; for alpha = 1 word by word); at alpha = 0 too.

Both trainings ask for f(x_t, t) = f(x_s, s) at neighbouring times s < t of a grid, the right side without gradient and
with the network's present weights (Song & Dhariwal 2024: no average for the target):

    distillation    x_s is one step of a solver from x_t under a teacher
    training        x_s has the same x_0 and the same x_1 as x_t

At s = t_min the right side is x_s/alpha_s itself. Improved training's choices are the defaults: pseudo-Huber metric,
weight 1/(rho_t - rho_s), a log-normal law over the intervals, and a `curriculum` that doubles their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, final

import torch
from torch import Tensor, nn

from .denoisers import Denoiser, Parametrisation
from .distillation import Frozen, Teacher
from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .grids import check_times
from .kernel import Path, Time
from .ode import heun
from .randomness import Randomness, rand
from .sampling import Step, Steps, columns, prepared
from .schedules import Schedule, is_fixed
from .structure import opened
from .tableau import Row, follow

__all__ = [
    "Consistency",
    "consistency",
    "consistency_sampler",
    "curriculum",
    "even",
    "log_normal",
    "plain",
    "pseudo_huber",
    "reciprocal",
    "squared",
]

Law: TypeAlias = Callable[[Schedule, Tensor, Tensor], Tensor]
"""(schedule, t, s) of n intervals, (n,) each -> a number >= 0 for each: weights, or probabilities up to a factor."""


def consistency(sigma_min: float, sigma_data: float = 0.5) -> Parametrisation:
    """The reading of a network as a consistency function.

    Args:
        sigma_min: sigma/alpha at t_min, the last positive time of the grid; there the belief is x/alpha exactly.
        sigma_data: the data's standard deviation.
    """
    if not (math.isfinite(sigma_min) and sigma_min >= 0):
        raise ArgumentError("sigma_min", sigma_min, "a number >= 0")
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise ArgumentError("sigma_data", sigma_data, "a positive number")

    def consistency_(alpha_t: Tensor, sigma_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        above, data = sigma_t - sigma_min * alpha_t, sigma_data * alpha_t
        whole = torch.hypot(sigma_t, data)
        return sigma_data * data / (above**2 + data**2), sigma_data * above / whole, 1 / whole

    return consistency_


def pseudo_huber(c: float = 0.00054) -> Callable[[Tensor], Tensor]:
    """sqrt(e + c^2) - c of the mean squared error e per dimension (Song & Dhariwal 2024, sec. 3.3, over sqrt(dims))."""
    # e/(sqrt + c) is the same number without cancellation where e is far below c^2.
    return lambda error: error / ((error + c**2).sqrt() + c)


def squared(error: Tensor) -> Tensor:
    """The mean squared error per dimension itself."""
    return error


def reciprocal(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """1/(rho_t - rho_s), rho = sigma/alpha (Song & Dhariwal 2024, sec. 3.1); 0 where alpha_t = 0: see `plain`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return 1 / (sigma_t / alpha_t - sigma_s / alpha_s)


def plain(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """1 (Song et al. 2023), for grids that begin at alpha = 0 too."""
    return torch.ones_like(t)


def even(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Every interval as often."""
    return torch.ones_like(t)


def log_normal(mean: float = -1.1, deviation: float = 2.0) -> Law:
    """The share of each interval under log rho ~ N(mean, deviation^2) (Song & Dhariwal 2024, sec. 3.5)."""

    def share(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        above, below = ((-schedule.log_snr(u) / 2 - mean) / deviation for u in (t, s))
        return torch.special.ndtr(above) - torch.special.ndtr(below)

    return share


def curriculum(steps: int, first: int = 10, last: int = 1280) -> Callable[[int], int]:
    """step -> number of intervals: min(first 2^floor(step/K), last), K = floor(steps / (floor(log2(last/first)) + 1)).

    (Song & Dhariwal 2024, eq. for N(k); their N counts times, one more than intervals.)
    """
    if not 1 <= first <= last:
        raise ArgumentError("first, last", (first, last), "1 <= first <= last")
    length = max(1, steps // (int(math.log2(last / first)) + 1))
    return lambda step: min(first * 2 ** min(step // length, 64), last)


class _Intervals(NamedTuple):
    """The intervals of one grid, largest times first; tensors (n,)."""

    t: Tensor
    s: Tensor
    alpha_s: Tensor
    cumulative: Tensor
    weight: Tensor


@final
class Consistency(nn.Module):
    """Consistency training, or consistency distillation where a teacher is given.

    Args:
        denoiser: learns the consistency function, best by the reading `consistency`.
        kernel: Gaussian, or a path without latent noise.
        grid: number of intervals -> the grid (1, ..., t_min, 0) of that many intervals above t_min, for instance
            `lambda n: grids.karras(n + 1, schedule)`. The interval from t_min to 0 is not used.
        intervals: step -> number of intervals; see `curriculum`. A constant for distillation, 18 in Song et al. 2023.
        teacher: `teacher(x_t, t, kernel, **condition)` -> belief, for distillation; see `distillation.bound`.
        solver: a sampler, whose first step from t to s the teacher makes.
        metric: of the mean squared error per dimension, in the metric of the noise law.
        weight: of an interval in the loss, positive on every interval of the grid.
        law: the probability of an interval, up to a factor.
        accumulate: forward passes per optimizer step, as in the training options.

    Steps are counted by forward passes in training mode; the count is part of the state, so a resumed run goes on.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kernel: Path,
        grid: Callable[[int], Tensor],
        intervals: Callable[[int], int],
        teacher: Teacher | None = None,
        *,
        solver: Callable[..., Iterator[Step[Tensor]]] = heun,
        metric: Callable[[Tensor], Tensor] | None = None,
        weight: Law = reciprocal,
        law: Law | None = None,
        accumulate: int = 1,
    ):
        super().__init__()
        if not isinstance(kernel, Path):
            raise ArgumentError("kernel", kernel, "a Gaussian kernel or a path")
        if accumulate < 1:
            raise ArgumentError("accumulate", accumulate, "an integer >= 1")
        self.denoiser, self.kernel, self.grid, self.intervals = denoiser, kernel, grid, intervals
        self.teacher = None if teacher is None else Frozen(teacher)
        self.solver, self.weight, self.accumulate = solver, weight, accumulate
        self.metric = metric if metric is not None else pseudo_huber()
        self.law = law if law is not None else log_normal()
        self.calls = 0
        self.tables: dict[int, _Intervals] = {}
        self.table()

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)

    def table(self) -> _Intervals:
        """The intervals of the present step."""
        count = self.intervals(self.calls // self.accumulate)
        if count in self.tables:
            return self.tables[count]
        table = self.tabulated(count)
        if is_fixed(self.kernel.schedule):
            self.tables[count] = table
        return table

    def tabulated(self, count: int) -> _Intervals:
        """The table of `count` intervals as the schedule is now; nothing in it teaches a schedule that learns."""
        times = check_times(self.grid(count)).detach()
        if times.ndim != 1 or len(times) != count + 2:
            raise ArgumentError("grid", times, f"a grid (1, ..., t_min, 0) of {count + 2} times")
        t, s, schedule = times[:-2], times[1:-1], self.kernel.schedule
        law, weight = self.law(schedule, t, s).detach(), self.weight(schedule, t, s).detach()
        if not bool((weight.isfinite() & (weight > 0)).all()):
            raise ArgumentError("weight", weight, "positive numbers on the whole grid; `plain` has them at alpha = 0")
        if not bool((law >= 0).all() and law.sum() > 0):
            raise ArgumentError("law", law, "probabilities up to a factor")
        return _Intervals(t, s, schedule(s)[0].detach(), law.cumsum(0) / law.sum(), weight)

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,).

        Args:
            batch: "x_0" and the conditions.
            generator: one, or a list with one per example; draws the interval and the noise.
        """
        kernel, x_0, condition = opened(self.kernel, batch)
        table = self.table()
        self.calls += self.training
        u = rand((kernel.examples(x_0),), generator, dtype=torch.float64)
        i = torch.searchsorted(table.cumulative, u, right=True).clamp(max=len(table.t) - 1)
        t, s = table.t[i], table.s[i]
        x_1 = kernel.pair(x_0, generator)
        x_t = kernel.interpolate(x_0, x_1, t, generator)
        with torch.no_grad():
            if self.teacher is None:
                x_s = kernel.interpolate(x_0, x_1, s, generator)
            else:
                x_s = self.step(kernel, x_t, t, s, condition)
            ahead = self.denoiser(x_s, s, kernel, **condition)
            at_end = (i == len(table.t) - 1).to(torch.float64)
            target = kernel.combine((at_end / table.alpha_s[i], x_s), *ahead.times(1 - at_end))
        error = kernel.error(target, self.denoiser(x_t, t, kernel, **condition), t)
        return table.weight[i].to(error) * self.metric(error / kernel.dims(x_0).to(error).clamp_min(1))

    def step(self, kernel: Path, x_t: Tensor, t: Tensor, s: Tensor, condition: dict[str, Any]) -> Tensor:
        """The teacher's x_s: the solver's first step on the grid (t, s, 0), per example."""
        teacher = self.teacher
        assert teacher is not None
        times = torch.stack([t, s, torch.zeros_like(s)])
        return next(self.solver(lambda y, u: teacher(y, u, kernel, **condition), kernel, x_t, times)).x


def consistency_sampler(
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Gaussian,
    x: Tensor,
    times: Tensor,
    *,
    t_min: float = 0.0,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): to the end, then noise to the next time; repeat.

    Args:
        denoise: (x_t, t) -> belief: a consistency function, divided by alpha at its t_min.
        kernel: Gaussian.
        x: the state at times[0].
        times: grid (n + 1,) or (n + 1, B); n network calls; its positive times above t_min.
        t_min: where the consistency function ends. Its state has the noise of t_min already, so that the step to s is
            the transition from t_min to s; with 0 it is the marginal at s.
        generator: one, or a list with one per example; draws the noise.
    """
    if not isinstance(kernel, Gaussian):
        raise ArgumentError("kernel", kernel, "a Gaussian kernel")
    times, alpha, sigma = prepared(kernel, times)
    if not bool((times[:-1] > t_min).all()) or t_min < 0:
        raise ArgumentError("t_min", t_min, "a number in [0, the grid's last positive time)")
    fall = kernel.schedule.log_snr(times[:-1]) - kernel.schedule.log_snr(torch.tensor(t_min, dtype=torch.float64))
    scale = sigma[1:-1] * (-torch.expm1(fall[1:])).sqrt().detach()
    calls, reached, of_mean = columns(times[:-1], times[1:], alpha[1:])
    scales = [*columns(scale)[0], None]
    rows = [
        Row(call, [], [(i, weight)], time, noise)
        for i, (call, time, weight, noise) in enumerate(zip(calls, reached, of_mean, scales, strict=True))
    ]
    return follow(rows, denoise, kernel, x, generator)
