"""Schedules: their published closed forms, and what every one of them must satisfy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polydiff.core.errors import ArgumentError
from polydiff.core.schedules import (
    EDM,
    Cosine,
    LinearBeta,
    Quadratic,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    SubVP,
    Tabulated,
    VarianceExploding,
)
from tests.core.cases import SCHEDULES

T = torch.linspace(0.01, 0.99, 57, dtype=torch.float64)
ZERO, ONE = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]()


def test_begins_at_data(schedule: Schedule) -> None:
    alpha, sigma = schedule(ZERO)
    assert (float(alpha), float(sigma)) == (1.0, 0.0)
    assert float(schedule.log_snr(ZERO)) == math.inf


def test_log_snr_falls_everywhere(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    assert bool((schedule.log_snr(t).diff() < 0).all())


def test_output_is_float64_of_any_shape(schedule: Schedule) -> None:
    for t in (torch.rand(3, 2), torch.rand(()), torch.rand(2, 1, 1).double()):
        for number in (*schedule(t), schedule.log_snr(t), schedule.drift(t), schedule.diffusion(t)):
            assert number.dtype == torch.float64
            assert number.shape == t.shape


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SCHEDULES)), t=st.floats(1e-6, 1.0))
def test_inverse(name: str, t: float) -> None:
    schedule = SCHEDULES[name]()
    time = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.log_snr(time)), time, rtol=1e-9, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(SCHEDULES)), times=st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True))
def test_log_snr_is_monotone(name: str, times: list[float]) -> None:
    later, earlier = (float(SCHEDULES[name]().log_snr(torch.tensor(t))) for t in (max(times), min(times)))
    assert later < earlier or later == pytest.approx(earlier, rel=1e-12)


def test_inverse_beyond_the_ends_is_clamped(schedule: Schedule) -> None:
    far = torch.tensor([math.inf, 2000.0, -2000.0, -math.inf], dtype=torch.float64)
    t = schedule.inverse(far)
    assert t[0] == 0
    assert float(t[1]) < 1e-4
    assert t[2:].tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_closed_inverses_equal_the_bisection(schedule: Schedule) -> None:
    log_snr = schedule.log_snr(T)
    torch.testing.assert_close(schedule.inverse(log_snr), Schedule.inverse(schedule, log_snr), rtol=1e-11, atol=1e-13)


def test_sde_has_the_marginals(schedule: Schedule) -> None:
    """f and g solve d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2; by central differences."""
    knots = getattr(schedule, "alphas_bar", ())
    t = T + 1e-3 / 7 if knots else T  # off the knots of a table
    step = 1e-6
    (a_1, s_1), (a_2, s_2), (a, s) = schedule(t - step), schedule(t + step), schedule(t)
    f, g = schedule.drift(t), schedule.diffusion(t)
    torch.testing.assert_close((a_2 - a_1) / (2 * step), f * a, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((s_2**2 - s_1**2) / (2 * step), 2 * f * s**2 + g**2, rtol=1e-5, atol=1e-6)


def test_rates_are_known_in_inference_mode(schedule: Schedule) -> None:
    with torch.inference_mode():
        inside = schedule.drift(T.clone()), schedule.diffusion(T.clone())
    for one, two in zip(inside, (schedule.drift(T), schedule.diffusion(T)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_diffusion_is_finite_at_zero(schedule: Schedule) -> None:
    assert bool(schedule.diffusion(ZERO).isfinite())


def test_vp_closed_forms() -> None:
    """Song et al. 2021, eq. 11, 32 and 29: f = -beta/2; g^2 = beta, and beta (1 - e^(-2 int beta)) for sub-VP."""
    beta, integral = 0.1 + 19.9 * T, 0.1 * T + 19.9 * T**2 / 2
    for vp in (LinearBeta(), SubVP()):
        torch.testing.assert_close(vp.drift(T), -beta / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(LinearBeta().diffusion(T), beta.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(SubVP().diffusion(T), (beta * (1 - torch.exp(-2 * integral))).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(LinearBeta()(T)[0], torch.exp(-integral / 2))
    torch.testing.assert_close(SubVP()(T)[1], 1 - torch.exp(-integral))
    assert float(LinearBeta().diffusion(ZERO)) == pytest.approx(0.1**0.5)
    root = 0.1**0.5 + (20**0.5 - 0.1**0.5) * T
    torch.testing.assert_close(Quadratic().drift(T), -(root**2) / 2, rtol=1e-9, atol=0)
    torch.testing.assert_close(Quadratic().diffusion(T), root, rtol=1e-9, atol=0)


def test_linear_beta_is_the_limit_of_ddpm() -> None:
    steps = 100_000
    betas = torch.linspace(0.1, 20, steps, dtype=torch.float64) / steps
    alpha = (1 - betas).cumprod(0)[steps // 2 - 1].sqrt()
    assert float(LinearBeta()(torch.tensor(0.5))[0]) == pytest.approx(float(alpha), rel=1e-4)


def test_exploding_closed_forms() -> None:
    """Song et al. 2021, eq. 30: sigma = s_min (s_max/s_min)^t, g = sigma sqrt(2 log(s_max/s_min)); t_min apart."""
    schedule = VarianceExploding(0.01, 50.0, t_min=1e-5)
    u = (T - 1e-5) / (1 - 1e-5)
    sigma = 0.01 * 5000**u
    torch.testing.assert_close(schedule(T)[1], sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.diffusion(T), sigma * math.sqrt(2 * math.log(5000) / (1 - 1e-5)))
    assert schedule.drift(T).abs().max() == 0
    for one in (schedule, EDM()):
        edge = torch.tensor([one.t_min, 1.0], dtype=torch.float64)
        assert one(edge)[1].tolist() == pytest.approx([one.sigma_min, one.sigma_max], rel=1e-12)
        assert float(one(torch.tensor(one.t_min / 2, dtype=torch.float64))[1]) == pytest.approx(one.sigma_min / 2)


def test_edm_levels() -> None:
    """Karras et al. 2022, eq. 5 with 18 levels."""
    i, n, rho = np.arange(18), 18, 7
    levels = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    schedule = EDM()
    times = torch.linspace(1, schedule.t_min, n, dtype=torch.float64)
    np.testing.assert_allclose(schedule(times)[1].numpy(), levels, rtol=1e-10)


def test_cosine() -> None:
    """Nichol & Dhariwal 2021, eq. 17; alpha_1 = 0 exactly."""
    f = torch.cos((T + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    alpha, sigma = Cosine()(T)
    torch.testing.assert_close(alpha**2, f, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T), rtol=1e-14, atol=0)
    for s in (0.0, 0.008, 0.2):
        assert tuple(map(float, Cosine(s)(ONE))) == (0.0, pytest.approx(1.0, abs=1e-15))
        early = torch.tensor(1e-9, dtype=torch.float64)
        exact = 2 * math.asinh(0) + math.sin(math.pi / 2 / (1 + s) * 1e-9) * math.sin(
            math.pi / 2 / (1 + s) * (2 - 1e-9)
        )
        assert float(Cosine(s)(early)[1]) == pytest.approx(exact**0.5 / math.sin(math.pi / 2 / (1 + s)), rel=1e-12)


def test_sigmoid() -> None:
    """Jabri et al. 2022, algorithm 1: gamma(t) = (v_end - v(t)) / (v_end - v_start)."""
    for start, end, tau in ((-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-5.0, 1.0, 1.1)):
        v = [1 / (1 + math.exp(-u / tau)) for u in (start, end)]
        gamma = (v[1] - torch.sigmoid((start + T * (end - start)) / tau)) / (v[1] - v[0])
        alpha, sigma = Sigmoid(start, end, tau)(T)
        torch.testing.assert_close(alpha**2, gamma, rtol=1e-11, atol=0)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T), rtol=1e-13, atol=0)
        assert tuple(map(float, Sigmoid(start, end, tau)(ONE))) == (0.0, pytest.approx(1.0, abs=1e-15))


def test_rectified_flow() -> None:
    alpha, sigma = RectifiedFlow()(T)
    torch.testing.assert_close(alpha + sigma, torch.ones_like(T))
    assert torch.equal(sigma, T)
    torch.testing.assert_close(RectifiedFlow().diffusion(T), (2 * T / (1 - T)).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tabulated_is_ddpm_at_its_own_times(dtype: torch.dtype) -> None:
    steps = 1000
    betas = torch.linspace(1e-4, 0.02, steps, dtype=dtype)
    bar = (1 - betas.double()).cumprod(0)
    alpha, sigma = Tabulated.from_betas(betas)(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    torch.testing.assert_close(alpha**2, bar, rtol=1e-14, atol=0)
    torch.testing.assert_close(sigma**2, 1 - bar, rtol=1e-13, atol=0)


def test_tabulated_between_its_times() -> None:
    schedule = Tabulated([0.9, 0.6, 0.3, 0.0])
    assert schedule.t_min == 0.25
    alpha, sigma = schedule(torch.linspace(0, 1, 101))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101).double(), rtol=1e-14, atol=0)
    assert tuple(map(float, schedule(ONE))) == (0.0, 1.0)


def test_zero_terminal_snr_table() -> None:
    """Lin et al. 2024, algorithm 1: shift and scale sqrt(alpha_bar) so that its end is 0."""
    root = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    schedule = Tabulated(root**2)
    alpha, _ = schedule(torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64))
    assert alpha.tolist() == pytest.approx([float(root[0]), float(root[499]), 0.0], rel=1e-12, abs=0)
    assert float(schedule.log_snr(ONE)) == -math.inf


def test_likelihood_rate_integrates_to_the_log_snr(schedule: Schedule) -> None:
    edges = torch.linspace(0.3, 0.7, 20_001, dtype=torch.float64)
    area = float(schedule.log_snr_rate((edges[:-1] + edges[1:]) / 2).mean() * 0.4)
    ends = schedule.log_snr(edges[[0, -1]])
    assert area == pytest.approx(float(ends[1] - ends[0]), rel=1e-6)


class Learned(Schedule):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.exp(-self.slope * t), t


def test_rates_reach_a_learned_schedule() -> None:
    schedule = Learned()
    schedule.drift(T).sum().backward()
    assert float(schedule.slope.grad) == pytest.approx(-len(T))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LinearBeta(0.0, 1.0), "beta_min"),
        (lambda: LinearBeta(1.0, 1.0), "beta_max"),
        (lambda: LinearBeta(math.nan, 1.0), "beta_min"),
        (lambda: Quadratic(0.1, math.inf), "beta_max"),
        (lambda: SubVP(2.0, 1.0), "beta_max"),
        (lambda: Cosine(-0.1), "s"),
        (lambda: Cosine(math.nan), "s"),
        (lambda: Sigmoid(3.0, -3.0), "end"),
        (lambda: Sigmoid(tau=0.0), "tau"),
        (lambda: VarianceExploding(0.0), "sigma_min"),
        (lambda: VarianceExploding(1.0, 0.5), "sigma_max"),
        (lambda: VarianceExploding(t_min=0.0), "t_min"),
        (lambda: EDM(rho=0.5), "rho"),
        (lambda: EDM(rho=math.inf), "rho"),
        (lambda: EDM(t_min=1.0), "t_min"),
        (lambda: Tabulated([]), "alphas_bar"),
        (lambda: Tabulated([0.5, 0.6]), "alphas_bar"),
        (lambda: Tabulated([1.0, 0.5]), "alphas_bar"),
        (lambda: Tabulated([0.5, math.nan]), "alphas_bar"),
        (lambda: Tabulated(torch.rand(3, 2)), "alphas_bar"),
        (lambda: Tabulated.from_betas([]), "betas"),
        (lambda: Tabulated.from_betas([0.1, 1.1]), "betas"),
        (lambda: Tabulated.from_betas([0.1, math.nan]), "betas"),
        (lambda: Tabulated.from_betas(torch.rand(3, 2)), "betas"),
    ],
)
def test_bad_arguments_are_named(make, name: str) -> None:
    with pytest.raises(ArgumentError) as error:
        make()
    assert error.value.argument == name


@settings(max_examples=100, deadline=None)
@given(table=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5))
def test_any_table_makes_a_schedule_or_a_typed_error(table: list[float]) -> None:
    if table and all(0 <= a < 1 for a in table) and all(a > b for a, b in pairwise(table)):
        alpha, sigma = Tabulated(table)(torch.linspace(0, 1, 13))
        assert bool((alpha.isfinite() & sigma.isfinite()).all())
    else:
        with pytest.raises(ArgumentError, match="^alphas_bar"):
            Tabulated(table)
