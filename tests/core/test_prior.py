"""Prior mismatch, zero terminal SNR and truncated starts, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import elbo
from polydiff.core.categorical import absorbing, uniform
from polydiff.core.clouds import Centred
from polydiff.core.distributions import Normal
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.noise import Diagonal
from polydiff.core.ode import heun
from polydiff.core.prior import ZeroTerminal, mismatch, zero_terminal_snr
from polydiff.core.randomness import Randomness, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import (
    Cosine,
    LinearBeta,
    Quadratic,
    RectifiedFlow,
    Schedule,
    SubVP,
    Tabulated,
    VarianceExploding,
)
from polydiff.core.truncation import Covariance, Density, Energy, Variances, truncate
from tests.problems import Clouds, GaussianData

DATA = GaussianData.standard()
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
I = torch.eye(3, dtype=torch.float64)


def at(schedule: Schedule, t: float) -> tuple[float, float]:
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def test_mismatch_of_gaussian_kernels() -> None:
    """alpha_1^2 |x_0|^2/(2 sigma_1^2) for each example, over batches, in order."""
    schedule = SubVP(0.1, 3.0)
    kernel, x_0 = Gaussian(schedule), DATA.sample(7, seeded(0))
    found = mismatch((kernel, part) for part in x_0.split(3))
    alpha, sigma = at(schedule, 1.0)
    expected = (alpha / sigma) ** 2 * (x_0**2).sum(1) / 2
    torch.testing.assert_close(found.nats, expected)
    assert found.mean == pytest.approx(float(expected.mean()))
    assert found.most == pytest.approx(float(expected.max()))
    assert found.quantile(0.5) == pytest.approx(float(expected.median()))
    assert mismatch([(Gaussian(Cosine()), x_0)]).most == 0.0
    diagonal = Gaussian(schedule, Diagonal(torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)))
    whitened = (x_0 / torch.tensor([1.0, 0.5, 2.0])) ** 2
    torch.testing.assert_close(mismatch([(diagonal, x_0)]).nats, (alpha / sigma) ** 2 * whitened.sum(1) / 2)


def test_mismatch_of_clouds_and_tokens() -> None:
    clouds, schedule = Clouds([2, 4]), LinearBeta(0.1, 2.0)
    kernel = Gaussian(schedule, Centred()).given(**clouds.structure)
    x_0, (alpha, sigma) = clouds.sample(kernel, seeded(0)), at(schedule, 1.0)
    squares = torch.zeros(2, dtype=torch.float64).index_add(0, clouds.index, (x_0**2).sum(1))
    torch.testing.assert_close(mismatch([(kernel, x_0)]).nats, (alpha / sigma) ** 2 * squares / 2)
    p = alpha + (1 - alpha) / 3
    rest = (1 - alpha) / 3
    found = mismatch([(uniform(schedule, 3), torch.tensor([[0, 1], [2, 2]]))])
    assert found.nats.tolist() == pytest.approx([2 * (p * math.log(3 * p) + 2 * rest * math.log(3 * rest))] * 2)
    assert mismatch([(absorbing(Cosine(), 3, mask=2), torch.tensor([[0, 1]]))]).mean == 0.0


def test_zero_terminal_table() -> None:
    """Algorithm 1 of Lin et al., written with the betas that it returns."""
    old, new = Tabulated.from_betas(BETAS), zero_terminal_snr(BETAS)
    assert new.alphas_bar[-1] == 0.0
    assert new.alphas_bar[0] == pytest.approx(old.alphas_bar[0], rel=1e-14)
    assert at(new, 1.0)[0] == 0.0
    assert at(new, 1e-3)[0] == pytest.approx(math.sqrt(1 - 1e-4), rel=1e-14)
    kept = [math.sqrt(a) for a in old.alphas_bar]
    for i in (1, 400, 998):
        expected = (kept[i] - kept[-1]) * kept[0] / (kept[0] - kept[-1])
        assert math.sqrt(new.alphas_bar[i]) == pytest.approx(expected, rel=1e-12)
    assert new.t_min == old.t_min


@pytest.mark.parametrize(
    "base", [LinearBeta(), Quadratic(), SubVP(), Cosine(), Tabulated.from_betas(BETAS)], ids=lambda s: type(s).__name__
)
def test_zero_terminal_schedules(base: Schedule) -> None:
    schedule = ZeroTerminal(base)
    t = torch.cat([torch.logspace(-6, -1, 60), torch.linspace(0.11, 1, 60)]).double()
    (alpha, sigma), (old_alpha, old_sigma) = schedule(t), base(t)
    assert float(alpha[-1]) == 0.0
    assert float(sigma[-1]) == pytest.approx(math.hypot(*at(base, 1.0)), rel=1e-12)
    assert at(schedule, base.t_min) == pytest.approx(at(base, base.t_min), rel=1e-14)
    assert at(schedule, 0.0) == (1.0, 0.0)
    torch.testing.assert_close(alpha**2 + sigma**2, old_alpha**2 + old_sigma**2, rtol=1e-12, atol=0)
    assert bool((schedule.log_snr(t).diff() < 0).all())
    torch.testing.assert_close(schedule.inverse(schedule.log_snr(t)), t, rtol=1e-6, atol=1e-9)
    if isinstance(base, Tabulated):
        places = torch.arange(1, 1001, dtype=torch.float64) / 1000
        torch.testing.assert_close(
            schedule(places)[0] ** 2, torch.tensor(zero_terminal_snr(BETAS).alphas_bar, dtype=torch.float64)
        )
    kernel, x_0 = Gaussian(schedule), DATA.sample(4, seeded(0))
    assert mismatch([(kernel, x_0)]).most == pytest.approx(0.0, abs=1e-12)
    bound = elbo(DATA.denoise(kernel), kernel, x_0, grids.uniform(20, schedule), generator=seeded(1))
    assert bool(bound.total.isfinite().all())


def test_truncated_grids() -> None:
    times = grids.uniform(4)
    assert truncate(times, 0.6).tolist() == [0.6, 0.5, 0.25, 0.0]
    assert truncate(times, 0.5).tolist() == [0.5, 0.25, 0.0]
    assert truncate(times, 1.0).tolist() == times.tolist()
    assert truncate(times, 0.1).tolist() == [0.1, 0.0]
    both = torch.stack([times, times**1.1], 1)
    assert truncate(both, 0.6)[:, 1].tolist() == pytest.approx([0.6, 0.5**1.1, 0.25**1.1, 0.0])
    with pytest.raises(ArgumentError, match="^t:"):
        truncate(both, 0.49)


def test_starts_have_the_moments_of_the_noisy_data() -> None:
    """Fitted to points, against the empirical law of alpha x_0 + sigma x_1 with x_1 independent."""
    kernel, x_0, t = Gaussian(LinearBeta()), DATA.sample(50, seeded(0)), 0.3
    alpha, sigma = at(kernel.schedule, t)
    covariance = alpha**2 * torch.cov(x_0.T, correction=0) + sigma**2 * I
    full, by_element, energy = (kind.fitted(x_0, kernel, t) for kind in (Covariance, Variances, Energy))
    truth = MultivariateNormal(alpha * x_0.mean(0), covariance)
    diagonal = MultivariateNormal(alpha * x_0.mean(0), covariance.diag().diag())
    round_ = MultivariateNormal(torch.zeros(3).double(), (alpha**2 * float((x_0**2).mean()) + sigma**2) * I)
    count = 40_000
    like = x_0.new_zeros(count, 3)
    for start, law in ((full, truth), (by_element, diagonal), (energy, round_)):
        torch.testing.assert_close(start.log_prob(x_0), law.log_prob(x_0))
        marginal = MultivariateNormal(alpha * x_0, sigma**2 * I)
        torch.testing.assert_close(start.kl_from(kernel.marginal(x_0, t)), kl_divergence(marginal, law))
        each = torch.linspace(0.2, 0.9, 50, dtype=torch.float64)
        (alphas, sigmas) = kernel.schedule(each)
        marginal = MultivariateNormal(alphas[:, None] * x_0, sigmas[:, None, None] ** 2 * I)
        torch.testing.assert_close(start.kl_from(kernel.marginal(x_0, each)), kl_divergence(marginal, law))
        drawn = start.sample(like, seeded(3))
        error = (law.covariance_matrix.diag() / count).sqrt()
        assert bool(((drawn.mean(0) - law.mean).abs() < 5 * error).all())
        largest = float(law.covariance_matrix.diag().max())
        assert float((torch.cov(drawn.T) - law.covariance_matrix).abs().max()) < 5 * largest * math.sqrt(2 / count)
    linked = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=torch.float64)
    drawn = Covariance(x_0[0], linked, kernel, t).sample(like, seeded(3))
    error = torch.cov(drawn.T) - (alpha**2 * linked + sigma**2 * I)
    assert float(error.abs().max()) < 5 * (alpha**2 + sigma**2) * math.sqrt(2 / count)
    one_draw = Density(truth.log_prob)
    repeated = x_0[:1].expand(count, -1)
    estimate = one_draw.kl_from(kernel.marginal(repeated, t), seeded(4))
    expected = float(full.kl_from(kernel.marginal(x_0[:1], t)))
    assert abs(float(estimate.mean()) - expected) < 5 * float(estimate.std()) / count**0.5


@pytest.mark.parametrize("kind", [Covariance, Variances])
def test_densities_of_starts_can_be_differentiated(kind: Any) -> None:
    kernel, x_0 = Gaussian(LinearBeta()), DATA.sample(50, seeded(0))
    start, x = kind.fitted(x_0, kernel, 0.3), x_0[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(start.log_prob(x).sum(), x)
    step = 1e-5 * torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    rise = (start.log_prob(x + step) - start.log_prob(x - step)).sum() / 2
    torch.testing.assert_close((gradient * step).sum(), rise.detach(), rtol=1e-6, atol=0)


def test_starts_on_masked_and_centred_laws() -> None:
    deviation = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    kernel, t = Gaussian(RectifiedFlow(), Diagonal(deviation)), 0.4
    x_0 = kernel.project(DATA.sample(30, seeded(0)))
    kept = torch.tensor([0, 2])
    covariance = 0.6**2 * torch.cov(x_0.T, correction=0) + 0.4**2 * (deviation**2).diag()
    truth = MultivariateNormal(0.6 * x_0.mean(0)[kept], covariance[kept][:, kept])
    marginal = MultivariateNormal(0.6 * x_0[:, kept], 0.4**2 * (deviation[kept] ** 2).diag())
    full, by_element = Covariance.fitted(x_0, kernel, t), Variances.fitted(x_0, kernel, t)
    torch.testing.assert_close(full.kl_from(kernel.marginal(x_0, t)), kl_divergence(marginal, truth))
    diagonal = MultivariateNormal(truth.mean, truth.covariance_matrix.diag().diag())
    torch.testing.assert_close(by_element.kl_from(kernel.marginal(x_0, t)), kl_divergence(marginal, diagonal))
    for start in (full, by_element):
        assert bool((start.sample(x_0, [seeded(i) for i in range(30)])[:, 1] == 0).all())
    clouds = Clouds([2, 4])
    ragged = Gaussian(RectifiedFlow(), Centred()).given(**clouds.structure)
    x_0 = clouds.sample(ragged, seeded(0))
    energy = float((x_0**2).sum()) / 12
    law = Normal(torch.zeros_like(x_0), math.sqrt(0.36 * energy + 0.16), ragged.noise)
    start = Energy.fitted(x_0, ragged, t)
    torch.testing.assert_close(start.kl_from(ragged.marginal(x_0, t)), ragged.marginal(x_0, t).kl(law))
    drawn = start.sample(x_0, seeded(1))
    torch.testing.assert_close(ragged.project(drawn), drawn)


@pytest.mark.parametrize("t", [0.3, 0.7])
def test_truncated_bound_has_its_closed_value_and_lies_above_the_truth(t: float) -> None:
    """On Gaussian data: the information that x_t has, the open variance in each gap, and the last term."""
    schedule, count = LinearBeta(), 20_000
    kernel, times = Gaussian(schedule), truncate(grids.log_snr(25, schedule, low=-8, high=8), t)
    prior = Covariance(DATA.mean, DATA.covariance, kernel, t)
    x_0 = DATA.sample(count, seeded(0))
    bound = elbo(DATA.denoise(kernel), kernel, x_0, times, prior=prior, generator=seeded(1))
    numbers = [at(schedule, u) for u in times[:-1].tolist()]
    alpha, sigma = numbers[0]
    expected = float((1 + (alpha / sigma) ** 2 * DATA.variances).log().sum()) / 2
    assert abs(float(bound.prior.mean()) - expected) < 5 * float(bound.prior.std()) / count**0.5

    def left(alpha: float, sigma: float) -> float:
        return float((sigma**2 * DATA.variances / (alpha**2 * DATA.variances + sigma**2)).sum())

    for (alpha, sigma), (alpha_s, sigma_s) in zip(numbers[:-1], numbers[1:], strict=True):
        fall = 1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2
        expected += fall * (alpha_s / sigma_s) ** 2 * left(alpha, sigma) / 2
    alpha, sigma = numbers[-1]
    expected += 3 * math.log(2 * math.pi * (sigma / alpha) ** 2) / 2 + (alpha / sigma) ** 2 * left(alpha, sigma) / 2
    error = float(bound.total.std()) / count**0.5
    assert abs(float(bound.total.mean()) - expected) < 5 * error
    slack = bound.total + DATA.log_prob(x_0)
    assert float(slack.mean()) > 5 * float(slack.std()) / count**0.5
    # Without the learned prior the same grid costs more.
    plain = elbo(DATA.denoise(kernel), kernel, x_0, times, generator=seeded(1)).prior
    assert float(plain.mean()) > float(bound.prior.mean()) + 1e-3


def test_samplers_run_from_a_truncated_start() -> None:
    schedule, count = Cosine(), 20_000
    kernel, times = Gaussian(schedule), truncate(grids.log_snr(60, schedule, low=-8, high=9), 0.5)
    start = Covariance(DATA.mean, DATA.covariance, kernel, 0.5)
    x = start.sample(torch.zeros(count, 3, dtype=torch.float64), seeded(0))
    for sampler in (heun, ancestral):
        x_0 = last(sampler(DATA.denoise(kernel), kernel, x, times, generator=seeded(1)))
        assert float((x_0.mean(0) - DATA.mean).abs().max()) < 5 * 1.2 / count**0.5
        # Ancestral steps with the smallest variance fall short of it by O(1/n).
        bias = 0.02 if sampler is heun else 0.15
        assert float((torch.cov(x_0.T) - DATA.covariance).abs().max()) < 5 * 1.08 * (2 / count) ** 0.5 + bias


def test_a_published_table_runs_between_its_entries() -> None:
    """Tabulated is continuous: a solver on 37 times that are no entries of a table of 1000 meets the flow."""
    schedule = Tabulated.from_betas(BETAS)
    kernel, errors = Gaussian(schedule), []
    x = kernel.marginal(DATA.sample(8, seeded(0)), 1.0).sample(seeded(1))
    for steps in (18, 36):
        times = torch.cat([torch.linspace(1, 0.0377, steps + 1), torch.zeros(1)]).double()
        step = list(heun(DATA.denoise(kernel), kernel, x, times))[-2]
        exact = DATA.flow(schedule, x, 1.0, times[-2].item())
        errors.append(float((step.x - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.5)


class Named:
    """A start that records what it is asked."""

    def kl_from(self, law: Normal, generator: Randomness = None) -> Tensor:
        return torch.full((len(law.mean),), 7.0, dtype=torch.float64)


def test_the_bound_takes_any_start() -> None:
    kernel, x_0 = Gaussian(VarianceExploding()), DATA.sample(3, seeded(0))
    bound = elbo(DATA.denoise(kernel), kernel, x_0, torch.tensor([0.5, 0.1, 0.0]), prior=Named(), generator=seeded(1))
    assert bound.prior.tolist() == [7.0, 7.0, 7.0]


def test_bad_arguments_are_named() -> None:
    kernel, x_0 = Gaussian(Cosine()), DATA.sample(3, seeded(0))
    for run, name in (
        (lambda: mismatch([]), "batches"),
        (lambda: mismatch([(kernel, x_0)]).quantile(1.5), "share"),
        (lambda: zero_terminal_snr([0.5]), "betas"),
        (lambda: ZeroTerminal(VarianceExploding()), "base"),
        (lambda: truncate(grids.uniform(3), 0.0), "t"),
        (lambda: Covariance(DATA.mean, torch.eye(2), kernel, 0.5), "covariance"),
        (lambda: Covariance.fitted(x_0.long(), kernel, 0.5), "x_0"),
        (lambda: Variances.fitted(x_0, kernel, 1.5), "t"),
        (lambda: Energy(-1.0, kernel, 0.5), "energy"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            run()
