"""Denoisers: every reading of the same knowledge gives the same belief."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from polydiff.core import denoisers
from polydiff.core.categorical import absorbing, marginal, uniform
from polydiff.core.clouds import Centred
from polydiff.core.denoisers import GaussianDenoiser, Parametrisation, TokenDenoiser, context, index, logits
from polydiff.core.distributions import Scaled
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.guidance import ClassifierFree
from polydiff.core.noise import masked
from polydiff.core.randomness import seeded
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
from tests.problems import GaussianData, TokenData

DATA = GaussianData.standard()
DEVIATION = 0.6

# What each network is trained to predict, from the ends of the path: written without the library's formulas.
Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
TARGETS: dict[str, tuple[Parametrisation, Target]] = {
    "eps": (denoisers.eps, lambda a, s, x_0, x_1: x_1),
    "x0": (denoisers.x0, lambda a, s, x_0, x_1: x_0),
    "v": (denoisers.v, lambda a, s, x_0, x_1: a * x_1 - s * x_0),
    "score": (denoisers.score, lambda a, s, x_0, x_1: -x_1 / s),
    "flow": (denoisers.flow, lambda a, s, x_0, x_1: x_1 - x_0),
    # Karras et al. 2022, eq. 8: (x_0 - c_skip x)/c_out in their coordinates x/alpha, sigma/alpha.
    "edm": (
        denoisers.edm(DEVIATION),
        lambda a, s, x_0, x_1: (
            (x_0 - DEVIATION**2 / ((s / a) ** 2 + DEVIATION**2) * (x_0 + s / a * x_1))
            / (s / a * DEVIATION / ((s / a) ** 2 + DEVIATION**2).sqrt())
        ),
    ),
}


class Exact(nn.Module):
    """The network of a parametrisation that knows the data: E[target | x_t], at the time it is told.

    Targets are affine in (x_0, x_1) and x_1 = (x_t - alpha x_0)/sigma, so the posterior mean of x_0 gives theirs.
    """

    def __init__(self, schedule: Schedule, target: Target, sigma_data: float | None = None):
        super().__init__()
        self.schedule, self.target, self.sigma_data = schedule, target, sigma_data

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        t = self.schedule.inverse((500 - c.double()) / 25)
        alpha, sigma = (number.reshape(-1, 1) for number in self.schedule(t))
        if self.sigma_data is not None:
            x = x * ((alpha * self.sigma_data) ** 2 + sigma**2).sqrt()  # undo the scaling of the input
        mean = DATA.denoise(Gaussian(self.schedule))(x, t).mean
        return self.target(alpha, sigma, mean, (x - alpha * mean) / sigma)


def exact(name: str, schedule: Schedule) -> GaussianDenoiser:
    parametrisation, target = TARGETS[name]
    network = Exact(schedule, target, DEVIATION if name == "edm" else None)
    return GaussianDenoiser(network, schedule, parametrisation)


def noisy(schedule: Schedule, t: float | Tensor, count: int = 5) -> Tensor:
    return Gaussian(schedule).marginal(DATA.sample(count, seeded(1)), t).sample(seeded(2))


@pytest.mark.parametrize("schedule", [Cosine(), SubVP(), VarianceExploding(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_every_parametrisation_gives_the_posterior_mean(name: str, schedule: Schedule, t: float) -> None:
    kernel, x = Gaussian(schedule), noisy(schedule, t)
    belief = exact(name, schedule).given(kernel)(x, t)
    torch.testing.assert_close(belief.mean, DATA.denoise(kernel)(x, t).mean, rtol=1e-8, atol=1e-8)
    assert belief.spread == 0.0


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("sampled", [Cosine(), RectifiedFlow(), VarianceExploding(), SubVP()], ids=repr)
@pytest.mark.parametrize("trained", [LinearBeta(), EDM(), RectifiedFlow()], ids=repr)
def test_changing_the_schedule_changes_nothing_but_the_path(name: str, sampled: Schedule, trained: Schedule) -> None:
    """A denoiser trained on one schedule gives the exact posterior mean of another's x_t."""
    kernel = Gaussian(sampled)
    t = torch.tensor([0.2, 0.4, 0.5, 0.6, 0.7], dtype=torch.float64)
    x = noisy(sampled, t)
    belief = exact(name, trained)(x, t, kernel)
    torch.testing.assert_close(belief.mean, DATA.denoise(kernel)(x, t).mean, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", TARGETS)
def test_float_and_tensor_times_agree(name: str) -> None:
    schedule = Cosine()
    for kernel in (Gaussian(schedule), Gaussian(RectifiedFlow())):
        x = noisy(kernel.schedule, 0.3)
        denoise = exact(name, schedule).given(kernel)
        by_float, by_tensor = denoise(x, 0.3), denoise(x, torch.full((5,), 0.3, dtype=torch.float64))
        torch.testing.assert_close(by_float.mean, by_tensor.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(denoise(x, 0.3).mean, by_float.mean, rtol=0, atol=0)  # from the table


@pytest.mark.parametrize("name", ["v", "x0", "flow", "edm"])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
def test_alpha_zero_is_no_special_case(name: str, schedule: Schedule) -> None:
    """At t = 1 the belief is finite and, from an exact network, the mean of the data."""
    kernel = Gaussian(schedule)
    near = 1 - 1e-7
    x = noisy(schedule, near)
    network = GaussianDenoiser(lambda x, c: torch.zeros_like(x), schedule, TARGETS[name][0])  # pyright: ignore
    assert bool(network.given(kernel)(x, 1.0).mean.isfinite().all())
    torch.testing.assert_close(
        network.given(kernel)(x, 1.0).mean, network.given(kernel)(x, near).mean, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["eps", "score"])
def test_undefined_readings_are_errors(name: str) -> None:
    denoiser = GaussianDenoiser(nn.Identity(), Cosine(), TARGETS[name][0])
    with pytest.raises(ArgumentError, match=name):
        denoiser.given(Gaussian(Cosine()))(torch.zeros(2, 3), 1.0)
    with pytest.raises(ArgumentError, match=name):
        denoiser(torch.zeros(2, 3), torch.tensor([0.5, 1.0]), Gaussian(Cosine()))


@pytest.mark.parametrize("schedule", [LinearBeta(), VarianceExploding(), RectifiedFlow()], ids=repr)
def test_edm_gives_unit_variance(schedule: Schedule) -> None:
    """Of the network's input and target, at every noise level (Karras et al. 2022, B.6)."""
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    alpha, sigma = schedule(t)
    c_skip, c_out, c_in = denoisers.edm(DEVIATION)(alpha, sigma)
    torch.testing.assert_close(c_in**2 * (alpha**2 * DEVIATION**2 + sigma**2), torch.ones_like(t))
    # target = ((1 - c_skip alpha) x_0 - c_skip sigma x_1) / c_out
    target = ((1 - c_skip * alpha) ** 2 * DEVIATION**2 + (c_skip * sigma) ** 2) / c_out**2
    torch.testing.assert_close(target, torch.ones_like(t))


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.told.append(c)
        return torch.zeros_like(x)


def test_conditioning() -> None:
    schedule = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    for conditioning, expected in (
        (denoisers.time, lambda t: 1000 * t),
        (index(1000), lambda t: 1000 * t - 1),
        (denoisers.log_snr, lambda t: 500 - 25 * float(schedule.log_snr(torch.tensor(t, dtype=torch.float64)))),
    ):
        network = Recorder()
        denoise = GaussianDenoiser(network, schedule, denoisers.eps, conditioning).given(Gaussian(schedule))
        for t in (0.001, 0.255, 1.0):
            denoise(torch.zeros(2, 3), t)
            denoise(torch.zeros(2, 3), torch.tensor([t, t], dtype=torch.float64))
            for told in network.told[-2:]:
                assert told.dtype == torch.float32
                assert told.tolist() == pytest.approx([expected(t)] * 2, rel=1e-6)


def test_index_is_whole_for_every_step_of_a_published_model() -> None:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.equal(index(1000)(t, t).long(), torch.arange(1000))


def test_learned_range_splits_the_output() -> None:
    schedule = LinearBeta()
    kernel, t = Gaussian(schedule), 0.4
    x = torch.randn(2, 3, 4, 4, generator=seeded(0), dtype=torch.float64)
    mean, fraction = torch.randn_like(x), torch.rand_like(x) * 2 - 1
    network = lambda x, c: torch.cat([mean, fraction], 1)  # noqa: E731
    learned = GaussianDenoiser(network, schedule, denoisers.eps, learned_range=True)  # pyright: ignore
    belief = learned.given(kernel)(x, t)
    plain = GaussianDenoiser(lambda x, c: mean, schedule, denoisers.eps).given(kernel)(x, t)  # pyright: ignore
    torch.testing.assert_close(belief.mean, plain.mean)
    # Nichol & Dhariwal 2021, eq. 15: variance = exp(f log beta + (1 - f) log beta_tilde), f = (v + 1)/2.
    alpha_t, sigma_t, alpha_s, sigma_s = (
        float(u) for r in (t, 0.2) for u in schedule(torch.tensor(r, dtype=torch.float64))
    )
    beta = 1 - (alpha_t / alpha_s) ** 2
    small = beta * sigma_s**2 / sigma_t**2
    f = (fraction + 1) / 2
    law = kernel.reverse(x, belief, 0.2, t)
    assert isinstance(law, Scaled)
    torch.testing.assert_close(
        law.deviation**2,
        torch.exp(f * math.log(beta) + (1 - f) * math.log(small)),  # pyright: ignore
    )


def test_the_fixed_spread_reaches_the_belief() -> None:
    denoiser = GaussianDenoiser(lambda x, c: x, Cosine(), spread=1.0)  # pyright: ignore[reportArgumentType]
    assert denoiser.given(Gaussian(Cosine()))(torch.zeros(2, 3), 0.5).spread == 1.0
    with pytest.raises(ArgumentError, match="^spread"):
        GaussianDenoiser(nn.Identity(), Cosine(), spread=1.5)


def test_beliefs_stay_on_the_support() -> None:
    """Whatever the network says, masked cells stay 0 and clouds stay centred."""
    mask = torch.tensor([[True, False, True], [False, True, True]])
    schedule = Cosine()
    denoiser = GaussianDenoiser(lambda x, c: torch.ones_like(x), schedule)  # pyright: ignore[reportArgumentType]
    kernel = Gaussian(schedule, masked(mask))
    x = torch.where(mask, 1.3, 0.0)
    belief = denoiser.given(kernel)(x, 0.5)
    assert bool((belief.mean[~mask] == 0).all())
    assert bool((kernel.posterior(x, belief, 0.2, 0.5).sample(seeded(0))[~mask] == 0).all())
    cloud = Gaussian(schedule, Centred(torch.tensor([0, 0, 1, 1, 1]), 2))
    drifting = denoiser.given(cloud)(cloud.noise.draw(torch.zeros(5, 3), seeded(0)), 0.5).mean
    assert drifting[:2].mean(0).abs().max() < 1e-6
    assert drifting[2:].mean(0).abs().max() < 1e-6


def test_half_precision_networks_leave_the_state_in_float32() -> None:
    denoiser = GaussianDenoiser(lambda x, c: x.bfloat16(), Cosine())  # pyright: ignore[reportArgumentType]
    assert denoiser.given(Gaussian(Cosine()))(torch.zeros(2, 3), 0.5).mean.dtype == torch.float32


class Labelled(nn.Module):
    """A network whose output depends on x, c and label in a known way, null being label 10."""

    def forward(self, x: Tensor, c: Tensor, label: Tensor, scale: Tensor | None = None) -> Tensor:
        mean = torch.sin(x + c.reshape(-1, 1) / 1000) + label.reshape(-1, 1).to(x) * (1.0 if scale is None else scale)
        return torch.cat([mean, x * label.reshape(-1, 1)], 1)


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0, 3.5])
def test_classifier_free_guidance(weight: float) -> None:
    x, c, label = torch.randn(4, 3, generator=seeded(0)), torch.full((4,), 250.0), torch.arange(4)
    network, null = Labelled(), torch.full((4,), 10)
    conditional, free = network(x, c, label=label), network(x, c, label=null)
    guided = ClassifierFree(network, weight, {"label": 10})(x, c, label=label)
    torch.testing.assert_close(guided, free + weight * (conditional - free), rtol=1e-5, atol=1e-5)
    if weight == 1.0:
        assert torch.equal(guided, conditional)
    if weight == 0.0:
        assert torch.equal(guided, free)
    ranged = ClassifierFree(network, weight, {"label": 10}, channels=3)(x, c, label=label)
    torch.testing.assert_close(ranged[:, :3], guided[:, :3])
    assert torch.equal(ranged[:, 3:], conditional[:, 3:])
    # Conditions that are not dropped reach both branches.
    scale = torch.rand(4, 1, generator=seeded(1))
    kept = ClassifierFree(network, weight, {"label": 10})(x, c, label=label, scale=scale)
    both = [network(x, c, label=one, scale=scale) for one in (null, label)]
    torch.testing.assert_close(kept, both[0] + weight * (both[1] - both[0]), rtol=1e-5, atol=1e-5)


def test_guidance_on_rows_of_graphs() -> None:
    """Rows know their example by an index: joined, the second half would ask the first's labels."""
    index, label = torch.tensor([0, 0, 1]), torch.tensor([3.0, 5.0])

    class Rows(nn.Module):
        def forward(self, x: Tensor, c: Tensor, index: Tensor, label: Tensor) -> Tensor:
            return x * label[index].unsqueeze(1)

    x = torch.ones(3, 1)
    guided = ClassifierFree(Rows(), 2.0, {"label": -1})(x, torch.zeros(2), index=index, label=label)
    assert guided.flatten().tolist() == [7, 7, 11]


def test_a_condition_that_all_examples_share_reaches_both_branches() -> None:
    x, c, label = torch.randn(4, 3, generator=seeded(0)), torch.full((4,), 250.0), torch.arange(4)
    shared, each = (
        ClassifierFree(Labelled(), 2.0, {"label": 10})(x, c, label=label, scale=scale)
        for scale in (torch.tensor(0.5), torch.full((4, 1), 0.5))
    )
    torch.testing.assert_close(shared, each)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_hears_of_time_exactly_whatever_the_type_of_the_states(dtype: torch.dtype) -> None:
    heard = []

    class Listening(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            heard.append(c)
            return x

    kernel = Gaussian(LinearBeta())
    denoise = GaussianDenoiser(Listening(), kernel.schedule, denoisers.v, index(4000)).given(kernel)
    x = torch.zeros(2, 3, dtype=dtype)
    for t in (0.75, torch.tensor([0.75, 0.75 + 1 / 4000], dtype=torch.float64)):
        denoise(x, t)
    assert [c.tolist() for c in heard] == [[2999, 2999], [2999, 3000]]


@pytest.mark.parametrize("name", ["eps", "v", "x0", "flow"])
def test_guidance_of_the_output_is_guidance_of_the_belief(name: str) -> None:
    kernel, x, label = Gaussian(LinearBeta()), torch.randn(4, 3, generator=seeded(0)).double(), torch.arange(4)

    def belief(network: nn.Module, label: Tensor) -> Tensor:
        return GaussianDenoiser(network, LinearBeta(), TARGETS[name][0]).given(kernel, label=label)(x, 0.6).mean

    class Mean(Labelled):
        def forward(self, x: Tensor, c: Tensor, label: Tensor, scale: Tensor | None = None) -> Tensor:
            return super().forward(x, c, label)[:, :3]

    one, none = belief(Mean(), label), belief(Mean(), torch.full((4,), 10))
    guided = belief(ClassifierFree(Mean(), 2.5, {"label": 10}), label)
    torch.testing.assert_close(guided, none + 2.5 * (one - none), rtol=1e-9, atol=1e-9)


def test_what_is_no_function_or_not_bound_is_named() -> None:
    kernel = Gaussian(LinearBeta())
    with pytest.raises(ArgumentError, match="^parametrisation: got 'v', .*denoisers.v"):
        GaussianDenoiser(nn.Identity(), kernel.schedule, "v")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="^conditioning"):
        GaussianDenoiser(nn.Identity(), kernel.schedule, denoisers.v, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="^kernel.*given"):
        GaussianDenoiser(nn.Identity(), kernel.schedule)(torch.zeros(2, 3), torch.full((2,), 0.5))
    with pytest.raises(ArgumentError, match="^schedule"):
        Gaussian("cosine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="^generator: got 0"):
        kernel.prior(torch.zeros(2, 3)).sample(0)  # pyright: ignore[reportArgumentType]


def test_guidance_names_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="^weight"):
        ClassifierFree(Labelled(), math.nan, {"label": 10})
    with pytest.raises(ArgumentError, match="^null"):
        ClassifierFree(Labelled(), 1.0, {})
    with pytest.raises(ArgumentError, match="^condition"):
        ClassifierFree(Labelled(), 1.0, {"label": 10})(torch.zeros(1, 3), torch.zeros(1))


TOKENS = {
    "uniform": (uniform(RectifiedFlow(), 3), TokenData.standard(3, 3)),
    "absorbing": (absorbing(RectifiedFlow(), 4, mask=1), TokenData.standard(3, 4, without=1)),
    "marginal": (marginal(Cosine(), torch.tensor([1, 2, 4])), TokenData.standard(2, 3)),
}


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    "t", [0.1, 0.6, torch.linspace(0.05, 1, 64, dtype=torch.float64)], ids=["0.1", "0.6", "tensor"]
)
def test_both_readings_of_tokens_are_exact(name: str, t: float | Tensor) -> None:
    """logits with p(x_0 | x_t), and context with p(x_0 | the other tokens), by enumeration, up to constants."""
    kernel, data = TOKENS[name]
    x_t = kernel.marginal(data.sample(64, seeded(0)), t).sample(seeded(1))
    belief = data.denoise(kernel)(x_t, t)
    shift = torch.randn(*x_t.shape, 1, generator=seeded(2), dtype=torch.float64)
    for parametrisation, output in ((logits, belief), (context, data.others(kernel)(x_t, t))):
        network = lambda x, c, output=output: output + shift  # noqa: E731
        denoiser = TokenDenoiser(network, kernel.schedule, parametrisation)  # pyright: ignore[reportArgumentType]
        read = denoiser.given(kernel)(x_t, t)
        torch.testing.assert_close(read.exp(), belief.exp(), rtol=1e-10, atol=1e-12)
    assert float((belief.exp() - data.others(kernel)(x_t, t).exp()).abs().max()) > 0.01  # they do differ


def test_logits_never_contradict_what_is_seen() -> None:
    kernel, _ = TOKENS["absorbing"]
    x_t = torch.tensor([[0, 1, 3]])
    network = lambda x, c: torch.zeros(*x.shape, 4)  # noqa: E731
    belief = TokenDenoiser(network, kernel.schedule).given(kernel)(x_t, 0.5)  # pyright: ignore[reportArgumentType]
    assert belief[0, 0].exp().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert belief[0, 2].exp().tolist() == [0.0, 0.0, 0.0, 1.0]
    assert belief[0, 1].exp().tolist() == pytest.approx([0.25] * 4)


def test_tokens_meet_another_schedule_at_equal_survival() -> None:
    trained, sampled = RectifiedFlow(), Cosine()
    network = Recorder()
    read = TokenDenoiser(
        lambda x, c: (network(x, c), torch.zeros(*x.shape, 3))[1],  # pyright: ignore[reportArgumentType]
        trained,
        conditioning=denoisers.time,
    ).given(uniform(sampled, 3))
    for t in (0.2, 0.5, 1.0):
        read(torch.zeros(2, 4, dtype=torch.long), t)
        survival = float(sampled(torch.tensor(t, dtype=torch.float64))[0])
        assert network.told[-1].tolist() == pytest.approx([1000 * (1 - survival)] * 2)
