"""Exact log-likelihoods against densities that are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.bounds import bits_per_dim
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.likelihood import (
    HEUN,
    RK4,
    RungeKutta,
    adaptive_log_likelihood,
    exact,
    log_likelihood,
    normal,
    rademacher,
)
from polydiff.core.noise import Diagonal, Isotropic
from polydiff.core.randomness import Randomness, seeded
from polydiff.core.schedules import (
    EDM,
    Cosine,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    SubVP,
    Tabulated,
    VarianceExploding,
)
from tests.problems import Clouds, GaussianData, MixtureData

DATA, MIXTURE = GaussianData.standard(), MixtureData()
SCHEDULES = {
    "linear": LinearBeta(),
    "subvp": SubVP(),
    "rectified": RectifiedFlow(),
    "cosine": Cosine(),
    "exploding": VarianceExploding(0.01, 50.0),
    "edm": EDM(),
    "tabulated": Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
}


class Law:
    """A density as the prior."""

    def __init__(self, log_prob: Callable[[Tensor], Tensor]):
        self.log_prob = log_prob


def gaussian_density(x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """log q(x_t) of the Gaussian problem."""
    covariance = alpha**2 * DATA.covariance + sigma**2 * torch.eye(3, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(alpha * DATA.mean, covariance).log_prob(x)


def mixture_density(x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """log q(x_t) of the mixture."""
    variance = (alpha * MIXTURE.deviation) ** 2 + sigma**2
    squares = ((x[:, None] - alpha * MIXTURE.centres) ** 2).sum(-1)
    return (MIXTURE.weights.log() - squares / (2 * variance) - math.log(2 * math.pi * variance)).logsumexp(1)


def at(schedule: Schedule, t: float) -> tuple[float, float]:
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("problem", ["gaussian", "mixture"])
def test_is_the_density_of_the_data(name: str, problem: str) -> None:
    """With the exact law at t = 1 every example is right to 5e-4 nats/dim; with N(0, sigma_1^2) the mean is to 1e-3."""
    data, density = {"gaussian": (DATA, gaussian_density), "mixture": (MIXTURE, mixture_density)}[problem]
    schedule = SCHEDULES[name]
    kernel, x_0 = Gaussian(schedule), data.sample(100, seeded(0))
    times = grids.log_snr(48, schedule, low=-12, high=9)
    end = Law(lambda x: density(x, *at(schedule, 1.0)))
    found = log_likelihood(data.denoise(kernel), kernel, x_0, times, prior=end)
    assert float((found.nats - density(x_0)).abs().max()) < 5e-4 * x_0.shape[1]
    assert found.calls == 4 * 48 - 1
    plain = found.nats - end.log_prob(found.x_1) + kernel.prior(x_0).log_prob(found.x_1)
    assert abs(float((plain - density(x_0)).mean())) < 1e-3 * x_0.shape[1]
    if name == "linear":
        default = log_likelihood(data.denoise(kernel), kernel, x_0, times).nats
        torch.testing.assert_close(default, plain)


@pytest.mark.parametrize(("method", "order"), [(HEUN, 2), (RK4, 4)], ids=["heun", "rk4"])
@pytest.mark.parametrize("ragged", [False, True], ids=["(n,)", "(n,B)"])
def test_order_of_convergence(method: RungeKutta, order: int, ragged: bool) -> None:
    kernel, x_0, errors = Gaussian(RectifiedFlow()), DATA.sample(8, seeded(0)), []
    for steps in (24, 48):
        times = grids.uniform(steps)
        if ragged:
            times = torch.stack([times, times**1.2] * 4, 1)
        found = log_likelihood(DATA.denoise(kernel), kernel, x_0, times, method=method)
        errors.append(float((found.nats - gaussian_density(x_0)).abs().mean()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


def test_latent_is_the_end_of_the_exact_flow() -> None:
    kernel, x_0 = Gaussian(LinearBeta()), DATA.sample(8, seeded(0))
    found = log_likelihood(DATA.denoise(kernel), kernel, x_0, grids.log_snr(40, kernel.schedule))
    torch.testing.assert_close(found.x_1, DATA.flow(kernel.schedule, x_0, 0.0, 1.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("per_example", [False, True])
def test_clouds_have_their_density_on_the_centred_subspace(per_example: bool) -> None:
    clouds = Clouds([2, 5, 1, 3])
    kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
    x_0, variance = clouds.sample(kernel, seeded(0)), clouds.deviation**2
    dof = torch.tensor([3.0, 12.0, 0.0, 6.0], dtype=torch.float64)
    squares = torch.zeros(4, dtype=torch.float64).index_add(0, clouds.index, (x_0**2).sum(1))
    truth = -(squares / variance + dof * math.log(2 * math.pi * variance)) / 2
    times = grids.log_snr(30, kernel.schedule, low=-12, high=9)
    if per_example:
        times = torch.stack([times, times**1.1, times**0.9, times], 1)
    found = log_likelihood(clouds.denoise(kernel), kernel, x_0, times)
    torch.testing.assert_close(found.nats, truth, rtol=0, atol=3e-4)
    # The Jacobian is a multiple of the identity on the subspace: signs give the trace itself, if they are projected.
    probed = log_likelihood(clouds.denoise(kernel), kernel, x_0, times, probes=rademacher(2), generator=seeded(1))
    assert float((probed.nats - truth)[2].abs()) < 1e-9
    assert bool(log_likelihood(clouds.denoise(kernel), kernel, x_0 + 1, times).nats.eq(-math.inf).all())


def test_masked_and_diagonal_laws() -> None:
    """Independent normals, of which only those with noise count; deviations other than 1."""
    variances = torch.tensor([0.5, 1.5, 0.8, 1.0], dtype=torch.float64)
    deviation = torch.tensor([[1.0, 0.5, 0.0, 2.0], [0.0, 1.0, 0.3, 0.0]], dtype=torch.float64)
    kernel = Gaussian(RectifiedFlow(), Diagonal(deviation))
    there = deviation > 0
    x_0 = torch.randn(2, 4, generator=seeded(0), dtype=torch.float64) * variances.sqrt() * there

    def denoise(x: Tensor, t: Time) -> Belief:
        alpha, sigma = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))
        gain = alpha * variances / ((alpha**2 * variances) + (sigma * deviation) ** 2)
        return Belief(x * torch.where(there, gain, 0))

    truth = torch.where(there, -(x_0**2 / variances + (2 * math.pi * variances).log()) / 2, 0).sum(1)
    found = log_likelihood(denoise, kernel, x_0, grids.log_snr(60, kernel.schedule, low=-14, high=12))
    torch.testing.assert_close(found.nats, truth, rtol=0, atol=5e-4)


@pytest.mark.parametrize("probes", [rademacher, normal])
def test_hutchinson_is_unbiased(probes: Callable) -> None:
    """The flow of Gaussian data does not depend on the probes; more of them, less spread."""
    kernel = Gaussian(RectifiedFlow())
    x_0 = DATA.sample(1, seeded(0)).expand(4000, -1).contiguous()
    times, spread = grids.uniform(12), []
    reference = log_likelihood(DATA.denoise(kernel), kernel, x_0[:1], times).nats
    for count in (1, 4):
        found = log_likelihood(DATA.denoise(kernel), kernel, x_0, times, probes=probes(count), generator=seeded(count))
        spread.append(float(found.nats.std()))
        assert abs(float(found.nats.mean() - reference)) < 5 * spread[-1] / 4000**0.5
    assert spread[0] / spread[1] == pytest.approx(2, rel=0.1)


class Counting(Isotropic):
    """Counts its draws."""

    draws = 0

    def standard(self, like: Tensor, generator: Randomness = None) -> Tensor:
        self.draws += 1
        return super().standard(like, generator)


@pytest.mark.parametrize("solve", ["fixed", "adaptive"])
def test_probes_are_drawn_once_per_solve_and_each_example_has_its_own(solve: str) -> None:
    noise = Counting()
    kernel, x_0 = Gaussian(RectifiedFlow(), noise), MIXTURE.sample(3, seeded(0))

    def run(x: Tensor, seeds: list[int]) -> Tensor:
        generator = [seeded(seed) for seed in seeds]
        denoise = MIXTURE.denoise(kernel)
        if solve == "fixed":
            times = grids.uniform(10)
            return log_likelihood(
                denoise, kernel, x, times, probes=rademacher(2), method=HEUN, generator=generator
            ).nats
        return adaptive_log_likelihood(
            denoise, kernel, x, rtol=1e-6, atol=1e-6, probes=rademacher(2), generator=generator
        ).nats

    both = run(x_0, [1, 2, 3])
    assert noise.draws == 2
    tolerance = 1e-12 if solve == "fixed" else 1e-3
    for i in range(3):
        torch.testing.assert_close(run(x_0[i : i + 1], [i + 1]), both[i : i + 1], rtol=0, atol=tolerance)
    assert float((run(x_0, [4, 5, 6]) - both).abs().min()) > 1e-4


def test_start_at_the_first_time() -> None:
    """Without the last interval the number is log q_(t_1)(alpha x_0) + d log alpha, for Gaussian data exactly."""
    for schedule in (LinearBeta(), VarianceExploding(0.01, 50.0)):
        kernel, x_0 = Gaussian(schedule), DATA.sample(8, seeded(0))
        times = grids.log_snr(40, schedule, low=-12, high=6)
        times = torch.cat([times[times > 0.05], torch.tensor([0.05, 0.0]).double()])
        alpha, sigma = at(schedule, 0.05)
        expected = gaussian_density(alpha * x_0, alpha, sigma) + 3 * math.log(alpha)
        prior = Law(lambda x, schedule=schedule: gaussian_density(x, *at(schedule, 1.0)))
        found = log_likelihood(DATA.denoise(kernel), kernel, x_0, times, from_data=False, prior=prior)
        torch.testing.assert_close(found.nats, expected, rtol=0, atol=1e-4)
        free = adaptive_log_likelihood(
            DATA.denoise(kernel), kernel, x_0, offset=0.05, rtol=1e-7, atol=1e-7, prior=prior
        )
        torch.testing.assert_close(free.nats, expected, rtol=0, atol=1e-5)


def test_truncated_solve() -> None:
    """From the data to t = 0.4 with the law of x_t there."""
    kernel, x_0 = Gaussian(SubVP()), DATA.sample(8, seeded(0))
    prior = Law(lambda x: gaussian_density(x, *at(kernel.schedule, 0.4)))
    times = torch.cat([torch.tensor([0.4]), torch.logspace(-0.45, -3, 40), torch.zeros(1)]).double()
    for found in (
        log_likelihood(DATA.denoise(kernel), kernel, x_0, times, prior=prior),
        adaptive_log_likelihood(DATA.denoise(kernel), kernel, x_0, first=float(times[0]), prior=prior),
    ):
        torch.testing.assert_close(found.nats, gaussian_density(x_0), rtol=0, atol=1e-4)


def test_likelihoods_are_known_in_inference_mode() -> None:
    kernel, x_0, times = Gaussian(Cosine()), DATA.sample(3, seeded(0)), grids.uniform(6)
    outside = log_likelihood(DATA.denoise(kernel), kernel, x_0, times)
    with torch.inference_mode():
        inside = log_likelihood(DATA.denoise(kernel), kernel, x_0.clone(), times)
    torch.testing.assert_close(inside.nats, outside.nats, rtol=0, atol=0)


def test_adaptive_steps_obey_the_hardest_example() -> None:
    """Easy company does not dilute an example's error: the steps, and so the calls, stay the same."""
    kernel = Gaussian(Cosine())
    hard, easy = torch.tensor([[0.02, 0.35]]).double(), MIXTURE.centres[:1]
    alone = adaptive_log_likelihood(MIXTURE.denoise(kernel), kernel, hard)
    crowd = adaptive_log_likelihood(MIXTURE.denoise(kernel), kernel, torch.cat([hard, easy.expand(300, -1)]))
    assert abs(float(alone.nats - mixture_density(hard))) < 1e-3
    assert abs(float(crowd.nats[0] - mixture_density(hard))) < 1e-3
    # The rms over the batch would let the error grow 17-fold, and save a fifth of the calls.
    assert abs(crowd.calls - alone.calls) <= 6


def test_bits_per_dim_are_those_of_the_data_scale() -> None:
    """z = x/127.5 - 1: the density of x is that of z times 1/127.5 per dimension."""
    kernel, z = Gaussian(RectifiedFlow()), DATA.sample(8, seeded(0))
    found = log_likelihood(DATA.denoise(kernel), kernel, z, grids.log_snr(40, kernel.schedule, low=-14, high=10))
    scaled = torch.distributions.MultivariateNormal(127.5 * (DATA.mean + 1), 127.5**2 * DATA.covariance)
    truth = -scaled.log_prob(127.5 * (z + 1)) / (3 * math.log(2))
    bits = bits_per_dim(-found.nats, kernel.dims(z), log_det=math.log(1 / 127.5))
    torch.testing.assert_close(bits, truth, rtol=0, atol=1e-3)


def test_single_precision() -> None:
    kernel, x_0 = Gaussian(LinearBeta()), DATA.sample(8, seeded(0))
    times, denoise = grids.log_snr(30, kernel.schedule), DATA.denoise(kernel)

    def rounded(x: Tensor, t: Time) -> Belief:
        return Belief(denoise(x.double(), t).mean.float())

    found = log_likelihood(rounded, kernel, x_0.float(), times)
    assert found.nats.dtype == torch.float32
    torch.testing.assert_close(found.nats.double(), log_likelihood(denoise, kernel, x_0, times).nats, rtol=0, atol=3e-3)
    free = adaptive_log_likelihood(rounded, kernel, x_0.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(free.nats.double(), gaussian_density(x_0), rtol=0, atol=0.05)


def test_bad_arguments_are_named() -> None:
    kernel, x_0, times = Gaussian(RectifiedFlow()), DATA.sample(2, seeded(0)), grids.uniform(4)
    denoise = DATA.denoise(kernel)
    for run, name in (
        (lambda: log_likelihood(denoise, kernel, x_0.long(), times), "x_0"),
        (lambda: log_likelihood(denoise, kernel, x_0, times[-2:], from_data=False), "times"),
        (lambda: log_likelihood(lambda x, t: Belief(x.detach()), kernel, x_0, times), "denoise"),
        (lambda: adaptive_log_likelihood(denoise, kernel, x_0, offset=0.5, first=0.4), "offset"),
        (lambda: rademacher(0), "count"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            run()


def test_exact_probes_are_one_unit_vector_per_element() -> None:
    clouds = Clouds([2, 1])
    noise = Centred().given(**clouds.structure)
    like = torch.zeros(3, 3, dtype=torch.float64)
    gram = sum(torch.outer(v.flatten(), v.flatten()) for v in exact(noise, like))
    # Blocks of the two clouds: sum of v v' is the projection within each.
    projection = torch.stack([noise.project(unit.reshape(3, 3)).flatten() for unit in torch.eye(9).double()])
    torch.testing.assert_close(torch.as_tensor(gram)[:6, :6], projection[:6, :6])
    torch.testing.assert_close(torch.as_tensor(gram)[6:, 6:], projection[6:, 6:])
