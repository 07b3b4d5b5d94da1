"""The adaptive solver against the exact flow and torchdiffeq; steps of each example's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from polydiff.core import grids
from polydiff.core.adaptive import ERROR, PLACES, STAGES, adaptive
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.noise import Diagonal
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from tests.problems import Clouds, GaussianData, MixtureData

DATA = GaussianData.standard()
STOPS = torch.tensor([1.0, 0.5, 0.01, 0.0], dtype=torch.float64)


def start(kernel: Gaussian, count: int, t: float = 1.0) -> Tensor:
    return kernel.marginal(DATA.sample(count, seeded(1)), t).sample(seeded(2))


def counted(denoise: Callable[[Tensor, Time], Belief], calls: list[Time]) -> Callable[[Tensor, Time], Belief]:
    def denoise_(x: Tensor, t: Time) -> Belief:
        calls.append(t)
        return denoise(x, t)

    return denoise_


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_the_exact_flow_is_met_within_the_tolerance(schedule: Schedule) -> None:
    """From alpha = 0 too. A thousandth of the tolerance costs about 10^(3/5) = 4 times the calls."""
    kernel, calls = Gaussian(schedule), {}
    x = start(kernel, 4)
    for tolerance in (1e-4, 1e-7):
        calls[tolerance] = []
        denoise = counted(DATA.denoise(kernel), calls[tolerance])
        steps = list(adaptive(denoise, kernel, x, STOPS, rtol=tolerance, atol=tolerance))
        assert [step.t for step in steps] == STOPS.tolist()[1:]
        for step in steps[:-1]:
            error = (step.x - DATA.flow(schedule, x, 1.0, step.t)).abs().max()
            assert float(error) < 30 * tolerance * max(1.0, float(step.x.abs().max()))
        torch.testing.assert_close(steps[-1].x, DATA.denoise(kernel)(steps[-2].x, 0.01).mean)
    assert 1.5 < len(calls[1e-7]) / len(calls[1e-4]) < 8


def test_parity_with_torchdiffeq() -> None:
    """Their dopri5 on the probability-flow ODE in t, with drift and diffusion, at a fine tolerance; a mixture."""
    schedule, data = LinearBeta(), MixtureData()
    kernel = Gaussian(schedule)
    x = torch.randn(6, 2, generator=seeded(0), dtype=torch.float64)

    def rate(t: Tensor, x: Tensor) -> Tensor:
        alpha, sigma = schedule(t)
        score = (alpha * data.denoise(kernel)(x, t).mean - x) / sigma**2
        return schedule.drift(t) * x - schedule.diffusion(t) ** 2 * score / 2

    theirs = odeint(rate, x, STOPS[:-1], rtol=1e-9, atol=1e-9, method="dopri5")
    ours = list(adaptive(data.denoise(kernel), kernel, x, STOPS, rtol=1e-8, atol=1e-8))
    for step, other in zip(ours[:-1], theirs[1:], strict=True):
        torch.testing.assert_close(step.x, other, rtol=1e-6, atol=1e-6)


def test_the_tableau_is_consistent() -> None:
    """Order conditions: sum a = c, sum b c^(k-1) = 1/k for k to 5 and 4; b A c = 1/6."""
    c, b = torch.tensor(PLACES, dtype=torch.float64), torch.tensor([*STAGES[-1], 0.0], dtype=torch.float64)
    lower = b - torch.tensor(ERROR, dtype=torch.float64)
    A = torch.stack([torch.tensor([*row, *[0.0] * (7 - len(row))], dtype=torch.float64) for row in STAGES])
    torch.testing.assert_close(A.sum(1), c)
    for weights, order in ((b, 5), (lower, 4)):
        for k in range(1, order + 1):
            assert float(weights @ c ** (k - 1)) == pytest.approx(1 / k)
        assert float(weights @ A @ c) == pytest.approx(1 / 6)
        assert float(weights @ A @ c**2) == pytest.approx(1 / 12)
        assert float(weights @ A @ A @ c) == pytest.approx(1 / 24)
    assert float(lower @ c**4) != pytest.approx(1 / 5)


def test_neighbours_change_nothing() -> None:
    """A mixture, times of each example's own: alone, each takes the same steps, and an easy one takes fewer."""
    kernel, data = Gaussian(Cosine()), MixtureData()
    x = torch.randn(4, 2, generator=seeded(3), dtype=torch.float64)
    times = torch.tensor([[1.0, 0.9, 1.0, 0.3], [0.02, 0.05, 0.4, 0.2], [0.0] * 4], dtype=torch.float64)
    together: list[Time] = []
    whole = list(adaptive(counted(data.denoise(kernel), together), kernel, x, times))
    counts = []
    for i in range(4):
        calls: list[Time] = []
        alone = list(adaptive(counted(data.denoise(kernel), calls), kernel, x[i : i + 1], times[:, i]))
        for one, two in zip(whole, alone, strict=True):
            torch.testing.assert_close(one.x[i : i + 1], two.x, rtol=1e-10, atol=1e-10)
        counts.append(len(calls))
    assert len(together) == max(counts)
    assert min(counts) < max(counts)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_calls_are_counted(tolerance: float) -> None:
    """One at the start, six per attempt (the last slope is the next step's first), one for the mean at the end."""
    kernel, calls = Gaussian(LinearBeta()), []
    run = adaptive(
        counted(DATA.denoise(kernel), calls), kernel, start(kernel, 2), STOPS, rtol=tolerance, atol=tolerance
    )
    assert calls == []
    assert [next(run).t for _ in range(3)] == STOPS.tolist()[1:]
    with pytest.raises(StopIteration) as end:
        next(run)
    assert end.value.value == len(calls)
    assert (len(calls) - 2) % 6 == 0


def test_the_norm_is_that_of_the_noise_law() -> None:
    """Clouds with their centre fixed, and scaled noise: steps depend on a state only in units of the noise."""
    clouds = Clouds([2, 5, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    steps = list(adaptive(clouds.denoise(kernel), kernel, x, STOPS, rtol=1e-6, atol=1e-6))
    for step in steps:
        torch.testing.assert_close(kernel.project(step.x), step.x, rtol=0, atol=1e-12)
    variance = sum(float(n) ** 2 * d for n, d in zip(Cosine()(STOPS[2]), (clouds.deviation**2, 1.0), strict=True))
    torch.testing.assert_close(steps[1].x, x * variance**0.5, rtol=1e-4, atol=1e-4)

    scale, counts = torch.tensor([1e-3, 1e-3, 1e-3], dtype=torch.float64), []
    plain, small = Gaussian(LinearBeta()), Gaussian(LinearBeta(), Diagonal(scale))
    y = start(plain, 3)

    def shrunk(x: Tensor, t: Time) -> Belief:
        return Belief(scale * DATA.denoise(plain)(x / scale, t).mean)

    for kernel, denoise, state in ((plain, DATA.denoise(plain), y), (small, shrunk, scale * y)):
        counts.append([])
        last(adaptive(counted(denoise, counts[-1]), kernel, state, STOPS))
    assert len(counts[0]) == len(counts[1])


def test_the_norm_is_a_mean_over_dimensions() -> None:
    """A state that holds the same thing many times takes the same steps."""
    kernel, counts = Gaussian(LinearBeta()), []
    x, exact = start(kernel, 3), DATA.denoise(kernel)

    def each(x: Tensor, t: Time) -> Belief:
        return Belief(torch.cat([exact(part, t).mean for part in x.split(3, 1)], 1))

    for state in (x, x.repeat(1, 64)):
        counts.append([])
        last(adaptive(counted(each, counts[-1]), kernel, state, STOPS, rtol=0.0, atol=1e-5))
    assert len(counts[0]) == len(counts[1])


def test_bad_tolerances_and_networks_are_named() -> None:
    kernel = Gaussian(Cosine())
    x, denoise = start(kernel, 2), DATA.denoise(Gaussian(Cosine()))
    for name, rtol, atol in (("rtol", -1.0, 0.0), ("atol", 1e-3, float("nan")), ("rtol, atol", 0.0, 0.0)):
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            next(adaptive(denoise, kernel, x, STOPS, rtol=rtol, atol=atol))
    with pytest.raises(ArgumentError, match="max_steps"):
        next(adaptive(lambda x, t: Belief(x * torch.nan), kernel, x, STOPS, max_steps=20))
    with pytest.raises(ArgumentError, match="^times"):
        next(adaptive(denoise, kernel, x, torch.tensor([1.0, 0.5])))


def test_gradients_flow_to_the_start() -> None:
    kernel = Gaussian(LinearBeta())
    x = start(kernel, 2).requires_grad_()
    reached = last(adaptive(DATA.denoise(kernel), kernel, x, grids.uniform(2), rtol=1e-9, atol=1e-9))
    (gradient,) = torch.autograd.grad(reached.sum(), x)
    step = 1e-6 * torch.randn(x.shape, generator=seeded(4), dtype=torch.float64)
    ends = [
        last(adaptive(DATA.denoise(kernel), kernel, x.detach() + sign * step, grids.uniform(2), rtol=1e-9, atol=1e-9))
        for sign in (1, -1)
    ]
    assert float((gradient * step).sum()) == pytest.approx(float((ends[0] - ends[1]).sum() / 2), rel=1e-3)
