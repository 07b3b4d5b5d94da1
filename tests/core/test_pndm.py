"""PNDM against diffusers' scheduler, the paper's formulas on uneven grids, and the order that it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.pndm import f_pndm, pndm
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, Schedule, Tabulated
from tests.problems import GaussianData, MixtureData

SCHEDULERS: Any = diffusers
DDPM = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
DATA = MixtureData()


def noise(count: int = 12) -> Tensor:
    return torch.randn(count, 2, generator=seeded(0), dtype=torch.float64)


@pytest.mark.parametrize("warm_up", [True, False], ids=["f-pndm", "pndm"])
def test_parity_with_diffusers(warm_up: bool) -> None:
    """Leading indices 900 ... 0 and alpha-bar = 1 at the end; their table of alpha-bar set to ours in float64."""
    kernel, denoise = Gaussian(DDPM), DATA.denoise(Gaussian(DDPM))
    scheduler = SCHEDULERS.PNDMScheduler(skip_prk_steps=not warm_up, set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.tensor(DDPM.alphas_bar, dtype=torch.float64)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(10)
    x, calls = noise(), 0
    for index in scheduler.timesteps.tolist():
        t = (index + 1) / 1000
        alpha, sigma = DDPM(torch.tensor(t, dtype=torch.float64))
        x = scheduler.step((x - alpha * denoise(x, t).mean) / sigma, index, x).prev_sample
        calls += 1
    seen = []

    def counted(x: Tensor, t: Time) -> Belief:
        seen.append(t)
        return denoise(x, t)

    ours = last((f_pndm if warm_up else pndm)(counted, kernel, noise(), grids.leading(10, 1000)))
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)
    assert len(seen) == calls == (19 if warm_up else 11)
    assert [round(1000 * float(t)) - 1 for t in seen] == scheduler.timesteps.tolist()


def transfer(schedule: Schedule, x: Tensor, e: Tensor, t: float, s: float) -> Tensor:
    """Liu et al. 2022, eq. 11 in alpha-bar of a variance-preserving schedule, as printed."""
    bar_t, bar_s = (schedule(torch.tensor(u, dtype=torch.float64))[0] ** 2 for u in (t, s))
    root = ((1 - bar_s) * bar_t).sqrt() + ((1 - bar_t) * bar_s).sqrt()
    return (bar_s / bar_t).sqrt() * x - (bar_s - bar_t) / (bar_t.sqrt() * root) * e


def test_f_pndm_is_the_published_algorithm() -> None:
    """On a grid of uneven steps: the transfer and the weights are those of the paper wherever the steps lie."""
    schedule, times = LinearBeta(), [0.95, 0.9, 0.7, 0.6, 0.35, 0.2, 0.0]
    kernel, denoise = Gaussian(schedule), DATA.denoise(Gaussian(schedule))

    def eps(x: Tensor, t: float) -> Tensor:
        alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
        return (x - alpha * denoise(x, t).mean) / sigma

    x, past = noise(), []
    ours = [step.x for step in f_pndm(denoise, kernel, x, torch.tensor(times, dtype=torch.float64))]
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        e = eps(x, t)
        past.append(e)
        if i < 3:
            m = (t + s) / 2
            e_2 = eps(transfer(schedule, x, e, t, m), m)
            e_3 = eps(transfer(schedule, x, e_2, t, m), m)
            e_4 = eps(transfer(schedule, x, e_3, t, s), s)
            e = (e + 2 * e_2 + 2 * e_3 + e_4) / 6
        else:
            e = (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24
        x = transfer(schedule, x, e, t, s)
        torch.testing.assert_close(ours[i], x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [pndm, f_pndm])
def test_the_order_is_two_on_smooth_grids_and_one_on_ragged_ones(solver: Callable) -> None:
    """Steps that alternate in length keep only the first order: what the docstring says, measured."""
    kernel, data = Gaussian(LinearBeta()), GaussianData.standard()
    x = kernel.marginal(data.sample(3, seeded(1)), 0.9).sample(seeded(2))
    exact = data.flow(kernel.schedule, x, 0.9, 0.1)

    def order(uneven: float) -> float:
        errors = []
        for n in (80, 160):
            u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
            u[1:-1:2] += uneven / n
            times = torch.cat([0.9 - 0.8 * u, u.new_zeros(1)])
            *_, reached, _ = solver(data.denoise(kernel), kernel, x, times)
            errors.append(float((reached.x - exact).abs().max()))
        return math.log2(errors[0] / errors[1])

    assert order(0.0) == pytest.approx(2, abs=0.2)
    assert order(0.5) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("solver", [pndm, f_pndm])
def test_a_start_without_signal_is_a_step_of_ddim(solver: Callable) -> None:
    kernel, times = Gaussian(Cosine()), grids.uniform(6)
    denoise = DATA.denoise(kernel)
    ours, theirs = (next(sampler(denoise, kernel, noise(), times)).x for sampler in (solver, ddim))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_short_grids() -> None:
    kernel = Gaussian(LinearBeta())
    denoise = DATA.denoise(kernel)
    one = last(pndm(denoise, kernel, noise(), grids.uniform(1)))
    torch.testing.assert_close(one, denoise(noise(), 1.0).mean, rtol=1e-10, atol=1e-10)
    assert bool(torch.isfinite(last(pndm(denoise, kernel, noise(), grids.uniform(2)))).all())
    with pytest.raises(ArgumentError, match="^times"):
        next(f_pndm(denoise, kernel, noise(), grids.uniform(3)))
    assert len(list(f_pndm(denoise, kernel, noise(), grids.uniform(4)))) == 4
