"""Multistep solvers: exact on polynomials, the measured order, and diffusers' schedulers on the same exact denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import diffusers
import numpy
import pytest
import torch
from scipy import integrate
from torch import Tensor

from polydiff.core import grids, spaces
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.dpm_solver import (
    belief_rows,
    dpm_solver_pp_1s,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
    dpm_solver_pp_3m,
    parabola,
    past,
)
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.multistep import deis, exponential_adams_bashforth, multistep_rows
from polydiff.core.noise import Diagonal
from polydiff.core.ode import euler, heun
from polydiff.core.pndm import f_pndm, pndm
from polydiff.core.randomness import seeded
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, Tabulated, VarianceExploding
from polydiff.core.spaces import half_log_snr, ratio, share, time
from polydiff.core.unipc import bh1, bh2, unipc
from tests.problems import Clouds, GaussianData, MixtureData

DATA = GaussianData.standard()
SCHEDULERS: Any = diffusers
DDPM = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
SCHEDULES = {"linear": LinearBeta(), "cosine": Cosine(), "exploding": VarianceExploding(0.05, 20.0)}
SPACES = {name: getattr(spaces, name) for name in ("data", "noise", "straight", "angular")}
CLOCKS = {clock.__name__: clock for clock in (half_log_snr, time, ratio, share)}

Sampler = Callable[..., Iterator[Step[Tensor]]]
SOLVERS: dict[str, tuple[Sampler, int]] = {
    "dpm++1s": (dpm_solver_pp_1s, 1),
    "dpm++2s": (dpm_solver_pp_2s, 2),
    "dpm++2m": (dpm_solver_pp_2m, 2),
    "dpm++3m": (dpm_solver_pp_3m, 2),
    "dpm++3m, whole": (partial(dpm_solver_pp_3m, curvature=1.0), 3),
    "deis": (deis, 3),
    "deis, log-snr": (partial(deis, clock=half_log_snr), 3),
    "straight 3": (partial(exponential_adams_bashforth, space=spaces.straight, clock=share, order=3), 3),
    "angular 2": (partial(exponential_adams_bashforth, space=spaces.angular, clock=time, order=2), 2),
    "data 4": (partial(exponential_adams_bashforth, space=spaces.data, order=4), 4),
    "pndm": (pndm, 2),
    "f-pndm": (f_pndm, 2),
    "unipc-1": (partial(unipc, order=1), 2),
    "unipc-2": (unipc, 3),
    "unipc-2, bh1": (partial(unipc, order=2, scale=bh1), 3),
    "unipc-3": (partial(unipc, order=3), 4),
}


def eased(steps: int, first: float = 0.95, end: float = 0.05, power: float = 1.0) -> Tensor:
    """first ... end with short steps at both ends, where multistep methods have lower order; then 0."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    return torch.cat([first + (end - first) * u * u * (3 - 2 * u), u.new_zeros(1)])


def start(kernel: Gaussian, count: int, t: float = 1.0) -> Tensor:
    return kernel.marginal(DATA.sample(count, seeded(1)), t).sample(seeded(2))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_order_of_convergence(solver: str, name: str) -> None:
    """On Gaussian data, whose flow is known, one grid per example."""
    kernel, (sample, order) = Gaussian(SCHEDULES[name]), SOLVERS[solver]
    x, errors = start(kernel, 3, 0.95), []
    exact = DATA.flow(kernel.schedule, x, 0.95, 0.05)
    for steps in (60, 120):
        times = torch.stack([eased(steps, power=power) for power in (0.95, 1.0, 1.05)], 1)
        *_, reached, _ = sample(DATA.denoise(kernel), kernel, x, times)
        errors.append(float((reached.x - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1 + 0.1 * order), errors


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_predictions_that_are_parabolas_are_integrated_exactly(schedule: Schedule, space: str, clock: str) -> None:
    """The denoiser is built so that p is a parabola in the clock; the integral of p d phi is scipy's."""
    kernel, law, ticks = Gaussian(schedule), SPACES[space], CLOCKS[clock]
    times = torch.tensor([0.9, 0.8, 0.65, 0.4, 0.3, 0.0], dtype=torch.float64)
    alpha, sigma = (column.numpy() for column in schedule(times))
    half = torch.from_numpy(numpy.log(alpha[:-1] / sigma[:-1]))

    def prediction(half: Tensor) -> Tensor:
        c = ticks(schedule, half)
        return 0.3 - 0.7 * c + 0.4 * c**2

    phi = {
        "data": lambda half: numpy.exp(half),
        "noise": lambda half: -numpy.exp(-half),
        "straight": lambda half: -1 / ((1 + numpy.exp(half)) * (1 + numpy.exp(-half))),
        "angular": lambda half: -numpy.exp(half) / (1 + numpy.exp(2 * half)),
    }[space]
    k = {"data": sigma, "noise": alpha, "straight": alpha + sigma, "angular": numpy.hypot(alpha, sigma)}[space]

    def denoise(x: Tensor, t: Time) -> Belief:
        a, s = schedule(torch.as_tensor(t, dtype=torch.float64))
        p = prediction(a.log() - s.log())
        root = torch.hypot(a, s)
        return Belief(
            {
                "data": p + 0 * x,
                "noise": (x - s * p) / a,
                "straight": (x - s * p) / (a + s),
                "angular": (a * x - s * root * p) / root**2,
            }[space]
        )

    x = torch.tensor([[0.4, -1.0]], dtype=torch.float64)
    steps = list(exponential_adams_bashforth(denoise, kernel, x, times, space=law, clock=ticks, order=3, taper=False))
    states = [x, *(step.x for step in steps)]
    for i in (2, 3):
        integral, _ = integrate.quad(
            lambda u: float(prediction(torch.tensor(u, dtype=torch.float64))) * phi(u),
            float(half[i]),
            float(half[i + 1]),
            epsabs=1e-12,
            epsrel=1e-12,
        )
        expected = k[i + 1] * (states[i] / k[i] + integral)
        torch.testing.assert_close(states[i + 1], expected, rtol=1e-9, atol=1e-9)


def test_the_last_interval_of_deis_reaches_zero_with_its_order() -> None:
    """eps-space, t clock: the weights of the interval to sigma = 0 are those of scipy's quadrature in sigma/alpha."""
    schedule, times = RectifiedFlow(), torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    row = multistep_rows(times, schedule, spaces.noise, time, 3, taper=False)[-1]
    nodes = [0.2, 0.5, 0.8]
    for j, (place, weight) in enumerate(row.beliefs):
        others = [t for m, t in enumerate(nodes) if m != j]

        def basis(r: float, own: float = nodes[j], others: list[float] = others) -> float:
            t = r / (1 + r)
            return math.prod((t - other) / (own - other) for other in others)

        integral, _ = integrate.quad(basis, 0.2 / 0.8, 0.0, epsabs=1e-13)
        assert place == 2 - j
        # alpha_0 = 1, and m has the weight -alpha/sigma in eps
        expected = -integral * (1 - nodes[j]) / nodes[j]
        assert weight == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", [Cosine(), VarianceExploding()], ids=repr)
def test_the_whole_way(name: str, schedule: Schedule) -> None:
    """From t = 1, where alpha may be 0, to the data: as the grid is refined all solvers meet; run again, the same."""
    kernel, data = Gaussian(schedule), MixtureData()
    x = float(schedule(torch.ones(()))[1]) * torch.randn(40, 2, generator=seeded(0), dtype=torch.float64)
    grid = partial(grids.log_snr, schedule=schedule)
    fine = last(heun(data.denoise(kernel), kernel, x, grid(150)))
    steps = 40 if "1s" in name or "pndm" in name else 30
    run = partial(SOLVERS[name][0], data.denoise(kernel), kernel, x, grid(steps))
    coarse = last(run())
    assert float((coarse - fine).abs().median()) < 0.05
    assert torch.equal(coarse, last(run()))


@pytest.mark.parametrize("name", SOLVERS)
def test_examples_do_not_see_their_neighbours(name: str) -> None:
    """Grids per example, two that begin at alpha = 0 among them: alone, each gives the same."""
    kernel, denoise = Gaussian(Cosine()), DATA.denoise(Gaussian(Cosine()))
    x, powers = start(kernel, 4), (1.0, 1.3, 1.6, 2.0)
    times = torch.stack([eased(6, first, 0.1, p) for first, p in zip((1.0, 0.9, 1.0, 0.7), powers, strict=True)], 1)
    whole = last(SOLVERS[name][0](denoise, kernel, x, times))
    assert bool(torch.isfinite(whole).all())
    for i in range(4):
        alone = last(SOLVERS[name][0](denoise, kernel, x[i : i + 1], times[:, i]))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
def test_clouds_stay_centred_and_scales_do_not_matter(name: str) -> None:
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    times = torch.stack([eased(8, 1.0, 0.05, power) for power in (0.8, 1.0, 1.2)], 1)
    reached = last(SOLVERS[name][0](clouds.denoise(kernel), kernel, x, times))
    torch.testing.assert_close(kernel.project(reached), reached, rtol=0, atol=1e-12)
    assert float((reached - clouds.deviation * x).abs().max()) < 0.5
    # An ODE solver does not read the noise law: on a diagonal one the same denoiser gives the same.
    plain, scaled = Gaussian(Cosine()), Gaussian(Cosine(), Diagonal(torch.tensor([0.5, 1.0, 2.0])))
    y = start(plain, 3)
    for step, other in zip(
        SOLVERS[name][0](DATA.denoise(plain), plain, y, grids.uniform(6)),
        SOLVERS[name][0](DATA.denoise(plain), scaled, y, grids.uniform(6)),
        strict=True,
    ):
        torch.testing.assert_close(step.x, other.x, rtol=1e-12, atol=1e-12)


CALLS = {"dpm++2s": 2 * 7 - 1, "pndm": 7 + 1, "f-pndm": 7 + 9}


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_and_times(name: str) -> None:
    kernel, calls = Gaussian(LinearBeta()), []

    def denoise(x: Tensor, t: Time) -> Belief:
        calls.append(t)
        return DATA.denoise(kernel)(x, t)

    times = grids.uniform(7)
    steps = SOLVERS[name][0](denoise, kernel, start(kernel, 2), times)
    assert calls == []
    assert [step.t for step in steps] == times.tolist()[1:]
    assert len(calls) == CALLS.get(name, 7)
    assert calls[0] == 1.0


def test_singlestep_wastes_no_call_where_there_is_no_middle() -> None:
    kernel, calls = Gaussian(Cosine()), []

    def denoise(x: Tensor, t: Time) -> Belief:
        calls.append(t)
        return DATA.denoise(kernel)(x, t)

    last(dpm_solver_pp_2s(denoise, kernel, start(kernel, 2), grids.uniform(7)))
    assert len(calls) == 2 * 7 - 2


def test_order_one_is_ddim_and_euler() -> None:
    kernel = Gaussian(Cosine())
    x, times, denoise = start(kernel, 3), grids.uniform(7), DATA.denoise(kernel)
    one = partial(exponential_adams_bashforth, denoise, kernel, x, times, order=1)
    expected = last(ddim(denoise, kernel, x, times))
    for run in (one(space=spaces.data), one(space=spaces.noise), dpm_solver_pp_1s(denoise, kernel, x, times)):
        torch.testing.assert_close(last(run), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        last(one(space=spaces.straight)), last(euler(denoise, kernel, x, times)), rtol=1e-11, atol=1e-11
    )


def test_whole_curvature_is_the_exact_integral() -> None:
    """Two derivations of the same weights: the published moments of h, and Lagrange polynomials integrated."""
    schedule, times = LinearBeta(), eased(9)
    alpha, sigma = schedule(times)
    half, usable = past(times, alpha, sigma, 3, True)
    table = belief_rows(times, alpha, sigma, parabola(half, alpha, usable, 1.0))
    rows = multistep_rows(times, schedule, spaces.data, half_log_snr, 3)
    for row, other in list(zip(rows, table, strict=True))[2:8]:
        assert len(row.beliefs) == 3
        assert dict(row.beliefs) == pytest.approx(dict(other.beliefs), rel=1e-10)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_bad_orders_are_named(bad: Any) -> None:
    kernel = Gaussian(Cosine())
    for solver in (exponential_adams_bashforth, unipc):
        with pytest.raises(ArgumentError, match="^order"):
            next(solver(DATA.denoise(kernel), kernel, start(kernel, 2), grids.uniform(3), order=bad))
    for solver, _ in SOLVERS.values():
        with pytest.raises(ArgumentError, match="^times"):
            next(solver(DATA.denoise(kernel), kernel, start(kernel, 2), torch.tensor([1.0, 0.5])))


def published(
    scheduler: Any, denoise: Callable[[Tensor, Time], Belief], x: Tensor, times: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """diffusers' scheduler on the noise prediction of an exact denoiser, with the levels of our grid in float64.

    Returns the state after each step, and what UniPC has corrected before each but the first. The last step is left
    out: there their DEIS and bh1 give NaN (0 times infinity).
    """
    alpha, sigma = DDPM(times)
    scheduler.set_timesteps(len(times) - 1)
    scheduler.timesteps = torch.arange(len(times) - 1, 0, -1)
    scheduler.sigmas = sigma / alpha
    states, corrected = [], []
    for i, label in enumerate(scheduler.timesteps):
        eps = (x - alpha[i] * denoise(x, float(times[i])).mean) / sigma[i]
        x = scheduler.step(eps, label, x).prev_sample.double()
        states.append(x)
        corrected.append(getattr(scheduler, "last_sample", None))
    return states[:-1], corrected[1:]


MULTISTEP = partial(
    SCHEDULERS.DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", final_sigmas_type="zero", euler_at_final=False
)
PUBLISHED: dict[str, tuple[Callable[..., Any], Sampler, int]] = {
    "dpm++1": (partial(MULTISTEP, solver_order=1), dpm_solver_pp_1s, 10),
    "dpm++2m": (partial(MULTISTEP, solver_order=2), dpm_solver_pp_2m, 10),
    "dpm++2m, heun": (
        partial(MULTISTEP, solver_order=2, solver_type="heun"),
        partial(exponential_adams_bashforth, space=spaces.data, order=2),
        10,
    ),
    "dpm++3m": (partial(MULTISTEP, solver_order=3), dpm_solver_pp_3m, 10),
    "dpm++3m, long": (partial(MULTISTEP, solver_order=3), partial(dpm_solver_pp_3m, taper=False), 20),
    **{
        f"deis-{order}": (
            partial(SCHEDULERS.DEISMultistepScheduler, solver_order=order),
            partial(deis, clock=half_log_snr, order=order, taper=True),
            9,
        )
        for order in (1, 2, 3)
    },
    **{
        f"unipc-{order}-{name}": (
            partial(SCHEDULERS.UniPCMultistepScheduler, solver_order=order, solver_type=name, final_sigmas_type="zero"),
            partial(unipc, order=order, scale=scale),
            9,
        )
        for order in (1, 2, 3)
        for name, scale in (("bh1", bh1), ("bh2", bh2))
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parity_with_diffusers(name: str) -> None:
    make, ours, steps = PUBLISHED[name]
    kernel, data, times = (
        Gaussian(DDPM),
        MixtureData(),
        grids.from_index(torch.linspace(998, 7, steps, dtype=torch.float64).round(), 1000),
    )
    x = torch.randn(20, 2, generator=seeded(0), dtype=torch.float64)
    denoise = data.denoise(kernel)
    theirs, corrected = published(make(), denoise, x, times)
    mine = [step.x for step in ours(denoise, kernel, x, times)]
    # DPM-Solver++ there rounds states to float32 in every step. Steps of UniPC are corrected states.
    tolerance = 1e-5 if name.startswith("dpm") else 1e-9
    for one, two in zip(mine[:-1], corrected if name.startswith("unipc") else theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)
    final = denoise(theirs[-1], float(times[-2])).mean
    torch.testing.assert_close(mine[-1], final, rtol=tolerance, atol=tolerance)


def test_parity_with_singlestep_diffusers() -> None:
    """Theirs takes the middles as grid times: equal steps of log-SNR make them middles of ours."""
    kernel, data = Gaussian(LinearBeta()), MixtureData()
    half = torch.linspace(-4, 3, 7, dtype=torch.float64)
    times = torch.cat([kernel.schedule.inverse(2 * half), torch.zeros(1, dtype=torch.float64)])
    scheduler = SCHEDULERS.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, lower_order_final=True, final_sigmas_type="zero"
    )
    alpha, sigma = kernel.schedule(times)
    scheduler.set_timesteps(7)
    scheduler.timesteps, scheduler.sigmas = torch.arange(7, 0, -1), sigma / alpha
    x = y = torch.randn(20, 2, generator=seeded(0), dtype=torch.float64)
    denoise, states = data.denoise(kernel), []
    for i, label in enumerate(scheduler.timesteps):
        eps = (y - alpha[i] * denoise(y, float(times[i])).mean) / sigma[i]
        y = scheduler.step(eps, label, y).prev_sample
        states.append(y)
    ours = [step.x for step in dpm_solver_pp_2s(denoise, kernel, x, times[[0, 2, 4, 6, 7]])]
    for mine, theirs in zip(ours, [states[1], states[3], states[5], states[6]], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
