"""Calibrated solvers of image models: fitted by the command, kept with the model, used by default."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polydiff.core.calibration import trajectories
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.errors import DataError
from polydiff.core.grids import log_snr
from polydiff.core.randomness import example_generators
from polydiff.core.sampling import last
from polydiff.vision.calibrate import solvers
from polydiff.vision.data import to_uint8
from polydiff.vision.options import Calibrate
from polydiff.vision.pipeline import ImagePipeline
from tests.vision.test_commands import polydiff
from tests.vision.test_pipeline import small

OPTIONS = Calibrate(calls=(3,), count=24, iterations=3, fine=12, batch_size=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for which a solver of three calls was fitted by the command."""
    folder = tmp_path_factory.mktemp("models") / "small"
    small().save_pretrained(folder)
    words = ["--calls", 3, "--count", 24, "--iterations", 3, "--fine", 12, "--batch-size", 8]
    assert polydiff("calibrate", "vision", "--model", folder, *words) == 0
    return folder


def test_it_comes_closer_to_the_flow_than_the_usual_solver(model: Path) -> None:
    pipeline = ImagePipeline.from_pretrained(model)
    generators = example_generators(9, 0, range(16))
    x = pipeline.kernel.prior(torch.zeros(16, 1, 8, 8)).sample(generators)
    labels = pipeline.labels(None, 16)
    with torch.no_grad():
        denoise = pipeline.given(labels)
        end = trajectories(denoise, pipeline.kernel, x, steps=60).target
        mine = last(pipeline.solvers[3](denoise, pipeline.kernel, x))
        usual = last(dpm_solver_pp_2m(denoise, pipeline.kernel, x, log_snr(3, pipeline.kernel.schedule)))
    assert float((mine - end).square().mean()) < 0.5 * float((usual - end).square().mean())


def test_it_is_the_default_for_its_number_of_calls_and_guidance_alone(model: Path) -> None:
    pipeline = ImagePipeline.from_pretrained(model)
    assert sorted(pipeline.solvers) == [3]
    drawn = pipeline.sample([0, 1], steps=3, seed=1)
    usual = pipeline.sample([0, 1], steps=3, seed=1, sampler=dpm_solver_pp_2m)
    assert not torch.equal(drawn, usual)
    generators = example_generators(1, 0, range(2))
    x = pipeline.kernel.prior(torch.zeros(2, 1, 8, 8)).sample(generators)
    with torch.no_grad():
        own = last(pipeline.solvers[3](pipeline.given(torch.tensor([0, 1])), pipeline.kernel, x))
    assert torch.equal(drawn, to_uint8(own, 17))
    for other in ({"steps": 4}, {"steps": 3, "guidance": 2.0}):
        assert torch.equal(
            pipeline.sample([0, 1], seed=1, **other),  # pyright: ignore[reportArgumentType]
            pipeline.sample([0, 1], seed=1, sampler=dpm_solver_pp_2m, **other),  # pyright: ignore[reportArgumentType]
        )


def test_guidance_is_that_of_the_fit_and_noise_that_of_the_seed(model: Path) -> None:
    pipeline = ImagePipeline.from_pretrained(model)
    (plain,) = solvers(pipeline, OPTIONS)
    (guided,) = solvers(pipeline, replace(OPTIONS, guidance=3.0))
    assert plain == pipeline.solvers[3]
    assert (plain.guidance, guided.guidance) == (1.0, 3.0)
    assert plain.beliefs != guided.beliefs


def test_solvers_travel_with_the_model_and_leave_with_the_weights(model: Path, tmp_path: Path) -> None:
    pipeline = ImagePipeline.from_pretrained(model)
    folder = pipeline.save_pretrained(tmp_path / "copy")
    assert ImagePipeline.from_pretrained(folder).solvers == pipeline.solvers
    small().save_pretrained(folder)
    assert ImagePipeline.from_pretrained(folder).solvers == {}


def test_a_damaged_solver_is_named(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    table = json.loads((folder / "solver-3.json").read_text())
    table["beliefs"][1] = [1.0]
    (folder / "solver-3.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"solver-3\.json"):
        ImagePipeline.from_pretrained(folder)


def test_sample_says_which_solver_it_uses(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["sample", "vision", "--model", model, "--count", 1]
    for steps, said in (
        (3, "calibrated for 3 calls and guidance 1"),
        (4, "dpm-solver++, 4 steps (calibrated solvers: "),
    ):
        assert polydiff(*words, "--steps", steps, "--out", tmp_path / str(steps)) == 0
        assert said in capsys.readouterr().out


def test_the_command_wants_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert polydiff("calibrate", "vision", "--model", tmp_path / "none") == 2
    assert "none" in capsys.readouterr().err
