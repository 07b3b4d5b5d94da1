"""The engine of tables: arithmetic of rows, memory, and noise."""

from __future__ import annotations

import gc
import weakref

import torch

from polydiff.core.ddim import ddim
from polydiff.core.dpm_solver import dpm_solver_pp_2m, dpm_solver_pp_3m
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.grids import uniform
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta
from polydiff.core.tableau import Row, follow
from polydiff.core.unipc import unipc
from tests.problems import MixtureData

KERNEL = Gaussian(LinearBeta())


def test_a_row_is_its_weighted_sum() -> None:
    x = torch.full((2, 3), 2.0, dtype=torch.float64)
    rows = [
        Row(1.0, [(0, 0.5)], [(0, 3.0)], None),
        Row(0.5, [(0, 1.0), (1, -1.0)], [(0, 0.25), (1, torch.tensor([1.0, 2.0]))], 0.5),
        Row(None, [(0, 0.125), (2, 1.0)], [(1, -1.0)], 0.0),
    ]
    steps = list(follow(rows, lambda x, t: Belief(x * t), KERNEL, x))
    first = 0.5 * 2 + 3 * 2  # y_1; m_0 = 2, m_1 = y_1/2
    weights = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    second = 2 - first + 0.25 * 2 + weights * first / 2
    assert [step.t for step in steps] == [0.5, 0.0]
    assert torch.allclose(steps[0].x, second.expand(2, 3))
    assert torch.allclose(steps[1].x, (0.125 * 2 + second - first / 2).expand(2, 3))


def test_ddim_written_as_a_table_is_ddim() -> None:
    kernel = Gaussian(Cosine())
    times = uniform(7)
    alpha, sigma = kernel.schedule(times)
    ratio = sigma[1:] / sigma[:-1]
    rows = [
        Row(
            float(times[i]),
            [(i, float(ratio[i]))],
            [(i, float(alpha[i + 1] - ratio[i] * alpha[i]))],
            float(times[i + 1]),
        )
        for i in range(7)
    ]
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = MixtureData().denoise(kernel)
    assert torch.allclose(last(follow(rows, denoise, kernel, x)), last(ddim(denoise, kernel, x, times)), atol=1e-13)


def test_runs_leave_no_trace() -> None:
    """Two runs in turns, and one that is given up half-way, see nothing of each other."""
    denoise, times = MixtureData().denoise(KERNEL), uniform(6)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for solver in (dpm_solver_pp_2m, dpm_solver_pp_3m, unipc):
        together = last(solver(denoise, KERNEL, x, times))
        next(solver(denoise, KERNEL, x[:2] + 5, times))
        pairs = zip(*(solver(denoise, KERNEL, half, times) for half in (x[:2], x[2:])), strict=True)
        *_, (one, two) = pairs
        torch.testing.assert_close(torch.cat([one.x, two.x]), together, rtol=1e-12, atol=1e-12)


def test_noise_has_its_weight_and_follows_the_generator() -> None:
    x = torch.zeros(4000, 2)
    rows = [Row(None, [(0, 1.0)], [], 0.5, 3.0)]

    def run(seed: int) -> torch.Tensor:
        return last(follow(rows, lambda x, t: Belief(x), KERNEL, x, torch.Generator().manual_seed(seed)))

    assert abs(run(0).std().item() - 3) < 0.1
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_states_that_no_row_reads_again_are_freed() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def denoise(x: torch.Tensor, t: object) -> Belief:
        alive.append(weakref.ref(x))
        gc.collect()
        assert sum(reference() is not None for reference in alive) <= 3  # the caller's, the previous and the newest
        return Belief(x.clone())

    rows = [Row(1 - i / 9, [(i, 0.9)], [(i, 0.1)], 1 - (i + 1) / 9) for i in range(9)]
    last(follow(rows, denoise, KERNEL, torch.ones(2, 2)))
    assert len(alive) == 9
