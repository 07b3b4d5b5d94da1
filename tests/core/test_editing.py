"""Partial noising: its two ends, the noise in between, and samplers passed in."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from polydiff.core import schedules
from polydiff.core.ancestral import ancestral
from polydiff.core.categorical import absorbing
from polydiff.core.ddim import ddim
from polydiff.core.editing import edit
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.grids import uniform
from polydiff.core.randomness import seeded
from polydiff.core.sampling import last
from tests.core.cases import CASES
from tests.problems import GaussianData, TokenData

KERNEL = Gaussian(schedules.Cosine())
DATA = GaussianData.standard()
COUNT = 4000


@pytest.mark.parametrize("name", ["isotropic-cosine", "centred-linear", "product-cosine", "absorbing-rectified"])
def test_strength_0_gives_the_data_back(name: str) -> None:
    kernel, x_0 = CASES[name]()
    (step,) = edit(lambda x, t: pytest.fail("called"), kernel, x_0, uniform(5), 0.0)
    assert step.t == 0
    assert step.x is x_0


@torch.no_grad()
def test_strength_1_is_sampling() -> None:
    """From data far off: alpha_1 = 0, so nothing is left of it."""
    x_0, times, generator = torch.full((5, 3), 4.0, dtype=torch.float64), uniform(20), seeded(0)
    steps = list(edit(DATA.denoise(KERNEL), KERNEL, x_0, times, 1.0, generator=seeded(0)))
    assert [step.t for step in steps] == times.tolist()
    x = KERNEL.prior(x_0).sample(generator)
    assert torch.equal(steps[0].x, x)
    assert torch.equal(steps[-1].x, last(ancestral(DATA.denoise(KERNEL), KERNEL, x, times, generator=generator)))


@torch.no_grad()
def test_strength_between_is_noise_to_that_time_and_the_flow_back() -> None:
    """DDIM on a fine grid is the flow: x_0 = flow(x_t) with x_t from the marginal at the time of the strength."""
    x_0, times = DATA.sample(50, seeded(1)), uniform(1000)
    steps = list(edit(DATA.denoise(KERNEL), KERNEL, x_0, times, 0.4, sampler=ddim, generator=seeded(2)))
    assert len(steps) == 401
    assert math.isclose(float(steps[0].t), 0.4)
    assert torch.equal(steps[0].x, KERNEL.marginal(x_0, steps[0].t).sample(seeded(2)))
    exact = DATA.flow(KERNEL.schedule, steps[0].x, 0.4, 0.0)
    assert torch.allclose(steps[-1].x, exact, atol=5e-3)
    # With one column of times per example, the same.
    columns = times.unsqueeze(1).expand(-1, 50)
    again = last(edit(DATA.denoise(KERNEL), KERNEL, x_0, columns, 0.4, sampler=ddim, generator=seeded(2)))
    assert torch.allclose(again, steps[-1].x, atol=1e-9)


@torch.no_grad()
def test_edits_of_data_are_data_at_any_strength() -> None:
    """Noising and the reverse chain both keep the law of the data, and the stronger the edit, the less is kept."""
    x_0, kept = DATA.sample(COUNT, seeded(3)), []
    for strength in (0.2, 0.5, 0.8):
        x = last(edit(DATA.denoise(KERNEL), KERNEL, x_0, uniform(50), strength, generator=seeded(4)))
        assert torch.allclose(x.T.cov(), DATA.covariance, atol=0.1)
        kept.append(float(((x - x_0) ** 2).sum(1).mean()))
    assert kept[0] < kept[1] < kept[2]


@torch.no_grad()
def test_tokens_are_edited_by_ancestral_sampling() -> None:
    data, kernel = TokenData.standard(K=4, without=3), absorbing(schedules.RectifiedFlow(), 4, mask=3)
    x_0 = torch.tensor([[2, 0]]).expand(COUNT, 2)
    steps = list(edit(data.denoise(kernel), kernel, x_0, uniform(10), 0.3, generator=seeded(5)))
    assert len(steps) == 4
    assert float((steps[0].x == 3).double().mean()) == pytest.approx(0.3, abs=0.03)
    intact = (steps[0].x == x_0).all(1)
    assert torch.equal(steps[-1].x[intact], x_0[intact])  # tokens that were not masked stay
    assert (steps[-1].x < 3).all()


def test_strength_rounds_to_the_grid_and_options_are_bound() -> None:
    x_0, denoise = DATA.sample(2, seeded(6)), DATA.denoise(KERNEL)
    for strength, calls in ((0.19, 1), (0.5, 2), (0.6, 2), (0.74, 3)):
        assert len(list(edit(denoise, KERNEL, x_0, uniform(4), strength, sampler=partial(ddim, eta=0.5)))) == calls + 1
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match="strength"):
            next(edit(denoise, KERNEL, x_0, uniform(4), strength))
