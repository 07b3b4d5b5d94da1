"""Inversion against the exact flow and by the round trip; great circles against trigonometry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.inversion import angles, encode, interpolate, slerp
from polydiff.core.kernel import Time
from polydiff.core.multistep import exponential_adams_bashforth
from polydiff.core.noise import Diagonal
from polydiff.core.ode import heun
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from polydiff.core.spaces import data, share, straight
from tests.problems import Clouds, GaussianData

DATA = GaussianData.standard()


def eased(steps: int, power: float, end: float = 1e-3) -> Tensor:
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    return torch.cat([1 + (end - 1) * u * u * (3 - 2 * u), u.new_zeros(1)])


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("order", [1, 2])
def test_latents_are_those_of_the_exact_flow(schedule: Schedule, order: int) -> None:
    """Up to alpha = 0; grids per example. Later, from the state that it reached at t_1, the error has the order."""
    kernel, x = Gaussian(schedule), DATA.sample(3, seeded(0))
    errors = []
    for steps in (40, 80):
        times = torch.stack([eased(steps, power) for power in (0.9, 1.0, 1.1)], 1)
        first, *_, latent = encode(DATA.denoise(kernel), kernel, x, times, order=order)
        assert torch.equal(torch.as_tensor(latent.t), times[0])
        assert torch.equal(torch.as_tensor(first.t), times[-2])
        exact = DATA.flow(schedule, first.x, first.t, latent.t)
        errors.append(float((latent.x - exact).abs().max()))
        # The first interval, from t = 0, against the flow: x_(t_1) - alpha x_0 is of order sigma^2.
        sigma = schedule(times[-2])[1]
        assert bool(((first.x - DATA.flow(schedule, x, 0.0, first.t)).abs().amax(1) < 3 * sigma**2 + 1e-9).all())
    assert math.log2(errors[0] / errors[1]) > order - 0.2, errors
    assert errors[1] < 0.1


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), VarianceExploding(0.01, 20.0)], ids=repr)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_round_trip_error_falls_with_the_order(schedule: Schedule, order: int) -> None:
    kernel, x = Gaussian(schedule), DATA.sample(3, seeded(0))
    denoise, errors = DATA.denoise(kernel), []
    for steps in (30, 60):
        times = eased(steps, 1.0, 0.01)
        latent = last(encode(denoise, kernel, x, times, order=order))
        back = last(exponential_adams_bashforth(denoise, kernel, latent, times, order=order, taper=False))
        errors.append(float((back - x).abs().max()))
    assert math.log2(errors[0] / errors[1]) > min(order, 2) - 0.2, errors
    assert errors[1] < (0.3, 0.02, 0.02)[order - 1], errors


def test_the_first_interval_undoes_the_last_of_a_sampler() -> None:
    """x_0 = m(x, t_1): off by sigma^4, so half the sigma means a sixteenth."""
    kernel, x = Gaussian(RectifiedFlow()), DATA.sample(5, seeded(0))
    denoise, errors = DATA.denoise(kernel), []
    for t in (0.08, 0.04):
        first = next(encode(denoise, kernel, x, torch.tensor([1.0, t, 0.0])))
        errors.append(float((denoise(first.x, t).mean - x).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_call_per_interval_in_any_space(steps: int) -> None:
    kernel, x, calls = Gaussian(Cosine()), DATA.sample(2, seeded(0)), []

    def denoise(x: Tensor, t: Time) -> Belief:
        calls.append(t)
        return DATA.denoise(kernel)(x, t)

    times = grids.uniform(steps)
    reached = list(encode(denoise, kernel, x, times, space=straight, clock=share, order=3))
    assert [step.t for step in reached] == times.tolist()[-2::-1]
    assert calls == [times.tolist()[-2], *times.tolist()[-2:0:-1]]
    assert bool(torch.isfinite(last(encode(denoise, kernel, x, times, space=data, order=2))).all())
    with pytest.raises(ArgumentError, match="^times"):
        next(encode(denoise, kernel, x, times.flip(0)))


def test_great_circles() -> None:
    kernel = Gaussian(Cosine())

    def at(*turns: float) -> Tensor:
        angle = torch.tensor(turns, dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin()], 1)

    x, y = at(0.0, 0.3, 1.0), at(1.0, 0.3, 1.0 + 3.0)
    torch.testing.assert_close(angles(kernel, 5 * x, 0.1 * y), torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(slerp(kernel, x, y, 0.25), at(0.25, 0.3, 1.75))
    shares = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(slerp(kernel, x, y, shares), at(0.0, 0.3, 4.0))
    # Lengths that differ blend as in Shoemake's formula.
    torch.testing.assert_close(slerp(kernel, 2 * x, 2 * y, 0.25), 2 * at(0.25, 0.3, 1.75))
    near = at(1e-9, 0.3, 1.0)
    assert bool(torch.isfinite(slerp(kernel, x, near, 0.5)).all())


def test_geometry_is_that_of_the_noise_law() -> None:
    deviation = torch.tensor([0.5, 2.0], dtype=torch.float64)
    scaled, plain = Gaussian(Cosine(), Diagonal(deviation)), Gaussian(Cosine())
    x, y = (torch.randn(4, 2, generator=seeded(i), dtype=torch.float64) for i in (0, 1))
    expected = deviation * slerp(plain, x, y, 0.3)
    torch.testing.assert_close(slerp(scaled, deviation * x, deviation * y, 0.3), expected)
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x, y = (kernel.noise.draw(torch.zeros(10, 3, dtype=torch.float64), seeded(i)) for i in (0, 1))
    shares = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    whole = slerp(kernel, x, y, shares)
    torch.testing.assert_close(kernel.project(whole), whole)
    for i in range(3):  # each cloud alone, flattened
        mine = clouds.index == i
        alone = slerp(plain, x[mine].reshape(1, -1), y[mine].reshape(1, -1), float(shares[i]))
        torch.testing.assert_close(whole[mine].reshape(1, -1), alone)


def test_interpolation_begins_and_ends_at_the_data() -> None:
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x, y = (clouds.sample(kernel, seeded(i)) for i in (0, 1))
    times = eased(40, 1.0)
    between = interpolate(clouds.denoise(kernel), kernel, x, y, times, [0.0, 0.5, 1.0], sampler=heun)
    torch.testing.assert_close(between[0], x, rtol=0.02, atol=0.02)
    torch.testing.assert_close(between[2], y, rtol=0.02, atol=0.02)
    # The flow of a centred normal only rescales it, so the middle is the middle of the data's great circle.
    torch.testing.assert_close(between[1], slerp(kernel, x, y, 0.5), rtol=0.02, atol=0.02)
