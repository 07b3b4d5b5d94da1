"""No loop asks the host for a number of its states, which on a GPU would stall it at every step.

States, network and noise law lie on torch's `meta` device, where tensors have shapes and no values: whatever reads one
raises. Coefficients are made on the CPU, before the first step. Left out are the samplers that decide by what they
see: the adaptive one, and those that call the network for chosen tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core import grids
from polydiff.core.adaptive import adaptive
from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import elbo
from polydiff.core.categorical import Categorical, absorbing, marginal, uniform
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser, TokenDenoiser
from polydiff.core.edm import stochastic_heun
from polydiff.core.gaussian import Gaussian
from polydiff.core.guidance import ClassifierFree
from polydiff.core.inpainting import repaint
from polydiff.core.inversion import encode
from polydiff.core.langevin import annealed_langevin, langevin
from polydiff.core.likelihood import log_likelihood, rademacher
from polydiff.core.methods import SAMPLERS
from polydiff.core.noise import masked
from polydiff.core.objectives import Denoising, velocity
from polydiff.core.randomness import seeded
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import Cosine, LinearBeta
from polydiff.core.sde import euler_maruyama
from tests.problems import Clouds

META = torch.device("meta")
Sampler = Callable[..., Iterator[Step[Tensor]]]
LOOPS: dict[str, Sampler] = {
    **{name: sampler for name, sampler in SAMPLERS.items() if sampler is not adaptive},
    "ddim(1)": partial(ddim, eta=1.0),
    "edm": partial(stochastic_heun, churn=2.0),
    "euler-maruyama": euler_maruyama,
    "annealed langevin": partial(annealed_langevin, moves=2),
    "encode": encode,
}
TIMES = 0.95 * grids.uniform(6)
TOKENS = {
    "absorbing": absorbing(Cosine(), 5, 4),
    "uniform": uniform(Cosine(), 5),
    "marginal": marginal(Cosine(), torch.tensor([3.0, 1.0, 1.0, 2.0, 1.0])),
}


class Linear(nn.Module):
    """A network whose output is its input by its number."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        y = x * c.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.cat([y] * self.outputs, 1)


class Rows(nn.Module):
    """`Linear` on clouds: numbers go to the rows of their example."""

    def __init__(self, index: Tensor):
        super().__init__()
        self.index = index

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x * c[self.index].unsqueeze(1)


class Logits(nn.Module):
    """Four logits for each token."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 4, device=x.device)


def on_meta(sampler: Sampler, times: Tensor, kernel: Gaussian, denoiser: GaussianDenoiser, **condition: Any) -> Tensor:
    x = torch.empty(2, 3, 4, device=META)
    return last(sampler(denoiser.given(kernel, **condition), kernel, x, times, generator=[seeded(0), seeded(1)]))


@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
@pytest.mark.parametrize("name", LOOPS)
def test_samplers_do_not_read_their_states(name: str, ragged: bool) -> None:
    times = torch.stack([TIMES, 0.9 * TIMES], 1) if ragged else TIMES
    kernel = Gaussian(LinearBeta())
    y = on_meta(LOOPS[name], times, kernel, GaussianDenoiser(Linear(), kernel.schedule))
    assert y.device == META
    assert y.shape == (2, 3, 4)


def test_what_reads_a_state_is_found_out() -> None:
    kernel = Gaussian(LinearBeta())
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        on_meta(adaptive, TIMES, kernel, GaussianDenoiser(Linear(), kernel.schedule))


@pytest.mark.parametrize("sampler", [ancestral, SAMPLERS["dpm-solver++"]], ids=["ancestral", "dpm-solver++"])
def test_neither_do_other_readings_and_laws(sampler: Sampler) -> None:
    schedule = Cosine()
    plain, holes = Gaussian(schedule), masked(torch.ones(3, 4, dtype=torch.bool))
    holes = holes.given(mask=torch.ones(2, 3, 4, dtype=torch.bool, device=META))
    guided = ClassifierFree(Linear(), 2.0, {"label": 10})
    label = torch.zeros(2, dtype=torch.long, device=META)
    on_meta(sampler, TIMES, plain, GaussianDenoiser(guided, schedule), label=label)
    on_meta(sampler, TIMES, plain, GaussianDenoiser(Linear(2), schedule, learned_range=True))
    on_meta(sampler, TIMES, plain, GaussianDenoiser(Linear(), LinearBeta()))
    on_meta(sampler, TIMES, Gaussian(schedule, holes), GaussianDenoiser(Linear(), schedule))


def test_neither_do_correctors_and_inpainting() -> None:
    kernel, x = Gaussian(Cosine()), torch.empty(2, 3, 4, device=META)
    denoise = GaussianDenoiser(Linear(), kernel.schedule).given(kernel)
    assert langevin(denoise, kernel, x, 0.5, generator=seeded(0)).x.device == META
    mask = torch.ones(2, 3, 4, dtype=torch.bool, device=META)
    steps = repaint(denoise, kernel, x, TIMES, known=x, mask=mask, jump=2, resamples=2, generator=seeded(0))
    assert last(steps).device == META


@pytest.mark.parametrize("name", TOKENS)
def test_neither_does_the_token_sampler(name: str) -> None:
    kernel: Categorical = TOKENS[name].to(META)
    x = torch.empty(2, 7, dtype=torch.long, device=META)
    denoise = TokenDenoiser(Logits(), kernel.schedule).given(kernel)
    assert last(ancestral(denoise, kernel, x, grids.uniform(6), generator=seeded(0))).device == META


def test_neither_do_clouds() -> None:
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = torch.empty(10, 3, device=META)
    denoise = GaussianDenoiser(Rows(clouds.structure["index"].to(META)), kernel.schedule).given(kernel)
    assert last(ancestral(denoise, kernel, x, TIMES, generator=seeded(0))).device == META


def test_neither_do_losses_and_bounds() -> None:
    kernel, x_0 = Gaussian(Cosine()), torch.empty(2, 3, 4, device=META)
    denoiser = GaussianDenoiser(Linear(), kernel.schedule)
    assert Denoising(denoiser, kernel, velocity)({"x_0": x_0}, seeded(0)).shape == (2,)
    denoise = denoiser.given(kernel)
    assert elbo(denoise, kernel, x_0, grids.uniform(4), generator=seeded(0)).total.shape == (2,)
    found = log_likelihood(denoise, kernel, x_0, TIMES, probes=rademacher(), generator=seeded(0))
    assert found.nats.shape == (2,)
