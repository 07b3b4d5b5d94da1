"""A run's folder belongs to one process; data that changed are noticed; wrong shapes do not broadcast."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import torch
from torch import nn

from polydiff.core.batches import Tensors
from polydiff.core.categorical import uniform
from polydiff.core.denoisers import GaussianDenoiser
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.errors import ArgumentError, ConfigError, DataError
from polydiff.core.gaussian import Gaussian
from polydiff.core.grids import uniform as uniform_grid
from polydiff.core.objectives import Denoising
from polydiff.core.options import TrainingOptions
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.training import train

OPTIONS = TrainingOptions(steps=2, batch_size=4, warmup=0, progress=False, cpu=True)


class Network(nn.Module):
    def __init__(self, outputs: int = 3):
        super().__init__()
        self.layer = nn.Linear(3, outputs)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def objective(outputs: int = 3, learned_range: bool = False) -> Denoising:
    kernel = Gaussian(Cosine())
    return Denoising(GaussianDenoiser(Network(outputs), kernel.schedule, learned_range=learned_range), kernel)


def data(seed: int = 0) -> Tensors:
    return Tensors(x_0=torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)))


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArgumentError, match="no other process"):
            train(objective(), data(), OPTIONS, folder=tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    train(objective(), data(), OPTIONS, folder=tmp_path)


def test_nothing_of_the_callers_changes_where_another_process_trains(tmp_path: Path) -> None:
    train(objective(), data(), OPTIONS, folder=tmp_path)
    own = objective().eval()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with open(tmp_path / ".lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArgumentError, match="no other process"):
            train(own, data(), OPTIONS, folder=tmp_path, resume=True)
    assert not own.training
    for name, value in own.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_run_that_is_refused_lets_go_of_the_folder(tmp_path: Path) -> None:
    train(objective(), data(), OPTIONS, folder=tmp_path)
    with pytest.raises(ArgumentError, match="a folder without a run") as caught:
        train(objective(), data(), OPTIONS, folder=tmp_path)
    train(objective(), data(), OPTIONS, folder=tmp_path, resume=True)
    del caught  # whose traceback kept the refused run alive


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        train(objective(), data(), OPTIONS, folder=tmp_path / "file" / "run")


def test_changed_data_are_noticed_on_resume(tmp_path: Path) -> None:
    train(objective(), data(), OPTIONS, folder=tmp_path)
    with pytest.raises(ConfigError, match="data"):
        train(objective(), data(1), OPTIONS, folder=tmp_path, resume=True)
    train(objective(), data(), OPTIONS, folder=tmp_path, resume=True)


@pytest.mark.parametrize(("outputs", "learned_range"), [(1, False), (6, False), (3, True)])
def test_wrong_outputs_of_a_network_do_not_broadcast(outputs: int, learned_range: bool) -> None:
    with pytest.raises(ArgumentError, match="network"):
        objective(outputs, learned_range)({"x_0": torch.zeros(4, 3)})


def test_common_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match="batch"):
        objective()(torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="x_0"):
        Tensors(x_0=[1.0, 2.0])  # pyright: ignore[reportArgumentType]
    kernel = uniform(RectifiedFlow(), 5)
    for tokens in (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32), torch.full((2, 3), 5)):
        with pytest.raises(ArgumentError, match="tokens"):
            kernel.marginal(tokens, 0.5)
    with pytest.raises(ArgumentError, match="kernel"):
        next(dpm_solver_pp_2m(lambda x, t: x, kernel, torch.zeros(2, 3), uniform_grid(3)))  # pyright: ignore[reportArgumentType]
