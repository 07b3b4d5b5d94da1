"""Reverse diffusion and Euler-Maruyama against the published recursions, exact laws and measured orders."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.noise import Diagonal
from polydiff.core.ode import euler
from polydiff.core.randomness import seeded
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, Tabulated, VarianceExploding
from polydiff.core.sde import euler_maruyama, reverse_diffusion
from tests.core.cases import SCHEDULES
from tests.core.chains import DATA, Independent, law, numbers
from tests.problems import Clouds

EM: dict[str, Callable[..., Any]] = {
    f"euler_maruyama({eta})": partial(euler_maruyama, eta=eta) for eta in (0.0, 0.5, 1.0)
}
ALL: dict[str, Callable[..., Any]] = {"reverse_diffusion": reverse_diffusion, **EM}
TIMES = torch.tensor([0.95, 0.8, 0.5, 0.45, 0.2, 0.05, 0.0], dtype=torch.float64)


def graded(steps: int, end: float, power: float, first: float = 1.0) -> Tensor:
    """first ... end in `steps` smoothly spaced intervals, then 0."""
    inner = end + (first - end) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
    return torch.cat([inner, inner.new_zeros(1)])


def published_forward(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(f, G^2) of one step of the forward chain x_t = (1 + f) x_s + G z, schedule by schedule."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
    if isinstance(schedule, VarianceExploding):
        return torch.zeros_like(t), sigma_t**2 - sigma_s**2
    beta = 1 - (alpha_t / alpha_s) ** 2
    if isinstance(schedule, SubVP):
        # x_s has variance (1 - alpha_s^2)^2 where all of it is noise; x_t needs (1 - alpha_t^2)^2.
        return (1 - beta).sqrt() - 1, (1 - alpha_t**2) ** 2 - (1 - beta) * (1 - alpha_s**2) ** 2
    return (1 - beta).sqrt() - 1, beta


@pytest.mark.parametrize("schedule", [LinearBeta(), SubVP(), VarianceExploding(0.05, 20.0)], ids=repr)
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_the_exact_law_of_reverse_diffusion(schedule: Schedule, ragged: bool) -> None:
    """Song et al. 2021, eq. 46: mean and variance by recursion, with beta for VP and differences of sigma^2 for VE."""
    for column, grid in enumerate([TIMES, TIMES**1.3]):
        mean, variance = DATA.moments(*schedule(grid[0]))
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            f, G2 = published_forward(schedule, s, t)
            centre, spread = DATA.moments(*schedule(t))  # the score is (centre - x)/spread
            slope = 1 - f - G2 / spread
            mean, variance = slope * mean + G2 / spread * centre, slope**2 * variance + G2 * (s > 0)
        grids_ = torch.stack([TIMES, TIMES**1.3], 1) if ragged else grid
        ours = law(reverse_diffusion, schedule, grids_)
        for one, two in zip(ours, (mean, variance), strict=True):
            torch.testing.assert_close(one[column] if ragged else one, two, rtol=1e-10, atol=1e-12)


def published_sde(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(f, g^2) as printed: Song et al. 2021, eq. 30-32; RectifiedFlow by hand."""
    if isinstance(schedule, VarianceExploding):
        ratio = schedule.sigma_max / schedule.sigma_min
        u = (t - schedule.t_min) / (1 - schedule.t_min)
        rate = math.log(ratio) / (1 - schedule.t_min)
        return torch.zeros_like(t), (schedule.sigma_min * ratio**u) ** 2 * 2 * rate
    if isinstance(schedule, RectifiedFlow):
        return -1 / (1 - t), 2 * t / (1 - t)
    beta = 0.1 + t * 19.9
    integral = 0.1 * t + 19.9 * t**2 / 2
    return -beta / 2, beta * (1 - torch.exp(-2 * integral) if isinstance(schedule, SubVP) else 1)


@pytest.mark.parametrize("schedule", [LinearBeta(), SubVP(), VarianceExploding(0.05, 20.0), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_the_exact_law_of_euler_maruyama(schedule: Schedule, eta: float, ragged: bool) -> None:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw with f and g as printed; the mean at the end."""
    for column, grid in enumerate([TIMES, TIMES**1.3]):
        mean, variance = DATA.moments(*schedule(grid[0]))
        for t, s in zip(grid[:-2], grid[1:-1], strict=True):
            (f, g2), dt = published_sde(schedule, t), s - t
            centre, spread = DATA.moments(*schedule(t))
            pull = (1 + eta**2) / 2 * g2
            slope = 1 + dt * (f + pull / spread)
            mean, variance = slope * mean - dt * pull / spread * centre, slope**2 * variance - eta**2 * g2 * dt
        alpha, sigma = schedule(grid[-2])
        gain = DATA.gain(alpha, sigma)
        mean, variance = DATA.mean + gain * (mean - alpha * DATA.mean), gain**2 * variance
        grids_ = torch.stack([TIMES, TIMES**1.3], 1) if ragged else grid
        ours = law(partial(euler_maruyama, eta=eta), schedule, grids_)
        for one, two in zip(ours, (mean, variance), strict=True):
            torch.testing.assert_close(one[column] if ragged else one, two, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", [LinearBeta(), SubVP(), VarianceExploding(0.05, 20.0), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", ALL)
def test_the_law_converges_with_order_one(schedule: Schedule, name: str) -> None:
    """The error of mean and variance at t = 0.05, from the exact law of the sampler."""

    def until_the_last_interval(*args: Any, **options: Any) -> Any:
        *_, reached, _ = ALL[name](*args, **options)
        yield reached

    target = DATA.moments(*numbers(schedule, 0.05))
    errors = []
    for steps in (150, 300):
        reached = law(until_the_last_interval, schedule, graded(steps, 0.05, 1.5, 0.95))
        errors.append(max(float((one - two).abs().max()) for one, two in zip(reached, target, strict=True)))
    assert errors[1] < 0.12
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)


def samples_have_law(x: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Means, variances and correlations within 5 standard errors."""
    count, deviation = len(x), variance.sqrt()
    assert bool(((x.mean(0) - mean).abs() < 5 * deviation / count**0.5).all())
    wide = deviation[:, None] * deviation * (2 / count) ** 0.5
    assert bool(((x.T.cov() - torch.diag(variance)).abs() < 5 * wide).all())


@pytest.mark.parametrize("name", ["reverse_diffusion", "euler_maruyama(0.5)", "euler_maruyama(1.0)"])
def test_samples_have_that_law(name: str) -> None:
    schedule, kernel = SubVP(), Gaussian(SubVP())
    x = DATA.sample(kernel, 20_000, 0.95, seeded(0))
    x = last(ALL[name](DATA.denoise(kernel), kernel, x, TIMES, generator=seeded(1)))
    samples_have_law(x, *law(ALL[name], schedule, TIMES))


@pytest.mark.parametrize("name", ALL)
def test_a_noise_law_is_a_change_of_units(name: str) -> None:
    """Data and noise of deviation L: divided by L, everything is as with the unit law."""
    units = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    plain, scaled = Gaussian(LinearBeta()), Gaussian(LinearBeta(), Diagonal(units))
    stretched = Independent((DATA.mean * units).tolist(), (DATA.variance.sqrt() * units).tolist(), units.tolist())
    x = DATA.sample(plain, 4, 0.95, seeded(0))
    one = last(ALL[name](DATA.denoise(plain), plain, x, TIMES, generator=seeded(1)))
    two = last(ALL[name](stretched.denoise(scaled), scaled, x * units, TIMES, generator=seeded(1)))
    torch.testing.assert_close(one * units, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", ALL)
def test_every_schedule_from_pure_noise(sampler: str, name: str) -> None:
    """From t = 1 down to 0, everything is finite and ends near the data; where the drift is infinite, an error."""
    schedule = SCHEDULES[name]()
    kernel = Gaussian(schedule)
    times = grids.log_snr(200, schedule) if name in ("exploding", "edm") else graded(200, 1e-4, 2.0)
    alpha_1, sigma_1 = numbers(schedule, 1.0)
    x = sigma_1 * torch.randn(2000, 3, generator=seeded(0), dtype=torch.float64)
    if sampler != "reverse_diffusion" and alpha_1 == 0:
        with pytest.raises(ArgumentError, match="^times.*start below t = 1 or use `reverse_diffusion`"):
            next(ALL[sampler](DATA.denoise(kernel), kernel, x, times))
        return
    x = last(ALL[sampler](DATA.denoise(kernel), kernel, x, times, generator=seeded(1)))
    torch.testing.assert_close(x.mean(0), DATA.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(x.std(0), DATA.variance.sqrt(), rtol=0.15, atol=0)


def test_without_noise_they_are_the_ode() -> None:
    """One short step of the probability-flow ODE, to second order, and the same without a generator."""
    kernel, denoise = Gaussian(LinearBeta()), DATA.denoise(Gaussian(LinearBeta()))
    x = DATA.sample(kernel, 5, 0.6, seeded(0))
    times = torch.tensor([0.6, 0.5999, 0.0], dtype=torch.float64)
    one, two = (next(sampler(denoise, kernel, x, times)).x for sampler in (EM["euler_maruyama(0.0)"], ddim))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    assert float((two - x).abs().max()) > 2e-5
    torch.testing.assert_close(next(euler(denoise, kernel, x, times)).x, two, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        last(EM["euler_maruyama(0.0)"](denoise, kernel, x, TIMES)),
        last(EM["euler_maruyama(0.0)"](denoise, kernel, x, TIMES)),
        rtol=0,
        atol=0,
    )


def test_the_last_interval_has_no_noise() -> None:
    kernel, denoise = Gaussian(LinearBeta()), DATA.denoise(Gaussian(LinearBeta()))
    x = DATA.sample(kernel, 5, 0.95, seeded(0))
    steps: list[Step[Tensor]] = list(reverse_diffusion(denoise, kernel, x, TIMES, generator=seeded(1)))
    alpha, before = kernel.schedule(TIMES[-2])[0], steps[-2].x
    belief = denoise(before, float(TIMES[-2])).mean
    torch.testing.assert_close(steps[-1].x, before - (alpha - 1) * before - (before - alpha * belief))
    steps = list(euler_maruyama(denoise, kernel, x, TIMES, generator=seeded(1)))
    torch.testing.assert_close(steps[-1].x, denoise(steps[-2].x, float(TIMES[-2])).mean)
    assert [step.t for step in steps] == TIMES.tolist()[1:]


@pytest.mark.parametrize("name", ALL)
def test_examples_do_not_see_their_neighbours(name: str) -> None:
    kernel, denoise = Gaussian(SubVP()), DATA.denoise(Gaussian(SubVP()))
    x, columns = DATA.sample(kernel, 3, 0.95, seeded(0)), torch.stack([TIMES, TIMES**1.3, TIMES**2], 1)
    whole = last(ALL[name](denoise, kernel, x, columns, generator=[seeded(i) for i in range(3)]))
    for i in range(3):
        alone = last(ALL[name](denoise, kernel, x[i : i + 1], columns[:, i], generator=[seeded(i)]))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_clouds_stay_centred(name: str) -> None:
    clouds = Clouds([2, 1, 3])
    kernel = Gaussian(LinearBeta(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    columns = torch.stack([TIMES, TIMES**1.3, TIMES**2], 1)
    for step in ALL[name](clouds.denoise(kernel), kernel, x, columns, generator=[seeded(i) for i in range(3)]):
        torch.testing.assert_close(kernel.project(step.x), step.x, rtol=0, atol=1e-12)
        assert float(step.x.abs().max()) > 0.1


def test_bad_arguments_are_named_before_the_network_is_called() -> None:
    kernel, x, never = Gaussian(Cosine()), torch.zeros(2, 3), lambda x, t: Belief(x / 0)
    for eta in (-0.1, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="^eta"):
            next(euler_maruyama(never, kernel, x, grids.uniform(3), eta=eta))
    for sampler in ALL.values():
        with pytest.raises(ArgumentError, match="^times"):
            next(sampler(never, kernel, x, torch.tensor([1.0, 0.5])))
        with pytest.raises(ArgumentError, match="^kernel"):
            next(sampler(never, torch.nn.Identity(), x, grids.uniform(3)))


def test_a_checkpoints_own_grid() -> None:
    """On a tabulated chain the drift between two published times is that of its own betas, to first order."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = Tabulated.from_betas(betas)
    kernel, times = Gaussian(schedule), grids.trailing(1000, 1000)
    x = DATA.sample(kernel, 5, 1.0, seeded(0))
    chain, path = (
        next(sampler(DATA.denoise(kernel), kernel, x, times, generator=seeded(1)))
        for sampler in (reverse_diffusion, euler_maruyama)
    )
    torch.testing.assert_close(chain.x, path.x, rtol=2e-2, atol=2e-3)
