"""UniPC against the paper's own systems of equations. Order, invariances and parity: test_multistep."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.ddim import ddim
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, LinearBeta, VarianceExploding
from polydiff.core.unipc import bh1, bh2, unipc
from tests.problems import MixtureData

DATA = MixtureData()


def coefficients(r: list[float], h: float, B: float) -> numpy.ndarray:
    """a of R a = b: sum_m a_m r_m^(k-1) = k! psi_(k+1)(h)/B with int_0^1 h e^(-h (1 - tau)) tau^k d tau = k! psi."""
    nodes, weights = numpy.polynomial.legendre.leggauss(40)
    tau = (nodes + 1) / 2
    moments = [float((weights / 2 * h * numpy.exp(-h * (1 - tau)) * tau**k).sum()) for k in range(1, len(r) + 1)]
    R = numpy.array([[place ** (k - 1) for place in r] for k in range(1, len(r) + 1)])
    return numpy.linalg.solve(R, numpy.array(moments) / B)


@pytest.mark.parametrize("scale", [bh1, bh2])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", [LinearBeta(), VarianceExploding(0.05, 20.0)], ids=repr)
def test_unipc_is_the_published_algorithm(schedule: LinearBeta, order: int, scale: Callable[[Tensor], Tensor]) -> None:
    kernel = Gaussian(schedule)
    times = torch.tensor([0.95, 0.85, 0.8, 0.6, 0.45, 0.3, 0.25, 0.0], dtype=torch.float64)
    alpha, sigma = schedule(times)
    half = (alpha[:-1] / sigma[:-1]).log().tolist()
    denoise = DATA.denoise(kernel)
    x = torch.randn(9, 2, generator=seeded(0), dtype=torch.float64) * sigma[0]
    ours = list(unipc(denoise, kernel, x, times, order=order, scale=scale))
    beliefs = [denoise(x, 0.95).mean]
    n = len(times) - 1
    for i in range(n - 1):
        h, p = half[i + 1] - half[i], min(order, i + 1, n - i)
        B = float(scale(torch.tensor(h, dtype=torch.float64)))
        r = [(half[i - m] - half[i]) / h for m in range(1, p)]
        D = [(beliefs[i - m] - beliefs[i]) / r[m - 1] for m in range(1, p)]
        base = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (1 - numpy.exp(-h)) * beliefs[i]
        a = [0.5] if p == 2 else coefficients(r, h, B) if p > 1 else []
        predicted = base + alpha[i + 1] * B * sum((c * d for c, d in zip(a, D, strict=True)), torch.zeros(()))
        beliefs.append(denoise(predicted, float(times[i + 1])).mean)
        a = [0.5] if p == 1 else coefficients([*r, 1.0], h, B)
        D.append(beliefs[i + 1] - beliefs[i])
        x = base + alpha[i + 1] * B * sum((c * d for c, d in zip(a, D, strict=True)), torch.zeros(()))
        torch.testing.assert_close(ours[i].x, x, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(ours[i].belief.mean, beliefs[i + 1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours[-1].x, beliefs[-1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [bh1, bh2])
def test_a_start_without_signal_is_a_step_of_ddim(scale: Callable[[Tensor], Tensor]) -> None:
    kernel, times = Gaussian(Cosine()), grids.uniform(6)
    denoise = DATA.denoise(kernel)
    x = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    steps = list(unipc(denoise, kernel, x, times, order=3, scale=scale))
    torch.testing.assert_close(steps[0].x, next(ddim(denoise, kernel, x, times)).x, rtol=1e-12, atol=1e-12)
    assert all(bool(torch.isfinite(step.x).all()) for step in steps)


def test_without_taper_the_last_steps_keep_their_order() -> None:
    kernel, seen = Gaussian(LinearBeta()), []

    def denoise(x: Tensor, t: Time) -> Belief:
        seen.append(x)
        return DATA.denoise(kernel)(x, t)

    x = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    results = []
    for taper in (True, False):
        results.append([step.x for step in unipc(denoise, kernel, x, grids.uniform(6), order=3, taper=taper)])
    for i, same in enumerate((True, True, True, True, False)):
        assert torch.equal(results[0][i], results[1][i]) is same
