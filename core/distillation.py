r"""Progressive distillation: a student that makes one DDIM step where its teacher makes two.

For t > t' > t'' the two steps of a teacher with beliefs m at (x_t, t) and m' at (x_t', t') end where one step of a
student ends whose belief is (Salimans & Ho 2022, algorithm 2, eq. for the x-target, in log-SNR form)

    x_target = w m + (1 - w) m',     1 - w = (1 - r') / (1 - r),

    r' = exp((lambda_t' - lambda_t'')/2),    r = exp((lambda_t - lambda_t'')/2):

a mean of the teacher's two beliefs, so nothing is amplified however fine the grid. At alpha_t = 0 both ratios stay
finite, and in the last interval, where t'' = 0 and r = r' = 0, the target is m': there are no special cases. When the
student has learned it becomes the teacher of the next round, on every other time of the grid; `halvings` lists the
grids, so that N steps become 1 in log2 N rounds:

    for times in halvings(grids.uniform(1024)):
        objective = Distillation(student, teacher, kernel, times)
        teacher = train(objective, data, ...).ema.denoiser
        student = copy.deepcopy(teacher).requires_grad_()

The grid and the kernel's schedule need not be those the teacher was trained with (a denoiser finds the time of equal
log-SNR), nor need student and teacher be read alike; the student's reading must be defined at alpha = 0 where the grid
begins there (v, x0). A teacher with a guided network distils the guidance too (Meng et al. 2023, with one weight).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from .denoisers import Denoiser
from .errors import ArgumentError
from .gaussian import Belief
from .grids import check_times
from .kernel import Path, Time
from .objectives import Weight
from .randomness import Randomness, randint
from .schedules import Schedule, is_fixed
from .structure import opened

__all__ = ["Distillation", "Frozen", "Teacher", "bound", "halved", "halvings", "target_weights", "truncated_snr"]

Teacher: TypeAlias = Callable[..., Belief]
"""teacher(x_t, t, kernel, **condition) -> belief: a `Denoiser`, or any function that is called like one."""


def truncated_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """max(SNR, 1): the larger of the errors of x_0 and of the noise (Salimans & Ho 2022, sec. 4); positive at SNR 0."""
    return schedule.log_snr(t).exp().clamp_min(1)


def target_weights(schedule: Schedule, t: Tensor, middle: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """(weight of the teacher's belief at t, of that at `middle`) in the student's target for a step from t to `end`.

    Args:
        schedule: of the process.
        t, middle, end: falling times, of one shape; float64.
    """
    top, inner, last = (schedule.log_snr(u) for u in (t, middle, end))
    whole, second = torch.expm1((top - last) / 2), torch.expm1((inner - last) / 2)
    # r' (1 - r/r') / (1 - r), not one minus the other weight: each may be small.
    return torch.exp((inner - last) / 2) * torch.expm1((top - inner) / 2) / whole, second / whole


def halved(times: Tensor) -> Tensor:
    """Every other time of a grid of an even number of steps: the student's grid."""
    times = check_times(times)
    if len(times) % 2 == 0:
        raise ArgumentError("times", f"{len(times) - 1} steps", "an even number of steps")
    return times[::2]


def halvings(times: Tensor, last: int = 1) -> Iterator[Tensor]:
    """The teacher's grid of each round, from `times` to the one whose half has `last` steps.

    Args:
        times: grid (n + 1,) or (n + 1, B) of the first teacher; n = last 2^k.
        last: steps of the last student.
    """
    times = check_times(times)
    rounds, rest = 0, len(times) - 1
    while rest > last and rest % 2 == 0:
        rounds, rest = rounds + 1, rest // 2
    if last < 1 or rest != last:
        raise ArgumentError("last", last, f"{len(times) - 1} steps divided by a power of two")
    return (times[:: 2**i] for i in range(rounds))


def bound(denoise: Callable[[Tensor, Time], Belief]) -> Teacher:
    """A denoiser that is bound already, (x_t, t) -> belief, as a teacher; conditions in the batch do not reach it."""
    return lambda x, t, kernel, **condition: denoise(x, t)


@final
class Frozen:
    """A teacher beside the module that learns from it: not among its parameters, its average or its checkpoints.

    A module is copied, so that it stays as it is when a student begins as the teacher itself; it follows the states to
    their device. Copies of the holder share it. Called like the teacher, without gradients.
    """

    def __init__(self, teacher: Teacher):
        self.module: nn.Module | None = None
        self.teacher = teacher
        if isinstance(teacher, nn.Module):
            # Fixed schedules stay shared: a denoiser knows its own schedule by identity.
            kept = {id(m): m for m in teacher.modules() if isinstance(m, Schedule) and is_fixed(m)}
            self.teacher = self.module = copy.deepcopy(teacher, kept).eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, kernel: Any, **condition: Any) -> Belief:
        if self.module is not None and any(p.device != x_t.device for p in self.module.parameters()):
            self.module.to(x_t.device)
        return self.teacher(x_t, t, kernel, **condition)


@final
class Distillation(nn.Module):
    """One round of progressive distillation.

    Args:
        denoiser: the student, which learns.
        teacher: `teacher(x_t, t, kernel, **condition)` -> belief; see `bound`, `Frozen`.
        kernel: Gaussian, or a path without latent noise: whose states are denoised, on which schedule.
        times: the teacher's grid (2 n + 1,); the student learns the n steps of `halved(times)`, each as often.
        weight: of the error of the target.
    """

    def __init__(
        self, denoiser: Denoiser, teacher: Teacher, kernel: Path, times: Tensor, weight: Weight = truncated_snr
    ):
        super().__init__()
        times = check_times(times)
        if times.ndim != 1 or len(times) % 2 == 0:
            raise ArgumentError("times", times, "a grid (2 n + 1,), an even number of the teacher's steps")
        if not isinstance(kernel, Path):
            raise ArgumentError("kernel", kernel, "a Gaussian kernel or a path")
        self.denoiser, self.teacher, self.kernel, self.weight = denoiser, Frozen(teacher), kernel, weight
        self.times = times

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,).

        Args:
            batch: "x_0" and the conditions, which student and teacher both see.
            generator: one, or a list with one per example; draws the interval and the noise.
        """
        kernel, x_0, condition = opened(self.kernel, batch)
        times = self.times
        count = kernel.examples(x_0)
        i = 2 * randint(len(times) // 2, (count,), generator)
        t = times[i]
        x_t = kernel.interpolate(x_0, kernel.pair(x_0, generator), t, generator)
        target = self.target(kernel, x_t, t, times[i + 1], times[i + 2], **condition)
        belief = self.denoiser(x_t, t, kernel, **condition)
        error = kernel.error(target, belief, t)
        return self.weight(kernel.schedule, t).to(error) * error / kernel.dims(x_0).to(error).clamp_min(1)

    @torch.no_grad()
    def target(self, kernel: Path, x_t: Tensor, t: Tensor, middle: Tensor, end: Tensor, **condition: Any) -> Tensor:
        """The belief with which one DDIM step from t to `end` is the teacher's two by way of `middle`.

        Args:
            kernel: the objective's, bound to the state.
            x_t: the state.
            t, middle, end: falling times, (B,) float64.
            condition: what the teacher takes besides.
        """
        alpha_t, sigma_t = kernel.schedule(t)
        alpha_s, sigma_s = kernel.schedule(middle)
        ratio = sigma_s / sigma_t
        first = self.teacher(x_t, t, kernel, **condition)
        x_s = kernel.combine((ratio, x_t), *first.times(alpha_s - ratio * alpha_t))
        second = self.teacher(x_s, middle, kernel, **condition)
        of_first, of_second = target_weights(kernel.schedule, t, middle, end)
        return kernel.combine(*first.times(of_first), *second.times(of_second))
