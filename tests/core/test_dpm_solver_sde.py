"""SDE-DPM-Solver++ against diffusers, the published recursion, exact integrals and exact laws."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from scipy import integrate
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.dpm_solver_sde import dpm_solver_pp_sde
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.noise import Diagonal
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, Tabulated, VarianceExploding
from tests.core.cases import SCHEDULES
from tests.core.chains import DATA, Independent, law, numbers
from tests.problems import Clouds

TIMES = torch.tensor([0.95, 0.8, 0.5, 0.45, 0.2, 0.05, 0.0], dtype=torch.float64)
SOME: list[Schedule] = [LinearBeta(), SubVP(), VarianceExploding(0.05, 20.0), RectifiedFlow()]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [5, 20])
def test_it_is_diffusers_scheduler(order: int, steps: int) -> None:
    """Given the same noise. (Its third order adds 1/2 with the wrong sign and has no counterpart here.)"""
    DDPM = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="linear",
        algorithm_type="sde-dpmsolver++",
        solver_order=order,
        prediction_type="sample",
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        lower_order_final=False,
    )
    theirs.set_timesteps(steps)
    kernel, times, g = Gaussian(DDPM), grids.trailing(steps, 1000), seeded(1)
    assert [round(1000 * t) - 1 for t in times.tolist()[:-1]] == theirs.timesteps.tolist()
    x = start = DATA.sample(kernel, 6, 1.0, seeded(0))
    ours = dpm_solver_pp_sde(DATA.denoise(kernel), kernel, start, times, order=order, generator=seeded(1))
    for i, step in zip(theirs.timesteps, ours, strict=True):
        belief = DATA.denoise(kernel)(x, (float(i) + 1) / 1000).mean
        z = torch.randn(x.shape, generator=g, dtype=torch.float64)
        x = theirs.step(belief, i, x, variance_noise=z, return_dict=False)[0].double()  # pyright: ignore
        # Its tables are float32.
        torch.testing.assert_close(step.x, x, rtol=1e-4, atol=1e-4)


def published(data: Independent, schedule: Schedule, times: Tensor, order: int, eta: float) -> tuple[Tensor, Tensor]:
    """Mean and variance by the recursion in exploding coordinates y = x/alpha, as k-diffusion writes it, in lists of
    the coefficients of 1, of the start and of every z."""
    alpha, sigma = numbers(schedule, times)
    us = (sigma / alpha).tolist()
    results = []
    for m, V in zip(data.mean.tolist(), data.variance.tolist(), strict=True):
        y = [m, math.sqrt(V + us[0] ** 2)]
        old: list[list[float]] = []
        hs: list[float] = []
        for u, w in zip(us[:-1], us[1:], strict=True):
            gain = V / (V + u**2)
            D = [m + gain * (y[0] - m), *(gain * c for c in y[1:])]
            if w == 0:
                y = D
                break
            h = math.log(u / w)
            H = h * (1 + eta)
            phi = 1 - math.exp(-H)

            def sum_of(*terms: tuple[float, list[float]]) -> list[float]:
                length = max(len(c) for _, c in terms)
                return [sum(a * c[k] for a, c in terms if k < len(c)) for k in range(length)]

            terms = [(math.exp(-H), y), (phi, D)]
            if order == 2 and old:
                r = hs[-1] / h
                terms += [(phi / (2 * r), D), (-phi / (2 * r), old[-1])]
            if order == 3 and old:
                phi_2 = 1 - phi / H
                d1_0 = sum_of((h / hs[-1], D), (-h / hs[-1], old[-1]))
                d1, d2 = d1_0, None
                if len(old) > 1:
                    r0, r1 = hs[-1] / h, hs[-2] / h
                    d1_1 = sum_of((1 / r1, old[-1]), (-1 / r1, old[-2]))
                    d1 = sum_of((1.0, d1_0), (r0 / (r0 + r1), d1_0), (-r0 / (r0 + r1), d1_1))
                    d2 = sum_of((1 / (r0 + r1), d1_0), (-1 / (r0 + r1), d1_1))
                terms.append((phi_2, d1))
                if d2 is not None:
                    # Published with phi_2/H - 1/2, half of this: d2 is half of the second derivative.
                    terms.append((-2 * (phi_2 / H - 0.5), d2))
            y = [*sum_of(*terms), w * math.sqrt(1 - math.exp(-2 * eta * h))]
            old.append(D)
            hs.append(h)
        results.append((y[0], sum(c**2 for c in y[1:])))
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*results, strict=True))  # pyright: ignore


@pytest.mark.parametrize("schedule", SOME, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_exact_law(schedule: Schedule, order: int, eta: float) -> None:
    sampler = partial(dpm_solver_pp_sde, order=order, eta=eta)
    whole = law(sampler, schedule, torch.stack([TIMES, TIMES**1.3], 1))
    for column, times in enumerate([TIMES, TIMES**1.3]):
        expected = published(DATA, schedule, times, order, eta)
        for one, many, two in zip(law(sampler, schedule, times), whole, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(many[column], two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_three_beliefs_are_integrated_exactly(eta: float) -> None:
    """A belief that is a quadratic in h along the path: from the third step on, order 3 is the exact integral."""
    kernel = Gaussian(LinearBeta())
    half = (LinearBeta().log_snr(TIMES[:-1]) / 2).tolist()

    def D(at: float) -> float:
        return 0.7 - 0.4 * at + 0.3 * at**2

    def denoise(x: Tensor, t: Time) -> Belief:
        assert isinstance(t, float)
        return Belief(torch.full_like(x, D(float(LinearBeta().log_snr(torch.tensor(t, dtype=torch.float64)) / 2))))

    x = torch.randn(1, 1, generator=seeded(0), dtype=torch.float64)
    states = [x.item()]
    states += [
        step.x.item() for step in dpm_solver_pp_sde(denoise, kernel, x, TIMES, order=3, eta=eta, generator=seeded(1))
    ]
    sigma = numbers(kernel.schedule, TIMES)[1].tolist()
    g = seeded(1)
    for i in range(5):
        h = half[i + 1] - half[i] if i < 4 else half[5] - half[4]
        z = torch.randn(1, generator=g, dtype=torch.float64).item() if eta > 0 else 0.0
        # x_s = sigma_s/sigma_t e^(-eta h) x_t + sigma_s int (1 + eta) e^(l - eta (l_s - l)) D(l) dl, e^l = alpha/sigma
        integral, _ = integrate.quad(
            lambda at, end=half[i + 1]: (1 + eta) * math.exp(at - eta * (end - at)) * D(at), half[i], half[i + 1]
        )
        exact = sigma[i + 1] * (math.exp(-eta * h) / sigma[i] * states[i] + integral)
        exact += sigma[i + 1] * math.sqrt(1 - math.exp(-2 * eta * h)) * z
        if i >= 2:
            assert states[i + 1] == pytest.approx(exact, rel=1e-10)
        else:
            assert abs(states[i + 1] - exact) > 1e-4


@pytest.mark.parametrize("schedule", SOME, ids=repr)
@pytest.mark.parametrize(
    ("order", "eta", "expected"), [(1, 0.0, 1), (1, 1.0, 1), (2, 0.0, 2), (2, 0.5, 2), (2, 1.0, 2)]
)
def test_the_law_converges(schedule: Schedule, order: int, eta: float, expected: int) -> None:
    """Weak order, from the exact law at t = 0.05."""

    def until_the_last_interval(*args: Any, **options: Any) -> Any:
        *_, reached, _ = dpm_solver_pp_sde(*args, order=order, eta=eta, **options)
        yield reached

    target, errors = DATA.moments(*numbers(schedule, 0.05)), []
    for steps in (100, 200):
        times = 0.05 + 0.9 * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 1.5
        reached = law(until_the_last_interval, schedule, torch.cat([times, times.new_zeros(1)]))
        errors.append(max(float((one - two).abs().max()) for one, two in zip(reached, target, strict=True)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("schedule", [*SOME, Cosine()], ids=repr)
def test_special_cases(schedule: Schedule) -> None:
    """2M without noise is DPM-Solver++ 2M, order 1 is DDIM or ancestral sampling, from pure noise on."""
    kernel, times = Gaussian(schedule), grids.uniform(7, schedule)
    x, denoise = DATA.sample(kernel, 4, 1.0, seeded(0)), DATA.denoise(kernel)
    peers: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (dpm_solver_pp_2m, {"order": 2, "eta": 0.0}, {}),
        (ddim, {"order": 1, "eta": 0.0}, {}),
        (ancestral, {"order": 1, "eta": 1.0}, {"generator": seeded(1)}),
    ]
    for sampler, options, peer in peers:
        ours = dpm_solver_pp_sde(denoise, kernel, x, times, generator=seeded(1), **options)
        for one, two in zip(ours, sampler(denoise, kernel, x, times, **peer), strict=True):
            torch.testing.assert_close(one.x, two.x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_schedule_from_pure_noise(name: str, order: int, eta: float) -> None:
    """alpha_1 = 0 included; mean and variance of the result, exactly. Few steps too."""
    schedule = SCHEDULES[name]()
    for steps, tolerance in ((1, 2.0), (2, 2.0), (3, 2.0), (60, 0.15)):
        times = grids.log_snr(steps, schedule, low=-9, high=9)
        mean, variance = law(partial(dpm_solver_pp_sde, order=order, eta=eta), schedule, times)
        torch.testing.assert_close(mean, DATA.mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(variance.sqrt(), DATA.variance.sqrt(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_samples_have_that_law(order: int) -> None:
    kernel, sampler = Gaussian(SubVP()), partial(dpm_solver_pp_sde, order=order, eta=1.0)
    x = DATA.sample(kernel, 20_000, 0.95, seeded(0))
    x = last(sampler(DATA.denoise(kernel), kernel, x, TIMES, generator=seeded(1)))
    mean, variance = law(sampler, SubVP(), TIMES)
    wide = variance.sqrt()[:, None] * variance.sqrt() * (2 / len(x)) ** 0.5
    assert bool(((x.mean(0) - mean).abs() < 5 * (variance / len(x)).sqrt()).all())
    assert bool(((x.T.cov() - torch.diag(variance)).abs() < 5 * wide).all())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_noise_law_is_a_change_of_units(order: int) -> None:
    units = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    plain, scaled = Gaussian(LinearBeta()), Gaussian(LinearBeta(), Diagonal(units))
    stretched = Independent((DATA.mean * units).tolist(), (DATA.variance.sqrt() * units).tolist(), units.tolist())
    x = DATA.sample(plain, 4, 0.95, seeded(0))
    one = last(dpm_solver_pp_sde(DATA.denoise(plain), plain, x, TIMES, order=order, generator=seeded(1)))
    two = last(dpm_solver_pp_sde(stretched.denoise(scaled), scaled, x * units, TIMES, order=order, generator=seeded(1)))
    torch.testing.assert_close(one * units, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_examples_do_not_see_their_neighbours_and_clouds_stay_centred(order: int) -> None:
    kernel, columns = Gaussian(Cosine()), torch.stack([TIMES / 0.95, TIMES**1.3, TIMES**2], 1)
    x = DATA.sample(kernel, 3, 0.95, seeded(0))
    sampler: Any = partial(dpm_solver_pp_sde, DATA.denoise(kernel), kernel, order=order)
    whole = last(sampler(x, columns, generator=[seeded(i) for i in range(3)]))
    for i in range(3):
        alone = last(sampler(x[i : i + 1], columns[:, i], generator=[seeded(i)]))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    clouds = Clouds([2, 1, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    for step in dpm_solver_pp_sde(clouds.denoise(kernel), kernel, x, columns, order=order, generator=seeded(1)):
        torch.testing.assert_close(kernel.project(step.x), step.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 0), (0.5, 5)])
def test_noise_is_drawn_in_every_interval_but_the_last(eta: float, draws: int) -> None:
    kernel, g, expected = Gaussian(SubVP()), seeded(1), seeded(1)
    x = DATA.sample(kernel, 4, 0.95, seeded(0))
    last(dpm_solver_pp_sde(DATA.denoise(kernel), kernel, x, TIMES, eta=eta, generator=g))
    for _ in range(draws):
        torch.randn(x.shape, generator=expected, dtype=torch.float64)
    assert torch.equal(g.get_state(), expected.get_state())


def test_bad_arguments_are_named() -> None:
    kernel, x, never = Gaussian(Cosine()), torch.zeros(2, 3), lambda x, t: Belief(x / 0)
    for order in (0, 4):
        with pytest.raises(ArgumentError, match="^order"):
            next(dpm_solver_pp_sde(never, kernel, x, grids.uniform(3), order=order))
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match="^eta"):
            next(dpm_solver_pp_sde(never, kernel, x, grids.uniform(3), eta=eta))
    with pytest.raises(ArgumentError, match="^kernel"):
        next(dpm_solver_pp_sde(never, torch.nn.Identity(), x, grids.uniform(3)))  # pyright: ignore[reportArgumentType]
