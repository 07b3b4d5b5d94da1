"""The optimal reverse variance against closed forms, quadrature and the bound that it improves."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.analytic import (
    Analytic,
    PosteriorVariance,
    analytic_ddim,
    ceiling,
    measure,
    residual,
    score_norm,
)
from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import elbo
from polydiff.core.clouds import Centred
from polydiff.core.distributions import Normal
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.noise import Diagonal, Isotropic
from polydiff.core.randomness import Randomness, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, VarianceExploding
from tests.problems import Clouds, GaussianData, MixtureData

DATA, MIXTURE = GaussianData.standard(), MixtureData()
I = torch.eye(3, dtype=torch.float64)
SCHEDULES = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "subvp": SubVP(),
    "rectified": RectifiedFlow(),
    "exploding": VarianceExploding(0.05, 20.0),
}
GRIDS = {
    "3": torch.tensor([1.0, 0.5, 0.02, 0.0], dtype=torch.float64),
    "6": torch.tensor([1.0, 0.93, 0.7, 0.4, 0.15, 0.01, 0.0], dtype=torch.float64),
}


def at(schedule: Schedule, t: float) -> tuple[float, float]:
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def open_variance(alpha: float, sigma: float) -> float:
    """tr Cov(x_0 | x_t)/d of the Gaussian problem, from the joint covariance of x_0 and x_t."""
    cross, own = alpha * DATA.covariance, alpha**2 * DATA.covariance + sigma**2 * I
    return float((DATA.covariance - cross @ torch.linalg.inv(own) @ cross).trace() / 3)


def exact_table(schedule: Schedule, times: Tensor) -> PosteriorVariance:
    values = [open_variance(*at(schedule, t)) for t in times[:-1].tolist()]
    return PosteriorVariance(tuple(schedule.log_snr(times[:-1]).tolist()), tuple(values), 1.0)


def optimal(schedule: Schedule, s: float, t: float, eta: float) -> float:
    """tr Cov(x_s | x_t)/d under DDIM(eta)'s joint law, by conditioning normals."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = at(schedule, s), at(schedule, t)
    fresh = eta**2 * sigma_s**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    cross = alpha_s * alpha_t * DATA.covariance + math.sqrt(sigma_s**2 - fresh) * sigma_t * I
    own_s, own_t = (a**2 * DATA.covariance + b**2 * I for a, b in ((alpha_s, sigma_s), (alpha_t, sigma_t)))
    return float((own_s - cross @ torch.linalg.inv(own_t) @ cross.T).trace() / 3)


class Ones(Isotropic):
    """Draws ones, so that a sampler's weight of the noise can be read off."""

    size = 1.0

    def draw(self, like: Tensor, generator: Randomness = None) -> Tensor:
        return torch.full_like(like, self.size)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_is_the_optimal_isotropic_variance(name: str, grid: str) -> None:
    """The mean variance of x_s given x_t, for ancestral steps and DDIM(eta), on every step of every grid."""
    schedule, times, noise = SCHEDULES[name], GRIDS[grid], Ones()
    kernel, table = Gaussian(schedule, noise), exact_table(schedule, times)
    denoise, x = Analytic(DATA.denoise(kernel), kernel, times, table), DATA.sample(2, seeded(0))
    for t, s in zip(times[:-2].tolist(), times[1:-1].tolist(), strict=True):
        law = kernel.reverse(x, denoise(x, t), s, t)
        assert isinstance(law, Normal)
        assert float(law.scale) ** 2 == pytest.approx(optimal(schedule, s, t, 1.0), rel=1e-9)
        torch.testing.assert_close(law.mean, kernel.posterior(x, DATA.denoise(kernel)(x, t), s, t).mean)
    for eta in (0.0, 0.5, 1.0):
        path: dict[float, list[Tensor]] = {}
        for size in (0.0, 1.0):
            noise.size = size
            steps = analytic_ddim(DATA.denoise(kernel), kernel, x, times, table=table, eta=eta)
            path[size] = [step.x for step in steps]
        # The first step from the same state: what the noise adds is its weight.
        weight = path[1.0][0] - path[0.0][0]
        assert float(weight[0, 0]) ** 2 == pytest.approx(
            optimal(schedule, times[1].item(), times[0].item(), eta), rel=1e-9
        )
        noise.size = 0.0
        final = list(analytic_ddim(DATA.denoise(kernel), kernel, path[1.0][-2], times[-2:], table=table, eta=eta))
        torch.testing.assert_close(final[0].x, DATA.denoise(kernel)(path[1.0][-2], times[-2].item()).mean)


@pytest.mark.parametrize("statistic", [residual, score_norm])
def test_estimate_on_gaussian_data(statistic) -> None:
    schedule, count = LinearBeta(), 20_000
    kernel, times = Gaussian(schedule), torch.tensor([0.8, 0.5, 0.2, 0.05, 0.0], dtype=torch.float64)
    x_0 = DATA.sample(count, seeded(0))
    halves = [
        measure(DATA.denoise(kernel), kernel, half, times, statistic=statistic, generator=seeded(1 + i))
        for i, half in enumerate(x_0.split(count // 4))
    ]
    table = halves[0] + halves[1] + halves[2] + halves[3]
    assert table.dims == 3 * count
    for i, t in enumerate(times[:-1].tolist()):
        parts = torch.tensor([half.squares[i] / half.dims for half in halves])
        truth = open_variance(*at(schedule, t))
        alpha, sigma = at(schedule, t)
        # Standard errors from above: of |x_0 - x_0_hat|^2, and of |eps_hat|^2, whose variance is at most 2 d.
        error = truth if statistic is residual else (sigma / alpha) ** 2
        assert float(parts.mean()) == pytest.approx(truth, abs=5 * error * math.sqrt(2 / count))
        if t < 0.6:
            assert float(table.at(schedule.log_snr(torch.tensor(t)))) == pytest.approx(float(parts.mean()), rel=1e-6)


def mixture_open_variance(alpha: float, sigma: float) -> float:
    """E tr Cov(x_0 | x_t)/2 of the mixture by quadrature over the plane."""
    spread = (alpha * MIXTURE.deviation) ** 2 + sigma**2
    axis = torch.linspace(-1, 1, 401, dtype=torch.float64) * (1.2 * alpha + 7 * math.sqrt(spread))
    x = torch.cartesian_prod(axis, axis)
    squares = ((x[:, None] - alpha * MIXTURE.centres) ** 2).sum(-1)
    joint = MIXTURE.weights * torch.exp(-squares / (2 * spread)) / (2 * math.pi * spread)
    density = joint.sum(1, keepdim=True).clamp_min(1e-300)
    gain = alpha * MIXTURE.deviation**2 / spread
    means = MIXTURE.centres + gain * (x[:, None] - alpha * MIXTURE.centres)
    within = MIXTURE.deviation**2 * (1 - alpha * gain)
    shares = (joint / density).unsqueeze(-1)
    mean = (shares * means).sum(1)
    between = (shares * (means - mean.unsqueeze(1)) ** 2).sum((1, 2)) / 2
    return float(((within + between) * density[:, 0]).sum() * (axis[1] - axis[0]) ** 2)


@pytest.mark.parametrize("statistic", [residual, score_norm])
def test_estimate_on_the_mixture(statistic) -> None:
    schedule, count = RectifiedFlow(), 40_000
    kernel, times = Gaussian(schedule), torch.tensor([0.7, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    table = measure(
        MIXTURE.denoise(kernel),
        kernel,
        MIXTURE.sample(count, seeded(0)),
        times,
        statistic=statistic,
        generator=seeded(1),
    )
    for i, t in enumerate(times[:-1].tolist()):
        alpha, sigma = at(schedule, t)
        error = 5 * min(2.0, (sigma / alpha) ** 2) / math.sqrt(count) * (2 if statistic is score_norm else 1)
        assert table.squares[i] / table.dims == pytest.approx(mixture_open_variance(alpha, sigma), abs=error)


@pytest.mark.parametrize("steps", [4, 10, 30])
@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_improves_the_bound_over_both_fixed_choices(schedule: Schedule, steps: int) -> None:
    """Strictly, on every sub-grid, by one table that was measured on other times and other data."""
    kernel, count = Gaussian(schedule), 4000
    denoise = MIXTURE.denoise(kernel)
    fine = grids.log_snr(60, schedule, low=-9, high=9)
    table = measure(denoise, kernel, MIXTURE.sample(2000, seeded(5)), fine, generator=seeded(6))
    times = grids.log_snr(steps, schedule, low=-7, high=6)
    x_0, truth = MIXTURE.sample(count, seeded(0)), []

    def gaps(belief_of) -> Tensor:
        return elbo(belief_of, kernel, x_0, times, generator=seeded(1)).gaps.sum(0)

    def fixed(spread: float):
        return lambda x, t: Belief(denoise(x, t).mean, spread)

    best = gaps(Analytic(denoise, kernel, times, table))
    for spread in (0.0, 1.0):
        gain = gaps(fixed(spread)) - best
        assert float(gain.mean()) > 3 * float(gain.std()) / count**0.5, spread
        truth.append(float(gain.mean()))
    assert min(truth) > 1e-4


def test_the_paper_s_bounds_hold_for_any_denoiser() -> None:
    """0 <= Gamma <= (sigma/alpha)^2 and ((b - a)/2)^2, whatever was measured."""
    schedule = LinearBeta()
    kernel, times = Gaussian(schedule), torch.tensor([0.9, 0.5, 0.1, 0.01, 0.0], dtype=torch.float64)
    x_0, log_snr = MIXTURE.sample(500, seeded(0)), schedule.log_snr(times[:-1])
    bad = measure(lambda x, t: Belief(5 + 0 * x), kernel, x_0, times, generator=seeded(1))
    torch.testing.assert_close(bad.at(log_snr)[1:], torch.exp(-log_snr)[1:])
    assert bool((bad.at(log_snr, ceiling(-1, 1)) <= 1.0).all())
    assert float(bad.at(log_snr, ceiling(-1, 3))[0]) == pytest.approx(4.0)
    worse = measure(lambda x, t: Belief(9 * x), kernel, x_0, times, statistic=score_norm, generator=seeded(1))
    assert max(worse.squares[1:]) < 0
    assert bool((worse.at(log_snr) >= 0).all())
    spread = Analytic(lambda x, t: Belief(9 * x), kernel, times, worse).spread
    assert float(spread[1:].abs().max()) < 1e-12
    # The largest variance, (1 - c) sigma_t^2 (alpha_s/alpha_t)^2, lies above "fixed large".
    large = Analytic(lambda x, t: Belief(5 + 0 * x), kernel, times, bad)
    law = kernel.reverse(x_0, large(x_0, 0.1), 0.01, 0.1)
    assert isinstance(law, Normal)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = at(schedule, 0.01), at(schedule, 0.1)
    kept = 1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
    assert float(law.scale) ** 2 == pytest.approx(kept * sigma_t**2 * (alpha_s / alpha_t) ** 2, rel=1e-9)
    assert float(large.spread[2]) > 1


def test_table_interpolates_and_travels_as_json() -> None:
    schedule = LinearBeta()
    fine = grids.log_snr(80, schedule, low=-9, high=9)
    table = exact_table(schedule, fine)
    assert PosteriorVariance(**json.loads(json.dumps(dataclasses.asdict(table)))) == table
    for log_snr in (-20.0, -math.inf, -3.3, 0.1, 4.2, 8.9, 14.0, 60.0):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-log_snr))), math.sqrt(1 / (1 + math.exp(min(log_snr, 700))))
        found = float(table.at(torch.tensor(log_snr, dtype=torch.float64)))
        assert found == pytest.approx(open_variance(alpha, sigma), rel=2e-3), log_snr
    known = torch.tensor(table.log_snr, dtype=torch.float64)
    torch.testing.assert_close(table.at(known), torch.tensor(table.squares, dtype=torch.float64))
    single = PosteriorVariance((0.0,), (0.4,), 2.0)
    assert single.at(torch.tensor([-5.0, 0.0])).tolist() == pytest.approx([0.2, 0.2])
    # Beyond its end a table falls as (sigma/alpha)^2, by the share of its last entry, which the bound alone would lose.
    beyond = torch.tensor([0.5, 3.0, 60.0], dtype=torch.float64)
    for short in (single, PosteriorVariance((-1.0, 0.0), (1.0, 0.4), 2.0)):
        torch.testing.assert_close(short.at(beyond), 0.2 * torch.exp(-beyond), rtol=1e-12, atol=0)


@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_ancestral_and_ddim_of_eta_1_agree_on_clouds(ragged: bool) -> None:
    clouds = Clouds([2, 4, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    times = grids.uniform(6)
    x_0 = clouds.sample(kernel, seeded(0))
    table = measure(clouds.denoise(kernel), kernel, x_0, times, generator=seeded(1))
    assert table.dims == 18.0
    if ragged:
        times = torch.stack([times, times**1.5, times**0.8], 1)
    x = kernel.prior(x_0).sample(seeded(2))
    denoise = clouds.denoise(kernel)
    one = last(ancestral(Analytic(denoise, kernel, times, table), kernel, x, times, generator=seeded(3)))
    two = last(analytic_ddim(denoise, kernel, x, times, table=table, eta=1.0, generator=seeded(3)))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    if ragged:
        alone = times[:, 1]
        column = Analytic(denoise, kernel, alone, table)
        torch.testing.assert_close(column.spread, Analytic(denoise, kernel, times, table).spread[:, 1])
    bound = elbo(Analytic(denoise, kernel, times, table), kernel, x_0, times, generator=seeded(4))
    assert bool(bound.total.isfinite().all())


def test_diagonal_laws_and_a_time_per_example_on_a_common_grid() -> None:
    noise = Diagonal(torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64))
    kernel, times = Gaussian(SubVP(), noise), GRIDS["6"]
    denoise = lambda x, t: Belief(0.5 * x)  # noqa: E731
    x = noise.project(DATA.sample(2, seeded(0)))
    table = measure(denoise, kernel, x, times, generator=seeded(1))
    assert table.dims == 4.0
    bound = Analytic(denoise, kernel, times, table)
    pair = bound(x, times[[1, 3]]).spread
    assert isinstance(pair, Tensor)
    assert pair.tolist() == [bound(x, times[i].item()).spread for i in (1, 3)]
    law = kernel.reverse(x, bound(x, times[[1, 3]]), times[[2, 4]], times[[1, 3]])
    assert isinstance(law, Normal)
    scales = torch.as_tensor(law.scale)
    for i in (1, 3):
        single = kernel.reverse(x, bound(x, times[i].item()), times[i + 1].item(), times[i].item())
        assert isinstance(single, Normal)
        assert float(scales[(i - 1) // 2]) == pytest.approx(float(single.scale), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("schedule", [Cosine(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_isotropic_data_are_sampled_exactly_by_any_grid(schedule: Schedule, eta: float) -> None:
    """There the optimal reverse law is the true one: four steps give the marginal at t_1."""
    data = GaussianData(torch.tensor([0.4, -0.3]), 0.25 * torch.eye(2))
    kernel, times = Gaussian(schedule), torch.tensor([1.0, 0.7, 0.5, 0.2, 0.0], dtype=torch.float64)
    table = PosteriorVariance(
        tuple(schedule.log_snr(times[:-1]).tolist()),
        tuple(
            0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2)
            for alpha, sigma in (at(schedule, t) for t in times[:-1].tolist())
        ),
        1.0,
    )
    count = 20_000
    x = kernel.marginal(data.sample(count, seeded(0)), 1.0).sample(seeded(1))
    steps = list(analytic_ddim(data.denoise(kernel), kernel, x, times, table=table, eta=eta, generator=seeded(2)))
    (alpha, sigma), found = at(schedule, 0.2), steps[-2].x
    variance = 0.25 * alpha**2 + sigma**2
    assert bool(((found.mean(0) - alpha * data.mean).abs() < 5 * math.sqrt(variance / count)).all())
    assert bool(((found.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all())


def test_bad_arguments_are_named() -> None:
    kernel, times = Gaussian(Cosine()), GRIDS["3"]
    x, table = DATA.sample(2, seeded(0)), exact_table(Cosine(), GRIDS["3"])
    denoise = DATA.denoise(kernel)
    bound = Analytic(denoise, kernel, times, table)
    for run, name in (
        (lambda: bound(x, 0.51), "t"),
        (lambda: bound(x, torch.tensor([0.5, 0.51])), "t"),
        (lambda: measure(denoise, kernel, x, torch.stack([times, times], 1)), "times"),
        (lambda: measure(denoise, kernel, x, times, statistic=score_norm), "times"),
        (lambda: PosteriorVariance((1.0, 0.0), (1.0, 1.0), 1.0), "log_snr"),
        (lambda: PosteriorVariance((1.0,), (1.0,), 0.0), "dims"),
        (lambda: table + PosteriorVariance((1.0,), (1.0,), 1.0), "other"),
        (lambda: ceiling(1, 1), "low"),
        (lambda: next(analytic_ddim(denoise, kernel, x, times, table=table, eta=1.5)), "eta"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            run()
