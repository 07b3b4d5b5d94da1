"""Calibrated solvers: against exact flows, on every law of noise, and as files."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import spaces
from polydiff.core.calibration import Calibrated, Trajectories, calibrate, trajectories
from polydiff.core.candidates import Candidate, bent, candidates
from polydiff.core.clouds import Centred
from polydiff.core.ddim import ddim
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.errors import ArgumentError, DataError
from polydiff.core.fitting import Fit, fine, rms, scale_of, squared_errors, table_rows
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.kernel import Time
from polydiff.core.multistep import exponential_adams_bashforth
from polydiff.core.noise import Diagonal
from polydiff.core.rectified import Coupled
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule, VarianceExploding
from polydiff.core.spaces import data, ratio, share, straight
from polydiff.core.tableau import follow
from tests.problems import Clouds, GaussianData, MixtureData

DATA = MixtureData()
LINEAR = Gaussian(LinearBeta())


def noise(count: int, seed: int, D: int = 2) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def starts(calls: int) -> tuple[Candidate, ...]:
    """All candidates of the usual schedule."""
    return tuple(candidates(LINEAR.schedule, 1.0, calls))


def some(schedule: Schedule, calls: int) -> list[Candidate]:
    """Two of the candidates, where the start does not matter."""
    names = [f"{space}, order 2, polynomial in share 0.4, grid uniform in share 0.4" for space in ("data", "straight")]
    return [table for table in candidates(schedule, 1.0, calls) if table.name in names]


def mixture(count: int, seed: int, kernel: Gaussian = LINEAR) -> Trajectories:
    return trajectories(DATA.denoise(kernel), kernel, noise(count, seed), steps=100)


@cache
def fitted(calls: int) -> Calibrated:
    batches = [mixture(64, 1), mixture(256, 2)]
    return calibrate(batches, [mixture(512, 3)], calls, starts=starts(calls), rivals=1, iterations=18)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow(), VarianceExploding()], ids=repr)
def test_the_fine_solution_is_the_flow(schedule: Schedule) -> None:
    """Against the quantile map, also where alpha_1 = 0; order 4."""
    data, kernel = GaussianData.standard(), Gaussian(schedule)
    x = kernel.prior(noise(50, 1, 3)).sample(torch.Generator().manual_seed(0))
    exact = data.flow(schedule, x, 1.0, 0.0)
    errors = [
        float((last(fine(data.denoise(kernel), kernel, x, steps=steps)) - exact).abs().max()) for steps in (20, 40, 320)
    ]
    assert errors[2] < 2e-7
    assert errors[0] / errors[1] > 10
    middle = data.flow(schedule, x, 1.0, 0.5)
    found = trajectories(data.denoise(kernel), kernel, middle, start=0.5, steps=200)
    torch.testing.assert_close(found.target, exact, rtol=0, atol=1e-6)


def test_the_mixture_flow_agrees() -> None:
    x = noise(64, 4)
    one, two = DATA.flow(LINEAR.schedule, x, 1.0), trajectories(DATA.denoise(LINEAR), LINEAR, x, steps=400).target
    torch.testing.assert_close(one, two, rtol=0, atol=2e-6)


def test_candidates_contain_the_published_solvers() -> None:
    """One call is DDIM in data and noise space; order 2 in data space, near log-SNR, is as good as DPM-Solver++ 2M."""
    x, denoise = noise(16, 5), DATA.denoise(LINEAR)
    found = [table for table in candidates(LINEAR.schedule, 1.0, 1) if not table.name.startswith("straight")]
    assert len(found) > 4
    for table in found:
        rows = table_rows(table.times.tolist(), table.states.tolist(), table.beliefs.tolist())
        ends = last(follow(rows, denoise, LINEAR, x))
        torch.testing.assert_close(ends, last(ddim(denoise, LINEAR, x, table.times)), rtol=1e-8, atol=1e-8)
    tables = {table.name: table for table in candidates(LINEAR.schedule, 1.0, 24)}
    table = tables["data, order 2, polynomial in ratio 0.05, grid uniform in ratio 0.05"]
    batch = mixture(64, 6)
    theirs = last(dpm_solver_pp_2m(denoise, LINEAR, batch.x, table.times))
    assert rms([batch], table) < 2 * float((theirs - batch.target).square().mean().sqrt())


def test_a_table_is_the_multistep_solver_that_its_name_says() -> None:
    """The weights themselves are tested with `multistep`; here the order, the clock and the place in the table."""
    x, denoise = noise(16, 5), DATA.denoise(LINEAR)
    for label, space, level, c in (
        ("data", data, share, 0.4),
        ("noise", spaces.noise, share, 10.0),
        ("straight", straight, ratio, 0.2),
    ):
        name = f"{label}, order 3, polynomial in {level.__name__} {c}, grid uniform in ratio 0.2"
        (table,) = (table for table in starts(9) if table.name == name)
        clock = partial(arcsinh_of, level, c)
        options: Any = {"space": space, "clock": clock, "order": 3, "taper": False}
        theirs = last(exponential_adams_bashforth(denoise, LINEAR, x, table.times, **options))
        rows = table_rows(table.times.tolist(), table.states.tolist(), table.beliefs.tolist())
        torch.testing.assert_close(last(follow(rows, denoise, LINEAR, x)), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", [share, ratio])
def test_grids_are_uniform_in_their_clock(level: Any) -> None:
    grid = bent(level, 0.2)
    table = next(table for table in starts(7) if table.name.endswith(f"grid uniform in {grid.name}"))
    half = LINEAR.schedule.log_snr(table.times) / 2
    tau = grid.clock(LINEAR.schedule, half)
    torch.testing.assert_close(tau, torch.linspace(float(tau[0]), 0.0, 8, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tau, arcsinh_of(level, 0.2, LINEAR.schedule, half))


def arcsinh_of(level: Any, c: float, schedule: Schedule, half: Tensor) -> Tensor:
    """arcsinh(w/c) by its logarithm."""
    w = level(schedule, half) / c
    return (w + (w**2 + 1).sqrt()).log()


def test_the_jacobian() -> None:
    """<v, dy/d parameter> of every parameter, per example, against differences of whole runs."""
    batch = mixture(6, 8)
    start = next(table for table in starts(5) if "order 3" in table.name)
    for history in (2, 24):
        fit = Fit([batch], start, history, 3, torch.Generator().manual_seed(0))
        table = fit.table()
        torch.testing.assert_close(table.times, start.times, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(table.states, start.states)
        torch.testing.assert_close(table.beliefs, start.beliefs)
        y, leaves = fit.unrolled(batch, table)
        v = noise(6, 9)
        rows = fit.pullback(y, leaves, v)
        assert rows.shape == (len(fit.theta), 6)

        def ends(theta: Tensor, fit: Fit = fit) -> Tensor:
            table = fit.table(theta)
            rows = table_rows(table.times.tolist(), table.states.tolist(), table.beliefs.tolist())
            return last(follow(rows, batch.denoise, LINEAR, batch.x))

        for i in range(len(fit.theta)):
            shift = torch.zeros_like(fit.theta)
            shift[i] = 1e-5
            difference = ((ends(fit.theta + shift) - ends(fit.theta - shift)) * v).sum(1) / 2e-5
            torch.testing.assert_close(rows[i], difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("calls", "gain"), [(5, 0.35), (8, 0.35)])
def test_calibrated_beats_the_best_classical_solver(calls: int, gain: float) -> None:
    """On fresh noise: the mean error of trajectories falls below `gain` of the best of all candidates there."""
    fresh, solver = mixture(256, 10), fitted(calls)
    assert solver.rmse <= solver.rmse_start
    assert len(solver.times) == calls + 1
    steps = list(solver(fresh.denoise, LINEAR, fresh.x))
    assert [step.t for step in steps] == list(solver.times[1:])
    error = float((steps[-1].x - fresh.target).square().mean(1).sqrt().mean())
    best = min(float(squared_errors(fresh, table).sqrt().mean()) for table in candidates(LINEAR.schedule, 1.0, calls))
    assert error < gain * best, (error, best)


def test_errors_count_in_units_of_three_medians() -> None:
    errors = torch.tensor([0.5, 0.1, 7.0], dtype=torch.float64)
    assert float(scale_of(errors**2)) == pytest.approx((3 * 0.5) ** 2)


def test_never_worse_than_the_start() -> None:
    """Without iterations it is the best classical table, to the bit; fits that do not help are not taken."""
    training, validation = [mixture(64, 11)], [mixture(64, 12)]
    tables = starts(4)[::7]
    plain = calibrate(training, validation, 4, starts=tables, iterations=0, rivals=1)
    best = min(tables, key=lambda table: rms(training, table))
    assert plain.start == best.name
    assert plain.rmse == plain.rmse_start == rms(validation, best)
    assert plain.times == tuple(best.times.tolist())
    assert [list(row) for row in plain.beliefs] == [row[: i + 1] for i, row in enumerate(best.beliefs.tolist())]
    # Two examples cannot teach much.
    few = calibrate([mixture(2, 13)], validation, 4, starts=tables, iterations=6, rivals=1)
    assert few.rmse <= few.rmse_start


def test_what_does_not_help_elsewhere_is_not_taken() -> None:
    """Fitted to other data, whose best weights are bad here: by the robust loss of validation the start stays."""
    validation, tables = mixture(64, 12), starts(6)[:1]
    narrow = GaussianData(torch.full((4,), 3.0).double(), 1e-4 * torch.eye(4).double())
    x = noise(64, 1, 4)
    elsewhere = Trajectories(narrow.denoise(LINEAR), LINEAR, x, narrow.flow(LINEAR.schedule, x, 1.0, 0.0), 1.0)
    found = calibrate([elsewhere], [validation], 6, starts=tables, iterations=12, rivals=1)
    before = squared_errors(validation, tables[0])
    after = (last(found(validation.denoise, LINEAR, validation.x)) - validation.target).square().mean(1)
    scale = scale_of(before)
    assert float(torch.log1p(after / scale).mean()) <= float(torch.log1p(before / scale).mean()) * (1 + 1e-9)


def test_normal_data_are_nearly_exact() -> None:
    data = GaussianData.standard()

    def batch(seed: int, count: int) -> Trajectories:
        x = noise(count, seed, 3)
        return Trajectories(data.denoise(LINEAR), LINEAR, x, data.flow(LINEAR.schedule, x, 1.0, 0.0), 1.0)

    solver, fresh = (
        calibrate([batch(0, 64)], [batch(1, 64)], 4, starts=some(LINEAR.schedule, 4), iterations=24, rivals=1),
        batch(2, 256),
    )
    error = float((last(solver(fresh.denoise, LINEAR, fresh.x)) - fresh.target).abs().max())
    assert error < 2e-3
    assert solver.rmse < solver.rmse_start / 20


def test_clouds() -> None:
    """Ragged clouds, fitted as they are: their own kernel, several batches; the ends stay centred and are exact."""

    def batch(sizes: list[int], seed: int) -> Trajectories:
        clouds = Clouds(sizes)
        kernel = Gaussian(Cosine(), Centred()).given(**clouds.structure)
        like = torch.zeros(sum(sizes), 3, dtype=torch.float64)
        x = kernel.prior(like).sample(torch.Generator().manual_seed(seed))
        return Trajectories(clouds.denoise(kernel), kernel, x, x * clouds.deviation, 1.0)

    training, validation = [batch([2, 5, 3, 4], 0), batch([7, 2], 1)], [batch([3, 3], 2)]
    solver = calibrate(training, validation, 4, starts=some(Cosine(), 4), iterations=12, rivals=2)
    fresh = batch([4, 2, 6], 3)
    x = last(solver(fresh.denoise, fresh.kernel, fresh.x))
    torch.testing.assert_close(x, fresh.target, rtol=0, atol=1e-3)
    torch.testing.assert_close(fresh.kernel.project(x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("law", ["diagonal", "coupled"])
def test_conditions_and_other_laws(law: str) -> None:
    """A condition per example goes through the bound denoiser; masked cells stay 0."""
    deviation = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    kernel: Any = Gaussian(RectifiedFlow(), Diagonal(deviation))
    if law == "coupled":
        kernel = Coupled(RectifiedFlow(), lambda x_0, generator: x_0)

    def batch(seed: int, count: int = 64) -> Trajectories:
        centre = noise(count, seed + 100, 3) * (deviation > 0)

        def denoise(x: Tensor, t: Time) -> Belief:
            alpha_t, sigma_t = kernel.schedule(torch.as_tensor(t, dtype=torch.float64))
            variance = 0.3**2 * deviation**2
            total = (alpha_t**2 * variance + sigma_t**2 * deviation**2).clamp_min(1e-300)
            return Belief(centre + alpha_t * variance / total * (x - alpha_t * centre))

        return trajectories(denoise, kernel, noise(count, seed, 3) * deviation, steps=60)

    fresh = batch(7)
    solver = calibrate([batch(1)], [batch(2)], 4, starts=some(kernel.schedule, 4), iterations=12)
    error = float((last(solver(fresh.denoise, kernel, fresh.x)) - fresh.target).square().mean().sqrt())
    assert error < 0.2 * solver.rmse_start
    assert error < 3 * solver.rmse


def test_one_batch_or_several() -> None:
    """The sum of the normal equations over batches is that of their union: same loss, same gradient."""
    whole = mixture(32, 14)
    halves = [Trajectories(whole.denoise, LINEAR, whole.x[i : i + 16], whole.target[i : i + 16], 1.0) for i in (0, 16)]
    start = next(table for table in starts(4) if "order 2" in table.name)
    one, two = (Fit(batches, start, 24, 1, torch.Generator().manual_seed(0)) for batches in ([whole], halves))
    torch.testing.assert_close(one.errors, two.errors)
    scale = torch.tensor(0.01, dtype=torch.float64)
    torch.testing.assert_close(one.normal_equations(scale)[0], two.normal_equations(scale)[0], rtol=1e-9, atol=1e-9)


def test_files_keep_every_bit(tmp_path: Path) -> None:
    solver = fitted(5)
    solver.save(tmp_path / "solver.json")
    assert Calibrated.load(tmp_path / "solver.json") == solver


def tampered(change: str, content: dict[str, Any]) -> str:
    """The file's text after a change."""
    if change == "cut":
        return json.dumps(content)[:-40]
    if change == "list":
        return "[1, 2]"
    changes: dict[str, tuple[str, Any]] = {
        "version": ("format_version", 2),
        "rising": ("times", content["times"][::-1]),
        "nan": ("beliefs", [[float("nan")], *content["beliefs"][1:]]),
        "integer": ("states", [[1], *content["states"][1:]]),
        "text": ("beliefs", [["1.0"], *content["beliefs"][1:]]),
        "ragged": ("states", [[1.0, 0.0], *content["states"][1:]]),
        "short": ("alpha", content["alpha"][:-1]),
        "rows": ("beliefs", content["beliefs"][:-1]),
        "start": ("start", 3),
        "number": ("times", 3.0),
        "unknown": ("solver", "best"),
        "rmse": ("rmse", None),
    }
    name, value = changes[change]
    return json.dumps(content | {name: value})


CHANGES = ["cut", "list", "version", "rising", "nan", "integer", "text", "ragged", "short", "rows", "start", "number"]


@pytest.mark.parametrize("change", [*CHANGES, "unknown", "rmse", "missing", "binary"])
def test_bad_files_are_named(tmp_path: Path, change: str) -> None:
    file = tmp_path / "solver.json"
    fitted(5).save(file)
    if change == "missing":
        file.unlink()
    elif change == "binary":
        file.write_bytes(b"\xff\xfe\x00")
    else:
        file.write_text(tampered(change, json.loads(file.read_text())))
    with pytest.raises(DataError, match="solver.json"):
        Calibrated.load(file)


def test_starts_that_cannot_be_fitted_are_named() -> None:
    times = torch.tensor([1.0, 1e-13, 0.0], dtype=torch.float64)
    start = Candidate("own", times, torch.eye(2).double(), torch.eye(2).double())
    with pytest.raises(ArgumentError, match="^starts"):
        calibrate([mixture(8, 1)], [mixture(8, 2)], 2, starts=[start])


def test_bad_arguments_are_named() -> None:
    solver, batch = fitted(5), mixture(4, 15)
    own = torch.tensor(solver.times, dtype=torch.float64)
    list(solver(batch.denoise, LINEAR, batch.x, own))
    with pytest.raises(ArgumentError, match="^times"):
        solver(batch.denoise, LINEAR, batch.x, torch.linspace(1, 0, 6, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="^kernel"):
        solver(batch.denoise, Gaussian(Cosine()), batch.x)
    with pytest.raises(ArgumentError, match="^training"):
        calibrate([], [batch], 4)
    with pytest.raises(ArgumentError, match="^training"):
        calibrate([batch], [batch._replace(start=0.5)], 4)
    options: dict[str, Any]
    for options in ({"calls": 0}, {"calls": 4, "rivals": 0}, {"calls": 4, "iterations": -1}):
        with pytest.raises(ArgumentError, match="^options"):
            calibrate([batch], [batch], **options)
    with pytest.raises(ArgumentError, match="^starts"):
        calibrate([batch], [batch], 4, starts=[])
    with pytest.raises(ArgumentError, match="^start, steps"):
        trajectories(batch.denoise, LINEAR, batch.x, steps=0)
