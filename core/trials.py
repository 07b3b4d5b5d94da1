"""How a method is tried on a domain's smallest case: runs, and what must hold of what comes out.

A run returns nothing and raises where a promise is broken. Whatever the method, a state that comes out is finite, has
the data's shape and type, lies in the kernel's space, and is the same again from the same seed. `matrix` lists methods.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .analytic import Analytic, analytic_ddim, measure
from .ancestral import ancestral
from .case import Case
from .cold import cold
from .consistency import consistency_sampler
from .ddim import ddim
from .dpm_solver import dpm_solver_pp_2m
from .editing import edit
from .gaussian import Belief, Gaussian
from .grids import uniform
from .guidance import ClassifierFree
from .inpainting import particle_inpaint, repaint
from .interpolants import Interpolant, bridge
from .inversion import encode, interpolate
from .kernel import Path
from .noise import own_view
from .prior import ZeroTerminal
from .randomness import example_generators
from .sampling import last
from .schedules import RectifiedFlow, Schedule
from .trajectories import frames, guesses
from .truncation import Energy, truncate

__all__ = ["check", "check_state", "denoise", "generators", "grid", "late", "leaves", "needed", "run_twice", "sampled"]


def check(condition: bool | Tensor, reason: str) -> None:
    """An AssertionError with the reason unless the condition holds."""
    if not bool(condition):
        raise AssertionError(reason)


def leaves(x: Any) -> Iterator[Tensor]:
    """The tensors of a state."""
    if isinstance(x, Tensor):
        yield x
    else:
        for part in x:
            yield from leaves(part)


def check_state(case: Case, x: Any) -> None:
    """A state like the data: shapes, types, finite numbers, in the kernel's space."""
    for mine, data in zip(leaves(x), leaves(case.x_0), strict=True):
        check(mine.shape == data.shape, f"shape {tuple(mine.shape)}, not {tuple(data.shape)}")
        check(mine.dtype == data.dtype, f"type {mine.dtype}, not {data.dtype}")
        check(mine.isfinite().all(), "numbers that are not finite")
    if isinstance(case.kernel, Path):
        check(torch.allclose(case.kernel.project(x), x, atol=1e-4), "a state outside the kernel's space")


def check_equal(x: Any, y: Any, reason: str) -> None:
    """The same state twice."""
    check(all(torch.equal(a, b) for a, b in zip(leaves(x), leaves(y), strict=True)), reason)


def generators(case: Case) -> list[torch.Generator]:
    """One per example; the same at every call."""
    return example_generators(0, 0, range(case.kernel.examples(case.x_0)))


def grid(case: Case, steps: int = 4) -> Tensor:
    """Equal intervals down to the least time of the case's schedules."""
    schedules = [module for module in case.kernel.modules() if isinstance(module, Schedule)]
    return uniform(steps, max(schedules, key=lambda schedule: schedule.t_min))


def late(case: Case) -> Tensor:
    """A grid that begins a little below 1, where every alpha is positive."""
    times = grid(case)
    times[0] = (3 + times[1]) / 4
    return times


def denoise(case: Case) -> Callable[[Any, Any], Any]:
    """The case's denoiser, bound."""
    return case.denoiser.given(case.kernel, **case.condition)


def half(case: Case, x: Any) -> Any:
    """A mask that is True on every other element (row, for clouds) of every part of a state; examples as in states."""
    if isinstance(x, tuple):
        return tuple(half(case, part) for part in x)
    if len(x) != case.kernel.examples(case.x_0):
        return (torch.arange(len(x)) % 2 == 0).reshape(-1, *(1,) * (x.ndim - 1))
    return (torch.arange(x[0].numel()).reshape(x[0].shape) % 2 == 0).expand_as(x)


def run_twice(case: Case, run: Callable[[Case, Any, list[torch.Generator]], Any]) -> Any:
    """run(case, x_1, generators) from one seed twice: a state like the data, and the same."""
    results = []
    for _ in range(2):
        own = generators(case)
        results.append(run(case, case.kernel.prior(case.x_0).sample(own), own))
    check_state(case, results[0])
    check_equal(results[0], results[1], "another state from the same seed")
    return results[0]


def sampled(sampler: Callable[..., Iterator[Any]], times: Callable[[Case], Tensor] = grid) -> Callable[[Case], None]:
    """How a sampler is run."""

    def draw(case: Case, x: Any, own: list[torch.Generator]) -> Any:
        return last(sampler(denoise(case), case.kernel, x, times(case), generator=own))

    return lambda case: void(run_twice(case, draw))


def void(_: object) -> None:
    """What a method's run returns, whatever came."""


def needed(sampler: Callable[..., Any]) -> type:
    """The class of kernel that a sampler takes, by its signature."""
    hint = typing.get_type_hints(sampler)["kernel"]
    return typing.get_origin(hint) or hint


def inpainted(case: Case) -> None:
    """RePaint with a jump."""
    mask = half(case, case.x_0)
    draw = run_twice(
        case,
        lambda case, x, own: last(
            repaint(
                denoise(case), case.kernel, x, grid(case), known=case.x_0, mask=mask, jump=1, resamples=2, generator=own
            )
        ),
    )
    check_kept(case, mask, draw)


def check_kept(case: Case, mask: Any, x: Any) -> None:
    """The known part is in place: putting it there again changes nothing."""
    again = case.kernel.blend(mask, case.x_0, x)
    near = (torch.allclose(a.double(), b.double(), atol=1e-5) for a, b in zip(leaves(again), leaves(x), strict=True))
    check(all(near), "the known part has changed")


def filtered(case: Case) -> None:
    """The particle method with three particles for every example."""
    many, index = repeated(case, 3)
    mask = case.kernel.take(half(case, case.x_0), index)
    known: dict[str, Any] = {"known": many.x_0, "mask": mask, "particles": 3}
    draw = run_twice(
        many,
        lambda many, x, own: last(
            particle_inpaint(denoise(many), many.kernel, x, grid(many), generator=own, **known),
        ),
    )
    check_kept(many, mask, draw)


def repeated(case: Case, times: int) -> tuple[Case, Tensor]:
    """The case with every example repeated, and which example each is."""
    index = torch.arange(case.kernel.examples(case.x_0)).repeat_interleave(times)
    return case.chosen(index), index


def edited(case: Case) -> None:
    """Partial noising; strength 0 changes nothing."""

    def draw(strength: float, case: Case, x: Any, own: list[torch.Generator]) -> Any:
        return last(edit(denoise(case), case.kernel, case.x_0, grid(case), strength, generator=own))

    run_twice(case, partial(draw, 0.5))
    check_equal(run_twice(case, partial(draw, 0.0)), case.x_0, "an edit of no strength changes the data")


def filmed(case: Case) -> None:
    """Frames of a run, and what the model says at each."""
    own = generators(case)
    x = case.kernel.prior(case.x_0).sample(own)
    steps = ancestral(denoise(case), case.kernel, x, grid(case), generator=own)
    shown = list(frames(steps, 3))
    check(len(shown) == 3 and float(torch.as_tensor(shown[-1].t).max()) == 0, "the wrong frames")
    for step in [*shown, *guesses(case.kernel, shown, own)]:
        check_state(case, step.x)


def guided(case: Case) -> None:
    """Classifier-free guidance: weight 1 is the network itself, and so is any weight if nothing is dropped."""
    own = generators(case)
    x, t = case.kernel.prior(case.x_0).sample(own), float(grid(case)[1])
    expected = case.kernel.conclude(denoise(case)(x, t), generators(case))
    name, value = next((name, value) for name, value in case.condition.items() if isinstance(value, Tensor))
    for weight, null in ((1.0, torch.zeros_like(value)), (3.0, value)):
        view = own_view(case.denoiser)
        view.network = ClassifierFree(case.denoiser.network, weight, {name: null})
        guess = case.kernel.conclude(view.given(case.kernel, **case.condition)(x, t), generators(case))
        check_state(case, guess)
        near = (torch.allclose(a, b, atol=1e-3) for a, b in zip(leaves(guess), leaves(expected), strict=True))
        check(all(near), f"guidance of weight {weight} without effect has one")


def rescheduled(case: Case) -> None:
    """The denoiser on another schedule: the same belief at equal log-SNR, and a run down to data."""
    kernel: Any = case.kernel
    here, there = kernel.schedule, RectifiedFlow()
    other = Gaussian(there, kernel.noise)
    t = torch.tensor(0.5, dtype=torch.float64)
    u = there.inverse(here.log_snr(t))
    x_t = kernel.marginal(case.x_0, float(t)).sample(generators(case))
    x_u = kernel.combine((float(torch.hypot(*there(u)) / torch.hypot(*here(t))), x_t))
    mine = denoise(case)(x_t, float(t)).mean
    theirs = case.denoiser.given(other, **case.condition)(x_u, float(u)).mean
    check(torch.allclose(mine, theirs, atol=1e-3 * float(1 + mine.abs().max())), "another belief at equal log-SNR")
    sampled(ancestral)(replace(case, kernel=other))


def columned(case: Case) -> None:
    """Ancestral sampling with a grid per example: equal columns change nothing."""
    count = case.kernel.examples(case.x_0)

    def draw(times: Tensor) -> Any:
        own = generators(case)
        x = case.kernel.prior(case.x_0).sample(own)
        return last(ancestral(denoise(case), case.kernel, x, times, generator=own))

    one, each = draw(grid(case)), draw(grid(case).unsqueeze(1).expand(-1, count))
    check_state(case, each)
    near = (torch.allclose(a.double(), b.double(), atol=1e-3) for a, b in zip(leaves(one), leaves(each), strict=True))
    check(all(near), "equal columns of times change the result")


def widened(case: Case) -> None:
    """Ancestral sampling with the largest reverse variance."""
    belief = denoise(case)
    run_twice(
        case,
        lambda case, x, own: last(
            ancestral(lambda y, t: Belief(belief(y, t).mean, 1.0), case.kernel, x, grid(case), generator=own)
        ),
    )


def optimal(case: Case) -> None:
    """Analytic-DPM: the measured optimal variance lies within its bounds, and both samplers run with it."""
    times, kernel = late(case), case.kernel
    assert isinstance(kernel, Gaussian)
    table = measure(denoise(case), kernel, case.x_0, times, generator=generators(case))
    log_snr = kernel.schedule.log_snr(times[:-1])
    check((table.at(log_snr) <= torch.exp(-log_snr) * (1 + 1e-9)).all(), "more variance than the noise has")
    own = Analytic(denoise(case), kernel, times, table)
    run_twice(case, lambda case, x, own_g: last(ancestral(own, case.kernel, x, times, generator=own_g)))
    run_twice(
        case,
        lambda case, x, own_g: last(
            analytic_ddim(denoise(case), kernel, x, times, table=table, eta=0.5, generator=own_g)
        ),
    )


def inverted(case: Case) -> None:
    """Data to latents and back, and the mixture of a state with itself."""
    kernel: Any = case.kernel
    steps = list(encode(denoise(case), kernel, case.x_0, grid(case, 8)))
    check_state(case, steps[-1].x)
    check(float(torch.as_tensor(steps[-1].t).max()) == 1, "the latents are not at t = 1")
    check_state(case, last(dpm_solver_pp_2m(denoise(case), kernel, steps[-1].x, grid(case, 8))))
    if isinstance(kernel, Gaussian):
        (middle,) = interpolate(denoise(case), kernel, case.x_0, case.x_0, grid(case), [0.5], sampler=dpm_solver_pp_2m)
        same = last(
            dpm_solver_pp_2m(
                denoise(case), kernel, last(encode(denoise(case), kernel, case.x_0, grid(case))), grid(case)
            )
        )
        near = float((middle - same).abs().max() / (1 + same.abs().max()))
        check(near < 1e-3, "half way from a state to itself is somewhere else")


def one_step(case: Case) -> None:
    """Multistep consistency sampling."""
    sampled(consistency_sampler, late)(case)


def terminal(case: Case) -> None:
    """Ancestral sampling on the case's schedule, moved to end at alpha = 0."""
    kernel: Any = case.kernel
    if not float(kernel.schedule(torch.ones((), dtype=torch.float64))[0]) < 1:
        return  # exploding: alpha never falls, and zero terminal SNR is a statement about alpha
    schedule = ZeroTerminal(kernel.schedule)
    check(float(schedule(torch.ones((), dtype=torch.float64))[0]) == 0, "alpha_1 is not 0")
    other = Gaussian(schedule, kernel.noise)
    sampled(ancestral)(replace(case, kernel=other))


def truncated(case: Case) -> None:
    """Ancestral sampling from a fitted law half way."""
    kernel = case.kernel
    assert isinstance(kernel, Gaussian)
    times = truncate(grid(case, 6), 0.5)
    start = Energy.fitted(case.x_0, kernel, 0.5)
    run_twice(
        case,
        lambda case, x, own: last(ancestral(denoise(case), kernel, start.sample(case.x_0, own), times, generator=own)),
    )


def bridged(case: Case) -> None:
    """A bridge from the data in another order, put into the kernel's space, to the data."""
    kernel: Any = case.kernel
    path = Interpolant(lambda x, generator: kernel.project(x.flip(0)), noise=kernel.noise)
    own = own_view(case.denoiser)
    own.schedule = path.schedule
    belief = own.given(path, **case.condition)
    draws = [last(bridge(belief, path, path.pair(case.x_0), uniform(4), generator=generators(case))) for _ in "12"]
    check_state(case, draws[0])
    check_equal(draws[0], draws[1], "another state from the same seed")


def cooled(case: Case) -> None:
    """Cold sampling on the kernel's own degradation is DDIM."""
    kernel: Any = case.kernel
    x = kernel.prior(case.x_0).sample(generators(case))
    mine, other = (last(sampler(denoise(case), kernel, x, late(case))) for sampler in (cold, ddim))
    check_state(case, mine)
    check(float((mine - other).abs().max()) < 1e-3 * float(1 + other.abs().max()), "not DDIM")
