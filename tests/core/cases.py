"""Every kernel in a small case, on which the generic tests run. A domain joins with its own `tiny.case()`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydiff.core import schedules
from polydiff.core.categorical import absorbing, marginal, uniform
from polydiff.core.clouds import Centred
from polydiff.core.gaussian import Gaussian
from polydiff.core.noise import Diagonal, Isotropic, masked
from polydiff.core.product import Product
from polydiff.timeseries.kernel import targets

B = 4
SIZES = [2, 5, 1, 3]
INDEX = torch.repeat_interleave(torch.arange(B), torch.tensor(SIZES))

SCHEDULES: dict[str, Callable[[], schedules.Schedule]] = {
    "linear": schedules.LinearBeta,
    "quadratic": schedules.Quadratic,
    "cosine": schedules.Cosine,
    "sigmoid": schedules.Sigmoid,
    "subvp": schedules.SubVP,
    "exploding": schedules.VarianceExploding,
    "edm": schedules.EDM,
    "rectified": schedules.RectifiedFlow,
    "tabulated": lambda: schedules.Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "zero-terminal": lambda: schedules.Tabulated([0.9, 0.6, 0.3, 0.0]),
}


class Case(NamedTuple):
    """A kernel, bound to its structure, and a batch of float64 data that lives on its support."""

    kernel: Any
    x_0: Any


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens(*shape: int, high: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(2))


def isotropic(schedule: schedules.Schedule) -> Case:
    return Case(Gaussian(schedule, Isotropic()), normal(B, 2, 3))


def diagonal(schedule: schedules.Schedule) -> Case:
    deviation = 0.2 + normal(B, 3, 2).abs()
    return Case(Gaussian(schedule, Diagonal(torch.ones(()))).given(deviation=deviation), normal(B, 3, 2))


def some_masked(schedule: schedules.Schedule) -> Case:
    mask = normal(B, 3, 2) > -0.3
    mask[0] = True
    return Case(Gaussian(schedule, masked(torch.ones((), dtype=torch.bool))).given(mask=mask), normal(B, 3, 2) * mask)


def some_targets(schedule: schedules.Schedule) -> Case:
    """Noised cells, of which some are blind: the first example has none of those, the last counts nothing."""
    mask = normal(B, 3, 2) > -0.5
    counted = mask & (normal(B, 3, 2).flip(0) > -0.2)
    counted[0], counted[-1] = mask[0], False
    return Case(targets(schedule).given(mask=mask, counted=counted), normal(B, 3, 2) * mask)


def centred(schedule: schedules.Schedule) -> Case:
    kernel = Gaussian(schedule, Centred()).given(index=INDEX, num_graphs=B)
    return Case(kernel, kernel.project(normal(len(INDEX), 3)))


def uniform_tokens(schedule: schedules.Schedule) -> Case:
    return Case(uniform(schedule, 5), tokens(B, 3, high=5))


def absorbing_tokens(schedule: schedules.Schedule) -> Case:
    return Case(absorbing(schedule, 5, mask=4), tokens(B, 2, 2, high=4))


def marginal_tokens(schedule: schedules.Schedule) -> Case:
    return Case(marginal(schedule, torch.tensor([5, 1, 0, 3])), tokens(B, 3, high=2))


def ragged_tokens(schedule: schedules.Schedule) -> Case:
    return Case(absorbing(schedule, 5, mask=4).given(index=INDEX, num_graphs=B), tokens(len(INDEX), high=4))


def product(schedule: schedules.Schedule) -> Case:
    """A molecule: positions beside types, row by row."""
    cloud, types = centred(schedule), ragged_tokens(schedules.RectifiedFlow())
    kernel = Product([Gaussian(schedule, Centred()), absorbing(schedules.RectifiedFlow(), 5, mask=4)])
    structure = {"index": INDEX, "num_graphs": B}
    return Case(kernel.given(part_0=structure, part_1=structure), (cloud.x_0, types.x_0))


def cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """(name, case) of every kernel with every schedule that it takes."""
    for name, schedule in SCHEDULES.items():
        for law in (isotropic, diagonal, some_masked, some_targets, centred, product):
            yield f"{law.__name__}-{name}", lambda law=law, schedule=schedule: law(schedule())
        # Without noise in the first number there is nothing to learn; zeros in pi need alpha_1 = 0.
        if name not in ("exploding", "edm"):
            yield f"uniform-{name}", lambda schedule=schedule: uniform_tokens(schedule())
        if name in ("cosine", "sigmoid", "rectified", "zero-terminal"):
            yield f"absorbing-{name}", lambda schedule=schedule: absorbing_tokens(schedule())
            yield f"marginal-{name}", lambda schedule=schedule: marginal_tokens(schedule())
            yield f"ragged-{name}", lambda schedule=schedule: ragged_tokens(schedule())


CASES = dict(cases())


def parts(case: Case) -> list[Case]:
    """A product case taken apart, any other as it is."""
    if isinstance(case.kernel, Product):
        pairs = zip(case.kernel.parts, case.x_0, strict=True)
        return [Case(kernel, x_0) for kernel, x_0 in pairs]
    return [case]
