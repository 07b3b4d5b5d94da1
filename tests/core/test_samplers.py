"""Samplers against closed forms, independent formulas and published values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from polydiff.core import denoisers, grids
from polydiff.core.adaptive import adaptive
from polydiff.core.ancestral import ancestral
from polydiff.core.categorical import Categorical, absorbing, marginal, uniform
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser, index
from polydiff.core.dpm_solver import dpm_solver_pp_1s, dpm_solver_pp_2m
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.ode import euler, exploding, flow, heun
from polydiff.core.randomness import seeded
from polydiff.core.rectified import Coupled
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import (
    EDM,
    Cosine,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    SubVP,
    Tabulated,
    VarianceExploding,
)
from polydiff.core.tableau import Row, follow
from tests.problems import Clouds, GaussianData, MixtureData, TokenData

DATA = GaussianData.standard()
DDPM = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))

Sampler = Callable[..., Iterator[Step[Tensor]]]
SOLVERS: dict[str, tuple[Sampler, int]] = {
    "ddim": (ddim, 1),
    "euler": (euler, 1),
    "heun": (heun, 2),
    "dpm++2m": (dpm_solver_pp_2m, 2),
}
ALL: dict[str, Sampler] = {name: solver for name, (solver, _) in SOLVERS.items()} | {
    "ddim(1)": lambda *args, **options: ddim(*args, eta=1.0, **options),
    "ancestral": ancestral,
}
SCHEDULES = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "subvp": SubVP(),
    "rectified": RectifiedFlow(),
    "exploding": VarianceExploding(0.05, 20.0),
}


def start(kernel: Gaussian, count: int, t: float = 1.0) -> Tensor:
    return kernel.marginal(DATA.sample(count, seeded(1)), t).sample(seeded(2))


def graded(steps: int, end: float, power: float, first: float = 1.0) -> Tensor:
    """first ... end in `steps` smoothly spaced intervals, then 0."""
    inner = end + (first - end) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
    return torch.cat([inner, inner.new_zeros(1)])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_order_of_convergence(solver: str, name: str, ragged: bool) -> None:
    """On Gaussian data, whose flow is known, from t = 0.95 to 0.05: where every schedule is smooth (Sigmoid is like
    sqrt(1 - t) at its end) and without the last interval, which has order 1 for all."""
    kernel, (sample, order) = Gaussian(SCHEDULES[name]), SOLVERS[solver]
    first, end = 0.95, 0.05
    x = start(kernel, 3, first)
    exact = DATA.flow(kernel.schedule, x, first, end)
    errors = []
    for steps in (40, 80, 160):
        times = graded(steps, end, 1.5, first)
        if ragged:
            times = torch.stack([graded(steps, end, power, first) for power in (1.2, 1.5, 2.0)], 1)
        *_, reached, _ = sample(DATA.denoise(kernel), kernel, x, times)
        errors.append(float((reached.x - exact).abs().max()))
    assert errors[0] < 0.1
    measured = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert measured[1] == pytest.approx(order, abs=0.25), (measured, errors)


def test_dpm_solver_is_the_published_formula() -> None:
    """Lu et al. 2022b, algorithm 2, on a grid whose steps differ. (With the ratio r inverted the order is still 2.)"""
    kernel, times = Gaussian(LinearBeta()), torch.tensor([0.95, 0.9, 0.6, 0.5, 0.2, 0.0], dtype=torch.float64)
    x, denoise = start(kernel, 3, 0.95), DATA.denoise(kernel)
    ours = [step.x for step in dpm_solver_pp_2m(denoise, kernel, x, times)]
    alpha, sigma = kernel.schedule(times)
    half = (alpha / sigma).log()
    beliefs = [denoise(x, 0.95).mean]
    for i in range(1, 5):
        h = half[i] - half[i - 1]
        D = beliefs[-1]
        if i > 1:
            r = (half[i - 1] - half[i - 2]) / h
            D = (1 + 1 / (2 * r)) * beliefs[-1] - 1 / (2 * r) * beliefs[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h) * D
        torch.testing.assert_close(ours[i - 1], x, rtol=1e-9, atol=1e-9)
        beliefs.append(denoise(x, float(times[i])).mean)
    torch.testing.assert_close(ours[4], beliefs[-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "rectified", "exploding"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_reach_the_data(solver: str, name: str) -> None:
    """The whole way from noise to t = 0 on a mixture: as the grid is refined, all solvers meet."""
    kernel, data = Gaussian(SCHEDULES[name]), MixtureData()
    sigma_1 = float(kernel.schedule(torch.ones(()))[1])
    x = sigma_1 * torch.randn(50, 2, generator=seeded(0), dtype=torch.float64)
    grid = grids.karras if name == "exploding" else grids.quadratic
    fine = last(heun(data.denoise(kernel), kernel, x, grid(150, kernel.schedule)))
    coarse = last(SOLVERS[solver][0](data.denoise(kernel), kernel, x, grid(100, kernel.schedule)))
    assert float((coarse - fine).abs().median()) < 0.02
    assert float(torch.cdist(fine, data.centres).min(1).values.max()) < 5 * data.deviation


def test_heun_is_the_edm_sampler() -> None:
    """Karras et al. 2022, algorithm 1 with S_churn = 0, written out in sigma."""
    data, n, rho = MixtureData(), 12, 7
    kernel = Gaussian(EDM())
    i = torch.arange(n, dtype=torch.float64)
    sigma = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    sigma = torch.cat([sigma, torch.zeros(1, dtype=torch.float64)])

    def D(x: Tensor, s: Tensor) -> Tensor:
        error = x.unsqueeze(1) - data.centres
        variance = data.deviation**2 + s**2
        shares = (data.weights.log() - (error**2).sum(-1) / (2 * variance)).softmax(-1)
        return (shares.unsqueeze(-1) * (data.centres + data.deviation**2 / variance * error)).sum(1)

    x = noise = 80 * torch.randn(7, 2, generator=seeded(3), dtype=torch.float64)
    for s, s_next in zip(sigma[:-1], sigma[1:], strict=True):
        d = (x - D(x, s)) / s
        x_next = x + (s_next - s) * d
        if s_next > 0:
            d_next = (x_next - D(x_next, s_next)) / s_next
            x_next = x + (s_next - s) * (d + d_next) / 2
        x = x_next
    ours = last(heun(data.denoise(kernel), kernel, noise, grids.uniform(n, EDM()), coordinates=exploding))
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)
    # On schedules with alpha = 1, straight and exploding lines differ, and so do the samplers.
    straight = last(heun(data.denoise(kernel), kernel, noise, grids.uniform(n, EDM()), coordinates=flow))
    assert float((straight - x).abs().max()) > 1e-6


@pytest.mark.parametrize("schedule", [LinearBeta(), SubVP(), VarianceExploding(), DDPM], ids=repr)
def test_euler_in_exploding_coordinates_is_ddim(schedule: Schedule) -> None:
    kernel = Gaussian(schedule)
    x, times = start(kernel, 5), grids.uniform(9, schedule)
    denoise = DATA.denoise(kernel)
    for ours, theirs in zip(
        euler(denoise, kernel, x, times, coordinates=exploding), ddim(denoise, kernel, x, times), strict=True
    ):
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)


def test_one_euler_step_of_rectified_flow_is_exact_along_straight_paths() -> None:
    kernel, target = Gaussian(RectifiedFlow()), DATA.sample(4, seeded(0))
    x = torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    steps = list(euler(lambda x, t: Belief(target), kernel, x, grids.uniform(4)))
    for step in steps:
        t = float(step.t)
        torch.testing.assert_close(step.x, (1 - t) * target + t * x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_published_formula(eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, in alpha-bar."""
    kernel, times = Gaussian(DDPM), grids.leading(20, 1000)
    x = ours = start(kernel, 4)
    denoise, g = DATA.denoise(kernel), seeded(5)
    ours = [step.x for step in ddim(denoise, kernel, x, times, eta=eta, generator=seeded(5))]
    for i, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        bar_t, bar_s = (float(DDPM(torch.tensor(u, dtype=torch.float64))[0]) ** 2 for u in (t, s))
        std = eta * math.sqrt((1 - bar_s) / (1 - bar_t)) * math.sqrt(1 - bar_t / bar_s)
        x_0 = denoise(x, t).mean
        eps = (x - math.sqrt(bar_t) * x_0) / math.sqrt(1 - bar_t)
        x = math.sqrt(bar_s) * x_0 + math.sqrt(1 - bar_s - std**2) * eps
        if std > 0:
            x = x + std * torch.randn(x.shape, generator=g, dtype=torch.float64)
        torch.testing.assert_close(ours[i], x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("grid", [grids.uniform, grids.quadratic])
@pytest.mark.parametrize("schedule", [DDPM, Cosine(), RectifiedFlow(), VarianceExploding()], ids=repr)
def test_ddim_one_is_ancestral(schedule: Schedule, grid: Callable[[int, Schedule], Tensor]) -> None:
    """Draw for draw, none in the last interval; steps may be unequal."""
    kernel = Gaussian(schedule)
    x, times, denoise = start(kernel, 4), grid(15, schedule), DATA.denoise(kernel)
    mine, theirs = seeded(3), seeded(3)
    for one, two in zip(
        ddim(denoise, kernel, x, times, eta=1.0, generator=mine),
        ancestral(denoise, kernel, x, times, generator=theirs),
        strict=True,
    ):
        torch.testing.assert_close(one.x, two.x, rtol=1e-9, atol=1e-9)
        assert torch.equal(mine.get_state(), theirs.get_state())


@pytest.mark.parametrize(("spread", "eta"), [(0.0, None), (1.0, None), (None, 1.0)], ids=["small", "large", "ddim(1)"])
def test_the_law_of_the_ancestral_sampler(spread: float | None, eta: float | None) -> None:
    """Mean and covariance by recursion with Ho et al. 2020, eq. 7, on a respaced chain; within 5 standard errors."""
    kernel, count, times = Gaussian(DDPM), 40_000, grids.trailing(6, 1000)
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    grid = times.tolist()
    for i, (t, s) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        bar_t, bar_s = (float(DDPM(torch.tensor(u, dtype=torch.float64))[0]) ** 2 for u in (t, s))
        beta = 1 - bar_t / bar_s
        gain = math.sqrt(bar_t) * DATA.covariance @ torch.linalg.inv(bar_t * DATA.covariance + (1 - bar_t) * identity)
        of_x_0 = math.sqrt(bar_s) * beta / (1 - bar_t)
        A = of_x_0 * gain + math.sqrt(bar_t / bar_s) * (1 - bar_s) / (1 - bar_t) * identity
        offset = of_x_0 * (DATA.mean - gain @ (math.sqrt(bar_t) * DATA.mean))
        variance = beta if spread == 1.0 else beta * (1 - bar_s) / (1 - bar_t)
        mean, covariance = A @ mean + offset, A @ covariance @ A.T + (variance if i < len(grid) - 2 else 0) * identity

    def denoise(x: Tensor, t: Time) -> Belief:
        belief = DATA.denoise(kernel)(x, t)
        return belief if spread is None else Belief(belief.mean, spread)

    x = torch.randn(count, 3, generator=seeded(0), dtype=torch.float64)
    if eta is None:
        x = last(ancestral(denoise, kernel, x, times, generator=seeded(1)))
    else:
        x = last(ddim(denoise, kernel, x, times, eta=eta, generator=seeded(1)))
    deviation = covariance.diagonal().sqrt()
    assert bool(((x.mean(0) - mean).abs() < 5 * deviation / count**0.5).all())
    wide = (deviation[:, None] * deviation) * (2 / count) ** 0.5
    assert bool(((x.T.cov() - covariance).abs() < 5 * wide).all())
    other = GaussianData.standard().covariance
    assert float(((covariance - other).abs() / wide).max()) > 5  # six steps are not exact, and the test could tell


def probabilities(law: Any) -> Tensor:
    """The log-probabilities (B, L, K) of a law of tokens."""
    return law.log_probs


def chain_law(data: TokenData, kernel: Categorical, times: Tensor) -> Tensor:
    """The exact law of the ancestral sampler over all K^L states, from its product transitions."""
    K, L = kernel.K, data.L
    states = torch.cartesian_prod(*[torch.arange(K)] * L).reshape(-1, L)

    def over_states(logs: Tensor) -> Tensor:
        return torch.stack([logs[:, axis][:, states[:, axis]] for axis in range(L)]).sum(0).exp()

    law, denoise, grid = over_states(probabilities(kernel.prior(states)))[0], data.denoise(kernel), times.tolist()
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        possible = law > 0
        rows = over_states(probabilities(kernel.reverse(states[possible], denoise(states[possible], t), s, t)))
        law = law[possible] @ rows
    possible = law > 0
    return law[possible] @ over_states(denoise(states[possible], grid[-2]))


TOKENS = {
    "uniform": (uniform(Cosine(), 3), TokenData.standard(2, 3)),
    "absorbing": (absorbing(RectifiedFlow(), 4, mask=3), TokenData.standard(2, 4, without=3)),
    "marginal": (marginal(RectifiedFlow(), torch.tensor([1, 2, 4])), TokenData.standard(2, 3)),
}


@pytest.mark.parametrize("name", TOKENS)
def test_the_law_of_the_token_sampler(name: str) -> None:
    kernel, data = TOKENS[name]
    times, count, size = grids.uniform(6), 20_000, kernel.K**2
    law = chain_law(data, kernel, times)
    assert float(law.sum()) == pytest.approx(1)
    like = torch.zeros(count, 2, dtype=torch.long)
    x = last(ancestral(data.denoise(kernel), kernel, kernel.prior(like).sample(seeded(0)), times, generator=seeded(1)))
    seen = torch.bincount(x[:, 0] * kernel.K + x[:, 1], minlength=size)
    there = law > 1e-12
    assert int(seen[~there].sum()) == 0
    assert stats.chisquare(seen[there].numpy(), (law[there] * count).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("name", TOKENS)
def test_the_token_sampler_reaches_the_data(name: str) -> None:
    """Steps move tokens independently; the dependence that this loses falls like 1/n."""
    kernel, data = TOKENS[name]
    distances = [
        float((chain_law(data, kernel, grids.uniform(n)) - data.table.flatten()).abs().sum()) for n in (50, 100, 200)
    ]
    assert distances[2] < 0.02
    assert distances[0] / distances[1] == pytest.approx(2, abs=0.3)
    single = TokenData(data.table.sum(1))
    torch.testing.assert_close(chain_law(single, kernel, grids.uniform(4)), single.table, rtol=1e-10, atol=1e-12)


# What diffusers' DDIM reaches with its test suite's model x t/(t + 1) on a ramp of numbers, measured with the library:
# (grid, parametrisation, sum of |x|). `leading` was recomputed in float64, `linspace` with the right previous time.
PUBLISHED = {
    "leading": (grids.leading(10, 1000), denoisers.eps, 172.006522),
    "linspace": (grids.linspace(10, 1000), denoisers.eps, 169.464040),
    "trailing": (grids.trailing(10, 1000), denoisers.eps, 170.034963),
    "leading-v": (grids.leading(10, 1000), denoisers.v, 52.530208),
}
RAMP = (torch.arange(768, dtype=torch.float64).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def ramp_model(x: Tensor, c: Tensor) -> Tensor:
    t = c.reshape(-1, 1, 1, 1)
    return x * t / (t + 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ddim_values(name: str) -> None:
    times, parametrisation, expected = PUBLISHED[name]
    kernel = Gaussian(DDPM)
    denoiser = GaussianDenoiser(ramp_model, DDPM, parametrisation, index(1000))  # pyright: ignore[reportArgumentType]
    x = last(ddim(denoiser.given(kernel), kernel, RAMP, times))
    assert float(x.abs().sum()) == pytest.approx(expected, abs=2e-6 if name == "leading" else 2e-3)


@pytest.mark.parametrize(("parametrisation", "expected"), [(denoisers.eps, 258.961104), (denoisers.v, 202.029910)])
def test_published_ddpm_values(parametrisation: Any, expected: float) -> None:
    """1000 ancestral steps in float32, fixed-small, the mean clipped to [-1, 1], torch's generator with seed 0."""
    kernel = Gaussian(DDPM)
    network = GaussianDenoiser(ramp_model, DDPM, parametrisation, index(1000))  # pyright: ignore[reportArgumentType]
    denoise = network.given(kernel)
    generator = torch.Generator().manual_seed(0)

    def clipped(x: Tensor, t: Time) -> Belief:
        return Belief(denoise(x, t).mean.clamp(-1, 1))

    x = last(ancestral(clipped, kernel, RAMP.float(), grids.leading(1000, 1000), generator=generator))
    assert float(x.abs().sum()) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_steps_are_lazy(name: str) -> None:
    """n steps, one network call each (Heun 2 n - 1), none before it is asked for; the last time is 0."""
    kernel, calls = Gaussian(Cosine()), []

    def denoise(x: Tensor, t: Time) -> Belief:
        calls.append(t)
        return DATA.denoise(kernel)(x, t)

    times = grids.uniform(5)
    steps = ALL[name](denoise, kernel, start(kernel, 2), times)
    assert calls == []
    reached = [next(steps)]
    per_step = 2 if name == "heun" else 1
    assert len(calls) == per_step
    reached += list(steps)
    assert len(calls) == per_step * 5 - (per_step - 1)
    assert [step.t for step in reached] == times.tolist()[1:]
    torch.testing.assert_close(reached[-1].belief.mean, denoise(reached[-2].x, times.tolist()[-2]).mean)


@pytest.mark.parametrize("name", [*sorted(ALL.keys() - {"dpm++2m"}), "dpm++1s"])
def test_a_sampler_goes_on_from_a_state_sent_to_it(name: str) -> None:
    """As if it had begun there, also when its coefficients look back: those of the grid, not of the states."""
    sampler: Any = dpm_solver_pp_1s if name == "dpm++1s" else ALL[name]
    kernel, times, g = Gaussian(Cosine()), graded(5, 0.1, 1.3), seeded(3)
    steps = sampler(DATA.denoise(kernel), kernel, start(kernel, 2), times, generator=g)
    next(steps)
    moved = next(steps).x + 1
    again = seeded(0).set_state(g.get_state())
    reached = [steps.send(moved), *steps]
    alone = sampler(DATA.denoise(kernel), kernel, moved, times[2:], generator=again)
    for one, two in zip(reached, alone, strict=True):
        torch.testing.assert_close(one.x, two.x, rtol=1e-10, atol=1e-12)
        assert one.t == two.t


def test_the_adaptive_sampler_begins_anew_at_a_state_sent_to_it() -> None:
    kernel, times = Gaussian(Cosine()), graded(5, 0.1, 1.3)
    steps = adaptive(DATA.denoise(kernel), kernel, start(kernel, 2), times)
    next(steps)
    moved = next(steps).x + 1
    reached = [steps.send(moved), *steps]
    alone = adaptive(DATA.denoise(kernel), kernel, moved, times[2:])
    for one, two in zip(reached, alone, strict=True):
        torch.testing.assert_close(one.x, two.x, rtol=1e-10, atol=1e-12)


def test_tables_put_a_state_that_is_sent_in_the_place_of_their_own() -> None:
    """Weights of older states are those of the sent ones: a table that remembers returns them."""
    rows = [Row(1.0, [(0, 1.0)], [], 0.5), Row(None, [(1, 2.0)], [], 0.4), Row(None, [(0, 1.0), (1, 10.0)], [], 0.0)]
    kernel, x = Gaussian(Cosine()), torch.ones(2, 3)
    steps = follow(rows, DATA.denoise(kernel), kernel, x)
    assert torch.equal(next(steps).x, x)
    assert torch.equal(steps.send(3 * x).x, 6 * x)
    assert torch.equal(next(steps).x, 31 * x)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("schedule", ["cosine", "linear", "exploding"])
def test_one_grid_for_all_is_a_grid_for_each(name: str, schedule: str) -> None:
    kernel = Gaussian(SCHEDULES[schedule])
    x, times, denoise = start(kernel, 3), grids.uniform(6, SCHEDULES[schedule]), DATA.denoise(kernel)
    options = {"generator": [seeded(i) for i in range(3)]} if name in ("ancestral", "ddim(1)") else {}
    again = {"generator": [seeded(i) for i in range(3)]} if options else {}
    one = last(ALL[name](denoise, kernel, x, times, **options))
    two = last(ALL[name](denoise, kernel, x, times.unsqueeze(1).expand(-1, 3), **again))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_examples_do_not_see_their_neighbours(name: str) -> None:
    """Different neighbours, another batch size, another grid next door: the same result."""
    kernel, denoise = Gaussian(Cosine()), DATA.denoise(Gaussian(Cosine()))
    x = start(kernel, 4)
    columns = torch.stack([graded(6, 0.1, power) for power in (1.0, 1.3, 1.6, 2.0)], 1)
    stochastic = name in ("ancestral", "ddim(1)")
    options = {"generator": [seeded(i) for i in range(4)]} if stochastic else {}
    whole = last(ALL[name](denoise, kernel, x, columns, **options))
    for i in range(4):
        options = {"generator": [seeded(i)]} if stochastic else {}
        alone = last(ALL[name](denoise, kernel, x[i : i + 1], columns[:, i], **options))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_gradients_flow_to_the_start(name: str) -> None:
    kernel, denoise = Gaussian(Cosine()), DATA.denoise(Gaussian(Cosine()))
    times = grids.uniform(4)
    x = start(kernel, 2).requires_grad_()

    def run(x: Tensor) -> Tensor:
        options = {"generator": seeded(0)} if name in ("ancestral", "ddim(1)") else {}
        return last(ALL[name](denoise, kernel, x, graded(4, 0.1, 1.0) * 0.95, **options))

    (gradient,) = torch.autograd.grad(run(x).sum(), x)
    direction = torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    difference = (run(x + 1e-6 * direction) - run(x - 1e-6 * direction)).sum() / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(difference.detach()), rel=1e-6)
    assert float(gradient.abs().min()) > 0
    with torch.no_grad():
        next(ALL[name](denoise, kernel, start(kernel, 2), times))
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("name", ALL)
def test_clouds_stay_centred(name: str) -> None:
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    times = torch.stack([graded(8, 0.05, power) for power in (1.0, 1.5, 2.0)], 1)
    options = {"generator": seeded(0)} if name in ("ancestral", "ddim(1)") else {}
    step = None
    for step in ALL[name](clouds.denoise(kernel), kernel, x, times, **options):
        torch.testing.assert_close(kernel.project(step.x), step.x, rtol=0, atol=1e-12)
    assert step is not None
    if name == "heun":
        # The flow of a centred normal only rescales it.
        torch.testing.assert_close(step.x, x * clouds.deviation, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ALL)
def test_bad_grids_are_named_before_the_network_is_called(name: str) -> None:
    kernel = Gaussian(Cosine())
    for times in (torch.tensor([1.0, 0.5]), torch.tensor([0.2, 0.6, 0.0]), torch.tensor([1.0])):
        with pytest.raises(ArgumentError, match="^times"):
            next(ALL[name](None, kernel, torch.zeros(2, 3), times))


def test_bad_options_are_named() -> None:
    kernel, x = Gaussian(Cosine()), torch.zeros(2, 3)
    for eta in (-0.1, 1.5, math.nan):
        with pytest.raises(ArgumentError, match="^eta"):
            next(ddim(DATA.denoise(kernel), kernel, x, grids.uniform(3), eta=eta))
    path: Any = Coupled(RectifiedFlow(), lambda x, generator: x)
    with pytest.raises(ArgumentError, match="whose noise law"):
        next(ddim(DATA.denoise(kernel), path, x, grids.uniform(3), eta=0.5))
    with pytest.raises(ArgumentError, match="^coordinates"):
        next(euler(DATA.denoise(kernel), kernel, x, grids.uniform(3), coordinates=exploding))
    with pytest.raises(ArgumentError, match="^steps"):
        last([])
