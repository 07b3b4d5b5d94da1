"""The matrix method x domain: every method is run on the smallest real case of every domain.

A method says what of the protocol its mathematics needs, as a type (`Kernel`: any process; `Path`: an interpolation;
`Gaussian`: densities too; a noise law's class), and how it is run on a case. A cell is "n.a." where the case's kernel
is not of that type, "ok" where the run ends with states that are finite, of the data's shape, in the kernel's space,
and the same again from the same seed, or with what the method promises besides; anything else is "FAILED", with its
reason.
Nothing about cells is kept by hand. Samplers and weights join from their tables in `methods`, others by one entry here,
domains by their `tiny.case()`.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .bounds import elbo
from .case import Case
from .editing import edit
from .gaussian import Belief, Gaussian
from .grids import uniform
from .guidance import ClassifierFree
from .inpainting import particle_inpaint, repaint
from .kernel import Kernel, Path
from .methods import SAMPLERS, WEIGHTS
from .noise import Noise, own_view
from .objectives import Denoising
from .randomness import example_generators
from .sampling import last
from .schedules import RectifiedFlow, Schedule
from .trajectories import frames, guesses

__all__ = ["METHODS", "Cell", "Family", "Method", "evaluate", "sampled", "table", "trained"]

Family = Literal["faster sampling", "better likelihood", "assumptions", "generic"]


@dataclass(frozen=True)
class Method:
    """A row of the matrix."""

    name: str
    family: Family
    run: Callable[[Case], None]
    """Runs the method on a case; any exception is a failure. Gradients are off unless it turns them on."""
    needs: type = Kernel
    """What the kernel must be an instance of."""
    noise: type | tuple[type, ...] = Noise
    """What a Gaussian's noise law must be an instance of."""
    conditional: bool = False
    """Whether it is about the condition of a network."""

    def applies(self, case: Case) -> bool:
        """Whether the method's mathematics is defined on the case."""
        law = getattr(case.kernel, "noise", None)
        return (
            isinstance(case.kernel, self.needs)
            and (law is None or isinstance(law, self.noise))
            and (bool(case.condition) or not self.conditional)
        )


class Cell(NamedTuple):
    """What came of one method on one domain."""

    method: str
    family: Family
    domain: str
    status: Literal["ok", "n.a.", "FAILED"]
    reason: str = ""


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


def denoise(case: Case) -> Callable[[Any, Any], Any]:
    """The case's denoiser, bound."""
    return case.denoiser.given(case.kernel, **case.condition)


def half(case: Case, x: Any) -> Any:
    """A mask that is True on every other element (row, for clouds) of every part of a state; examples as in states."""
    if isinstance(x, tuple):
        return tuple(half(case, part) for part in x)
    if len(x) != case.kernel.examples(case.x_0):
        return (torch.arange(len(x)) % 2 == 0).unsqueeze(1)
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


def sampled(sampler: Callable[..., Iterator[Any]]) -> Callable[[Case], None]:
    """How a sampler is run."""

    def draw(case: Case, x: Any, own: list[torch.Generator]) -> Any:
        return last(sampler(denoise(case), case.kernel, x, grid(case), generator=own))

    return lambda case: void(run_twice(case, draw))


def void(_: object) -> None:
    """What a method's run returns, whatever came."""


def trained(objective: Callable[[Case], Callable[[Mapping[str, Any], Any], Tensor]]) -> Callable[[Case], None]:
    """How an objective is run: objective(case)(batch, generators) -> losses (B,), finite, with finite gradients."""

    def run(case: Case) -> None:
        with torch.enable_grad():
            losses = objective(case)({"x_0": case.x_0, **case.condition}, generators(case))
            check(losses.shape == (case.kernel.examples(case.x_0),), f"losses of shape {tuple(losses.shape)}")
            check(losses.isfinite().all(), "losses that are not finite")
            parameters = [parameter for parameter in case.denoiser.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        check(all(g is None or bool(g.isfinite().all()) for g in gradients), "gradients that are not finite")
        check(any(g is not None and bool((g != 0).any()) for g in gradients), "no gradient")

    return run


def needed(sampler: Callable[..., Any]) -> type:
    """The class of kernel that a sampler takes, by its signature."""
    hint = typing.get_type_hints(sampler)["kernel"]
    return typing.get_origin(hint) or hint


def bound(case: Case) -> None:
    """The full bound on a grid: KLs are not negative, and one who knows x_0 pays nothing for the gaps."""

    def at(belief: Callable[[Any, Any], Any]) -> Any:
        return elbo(belief, case.kernel, case.x_0, grid(case), generator=generators(case))

    mine, knowing = at(denoise(case)), at(lambda x, t: case.kernel.certain(case.x_0))
    check(mine.total.isfinite().all() & (mine.prior >= 0).all() & (mine.gaps >= -1e-6).all(), "not a bound")
    check((knowing.gaps.abs() < 1e-3).all(), "certainty costs")


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
    """The case with every example repeated, and which example each is.

    Of the condition, what has one entry for every example, or for every row of x_0, is repeated too.
    """
    kernel, count = case.kernel, case.kernel.examples(case.x_0)
    index = torch.arange(count).repeat_interleave(times)

    def repeat(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if len(value) == count:
            return value[index]
        return kernel.take(value, index) if isinstance(case.x_0, Tensor) and len(value) == len(case.x_0) else value

    condition = {name: repeat(value) for name, value in case.condition.items()}
    view, x_0 = kernel.taken(index, case.x_0), kernel.take(case.x_0, index)
    return Case(case.name, view, case.denoiser, x_0, condition), index


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
    steps = SAMPLERS["ancestral"](denoise(case), case.kernel, x, grid(case), generator=own)
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
    sampled(SAMPLERS["ancestral"])(Case(case.name, other, case.denoiser, case.x_0, case.condition))


def columned(case: Case) -> None:
    """Ancestral sampling with a grid per example: equal columns change nothing."""
    count = case.kernel.examples(case.x_0)

    def draw(times: Tensor) -> Any:
        own = generators(case)
        x = case.kernel.prior(case.x_0).sample(own)
        return last(SAMPLERS["ancestral"](denoise(case), case.kernel, x, times, generator=own))

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
            SAMPLERS["ancestral"](
                lambda y, t: Belief(belief(y, t).mean, 1.0), case.kernel, x, grid(case), generator=own
            )
        ),
    )


def weighted(weight: Callable[..., Tensor]) -> Callable[[Case], None]:
    """How a weight of the loss is run."""
    return trained(lambda case: Denoising(case.denoiser, case.kernel, weight))


METHODS: list[Method] = [
    *(Method(name, "faster sampling", sampled(sampler), needed(sampler)) for name, sampler in SAMPLERS.items()),
    Method("largest variance", "faster sampling", widened, Gaussian),
    Method("another schedule", "faster sampling", rescheduled, Gaussian),
    Method("grid per example", "faster sampling", columned),
    Method("elbo", "better likelihood", bound),
    *(Method(f"{name} weight", "better likelihood", weighted(weight)) for name, weight in WEIGHTS.items()),
    Method("guidance", "generic", guided, conditional=True),
    Method("repaint", "generic", inpainted),
    Method("particle inpainting", "generic", filtered),
    Method("editing", "generic", edited),
    Method("trajectories", "generic", filmed),
]


def cell(method: Method, domain: str, case: Case) -> Cell:
    """Runs one method on one case."""
    if not method.applies(case):
        return Cell(method.name, method.family, domain, "n.a.")
    try:
        with torch.no_grad():
            method.run(case)
    except Exception as error:  # a cell reports whatever goes wrong in it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Cell(method.name, method.family, domain, "FAILED", reason)
    return Cell(method.name, method.family, domain, "ok")


def evaluate(cases: Mapping[str, Callable[[], Case]], methods: Sequence[Method] | None = None) -> list[Cell]:
    """Every cell, method by method, on a fresh case each.

    Args:
        cases: {domain: its `tiny.case`}.
        methods: the rows; all of them by default.
    """
    rows = METHODS if methods is None else methods
    return [cell(method, domain, build()) for method in rows for domain, build in cases.items()]


def table(cells: Sequence[Cell], markdown: bool = False) -> str:
    """The matrix as text, methods down and domains across; the reasons of failures below."""
    domains = list(dict.fromkeys(one.domain for one in cells))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for one in cells:
        rows.setdefault((one.family, one.method), {})[one.domain] = one.status
    body = [[family, name, *(found.get(domain, "") for domain in domains)] for (family, name), found in rows.items()]
    lines = [["family", "method", *domains], *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    if markdown:
        lines.insert(1, ["-" * width for width in widths])
    padded = [[word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in lines]
    drawn = [f"| {' | '.join(line)} |" if markdown else "  ".join(line).rstrip() for line in padded]
    failed = [f"FAILED: {one.method} on {one.domain}: {one.reason}" for one in cells if one.status == "FAILED"]
    counts = ", ".join(f"{sum(one.status == status for one in cells)} {status}" for status in ("ok", "n.a.", "FAILED"))
    return "\n".join([*drawn, "", *failed, counts])
