"""Figures of samples: closed forms, brute force, hand computation, exchangeability, batches against the whole."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from polydiff.core.errors import ArgumentError
from polydiff.timeseries import scoring
from polydiff.timeseries.metrics import (
    LEVELS,
    QUANTILES,
    Scores,
    coverage_bounds,
    crps,
    energy_score,
    expected_coverage,
    expected_share,
    figures,
    missing_rate,
    pinball,
    quantiles,
)


def problem(count: int = 9, n: int = 5, length: int = 4, features: int = 3, seed: int = 0):
    """Samples, truth with NaN where nobody knows it, counted and given cells."""
    random = np.random.default_rng(seed)
    truth = random.normal(2, 3, (n, length, features))
    samples = truth + random.normal(0.3, 1.5, (count, n, length, features))
    mask = random.random(truth.shape) < 0.5
    known = ~mask & (random.random(truth.shape) < 0.6)
    mask[0, 0], known[0, 0] = [True, False, False], [False, True, False]
    samples[:, ~mask] = np.nan
    truth[~mask & ~known] = np.nan
    return samples, truth, mask, known


# ----------------------------------------------------------------------------------------------------- quantiles


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_quantiles_are_those_of_torch_and_numpy(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PORTION", 50)
    samples = torch.randn(count, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    levels = (0.0, 0.05, 0.33, 0.5, 0.95, 1.0)
    found = quantiles(samples, levels)
    torch.testing.assert_close(found, torch.quantile(samples, torch.tensor(levels, dtype=torch.float64), dim=0))
    np.testing.assert_allclose(quantiles(samples.numpy(), levels), np.quantile(samples.numpy(), levels, axis=0))


def test_quantiles_of_what_torch_refuses_and_of_nothing_known() -> None:
    samples = torch.arange(4.0)[:, None].expand(4, 5_000_000)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(samples, 0.5)
    assert (quantiles(samples, [0.5]) == 1.5).all()
    assert quantiles(torch.tensor([[1.0, 1.0], [math.nan, 2.0]]), [0.5])[0].isnan().tolist() == [True, False]


def test_pinball_by_hand() -> None:
    assert pinball(np.array([3.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0]), 0.9).tolist() == pytest.approx([1.8, 0.2, 0])


# ---------------------------------------------------------------------------------------------------------- CRPS


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("count", [2, 3, 16])
def test_crps_is_its_double_sum(count: int, fair: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "PORTION", 30)
    random = np.random.default_rng(count)
    samples, truth = random.normal(50, 1, (count, 2, 7)), random.normal(50, 1, (2, 7))
    samples[1, 0] = samples[0, 0]  # ties
    pairs = np.abs(samples[:, None] - samples[None]).sum((0, 1))
    expected = np.abs(samples - truth).mean(0) - pairs / (2 * count * (count - 1 if fair else count))
    np.testing.assert_allclose(crps(samples, truth, fair=fair), expected, atol=1e-13)


def test_crps_is_the_integral_of_squared_differences_of_distributions() -> None:
    samples, truth = np.array([-1.0, 0.5, 2.0]), 0.9
    knots = np.sort(np.append(samples, truth))
    middle = (knots[1:] + knots[:-1]) / 2
    squares = ((samples[:, None] <= middle).mean(0) - (truth <= middle)) ** 2
    assert crps(samples, np.array(truth)).item() == pytest.approx(float((squares * np.diff(knots)).sum()))


def test_crps_of_normal_samples_is_the_closed_form() -> None:
    """Gneiting & Raftery 2007, eq. 21; the fair form is unbiased, the other exceeds it by E|x - x'| / (2 S)."""
    truth, count, repeats = 0.7, 5, 200_000
    samples = np.random.default_rng(3).normal(size=(count, repeats))
    exact = truth * (2 * stats.norm.cdf(truth) - 1) + 2 * stats.norm.pdf(truth) - 1 / math.sqrt(math.pi)
    for fair, excess in ((True, 0.0), (False, 1 / (count * math.sqrt(math.pi)))):
        found = crps(samples, np.full(repeats, truth), fair=fair).numpy()
        assert abs(found.mean() - exact - excess) < 4 * found.std() / math.sqrt(repeats)
    many = np.random.default_rng(4).normal(size=400_000)
    assert crps(many, np.array(truth)).item() == pytest.approx(exact, abs=5e-3)


def test_crps_of_one_sample_is_the_absolute_error() -> None:
    assert crps(np.array([[3.0, -1.0]]), np.array([1.0, 1.0])).tolist() == [2, 2]
    with pytest.raises(ArgumentError, match="samples.*two samples"):
        crps(np.zeros((1, 2)), np.zeros(2), fair=True)
    with pytest.raises(ArgumentError, match="truth"):
        crps(np.zeros((3, 2)), np.zeros(3))
    with pytest.raises(ArgumentError, match="samples"):
        crps(np.zeros((0, 2)), np.zeros(2))


@pytest.mark.parametrize("fair", [False, True])
def test_energy_score_is_its_double_sum(fair: bool) -> None:
    samples, truth, mask, _ = problem()
    mask[2] = False
    found = energy_score(samples, truth, mask, fair=fair)
    for n in (0, 1, 3, 4):
        x, y = samples[:, n][:, mask[n]], truth[n][mask[n]]
        pairs = sum(np.linalg.norm(a - b) for a in x for b in x)
        expected = np.mean([np.linalg.norm(a - y) for a in x]) - pairs / (2 * 9 * (8 if fair else 9))
        assert found[n].item() == pytest.approx(expected, rel=1e-12)
    assert found[2].isnan()


def test_energy_score_of_one_cell_is_crps_and_prefers_coherent_paths() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(11, 6, 1, 1)), random.normal(size=(6, 1, 1))
    torch.testing.assert_close(energy_score(x, y, np.ones_like(y, dtype=bool)), crps(x, y)[:, 0, 0])
    paths = np.repeat(random.normal(size=(50, 400, 1, 1)), 8, axis=2)
    truth = np.repeat(random.normal(size=(400, 1, 1)), 8, axis=1)
    shuffled = np.stack([random.permutation(paths[:, :, i]) for i in range(8)], axis=2)
    mask = np.ones_like(truth, dtype=bool)
    assert crps(paths, truth).mean() == pytest.approx(crps(shuffled, truth).mean().item(), rel=1e-12)
    assert energy_score(paths, truth, mask).mean() < energy_score(shuffled, truth, mask).mean() - 0.05


# ------------------------------------------------------------------------------------------------------ coverage


def test_expected_coverage_is_that_of_order_statistics() -> None:
    """Beta laws: the truth lies below x_(k) of S with probability E[Beta(k, S + 1 - k)] = k / (S + 1)."""
    assert expected_coverage(0.9, 16) == pytest.approx(15 * 0.9 / 17)
    for k in range(1, 12):
        assert expected_share((k - 1) / 10, 11) == pytest.approx(stats.beta(k, 12 - k).mean())
        assert expected_share((k - 1) / 10, 11) == pytest.approx(k / 12)
    assert expected_coverage(0.9, 1) == 0 and expected_coverage(1, 9) == pytest.approx(0.8)
    assert expected_coverage(0.9, 10**7) == pytest.approx(0.9)
    for level, count in ((-0.1, 5), (1.1, 5), (0.5, 0), (math.nan, 5)):
        with pytest.raises(ArgumentError):
            expected_coverage(level, count)


@pytest.mark.parametrize("level, count", [(0.9, 16), (0.5, 9), (0.8, 11), (0.9, 3)])
def test_coverage_of_a_perfect_forecaster(level: float, count: int) -> None:
    """Within four standard errors for a uniform law, and within the bounds for laws with other tails."""
    random, size = np.random.default_rng(int(level * 100) + count), 200_000
    low, high = coverage_bounds(level, count)
    assert low - 1e-12 <= expected_coverage(level, count) <= high + 1e-12
    for bend in (lambda u: u, lambda u: u**9, lambda u: stats.cauchy.ppf(u)):
        x, y = bend(random.random((count, size))), bend(random.random(size))
        a, b = quantiles(x, [(1 - level) / 2, (1 + level) / 2]).numpy()
        covered, error = ((a <= y) & (y <= b)).mean(), 4 * 0.5 / math.sqrt(size)
        assert low - error < covered < high + error
        if bend(0.5) == 0.5:
            assert abs(covered - expected_coverage(level, count)) < error


def test_bounds_meet_where_positions_are_whole() -> None:
    assert coverage_bounds(0.8, 11) == pytest.approx((8 / 12, 8 / 12))
    assert coverage_bounds(0.9, 16) == pytest.approx((13 / 17, 15 / 17))
    assert coverage_bounds(0.5, 2) == pytest.approx((0, 1 / 3))


@pytest.mark.parametrize("count", [3, 9, 16])
def test_pit_is_flat_for_exchangeable_samples_with_ties_too(count: int) -> None:
    random, size = np.random.default_rng(count), 40_000
    for draw in (lambda *shape: random.normal(size=shape), lambda *shape: random.integers(0, 3, shape).astype(float)):
        scores = Scores(energy=False)
        scores.add(draw(count, 1, size, 1), draw(1, size, 1), np.ones((1, size, 1), dtype=bool))
        pit = np.array(scores.figures()["PIT"])
        assert pit.sum() == pytest.approx(1)
        assert np.abs(pit - 0.1).max() < 4 * 0.3 / math.sqrt(size)


def test_pit_by_hand() -> None:
    ordered, truth = torch.tensor([[1.0, 2.0, 2.0]] * 4).double(), torch.tensor([0.0, 2.0, 3.0, 1.5]).double()
    start, stop = scoring.pit_bounds(ordered, truth)
    assert start.tolist() == [0, 0.25, 0.75, 0.25] and stop.tolist() == [0.25, 1, 1, 0.5]


# ------------------------------------------------------------------------------------------------------- figures


def test_figures_are_those_computed_plainly() -> None:
    samples, truth, mask, known = problem()
    found = figures(samples, truth, mask, known=known)
    x, y = samples[:, mask], truth[mask]
    at = np.quantile(x, QUANTILES, axis=0)
    plain = [
        2 * np.abs((f - y) * ((y <= f) * 1.0 - q)).sum() / np.abs(y).sum() for q, f in zip(QUANTILES, at, strict=True)
    ]
    assert (found["samples"], found["windows"], found["cells"]) == (9, 5, mask.sum())
    assert found["CRPS"] == pytest.approx(np.mean(plain), rel=1e-12)
    assert found["CRPS exact"] == pytest.approx(crps(x, y).mean().item(), rel=1e-12)
    assert found["CRPS fair"] == pytest.approx(crps(x, y, fair=True).mean().item(), rel=1e-12)
    for name, point in (("", np.median(x, 0)), (" of mean", x.mean(0))):
        assert found[f"MAE{name}"] == pytest.approx(np.abs(point - y).mean(), rel=1e-12)
        assert found[f"RMSE{name}"] == pytest.approx(np.sqrt(((point - y) ** 2).mean()), rel=1e-12)
    assert found["energy score"] == pytest.approx(energy_score(samples, truth, mask).mean().item(), rel=1e-12)
    for row, level in zip(found["intervals"], LEVELS, strict=True):
        a, b = np.quantile(x, [(1 - level) / 2, (1 + level) / 2], axis=0)
        assert row["level"] == level and row["expected"] == expected_coverage(level, 9)
        assert row["coverage"] == pytest.approx(((a <= y) & (y <= b)).mean())
        assert row["width"] == pytest.approx((b - a).mean(), rel=1e-12)
    for row, level, f in zip(found["quantiles"], QUANTILES, at, strict=True):
        assert (row["level"], row["expected"]) == (level, expected_share(level, 9))
        assert row["share"] == pytest.approx((y <= f).mean())
    json.dumps(found, allow_nan=False)


def test_crps_sum_takes_given_cells_as_they_are() -> None:
    samples, truth, mask, known = problem()
    losses, total = 0.0, 0.0
    for n, l in zip(*np.nonzero(mask.any(-1)), strict=True):
        drawn = [sum(s[n, l, k] for k in range(3) if mask[n, l, k]) for s in samples]
        given = sum(truth[n, l, k] for k in range(3) if known[n, l, k])
        y = given + sum(truth[n, l, k] for k in range(3) if mask[n, l, k])
        for q in QUANTILES:
            losses += 2 * pinball(y, np.quantile(drawn, q) + given, q).item() / 19
        total += abs(y)
    assert figures(samples, truth, mask, known=known)["CRPS-sum"] == pytest.approx(losses / total, rel=1e-12)
    one = figures(samples[..., :1], truth[..., :1], mask[..., :1])
    assert one["CRPS-sum"] == pytest.approx(one["CRPS"], rel=1e-12)


def test_a_point_forecast_has_its_normalised_absolute_error_as_crps() -> None:
    samples, truth, mask, _ = problem(count=1)
    found = figures(samples, truth, mask)
    error = np.abs(samples[0] - truth)[mask].sum()
    assert found["CRPS"] == pytest.approx(error / np.abs(truth[mask]).sum(), rel=1e-12)
    assert found["CRPS exact"] == pytest.approx(found["MAE"]) and found["CRPS fair"] is None
    assert found["intervals"][0]["width"] == 0 and found["intervals"][0]["expected"] == 0


def test_the_truth_itself_is_covered_and_costs_nothing() -> None:
    truth = np.arange(1.0, 7.0).reshape(1, 3, 2)
    found = figures(np.stack([truth] * 4), truth, np.ones_like(truth, dtype=bool))
    assert found["CRPS"] == found["CRPS exact"] == found["energy score"] == found["RMSE"] == 0
    assert [row["coverage"] for row in found["intervals"]] == [1] * 4


def test_what_is_outside_the_mask_changes_nothing() -> None:
    samples, truth, mask, _ = problem()
    other, others = samples.copy(), truth.copy()
    other[:, ~mask], others[~mask] = 7.0, -5.0
    assert figures(samples, truth, mask) == figures(other, others, mask)


def test_features_and_missing_rates_are_figures_of_parts() -> None:
    samples, truth, mask, known = problem(n=6)
    missing = np.array([0.1, 0.2, 0.5, 0.55, 1.0, 0.0])
    found = figures(samples, truth, mask, known=known, missing=missing, features=("a", "b", "c"))
    keys = {"CRPS", "CRPS exact", "CRPS fair", "MAE", "RMSE of mean", "cells"}
    for k, name in enumerate("abc"):
        alone = figures(samples[..., k : k + 1], truth[..., k : k + 1], mask[..., k : k + 1])
        part = found["features"][name]
        assert {key: part[key] for key in keys} == pytest.approx({key: alone[key] for key in keys}, rel=1e-12)
        assert part["PIT"] == pytest.approx(alone["PIT"])
    rows = {(row["from"], row["to"]): row for row in found["missing rate"]}
    chosen = {(0.0, 0.2): [0, 5], (0.2, 0.4): [1], (0.4, 0.6): [2, 3], (0.8, 1.0): [4]}
    assert set(rows) == set(chosen)
    for key, at in chosen.items():
        alone = figures(samples[:, at], truth[at], mask[at], known=known[at])
        for name in (*keys, "energy score", "CRPS-sum", "windows"):
            assert rows[key][name] == pytest.approx(alone[name], rel=1e-12), (key, name)


def test_batches_give_the_figures_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, truth, mask, known = problem(n=7)
    missing = np.linspace(0, 1, 7)
    whole = Scores(("a", "b", "c"))
    whole.add(samples, truth, mask, known=known, missing=missing)
    monkeypatch.setattr(scoring, "PORTION", 40)
    parts = Scores(("a", "b", "c"))
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        parts.add(torch.tensor(samples[:, part]), truth[part], mask[part], known=known[part], missing=missing[part])

    def flat(found):
        if isinstance(found, dict):
            return [item for key in found for item in [key, *flat(found[key])]]
        return [item for one in found for item in flat(one)] if isinstance(found, list) else [found]

    for a, b in zip(flat(whole.figures()), flat(parts.figures()), strict=True):
        assert a == (pytest.approx(b, rel=1e-12) if isinstance(b, float) else b)


def test_standard_errors_are_those_of_many_repetitions() -> None:
    random, found, errors = np.random.default_rng(0), [], []
    for _ in range(300):
        size = random.integers(1, 6, 60)
        mask = np.arange(5)[None, :, None] < size[:, None, None]
        level = random.normal(0, 1, (60, 1, 1))  # cells of a window are dependent
        truth = level + 0.3 * random.normal(size=mask.shape)
        one = figures(random.normal(size=(4, *mask.shape)), truth, mask)
        names = ("CRPS", "MAE", "RMSE", "energy score")
        found.append([one[name] for name in names])
        errors.append([one["standard errors"][name] for name in names])
    spread = np.std(found, axis=0)
    assert np.abs(np.mean(errors, axis=0) / spread - 1).max() < 0.15


def test_nothing_to_measure_is_none() -> None:
    samples, truth, mask, _ = problem()
    found = figures(samples, truth, np.zeros_like(mask))
    assert found["cells"] == 0 and found["CRPS"] is None and found["energy score"] is None
    json.dumps(found, allow_nan=False)
    assert figures(samples[:, :1], np.where(mask, 0.0, truth)[:1], mask[:1])["CRPS"] is None  # relative to nothing
    with pytest.raises(ArgumentError, match="windows"):
        Scores().figures()


def test_missing_rate_leaves_padding_out() -> None:
    known = torch.zeros(2, 4, 2, dtype=torch.bool)
    known[0, :2], known[1, 0, 0] = True, True
    present = torch.tensor([[True, True, False, False], [True] * 4])
    assert missing_rate(known).tolist() == [0.5, 0.875]
    assert missing_rate(known, present).tolist() == [0, 0.875]


@pytest.mark.parametrize(
    "argument, change",
    [
        ("samples", lambda s, t, m, k: (s[0], t, m, k)),
        ("truth", lambda s, t, m, k: (s, t[:2], m, k)),
        ("mask", lambda s, t, m, k: (s, t, m.astype(float), k)),
        ("known", lambda s, t, m, k: (s, t, m, m)),
        ("truth", lambda s, t, m, k: (s, np.where(m, np.nan, t), m, k)),
        ("truth", lambda s, t, m, k: (s, np.where(k, np.inf, t), m, k)),
        ("samples", lambda s, t, m, k: (np.where(m, np.inf, s), t, m, k)),
        ("samples", lambda s, t, m, k: (s[:5], t, m, k)),
        ("truth", lambda s, t, m, k: (s[..., :2], t[..., :2], m[..., :2], k[..., :2])),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(argument: str, change) -> None:
    scores = Scores()
    samples, truth, mask, known = problem()
    scores.add(samples, truth, mask, known=known)
    before = scores.figures()
    samples, truth, mask, known = change(samples, truth, mask, known)
    with pytest.raises(ArgumentError) as error:
        scores.add(samples, truth, mask, known=known)
    assert error.value.argument == argument and scores.figures() == before


def test_rates_and_levels_are_checked() -> None:
    samples, truth, mask, _ = problem()
    for missing in (np.full(5, 1.5), np.zeros(4), np.full(5, np.nan)):
        with pytest.raises(ArgumentError, match="missing"):
            figures(samples, truth, mask, missing=missing)
    with pytest.raises(ArgumentError, match="levels"):
        Scores(levels=(1.5,))
