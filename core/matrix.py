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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import trials, trials_learning, trials_tokens
from .case import Case
from .categorical import Categorical, Tokens
from .edm import stochastic_heun
from .gaussian import Gaussian
from .kernel import Kernel, Path
from .langevin import annealed_langevin
from .methods import SAMPLERS, TOKEN_SAMPLERS, WEIGHTS
from .noise import Diagonal, Isotropic, Noise
from .sde import euler_maruyama
from .trials import late, needed, sampled
from .trials_learning import trained, weighted
from .trials_tokens import revealing

__all__ = ["METHODS", "Cell", "Family", "Method", "evaluate", "table"]

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
    """Whether it is about a condition of the network that can be left out: one that is a tensor."""
    masked: bool = False
    """Whether the kernel must have a mask that every token ends as."""

    def applies(self, case: Case) -> bool:
        """Whether the method's mathematics is defined on the case."""
        law = getattr(case.kernel, "noise", None)
        return (
            isinstance(case.kernel, self.needs)
            and (law is None or isinstance(law, self.noise))
            and (any(isinstance(value, Tensor) for value in case.condition.values()) or not self.conditional)
            and (getattr(case.kernel, "mask", None) is not None or not self.masked)
        )


class Cell(NamedTuple):
    """What came of one method on one domain."""

    method: str
    family: Family
    domain: str
    status: Literal["ok", "n.a.", "FAILED"]
    reason: str = ""


FASTER, LIKELIHOOD, ASSUMPTIONS, GENERIC = typing.get_args(Family)

METHODS: list[Method] = [
    *(Method(name, FASTER, sampled(sampler), needed(sampler)) for name, sampler in SAMPLERS.items()),
    *(Method(name, FASTER, sampled(s), Tokens) for name, s in TOKEN_SAMPLERS.items() if needed(s) is Tokens),
    *(
        Method(name, FASTER, revealing(s), masked=True)
        for name, s in TOKEN_SAMPLERS.items()
        if needed(s) is Categorical
    ),
    Method("optimal steps", FASTER, trials_tokens.planned, masked=True),
    Method("euler-maruyama", FASTER, sampled(euler_maruyama, late), Gaussian),
    Method("annealed Langevin", FASTER, sampled(partial(annealed_langevin, moves=2), late), Gaussian),
    Method("EDM with churn", FASTER, sampled(partial(stochastic_heun, churn=2.0), late), Gaussian),
    Method("largest variance", FASTER, trials.widened, Gaussian),
    Method("analytic variance", FASTER, trials.optimal, Gaussian),
    Method("inversion", FASTER, trials.inverted, Path),
    Method("progressive distillation", FASTER, trained(trials_learning.distilled), Path),
    Method("consistency distillation", FASTER, trained(trials_learning.consistent(True)), Path),
    Method("consistency training", FASTER, trained(trials_learning.consistent(False)), Path),
    Method("consistency sampling", FASTER, trials.one_step, Gaussian),
    Method("another schedule", FASTER, trials.rescheduled, Gaussian),
    Method("grid per example", FASTER, trials.columned),
    Method("elbo", LIKELIHOOD, trials_learning.bound),
    Method("elbo from a few terms", LIKELIHOOD, trials_learning.estimated),
    Method("continuous elbo", LIKELIHOOD, trials_learning.continuous),
    Method("any-order likelihood", LIKELIHOOD, trials_tokens.ordered, masked=True),
    Method("importance-weighted bound", LIKELIHOOD, trials_learning.weighed),
    Method("exact likelihood", LIKELIHOOD, trials_learning.exact, Gaussian),
    Method("dequantisation", LIKELIHOOD, trials_learning.dequantise, Gaussian, (Isotropic, Diagonal)),
    *(Method(f"{name} weight", LIKELIHOOD, weighted(weight)) for name, weight in WEIGHTS.items()),
    Method("masked cross-entropy weight", LIKELIHOOD, trained(trials_tokens.mdlm), masked=True),
    Method("score entropy", LIKELIHOOD, trained(trials_tokens.score_entropy)),
    Method("importance-sampled times", LIKELIHOOD, trained(trials_learning.importance)),
    Method("hybrid objective", LIKELIHOOD, trained(trials_learning.hybrid)),
    Method("VDM", LIKELIHOOD, trials_learning.variational, Gaussian),
    Method("prior mismatch", ASSUMPTIONS, trials_learning.far),
    Method("zero terminal SNR", ASSUMPTIONS, trials.terminal, Gaussian),
    Method("truncated sampling", ASSUMPTIONS, trials.truncated, Gaussian),
    Method("truncated bound", ASSUMPTIONS, trials_learning.shortened, Gaussian),
    Method("reflow", ASSUMPTIONS, trials_learning.reflowed, Path),
    Method("stochastic interpolant", ASSUMPTIONS, trials.bridged, Gaussian),
    Method("cold degradation", ASSUMPTIONS, trials.cooled, Gaussian),
    Method("guidance", GENERIC, trials.guided, conditional=True),
    Method("sharpening", GENERIC, trials_tokens.sharper, Tokens),
    Method("repaint", GENERIC, trials.inpainted),
    Method("particle inpainting", GENERIC, trials.filtered),
    Method("editing", GENERIC, trials.edited),
    Method("trajectories", GENERIC, trials.filmed),
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
