"""The product of kernels: every number is the sum of its parts' numbers, every law the parts' laws side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core.distributions import Discrete, Joint, Normal
from polydiff.core.gaussian import Belief
from polydiff.core.product import Product
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine
from tests.core.cases import INDEX, B, Case, parts, product

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
