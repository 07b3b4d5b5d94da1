"""Variational diffusion: the continuous bound against exact values, its gradients against finite differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polydiff.core import denoisers
from polydiff.core.clouds import Centred
from polydiff.core.denoisers import GaussianDenoiser
from polydiff.core.errors import ArgumentError
from polydiff.core.estimates import continuous_elbo
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.noise import Diagonal
from polydiff.core.objectives import uniform
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.schedules import LinearBeta
from polydiff.core.vdm import VDM, FourierFeatures, LearnedSchedule
from polydiff.vision.kernel import Pixels
from tests.problems import Clouds, GaussianData

DATA = GaussianData.standard()


def schedule_with(seed: int | None, gamma_0: float = -6.0, gamma_1: float = 4.0) -> LearnedSchedule:
    """A float64 schedule whose inner network is disturbed at random, far from its straight start."""
    schedule = LearnedSchedule(gamma_0, gamma_1, hidden=16).double()
    if seed is not None:
        with torch.no_grad():
            for name in ("raw_line", "raw_inner", "bias", "raw_outer"):
                weight = getattr(schedule, name)
                weight += 2 * torch.randn(weight.shape, generator=seeded(seed), dtype=torch.float64)
    return schedule


class Exact(nn.Module):
    """The closed-form denoiser of a problem in a denoiser's place."""

    def __init__(self, schedule: LearnedSchedule, problem: Any):
        super().__init__()
        self.schedule, self.problem = schedule, problem

    def forward(self, x_t: Tensor, t: Tensor, kernel: Any) -> Belief:
        return self.problem.denoise(kernel)(x_t, t)


class Deterministic(nn.Module):
    """Whatever the noise, an error of |x_0|^2 / (1 + SNR) for x_0 = 1."""

    def __init__(self, schedule: LearnedSchedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor, kernel: Any) -> Belief:
        missing = torch.rsqrt(1 + self.schedule.log_snr(t).exp())
        return Belief((1 - missing).unsqueeze(1).expand_as(x_t))


def make(schedule: LearnedSchedule, problem: Any = DATA, kernel: Gaussian | None = None, **options: Any) -> VDM:
    kernel = Gaussian(schedule) if kernel is None else kernel
    return VDM(Exact(schedule, problem), kernel, **options)  # pyright: ignore[reportArgumentType]


def expected_parts(gamma_0: Tensor, gamma_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the three parts for `DATA` and its exact denoiser."""
    power = (DATA.mean**2).sum() + DATA.variances.sum()
    diffusion = torch.log1p(torch.exp(-gamma_0) * DATA.variances) - torch.log1p(torch.exp(-gamma_1) * DATA.variances)
    return torch.exp(-gamma_1) * power / 2, diffusion.sum() / 2, 3 * (1 + math.log(2 * math.pi) + gamma_0) / 2


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_learned_schedule_is_a_schedule(seed: int | None) -> None:
    schedule = schedule_with(seed)
    t = torch.cat([torch.linspace(0, schedule.t_min, 5), torch.linspace(schedule.t_min, 1, 400)[1:]]).double()
    t = torch.where((t - schedule.t_min).abs() < 1e-10, schedule.t_min, t)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert (alpha[0].item(), sigma[0].item()) == (1.0, 0.0)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr, 2 * (alpha.log() - sigma.log()), rtol=1e-9, atol=1e-9)
    assert bool((log_snr.diff() < 0).all())
    assert log_snr[0].item() == math.inf
    assert log_snr[4].item() == pytest.approx(6, abs=1e-6)
    assert log_snr[-1].item() == pytest.approx(-4, abs=1e-6)
    torch.testing.assert_close(schedule.inverse(log_snr[4:]), t[4:], rtol=1e-7, atol=1e-9)
    inside = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    difference = (schedule.log_snr(inside + 1e-6) - schedule.log_snr(inside - 1e-6)) / 2e-6
    torch.testing.assert_close(schedule.log_snr_rate(inside), difference, rtol=1e-5, atol=1e-7)


def test_it_starts_close_to_a_straight_line_at_the_papers_ends() -> None:
    t = torch.linspace(1e-5, 1, 50, dtype=torch.float64)
    schedule = LearnedSchedule().requires_grad_(False)
    torch.testing.assert_close(-schedule.log_snr(t), -13.3 + 18.3 * t, rtol=0, atol=1.0)
    assert (schedule.log_snr_rate(t).max() / schedule.log_snr_rate(t).min()).item() > 0.5


def test_nothing_is_remembered_while_it_learns() -> None:
    schedule = schedule_with(None)
    kernel, x = Gaussian(schedule), torch.ones(2, 3, dtype=torch.float64)
    before = kernel.marginal(x, 0.5).mean, kernel.transition(x, 0.2, 0.5).mean
    with torch.no_grad():
        schedule.gamma_0.add_(2)
    assert not torch.equal(kernel.marginal(x, 0.5).mean, before[0])
    assert not torch.equal(kernel.transition(x, 0.2, 0.5).mean, before[1])


def test_the_prior_learns_too() -> None:
    """The mismatch at t = 1 differentiated in the schedule's ends, through the prior as through the marginal."""
    schedule = schedule_with(None)
    kernel, x = Gaussian(schedule), torch.ones(2, 3, dtype=torch.float64)

    def mismatch() -> Tensor:
        return kernel.marginal(x, torch.ones(2, dtype=torch.float64)).kl(kernel.prior(x)).sum()

    for end in (schedule.gamma_0, schedule.raw_span):
        (found,) = torch.autograd.grad(mismatch(), end)
        with torch.no_grad():
            end.add_(1e-4)
            above = mismatch()
            end.sub_(2e-4)
            below = mismatch()
            end.add_(1e-4)
        torch.testing.assert_close(found, ((above - below) / 2e-4).to(found), rtol=1e-5, atol=1e-8)


def test_the_bound_does_not_depend_on_the_inner_schedule() -> None:
    """By Gauss-Legendre quadrature over t, without noise: SNR-weighted area between the ends, and nothing else."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(400))
    for seed in (None, 0, 1, 2, 3):
        for gamma_0, gamma_1 in ((-6.0, 4.0), (-2.0, 1.0)):
            schedule = schedule_with(seed, gamma_0, gamma_1)
            t = schedule.t_min + (1 - schedule.t_min) * (nodes + 1) / 2
            objective = VDM(Deterministic(schedule), Gaussian(schedule), lambda *_, t=t: t)  # pyright: ignore
            _, diffusion, _ = objective.parts({"x_0": torch.ones(len(t), 2, dtype=torch.float64)}, seeded(0))
            expected = math.log1p(math.exp(-gamma_0)) - math.log1p(math.exp(-gamma_1))
            assert float((diffusion * weights).sum().detach()) / 2 == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", [None, 1])
def test_each_part_has_its_exact_mean(seed: int | None) -> None:
    schedule, count = schedule_with(seed), 40_000
    with torch.no_grad():
        parts = make(schedule).parts({"x_0": DATA.sample(count, seeded(0))}, seeded(1))
    expected = expected_parts(torch.tensor(-6.0).double(), torch.tensor(4.0).double())
    for part, mean in zip(parts, expected, strict=True):
        assert abs(float(part.mean() - mean)) < 5 * float(part.std()) / count**0.5


def test_the_bound_on_discrete_data_is_their_entropy() -> None:
    """Four levels, exact denoiser, ends far apart: the bound is tight, in nats of the integers."""
    values, P = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.15, 0.25]).double()

    class Levels:
        def denoise(self, kernel: Any) -> Any:
            def exact(x: Tensor, t: Tensor) -> Belief:
                alpha, sigma = (u.reshape(-1, 1, 1) for u in kernel.schedule(t))
                logs = P.log() - (x.unsqueeze(-1) - alpha * values) ** 2 / (2 * sigma**2)
                return Belief(logs.softmax(-1) @ values)

            return exact

    schedule, count = schedule_with(None, -7.0, 7.0), 400_000
    x_0 = values[torch.multinomial(P, 2 * count, replacement=True, generator=seeded(0))].reshape(count, 2)
    objective = make(schedule, Levels(), Pixels(schedule, 4))
    with torch.no_grad():
        # Times are evenly spread within a batch: the error is that between batches.
        nats = torch.stack([objective({"x_0": part}, seeded(i, 1)).mean() for i, part in enumerate(x_0.chunk(20))])
    error = float(nats.std()) / 20**0.5
    assert abs(float(nats.mean()) - 2 * float(-(P * P.log()).sum())) < 5 * error
    assert error < 0.02


def test_ragged_centred_clouds_and_diagonal_noise() -> None:
    """The closed form per example: dims 3(N - 1) and one variance each."""
    schedule, sizes = schedule_with(0), [2, 5, 1, 3] * 1500
    clouds = Clouds(sizes)
    kernel = Gaussian(schedule, Centred()).given(**clouds.structure)
    with torch.no_grad():
        nats = make(schedule, clouds, kernel)({"x_0": clouds.sample(kernel, seeded(0))}, seeded(1)).reshape(-1, 4)
    v = clouds.deviation**2
    per_dim = math.exp(-4) * v / 2 + (math.log1p(math.exp(6) * v) - math.log1p(math.exp(-4) * v)) / 2
    per_dim += (1 + math.log(2 * math.pi) - 6) / 2
    expected = per_dim * 3.0 * torch.tensor([1, 4, 0, 2])
    assert bool(((nats.mean(0) - expected).abs() <= 5 * nats.std(0) / 1500**0.5).all())

    # A change of units changes the density by the units alone.
    units = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    network = nn.Linear(3, 3).double()
    x_0, losses = DATA.sample(5, seeded(0)), []
    for deviation, into in ((torch.ones(3).double(), torch.ones(3).double()), (units, units)):
        body = Told(network, into)
        denoiser = GaussianDenoiser(body, schedule, denoisers.v)
        losses.append(VDM(denoiser, Gaussian(schedule, Diagonal(deviation)))({"x_0": x_0 * into}, seeded(1)))
    torch.testing.assert_close(losses[1], losses[0] + units.log().sum(), rtol=1e-9, atol=1e-9)


class Told(nn.Module):
    """A small smooth network that uses its input in given units, and the noise level it is told."""

    def __init__(self, layer: nn.Module, units: Tensor):
        super().__init__()
        self.layer, self.units = layer, units

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(self.layer(x / self.units) + c.reshape(-1, 1) / 200) * self.units


def test_each_parameter_learns_from_its_own_gradient() -> None:
    """Ends and network: the mean bound; inner schedule: the mean of L^2 / dims. By central differences, same draws."""
    torch.manual_seed(0)
    schedule = schedule_with(0, -3.0, 2.0)
    layer = nn.Linear(3, 3).double()
    objective = VDM(
        GaussianDenoiser(Told(layer, torch.ones(())), schedule, denoisers.v), Gaussian(schedule), uniform(0.0)
    )
    batch = {"x_0": DATA.sample(16, seeded(0))}

    def value(inner: bool) -> float:
        with torch.no_grad():
            _, diffusion, _ = parts = objective.parts(batch, seeded(1))
            return float((diffusion**2 / 3).mean() if inner else sum(parts).mean())  # pyright: ignore

    objective(batch, seeded(1)).mean().backward()
    inner_names = ("raw_line", "raw_inner", "bias", "raw_outer")
    for owner, name in [(schedule, n) for n in ("gamma_0", "raw_span", *inner_names)] + [(layer, "weight")]:
        weight = getattr(owner, name)
        for place in range(0, weight.numel(), 5):
            flat = weight.data.view(-1)
            before, values = float(flat[place]), []
            for step in (1e-5, -1e-5):
                flat[place] = before + step
                values.append(value(name in inner_names))
            flat[place] = before
            slope = (values[0] - values[1]) / 2e-5
            assert float(weight.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_the_ends_follow_the_exact_bound() -> None:
    """With the exact denoiser, the mean gradient is the derivative of the closed form."""
    schedule, count = schedule_with(1, -3.0, 2.0), 40_000
    gamma_0 = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    span = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(sum(expected_parts(gamma_0, gamma_0 + span)), (gamma_0, span))  # pyright: ignore
    gradients = []
    for seed in range(10):
        losses = make(schedule)({"x_0": DATA.sample(count // 10, seeded(seed, 0))}, seeded(seed, 1))
        found = torch.autograd.grad(losses.mean(), (schedule.gamma_0, schedule.raw_span))
        gradients.append(torch.stack(found) / torch.tensor([1.0, 1 - math.exp(-5.0)]))
    found = torch.stack(gradients)
    error = found.std(0) / 10**0.5
    assert bool(((found.mean(0) - torch.stack(expected)).abs() < 6 * error).all())


def test_training_the_inner_schedule_reduces_the_variance() -> None:
    schedule = schedule_with(0, -8.0, 6.0)
    objective = make(schedule, times=uniform(0.0))

    def variance() -> float:
        with torch.no_grad():
            return float(objective.parts({"x_0": DATA.sample(20_000, seeded(0))}, seeded(1))[1].var())

    schedule.gamma_0.requires_grad_(False)
    schedule.raw_span.requires_grad_(False)
    before = variance()
    optimizer = torch.optim.Adam([p for p in schedule.parameters() if p.requires_grad], 0.05)
    t = torch.linspace(schedule.t_min, 1, 300, dtype=torch.float64)
    for step in range(80):
        optimizer.zero_grad()
        objective({"x_0": DATA.sample(256, seeded(step, 2))}, seeded(step, 3)).mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert bool((schedule.log_snr(t).diff() < 0).all())
    # What the noise alone leaves: t such that each stretch of it has the same expected loss.
    assert variance() < 0.6 * before
    straight = make(schedule_with(None, -8.0, 6.0), times=uniform(0.0))
    with torch.no_grad():
        assert variance() < float(straight.parts({"x_0": DATA.sample(20_000, seeded(0))}, seeded(1))[1].var())
    ends = schedule.log_snr(t[[0, -1]]).tolist()
    assert ends == pytest.approx([8.0, -6.0])


def test_it_agrees_with_the_bound_of_the_schedule_in_evaluation() -> None:
    schedule, count = schedule_with(2), 20_000
    x_0 = DATA.sample(count, seeded(0))
    with torch.no_grad():
        ours = make(schedule).parts({"x_0": x_0}, seeded(1))
        bound = continuous_elbo(
            DATA.denoise(Gaussian(schedule)), Gaussian(schedule), x_0, low=1e-5, generator=seeded(2)
        )
    torch.testing.assert_close(bound.prior, ours[0], rtol=1e-6, atol=1e-12)
    difference = ours[1] - bound.gaps.sum(0)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / count**0.5


def test_losses_have_their_own_generators() -> None:
    schedule = schedule_with(0)
    objective, x_0 = make(schedule, times=uniform(0.0)), DATA.sample(4, seeded(0))
    whole = objective({"x_0": x_0}, example_generators(0, 1, range(4)))
    part = objective({"x_0": x_0[2:]}, example_generators(0, 1, [2, 3]))
    torch.testing.assert_close(whole[2:], part, rtol=1e-12, atol=0)


def test_fourier_features() -> None:
    seen = []

    class Body(nn.Module):
        def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
            seen.append((x, c, label))
            return x[:, :2]

    x, c, label = torch.randn(3, 2, 4, 4, generator=seeded(0)).double(), torch.ones(3), torch.arange(3)
    output = FourierFeatures(Body(), (0, 3))(x, c, label=label)
    assert torch.equal(output, x)
    features = [x, (math.pi * x).sin(), (8 * math.pi * x).sin(), (math.pi * x).cos(), (8 * math.pi * x).cos()]
    torch.testing.assert_close(seen[0][0], torch.cat(features, 1))
    assert seen[0][1] is c
    assert seen[0][2] is label


def test_what_does_not_fit_is_named() -> None:
    schedule = LearnedSchedule()
    with pytest.raises(ArgumentError, match="^kernel"):
        VDM(GaussianDenoiser(nn.Identity(), LinearBeta()), Gaussian(LinearBeta()))
    with pytest.raises(ArgumentError, match="^denoiser"):
        VDM(GaussianDenoiser(nn.Identity(), LearnedSchedule()), Gaussian(schedule))
    with pytest.raises(ArgumentError, match="^batch"):
        VDM(GaussianDenoiser(nn.Identity(), schedule), Gaussian(schedule))({})
    refused: list[dict[str, Any]] = [{"gamma_0": 5.0}, {"gamma_1": math.inf}, {"hidden": 0}, {"t_min": 0.0}]
    for options in refused:
        with pytest.raises(ArgumentError):
            LearnedSchedule(**options)
    with pytest.raises(ArgumentError, match="^exponents"):
        FourierFeatures(nn.Identity(), ())
