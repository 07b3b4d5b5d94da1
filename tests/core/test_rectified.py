"""Reflow of Gaussian data, where the pairs of the flow and the denoiser of their paths are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from polydiff.core import denoisers, grids, objectives
from polydiff.core.batches import Tensors
from polydiff.core.categorical import uniform
from polydiff.core.clouds import Centred
from polydiff.core.cold import Cold
from polydiff.core.denoisers import GaussianDenoiser
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian, TensorPath
from polydiff.core.interpolants import Interpolant
from polydiff.core.kernel import Time
from polydiff.core.noise import Diagonal
from polydiff.core.objectives import Denoising
from polydiff.core.ode import euler, heun
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.rectified import Coupled, couple, straightness
from polydiff.core.sampling import Step, last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow
from polydiff.core.training import train
from tests.problems import Clouds, GaussianData, MixtureData

DATA = GaussianData.standard()
RF = Gaussian(RectifiedFlow())
ROOT = DATA.axes @ torch.diag(DATA.variances.sqrt()) @ DATA.axes.T


class Rectified(nn.Module):
    """The exact denoiser of reflowed Gaussian data: x_0 = m + A x_1, so x_t tells x_1, and x_0."""

    schedule = RF.schedule

    def forward(self, x: Tensor, t: Time, kernel: Any = None, **condition: Any) -> Belief:
        share = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1, 1)
        matrix = (1 - share) * ROOT + share * torch.eye(3, dtype=torch.float64)
        x_1 = torch.linalg.solve(matrix, (x - (1 - share.squeeze(-1)) * DATA.mean).unsqueeze(-1)).squeeze(-1)
        return Belief(DATA.mean + x_1 @ ROOT)


def analytic(x_1: Tensor) -> Tensor:
    """S of the Gaussian flow: along each axis x_t = (1 - t) m + z s(t), s = sqrt((1 - t)^2 v + t^2)."""
    z, total = x_1 @ DATA.axes, torch.zeros(len(x_1), dtype=torch.float64)
    for axis, v in enumerate(DATA.variances.tolist()):
        slope, _ = integrate.quad(lambda t, v=v: (t - (1 - t) * v) ** 2 / ((1 - t) ** 2 * v + t**2), 0, 1)
        total += z[:, axis] ** 2 * (slope - (1 - math.sqrt(v)) ** 2)
    return total


def test_pairs_of_the_flow() -> None:
    """The quantile map of the noise drawn, to the solver's order; the noise is that of each example's generator."""
    generators = example_generators(0, 0, range(5))
    errors = []
    for steps in (20, 40):
        pairs = couple(
            DATA.denoise(RF),
            RF,
            heun,
            torch.zeros(5, 3).double(),
            grids.uniform(steps),
            example_generators(0, 0, range(5)),
        )
        errors.append(float((pairs["x_0"] - DATA.flow(RF.schedule, pairs["x_1"], 1.0, 0.0)).abs().max()))
    assert errors[0] < 0.02 and errors[1] < 0.4 * errors[0]
    expected = torch.cat([torch.randn(1, 3, generator=g, dtype=torch.float64) for g in generators])
    assert torch.equal(pairs["x_1"], expected)
    assert pairs.keys() == {"x_0", "x_1"}
    with pytest.raises(ArgumentError, match="times"):
        couple(DATA.denoise(RF), RF, heun, torch.zeros(5, 3), torch.tensor([0.9, 0.0]))


def test_noise_starts_with_its_own_scale() -> None:
    """Where sigma_1 is not 1 the state at t = 1 is sigma_1 x_1, and x_1 has unit scale; scaled and ragged laws."""
    kernel = Gaussian(LinearBeta(0.1, 4.0), Diagonal(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)))
    seen: list[Tensor] = []

    def denoise(x: Tensor, t: Time) -> Belief:
        seen.append(x)
        return Belief(x)

    pairs = couple(denoise, kernel, euler, torch.zeros(4000, 3).double(), grids.uniform(1), seeded(0))
    torch.testing.assert_close(seen[0], float(kernel.schedule(torch.ones(()))[1]) * pairs["x_1"])
    torch.testing.assert_close(pairs["x_1"].std(0), torch.tensor([0.5, 1.0, 2.0]).double(), rtol=0.06, atol=0)

    clouds = Clouds([2, 4])
    ragged = Gaussian(RectifiedFlow(), Centred()).given(**clouds.structure)
    pairs = couple(clouds.denoise(ragged), ragged, heun, torch.zeros(6, 3).double(), grids.uniform(60), seeded(0))
    torch.testing.assert_close(pairs["x_0"], clouds.deviation * pairs["x_1"], rtol=0, atol=5e-3)


@pytest.mark.parametrize("make", ["coupled", "interpolant", "cold"])
def test_paths_of_clouds_are_those_of_their_noise_law(make: str) -> None:
    """Layout, space and metric, against the Gaussian kernel of the same law."""
    clouds = Clouds([2, 4])
    law = Centred().given(**clouds.structure)
    path: TensorPath = {
        "coupled": lambda: Coupled(RectifiedFlow(), lambda x, generator: x, law),
        "interpolant": lambda: Interpolant(lambda x, generator: x, noise=law),
        "cold": lambda: Cold(lambda x, t: x, noise=law),
    }[make]()
    kernel = Gaussian(RectifiedFlow(), law)
    x, y = (torch.randn(6, 3, generator=seeded(i), dtype=torch.float64) for i in range(2))
    share = torch.tensor([0.3, 2.0], dtype=torch.float64)
    assert path.examples(x) == 2 and path.dims(x).tolist() == [3, 9]
    assert torch.equal(path.project(x), kernel.project(x)) and not torch.equal(path.project(x), x)
    assert torch.equal(path.combine((share, x), (1 - share, y)), kernel.combine((share, x), (1 - share, y)))
    assert torch.equal(path.error(x, Belief(y), 0.5), kernel.error(x, Belief(y), 0.5))


def test_the_loss_of_the_exact_second_round_is_zero_on_given_pairs() -> None:
    """x_t lies between the pair that is given, and no noise is drawn; with fresh noise the loss would not vanish."""
    x_1 = torch.randn(50, 3, generator=seeded(0), dtype=torch.float64)
    x_0 = DATA.flow(RF.schedule, x_1, 1.0, 0.0)
    denoiser: Any = Rectified()
    objective = Denoising(denoiser, RF, objectives.flow_velocity)
    assert float(objective({"x_0": x_0, "x_1": x_1}, seeded(1)).max()) < 1e-18
    assert float(objective({"x_0": x_0}, seeded(1)).mean()) > 1e-2
    # The partner of a coupled path is not asked either, and paths without pairs in the batch still draw them.
    path = Coupled(RectifiedFlow(), lambda x, generator: (x - DATA.mean) @ torch.linalg.inv(ROOT))
    objective = Denoising(denoiser, path, objectives.flow_velocity)
    assert float(objective({"x_0": x_0}, seeded(1)).max()) < 1e-18
    assert float(objective({"x_0": x_0, "x_1": x_1.flip(0)}, seeded(1)).mean()) > 1e-2
    tokens: Any = Denoising(denoiser, uniform(Cosine(), 3))
    with pytest.raises(ArgumentError, match="x_1"):
        tokens({"x_0": torch.zeros(1, 2).long(), "x_1": torch.zeros(1, 2).long()})


def test_one_euler_step_is_exact_after_reflow() -> None:
    x_1 = torch.randn(20, 3, generator=seeded(0), dtype=torch.float64)
    end = DATA.flow(RF.schedule, x_1, 1.0, 0.0)
    one = last(euler(Rectified(), RF, x_1, grids.uniform(1)))
    torch.testing.assert_close(one, end, rtol=1e-10, atol=1e-10)
    before = last(euler(DATA.denoise(RF), RF, x_1, grids.uniform(1)))
    assert float((before - end).abs().max()) > 0.3
    rest = straightness(RF, x_1, 1.0, euler(Rectified(), RF, x_1, grids.uniform(30)))
    assert float(rest.abs().max()) < 1e-9


@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_straightness_of_the_gaussian_flow(ragged: bool) -> None:
    """Each trajectory's own number, by quadrature; the error of the measure falls with the square of the step."""
    x_1 = torch.randn(4, 3, generator=seeded(3), dtype=torch.float64)
    wanted = analytic(x_1)
    errors = []
    for n in (50, 100):
        times = grids.uniform(n)
        if ragged:
            times = torch.stack([times**p for p in (1.0, 1.2, 0.9, 1.1)], 1)

        def exact(times: Tensor = times):
            for t in times[1:]:
                yield Step(t if ragged else float(t), DATA.flow(RF.schedule, x_1, 1.0, t), None)

        found = straightness(RF, x_1, times[0] if ragged else 1.0, exact())
        errors.append(float(((found - wanted) / wanted).abs().max()))
    assert errors[0] < 5e-3 and errors[1] < 0.35 * errors[0], errors


def test_straightness_does_not_depend_on_the_schedule() -> None:
    """The same trajectory in other coordinates: x' = (alpha' + sigma') y at the time of equal u."""
    other = Gaussian(Cosine(0.0))
    x_1 = torch.randn(4, 3, generator=seeded(3), dtype=torch.float64)
    times = other.schedule.inverse(RF.schedule.log_snr(grids.uniform(40)))
    times[0], times[-1] = 1.0, 0.0
    a = straightness(RF, x_1, 1.0, euler(DATA.denoise(RF), RF, x_1, grids.uniform(40)))
    b = straightness(other, x_1, 1.0, euler(DATA.denoise(other), other, x_1, times))
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    # In the metric of the noise law.
    scaled = Gaussian(RectifiedFlow(), Diagonal(torch.full((3,), 2.0, dtype=torch.float64)))
    steps = list(euler(DATA.denoise(RF), RF, x_1, grids.uniform(40)))
    torch.testing.assert_close(straightness(scaled, x_1, 1.0, steps), a / 4, rtol=1e-10, atol=0)
    with pytest.raises(ArgumentError):
        straightness(RF, x_1, 1.0, [])


class Field(nn.Module):
    """A small network on the plane."""

    def __init__(self, hidden: int = 64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(5, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2)
            )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c.unsqueeze(1) / 1000
        return self.layers(torch.cat([x, c, torch.sin(6 * c), torch.cos(6 * c)], 1))


def test_reflow_by_training(tmp_path: Path) -> None:
    """Pairs of a mixture's exact flow, the ordinary objective and loop: the paths get straighter, and one Euler step of
    the second round lies much nearer the flow's end than one of the first."""
    data = MixtureData()
    denoise = data.denoise(RF)
    pairs = couple(denoise, RF, heun, torch.zeros(4096, 2).double(), grids.uniform(20), seeded(0))
    denoiser = GaussianDenoiser(Field(), RF.schedule, denoisers.flow, denoisers.time)
    objective = Denoising(denoiser, RF, objectives.flow_velocity)
    options = TrainingOptions(
        steps=300, batch_size=192, learning_rate=4e-3, warmup=10, decay_to=0.05, ema=0.98, cpu=True, progress=False
    )
    examples = Tensors(**{name: x.float() for name, x in pairs.items()})
    trained = train(objective, examples, options, folder=tmp_path)
    assert isinstance(trained.ema, Denoising)
    again = trained.ema.denoiser.given(RF)
    fresh = couple(denoise, RF, heun, torch.zeros(500, 2).double(), grids.uniform(20), seeded(1))
    x_1, end = fresh["x_1"], fresh["x_0"]
    with torch.no_grad():
        one = last(euler(again, RF, x_1.float(), grids.uniform(1))).double()
        bent = straightness(RF, x_1, 1.0, euler(denoise, RF, x_1, grids.uniform(30))).mean()
        straight = straightness(RF, x_1.float(), 1.0, euler(again, RF, x_1.float(), grids.uniform(30))).mean()
    bare = last(euler(denoise, RF, x_1, grids.uniform(1)))
    error, trivial = ((x - end).square().sum(1).median().sqrt() for x in (one, bare))
    assert float(error) < 0.4 * float(trivial)
    assert float(straight) < 0.5 * float(bent)
