"""The product of kernels: every number is the sum of its parts' numbers, every law the parts' laws side by side."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core.distributions import Discrete, Joint, Normal
from polydiff.core.estimates import continuous_elbo
from polydiff.core.gaussian import Belief
from polydiff.core.product import Product
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, RectifiedFlow, Schedule, VarianceExploding
from tests.core.cases import CASES, INDEX, B, Case, parts, product

S, T = torch.tensor([0.2, 0.1, 0.45, 0.3]).double(), torch.tensor([0.4, 0.3, 0.5, 0.8]).double()


@pytest.fixture
def case() -> Case:
    return product(Cosine())


def guess(case: Case, x_t: Any) -> tuple[Belief, Tensor]:
    """Beliefs that are wrong in every part, with a reverse variance of its own in the first."""
    cloud, tokens = parts(case)
    mean = cloud.kernel.project(cloud.x_0.flip(1) * 0.5 + 0.1 * x_t[0])
    logits = torch.randn((*tokens.x_0.shape, 5), generator=seeded(3), dtype=torch.float64)
    logits[..., 4] = -torch.inf  # no token of the data is the mask
    return Belief(mean, torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)), logits.log_softmax(-1)


@pytest.mark.parametrize("number", ["dims", "error", "gap", "log_prob", "kl"])
def test_numbers_are_sums_over_the_parts(case: Case, number: str) -> None:
    x_t = case.kernel.marginal(case.x_0, T).sample(seeded(1))
    x_s = case.kernel.marginal(case.x_0, S).sample(seeded(2))
    belief = guess(case, x_t)

    def of(kernel: Any, x_0: Any, x_t: Any, x_s: Any, belief: Any) -> Tensor:
        law = kernel.reverse(x_t, belief, S, T)
        return {
            "dims": lambda: kernel.dims(x_0),
            "error": lambda: kernel.error(x_0, belief, T),
            "gap": lambda: kernel.gap(x_t, x_0, belief, S, T),
            "log_prob": lambda: law.log_prob(x_s),
            "kl": lambda: kernel.posterior(x_t, kernel.certain(x_0), S, T).kl(law),
        }[number]()

    each = [of(one.kernel, one.x_0, *rest).double() for one, *rest in zip(parts(case), x_t, x_s, belief, strict=True)]
    assert all(bool((value != 0).any()) for value in each)
    whole = of(case.kernel, case.x_0, x_t, x_s, belief)
    assert whole.shape == (B,)
    torch.testing.assert_close(whole.double(), each[0] + each[1], rtol=1e-12, atol=0)


def test_each_part_keeps_its_own_reverse_law(case: Case) -> None:
    """The learned variance of one part counts; it is not that of the posterior."""
    x_t = case.kernel.marginal(case.x_0, T).sample(seeded(1))
    belief = guess(case, x_t)
    law, fixed = case.kernel.reverse(x_t, belief, S, T), case.kernel.posterior(x_t, belief, S, T)
    assert isinstance(law, Joint)
    cloud, tokens = law.parts
    assert isinstance(cloud, Normal) and isinstance(tokens, Discrete)
    sigma_s, sigma_t = (parts(case)[0].kernel.schedule(u)[1] for u in (S, T))
    widened = fixed.parts[0].scale * (sigma_t / sigma_s) ** belief[0].spread
    torch.testing.assert_close(cloud.scale, widened, rtol=1e-12, atol=0)
    torch.testing.assert_close(tokens.log_probs, fixed.parts[1].log_probs, rtol=0, atol=0)


def test_the_conclusion_is_a_mean_beside_a_draw(case: Case) -> None:
    x_t = case.kernel.marginal(case.x_0, T).sample(seeded(1))
    belief = guess(case, x_t)
    cloud, tokens = case.kernel.conclude(belief, seeded(4))
    torch.testing.assert_close(cloud, belief[0].mean, rtol=0, atol=0)
    torch.testing.assert_close(tokens, Discrete(belief[1]).sample(seeded(4)), rtol=0, atol=0)


def test_structure_reaches_its_own_part_and_no_other_view(case: Case) -> None:
    kernel = Product([part.kernel for part in parts(case)])
    other = torch.repeat_interleave(torch.arange(2), torch.tensor([5, 6]))
    view: Any = kernel.given(part_0={"index": other, "num_graphs": 2})
    assert kernel.examples(case.x_0) == B and view.examples(case.x_0) == 2
    assert torch.equal(parts(case)[0].kernel.noise.index, INDEX)
    assert torch.equal(view.parts[1].layout.index, INDEX)
    types: Any = kernel.given(part_1={"index": other, "num_graphs": 2}).parts[1]
    assert types.layout.num_graphs == 2 and parts(case)[1].kernel.layout.num_graphs == B


@pytest.mark.parametrize(
    "name", ["product-cosine", "product-edm", "product-rectified", "uniform-cosine", "centred-linear"]
)
def test_shares_are_the_inverse_of_the_pace(name: str) -> None:
    """There and back; and the density is the slope of the share, by central differences."""
    kernel, low, step = CASES[name]().kernel, 0.05, 1e-6
    share = torch.tensor([0.0, 1e-3, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    t, stretch = kernel.pace(share, low)
    again, density = kernel.share(t, low)
    torch.testing.assert_close(again, share, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(stretch * density, torch.ones_like(share), rtol=1e-12, atol=0)
    slope = (kernel.share(t + step, low)[0] - kernel.share(t - step, low)[0]) / (2 * step)
    torch.testing.assert_close(density, slope, rtol=1e-5, atol=1e-7)
    assert float(t[0]) == pytest.approx(low, abs=1e-9) and bool((t.diff() > 0).all())


def test_times_are_met_as_the_mixture_of_the_parts_laws(case: Case) -> None:
    """A part's share of all draws below any time; and no part's times are rare where it alone has its cost."""
    low, count = 1e-3, 20_000
    t, _ = case.kernel.pace((torch.arange(count, dtype=torch.float64) + 0.5) / count, low)
    for u in (0.01, 0.3, 0.7, 0.999):
        at = torch.tensor([u], dtype=torch.float64)
        below = sum(float(part.kernel.share(at, low)[0]) for part in parts(case)) / 2
        assert float((t < u).double().mean()) == pytest.approx(below, abs=2 / count)
    near, far = case.kernel.pace(torch.tensor([1 - 1e-9], dtype=torch.float64), low)
    assert float(near) > 1 - 1e-8
    assert float(far) <= 2 * (1 + 1e-6)  # types that survive as 1 - t are met evenly
    assert float(parts(case)[0].kernel.pace(torch.tensor([1 - 1e-9]).double(), low)[1]) > 1e3


def repeated(schedule: Schedule, times: int) -> Case:
    """The product case, every example so many times."""
    one = product(schedule)
    index = torch.arange(B).repeat_interleave(times)
    return Case(one.kernel.taken(index, one.x_0), one.kernel.take(one.x_0, index))


def wrong(case: Case) -> Any:
    """A denoiser whose costs are finite: an error of the data's size over 1 + SNR, and types told by chance."""
    schedule = parts(case)[0].kernel.schedule
    logits = torch.randn(5, generator=seeded(3), dtype=torch.float64)
    logits[4] = -torch.inf

    def denoise(x: Any, t: Any) -> tuple[Belief, Tensor]:
        snr = schedule.log_snr(torch.as_tensor(t, dtype=torch.float64)).exp()
        mean = parts(case)[0].kernel.combine((1 - (1 + snr) ** -0.5, case.x_0[0]))
        return Belief(mean), logits.log_softmax(-1).expand(len(x[1]), 5)

    return denoise


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VarianceExploding(t_min=0.01)], ids=repr)
def test_the_continuous_bound_is_unbiased_and_its_error_falls_as_the_root(schedule: Schedule) -> None:
    """Against a fine quadrature in t itself, and the closed form; 5 standard errors."""
    low, count = 0.05, 4000
    case = repeated(schedule, count)
    gaps = continuous_elbo(wrong(case), case.kernel, case.x_0, low=low, generator=seeded(0)).gaps.sum(0).reshape(B, -1)
    t = low + (1 - low) * ((torch.arange(count, dtype=torch.float64) + 0.5) / count).repeat(B)
    x_t = case.kernel.marginal(case.x_0, t).sample(seeded(1))
    fine = case.kernel.gap_rate(x_t, case.x_0, wrong(case)(x_t, t), t).reshape(B, -1) * (1 - low)
    error = (gaps.var(1) + fine.var(1)).sqrt() / math.sqrt(count)
    assert bool(((gaps.mean(1) - fine.mean(1)).abs() < 5 * error).all())
    whole = product(schedule)
    snr = schedule.log_snr(torch.tensor([low, 1.0], dtype=torch.float64)).exp()
    of_x = whole.kernel.parts[0].noise.squares(whole.x_0[0]) * (torch.log1p(snr[0]) - torch.log1p(snr[1])) / 2
    said = -wrong(whole)(whole.x_0, 0.5)[1].gather(1, whole.x_0[1].unsqueeze(1)).squeeze(1)
    exact = of_x + (1 - low) * torch.zeros(B, dtype=torch.float64).index_add(0, INDEX, said)
    assert bool(((gaps.mean(1) - exact).abs() < 5 * gaps.std(1) / math.sqrt(count)).all())
    # A bounded estimate: its spread is the same among few draws as among many, so the error falls as 1/sqrt(n).
    few = gaps.reshape(B, 16, -1).var(2).mean(1).sqrt()
    torch.testing.assert_close(few, gaps.std(1), rtol=0.1, atol=0)
    assert float((gaps.abs().amax(1) / gaps.std(1)).max()) < 30
