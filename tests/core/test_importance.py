"""Importance-sampled times: the same expectation as uniform times, with less variance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from polydiff.core import objectives
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.importance import LogSnrUniform
from polydiff.core.noise import Diagonal
from polydiff.core.objectives import Denoising
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, VarianceExploding
from tests.problems import GaussianData

DATA = GaussianData.standard()
LOW, HIGH = 1e-3, 0.98
SCHEDULES = [LinearBeta(), Cosine(), SubVP(), RectifiedFlow(), VarianceExploding(t_min=0.01)]


def exact(x_t: Tensor, t: Tensor, kernel: Any) -> Any:
    return DATA.denoise(kernel)(x_t, t)


def losses(kernel: Gaussian, weight: objectives.Weight, times: objectives.Times, count: int = 20_000) -> Tensor:
    x_0 = DATA.sample(count, seeded(0))
    return Denoising(exact, kernel, weight, times)({"x_0": x_0}, seeded(1))  # pyright: ignore[reportArgumentType]


def area(schedule: Schedule, low: float, high: float) -> float:
    """The diffusion loss in nats: 1/2 sum log (1 + SNR_low v)/(1 + SNR_high v) over the data's variances v."""
    snr = schedule.log_snr(torch.tensor([low, high], dtype=torch.float64)).exp().unsqueeze(1)
    logs = torch.log1p(snr * DATA.variances).sum(1) / 2
    return float(logs[0] - logs[1])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_likelihood_keeps_its_mean_and_loses_variance(schedule: Schedule) -> None:
    kernel, law, low = Gaussian(schedule), LogSnrUniform(LOW, HIGH), max(LOW, schedule.t_min)
    scale = 3 * (HIGH - low)
    plain = losses(kernel, objectives.likelihood, objectives.uniform(LOW, HIGH)) * scale
    better = losses(kernel, law.weight(objectives.likelihood), law) * scale
    expected = area(schedule, low, HIGH)
    for estimate in (plain, better):
        assert abs(float(estimate.mean()) - expected) < 5 * float(estimate.std()) / 20_000**0.5
    assert float(better.std()) / expected < 2.5
    # On exploding schedules lambda is linear in t already.
    if not isinstance(schedule, VarianceExploding):
        assert float(better.var()) < 0.5 * float(plain.var())


def test_even_distances_lose_more_variance() -> None:
    kernel, means = Gaussian(LinearBeta()), {}
    for spread in (False, True):
        law = LogSnrUniform(LOW, HIGH, spread)
        objective = Denoising(exact, kernel, law.weight(objectives.likelihood), law)  # pyright: ignore
        means[spread] = torch.stack(
            [objective({"x_0": DATA.sample(64, seeded(i, 0))}, seeded(i, 1)).mean() for i in range(150)]
        )
    pooled = (means[True].var() / 150 + means[False].var() / 150).sqrt()
    assert abs(float(means[True].mean() - means[False].mean())) < 5 * float(pooled)
    assert float(means[True].var()) < 0.9 * float(means[False].var())
    lambdas = kernel.schedule.log_snr(LogSnrUniform(LOW, HIGH, True)(kernel.schedule, 8, seeded(0))).sort().values
    ends = kernel.schedule.log_snr(torch.tensor([HIGH, LOW], dtype=torch.float64))
    torch.testing.assert_close(lambdas.diff(), (ends[1] - ends[0]).expand(7) / 8, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_law_and_its_density(schedule: Schedule) -> None:
    law, low = LogSnrUniform(LOW, HIGH), max(LOW, schedule.t_min)
    times = law(schedule, 4000, seeded(2))
    least, most = schedule.log_snr(torch.tensor([HIGH, low], dtype=torch.float64)).tolist()
    p = stats.kstest(schedule.log_snr(times).numpy(), stats.uniform(least, most - least).cdf).pvalue
    assert p > 1e-4
    assert times.dtype == torch.float64
    assert bool((times >= low).all() & (times <= HIGH).all())
    mean, _ = integrate.quad(lambda t: float(law.density(schedule, torch.tensor(t))), low, HIGH, limit=200)
    assert mean / (HIGH - low) == pytest.approx(1, rel=1e-6)


def test_any_weight_and_noise_law_keep_their_mean() -> None:
    deviation = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    kernel, law = Gaussian(Cosine(), Diagonal(deviation)), LogSnrUniform(LOW, HIGH)
    plain = losses(kernel, objectives.velocity, objectives.uniform(LOW, HIGH))
    other = losses(kernel, law.weight(objectives.velocity), law)
    error = ((plain.var() + other.var()) / 20_000).sqrt()
    assert abs(float(plain.mean() - other.mean())) < 5 * float(error)


def test_each_example_has_its_own_generator() -> None:
    schedule, law = LinearBeta(), LogSnrUniform()
    whole = law(schedule, 4, [seeded(i) for i in range(4)])
    torch.testing.assert_close(whole[2:], law(schedule, 2, [seeded(2), seeded(3)]), rtol=0, atol=0)


def test_ends_without_a_finite_log_snr_are_refused() -> None:
    for low, high in ((0.5, 0.5), (-0.1, 0.9), (0.1, 1.1)):
        with pytest.raises(ArgumentError, match="^low, high"):
            LogSnrUniform(low, high)
    for law in (LogSnrUniform(high=1.0), LogSnrUniform(low=0.0)):
        with pytest.raises(ArgumentError, match="^low, high"):
            law(Cosine(), 2)
    with pytest.raises(ArgumentError, match="^high"):
        LogSnrUniform(high=0.005)(VarianceExploding(t_min=0.01), 2)
