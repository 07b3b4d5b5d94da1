"""EDM's stochastic sampler against algorithm 2 as printed, and its exact law."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.clouds import Centred
from polydiff.core.edm import stochastic_heun
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.noise import Diagonal
from polydiff.core.ode import exploding, heun
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import EDM, Cosine, LinearBeta, RectifiedFlow, Schedule, SubVP, VarianceExploding
from tests.core.chains import DATA, Independent, law, numbers
from tests.problems import Clouds, MixtureData

SCHEDULES: list[Schedule] = [EDM(), VarianceExploding(0.05, 20.0), LinearBeta(), SubVP(), Cosine(), RectifiedFlow()]


def below_one(steps: int, schedule: Schedule) -> Tensor:
    """A Karras grid without t = 1, so that every step has room above it."""
    return grids.karras(steps + 1, schedule)[1:]


def test_it_is_algorithm_2() -> None:
    """Karras et al. 2022, written out in sigma, draw for draw."""
    data, n = MixtureData(), 12
    kernel = Gaussian(EDM())
    sigma = [float(kernel.schedule(t)[1]) for t in grids.uniform(n, EDM())]
    churn, S_min, S_max, S_noise = 6.0, 0.05, 20.0, 1.003
    exact, g = data.denoise(Gaussian(VarianceExploding(1e-4, 1e4))), seeded(5)

    def D(x: Tensor, s: float) -> Tensor:
        # The time of that sigma on another exploding schedule.
        return exact(x, VarianceExploding(1e-4, 1e4).inverse(torch.tensor(-2 * math.log(s), dtype=torch.float64))).mean

    x = noise = 80 * torch.randn(7, 2, generator=seeded(3), dtype=torch.float64)
    raised, above = 0, 0
    for s, s_next in zip(sigma[:-1], sigma[1:], strict=True):
        z = torch.randn(x.shape, generator=g, dtype=torch.float64)
        gamma = min(churn / n, math.sqrt(2) - 1) if S_min <= s <= S_max else 0.0
        raised, above = raised + (gamma > 0), above + (s > S_max)
        s_hat = s * (1 + gamma)
        x_hat = x + math.sqrt(s_hat**2 - s**2) * S_noise * z
        d = (x_hat - D(x_hat, s_hat)) / s_hat
        x = x_hat + (s_next - s_hat) * d
        if s_next > 0:
            d_next = (x - D(x, s_next)) / s_next
            x = x_hat + (s_next - s_hat) * (d + d_next) / 2
    assert raised > 3
    assert above > 1  # t = 1, where nothing is raised, and more
    options = {"churn": churn, "churn_min": S_min, "churn_max": S_max, "churn_noise": S_noise}
    ours = last(
        stochastic_heun(data.denoise(kernel), kernel, noise, grids.uniform(n, EDM()), generator=seeded(5), **options)
    )
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_without_churn_it_is_heun(schedule: Schedule) -> None:
    kernel, times = Gaussian(schedule), below_one(9, schedule)
    x = DATA.sample(kernel, 5, float(times[0]), seeded(0))
    g = seeded(1)
    ours = list(stochastic_heun(DATA.denoise(kernel), kernel, x, times, generator=g))
    theirs = list(heun(DATA.denoise(kernel), kernel, x, times, coordinates=exploding))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.x, two.x, rtol=1e-12, atol=1e-12)
        assert one.t == two.t
    assert torch.equal(g.get_state(), seeded(1).get_state())
    # Where all of the grid lies outside of the range, noise is drawn with weight 0.
    outside = last(stochastic_heun(DATA.denoise(kernel), kernel, x, times, churn=40.0, churn_min=1e9))
    torch.testing.assert_close(outside, theirs[-1].x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("churn", "S_noise"), [(3.0, 1.0), (40.0, 1.1)])
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_the_exact_law(schedule: Schedule, churn: float, S_noise: float, ragged: bool) -> None:
    """Mean and variance of y = x/alpha by recursion in u = sigma/alpha, where every schedule is the exploding one."""
    n = 8
    grid = torch.stack([below_one(n, schedule), below_one(n, schedule) ** 1.2], 1) if ragged else below_one(n, schedule)
    mean, variance = law(partial(stochastic_heun, churn=churn, churn_noise=S_noise), schedule, grid, draws=n)
    for column in range(2 if ragged else 1):
        times = grid[:, column] if ragged else grid
        alpha, sigma = numbers(schedule, times)
        us, (alpha_1, sigma_1) = (sigma / alpha).tolist(), numbers(schedule, 1.0)
        top = float(sigma_1 / alpha_1)
        V, gamma = DATA.variance, min(churn / n, math.sqrt(2) - 1)
        m, v = DATA.mean.clone(), V + us[0] ** 2
        for u, w in zip(us[:-1], us[1:], strict=True):
            hat = min(u * (1 + gamma), top)
            v = v + S_noise**2 * (hat**2 - u**2)
            slope = hat / (V + hat**2)  # d = (y - D)/hat = slope (y - mean)
            end = 1 + (w - hat) * slope
            if w > 0:
                end = 1 + (w - hat) * (slope + w / (V + w**2) * end) / 2
            v = end**2 * v
        torch.testing.assert_close(mean[column] if ragged else mean, m, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(variance[column] if ragged else variance, v, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("schedule", [EDM(), LinearBeta(), Cosine()], ids=repr)
def test_the_law_converges(schedule: Schedule) -> None:
    """Constant churn is a constant share of Langevin noise: the law still tends to the data's, with order 2 at last."""
    errors = []
    for steps in (30, 60, 120):
        times = torch.cat([below_one(steps, schedule)[:-1], torch.zeros(1, dtype=torch.float64)])
        _, variance = law(partial(stochastic_heun, churn=3.0), schedule, times, draws=steps)
        errors.append(float((variance - DATA.variance).abs().max()))
    assert errors[2] < 0.01
    assert math.log2(errors[1] / errors[2]) > 1.7


def test_samples_have_that_law() -> None:
    schedule, kernel = LinearBeta(), Gaussian(LinearBeta())
    times, sampler = below_one(8, schedule), partial(stochastic_heun, churn=40.0, churn_noise=1.1)
    x = DATA.sample(kernel, 20_000, float(times[0]), seeded(0))
    x = last(sampler(DATA.denoise(kernel), kernel, x, times, generator=seeded(1)))
    mean, variance = law(sampler, schedule, times, draws=8)
    wide = variance.sqrt()[:, None] * variance.sqrt() * (2 / len(x)) ** 0.5
    assert bool(((x.mean(0) - mean).abs() < 5 * (variance / len(x)).sqrt()).all())
    assert bool(((x.T.cov() - torch.diag(variance)).abs() < 5 * wide).all())


def test_the_network_sees_the_raised_time() -> None:
    """2 n - 1 calls, alternating t_hat and s; nothing is raised above t = 1."""
    kernel, seen = Gaussian(LinearBeta()), []

    def denoise(x: Tensor, t: Time) -> Belief:
        seen.append(t)
        return DATA.denoise(kernel)(x, t)

    times = grids.karras(5, LinearBeta())
    x = DATA.sample(kernel, 3, 1.0, seeded(0))
    steps = stochastic_heun(denoise, kernel, x, times, churn=1.0, generator=seeded(0))
    assert seen == []
    reached = list(steps)
    assert [step.t for step in reached] == times.tolist()[1:]
    assert len(seen) == 9
    assert seen[1::2] == times.tolist()[1:-1]
    assert seen[0] == 1.0
    u, hat = (
        LinearBeta().log_snr(torch.as_tensor(t, dtype=torch.float64)).div(-2).exp() for t in (times[1:-1], seen[2::2])
    )
    torch.testing.assert_close(hat / u, torch.full_like(u, 1.2), rtol=1e-9, atol=0)


def test_a_noise_law_is_a_change_of_units() -> None:
    units = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    plain, scaled = Gaussian(SubVP()), Gaussian(SubVP(), Diagonal(units))
    stretched = Independent((DATA.mean * units).tolist(), (DATA.variance.sqrt() * units).tolist(), units.tolist())
    times = below_one(6, SubVP())
    x = DATA.sample(plain, 4, float(times[0]), seeded(0))
    one = last(stochastic_heun(DATA.denoise(plain), plain, x, times, churn=9.0, generator=seeded(1)))
    two = last(stochastic_heun(stretched.denoise(scaled), scaled, x * units, times, churn=9.0, generator=seeded(1)))
    torch.testing.assert_close(one * units, two, rtol=1e-9, atol=1e-11)


def test_examples_do_not_see_their_neighbours_and_clouds_stay_centred() -> None:
    """Even where a neighbour's grid is churned and one's own is not."""
    kernel, times = Gaussian(LinearBeta()), below_one(6, LinearBeta())
    columns = torch.stack([times, times**1.3, times**2], 1)
    x = DATA.sample(kernel, 3, 0.9, seeded(0))
    sampler: Any = partial(stochastic_heun, DATA.denoise(kernel), kernel, churn=9.0, churn_max=5.0)
    whole = last(sampler(x, columns, generator=[seeded(i) for i in range(3)]))
    for i in range(3):
        alone = last(sampler(x[i : i + 1], columns[:, i], generator=[seeded(i)]))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-10, atol=1e-12)
    clouds = Clouds([2, 1, 3])
    kernel = Gaussian(LinearBeta(), Centred()).given(**clouds.structure)
    x = kernel.prior(clouds.sample(kernel, seeded(0))).sample(seeded(1))
    for step in stochastic_heun(clouds.denoise(kernel), kernel, x, columns, churn=9.0, generator=seeded(1)):
        torch.testing.assert_close(kernel.project(step.x), step.x, rtol=0, atol=1e-12)


def test_bad_arguments_are_named() -> None:
    kernel, x, never = Gaussian(Cosine()), torch.zeros(2, 3), lambda x, t: Belief(x / 0)
    with pytest.raises(ArgumentError, match="^times.*start below 1"):
        next(stochastic_heun(never, kernel, x, grids.uniform(3)))
    kernel = Gaussian(LinearBeta())
    bad: list[tuple[dict[str, Any], str]] = [
        ({"churn": -1.0}, "churn"),
        ({"churn": math.nan}, "churn"),
        ({"churn_noise": 0.0}, "churn_noise"),
        ({"churn_min": 2.0, "churn_max": 1.0}, "churn_min, churn_max"),
    ]
    for options, name in bad:
        with pytest.raises(ArgumentError, match=f"^{name}:"):
            next(stochastic_heun(never, kernel, x, grids.uniform(3), **options))
    with pytest.raises(ArgumentError, match="^kernel"):
        next(stochastic_heun(never, torch.nn.Identity(), x, grids.uniform(3)))  # pyright: ignore[reportArgumentType]
