"""Sensitivities of starts against the quantile map of one dimension, normal data, and the borders of a mixture."""

from __future__ import annotations

import math

import pytest
import torch

from polydiff.core.borders import at_borders, sensitivities
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.fitting import Trajectories
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, VarianceExploding
from tests.problems import Clouds, GaussianData, MixtureData


def test_one_dimension_is_the_quotient_of_densities() -> None:
    centres = torch.tensor([[-1.0], [1.5]], dtype=torch.float64)
    data = MixtureData(centres, torch.tensor([0.4, 0.6]), 0.3)
    kernel = Gaussian(Cosine())
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).unsqueeze(1)
    batch = Trajectories(data.denoise(kernel), kernel, x, torch.zeros_like(x), 1.0)
    found = sensitivities(batch, directions=1, steps=300, generator=torch.Generator().manual_seed(0))
    # Phi maps quantiles to quantiles: F(Phi(x)) = the normal distribution's at x.
    y = quantiles(data, torch.special.ndtr(x))
    expected = torch.exp(-(x**2) / 2).squeeze(1) / math.sqrt(2 * math.pi) / density(data, y)
    assert expected.max() / expected.min() > 5
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


def density(data: MixtureData, y: torch.Tensor) -> torch.Tensor:
    d = data.deviation
    parts = torch.exp(-(((y - data.centres.T) / d) ** 2) / 2) / (d * math.sqrt(2 * math.pi))
    return parts @ data.weights.double()


def quantiles(data: MixtureData, level: torch.Tensor) -> torch.Tensor:
    """By bisection."""
    low, high = torch.full_like(level, -20), torch.full_like(level, 20)
    for _ in range(80):
        middle = (low + high) / 2
        reached = torch.special.ndtr((middle - data.centres.T) / data.deviation) @ data.weights.double()
        below = reached.unsqueeze(1) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize(("directions", "start"), [(1, 1.0), (3, 1.0), (2, 0.4)])
def test_normal_data_have_the_quotient_of_their_deviations(directions: int, start: float) -> None:
    data = GaussianData(torch.zeros(4, dtype=torch.float64), 0.49 * torch.eye(4, dtype=torch.float64))
    kernel = Gaussian(Cosine())
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = Trajectories(data.denoise(kernel), kernel, x, x, start)
    found = sensitivities(batch, directions=directions, steps=60)
    alpha, sigma = kernel.schedule(torch.tensor(start, dtype=torch.float64))
    expected = 0.7 / torch.hypot(0.7 * alpha, sigma)
    torch.testing.assert_close(found, expected.expand(6), rtol=1e-4, atol=0)


def test_directions_lie_where_the_states_do() -> None:
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    exact = clouds.denoise(kernel)

    def denoise(x: torch.Tensor, t: Time) -> Belief:
        return Belief(kernel.project(exact(x, t).mean))

    found = sensitivities(Trajectories(denoise, kernel, x, x, 1.0), generator=seeded(2))
    torch.testing.assert_close(found, torch.full((3,), clouds.deviation, dtype=torch.float64), rtol=1e-4, atol=0)


def test_starts_of_a_large_deviation_count_in_their_own_unit() -> None:
    data = GaussianData(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    kernel = Gaussian(VarianceExploding(sigma_max=50.0))
    x = 50 * torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = Trajectories(data.denoise(kernel), kernel, x, x, 1.0)
    torch.testing.assert_close(sensitivities(batch), torch.full((5,), 1 / math.sqrt(2501)).double(), rtol=1e-3, atol=0)


def test_the_border_between_two_modes_comes_first() -> None:
    data = MixtureData(torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64), deviation=0.2)
    kernel = Gaussian(Cosine())
    x = torch.tensor([[1.0, 0.0], [0.01, 1.0], [-1.0, 0.5], [0.1, -1.0]], dtype=torch.float64)
    batch = Trajectories(data.denoise(kernel), kernel, x, x, 1.0)
    assert at_borders(sensitivities(batch), 2).tolist() == [1, 3]


@pytest.mark.parametrize("wrong", [{"directions": 0}, {"width": 0.0}, {"width": -1.0}])
def test_refusals(wrong: dict[str, float]) -> None:
    batch = Trajectories(lambda x, t: None, Gaussian(Cosine()), torch.zeros(1, 1), torch.zeros(1, 1), 1.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="directions, width"):
        sensitivities(batch, **wrong)  # type: ignore[arg-type]
