"""The distributions beside torch.distributions and scipy, which know nothing of generators."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, MultivariateNormal, kl_divergence
from torch.distributions import Normal as TorchNormal

from polydiff.core import distributions
from polydiff.core.clouds import Centred
from polydiff.core.distributions import Discrete, Joint, Normal, Scaled
from polydiff.core.errors import ArgumentError
from polydiff.core.noise import Diagonal, Isotropic, masked
from polydiff.core.randomness import seeded

B = 3


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


DEVIATION = 0.3 + numbers(B, 2, 4, seed=9).abs()
LAWS = {
    "isotropic": (Isotropic(), torch.ones(B, 2, 4, dtype=torch.float64)),
    "diagonal": (Diagonal(DEVIATION), DEVIATION),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scale", [0.37, torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)], ids=["float", "tensor"])
def test_normal(law: str, scale: float | torch.Tensor) -> None:
    noise, deviation = LAWS[law]
    rows = torch.as_tensor(scale, dtype=torch.float64).expand(B).reshape(B, 1, 1)
    mean, other, x = numbers(B, 2, 4), numbers(B, 2, 4, seed=1), numbers(B, 2, 4, seed=2)
    ours, oracle = Normal(mean, scale, noise), Independent(TorchNormal(mean, rows * deviation), 2)
    torch.testing.assert_close(ours.log_prob(x), oracle.log_prob(x), rtol=1e-12, atol=0)
    theirs = Independent(TorchNormal(other, 0.5 * deviation), 2)
    torch.testing.assert_close(ours.kl(Normal(other, 0.5, noise)), kl_divergence(oracle, theirs), rtol=1e-12, atol=0)
    draws = torch.stack([ours.sample(seeded(i)) for i in range(2000)])
    # 5 standard errors of 2000 draws.
    assert bool(((draws.mean(0) - mean).abs() < 5 * oracle.base_dist.scale / 2000**0.5).all())
    assert bool((draws.std(0) / oracle.base_dist.scale - 1).abs().max() < 5 / 4000**0.5)


def test_scaled() -> None:
    mean, other, x = numbers(B, 5), numbers(B, 5, seed=1), numbers(B, 5, seed=2)
    mine, theirs = numbers(B, 5, seed=3).abs() + 0.1, numbers(B, 5, seed=4).abs() + 0.1
    ours = Scaled(mean, mine, Isotropic())
    torch.testing.assert_close(ours.log_prob(x), Independent(TorchNormal(mean, mine), 1).log_prob(x))
    oracle = kl_divergence(Independent(TorchNormal(mean, mine), 1), Independent(TorchNormal(other, theirs), 1))
    torch.testing.assert_close(ours.kl(Scaled(other, theirs, Isotropic())), oracle)
    draws = torch.stack([ours.sample(seeded(i)) for i in range(2000)])
    assert bool((draws.std(0) / mine - 1).abs().max() < 5 / 4000**0.5)


def test_scaled_where_nothing_is_random() -> None:
    mean = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    deviation = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    law = Scaled(mean, deviation, Diagonal(deviation))
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1]], dtype=torch.float64)
    assert law.log_prob(x).tolist() == [-math.log(2 * math.pi) / 2, -math.inf]
    assert bool((law.sample(seeded(0))[:, 1] == 0).all())
    assert law.kl(law).tolist() == [0.0, 0.0]
    moved = Scaled(x, deviation, Diagonal(deviation))
    assert law.kl(moved).tolist() == [0.0, math.inf]
    assert law.kl(Scaled(mean, torch.ones_like(mean), Diagonal(deviation))).tolist() == [math.inf] * 2


def test_masked_law_lives_on_the_targets() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    law = Normal(torch.zeros(B, 3, dtype=torch.float64), 2.0, masked(mask))
    draw = law.sample(seeded(0))
    assert bool(((draw != 0) == mask).all())
    expected = (TorchNormal(0.0, 2.0).log_prob(draw) * mask).sum(1)
    torch.testing.assert_close(law.log_prob(draw), expected)
    assert law.log_prob(draw + (~mask) * 0.1).isinf().tolist() == [True, True, False]


def test_centred_law_is_the_normal_in_the_subspace() -> None:
    sizes = [2, 5, 3]
    index = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    noise = Centred(index)
    mean = noise.project(numbers(10, 3))
    law = Normal(mean, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), noise)
    x = law.sample(seeded(0))
    other = Normal(noise.project(numbers(10, 3, seed=5)), 0.8, noise)
    for graph, (size, scale) in enumerate(zip(sizes, [0.5, 1.0, 2.0], strict=True)):
        # Orthonormal coordinates of the centred subspace: N - 1 columns of an orthogonal matrix that starts with ones.
        start = torch.cat([torch.ones(size, 1, dtype=torch.float64), numbers(size, size - 1, seed=8)], 1)
        basis = torch.linalg.qr(start).Q[:, 1:]

        def coordinates(y: torch.Tensor, graph: int = graph, basis: torch.Tensor = basis) -> torch.Tensor:
            return (basis.T @ y[index == graph]).flatten()

        identity = torch.eye(3 * (size - 1), dtype=torch.float64)
        oracle = MultivariateNormal(coordinates(mean), scale**2 * identity)
        torch.testing.assert_close(law.log_prob(x)[graph], oracle.log_prob(coordinates(x)))
        theirs = MultivariateNormal(coordinates(other.mean), 0.64 * identity)
        torch.testing.assert_close(law.kl(other)[graph], kl_divergence(oracle, theirs))
    shifted = x.clone()
    shifted[index == 1] += 1e-3
    assert law.log_prob(shifted).isinf().tolist() == [False, True, False]
    assert law.noise.dof(x).tolist() == [3.0, 12.0, 6.0]


def test_centred_law_tolerates_the_rounding_of_large_float32_clouds() -> None:
    noise = Centred(torch.zeros(40, dtype=torch.long), 1)
    mean = noise.project(3000 * torch.randn(40, 3, generator=seeded(0)))
    law = Normal(mean, 0.01, noise)
    assert bool(law.log_prob(law.sample(seeded(1))).isfinite().all())


def test_discrete_beside_torch() -> None:
    logs, others = numbers(B, 2, 5).log_softmax(-1), numbers(B, 2, 5, seed=1).log_softmax(-1)
    x = torch.randint(5, (B, 2), generator=seeded(2))
    oracle, theirs = (Independent(TorchCategorical(logits=one), 1) for one in (logs, others))
    torch.testing.assert_close(Discrete(logs).log_prob(x), oracle.log_prob(x))
    torch.testing.assert_close(Discrete(logs).kl(Discrete(others)), kl_divergence(oracle, theirs))
    assert Discrete(logs[:, 0]).log_prob(x[:, 0]).shape == (B,)  # one token without further dimensions


def test_discrete_kl_at_zeros() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert Discrete(q.log()).kl(Discrete(p.log())).item() == pytest.approx(math.log(2))
    assert Discrete(p.log()).kl(Discrete(q.log())).item() == math.inf


@pytest.mark.parametrize("rare", [0.0, 3e-7, 1e-3])
def test_discrete_samples_by_chi_square(rare: float) -> None:
    """Also tokens below 1e-6, which float32 sums would lose or invent; seeded, so the p-value is one number."""
    count, K = 1_000_000, 24
    weights = torch.linspace(1, 2, K, dtype=torch.float64)
    weights[[0, 7, K - 1]] = 0.0
    p = weights / weights.sum() * (1 - 3 * rare)
    p[[0, 7, K - 1]] = rare
    seen = torch.bincount(Discrete(p.log().expand(count, K)).sample(seeded(4)), minlength=K)
    # A Poisson bound for the rare ones, which are too few for the chi-square.
    for token in (0, 7, K - 1):
        low, high = stats.poisson.interval(1 - 1e-6, count * rare) if rare > 0 else (0, 0)
        assert low <= int(seen[token]) <= high
    common = [k for k in range(K) if k not in (0, 7, K - 1)]
    expected = p[common] / p[common].sum() * seen[common].sum()
    assert stats.chisquare(seen[common].numpy(), expected.numpy()).pvalue > 1e-4


def test_discrete_resolves_probabilities_far_below_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform numbers just below, inside and just above the slot of a token of probability 1e-10."""
    p = torch.tensor([0.5, 1e-10, 0.5 - 1e-10], dtype=torch.float64)
    numbers = torch.tensor([0.5 - 1e-12, 0.5 + 5e-11, 0.5 + 1.01e-10], dtype=torch.float64)
    monkeypatch.setattr(distributions, "rand", lambda *args, **options: numbers)
    assert Discrete(p.log().expand(3, 3)).sample().tolist() == [0, 1, 2]


def test_joint_adds_its_parts() -> None:
    one, two = Normal(numbers(B, 2), 0.5, Isotropic()), Discrete(numbers(B, 3, 4).log_softmax(-1))
    joint = Joint((one, two))
    x = joint.sample(seeded(0))
    torch.testing.assert_close(joint.log_prob(x), one.log_prob(x[0]) + two.log_prob(x[1]))
    other = Joint((Normal(numbers(B, 2, seed=1), 0.5, Isotropic()), Discrete(numbers(B, 3, 4, seed=1).log_softmax(-1))))
    torch.testing.assert_close(joint.kl(other), one.kl(other.parts[0]) + two.kl(other.parts[1]))
    assert torch.equal(joint.mean[0], one.mean)
    assert torch.equal(joint.mean[1], two.mean)


def test_bad_structure_is_named() -> None:
    for wrong in (torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), torch.tensor([1, 2]), 0.5):
        with pytest.raises(ArgumentError, match="^deviation"):
            Diagonal(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="^mask"):
        masked(torch.ones(3))
    with pytest.raises(ArgumentError, match="^mask"):
        Diagonal(torch.ones(())).given(mask=torch.ones(3))
    with pytest.raises(ArgumentError, match="^structure"):
        Diagonal(torch.ones(())).given(mask=torch.ones(3).bool(), deviation=torch.ones(3))
    with pytest.raises(ArgumentError, match="^structure"):
        Isotropic().given(mask=torch.ones(3).bool())
    with pytest.raises(ArgumentError, match="^structure"):
        Centred().given(index=torch.zeros(3, dtype=torch.long))
    for index in (torch.tensor([0, 1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]])):
        with pytest.raises(ArgumentError, match="^index"):
            Centred().given(index=index, num_graphs=2)
    with pytest.raises(ArgumentError, match="^num_graphs"):
        Centred().given(index=torch.tensor([0, 1, 2]), num_graphs=2)
    with pytest.raises(ArgumentError, match="^x"):
        Centred().examples(torch.zeros(3, 3))
    with pytest.raises(ArgumentError, match="^generator"):
        Centred(torch.tensor([0, 0, 1])).draw(torch.zeros(3, 3), [seeded(0)])
