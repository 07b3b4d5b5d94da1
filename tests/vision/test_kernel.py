"""The exact probability of pixel values, against quadrature of the normal law and the laws of probability."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm

from polydiff.core.bounds import elbo
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief
from polydiff.core.grids import uniform
from polydiff.core.schedules import Cosine, VarianceExploding
from polydiff.vision.kernel import Binned, Pixels


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("deviation", [1e-3, 0.02, 0.7, 30.0])
def test_bins_hold_the_mass_of_the_normal(levels: int, deviation: float) -> None:
    mean = torch.tensor([[-1.3, -1.0, -0.2, 0.011, 0.99, 2.0]], dtype=torch.float64)
    law = Binned(mean, torch.tensor([[deviation]], dtype=torch.float64), levels)
    k = torch.arange(levels, dtype=torch.float64)
    edges = (2 * (k - 0.5) / (levels - 1) - 1).numpy()
    log_probs = law.discrete().log_probs
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(1, 6, dtype=torch.float64), atol=1e-12)
    for i, m in enumerate(mean[0].tolist()):
        below = norm.cdf(edges, m, deviation)
        above = norm.sf(edges, m, deviation)
        low, high = [0.0, *below[1:]], [*below[1:], 1.0]
        tail, rest = [1.0, *above[1:]], [*above[1:], 0.0]
        for j in range(levels):
            expected = tail[j] - rest[j] if low[j] > 0.5 else high[j] - low[j]
            if expected > 1e-12:
                assert math.isclose(log_probs[0, i, j].exp().item(), expected, rel_tol=1e-6)


def test_far_tails_stay_finite_and_ordered() -> None:
    law = Binned(torch.zeros(1, 1), torch.full((1, 1), 1e-3), 256)
    x = torch.linspace(-1, 1, 256)
    values = torch.stack([law.log_prob(value.reshape(1, 1)) for value in x]).squeeze(1)
    assert values.isfinite().all()
    assert (values[:127].diff() > 0).all()
    assert (values[129:].diff() < 0).all()


def test_log_prob_reads_the_bin_and_sums_pixels() -> None:
    torch.manual_seed(0)
    law = Binned(torch.randn(3, 2, 4), torch.rand(3, 2, 4) + 0.1, 17)
    k = torch.randint(0, 17, (3, 2, 4))
    expected = law.discrete().log_probs.gather(-1, k.unsqueeze(-1)).flatten(1).sum(1)
    assert torch.allclose(law.log_prob(k / 8 - 1.0), expected, rtol=1e-6)
    drawn = law.sample(torch.Generator().manual_seed(0))
    assert torch.equal(((drawn + 1) * 8).round(), (drawn + 1) * 8)
    assert torch.allclose(law.mean, (law.discrete().mean @ torch.linspace(-1, 1, 17).double()).float(), atol=1e-5)


def test_bound_on_independent_pixels_reaches_their_entropy() -> None:
    """Data: each pixel 0 or 16 of 17 levels with equal odds; the exact denoiser is a tanh, the entropy 1 bit."""
    kernel = Pixels(Cosine(), 17)

    def denoise(x: torch.Tensor, t: float | torch.Tensor) -> Belief:
        alpha_t, sigma_t = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))
        return Belief(torch.tanh(x * (alpha_t / sigma_t**2).item()))

    x_0 = torch.randint(0, 2, (4000, 8), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    coarse, fine = (
        elbo(denoise, kernel, x_0, uniform(n), generator=torch.Generator().manual_seed(1)) for n in (20, 300)
    )
    bits = [float(bound.total.mean()) / 8 / math.log(2) for bound in (coarse, fine)]
    error = float(fine.total.std()) / 8 / math.log(2) / 4000**0.5
    assert bits[0] > bits[1] > 1 - 4 * error
    assert bits[1] < 1.03


def test_likelihood_follows_the_noise_left() -> None:
    kernel = Pixels(VarianceExploding(), 256)
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    law = kernel.likelihood(Belief(torch.zeros(2, 1, 2, 2)), t)
    alpha_t, sigma_t = kernel.schedule(t)
    assert torch.allclose(law.deviation.flatten().double(), sigma_t / alpha_t, rtol=1e-6)
    with pytest.raises(ArgumentError, match="levels"):
        Pixels(Cosine(), 300)
