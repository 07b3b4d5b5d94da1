"""What the benchmarks of time series measure with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydiff.core.ancestral import ancestral
from polydiff.core.gaussian import Belief
from polydiff.core.grids import trailing
from polydiff.core.schedules import Tabulated
from polydiff.timeseries.kernel import targets
from polydiff.timeseries.metrics import figures
from tests.benchmarks._timeseries import compared, described, pinball_sums
from tests.benchmarks._timeseries_worker import System, chunk_path, impute, read_chunk
from tests.benchmarks.timeseries_calibration import hidden, summary
from tests.benchmarks.timeseries_cost import growth
from tests.benchmarks.timeseries_csdi import betas, integer_times, published_rule


def test_published_rule_of_one_step_by_hand() -> None:
    beta = torch.tensor([0.36], dtype=torch.float64)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    (found,) = published_rule(lambda x, t: 0.5 * x, beta, x, iter([]))
    torch.testing.assert_close(found, x * (1 - 0.6 * 0.5) / 0.8)


def test_published_rule_keeps_the_variance_of_normal_data() -> None:
    """With the exact eps of N(0, v) the variance follows the published chain's own recursion, in closed form."""
    beta, v = betas(), 0.7
    bar = (1 - beta).cumprod(0)
    source = torch.Generator().manual_seed(1)
    x = torch.randn(50_000, generator=source, dtype=torch.float64)

    def eps(x: torch.Tensor, t: int) -> torch.Tensor:
        return x * (1 - bar[t]).sqrt() / (bar[t] * v + 1 - bar[t])

    noise = iter(lambda: torch.randn(len(x), generator=source, dtype=torch.float64), None)
    variance = 1.0
    for t, state in zip(range(len(beta) - 1, -1, -1), published_rule(eps, beta, x, noise), strict=True):
        shrink = (1 - beta[t] / (bar[t] * v + 1 - bar[t])) / (1 - beta[t]).sqrt()
        added = beta[t] * (1 - bar[t - 1]) / (1 - bar[t]) if t else 0.0
        variance = float(shrink**2 * variance + added)
        assert float(state.var()) == pytest.approx(variance, rel=0.03)


def test_ancestral_sampler_follows_the_published_rule() -> None:
    """On cells of a mask, with a belief that depends on all of x."""
    beta = betas()
    schedule, bar, T = Tabulated.from_betas(beta), (1 - beta).cumprod(0), len(beta)
    mask = torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(0)) < 0.6
    kernel = targets(schedule).given(mask=mask)

    def eps(x: torch.Tensor, t: int) -> torch.Tensor:
        x = torch.where(mask, x, 0)
        return torch.tanh(x + x.mean((1, 2), keepdim=True)) * (1 + t / T) / 2

    def denoise(x: torch.Tensor, t: Any) -> Belief:
        i = round(T * float(t)) - 1
        return Belief(torch.where(mask, (x - (1 - bar[i]).sqrt() * eps(x, i)) / bar[i].sqrt(), 0))

    one, other = (torch.Generator().manual_seed(3) for _ in range(2))
    x = kernel.noise.draw(torch.zeros(mask.shape, dtype=torch.float64), one)
    noise = iter(lambda: torch.randn(mask.shape, generator=other, dtype=torch.float64), None)
    steps = zip(
        ancestral(denoise, kernel, x, trailing(T, T), generator=one),
        published_rule(eps, beta, next(noise), noise),
        strict=True,
    )
    for step, theirs in steps:
        torch.testing.assert_close(step.x[mask], theirs[mask], rtol=0, atol=1e-11)
        assert (step.x[~mask] == 0).all()


@pytest.mark.parametrize("calls", [1, 6, 10, 50])
def test_grid_of_whole_steps(calls: int) -> None:
    grid = integer_times(Tabulated.from_betas(betas()), calls)
    steps = (grid * 50).round()
    assert len(grid) == calls + 1
    assert torch.equal(steps / 50, grid)
    assert grid[0] == 1
    assert grid[-1] == 0
    assert calls == 1 or steps[-2] == 1
    assert (steps.diff() < 0).all()


def draws(seed: int, S: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples (S, N, L, K), truth and mask of three windows."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randn(3, 5, 2, generator=draw, dtype=torch.float64)
    samples = truth + torch.randn(S, 3, 5, 2, generator=draw, dtype=torch.float64) + 0.2
    return samples, truth, torch.rand(3, 5, 2, generator=draw) < 0.7


def test_sums_give_the_figures_of_all_windows() -> None:
    samples, truth, mask = draws(0)
    sums = pinball_sums(samples[:, mask], truth[mask], mask.nonzero()[:, 0], 3)
    found, expected = described(sums, 40), figures(samples, truth, mask)
    assert found["CRPS"]["value"] == pytest.approx(expected["CRPS"], rel=1e-12)
    assert found["MAE"]["value"] == pytest.approx(expected["MAE"], rel=1e-12)
    level = next(one for one in expected["intervals"] if one["level"] == 0.9)
    assert found["coverage"]["value"] == pytest.approx(level["coverage"], rel=1e-12)
    assert found["expected coverage"] == pytest.approx(level["expected"])
    assert found["cells"] == int(mask.sum())
    for window in range(3):
        alone = figures(samples[:, [window]], truth[[window]], mask[[window]])
        assert sums[window, 0] / sums[window, 1] == pytest.approx(alone["CRPS"], rel=1e-12)


def test_bootstrap_error_is_that_of_means() -> None:
    """With windows of one cell each, MAE is a mean, whose standard error is known."""
    draw = np.random.default_rng(0)
    errors = draw.exponential(size=200)
    ones = np.ones(200)
    found = described(np.stack([errors, ones, errors, ones, ones], 1), 1)
    assert "CRPS" not in found
    assert found["MAE"]["standard error"] == pytest.approx(errors.std(ddof=1) / 200**0.5, rel=0.05)
    assert found["MAE"]["low"] < errors.mean() < found["MAE"]["high"]


def test_comparison_is_paired() -> None:
    samples, truth, mask = draws(1)
    theirs = pinball_sums(samples[:, mask], truth[mask], mask.nonzero()[:, 0], 3)
    better = theirs * np.array([0.5, 1, 0.5, 1, 1])
    found = compared(better, theirs)
    for name in ("CRPS ratio", "MAE ratio"):
        assert found[name]["value"] == pytest.approx(0.5)
        assert found[name]["standard error"] == pytest.approx(0, abs=1e-12)
    assert found["coverage difference"]["value"] == 0
    with pytest.raises(ValueError, match="same cells"):
        compared(better * np.array([1, 2, 1, 1, 1]), theirs)


class Constant(System):
    """Fills with sample s, and notes what it was shown."""

    def __init__(self) -> None:
        self.shown: list[np.ndarray] = []

    def train(self, x: np.ndarray, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
        return {}

    def load(self, folder: Path, length: int, features: int) -> None:
        pass

    def impute(self, x: np.ndarray, samples: int, seed: int) -> np.ndarray:
        self.shown.append(x)
        return np.broadcast_to(np.arange(samples, dtype=np.float32)[:, None, None, None], (samples, *x.shape)) + x * 0

    def cost(self, task: str, length: int, features: int) -> Callable[[], Any]:
        return lambda: None


def test_worker_shows_no_held_out_cell_and_goes_on(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5, 4, 3)).astype(np.float32)
    held = draw.random(x.shape) < 0.5
    arrays: dict[str, Any] = {"x": x, "held-50": held}
    np.savez(tmp_path / "test.npz", **arrays)
    asked = argparse.Namespace(
        data=tmp_path / "test.npz", folder=tmp_path, rate=50, windows=0, samples=3, chunk=2, tag="draws", seed=0
    )
    system = Constant()
    impute(system, asked)
    for shown, rows in zip(system.shown[1:], (slice(0, 2), slice(2, 4), slice(4, 5)), strict=True):
        np.testing.assert_array_equal(np.isnan(shown), held[rows])
        np.testing.assert_array_equal(shown[~held[rows]], x[rows][~held[rows]])
    middle = chunk_path(tmp_path, "draws", 50, 3, 2, 4)
    assert read_chunk(middle)["samples"].shape == (3, held[2:4].sum())
    last = chunk_path(tmp_path, "draws", 50, 3, 4, 5)
    last.unlink()
    kept = middle.stat().st_mtime_ns
    again = Constant()
    impute(again, asked)
    assert len(again.shown) == 2  # one to warm up, one chunk
    assert last.exists()
    assert middle.stat().st_mtime_ns == kept


def test_growth() -> None:
    points = {str(n): {"seconds": 3.0 * n**2} for n in (10, 100, 1000)} | {"2000": {"ended": "time"}}
    assert growth(points) == pytest.approx(2)
    points["10"] = {"seconds": 1.0}
    assert growth(points, least=100) == pytest.approx(2)
    assert growth({"10": {"seconds": 1.0}}) is None


def test_hidden_cells_are_observed_ones_of_two_kinds() -> None:
    seen = np.random.default_rng(1).random((300, 2)) < 0.9
    cells = hidden(seen, 3)
    single, runs = cells["single"], cells["runs"]
    assert not (single & runs).any()
    assert not ((single | runs) & ~seen).any()
    wanted = round(0.1 * seen.sum())
    assert single.sum() == wanted
    assert wanted <= runs.sum() < wanted + 12
    assert not np.array_equal(single, hidden(seen, 4)["single"])


def test_coverage_over_seeds() -> None:
    def one(covered: int) -> dict[str, Any]:
        return {kind: {"cells": 10, "covered": covered, "width": 1.0, "MAE": 2.0} for kind in ("single", "runs")}

    found = summary({"0": one(8), "1": one(10)})
    assert found["both"]["coverage"] == pytest.approx(0.9)
    assert found["both"]["error"] == pytest.approx(0.1)
    assert found["single"]["cells"] == 20
