"""Imputation of a multivariate normal law with the exact denoiser: samplers, bounds and likelihoods beside algebra."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import elbo
from polydiff.core.ddim import ddim
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.dpm_solver_sde import dpm_solver_pp_sde
from polydiff.core.gaussian import Gaussian
from polydiff.core.grids import log_snr, uniform
from polydiff.core.inpainting import jumps, particle_inpaint, repaint
from polydiff.core.likelihood import log_likelihood
from polydiff.core.ode import heun
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, RectifiedFlow, Schedule
from polydiff.timeseries.kernel import targets
from polydiff.timeseries.tiny import case
from tests.timeseries.series import NormalSeries, affine_law, each, numbers

SERIES = NormalSeries()
KNOWN = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
VALUES = SERIES.sample(1, seed=5)[0]
MEAN, COVARIANCE = SERIES.conditional(VALUES, KNOWN)
SCHEDULE = RectifiedFlow()  # alpha_1 = 0: the prior is where the process ends


def kernel_of(**structure: Any) -> Gaussian:
    return targets(SCHEDULE).given(**structure)


def run(sampler: Any, times: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return affine_law(sampler, kernel_of, SERIES, VALUES, KNOWN, times, asked=~KNOWN, **options)


def distance(law: tuple[Tensor, Tensor], mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> float:
    """The largest error of a mean or a covariance."""
    return max(float((law[0] - mean).abs().max()), float((law[1] - covariance).abs().max()))


def test_the_exact_denoiser_is_the_conditional_mean() -> None:
    """Beside one conditioning of the joint law of (x_0, x_t, given) of all cells at once."""
    kernel, t = kernel_of(mask=~KNOWN.unsqueeze(0)), 0.4
    alpha, sigma = numbers(kernel.schedule, t)
    x_t = kernel.marginal(VALUES.unsqueeze(0).masked_fill(KNOWN, 0), t).sample(seeded(0))
    belief = SERIES.denoise(kernel, VALUES.unsqueeze(0), KNOWN.unsqueeze(0))(x_t, t).mean.flatten()
    G, T, C = KNOWN.flatten(), ~KNOWN.flatten(), SERIES.covariance
    told = torch.cat([x_t.flatten()[T] - alpha * SERIES.mean[T], VALUES.flatten()[G] - SERIES.mean[G]])
    inner = alpha**2 * C[T][:, T] + sigma**2 * torch.eye(int(T.sum()), dtype=torch.float64)
    joint = torch.cat([torch.cat([inner, alpha * C[T][:, G]], 1), torch.cat([alpha * C[G][:, T], C[G][:, G]], 1)])
    cross = torch.cat([alpha * C[T][:, T], C[T][:, G]], 1)
    expected = SERIES.mean[T] + cross @ torch.linalg.solve(joint, told)
    torch.testing.assert_close(belief[T], expected, rtol=1e-10, atol=1e-10)
    assert bool((belief[G] == 0).all())


def by_axes(times: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """The law of DDIM(eta) on a grid: along the axes of the conditional covariance a product of numbers."""
    variances, axes = torch.linalg.eigh(COVARIANCE)
    there = (axes * (~KNOWN).flatten().double().unsqueeze(1)).norm(dim=0)  # 0 or 1: axes of the given cells
    mean, spread = torch.zeros_like(MEAN), there.clone()
    grid = times.tolist()
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = numbers(SCHEDULE, t), numbers(SCHEDULE, s)
        gain = alpha_t * variances / (alpha_t**2 * variances + sigma_t**2)
        # x = alpha m + y: the belief is m + gain y, and so is the noise that it sees, (1 - alpha gain) y / sigma.
        v = eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2) * sigma_s**2
        of_y = alpha_s * gain + math.sqrt(sigma_s**2 - v) * (1 - alpha_t * gain) / sigma_t
        mean = of_y * mean if t < 1 else of_y * (mean - alpha_t * (axes.T @ MEAN))
        spread = of_y**2 * spread + v * there
    return MEAN + axes @ mean, (axes * spread) @ axes.T


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_coarse_grids_give_the_law_that_algebra_says(steps: int) -> None:
    times = uniform(steps)
    for sampler, eta, draws, options in (
        (ancestral, 1.0, steps - 1, {}),
        (ddim, 1.0, steps - 1, {"eta": 1.0}),
        (ddim, 0.6, steps - 1, {"eta": 0.6}),
        (ddim, 0.0, 0, {}),
    ):
        assert distance(run(sampler, times, draws=draws, **options), *by_axes(times, eta)) < 1e-11


@pytest.mark.parametrize(
    ("sampler", "grid", "order", "bound", "draws"),
    [
        (ancestral, uniform, 1, 0.05, 1),
        (ddim, uniform, 1, 0.03, 0),
        (dpm_solver_pp_2m, log_snr, 2, 1e-3, 0),
        (heun, log_snr, 2, 1e-3, 0),
    ],
)
def test_samplers_recover_the_conditional_mean_and_covariance(
    sampler: Any, grid: Any, order: int, bound: float, draws: int
) -> None:
    """To a stated distance at 160 steps, by the sampler's order nearer than at 80. Nothing is drawn: laws are exact."""
    errors = []
    for n in (80, 160):
        law = run(sampler, grid(n, SCHEDULE), draws=draws * (n - 1))
        assert bool((law[0].reshape(KNOWN.shape)[KNOWN] == 0).all())
        assert bool((law[1][KNOWN.flatten()] == 0).all())
        errors.append(distance(law))
    assert errors[1] < bound
    assert errors[0] > 0.75 * 2**order * errors[1]


def test_ten_calls_of_the_default_solvers_are_near() -> None:
    """At the ten calls of an imputation: nearer than ten ancestral steps in law, which make it too narrow."""
    times = log_snr(10, SCHEDULE)
    coarse = run(ancestral, times, draws=9)
    ours = distance(run(dpm_solver_pp_2m, times))
    assert ours < distance(coarse) / 3
    assert distance(run(dpm_solver_pp_sde, times, draws=9)) < distance(coarse)
    assert float(coarse[1].trace()) < 0.97 * float(COVARIANCE.trace())


def test_one_map_from_noise_to_data() -> None:
    """The flow's linear part A is symmetric and A A' the covariance: the quantile map along each axis."""
    D = VALUES.numel()
    kernel = kernel_of(mask=each(~KNOWN, 1 + D))
    z = torch.cat([torch.zeros(1, D), torch.eye(D)]).double().reshape(-1, *KNOWN.shape)
    denoise = SERIES.denoise(kernel, VALUES.unsqueeze(0), KNOWN.unsqueeze(0))
    x = last(heun(denoise, kernel, kernel.project(z), log_snr(160, SCHEDULE))).flatten(1)
    A = (x[1:] - x[0]).T
    values, axes = torch.linalg.eigh(COVARIANCE)
    torch.testing.assert_close(A, (axes * values.clamp_min(0).sqrt()) @ axes.T, rtol=0, atol=1e-3)


# ------------------------------------------------------------------------- the unconditional model, beside


def test_replacement_comes_near_the_conditional_law_with_many_rounds_only() -> None:
    """RePaint on the model of all cells: also affine in its noise, so its law is exact. The conditional model, with a
    fifteenth of the calls, is nearer."""
    times, everything = uniform(20), torch.ones_like(KNOWN)
    mean, covariance = MEAN + VALUES.masked_fill(~KNOWN, 0).flatten(), COVARIANCE
    errors = []
    for resamples in (1, 3, 8):
        walk = jumps(20, 4, resamples)
        ups = sum(b < a for a, b in zip(walk, walk[1:], strict=False))
        downs = len(walk) - 1 - ups
        draws = ups + 2 * (downs - 1)
        law = affine_law(
            repaint, kernel_of, SERIES, VALUES, torch.zeros_like(KNOWN), times,
            asked=everything, draws=draws, known=VALUES, mask=KNOWN, jump=4, resamples=resamples,
        )  # fmt: skip
        assert bool((law[0].reshape(KNOWN.shape)[KNOWN] == VALUES[KNOWN]).all())
        errors.append(distance(law, mean, covariance))
    assert errors[0] > 1.3 * errors[1] > 1.3**2 * errors[2]
    assert distance(run(dpm_solver_pp_2m, log_snr(20, SCHEDULE))) < errors[2] / 5


@torch.no_grad()
def test_particles_on_the_unconditional_model_reach_the_conditional_law() -> None:
    """Means within 4.5 standard errors, with what the grid of 40 steps is off by, 0.03."""
    problems, particles = 150, 48
    rows = problems * particles
    kernel = kernel_of(mask=torch.ones(rows, *KNOWN.shape, dtype=torch.bool))
    known = each(VALUES, rows)
    denoise = SERIES.denoise(kernel, VALUES.unsqueeze(0), torch.zeros_like(KNOWN).unsqueeze(0))
    options: dict[str, Any] = {"known": known, "mask": KNOWN, "particles": particles, "generator": seeded(2)}
    x = kernel.prior(known).sample(seeded(1))
    x = last(particle_inpaint(denoise, kernel, x, uniform(40), **options))
    assert bool((x[:, KNOWN] == VALUES[KNOWN]).all())
    T = ~KNOWN.flatten()
    first = x[::particles].flatten(1)[:, T]
    error = ((first.mean(0) - MEAN[T]) / COVARIANCE.diagonal()[T].sqrt()).abs()
    assert bool((error < 4.5 / math.sqrt(problems) + 0.03).all())
    ratio = first.var(0) / COVARIANCE.diagonal()[T]
    assert bool(((ratio - 1).abs() < 4.5 * math.sqrt(2 / problems) + 0.05).all())


# ----------------------------------------------------------------------------------- likelihoods and bounds

MASKS = torch.stack([KNOWN, torch.zeros_like(KNOWN), ~KNOWN, KNOWN.flip(1), torch.ones_like(KNOWN)])
"""Given cells of five windows: some, none, others, all."""


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=["rectified", "cosine"])
def test_the_likelihood_is_the_conditional_density(schedule: Schedule) -> None:
    x = SERIES.sample(len(MASKS), seed=8)
    kernel = targets(schedule).given(mask=~MASKS)
    x_0 = kernel.project(x)
    found = log_likelihood(SERIES.denoise(kernel, x, MASKS), kernel, x_0, uniform(60)).nats
    expected = torch.stack([SERIES.log_prob(*window) for window in zip(x, MASKS, strict=True)])
    error = (found - expected).abs() / kernel.dims(x_0).clamp_min(1)
    assert float(error.max()) < 1e-3
    assert float(found[-1]) == 0  # nothing is asked


@torch.no_grad()
def test_the_bound_is_above_and_near() -> None:
    """Its excess over -log p falls as 1/n, to nothing. All its terms are quadratic in the noise z, so that the mean is
    f(0) + sum over cells of (f(e) + f(-e) - 2 f(0)) / 2, exactly."""
    x, D = SERIES.sample(1, seed=8), VALUES.numel()
    kernel = kernel_of(mask=each(~KNOWN, 1 + 2 * D))
    unit = torch.eye(D, dtype=torch.float64)
    z = torch.cat([torch.zeros(1, D, dtype=torch.float64), unit, -unit]).reshape(-1, *KNOWN.shape)
    kernel.noise.standard = lambda like, generator=None: z  # pyright: ignore[reportAttributeAccessIssue]
    denoise = SERIES.denoise(kernel, x, KNOWN.unsqueeze(0))
    excesses = []
    for n in (100, 200, 400):
        bound = elbo(denoise, kernel, kernel.project(x.expand_as(z)), log_snr(n, SCHEDULE, high=12)).total
        mean = bound[0] + (bound[1:].sum() - 2 * D * bound[0]) / 2
        excesses.append(float(mean + SERIES.log_prob(x[0], KNOWN)))
    assert excesses[2] > 0
    assert excesses[0] / excesses[1] == pytest.approx(2, abs=0.15)
    assert excesses[1] / excesses[2] == pytest.approx(2, abs=0.1)
    # Extrapolated: without its terms in 1/n and 1/n^2.
    assert abs((8 * excesses[2] - 6 * excesses[1] + excesses[0]) / 3) < 2e-3


def test_the_bound_of_some_cells_is_that_of_a_kernel_of_these_alone_if_the_belief_is() -> None:
    """Blind cells add nothing: with a belief that does not look at them, bounds are equal number by number."""
    counted = ~KNOWN & torch.tensor([[True, True], [True, True], [False, True], [True, True]])
    x = SERIES.sample(3, seed=2)
    wide = kernel_of(mask=each(~KNOWN, 3), counted=each(counted, 3))
    narrow = kernel_of(mask=each(counted, 3))
    x_0 = x.masked_fill(~counted, 0)

    def half(kernel: Gaussian) -> Any:
        return lambda x_t, t: kernel.certain(kernel.project(0.5 * x_t))

    times = uniform(6)
    one, two = (elbo(half(kernel), kernel, x_0, times, generator=seeded(0)) for kernel in (wide, narrow))
    for mine, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    # What is sampled does not depend on what is counted.
    loose = kernel_of(mask=each(~KNOWN, 3))
    drawn = [
        last(
            ancestral(SERIES.denoise(k, x, each(KNOWN, 3)), k, k.prior(x).sample(seeded(1)), times, generator=seeded(2))
        )
        for k in (wide, loose)
    ]
    assert torch.equal(*drawn)


# --------------------------------------------------------------------------------- a network, on real data

SAMPLERS = [ancestral, ddim, dpm_solver_pp_2m, dpm_solver_pp_sde, heun]


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_cells_never_change_and_seeds_decide(sampler: Any) -> None:
    tiny = case()
    x_0, known, observed = tiny.x_0, tiny.condition["known"], tiny.condition["observed"]
    kernel: Any = tiny.kernel
    asked = kernel.noise.mask

    def steps(generators: Any, x_0: Tensor = x_0, chosen: Any = tiny) -> list[Any]:
        x = chosen.kernel.prior(x_0).sample(generators)
        denoise = chosen.denoiser.given(chosen.kernel, **chosen.condition)
        return list(sampler(denoise, chosen.kernel, x, uniform(5), generator=generators))

    first = steps(example_generators(0, 0, range(3)))
    for step in first:
        assert bool((step.x[~asked] == 0).all())
        assert bool((step.x[asked] != 0).all())
        filled = kernel.blend(known, observed, step.x)
        assert torch.equal(filled[known], observed[known])
    assert torch.equal(first[-1].x, steps(example_generators(0, 0, range(3)))[-1].x)
    assert not torch.equal(first[-1].x, steps(example_generators(1, 0, range(3)))[-1].x)
    # Alone, and beside other neighbours.
    alone = tiny.chosen(torch.tensor([1]))
    own = example_generators(0, 0, range(1, 2))
    torch.testing.assert_close(steps(own, alone.x_0, alone)[-1].x[0], first[-1].x[1], rtol=1e-5, atol=1e-6)
    others = tiny.chosen(torch.tensor([2, 1, 0]))
    mixed = steps([seeded(50), example_generators(0, 0, range(1, 2))[0], seeded(51)], others.x_0, others)
    torch.testing.assert_close(mixed[-1].x[1], first[-1].x[1], rtol=1e-5, atol=1e-6)
