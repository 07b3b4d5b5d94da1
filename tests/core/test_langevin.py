"""Langevin dynamics: exact stationary laws, the published step sizes, and what correctors are for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.langevin import annealed_langevin, corrector, langevin, predictor_corrector
from polydiff.core.noise import Diagonal, masked
from polydiff.core.ode import heun
from polydiff.core.randomness import seeded
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, VarianceExploding
from polydiff.core.sde import euler_maruyama, reverse_diffusion
from tests.core.chains import DATA, Independent, law, numbers
from tests.problems import Clouds, GaussianData

SOME: list[Schedule] = [LinearBeta(), SubVP(), VarianceExploding(0.05, 20.0), RectifiedFlow()]
TIMES = torch.tensor([0.95, 0.7, 0.4, 0.15, 0.02, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("schedule", SOME, ids=repr)
@pytest.mark.parametrize("ragged", [False, True], ids=["t", "t (B,)"])
def test_the_stationary_law_is_that_of_the_discretised_chain(schedule: Schedule, ragged: bool) -> None:
    """On N(m, V): x' = (1 - e/V)(x - m) + m + sqrt(2 e) z has variance V/(1 - e/(2 V)), exactly."""
    step = 0.3

    def chain(denoise: Any, kernel: Any, x: Tensor, times: Tensor) -> Iterator[Step[Tensor]]:
        t = times[0] if ragged else float(times[0])
        for _ in range(150):
            x = langevin(denoise, kernel, x + 0.0, t, step=step).x
        yield Step(t, x, None)

    times = (
        torch.tensor([[0.3, 0.6], [0.0, 0.0]], dtype=torch.float64)
        if ragged
        else torch.tensor([0.3, 0.0], dtype=torch.float64)
    )
    mean, variance = law(chain, schedule, times, draws=150)
    for column, t in enumerate((0.3, 0.6) if ragged else (0.3,)):
        alpha, sigma = numbers(schedule, t)
        m, V = DATA.moments(alpha, sigma)
        stationary = V / (1 - step * sigma**2 / (2 * V))
        # What is left of the start after 150 steps.
        rest = (1 - step * sigma**2 / V) ** 300
        expected = stationary + rest * (V - stationary)
        torch.testing.assert_close(mean[column] if ragged else mean, m, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(variance[column] if ragged else variance, expected, rtol=1e-9, atol=1e-12)


def test_samples_have_the_stationary_law() -> None:
    """Drawn, under a diagonal noise law, within 5 standard errors: the step is preconditioned by Sigma."""
    noise = [0.5, 1.0, 2.0]
    data = Independent([0.6, -0.3, 0.1], [0.4, 1.1, 0.8], noise)
    kernel, t, step = Gaussian(LinearBeta(), Diagonal(data.noise)), 0.3, 0.4
    alpha, sigma = numbers(LinearBeta(), t)
    m, V = data.moments(alpha, sigma)
    x = data.sample(kernel, 20_000, t, seeded(0))
    g = seeded(1)
    for _ in range(40):
        x = langevin(data.denoise(kernel), kernel, x, t, step=step, generator=g).x
    stationary = V / (1 - step * (sigma * data.noise) ** 2 / (2 * V))
    assert float((stationary / V).max()) > 1.1
    assert bool(((x.mean(0) - m).abs() < 5 * (stationary / len(x)).sqrt()).all())
    assert bool(((x.var(0) / stationary - 1).abs() < 5 * math.sqrt(2 / len(x))).all())


@pytest.mark.parametrize("schedule", SOME, ids=repr)
def test_the_corrector_is_the_published_one(schedule: Schedule) -> None:
    """Song et al. 2021, algorithms 4 and 5, with norms of one example: epsilon = 2 a (r |z|/|g|)^2."""
    kernel, t, share, snr = Gaussian(schedule), torch.tensor([0.4, 0.7], dtype=torch.float64), 0.81, 0.16
    x = torch.randn(2, 3, generator=seeded(0), dtype=torch.float64)
    ours = corrector(DATA.denoise(kernel), kernel, x, t, snr=snr, share=share, generator=seeded(1))
    z = torch.randn(2, 3, generator=seeded(1), dtype=torch.float64)
    for i in range(2):
        m, V = DATA.moments(*schedule(t[i]))
        g = -(x[i] - m) / V
        limit = (schedule(t[i])[1] * z[i].norm() / 2) ** 2
        epsilon = torch.minimum(2 * share * (snr * z[i].norm() / g.norm()) ** 2, limit)
        torch.testing.assert_close(
            ours.x[i], x[i] + epsilon * g + torch.sqrt(2 * epsilon) * z[i], rtol=1e-10, atol=1e-12
        )
    torch.testing.assert_close(ours.belief.mean, DATA.denoise(kernel)(x, t).mean)
    one = corrector(DATA.denoise(kernel), kernel, x, 0.4, snr=snr, share=share, generator=seeded(1)).x
    torch.testing.assert_close(one[0], ours.x[0], rtol=1e-10, atol=1e-12)


def test_norms_are_whitened() -> None:
    """A change of units and cells outside of the mask change nothing."""
    units, t = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64), 0.4
    plain, scaled = Gaussian(SubVP()), Gaussian(SubVP(), Diagonal(units))
    stretched = Independent((DATA.mean * units).tolist(), (DATA.variance.sqrt() * units).tolist(), units.tolist())
    x = DATA.sample(plain, 4, t, seeded(0))
    one = corrector(DATA.denoise(plain), plain, x, t, generator=seeded(1)).x
    two = corrector(stretched.denoise(scaled), scaled, x * units, t, generator=seeded(1)).x
    torch.testing.assert_close(one * units, two, rtol=1e-10, atol=1e-12)

    mask = torch.tensor([[True, False, True]])
    hidden = Gaussian(SubVP(), masked(mask))
    z = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64) * mask
    ours = corrector(lambda x, t: Belief(x * 0.5), hidden, x * mask, t, snr=0.2, generator=seeded(1)).x
    alpha, sigma = numbers(SubVP(), t)
    g = (alpha * 0.5 - 1) * x * mask / sigma**2
    epsilon = 2 * (0.2 * z.norm(dim=1, keepdim=True) / g.norm(dim=1, keepdim=True)) ** 2
    epsilon = torch.minimum(epsilon, (sigma * z.norm(dim=1, keepdim=True) / 2) ** 2)
    torch.testing.assert_close(ours, x * mask + epsilon * g + (2 * epsilon).sqrt() * z, rtol=1e-10, atol=1e-12)


def test_examples_without_a_score_stay_where_they_are() -> None:
    """A cloud of one point has no degrees of freedom, and its gradient is finite."""
    clouds = Clouds([2, 1, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1)).requires_grad_()
    y = corrector(clouds.denoise(kernel), kernel, x, torch.tensor([0.3, 0.5, 0.8]), generator=seeded(2)).x
    torch.testing.assert_close(kernel.project(y), y, rtol=0, atol=1e-12)
    moved = (y - x).detach().norm(dim=1)
    assert float(moved[2]) == 0
    assert bool((moved[[0, 1, 3, 4, 5]] > 1e-3).all())
    (gradient,) = torch.autograd.grad((y**2).sum(), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("schedule", [LinearBeta(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_predictor_corrector_is_the_published_loop(schedule: Schedule) -> None:
    """At every time of the grid: correct there, with epsilon's factor 1 - beta (1 for VE), then predict."""
    kernel, snr, g = Gaussian(schedule), 0.2, seeded(1)
    x = DATA.sample(kernel, 3, 0.95, seeded(0))
    steps = list(
        predictor_corrector(reverse_diffusion, 2, snr)(DATA.denoise(kernel), kernel, x, TIMES, generator=seeded(1))
    )

    def score(x: Tensor, t: Tensor) -> Tensor:
        m, V = DATA.moments(*schedule(t))
        return -(x - m) / V

    for i, (t, s) in enumerate(zip(TIMES[:-1], TIMES[1:], strict=True)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        exploding = isinstance(schedule, VarianceExploding)
        beta = torch.zeros(()) if exploding else 1 - (alpha_t / alpha_s) ** 2
        G2 = sigma_t**2 - sigma_s**2 if exploding else beta
        for _ in range(2):
            z, grad = torch.randn(x.shape, generator=g, dtype=torch.float64), score(x, t)
            epsilon = 2 * (1 - beta) * (snr * z.norm(dim=1, keepdim=True) / grad.norm(dim=1, keepdim=True)) ** 2
            epsilon = torch.minimum(epsilon, (sigma_t * z.norm(dim=1, keepdim=True) / 2) ** 2)
            x = x + epsilon * grad + (2 * epsilon).sqrt() * z
        x = (2 - (1 - beta).sqrt()) * x + G2 * score(x, t)
        if s > 0:
            x = x + G2.sqrt() * torch.randn(x.shape, generator=g, dtype=torch.float64)
        torch.testing.assert_close(steps[i].x, x, rtol=1e-8, atol=1e-9)
        assert steps[i].t == float(s)


@pytest.mark.parametrize("D", [1, 2])
def test_an_example_near_a_mode_is_not_thrown_away(D: int) -> None:
    """In few dimensions scores are often almost 0, where the published step has no bound."""
    data = GaussianData(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64) / 4)
    kernel, x = Gaussian(Cosine()), torch.randn(4000, D, generator=seeded(0), dtype=torch.float64)
    times = grids.log_snr(60, kernel.schedule)
    y = last(predictor_corrector(ancestral)(data.denoise(kernel), kernel, x, times, generator=seeded(1)))
    assert 0.45 < float(y.std()) < 0.9
    assert float(y.abs().max()) < 5


PREDICTORS: dict[str, Callable[..., Any]] = {
    "ancestral": ancestral,
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
    "ddim": ddim,
    "ddim(1)": partial(ddim, eta=1.0),
    "heun": heun,
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_without_corrections_it_is_the_predictor(name: str) -> None:
    kernel = Gaussian(LinearBeta())
    x = DATA.sample(kernel, 3, 0.95, seeded(0))
    for times in (TIMES, torch.stack([TIMES, TIMES**1.3, TIMES**2], 1)):
        arguments = (DATA.denoise(kernel), kernel, x, times)
        alone = PREDICTORS[name](*arguments, generator=seeded(1))
        wrapped = predictor_corrector(PREDICTORS[name], 0)(*arguments, generator=seeded(1))
        for one, two in zip(alone, wrapped, strict=True):
            torch.testing.assert_close(one.x, two.x, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(torch.as_tensor(one.t), torch.as_tensor(two.t), rtol=0, atol=0)


def test_options_reach_the_predictor_and_calls_are_counted() -> None:
    kernel, seen = Gaussian(Cosine()), []

    def denoise(x: Tensor, t: Time) -> Belief:
        seen.append(t)
        return DATA.denoise(kernel)(x, t)

    x, times = DATA.sample(kernel, 3, 1.0, seeded(0)), grids.uniform(4)
    sampler = predictor_corrector(ddim, 2)
    steps = sampler(denoise, kernel, x, times, eta=0.5, generator=seeded(1))
    assert seen == []
    next(steps)
    assert seen == [1.0] * 3
    list(steps)
    assert seen == [t for t in times.tolist()[:-1] for _ in range(3)]
    # With alpha_1 = 0 the state at t = 1 is pure noise and is left alone.
    g = seeded(1)
    for _ in range(2):
        torch.randn(x.shape, generator=g, dtype=torch.float64)
    first = next(sampler(denoise, kernel, x, times, eta=0.5, generator=seeded(1))).x
    torch.testing.assert_close(first, next(ddim(denoise, kernel, x, times, eta=0.5, generator=g)).x)


@pytest.mark.parametrize("name", PREDICTORS)
def test_examples_do_not_see_their_neighbours(name: str) -> None:
    """A neighbour far away from its data has a large score; with norms over the batch it would stop this one."""
    kernel, columns = Gaussian(SubVP()), torch.stack([TIMES, TIMES**1.3, TIMES**2], 1)
    x = DATA.sample(kernel, 3, 0.95, seeded(0)) * torch.tensor([[1.0], [100.0], [1.0]])
    sampler = predictor_corrector(PREDICTORS[name])
    whole = last(sampler(DATA.denoise(kernel), kernel, x, columns, generator=[seeded(i) for i in range(3)]))
    for i in range(3):
        alone = last(sampler(DATA.denoise(kernel), kernel, x[i : i + 1], columns[:, i], generator=[seeded(i)]))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_corrections_bring_the_law_closer() -> None:
    """DDIM in few steps on a wide and a narrow axis, 64 dimensions: variances at t = 0.02 with and without."""
    data = Independent([0.0] * 64, [0.3, 1.0] * 32)
    kernel, target = Gaussian(LinearBeta()), data.moments(*numbers(LinearBeta(), 0.02))[1]
    x = data.sample(kernel, 2000, 0.95, seeded(0))
    errors = []
    for corrections in (0, 4):
        sampler = predictor_corrector(ddim, corrections, 0.1)
        # The state that the last interval begins with, corrected once more.
        *_, reached, _ = sampler(data.denoise(kernel), kernel, x, TIMES, generator=seeded(1))
        y, g = reached.x, seeded(2)
        for _ in range(5 * corrections):
            y = corrector(data.denoise(kernel), kernel, y, 0.02, snr=0.1, generator=g).x
        errors.append(float((y.var(0) / target - 1).abs().mean()))
    assert errors[1] < 0.6 * errors[0], errors


@pytest.mark.parametrize("schedule", SOME, ids=repr)
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_the_exact_law_of_annealed_langevin(schedule: Schedule, ragged: bool) -> None:
    """Song & Ermon 2019, algorithm 1, in y = x/alpha and u = sigma/alpha; then the mean."""
    moves, step = 7, 0.3
    grid = torch.stack([TIMES, TIMES**1.3], 1) if ragged else TIMES
    sampler = partial(annealed_langevin, moves=moves, step=step)
    reached = law(sampler, schedule, grid, draws=moves * 5)
    for column, times in enumerate([TIMES, TIMES**1.3] if ragged else [TIMES]):
        alpha, sigma = schedule(times[:-1])
        u = sigma / alpha
        epsilon = step * float(u[-1]) ** 2
        m, v = DATA.mean, DATA.variance + u[0] ** 2
        for level in u:
            a_i = epsilon * level**2 / u[-1] ** 2
            for _ in range(moves):
                # y <- y + a_i/2 score + sqrt(a_i) z
                v = (1 - a_i / 2 / (DATA.variance + level**2)) ** 2 * v + a_i
        gain = DATA.variance / (DATA.variance + u[-1] ** 2)
        for ours, theirs in zip(reached, (m, gain**2 * v), strict=True):
            torch.testing.assert_close(ours[column] if ragged else ours, theirs, rtol=1e-9, atol=1e-10)


def test_annealed_langevin_reaches_the_data() -> None:
    """From far away, over ten geometric levels; steps are labelled by the level that they are at."""
    schedule, calls = VarianceExploding(0.01, 10.0), 0
    kernel = Gaussian(schedule)

    def denoise(x: Tensor, t: Time) -> Belief:
        nonlocal calls
        calls += 1
        return DATA.denoise(kernel)(x, t)

    times = grids.log_snr(10, schedule)
    x = 20 * torch.rand(2000, 3, generator=seeded(0), dtype=torch.float64) - 10
    steps = list(annealed_langevin(denoise, kernel, x, times, moves=60, generator=seeded(1)))
    assert calls == 601
    assert [step.t for step in steps] == times.tolist()[1:]
    torch.testing.assert_close(steps[-1].x.mean(0), DATA.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(steps[-1].x.std(0), DATA.variance.sqrt(), rtol=0.1, atol=0)
    for step in steps[:4]:
        _, V = DATA.moments(*numbers(schedule, step.t))
        torch.testing.assert_close(step.x.var(0), V, rtol=0.25, atol=0)


def test_annealed_langevin_on_clouds_and_per_example_generators() -> None:
    clouds = Clouds([2, 1, 3])
    kernel = Gaussian(LinearBeta(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    columns = torch.stack([TIMES, TIMES**1.3, TIMES**2], 1)
    sampler: Any = partial(annealed_langevin, moves=3)
    whole = list(sampler(clouds.denoise(kernel), kernel, x, columns, generator=[seeded(i) for i in range(3)]))
    for step in whole:
        torch.testing.assert_close(kernel.project(step.x), step.x, rtol=0, atol=1e-12)
    alone = Clouds([3])
    own = Gaussian(LinearBeta(), Centred()).given(**alone.structure)
    third = last(sampler(alone.denoise(own), own, x[3:], columns[:, 2], generator=[seeded(2)]))
    torch.testing.assert_close(whole[-1].x[3:], third, rtol=1e-12, atol=1e-12)


def test_bad_arguments_are_named() -> None:
    kernel, x, never = Gaussian(Cosine()), torch.zeros(2, 3), lambda x, t: Belief(x / 0)
    for snr in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="^snr"):
            predictor_corrector(ancestral, snr=snr)
        with pytest.raises(ArgumentError, match="^snr"):
            corrector(never, kernel, x, 0.5, snr=snr)
    for count in (-1, 1.5):
        with pytest.raises(ArgumentError, match="^corrections"):
            predictor_corrector(ancestral, count)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="^step"):
        langevin(never, kernel, x, 0.5, step=2.0)
    with pytest.raises(ArgumentError, match="^times.*start below 1"):
        next(annealed_langevin(never, kernel, x, grids.uniform(3)))
    bad: list[tuple[dict[str, Any], str]] = [({"moves": 0}, "moves"), ({"step": 4.0}, "step"), ({"step": 0.0}, "step")]
    for options, name in bad:
        with pytest.raises(ArgumentError, match=f"^{name}"):
            next(annealed_langevin(never, kernel, x, TIMES, **options))
    with pytest.raises(ArgumentError, match="^kernel"):
        next(predictor_corrector(ancestral)(never, torch.nn.Identity(), x, TIMES))
