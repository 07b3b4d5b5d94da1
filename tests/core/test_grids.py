"""Grids of times, and the index conventions of published samplers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polydiff.core import grids
from polydiff.core.errors import ArgumentError
from polydiff.core.schedules import EDM, Cosine, LinearBeta, RectifiedFlow, Tabulated, VarianceExploding
from tests.core.cases import SCHEDULES


def index(times: Tensor, T: int) -> list[int]:
    """Back from times to published indices, without the final 0."""
    return [round(t * T - 1) for t in times[:-1].tolist()]


@settings(max_examples=80, deadline=None)
@given(
    steps=st.integers(1, 60),
    name=st.sampled_from(sorted(SCHEDULES)),
    grid=st.sampled_from([grids.uniform, grids.quadratic, grids.log_snr, grids.karras]),
)
def test_every_grid_is_a_grid(steps: int, name: str, grid: Callable[..., Tensor]) -> None:
    if name == "zero-terminal":
        steps = min(steps, 4)  # a table of four times
    schedule = SCHEDULES[name]()
    times = grid(steps, schedule)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert (float(times[0]), float(times[-1])) == (1.0, 0.0)
    assert bool((times.diff() < 0).all())
    if schedule.t_min > 0 and steps > 1:
        assert float(times[-2]) == pytest.approx(schedule.t_min, rel=1e-9)


def test_uniform_and_quadratic() -> None:
    assert grids.uniform(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grids.quadratic(4).tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0]
    table = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000))
    torch.testing.assert_close(grids.uniform(1000, table), grids.leading(1000, 1000))


def test_log_snr_is_uniform_in_log_snr() -> None:
    for schedule in (LinearBeta(), VarianceExploding()):
        gaps = schedule.log_snr(grids.log_snr(12, schedule, low=-20)[:-1]).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-8, atol=0)
    inner = Cosine().log_snr(grids.log_snr(9, Cosine(), low=-8, high=6)[1:-1])
    assert inner.tolist() == pytest.approx([-8 + 14 * i / 8 for i in range(1, 9)])


def test_karras_levels() -> None:
    """Karras et al. 2022, eq. 5, on a schedule that is not theirs."""
    levels = (80 ** (1 / 7) + np.arange(10) / 9 * (0.01 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    schedule = VarianceExploding(0.01, 80.0)
    np.testing.assert_allclose(schedule(grids.karras(10, schedule))[1][:-1].numpy(), levels, rtol=1e-9)
    torch.testing.assert_close(grids.karras(18, EDM()), grids.uniform(18, EDM()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 9, 10, 20, 50, 333, 999, 1000])
def test_published_spacings(steps: int) -> None:
    """The indices of the common implementations, computed here in numpy as they do."""
    T = 1000
    leading = (np.arange(0, steps) * (T // steps)).round()[::-1]
    trailing = np.round(np.arange(T, 0, -T / steps))[:steps] - 1
    linspace = np.linspace(0, T - 1, steps).round()[::-1] if steps > 1 else np.array([T - 1])
    assert index(grids.leading(steps, T), T) == leading.astype(int).tolist()
    assert index(grids.trailing(steps, T), T) == trailing.astype(int).tolist()
    assert index(grids.linspace(steps, T), T) == linspace.astype(int).tolist()


def test_previous_times_are_those_of_the_grid() -> None:
    """Ten trailing steps: 999, 899, ... 99, then the data itself, alpha-bar 1 and not alpha-bar_0."""
    times = grids.trailing(10, 1000)
    assert index(times, 1000) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    table = Tabulated.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert float(table(times[-1])[0]) == 1.0
    assert index(grids.leading(5, 1000, offset=1), 1000) == [801, 601, 401, 201, 1]
    assert index(grids.linspace(10, 1000), 1000) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]


@settings(max_examples=80, deadline=None)
@given(T=st.integers(1, 2000), data=st.data())
def test_published_spacings_never_leave_the_table(T: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, T))
    for times in (grids.leading(steps, T), grids.trailing(steps, T), grids.linspace(steps, T)):
        assert len(times) == steps + 1
        assert 0 <= index(times, T)[-1]
        assert index(times, T)[0] <= T - 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: grids.uniform(0), "steps"),
        (lambda: grids.uniform(2.5), "steps"),  # pyright: ignore[reportArgumentType]
        (lambda: grids.trailing(11, 10), "steps"),
        (lambda: grids.leading(10, 10, offset=1), "index"),
        (lambda: grids.from_index(torch.tensor([3, 2, -1]), 10), "index"),
        (lambda: grids.from_index(torch.tensor([2, 2]), 10), "times"),
        (lambda: grids.karras(5, LinearBeta(), rho=0.0), "rho"),
        (lambda: grids.karras(5, LinearBeta(), rho=math.nan), "rho"),
        (lambda: grids.log_snr(5, RectifiedFlow(), low=3.0, high=1.0), "low, high"),
        (lambda: grids.log_snr(5, EDM(), low=30.0, high=40.0), "low, high"),
        (lambda: grids.check_times([1.0, 0.0]), "times"),  # pyright: ignore[reportArgumentType]
        (lambda: grids.check_times(torch.tensor([1.0])), "times"),
        (lambda: grids.check_times(torch.tensor([1.0, 0.5])), "times"),
        (lambda: grids.check_times(torch.tensor([1.0, 0.5, 0.5, 0.0])), "times"),
        (lambda: grids.check_times(torch.tensor([1.5, 0.5, 0.0])), "times"),
        (lambda: grids.check_times(torch.tensor([1.0, math.nan, 0.0])), "times"),
        (lambda: grids.check_times(torch.tensor([1.0, -0.5, 0.0])), "times"),
        (lambda: grids.check_times(torch.tensor([[1.0, 1.0], [0.5, 0.5], [0.0, 0.1]])), "times"),
    ],
)
def test_bad_arguments_are_named(make, name: str) -> None:
    with pytest.raises(ArgumentError) as error:
        make()
    assert error.value.argument == name


def test_unstack() -> None:
    assert grids.unstack(grids.uniform(2)) == [1.0, 0.5, 0.0]
    columns = grids.unstack(torch.stack([grids.uniform(2), grids.quadratic(2)], 1))
    assert [column.tolist() for column in columns] == [[1.0, 1.0], [0.5, 0.25], [0.0, 0.0]]  # pyright: ignore
