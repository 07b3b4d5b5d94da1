"""Consistency functions against the closed form of Gaussian data, where they are the quantile map."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from polydiff.core import checkpoints, grids
from polydiff.core import consistency as ct
from polydiff.core.batches import Plan, Tensors
from polydiff.core.clouds import Centred
from polydiff.core.consistency import Consistency, consistency, consistency_sampler, curriculum
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser
from polydiff.core.distillation import bound
from polydiff.core.errors import ArgumentError, TrainingError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.interpolants import Interpolant
from polydiff.core.kernel import Time
from polydiff.core.ode import heun
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import example_generators, randn_like, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import EDM, Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from polydiff.core.training import train
from polydiff.core.vdm import LearnedSchedule
from tests.problems import Clouds, GaussianData, MixtureData

DATA = GaussianData.standard()


def exact(schedule: Schedule, t_min: float) -> Callable[[Tensor, Time], Belief]:
    """The consistency function of the Gaussian data."""
    alpha, _ = schedule(torch.tensor(t_min, dtype=torch.float64))
    return lambda x, t: Belief(DATA.flow(schedule, x, t, t_min) / alpha)


class Known(nn.Module):
    """A denoiser that is a given function, with one parameter that shifts it."""

    def __init__(self, denoise: Callable[[Tensor, Time], Belief], schedule: Schedule):
        super().__init__()
        self.denoise, self.schedule = denoise, schedule
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, kernel: Any, **condition: Any) -> Belief:
        self.seen.append(t)
        return Belief(self.denoise(x, t).mean + self.shift)


def objective(denoiser: Any, kernel: Any, grid: Callable[[int], Tensor], count: int, **options: Any) -> Consistency:
    return Consistency(denoiser, kernel, grid, lambda step: count, **options)


def above(n: int, schedule: Schedule, low: float, high: float = 0.95) -> Tensor:
    """n intervals from `high` to `low`, then 0."""
    return torch.cat([torch.linspace(high, low, n + 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("schedule", [EDM(), LinearBeta(), Cosine(), RectifiedFlow(), VarianceExploding()], ids=repr)
def test_the_boundary_condition_is_exact(schedule: Schedule) -> None:
    """At t_min the belief is x/alpha whatever the network says; at alpha = 0 all is finite."""
    t_min = max(schedule.t_min, 0.01)
    alpha, sigma = schedule(torch.tensor(t_min, dtype=torch.float64))
    denoiser = GaussianDenoiser(
        Linear(torch.full((3, 3), 50.0)), schedule, consistency(float(sigma / alpha), sigma_data=0.7)
    )
    x, kernel = torch.randn(4, 3, generator=seeded(0), dtype=torch.float64), Gaussian(schedule)
    torch.testing.assert_close(denoiser.given(kernel)(x, t_min).mean, x / alpha, rtol=1e-12, atol=1e-12)
    assert bool(denoiser.given(kernel)(x, 1.0).mean.isfinite().all())
    later = denoiser.given(kernel)(x, t_min + 0.02).mean
    assert float((later - x / alpha).detach().abs().max()) > 1e-3


class Linear(nn.Module):
    """x -> x A, told nothing."""

    def __init__(self, A: Tensor):
        super().__init__()
        self.A = nn.Parameter(A.double())

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x @ self.A


def test_the_reading_is_the_published_one() -> None:
    """Song et al. 2023, appendix C: in sigma for alpha = 1, and the same in x/alpha elsewhere; Karras' c_in, and the
    input and output scales of unit variance."""
    s, low = 0.5, 0.002
    sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64)
    published = (
        s**2 / ((sigma - low) ** 2 + s**2),
        s * (sigma - low) / (s**2 + sigma**2).sqrt(),
        1 / (sigma**2 + s**2).sqrt(),
    )
    for ours, theirs in zip(consistency(low, s)(torch.ones_like(sigma), sigma), published, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    alpha = torch.tensor(0.3, dtype=torch.float64)
    for k, ours, theirs in zip(
        (1 / alpha, 1.0, 1 / alpha), consistency(low, s)(alpha.expand(4), alpha * sigma), published, strict=True
    ):
        torch.testing.assert_close(ours, k * theirs, rtol=1e-12, atol=1e-15)
    for bad in ((-1.0, 0.5), (0.1, 0.0)):
        with pytest.raises(ArgumentError):
            consistency(*bad)


@pytest.mark.parametrize("schedule", [LinearBeta(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_the_exact_function_has_no_distillation_loss_but_the_solvers(schedule: Schedule) -> None:
    """Its loss falls with the solver's local error: squared, 2 (order + 1) powers of the step; on every interval."""
    kernel, low = Gaussian(schedule), 0.1
    x_0 = DATA.sample(64, seeded(0))
    for solver, order in ((ddim, 1), (heun, 2)):
        losses = []
        for n in (40, 80):
            loss = objective(
                Known(exact(schedule, low), schedule),
                kernel,
                lambda n: above(n, schedule, low),
                n,
                teacher=bound(DATA.denoise(kernel)),
                solver=solver,
                metric=ct.squared,
                weight=ct.plain,
                law=ct.even,
            )({"x_0": x_0}, seeded(1))
            losses.append(float(loss.max().detach()))
        # Between two grids the draws lie in other places, so the measured order is near, not equal.
        assert losses[0] < 1e-3
        assert math.log2(losses[0] / losses[1]) == pytest.approx(2 * (order + 1), abs=1.0), (solver, losses)


def test_the_target_at_the_end_is_the_state_itself() -> None:
    """On one interval the target does not ask the network, whose reading may miss the boundary: by hand."""
    schedule, kernel, low = LinearBeta(), Gaussian(LinearBeta()), 0.2
    denoiser = Known(lambda x, t: Belief(0 * x + 5.0), schedule)
    options: dict[str, Any] = {"metric": ct.squared, "weight": ct.plain, "law": ct.even}
    x_0 = DATA.sample(3, seeded(0))
    losses = objective(denoiser, kernel, lambda n: above(n, schedule, low, 0.5), 1, **options)({"x_0": x_0}, seeded(2))
    g = seeded(2)
    torch.rand(3, generator=g, dtype=torch.float64)
    x_1 = torch.randn(3, 3, generator=g, dtype=torch.float64)
    alpha, sigma = schedule(torch.tensor(low, dtype=torch.float64))
    expected = ((x_0 + sigma / alpha * x_1 - 5.0) ** 2).mean(1)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", [LinearBeta(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_training_by_hand(schedule: Schedule) -> None:
    """The same x_0 and x_1 at both times; no gradient through the target; metric and weight of improved training."""
    kernel, low, n = Gaussian(schedule), 0.1, 6
    network = Linear(torch.eye(3) + 0.1)
    alpha, sigma = schedule(torch.tensor(low, dtype=torch.float64))
    denoiser = GaussianDenoiser(network, schedule, consistency(float(sigma / alpha)))
    x_0, times = DATA.sample(30, seeded(0)), above(n, schedule, low)
    loss = objective(denoiser, kernel, lambda n: above(n, schedule, low), n)
    losses = loss({"x_0": x_0}, example_generators(0, 0, range(30)))
    (gradient,) = torch.autograd.grad(losses.sum(), network.A)

    rho = [float(a) for a in torch.exp(-schedule.log_snr(times[:-1]) / 2)]
    law = torch.tensor(
        [
            stats.norm.cdf((math.log(rho[i]) + 1.1) / 2) - stats.norm.cdf((math.log(rho[i + 1]) + 1.1) / 2)
            for i in range(n)
        ]
    )
    edges = (law / law.sum()).cumsum(0)
    total = torch.zeros((), dtype=torch.float64)
    for b, g in enumerate(example_generators(0, 0, range(30))):
        u = float(torch.rand(1, generator=g, dtype=torch.float64))
        i = sum(u >= float(edge) for edge in edges[:-1])
        x_1 = torch.randn(1, 3, generator=g, dtype=torch.float64)
        beliefs = []
        for t in (times[i : i + 1], times[i + 1 : i + 2]):
            alpha, sigma = schedule(t)
            beliefs.append(denoiser(alpha * x_0[b : b + 1] + sigma * x_1, t, kernel).mean)
        error = ((beliefs[0] - beliefs[1].detach()) ** 2).mean()
        one = ((error + 0.00054**2).sqrt() - 0.00054) / (rho[i] - rho[i + 1])
        assert float(losses[b].detach()) == pytest.approx(float(one.detach()), rel=1e-6)
        total = total + one
    (expected,) = torch.autograd.grad(total, network.A)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_training_pulls_towards_the_consistency_function() -> None:
    """The expected gradient at a shifted exact function points back: away from t_min, the shift goes down."""
    schedule, kernel, low = LinearBeta(), Gaussian(LinearBeta()), 0.1
    denoiser = Known(exact(schedule, low), schedule)
    x_0 = DATA.sample(4000, seeded(0))
    options: dict[str, Any] = {"metric": ct.squared, "weight": ct.plain, "law": ct.even}
    loss = objective(denoiser, kernel, lambda n: above(n, schedule, low, 0.4), 1, **options)
    for sign in (1.0, -1.0):
        with torch.no_grad():
            denoiser.shift.fill_(0.5 * sign)
        (gradient,) = torch.autograd.grad(loss({"x_0": x_0}, seeded(1)).mean(), denoiser.shift)
        # One interval, whose target is unbiased for the function at the optimum: d/dshift of shift^2.
        assert float(gradient) == pytest.approx(2 * 0.5 * sign, abs=0.1)


def test_the_curriculum_doubles() -> None:
    """Song & Dhariwal 2024: K = 400k, s0 = 10, s1 = 1280: 8 stages of 50k."""
    intervals = curriculum(400_000)
    stages = {50_000 * i: 10 * 2**i for i in range(8)}
    assert all(intervals(step) == count == intervals(step + 49_999) for step, count in stages.items())
    assert intervals(10**7) == 1280
    assert [curriculum(10, 2, 10)(step) for step in (0, 2, 3, 6, 9, 12)] == [2, 2, 4, 8, 10, 10]
    with pytest.raises(ArgumentError):
        curriculum(10, 4, 2)


def test_steps_are_counted_and_restored() -> None:
    schedule, kernel = LinearBeta(), Gaussian(LinearBeta())
    made: list[int] = []

    def grid(n: int) -> Tensor:
        made.append(n)
        return above(n, schedule, 0.1)

    def new() -> Consistency:
        denoiser: Any = Known(DATA.denoise(kernel), schedule)
        return Consistency(denoiser, kernel, grid, curriculum(4, 2, 4), accumulate=2)

    loss, x_0 = new(), DATA.sample(2, seeded(0))
    for _ in range(3):
        loss({"x_0": x_0}, seeded(1))
    loss.eval()({"x_0": x_0}, seeded(1))
    assert made == [2] and loss.calls == 3
    loss.train()({"x_0": x_0}, seeded(1))
    assert loss.calls == 4 and made == [2]
    loss({"x_0": x_0}, seeded(1))
    assert made == [2, 4]
    other = new()
    other.load_state_dict(loss.state_dict())
    assert other.calls == 5
    torch.testing.assert_close(loss({"x_0": x_0}, seeded(4)), other({"x_0": x_0}, seeded(4)), rtol=0, atol=0)


def test_a_refused_step_is_not_counted(tmp_path: Path) -> None:
    """Else the curriculum of the run that resumes would be ahead of its steps."""
    schedule = LinearBeta()
    grid = lambda n: above(n, schedule, 0.1)  # noqa: E731
    options = TrainingOptions(steps=8, batch_size=4, accumulate=2, warmup=0, cpu=True, progress=False)
    x_0 = DATA.sample(32, seeded(0)).float()
    x_0[int(Plan(options.seed, 32, 4).indices(3, range(4))[0])] = math.nan
    made = Consistency(
        GaussianDenoiser(Single(), schedule, consistency(0.1)),
        Gaussian(schedule),
        grid,
        curriculum(8, 2, 8),
        accumulate=2,
    )
    with pytest.raises(TrainingError, match="step 3"):
        train(made, Tensors(x_0=x_0), options, folder=tmp_path)
    assert made.calls == 6
    newest = checkpoints.load_newest(tmp_path / "checkpoints")
    assert newest.step == 3 and int(newest.tensors["model"]["_extra_state"]) == 6


class Single(nn.Module):
    """A linear network in single precision, told nothing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layer(x)


def test_intervals_follow_a_schedule_that_learns() -> None:
    schedule = LearnedSchedule(-4.0, 4.0, hidden=4, t_min=0.01)
    denoiser: Any = Known(lambda x, t: Belief(x), schedule)
    loss = objective(denoiser, Gaussian(schedule), lambda n: above(n, schedule, 0.1), 4)
    before = loss.table()
    with torch.no_grad():
        schedule.gamma_0.add_(2.0)
    after = loss.table()
    torch.testing.assert_close(after.alpha_s, schedule(after.s)[0].detach(), rtol=0, atol=0)
    torch.testing.assert_close(after.weight, ct.reciprocal(schedule, after.t, after.s).detach(), rtol=0, atol=0)
    assert bool((after.alpha_s < before.alpha_s).all()) and not torch.equal(after.cumulative, before.cumulative)
    copy.deepcopy(loss)  # as averages do


def test_a_path_with_latent_noise_draws_from_the_generator() -> None:
    """Whatever stands in torch's global stream."""
    kernel = Interpolant(lambda x_0, generator: randn_like(x_0, generator))
    denoiser: Any = Known(lambda x, t: Belief(torch.sin(x)), kernel.schedule)
    options: dict[str, Any] = {"weight": ct.plain, "law": ct.even}
    loss = objective(denoiser, kernel, lambda n: above(n, kernel.schedule, 0.1), 4, **options)
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(loss({"x_0": DATA.sample(5, seeded(0))}, example_generators(0, 0, range(5))))
    assert torch.equal(*losses)


def test_unusable_grids_are_refused() -> None:
    schedule = Cosine()
    denoiser: Any = Known(exact(schedule, 0.1), schedule)
    kernel = Gaussian(schedule)
    # alpha_1 = 0: the weight 1/(rho_t - rho_s) would leave t = 1 untrained in silence.
    with pytest.raises(ArgumentError, match="weight"):
        objective(denoiser, kernel, lambda n: above(n, schedule, 0.1, 1.0), 4)
    objective(denoiser, kernel, lambda n: above(n, schedule, 0.1, 1.0), 4, weight=ct.plain)
    with pytest.raises(ArgumentError, match="grid"):
        objective(denoiser, kernel, grids.uniform, 4)
    with pytest.raises(ArgumentError, match="t_min"):
        consistency_sampler(exact(schedule, 0.1), kernel, torch.zeros(1, 3), grids.uniform(10), t_min=0.1)


@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow(), EDM(0.2, 20.0)], ids=repr)
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_the_law_of_multistep_sampling(schedule: Schedule, ragged: bool) -> None:
    """On Gaussian data every step is affine, so the law of the result is known: with t_min it is exactly that of
    x_(t_min)/alpha at each step, wherever the chain goes; by pushing the mean and each unit vector through."""
    kernel, low = Gaussian(schedule), max(schedule.t_min, 0.3)
    denoise = exact(schedule, low)
    times = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=torch.float64)
    alpha, sigma = schedule(torch.tensor(low, dtype=torch.float64))
    wanted = DATA.covariance + (sigma / alpha) ** 2 * torch.eye(3, dtype=torch.float64)

    n = 20_000
    g = seeded(3)
    x = kernel.marginal(DATA.sample(n, g), 1.0).sample(g)
    if ragged:
        others = torch.tensor([1.0, 0.7, 0.6, 0.0], dtype=torch.float64)
        times = torch.stack([times if b % 2 else others for b in range(n)], 1)
    states = [step.x for step in consistency_sampler(denoise, kernel, x, times, t_min=low, generator=g)]
    assert len(states) == 3
    x = states[-1]
    for half in (x[::2], x[1::2]):
        error = (half.T.cov() - wanted).abs().max() / wanted.abs().max()
        assert float(error) < 5 * math.sqrt(2 / len(half))
        z = (half.mean(0) - DATA.mean) / (wanted.diagonal() / len(half)).sqrt()
        assert float(z.abs().max()) < 4.5
    # The states on the way have the marginals of the process.
    if not ragged:
        a, s = schedule(times[2])
        covariance = a**2 * DATA.covariance + s**2 * torch.eye(3, dtype=torch.float64)
        assert float((states[1].T.cov() - covariance).abs().max() / covariance.abs().max()) < 0.05


def test_the_sampler_by_hand_and_on_centred_clouds() -> None:
    """Noise of the right scale on the right state, draw for draw; t_min = 0 is the marginal."""
    clouds = Clouds([2, 4, 3])
    kernel = Gaussian(LinearBeta(), Centred()).given(**clouds.structure)
    denoise, x = clouds.denoise(kernel), kernel.noise.draw(torch.zeros(9, 3, dtype=torch.float64), seeded(0))
    times = torch.tensor([[1.0, 0.9, 0.8], [0.6, 0.5, 0.4], [0.0, 0.0, 0.0]], dtype=torch.float64)
    for low in (0.0, 0.1):
        steps = list(consistency_sampler(denoise, kernel, x, times, t_min=low, generator=seeded(1)))
        first = denoise(x, times[0]).mean
        alpha, _ = kernel.schedule(torch.tensor(low, dtype=torch.float64))
        if low > 0:
            law = kernel.transition(alpha * first, torch.full((3,), low, dtype=torch.float64), times[1])
        else:
            law = kernel.marginal(first, times[1])
        y = law.sample(seeded(1))
        torch.testing.assert_close(steps[0].x, y, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(steps[1].x, denoise(y, times[1]).mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(kernel.project(steps[1].x), steps[1].x, rtol=1e-10, atol=1e-10)


class Field(nn.Module):
    """A small network on the plane."""

    def __init__(self, hidden: int = 64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(6, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
            )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c.unsqueeze(1) / 1000
        return self.layers(torch.cat([x, c, torch.sin(6 * c), torch.cos(6 * c), torch.sin(12 * c)], 1))


@pytest.mark.parametrize("distilled", [True, False], ids=["distillation", "training"])
def test_a_trained_function_follows_the_flow(distilled: bool, tmp_path: Path) -> None:
    """A few seconds on a mixture: one call lies much nearer the ODE's end than the exact denoiser's one call does."""
    schedule = EDM(0.05, 10.0)
    kernel, data = Gaussian(schedule), MixtureData()
    denoise = data.denoise(kernel)
    denoiser = GaussianDenoiser(Field(), schedule, consistency(0.05, 0.9))
    teacher = bound(lambda x, t: Belief(denoise(x.double(), t).mean.to(x)))
    loss = Consistency(
        denoiser, kernel, lambda n: grids.karras(n + 1, schedule), lambda step: 12, teacher if distilled else None
    )
    options = TrainingOptions(
        steps=350, batch_size=192, learning_rate=4e-3, warmup=10, decay_to=0.05, ema=0.98, cpu=True, progress=False
    )
    trained = train(loss, Tensors(x_0=data.sample(8192, seeded(0)).float()), options, folder=tmp_path)
    if distilled:
        assert trained.history[-1]["loss"] < 0.6 * trained.history[0]["loss"]
    noise = 10.0 * torch.randn(1000, 2, generator=seeded(9), dtype=torch.float64)
    end = last(heun(denoise, kernel, noise, grids.karras(60, schedule)))
    assert isinstance(trained.ema, Consistency) and loss.calls == 350
    bound_ = trained.ema.denoiser.given(kernel)
    with torch.no_grad():
        one = last(consistency_sampler(bound_, kernel, noise.float(), grids.uniform(1))).double()
    bare = denoise(noise, 1.0).mean
    error, trivial = ((x - end).square().sum(1).median().sqrt() for x in (one, bare))
    assert float(error) < 0.5 * float(trivial)
