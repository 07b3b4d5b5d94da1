"""The hybrid objective: the bound on its own grid, unbiased; its gradient reaches the spread and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core import denoisers, grids, objectives
from polydiff.core.bounds import elbo
from polydiff.core.categorical import uniform
from polydiff.core.denoisers import GaussianDenoiser, TokenDenoiser
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.hybrid import Hybrid, on_grid, spread_only
from polydiff.core.noise import Diagonal
from polydiff.core.objectives import Denoising, Look
from polydiff.core.product import Product
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from tests.problems import GaussianData, TokenData, pair

DATA = GaussianData.standard()
EXPLODING = VarianceExploding(0.05, 5.0, 0.01)


def nothing(schedule: Schedule, t: Tensor) -> Tensor:
    return torch.zeros_like(t)


class TwoHeads(nn.Module):
    """A mean and a fraction of the variance range, with parameters of their own."""

    def __init__(self):
        super().__init__()
        g = seeded(5)
        self.mean = nn.Parameter(0.3 * torch.randn(3, 3, generator=g, dtype=torch.float64))
        self.fraction = nn.Parameter(0.3 * torch.randn(3, 3, generator=g, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = torch.tanh(x + c.unsqueeze(1) / 1000)
        return torch.cat([x @ self.mean, x @ self.fraction], 1)


class Learner(nn.Module):
    """The exact mean, with a spread per grid time that learns."""

    def __init__(self, grid: Tensor):
        super().__init__()
        self.rising = grid.flip(0)
        self.spread = nn.Parameter(torch.full((len(grid) - 1, 3), 0.5, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, kernel: Any) -> Belief:
        return Belief(DATA.denoise(kernel)(x_t, t).mean, self.spread[torch.searchsorted(self.rising, t) - 1])


SETTINGS = {
    "linear": (lambda: Gaussian(LinearBeta()), grids.uniform(5)),
    "terminal zero": (lambda: Gaussian(Cosine()), grids.uniform(5)),
    "exploding": (lambda: Gaussian(EXPLODING), grids.uniform(4, EXPLODING)),
    "units": (lambda: Gaussian(RectifiedFlow(), Diagonal(torch.tensor([0.5, 1.0, 2.0]).double())), grids.uniform(3)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_bound_teaches_the_spread_alone(name: str) -> None:
    make, times = SETTINGS[name]
    kernel, network = make(), TwoHeads()
    parametrisation = denoisers.edm(0.7)
    denoiser = GaussianDenoiser(network, kernel.schedule, parametrisation, learned_range=True)
    batch = {"x_0": DATA.sample(64, seeded(0))}
    Hybrid(denoiser, kernel, times, 1.0, nothing)(batch, seeded(1)).mean().backward()
    assert network.mean.grad is not None
    assert network.fraction.grad is not None
    assert float(network.mean.grad.abs().max()) == 0.0
    assert bool(network.fraction.grad.isfinite().all())
    assert float(network.fraction.grad.abs().min()) > 0
    network.zero_grad()
    Hybrid(denoiser, kernel, times, 1.0, nothing, stop=None)(batch, seeded(1)).mean().backward()
    assert float(network.mean.grad.abs().min()) > 0
    assert bool(network.mean.grad.isfinite().all())


@pytest.mark.parametrize("name", SETTINGS)
def test_the_simple_part_is_denoising_and_the_weight_is_a_weight(name: str) -> None:
    make, times = SETTINGS[name]
    kernel = make()
    denoiser = GaussianDenoiser(TwoHeads(), kernel.schedule, denoisers.edm(0.7), learned_range=True)
    batch, weight = {"x_0": DATA.sample(64, seeded(0))}, objectives.velocity
    generators = lambda: example_generators(0, 1, range(64))  # noqa: E731
    plain = Denoising(denoiser, kernel, objectives.velocity, on_grid(times))(batch, generators())
    none, once, twice = (Hybrid(denoiser, kernel, times, w, weight)(batch, generators()) for w in (0.0, 0.1, 0.2))
    torch.testing.assert_close(none, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(twice - plain, 2 * (once - plain), rtol=1e-7, atol=1e-9)
    part = Hybrid(denoiser, kernel, times)({"x_0": batch["x_0"][10:]}, generators()[10:])
    torch.testing.assert_close(part, Hybrid(denoiser, kernel, times)(batch, generators())[10:], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_bounds_term_is_unbiased(name: str) -> None:
    make, times = SETTINGS[name]
    kernel, count = make(), 20_000
    learner, x_0 = Learner(times), DATA.sample(count, seeded(0))
    with torch.no_grad():
        learner.spread.copy_(torch.rand(learner.spread.shape, generator=seeded(3)))
        found = Hybrid(learner, kernel, times, 1.0, nothing)({"x_0": x_0}, seeded(1)) * 3  # pyright: ignore
        one = lambda x, t: learner(x, torch.full((len(x),), t, dtype=torch.float64), kernel)  # noqa: E731
        full = elbo(one, kernel, x_0, times, generator=seeded(2))
    expected = full.gaps.sum(0) + full.reconstruction
    error = ((found.var() + expected.var()) / count).sqrt()
    assert abs(float(found.mean() - expected.mean())) < 5 * float(error)
    assert float(error) < 0.02 * abs(float(expected.mean())) + 0.1


def test_tokens_and_products_take_part() -> None:
    """D3PM's objective, without the stop; in a product the stop is one's own function of the parts."""
    data, kernel, count = TokenData.standard(2, 3), uniform(Cosine(), 3), 20_000
    times, x_0 = grids.uniform(4), data.sample(20_000, seeded(0))
    table = nn.Parameter(torch.randn(3, 3, generator=seeded(1), dtype=torch.float64))
    denoiser = TokenDenoiser(lambda x, c: table[x], kernel.schedule)  # pyright: ignore[reportArgumentType]
    losses = Hybrid(denoiser, kernel, times, 1.0, nothing, stop=None)({"x_0": x_0}, seeded(2)) * 2
    bound = elbo(denoiser.given(kernel), kernel, x_0, times, generator=seeded(3))
    expected = bound.gaps.sum(0) + bound.reconstruction
    error = ((losses.var() + expected.var()) / count).sqrt()
    assert abs(float((losses.mean() - expected.mean()).detach())) < 5 * float(error.detach())
    losses.mean().backward()
    assert table.grad is not None
    assert bool(table.grad.isfinite().all())
    assert float(table.grad.abs().min()) > 0

    class Both(nn.Module):
        def forward(self, x: Any, t: Tensor, kernel: Any) -> Any:
            return learner(x[0], t, kernel.parts[0]), denoiser(x[1], t, kernel.parts[1])

    both, learner = Product([Gaussian(Cosine()), kernel]), Learner(times)
    learner.spread.grad = table.grad = None
    objective = Hybrid(Both(), both, times, 1.0, nothing, lambda b: (spread_only(b[0]), b[1]))  # pyright: ignore
    objective({"x_0": (DATA.sample(50, seeded(4)), x_0[:50])}, seeded(5)).mean().backward()
    assert learner.spread.grad is not None
    assert table.grad is not None
    assert float(learner.spread.grad[1:].abs().min()) > 0
    assert float(table.grad.abs().min()) > 0


@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow()], ids=repr)
def test_the_spread_learns_the_optimal_reverse_variance(schedule: Schedule) -> None:
    """Var(x_s | x_t) of the data, whatever the mean weight (Bao et al. 2022, eq. 7), per axis and interval."""
    deviations = torch.tensor([0.4, 0.8, 1.1], dtype=torch.float64)
    data = GaussianData(torch.zeros(3), torch.diag(deviations**2))
    kernel, times = Gaussian(schedule), torch.tensor([0.95, 0.6, 0.3, 0.0], dtype=torch.float64)
    learner = Learner(times)

    class OwnAxes(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, kernel: Any) -> Belief:
            return Belief(data.denoise(kernel)(x_t, t).mean, learner(x_t, t, kernel).spread)

    objective = Hybrid(OwnAxes(), kernel, times, 1.0, nothing)  # pyright: ignore[reportArgumentType]
    x_0 = data.sample(20_000, seeded(0))
    optimizer = torch.optim.LBFGS([learner.spread], max_iter=12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective({"x_0": x_0}, seeded(1)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    for place, (t, s) in ((2, (0.95, 0.6)), (1, (0.6, 0.3))):
        (a_t, s_t), (a_s, s_s) = pair(schedule, t), pair(schedule, s)
        # x_s and x_t = (a_t/a_s) x_s + noise are jointly normal: condition one on the other.
        spread_s, spread_t = a_s**2 * deviations**2 + s_s**2, a_t**2 * deviations**2 + s_t**2
        optimal = spread_s - (a_t / a_s * spread_s) ** 2 / spread_t
        kept = 1 - (a_t * s_s / (a_s * s_t)) ** 2
        found = torch.exp(
            learner.spread[place].detach() * (kept * s_t**2).log()
            + (1 - learner.spread[place].detach()) * (kept * s_s**2).log()
        )
        # Each variance is an average over about 6 700 squares.
        torch.testing.assert_close(found, optimal.flatten().expand(1, 3), rtol=5 * (2 / 6_700) ** 0.5, atol=0)


def test_the_law_on_the_grid() -> None:
    times = torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=torch.float64)
    t = on_grid(times)(Cosine(), 9000, seeded(0))
    counts = torch.stack([(t == value).sum() for value in times[:-1]])
    assert int(counts.sum()) == 9000
    assert bool(((counts - 3000).abs() < 5 * 2000**0.5).all())


def test_the_terms_are_those_of_the_next_grid_time() -> None:
    """Every grid time's term by the kernel's own laws, times n."""
    kernel, times = Gaussian(LinearBeta()), torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=torch.float64)
    x_0, learner = DATA.sample(3, seeded(0)), Learner(times)
    x_t = kernel.marginal(x_0, times[:-1]).sample(seeded(1))
    belief = learner(x_t, times[:-1], kernel)
    objective = Hybrid(learner, kernel, times)  # pyright: ignore[reportArgumentType]
    found = objective.bound(Look(kernel, x_0, x_t, times[:-1], belief))
    for i, (t, s) in enumerate([(1.0, 0.7), (0.7, 0.2)]):
        one = Belief(belief.mean[i : i + 1], belief.spread[i : i + 1])  # pyright: ignore
        expected = 3 * kernel.gap(x_t[i : i + 1], x_0[i : i + 1], one, s, t)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-9, atol=0)
    last = -3 * kernel.likelihood(Belief(belief.mean[2:]), 0.2).log_prob(x_0[2:])
    torch.testing.assert_close(found[2:], last, rtol=1e-9, atol=0)


def test_bad_arguments_are_named() -> None:
    denoiser, kernel = GaussianDenoiser(nn.Identity(), Cosine()), Gaussian(Cosine())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"times": torch.tensor([1.0, 0.5])}, "times"),
        ({"times": torch.stack([grids.uniform(3)] * 2, 1)}, "times"),
        ({"times": grids.uniform(3), "bound_weight": -1.0}, "bound_weight"),
        ({"times": grids.uniform(3), "bound_weight": math.nan}, "bound_weight"),
    ]
    for options, name in refused:
        with pytest.raises(ArgumentError, match=f"^{name}"):
            Hybrid(denoiser, kernel, **options)
    objective = Hybrid(denoiser, kernel, grids.uniform(3))
    assert objective.denoiser is denoiser
    with pytest.raises(ArgumentError, match="^batch"):
        objective({})
    tokens = uniform(Cosine(), 3)
    denoiser = TokenDenoiser(lambda x, c: torch.zeros(*x.shape, 3), tokens.schedule)  # pyright: ignore
    with pytest.raises(ArgumentError, match="^stop"):
        Hybrid(denoiser, tokens, grids.uniform(3))({"x_0": torch.zeros(2, 4, dtype=torch.long)}, seeded(0))
