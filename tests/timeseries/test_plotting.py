"""Pictures show the numbers they were given, and touch nothing global."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from PIL import Image

from polydiff.core.errors import ArgumentError
from polydiff.core.report import Report
from polydiff.timeseries.metrics import figures
from polydiff.timeseries.plotting import calibration, png, series

LEVELS = (0.95, 0.5, 0.05, 0.75, 0.25)


def problem(length: int = 20, features: int = 3):
    random = np.random.default_rng(0)
    truth = random.normal(size=(length, features))
    mask = random.random(truth.shape) < 0.4
    paths = truth + random.normal(size=(30, length, features))
    return np.where(mask, np.nan, truth), np.where(mask, truth, np.nan), paths, np.quantile(paths, LEVELS, axis=0)


def test_panels_show_the_numbers() -> None:
    observed, held_out, paths, found = problem()
    stamps = np.linspace(3, 9, 20)
    figure = series(
        stamps, observed, found, LEVELS, held_out=held_out, paths=paths, names=("a", "b", "c"), title="Three"
    )
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"] and figure.get_suptitle() == "Three"
    for k, axes in enumerate(panels):
        lines = {line.get_label(): line for line in axes.lines}
        for label, expected in (("observed", observed), ("held out", held_out), ("median", found[1])):
            np.testing.assert_array_equal(lines[label].get_xdata(), stamps)
            np.testing.assert_array_equal(lines[label].get_ydata(), expected[:, k])
        assert len(axes.lines) == 30 + 3
        bands = {str(band.get_label()): band.get_paths()[0].get_extents() for band in axes.collections}
        assert set(bands) == {"90 %", "50 %"}
        assert (bands["90 %"].y0, bands["90 %"].y1) == pytest.approx((found[2, :, k].min(), found[0, :, k].max()))
        assert (bands["50 %"].y0, bands["50 %"].y1) == pytest.approx((found[4, :, k].min(), found[3, :, k].max()))


def test_many_features_and_one() -> None:
    figure = series(np.arange(5), np.ones((5, 40)), title="Many", most=7)
    assert sum(axes.get_visible() for axes in figure.axes) == 7
    assert figure.get_suptitle() == "Many (7 of 40 features)"
    alone = series(np.arange(5), np.ones(5), np.ones((1, 5)), [0.5], paths=np.ones((2, 5)))
    assert len(alone.axes) == 1 and alone.get_suptitle() == ""


def test_dates_gaps_and_nothing_observed() -> None:
    dates = np.arange("2024-01-01", "2024-01-21", dtype="datetime64[D]")
    observed, _, _, found = problem()
    observed[:, 1], found[:, 5:9] = np.nan, np.nan
    assert Image.open(io.BytesIO(png(series(dates, observed, found, LEVELS)))).size[0] == 9 * 150


def test_bytes_are_a_picture_and_always_the_same() -> None:
    def draw() -> bytes:
        observed, _, _, found = problem()
        return png(series(np.arange(20), observed, found, LEVELS), resolution=50)

    first = draw()
    assert first == draw() and Image.open(io.BytesIO(first)).format == "PNG"


def test_calibration_shows_shares_beside_what_can_be_expected() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(size=(4, 50, 2))
    mask = np.ones_like(truth, dtype=bool)
    found = {name: figures(scale * random.normal(size=(9, *truth.shape)), truth, mask) for name, scale in
             (("right", 1.0), ("narrow", 0.3))}  # fmt: skip
    figure = calibration(found)
    left, middle, _ = figure.axes
    for axes, rows, key in ((left, "quantiles", "share"), (middle, "intervals", "coverage")):
        for i, one in enumerate(found.values()):
            expected, measured = axes.lines[2 * i : 2 * i + 2]
            assert np.asarray(expected.get_ydata()).tolist() == [row["expected"] for row in one[rows]]
            assert np.asarray(measured.get_ydata()).tolist() == [row[key] for row in one[rows]]
            assert np.asarray(measured.get_xdata()).tolist() == [row["level"] for row in one[rows]]
    steps = [patch for patch in figure.axes[2].patches if isinstance(patch, StepPatch)]
    heights = [patch.get_data()[0] for patch in steps]
    assert [sum(height) for height in heights] == pytest.approx([10, 10])
    assert heights[1][0] > 2 > heights[0][0]


def test_reports_take_them(tmp_path) -> None:
    observed, _, _, found = problem()
    report = Report("page")
    report.picture(series(np.arange(20), observed, found, LEVELS), "bands")
    report.write(tmp_path / "page.html")
    assert "data:image/svg+xml" in (tmp_path / "page.html").read_text()
    assert isinstance(series(np.arange(20), observed), Figure)


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, polydiff.timeseries.plotting as p; p.png(p.series([0, 1], [1.0, 2.0])); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "argument, change",
    [
        ("observed", {"observed": np.zeros((2, 2, 2))}),
        ("observed", {"observed": np.zeros((0, 2))}),
        ("stamps", {"stamps": np.arange(3)}),
        ("quantiles", {"quantiles": np.zeros((5, 20, 2))}),
        ("levels", {"levels": (0.1, 0.9)}),
        ("levels", {"levels": (0.1, 0.9, 0.5, 0.2, 0.3)}),
        ("levels", {"levels": (-0.1, 1.1, 0.5, 0.2, 0.8)}),
        ("held_out", {"held_out": np.zeros(20)}),
        ("paths", {"paths": np.zeros((20, 3))}),
        ("names", {"names": ("a",)}),
        ("most", {"most": 0}),
    ],
)
def test_wrong_input_is_named(argument: str, change) -> None:
    observed, _, _, found = problem()
    with pytest.raises(ArgumentError) as error:
        series(**{"stamps": np.arange(20), "observed": observed, "quantiles": found, "levels": LEVELS, **change})
    assert error.value.argument == argument


def test_calibration_of_nothing() -> None:
    with pytest.raises(ArgumentError, match="found"):
        calibration({})
    with pytest.raises(ArgumentError, match="'empty'"):
        calibration({"empty": {"cells": 0}})
