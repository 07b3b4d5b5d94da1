"""Objectives: published losses computed in their own space, and what makes training reproducible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from polydiff.core import denoisers, objectives
from polydiff.core.categorical import absorbing
from polydiff.core.denoisers import GaussianDenoiser, TokenDenoiser
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.noise import Diagonal, masked
from polydiff.core.objectives import Denoising
from polydiff.core.randomness import Randomness, example_generators, seeded
from polydiff.core.rectified import Coupled
from polydiff.core.schedules import EDM, Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, VarianceExploding

B = 6
X_0 = torch.randn(B, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
    """Any smooth function of the input and of what it is told."""
    return torch.sin(2 * x) + c.reshape(-1, 1, 1) / 1000


def at(t: Tensor) -> objectives.Times:
    return lambda schedule, count, generator: t


T = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)


def direct(schedule: Schedule, target: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, target, alpha, sigma) with the noise and the input made by hand; mean squared error per example."""
    alpha, sigma = (number.reshape(-1, 1, 1) for number in schedule(T))
    x_1 = torch.randn(X_0.shape, generator=seeded(4), dtype=torch.float64)
    x_t = alpha * X_0 + sigma * x_1
    c = 500 - 25 * schedule.log_snr(T).clamp(-20, 20)
    return network(x_t, c), target(alpha, sigma, X_0, x_1), alpha, sigma


def mean_square(x: Tensor) -> Tensor:
    return (x**2).flatten(1).mean(1)


PUBLISHED: dict[str, tuple[Any, objectives.Weight, Callable[..., Tensor], Callable[..., Tensor] | None]] = {
    "eps": (denoisers.eps, objectives.simple, lambda a, s, x_0, x_1: x_1, None),
    "x0": (denoisers.x0, objectives.plain, lambda a, s, x_0, x_1: x_0, None),
    "v": (denoisers.v, objectives.velocity, lambda a, s, x_0, x_1: a * x_1 - s * x_0, None),
    "flow": (denoisers.flow, objectives.flow_velocity, lambda a, s, x_0, x_1: x_1 - x_0, None),
    # Hang et al. 2023, eq. 7: min(SNR, gamma)/SNR in eps space; Choi et al. 2022, eq. 8: 1/(k + SNR)^gamma.
    "min-snr": (
        denoisers.eps,
        objectives.min_snr(5.0),
        lambda a, s, x_0, x_1: x_1,
        lambda a, s: torch.minimum((a / s) ** 2, torch.tensor(5.0)) / (a / s) ** 2,
    ),
    "p2": (
        denoisers.eps,
        objectives.p2(1.0, 0.5),
        lambda a, s, x_0, x_1: x_1,
        lambda a, s: 1 / (1 + (a / s) ** 2) ** 0.5,
    ),
}


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), SubVP(), RectifiedFlow(), VarianceExploding()], ids=repr)
@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_make_the_published_losses(name: str, schedule: Schedule) -> None:
    parametrisation, weight, target, extra = PUBLISHED[name]
    denoiser = GaussianDenoiser(network, schedule, parametrisation)  # pyright: ignore[reportArgumentType]
    objective = Denoising(denoiser, Gaussian(schedule), weight, at(T))
    output, wanted, alpha, sigma = direct(schedule, target)
    expected = mean_square(output - wanted)
    if extra is not None:
        expected = expected * extra(alpha, sigma).flatten()
    torch.testing.assert_close(objective({"x_0": X_0}, seeded(4)), expected, rtol=1e-7, atol=1e-10)


def test_the_edm_loss() -> None:
    """Karras et al. 2022, eq. 2 and table 1: lambda(sigma) |D(x + n; sigma) - x|^2 = |F - target|^2."""
    schedule, data = EDM(), 0.5
    sigma = schedule(T)[1].reshape(-1, 1, 1)
    noise = sigma * torch.randn(X_0.shape, generator=seeded(4), dtype=torch.float64)
    c_skip = data**2 / (sigma**2 + data**2)
    c_out, c_in = sigma * data / (sigma**2 + data**2).sqrt(), 1 / (sigma**2 + data**2).sqrt()
    F = network(c_in * (X_0 + noise), 500 - 25 * schedule.log_snr(T).clamp(-20, 20))
    D = c_skip * (X_0 + noise) + c_out * F
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    denoiser = GaussianDenoiser(network, schedule, denoisers.edm(data))  # pyright: ignore[reportArgumentType]
    loss = Denoising(denoiser, Gaussian(schedule), objectives.edm(data), at(T))({"x_0": X_0}, seeded(4))
    torch.testing.assert_close(loss, mean_square(weight.sqrt() * (D - X_0)), rtol=1e-9, atol=0)
    torch.testing.assert_close(loss, mean_square(F - (X_0 - c_skip * (X_0 + noise)) / c_out), rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", [LinearBeta(), VarianceExploding(), RectifiedFlow()], ids=repr)
def test_the_likelihood_weight_integrates_to_the_fall_of_the_snr(schedule: Schedule) -> None:
    """int w dt = (SNR(a) - SNR(b))/2 (Kingma et al. 2021, eq. 14-17)."""
    a, b = 0.2, 0.9
    area, _ = integrate.quad(
        lambda t: float(objectives.likelihood(schedule, torch.tensor(t, dtype=torch.float64))), a, b
    )
    ends = schedule.log_snr(torch.tensor([a, b], dtype=torch.float64)).exp().tolist()
    assert area == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-6)


@pytest.mark.parametrize("law", [objectives.uniform(), objectives.low_discrepancy()], ids=["uniform", "low"])
def test_the_estimate_is_unbiased(law: objectives.Times) -> None:
    """Mean over seeds = the integral over t of the expected loss, which is closed for a network of zeros on x0."""
    schedule = Cosine()
    denoiser = GaussianDenoiser(lambda x, c: 0 * x, schedule, denoisers.x0)  # pyright: ignore[reportArgumentType]
    weight = lambda schedule, t: t**2  # noqa: E731
    objective = Denoising(denoiser, Gaussian(schedule), weight, law)
    losses = torch.stack([objective({"x_0": X_0}, seeded(seed)) for seed in range(800)])
    expected = mean_square(X_0) / 3
    assert bool(((losses.mean(0) - expected).abs() < 5 * losses.std(0) / 800**0.5 + 1e-4).all())
    assert losses.shape == (800, B)


def test_low_discrepancy_times_cover_the_interval() -> None:
    times = objectives.low_discrepancy(0.1, 0.9)(Cosine(), 8, seeded(0)).sort().values
    torch.testing.assert_close(times.diff(), torch.full((7,), 0.1, dtype=torch.float64))
    independent = objectives.uniform(0.1, 0.9)(Cosine(), 1000, seeded(0))
    assert 0.1 <= float(independent.min()) < 0.11
    assert 0.89 < float(independent.max()) <= 0.9
    assert float(objectives.uniform()(VarianceExploding(t_min=0.01), 1000, seeded(0)).min()) >= 0.01


@pytest.mark.parametrize("schedule", [EDM(), LinearBeta()], ids=repr)
def test_log_normal_noise_levels(schedule: Schedule) -> None:
    times = objectives.log_normal(-1.2, 1.2)(schedule, 4000, seeded(0))
    log_sigma = -schedule.log_snr(times) / 2
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=5 * 1.2 / 4000**0.5)
    assert float(log_sigma.std()) == pytest.approx(1.2, rel=0.06)


class Counting(nn.Module):
    """Gives back the label it is told, so that a loss shows what was dropped."""

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(x) + label.reshape(-1, 1, 1).to(x)


def test_drop_replaces_that_share_of_the_labels() -> None:
    x_0 = torch.zeros(4000, 1, 1)
    label = torch.arange(4000) % 3 + 1
    objective = Denoising(
        GaussianDenoiser(Counting(), Cosine(), denoisers.x0),
        Gaussian(Cosine()),
        objectives.plain,
        drop={"label": (0.2, 9)},
    )
    loss = objective({"x_0": x_0, "label": label}, seeded(0))
    dropped = loss == 81
    assert bool((dropped | (loss == label**2)).all())
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=5 * (0.16 / 4000) ** 0.5)
    assert label.tolist() == [i % 3 + 1 for i in range(4000)]  # the batch itself is left alone
    for share, value in ((0.0, label**2), (1.0, torch.full_like(label, 81))):
        all_or_none = Denoising(objective.denoiser, objective.kernel, objectives.plain, drop={"label": (share, 9)})
        assert torch.equal(all_or_none({"x_0": x_0, "label": label}, seeded(0)), value.float())


def test_losses_do_not_depend_on_the_split_of_the_batch() -> None:
    """With generators by global position, two processes, or two smaller batches, give the same losses."""
    kernel = Gaussian(Cosine())
    denoiser = GaussianDenoiser(network, Cosine(), denoisers.v)  # pyright: ignore[reportArgumentType]
    objective = Denoising(denoiser, kernel, objectives.velocity, drop={"label": (0.5, 9)})
    batch = {"x_0": X_0, "label": torch.arange(B)}
    whole = objective(batch, example_generators(0, 7, range(B)))
    parts = [
        objective({k: v[own] for k, v in batch.items()}, example_generators(0, 7, own))
        for own in ([0, 1], [2, 3, 4, 5])
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)
    assert not torch.equal(whole, objective(batch, example_generators(0, 8, range(B))))


def test_masked_cells_and_empty_examples_count_nothing() -> None:
    mask = torch.zeros(B, 3, 4, dtype=torch.bool)
    mask[1:, 0] = True
    schedule = LinearBeta()
    denoiser = GaussianDenoiser(network, schedule, denoisers.eps)  # pyright: ignore[reportArgumentType]
    losses = Denoising(denoiser, Gaussian(schedule, masked(mask)), times=at(T))({"x_0": X_0 * mask}, seeded(4))
    assert float(losses[0]) == 0.0
    output, target, *_ = direct(schedule, lambda a, s, x_0, x_1: x_1)
    alpha, sigma = (u.reshape(-1, 1, 1) for u in schedule(T))
    x_t = (alpha * X_0 + sigma * target) * mask
    output = network(x_t, 500 - 25 * schedule.log_snr(T).clamp(-20, 20))
    torch.testing.assert_close(losses[1:], ((output - target)[:, 0] ** 2).mean(1)[1:], rtol=1e-8, atol=0)


def test_the_error_is_measured_in_the_noise_laws_metric() -> None:
    """PriorGrad's loss: (eps - F)' Sigma^-1 (eps - F) (Lee et al. 2022, eq. 7)."""
    deviation = 0.2 + torch.rand(3, 4, generator=seeded(1), dtype=torch.float64)
    schedule = LinearBeta()
    kernel = Gaussian(schedule, Diagonal(deviation))
    denoiser = GaussianDenoiser(network, schedule, denoisers.eps)  # pyright: ignore[reportArgumentType]
    losses = Denoising(denoiser, kernel, times=at(T))({"x_0": X_0}, seeded(4))
    alpha, sigma = (u.reshape(-1, 1, 1) for u in schedule(T))
    x_1 = deviation * torch.randn(X_0.shape, generator=seeded(4), dtype=torch.float64)
    output = network(alpha * X_0 + sigma * x_1, 500 - 25 * schedule.log_snr(T).clamp(-20, 20))
    torch.testing.assert_close(losses, mean_square((output - x_1) / deviation), rtol=1e-8, atol=0)


def test_coupled_paths_train_on_their_pairs() -> None:
    """Reflow: x_1 is a given partner, the target x_1 - x_0."""

    def partner(x_0: Tensor, generator: Randomness) -> Tensor:
        return 3 - x_0

    path = Coupled(RectifiedFlow(), partner)
    denoiser = GaussianDenoiser(network, RectifiedFlow(), denoisers.flow)  # pyright: ignore[reportArgumentType]
    losses = Denoising(denoiser, path, objectives.flow_velocity, at(T))({"x_0": X_0}, seeded(4))
    t = T.reshape(-1, 1, 1)
    output = network((1 - t) * X_0 + t * (3 - X_0), 500 - 25 * RectifiedFlow().log_snr(T).clamp(-20, 20))
    torch.testing.assert_close(losses, mean_square(output - (3 - 2 * X_0)), rtol=1e-8, atol=0)


def test_tokens_train_by_cross_entropy() -> None:
    """With a linear survival, plain weights and t uniform: masked tokens only, as masked diffusion models do."""
    kernel, x_0 = absorbing(RectifiedFlow(), 4, mask=3), torch.randint(3, (B, 5), generator=seeded(0))
    table = torch.randn(4, generator=seeded(1), dtype=torch.float64)
    denoiser = TokenDenoiser(lambda x, c: table.expand(*x.shape, 4), RectifiedFlow())  # pyright: ignore
    losses = Denoising(denoiser, kernel, objectives.plain, at(T))({"x_0": x_0}, [seeded(i) for i in range(B)])
    x_t = kernel.marginal(x_0, T).sample([seeded(i) for i in range(B)])
    expected = -(table.log_softmax(0)[x_0] * (x_t == 3)).sum(1) / 5
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kernel", [absorbing(RectifiedFlow(), 4, mask=3)])
def test_token_gaps_have_finite_gradients(kernel: Any) -> None:
    """The variational loss of D3PM: posteriors full of zeros must not give NaN."""
    x_0 = torch.tensor([[0, 1, 2], [2, 2, 0]])
    logits = torch.randn(2, 3, 4, generator=seeded(0), requires_grad=True)
    denoiser = TokenDenoiser(lambda x, c: logits, RectifiedFlow())  # pyright: ignore[reportArgumentType]
    for t in (0.5, 1.0):
        x_t = kernel.marginal(x_0, t).sample(seeded(1))
        gap = kernel.gap(x_t, x_0, denoiser.given(kernel)(x_t, t), 0.3, t)
        (gradient,) = torch.autograd.grad(gap.sum(), logits)
        assert bool(gradient.isfinite().all())
        assert bool((gradient[x_t == 3].abs().sum(-1) > 0).all())


def test_learning_moves_towards_the_posterior_mean() -> None:
    """Gradient descent on the loss reaches the closed-form gain of a linear denoiser."""
    gain = nn.Parameter(torch.zeros((), dtype=torch.float64))
    schedule, t = LinearBeta(), 0.3
    denoiser = GaussianDenoiser(lambda x, c: gain * x, schedule, denoisers.x0)  # pyright: ignore[reportArgumentType]
    objective = Denoising(
        denoiser, Gaussian(schedule), objectives.plain, at(torch.full((4000,), t, dtype=torch.float64))
    )
    x_0 = 0.5 * torch.randn(4000, 4, generator=seeded(1), dtype=torch.float64)
    for step in range(30):
        (slope,) = torch.autograd.grad(objective({"x_0": x_0}, seeded(step)).mean(), gain)
        with torch.no_grad():
            gain -= 0.8 * slope
    alpha, sigma = map(float, schedule(torch.tensor(t)))
    assert float(gain.detach()) == pytest.approx(alpha * 0.25 / (alpha**2 * 0.25 + sigma**2), abs=0.02)


def test_bad_batches_are_named() -> None:
    objective = Denoising(GaussianDenoiser(nn.Identity(), Cosine()), Gaussian(Cosine()), drop={"label": (0.1, 9)})
    for batch in ({}, {"x_0": X_0}, {"label": torch.arange(B)}):
        with pytest.raises(ArgumentError, match="^batch"):
            objective(batch)
    for probability in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match="drop"):
            Denoising(objective.denoiser, objective.kernel, drop={"label": (probability, 9)})
    with pytest.raises(ArgumentError, match="^generator"):
        objective({"x_0": X_0, "label": torch.arange(B)}, [seeded(0)])


def test_the_belief_of_an_open_sum_is_its_mean() -> None:
    """Terms given to `combine` and the mean itself are the same number, before and after it is asked for."""
    kernel = Gaussian(Cosine())
    x, F = X_0, X_0.flip(0)
    weight = torch.rand(B, generator=seeded(0), dtype=torch.float64)
    belief = Belief.sum(kernel.combine, (2.0, x), (weight, F), spread=0.5)
    expected = 2 * x + weight.reshape(-1, 1, 1) * F
    for _ in range(2):
        torch.testing.assert_close(kernel.combine((0.3, x), *belief.times(-0.7)), 0.3 * x - 0.7 * expected)
        torch.testing.assert_close(belief.mean, expected)
    assert belief.spread == 0.5
