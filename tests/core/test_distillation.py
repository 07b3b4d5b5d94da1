"""Progressive distillation against the definition: one step of the student is two of the teacher."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core import denoisers, grids, objectives
from polydiff.core.batches import Tensors
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser
from polydiff.core.distillation import (
    Distillation,
    Frozen,
    bound,
    halved,
    halvings,
    target_weights,
    truncated_snr,
)
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.guidance import ClassifierFree
from polydiff.core.interpolants import Interpolant
from polydiff.core.noise import Diagonal
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import example_generators, randn_like, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import EDM, Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, VarianceExploding
from polydiff.core.training import train
from tests.problems import Clouds, GaussianData, MixtureData

DATA = GaussianData.standard()
SCHEDULES = [LinearBeta(), Cosine(), SubVP(), RectifiedFlow(), VarianceExploding(), EDM()]
OPTIONS = TrainingOptions(
    steps=250, batch_size=128, learning_rate=4e-3, warmup=10, decay_to=0.05, ema=0.98, cpu=True, progress=False
)


class Field(nn.Module):
    """A small network on the plane that is told the time, and a class."""

    def __init__(self, seed: int = 0, hidden: int = 64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(7, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
            self.out = nn.Linear(hidden, 2)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        c = c.unsqueeze(1) / 1000
        told = [x, c, torch.sin(4 * c), torch.cos(4 * c), torch.sin(12 * c)]
        told.append(torch.zeros_like(c) if label is None else label.unsqueeze(1).to(c))
        return self.out(self.layers(torch.cat(told, 1)))


class Constant(nn.Module):
    """A student's prediction that is given; one parameter makes it a module that learns."""

    def __init__(self, mean: Tensor):
        super().__init__()
        self.mean, self.shift = mean, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.mean + self.shift


def student(network: nn.Module, schedule: Schedule, **options: Any) -> GaussianDenoiser:
    return GaussianDenoiser(network, schedule, **options)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_step_to_the_target_is_two_steps_of_the_teacher(schedule: Schedule) -> None:
    """In every interval of the grid, the first (alpha = 0 for some) and the last (sigma = 0) too, per example."""
    kernel, times = Gaussian(schedule), grids.uniform(8, schedule)
    teacher, x = DATA.denoise(kernel), 2 * torch.randn(4, 3, generator=seeded(1), dtype=torch.float64)
    objective = Distillation(student(nn.Identity(), schedule), bound(teacher), kernel, times)
    t, middle, end = times[:-2:2], times[1::2], times[2::2]
    target = objective.target(objective.kernel, x, t, middle, end)
    column = torch.stack([t, middle, end, torch.full_like(t, -1.0)])
    for b in range(4):
        two = [float(u) for u in column[:3, b]] + ([0.0] if float(end[b]) > 0 else [])
        one = two[:1] + two[2:]
        _, reached, *_ = ddim(teacher, kernel, x[b : b + 1], torch.tensor(two, dtype=torch.float64))
        first, *_ = ddim(
            lambda y, u, b=b: Belief(target[b : b + 1]), kernel, x[b : b + 1], torch.tensor(one, dtype=torch.float64)
        )
        torch.testing.assert_close(first.x, reached.x, rtol=1e-12, atol=1e-12)


def test_centred_clouds_and_scaled_noise_are_distilled_alike() -> None:
    clouds = Clouds([2, 5, 3])
    ragged = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    scaled = Gaussian(Cosine(), Diagonal(torch.tensor([0.3, 1.0, 0.0], dtype=torch.float64)))
    g = seeded(2)
    cases = [
        (ragged, clouds.denoise(ragged), clouds.sample(ragged, g)),
        (scaled, DATA.denoise(scaled), torch.randn(3, 3, generator=g, dtype=torch.float64)),
    ]
    t, middle, end = (torch.tensor(u, dtype=torch.float64) for u in ([1.0, 0.6, 0.2], [0.7, 0.5, 0.1], [0.5, 0.1, 0.0]))
    for kernel, teacher, x in cases:
        objective = Distillation(student(nn.Identity(), Cosine()), bound(teacher), kernel, grids.uniform(2))
        target = objective.target(objective.kernel, x, t, middle, end)
        alpha, sigma = kernel.schedule(torch.stack([t, middle, end]))
        state = x
        for i, u in ((0, t), (1, middle)):
            ratio = sigma[i + 1] / sigma[i]
            state = kernel.combine((ratio, state), (alpha[i + 1] - ratio * alpha[i], teacher(state, u).mean))
        ratio = sigma[2] / sigma[0]
        direct = kernel.combine((ratio, x), (alpha[2] - ratio * alpha[0], target))
        torch.testing.assert_close(direct, state, rtol=1e-12, atol=1e-12)


def test_the_weights_are_the_published_target() -> None:
    """Salimans & Ho 2022, algorithm 2: (z'' - (sigma''/sigma) z) / (alpha'' - (sigma''/sigma) alpha), and weights are
    a mean to the last digit where the teacher's steps are tiny."""
    schedule = LinearBeta()
    t, middle, end = (torch.tensor([u], dtype=torch.float64) for u in (0.6, 0.45, 0.3))
    (a, s), (a1, s1), (a2, s2) = (schedule(u) for u in (t, middle, end))
    m, m1, z = 0.7, -0.4, 1.3
    z1 = a1 * m + s1 / s * (z - a * m)
    z2 = a2 * m1 + s2 / s1 * (z1 - a1 * m1)
    published = (z2 - s2 / s * z) / (a2 - s2 / s * a)
    first, second = target_weights(schedule, t, middle, end)
    torch.testing.assert_close(first * m + second * m1, published, rtol=1e-12, atol=0)
    first, second = target_weights(schedule, t, t - 1e-9, t - 2e-9)
    torch.testing.assert_close(first + second, torch.ones_like(t), rtol=1e-6, atol=0)
    torch.testing.assert_close(second, torch.full_like(t, 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("reading", [denoisers.v, denoisers.x0], ids=["v", "x0"])
def test_the_loss_is_the_error_of_the_target_under_the_truncated_weight(reading: Any) -> None:
    """By hand, example by example; and 0 for a student that knows the target."""
    schedule, times = Cosine(), grids.uniform(6)
    kernel = Gaussian(schedule)
    teacher = DATA.denoise(kernel)
    x_0, generators = DATA.sample(40, seeded(0)), example_generators(0, 0, range(40))
    network = nn.Linear(3, 3).double()
    denoiser = student(Told(network), schedule, parametrisation=reading)
    objective = Distillation(denoiser, bound(teacher), kernel, times)
    losses = objective({"x_0": x_0}, generators)

    seen = set()
    for b, g in enumerate(example_generators(0, 0, range(40))):
        i = 2 * int(torch.randint(3, (1,), generator=g))
        t, middle, end = (times[i + j].reshape(1) for j in range(3))
        alpha, sigma = schedule(t)
        x_t = alpha * x_0[b : b + 1] + sigma * torch.randn(1, 3, generator=g, dtype=torch.float64)
        target = objective.target(objective.kernel, x_t, t, middle, end)
        belief = denoiser(x_t, t, kernel).mean
        expected = max(float(alpha / sigma) ** 2, 1.0) * float(((target - belief.detach()) ** 2).mean())
        assert float(losses[b].detach()) == pytest.approx(expected, rel=1e-9)
        seen.add(i)
    assert seen == {0, 2, 4}
    losses.mean().backward()
    assert network.weight.grad is not None and bool(network.weight.grad.abs().sum() > 0)


class Told(nn.Module):
    """A network that is not told the time."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        return self.network(x)


def test_halvings_go_down_to_one_step() -> None:
    times = grids.uniform(8)
    rounds = list(halvings(times))
    assert [len(grid) - 1 for grid in rounds] == [8, 4, 2]
    assert all(torch.equal(halved(a), b) for a, b in zip(rounds, rounds[1:], strict=False))
    torch.testing.assert_close(halved(rounds[-1]), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert [len(grid) - 1 for grid in halvings(grids.uniform(12), last=3)] == [12, 6]
    # The kept times of a schedule with t_min; the interval from t_min to 0 is merged like any other.
    assert torch.equal(halved(grids.uniform(4, EDM())), grids.uniform(4, EDM())[[0, 2, 4]])
    for bad, final in ((12, 1), (8, 3), (8, 0), (4, 8)):
        with pytest.raises(ArgumentError):
            halvings(grids.uniform(bad), last=final)
    with pytest.raises(ArgumentError):
        halved(grids.uniform(3))
    with pytest.raises(ArgumentError):
        Distillation(student(nn.Identity(), Cosine()), bound(lambda x, t: Belief(x)), Gaussian(Cosine()), times[1:])


def test_the_truncated_weight() -> None:
    t = torch.tensor([0.1, 0.9, 1.0], dtype=torch.float64)
    alpha, sigma = Cosine()(t)
    weight = truncated_snr(Cosine(), t)
    torch.testing.assert_close(weight, torch.stack([(alpha[0] / sigma[0]) ** 2, *torch.ones(2).double()]))


def test_the_teacher_is_no_part_of_the_student() -> None:
    schedule = Cosine()
    teacher = student(Field(), schedule)
    objective = Distillation(teacher, teacher, Gaussian(schedule), grids.uniform(4))
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"denoiser"}
    assert {name.split(".")[0] for name in objective.state_dict()} == {"denoiser"}
    assert all(module is not objective.teacher.module for module in objective.modules())
    assert isinstance(objective.teacher.module, GaussianDenoiser) and objective.teacher.module.schedule is schedule
    # It does not move with the student, is evaluated without gradients, and is one for all copies.
    x, t = torch.zeros(2, 2), torch.ones(2, dtype=torch.float64) / 2
    before = objective.teacher(x, t, objective.kernel).mean
    with torch.no_grad():
        next(teacher.parameters()).add_(1.0)
    assert torch.equal(objective.teacher(x, t, objective.kernel).mean, before) and not before.requires_grad
    assert copy.deepcopy(objective).teacher is objective.teacher
    assert teacher.training and next(teacher.parameters()).requires_grad
    held = objective.teacher.module
    assert held is not None and not held.training and not any(p.requires_grad for p in held.parameters())


def test_a_guided_teacher_and_its_conditions() -> None:
    """The student's target is that of the guided network under each example's label."""
    schedule = Cosine()
    kernel, network = Gaussian(schedule), Field(3).double()
    guided = student(ClassifierFree(network, 3.0, {"label": 0}), schedule)
    objective = Distillation(student(network, schedule), guided, kernel, grids.uniform(2))
    x, label = torch.randn(3, 2, generator=seeded(0), dtype=torch.float64), torch.tensor([1, 2, 3])
    t, middle, end = (torch.full((3,), u, dtype=torch.float64) for u in (1.0, 0.5, 0.0))
    target = objective.target(objective.kernel, x, t, middle, end, label=label)
    expected = last(ddim(guided.given(kernel, label=label), kernel, x, grids.uniform(2)))
    torch.testing.assert_close(target, expected, rtol=1e-12, atol=1e-12)
    losses = objective({"x_0": x, "label": label}, seeded(1))
    assert losses.shape == (3,) and bool((losses > 0).all())
    with pytest.raises(ArgumentError):
        objective({"label": label})


def test_another_schedule_than_the_teachers() -> None:
    """A teacher trained on one schedule, distilled on another: it is the same denoiser there."""
    teacher = student(Field(1).double(), LinearBeta())
    kernel = Gaussian(RectifiedFlow())
    objective = Distillation(student(Field(2).double(), RectifiedFlow()), teacher, kernel, grids.uniform(2))
    x = torch.randn(3, 2, generator=seeded(0), dtype=torch.float64)
    t, middle, end = (torch.full((3,), u, dtype=torch.float64) for u in (0.9, 0.5, 0.0))
    grid = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    expected = last(ddim(teacher.given(kernel), kernel, x, grid))
    torch.testing.assert_close(objective.target(objective.kernel, x, t, middle, end), expected, rtol=1e-9, atol=1e-9)


def test_two_rounds_of_training_follow_the_teacher(tmp_path: Path) -> None:
    """4 steps -> 2 -> 1 on a mixture, from its exact denoiser, by the ordinary training loop: each student ends near
    its own teacher, and the last one's single step lies far nearer the first teacher's end than a bare single step."""
    schedule, data = Cosine(0.0), MixtureData()
    kernel = Gaussian(schedule)
    examples = Tensors(x_0=data.sample(4096, seeded(0)).float())
    exact = data.denoise(kernel)
    noise = torch.randn(1000, 2, generator=seeded(9))
    teacher: Any = bound(lambda x, t: Belief(exact(x.double(), t).mean.to(x)))
    learner = student(Field(), schedule)
    grid = grids.uniform(4)
    first = last(ddim(exact, kernel, noise.double(), grid))
    for i, times in enumerate(halvings(grid)):
        objective = Distillation(learner, teacher, kernel, times)
        trained = train(objective, examples, OPTIONS, folder=tmp_path / str(i))
        if i == 0:
            assert trained.history[-1]["loss"] < 0.5 * trained.history[0]["loss"]
        assert isinstance(trained.ema, Distillation)
        teacher = trained.ema.denoiser
        learner = copy.deepcopy(trained.ema.denoiser).requires_grad_()
    with torch.no_grad():
        one = last(ddim(teacher.given(kernel), kernel, noise, grids.uniform(1))).double()
    bare = last(ddim(exact, kernel, noise.double(), grids.uniform(1)))
    error, trivial = (float((x - first).square().mean().sqrt()) for x in (one, bare))
    assert error < 0.45 * trivial


def test_the_holder_takes_plain_functions() -> None:
    frozen = Frozen(bound(lambda x, t: Belief(2 * x)))
    x = torch.ones(1, 1, requires_grad=True)
    belief = frozen(x, torch.ones(1), None, label=1)
    assert not belief.mean.requires_grad and float(belief.mean) == 2


def test_a_path_with_latent_noise_draws_from_the_generator() -> None:
    """Whatever stands in torch's global stream."""
    kernel = Interpolant(lambda x_0, generator: randn_like(x_0, generator))
    student = GaussianDenoiser(Field(), kernel.schedule, denoisers.x0)
    teacher = bound(lambda x, t: Belief(torch.sin(x)))
    loss = Distillation(student, teacher, kernel, grids.uniform(8), objectives.plain)
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        losses.append(loss({"x_0": torch.ones(5, 2)}, example_generators(0, 0, range(5))))
    assert torch.equal(*losses)
