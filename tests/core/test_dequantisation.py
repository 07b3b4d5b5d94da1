"""Dequantisation against discrete laws whose probabilities are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from polydiff.core.bounds import bits_per_dim
from polydiff.core.dequantisation import START, Dequantiser, LogitNormal, Uniform, dequantised
from polydiff.core.errors import ArgumentError
from polydiff.core.randomness import seeded

L = 4
WIDTH = 2 / (L - 1)
VALUES = torch.linspace(-1, 1, L, dtype=torch.float64)
P = torch.tensor([0.1, 0.5, 0.15, 0.25], dtype=torch.float64)


class Head(nn.Module):
    """Mean and stretch of the logit by level."""

    def __init__(self, scale: float = 0.5):
        super().__init__()
        self.table = nn.Parameter(scale * torch.randn(L, 2, generator=seeded(3), dtype=torch.float64))

    def forward(self, v: Tensor) -> Tensor:
        rows = self.table[((v + 1) / WIDTH).round().long()]
        return torch.cat([rows[..., 0], rows[..., 1]], 1)


def level(x: Tensor) -> Tensor:
    return ((x + 1) / WIDTH).round().long().clamp(0, L - 1)


def steps(x: Tensor) -> Tensor:
    """The density that is flat on each bin and gives it its P."""
    return (P[level(x)] / WIDTH).log().flatten(1).sum(1)


def normal(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0.2, 0.6).log_prob(x).flatten(1).sum(1)


def normal_mass(v: Tensor) -> Tensor:
    """log of the normal's probability of each cell."""
    law = torch.distributions.Normal(torch.tensor(0.2).double(), 0.6)
    return (law.cdf(v + WIDTH / 2) - law.cdf(v - WIDTH / 2)).log().flatten(1).sum(1)


def data(count: int) -> Tensor:
    return VALUES[torch.multinomial(P, 2 * count, replacement=True, generator=seeded(0))].reshape(count, 2, 1)


def test_a_flat_density_is_dequantised_exactly() -> None:
    """log P of the integers, from every draw; in bits, what a probability costs, without any log_det."""
    v = data(50)
    truth = P[level(v)].log().flatten(1).sum(1)
    for samples in (1, 3):
        found = dequantised(steps, Uniform(L), v, samples=samples, generator=seeded(1))
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=0)
    uniform_bits = bits_per_dim(
        -dequantised(lambda x: x.new_full((50,), 2 * math.log(0.375)), Uniform(L), v), 2 + 0 * v
    )
    torch.testing.assert_close(uniform_bits, torch.full_like(uniform_bits, 2.0))


def test_draws_stay_in_their_cells_and_fill_them() -> None:
    v = torch.zeros(4000, 1, 1, dtype=torch.float64) + VALUES[2]
    x, log_q = Uniform(L)(v, seeded(0))
    u = ((x - v) / WIDTH + 0.5).flatten()
    assert 0 <= float(u.min()) < 0.005
    assert 0.995 < float(u.max()) <= 1
    assert float(u.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / 4000) ** 0.5)
    torch.testing.assert_close(log_q, torch.full((4000,), -math.log(WIDTH), dtype=torch.float64))


def test_the_logit_normals_density() -> None:
    """Against torch.distributions, through the change of variables to the state's scale."""
    head, v = Head().requires_grad_(False), data(20)
    x, log_q = LogitNormal(head, L)(v, seeded(1))
    mean, stretch = head(v).chunk(2, 1)
    law = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, START * stretch.exp()),
        [
            torch.distributions.SigmoidTransform(),
            torch.distributions.AffineTransform(v - WIDTH / 2, WIDTH),
        ],
    )
    torch.testing.assert_close(log_q, law.log_prob(x).flatten(1).sum(1), rtol=1e-9, atol=1e-9)
    assert bool(((x - v).abs() < WIDTH / 2).all())


def test_far_out_logits_stay_finite() -> None:
    far = LogitNormal(lambda v: torch.cat([v + 200, 0 * v], 1), L)  # pyright: ignore[reportArgumentType]
    x, log_q = far(data(5).float(), seeded(0))
    assert bool((x.isfinite().all()) & log_q.isfinite().all())


@pytest.mark.parametrize("make", [lambda: Uniform(L), lambda: LogitNormal(Head(0.2), L)], ids=["uniform", "logit"])
def test_more_samples_tighten_the_bound_up_to_the_probability(make: type[Dequantiser]) -> None:
    dequantiser, v = make(), data(4000)
    truth, slack = normal_mass(v), []
    with torch.no_grad():
        for samples in (1, 4, 64):
            slack.append(truth - dequantised(normal, dequantiser, v, samples=samples, generator=seeded(1)))
        for looser, tighter in zip(slack[:-1], slack[1:], strict=True):
            gain = looser - tighter
            assert float(gain.mean()) > 4 * float(gain.std()) / 4000**0.5
        for some in slack:
            assert float(some.mean()) > -4 * float(some.std()) / 4000**0.5
        assert float(slack[-1].mean()) < 0.2 * float(slack[0].mean())
        # E[p/q] = P, on the tightest scale there is.
        one = (dequantised(normal, dequantiser, v, generator=seeded(2)) - truth).exp()
        assert abs(float(one.mean()) - 1) < 5 * float(one.std()) / 4000**0.5


def test_the_learned_law_beats_the_uniform_one_where_the_density_is_its_own() -> None:
    """With density P(v) q(x | v) the learned q reaches log P exactly; gradient steps bring it there."""
    true, learner, v = LogitNormal(Head(), L).requires_grad_(False), LogitNormal(Head(0.0), L), data(1500)

    def density(x: Tensor) -> Tensor:
        k = level(x)
        u = ((x - VALUES[k]) / WIDTH + 0.5).clamp(1e-12, 1 - 1e-12)
        mean, stretch = true.network(VALUES[k]).chunk(2, 1)
        log_deviation = stretch + math.log(START)
        z = (u.logit() - mean) / log_deviation.exp()
        logs = -(z**2 + math.log(2 * math.pi)) / 2 - log_deviation - (u * (1 - u)).log() - math.log(WIDTH)
        return (logs + P[k].log()).flatten(1).sum(1)

    truth = P[level(v)].log().flatten(1).sum(1)
    torch.testing.assert_close(dequantised(density, true, v, generator=seeded(1)), truth, rtol=1e-6, atol=1e-6)
    optimizer = torch.optim.Adam(learner.parameters(), 0.05)

    def slack(dequantiser: Dequantiser) -> float:
        with torch.no_grad():
            return float((truth - dequantised(density, dequantiser, v, generator=seeded(2))).mean())

    before = slack(learner)
    for step in range(150):
        optimizer.zero_grad()
        (-dequantised(density, learner, v, generator=seeded(step, 3))).mean().backward()
        optimizer.step()
    assert slack(learner) < 0.02 * min(before, slack(Uniform(L)))


def test_a_network_of_zeros_is_nearly_uniform() -> None:
    """No other deviation is closer: E log q has its smallest value, 0.0095 nats, at START."""
    nats = {}
    v = torch.zeros(1000, 100, 1, dtype=torch.float64) + VALUES[1]
    for stretch in (-0.1, 0.0, 0.1):
        law = LogitNormal(lambda v, s=stretch: torch.cat([0 * v, 0 * v + s], 1), L)  # pyright: ignore
        nats[stretch] = float(law(v, seeded(0))[1].mean()) / 100 + math.log(WIDTH)
    assert nats[0.0] == pytest.approx(0.0095, abs=0.005)
    assert nats[0.0] < min(nats[-0.1], nats[0.1])


def test_examples_do_not_couple() -> None:
    v, q = data(3), LogitNormal(Head(), L)
    whole = dequantised(normal, q, v, samples=2, generator=[seeded(i) for i in range(3)])
    torch.testing.assert_close(whole[1:], dequantised(normal, q, v[1:], samples=2, generator=[seeded(1), seeded(2)]))


def test_bad_arguments_are_named() -> None:
    v = data(2)
    for call, name in (
        (lambda: Uniform(1), "levels"),
        (lambda: dequantised(normal, Uniform(L), v, samples=0), "samples"),
        (lambda: dequantised(normal, Uniform(L), v + 0.1), "v"),
        (lambda: dequantised(normal, Uniform(L), v * 3), "v"),
        (lambda: dequantised(normal, LogitNormal(nn.Identity(), L), v), "network"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            call()
