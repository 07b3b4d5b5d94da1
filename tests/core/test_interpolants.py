"""Interpolants between two Gaussian laws, and cold degradations, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core import grids, objectives
from polydiff.core.clouds import Centred
from polydiff.core.cold import Cold, cold
from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.interpolants import Interpolant, bridge, brownian, mirrored
from polydiff.core.kernel import Time
from polydiff.core.noise import Diagonal
from polydiff.core.objectives import Denoising
from polydiff.core.ode import euler
from polydiff.core.randomness import Randomness, example_generators, randn, seeded
from polydiff.core.rectified import Coupled
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from tests.problems import Clouds, GaussianData

DATA = GaussianData.standard()
MEANS = torch.tensor([[0.5, -1.0], [-0.4, 0.3]], dtype=torch.float64)
DEVIATIONS = torch.tensor([[0.4, 1.1], [0.9, 0.3]], dtype=torch.float64)
"""Of the laws at t = 0 and at t = 1, independent."""


def draw(end: int, count: int, generator: Randomness = None) -> Tensor:
    return MEANS[end] + DEVIATIONS[end] * randn((count, 2), generator, dtype=torch.float64)


def path(scale: float = 0.8, schedule: Schedule | None = None, noise: Any = None) -> Interpolant:
    return Interpolant(lambda x_0, generator: draw(1, len(x_0), generator), schedule, brownian(scale), noise)


def moments(kernel: Interpolant, t: Time) -> tuple[Tensor, Tensor]:
    """(mean, variance) of x_t, (B or 1, 2); the latent noise is isotropic."""
    u = torch.as_tensor(t, dtype=torch.float64)
    alpha, sigma = (number.reshape(-1, 1) for number in kernel.schedule(u))
    gamma = kernel.gamma(u).reshape(-1, 1)
    variance = (alpha * DEVIATIONS[0]) ** 2 + (sigma * DEVIATIONS[1]) ** 2 + gamma**2
    return alpha * MEANS[0] + sigma * MEANS[1], variance


def belief(kernel: Interpolant, end: int) -> Callable[[Tensor, Time], Belief]:
    """The exact E[x_end | x_t]."""

    def exact(x: Tensor, t: Time) -> Belief:
        weight = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))[end].reshape(-1, 1)
        mean, variance = moments(kernel, t)
        return Belief(MEANS[end] + weight * DEVIATIONS[end] ** 2 / variance * (x - mean))

    return exact


def test_the_moments_of_the_path() -> None:
    """Three terms of the right size, independent; draws follow the generator of each example."""
    n = 30_000
    kernel = path(noise=Diagonal(torch.tensor([1.0, 0.5], dtype=torch.float64)))
    x_0, x_1 = torch.full((n, 2), 2.0).double(), torch.full((n, 2), -1.0).double()
    for t in (0.1, 0.5, 0.8):
        x = kernel.interpolate(x_0, x_1, torch.full((n,), t, dtype=torch.float64), seeded(1))
        deviation = 0.8 * math.sqrt(2 * t * (1 - t)) * torch.tensor([1.0, 0.5], dtype=torch.float64)
        z = (x.mean(0) - (2 * (1 - t) - t)) / (deviation / math.sqrt(n))
        assert float(z.abs().max()) < 4.5
        assert float((x.std(0) / deviation - 1).abs().max()) < 4.5 / math.sqrt(2 * n)
    for t, end in ((0.0, x_0), (1.0, x_1)):
        assert torch.equal(kernel.interpolate(x_0[:3], x_1[:3], torch.full((3,), t).double(), seeded(1)), end[:3])
    both = kernel.interpolate(x_0[:2], x_1[:2], torch.tensor([0.2, 0.6]).double(), example_generators(0, 0, range(2)))
    alone = kernel.interpolate(x_0[1:2], x_1[1:2], torch.tensor([0.6]).double(), example_generators(0, 0, [1]))
    torch.testing.assert_close(both[1:], alone)


def test_denoising_trains_on_it() -> None:
    """The exact belief's loss is the conditional variance: latent noise reaches the objective, from its generators."""
    kernel, t = path(), torch.full((40_000,), 0.4, dtype=torch.float64)

    class Known(nn.Module):
        def forward(self, x: Tensor, t: Tensor, kernel: Any, **condition: Any) -> Belief:
            return belief(kernel, 0)(x, t)

    denoiser: Any = Known()
    objective = Denoising(denoiser, kernel, objectives.plain, lambda schedule, count, generator: t)
    _, variance = moments(kernel, 0.4)
    left = DEVIATIONS[0] ** 2 - (0.6 * DEVIATIONS[0] ** 2) ** 2 / variance
    loss = objective({"x_0": draw(0, len(t), seeded(0))}, seeded(1))
    assert float(loss.mean()) == pytest.approx(float(left.mean()), rel=0.03)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(0.0)], ids=repr)
def test_known_ends_give_the_exact_law_on_any_grid(schedule: Schedule, eta: float) -> None:
    """With both ends known, three coarse steps from x_1 leave alpha x_0 + sigma x_1 + gamma z, to the moments."""
    n, kernel = 20_000, path(schedule=schedule)
    x_0, x_1 = torch.tensor([[0.7, -2.0]]).double(), torch.tensor([[-1.0, 0.4]]).double()
    times = torch.tensor([0.9, 0.7, 0.3, 0.1, 0.0], dtype=torch.float64)
    x = kernel.interpolate(x_0.expand(n, 2), x_1.expand(n, 2), torch.full((n,), 0.9).double(), seeded(0))

    def start(x: Tensor, t: Time) -> Belief:
        return Belief(x_0.expand_as(x))

    def other(x: Tensor, t: Time) -> Belief:
        return Belief(x_1.expand_as(x))

    steps = list(bridge(start, kernel, x, times, other=other, eta=eta, generator=seeded(1)))
    for step in steps[:-1]:
        t = torch.tensor(float(step.t), dtype=torch.float64)
        (alpha, sigma), gamma = schedule(t), kernel.gamma(t)
        z = (step.x.mean(0) - (alpha * x_0 + sigma * x_1)[0]) / gamma * math.sqrt(n)
        assert float(z.abs().max()) < 4.5
        assert float((step.x.std(0) / gamma - 1).abs().max()) < 4.5 / math.sqrt(2 * n)
    torch.testing.assert_close(steps[-1].x, x_0.expand(n, 2), rtol=0, atol=1e-12)
    # The share of fresh noise is eta's, none at 0.
    again = list(bridge(start, kernel, x, times, other=other, eta=eta, generator=seeded(2)))
    (_, sigma), gamma = schedule(times[:2]), kernel.gamma(times[:2])
    fresh = eta * (gamma[1] ** 2 - (sigma[1] * gamma[0] / sigma[0]) ** 2).sqrt()
    assert float((again[0].x - steps[0].x).std()) == pytest.approx(float(fresh) * math.sqrt(2), rel=0.03)


def test_both_beliefs_are_about_the_same_state() -> None:
    kernel, asked = path(), []

    def heard(end: int) -> Callable[[Tensor, Time], Belief]:
        exact = belief(kernel, end)

        def denoise(x: Tensor, t: Time) -> Belief:
            asked.append((end, t, x))
            return exact(x, t)

        return denoise

    last(bridge(heard(0), kernel, draw(1, 3, seeded(0)), grids.uniform(4), other=heard(1), eta=0.0))
    first, second = ([(t, x) for end, t, x in asked if end == which] for which in (0, 1))
    assert [t for t, _ in first] == [1.0, 0.75, 0.5, 0.25]
    # At t = 0 there is nothing of x_1 left to believe in.
    assert 2 <= len(second) <= 4
    for t, x in second:
        assert any(t == other and x is state for other, state in first)


def test_eta_one_is_the_brownian_bridge() -> None:
    """Towards a known x_0: mean x_0 + (s/t)(x - x_0), variance 2 a^2 s (t - s)/t, without a belief about x_1; the first
    step, where gamma = 0, included; per-example times."""
    n, a, kernel = 40_000, 0.8, path(0.8)
    x_0, x = torch.tensor([[0.7, -2.0]]).double().expand(n, 2), torch.tensor([[-1.0, 0.4]]).double().expand(n, 2)
    for t, s in ((1.0, 0.6), (0.7, 0.2)):
        times = torch.tensor([[t], [s], [0.0]], dtype=torch.float64).expand(3, n)
        step = next(bridge(lambda y, u: Belief(x_0), kernel, x, times, generator=seeded(3)))
        deviation = a * math.sqrt(2 * s * (t - s) / t)
        z = (step.x.mean(0) - (x_0 + s / t * (x - x_0))[0]) / deviation * math.sqrt(n)
        assert float(z.abs().max()) < 4.5
        assert float((step.x.std(0) / deviation - 1).abs().max()) < 4.5 / math.sqrt(2 * n)


@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(0.0)], ids=repr)
def test_the_flow_carries_one_law_to_the_other(schedule: Schedule, ragged: bool) -> None:
    """The exact flow of independent Gaussians with common axes is the quantile map between the marginals; order 1 on a
    grid that is dense where gamma has roots."""
    kernel, B = path(schedule=schedule), 3
    x = draw(1, B, seeded(0))
    mean, variance = moments(kernel, 1.0)
    errors = []
    for n in (100, 200, 400):
        times = torch.sin(math.pi / 2 * grids.uniform(n)) ** 2
        if ragged:
            times = torch.stack([times**p for p in (1.0, 1.3, 0.8)], 1)
        end = last(bridge(belief(kernel, 0), kernel, x, times, other=belief(kernel, 1), eta=0.0))
        exact = MEANS[0] + DEVIATIONS[0] * (x - mean) / variance.sqrt()
        errors.append(float((end - exact).abs().max()))
    assert errors[2] < 0.05 and math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.15), errors


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_diffusion_keeps_the_marginals(eta: float) -> None:
    """From draws of the law at 1: mean and variance at the end and on the way, to Monte Carlo and the grid's error."""
    kernel, n = path(), 10_000
    other = belief(kernel, 1) if eta < 1 else None
    x, times = draw(1, n, seeded(0)), torch.sin(math.pi / 2 * grids.uniform(240)) ** 2
    states = {
        round(float(step.t), 6): step.x
        for step in bridge(belief(kernel, 0), kernel, x, times, other=other, eta=eta, generator=seeded(1))
    }
    for t in (0.75, 0.5, 0.25, 0.0):
        mean, variance = moments(kernel, t)
        assert float(((states[t].mean(0) - mean) / variance.sqrt()).abs().max()) < 0.05
        assert float((states[t].var(0) / variance - 1).abs().max()) < 0.08


def test_without_latent_noise_it_is_ddim_and_needs_no_second_belief() -> None:
    kernel, plain = path(0.0), Coupled(RectifiedFlow(), lambda x, generator: x)
    x, times = draw(1, 4, seeded(0)), grids.uniform(9)
    for eta in (0.0, 1.0):
        ours = last(bridge(belief(kernel, 0), kernel, x, times, eta=eta, generator=seeded(1)))
        theirs = last(euler(belief(kernel, 0), plain, x, times))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_latent_noise_of_clouds_stays_centred() -> None:
    clouds = Clouds([2, 4, 3])
    noise = Centred().given(**clouds.structure)
    kernel = Interpolant(lambda x, generator: 2 * noise.draw(x, generator), noise=noise)
    x_0 = noise.draw(torch.zeros(9, 3, dtype=torch.float64), seeded(0))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x_t = kernel.interpolate(x_0, kernel.pair(x_0, seeded(1)), t, seeded(2))
    torch.testing.assert_close(noise.project(x_t), x_t)
    times = torch.stack([t, t / 2, torch.zeros(3).double()])
    generators = example_generators(0, 0, range(3))
    states = [step.x for step in bridge(lambda x, u: Belief(x_0), kernel, x_t, times, generator=generators)]
    torch.testing.assert_close(noise.project(states[0]), states[0])
    torch.testing.assert_close(states[1], x_0)


def test_mirrored_reads_the_swapped_path() -> None:
    """E[x_1 | x_t] is the swapped path's E[x_0 | x_(1-t)], formed here from the swapped laws."""
    kernel, x = path(), draw(0, 3, seeded(0))

    def swapped(y: Tensor, u: Time) -> Belief:
        share = torch.as_tensor(u, dtype=torch.float64).reshape(-1, 1)
        a, b = (1 - share) * DEVIATIONS[1], share * DEVIATIONS[0]
        variance = a**2 + b**2 + 2 * 0.8**2 * share * (1 - share)
        mean = (1 - share) * MEANS[1] + share * MEANS[0]
        return Belief(MEANS[1] + a * DEVIATIONS[1] / variance * (y - mean))

    for t in (0.2, torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)):
        torch.testing.assert_close(mirrored(swapped)(x, t).mean, belief(kernel, 1)(x, t).mean)


def test_what_cannot_be_used_is_refused() -> None:
    kernel, x = path(), torch.zeros(1, 2).double()
    with pytest.raises(ArgumentError, match="other"):
        bridge(belief(kernel, 0), kernel, x, grids.uniform(3), eta=0.5)
    with pytest.raises(ArgumentError, match="eta"):
        bridge(belief(kernel, 0), kernel, x, grids.uniform(3), eta=1.5)
    gaussian: Any = Gaussian(RectifiedFlow())
    with pytest.raises(ArgumentError, match="kernel"):
        bridge(belief(kernel, 0), gaussian, x, grids.uniform(3))
    with pytest.raises(ArgumentError):
        brownian(-1.0)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow(), VarianceExploding()], ids=repr)
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_cold_sampling_of_noise_is_ddim(schedule: Schedule, ragged: bool) -> None:
    """Bansal et al. 2023, appendix on DDIM: with D(x_0, t) = alpha x_0 + sigma x_1_hat."""
    kernel = Gaussian(schedule)
    times = grids.uniform(7, schedule)
    if ragged:
        inner = torch.tensor([0.9, 1.0, 0.8], dtype=torch.float64)
        times = torch.cat([times[:1].expand(1, 3), times[1:, None] * inner])
    x = kernel.marginal(DATA.sample(3, seeded(0)), 1.0).sample(seeded(1))
    for ours, theirs in zip(
        cold(DATA.denoise(kernel), kernel, x, times), ddim(DATA.denoise(kernel), kernel, x, times), strict=True
    ):
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)


def test_cold_sampling_forgives_any_restoration_where_the_severity_is_linear() -> None:
    """D(x, t) = x + t e(class): x_s = D(x_0, s) for every restoration, however wrong (Bansal et al. 2023, sec. 3.3)."""
    e = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    kernel = Cold(lambda x, t: x + t.reshape(-1, 1) * e)
    x_0 = DATA.sample(4, seeded(0))
    steps = list(cold(lambda x, t: Belief(torch.sin(3 * x)), kernel, kernel.pair(x_0), grids.uniform(5)))
    for step in steps:
        torch.testing.assert_close(step.x, x_0 + float(step.t) * e, rtol=1e-12, atol=1e-12)


def test_cold_training_and_an_exact_restoration() -> None:
    """D fades all but the mean: its inverse restores it, the objective's loss is 0, and every step lies on the path."""
    kernel = Cold(lambda x, t: x.mean(1, keepdim=True) + (1 - 0.9 * t).reshape(-1, 1) * (x - x.mean(1, keepdim=True)))

    class Restore(nn.Module):
        def forward(self, x: Tensor, t: Time, kernel: Any = None, **condition: Any) -> Belief:
            mean, u = x.mean(1, keepdim=True), torch.as_tensor(t, dtype=torch.float64)
            return Belief(mean + (x - mean) / (1 - 0.9 * u).reshape(-1, 1))

    restore: Any = Restore()
    x_0 = DATA.sample(5, seeded(0))
    loss = Denoising(restore, kernel, objectives.plain)({"x_0": x_0}, example_generators(0, 0, range(5)))
    assert loss.shape == (5,) and float(loss.max()) < 1e-20
    times = torch.stack([grids.uniform(4) ** p for p in (0.5, 1.0, 1.5, 2.0, 3.0)], 1)
    for step in cold(restore, kernel, kernel.pair(x_0), times):
        torch.testing.assert_close(step.x, kernel.degrade(x_0, torch.as_tensor(step.t)), rtol=1e-10, atol=1e-10)


def test_cold_on_a_path_with_latent_noise_draws_from_the_generator() -> None:
    kernel = Interpolant(lambda x_0, generator: randn(x_0.shape, generator))
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        own, times = example_generators(0, 0, range(3)), grids.uniform(4)
        ends.append(last(cold(lambda x, t: Belief(torch.sin(x)), kernel, torch.ones(3, 2), times, generator=own)))
    assert torch.equal(*ends)
