"""Laws on the smallest real case of every domain; that every method runs there is the matrix (test_matrix)."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
import torch

from polydiff.cli.main import DOMAINS
from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import elbo
from polydiff.core.case import Case
from polydiff.core.grids import uniform
from polydiff.core.objectives import Denoising
from polydiff.core.randomness import example_generators


@pytest.fixture(params=DOMAINS)
def case(request: pytest.FixtureRequest) -> Case:
    return import_module(f"polydiff.{request.param}.tiny").case()


def flat(x: Any) -> torch.Tensor:
    """A state as one tensor of floats."""
    return torch.cat([flat(part) for part in x]) if isinstance(x, tuple) else x.double().flatten()


@torch.no_grad()
def test_ancestral_draws_finite_states_that_depend_on_the_seed_alone(case: Case) -> None:
    count = case.kernel.examples(case.x_0)

    def run(seed: int) -> torch.Tensor:
        generators = example_generators(seed, 0, range(count))
        x = case.kernel.prior(case.x_0).sample(generators)
        denoise = case.denoiser.given(case.kernel, **case.condition)
        steps = list(ancestral(denoise, case.kernel, x, uniform(5), generator=generators))
        assert [float(step.t) for step in steps] == uniform(5)[1:].tolist()
        return flat(steps[-1].x)

    first = run(0)
    assert first.isfinite().all()
    assert torch.equal(first, run(0))
    assert not torch.equal(first, run(1))


@torch.no_grad()
def test_bound_is_a_bound_by_parts(case: Case) -> None:
    generators = example_generators(0, 0, range(case.kernel.examples(case.x_0)))
    denoise = case.denoiser.given(case.kernel, **case.condition)
    bound = elbo(denoise, case.kernel, case.x_0, uniform(6), generator=generators)
    assert bound.gaps.shape == (5, case.kernel.examples(case.x_0))
    assert bound.total.isfinite().all()
    assert (bound.prior >= 0).all()
    assert (bound.gaps >= 0).all()
    certain = elbo(lambda x, t: case.kernel.certain(case.x_0), case.kernel, case.x_0, uniform(6), generator=generators)
    assert torch.allclose(certain.gaps, torch.zeros_like(certain.gaps), atol=1e-5)
    assert (bound.total > certain.total).all()


def test_training_lowers_the_loss(case: Case) -> None:
    objective = Denoising(case.denoiser, case.kernel)
    batch = {"x_0": case.x_0, **case.condition}
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    losses = []
    for step in range(30):
        generators = example_generators(0, step % 3, range(case.kernel.examples(case.x_0)))
        loss = objective(batch, generators).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1])
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
