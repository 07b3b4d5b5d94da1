"""The continuous bound in training and evaluation, against entropies; no time is cut off."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core.categorical import absorbing, uniform
from polydiff.core.denoisers import TokenDenoiser, logits
from polydiff.core.errors import ArgumentError
from polydiff.core.estimates import continuous_elbo
from polydiff.core.objectives import Denoising, low_discrepancy
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, Sigmoid
from polydiff.core.score_entropy import ScoreEntropy, antithetic, half_unmasking, stratified, unmasking
from polydiff.core.structure import opened
from tests.problems import TokenData


class Exact(nn.Module):
    """A denoiser that knows the data's law, or another one that it takes for it."""

    def __init__(self, data: TokenData):
        super().__init__()
        self.data, self.shift = data, nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, kernel: Any, **condition: Any) -> Tensor:
        return self.data.denoise(kernel)(x_t, t) + self.shift


def network(x: Tensor, c: Tensor) -> Tensor:
    return torch.sin(x.unsqueeze(-1) + torch.arange(5.0)) + c.reshape(-1, 1, 1) / 1000


KERNELS = {
    "absorbing": (lambda schedule: absorbing(schedule, 4, mask=3), 3),
    "uniform": (lambda schedule: uniform(schedule, 4), None),
}


@pytest.mark.parametrize("shares", [stratified, antithetic])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=repr)
@pytest.mark.parametrize("name", KERNELS)
def test_one_token_costs_its_entropy_wherever_diffusion_ends(name: str, schedule: Schedule, shares: Any) -> None:
    make, without = KERNELS[name]
    kernel, data = make(schedule), TokenData.standard(1, 4, without)
    for low in (1e-3, 0.3):
        objective = ScoreEntropy(Exact(data), kernel, low, shares)  # pyright: ignore[reportArgumentType]
        count = 8000
        losses = objective({"x_0": data.sample(count, seeded(0))}, seeded(1)).detach()
        assert losses.shape == (count,) and bool((losses >= 0).all())
        assert abs(float(losses.mean()) - data.entropy()) < 5 * float(losses.std()) / count**0.5
        bound = continuous_elbo(
            data.denoise(kernel), kernel, data.sample(count, seeded(2)), low=low, terms=2, generator=seeded(3)
        )
        assert abs(float(bound.total.mean()) - data.entropy()) < 5 * float(bound.total.std()) / count**0.5
        assert (low < 0.1 or float(bound.reconstruction.mean()) > 0) and bound.gaps.shape == (2, count)


def test_a_wrong_belief_costs_its_cross_entropy() -> None:
    """Absorbing: the whole of -sum p log q, none of it lost to a cut of time, which would show here at low = 0.3."""
    kernel, data = absorbing(RectifiedFlow(), 4, mask=3), TokenData(torch.tensor([0.7, 0.2, 0.1, 0.0]))
    wrong = TokenData(torch.tensor([0.1, 0.3, 0.6, 0.0]))
    cross = -float((data.table[:3] * wrong.table[:3].log()).sum())
    for low in (1e-3, 0.3):
        objective = ScoreEntropy(Exact(wrong), kernel, low)  # pyright: ignore[reportArgumentType]
        losses = objective({"x_0": data.sample(40_000, seeded(0))}, seeded(1)).detach()
        assert abs(float(losses.mean()) - cross) < 5 * float(losses.std()) / 200


def test_the_prior_is_counted_where_data_survive() -> None:
    """Linear betas leave alpha_1 = 0.36 of a uniform chain: the bound is H and the prior's divergence, at any low."""
    kernel, data = uniform(LinearBeta(0.1, 4.0), 4), TokenData.standard(1, 4)
    x_0 = data.sample(30_000, seeded(0))
    bound = continuous_elbo(data.denoise(kernel), kernel, x_0, low=0.05, generator=seeded(1))
    reached = data.table @ kernel.rows(torch.arange(4).unsqueeze(0), 0.0, 1.0)[0].exp()
    extra = float((reached * (reached * 4).log()).sum())
    assert extra > 0.01
    assert abs(float(bound.total.mean()) - data.entropy() - extra) < 5 * float(bound.total.std()) / 30_000**0.5


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), Sigmoid()], ids=repr)
def test_unmasking_is_the_rate_of_the_bound_draw_by_draw(schedule: Schedule) -> None:
    kernel = absorbing(schedule, 5, mask=4)
    denoiser = TokenDenoiser(lambda x, c: network(x, c)[..., :4], schedule)  # pyright: ignore[reportArgumentType]
    x_0 = torch.randint(4, (64, 6), generator=seeded(0))
    weighted = Denoising(denoiser, kernel, unmasking, low_discrepancy(0.0))
    look = weighted.look(opened(kernel, {"x_0": x_0}), seeded(1))
    rate = kernel.gap_rate(look.x_t, x_0, look.belief, look.t) / 6
    torch.testing.assert_close(weighted.loss(look), rate, rtol=1e-4, atol=1e-5)
    ends = torch.tensor([0.0, 1e-300, 2**-53, 0.5, 1.0], dtype=torch.float64)
    assert bool(unmasking(schedule, ends).isfinite().all() and (unmasking(schedule, ends) > 0).all())
    assert bool((kernel.error(x_0, logits(network(x_0, ends[:1]), kernel.evidence(x_0, 0.0)), ends[0]) == 0).all())
    if isinstance(schedule, RectifiedFlow):
        assert float(unmasking(schedule, torch.tensor(0.2))) == pytest.approx(5)


@pytest.mark.parametrize("name", KERNELS)
def test_losses_and_gradients_are_finite_in_single_precision_at_every_share(name: str) -> None:
    make, _ = KERNELS[name]
    model = nn.Linear(4, 4)
    denoiser = TokenDenoiser(
        lambda x, c: model(torch.nn.functional.one_hot(x, 4).float()),  # pyright: ignore[reportArgumentType]
        RectifiedFlow(),
    )
    u = torch.tensor([0.0, 1e-300, 1e-3, 1e-3 + 1e-12, 0.5, 1 - 2**-53, 1.0], dtype=torch.float64)
    objective = ScoreEntropy(denoiser, make(RectifiedFlow()), shares=lambda count, generator: u)
    losses = objective({"x_0": torch.randint(3, (7, 50), generator=seeded(0))}, seeded(1))
    assert losses.dtype == torch.float32 and bool(losses.isfinite().all() and (losses >= 0).all())
    for gradient in torch.autograd.grad(losses.sum(), tuple(model.parameters())):
        assert bool(gradient.isfinite().all() and (gradient != 0).any())


def test_shares_are_even() -> None:
    u = stratified(8, seeded(0))
    assert sorted((u * 8).long().tolist()) == list(range(8))
    assert float(u.max()) < 1 and not torch.equal(u, stratified(8, seeded(1)))
    pairs = antithetic(7, seeded(0))
    assert pairs.shape == (7,)
    torch.testing.assert_close(pairs[:6:2] + pairs[1::2], torch.ones(3).double())
    assert len(set(pairs[::2].tolist())) == 4
    several = [seeded(i) for i in range(7)]
    assert stratified(7, several).shape == antithetic(7, [seeded(i) for i in range(7)]).shape == (7,)
    means = torch.stack([draw(400, seeded(3)).mean() for draw in (stratified, antithetic)])
    torch.testing.assert_close(means, torch.full((2,), 0.5).double(), rtol=0, atol=5e-3)


def test_conditions_are_dropped_and_bad_arguments_named() -> None:
    told: list[Tensor] = []

    def labelled(x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        told.append(label)
        return network(x, c)[..., :3]

    kernel = absorbing(RectifiedFlow(), 4, mask=3)
    denoiser = TokenDenoiser(labelled, RectifiedFlow())  # pyright: ignore[reportArgumentType]
    x_0 = torch.zeros(6, 2, dtype=torch.long)
    losses = ScoreEntropy(denoiser, kernel, drop={"label": (1.0, -1)})({"x_0": x_0, "label": torch.arange(6)})
    assert told[0].tolist() == [-1] * 6 and losses.shape == (6,)
    for low in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ArgumentError, match="^low"):
            ScoreEntropy(denoiser, kernel, low)
    with pytest.raises(ArgumentError, match="^batch"):
        ScoreEntropy(denoiser, kernel)({"label": x_0})


def test_half_way_to_plain_cross_entropy() -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(half_unmasking(Cosine(), t) ** 2, unmasking(Cosine(), t))
