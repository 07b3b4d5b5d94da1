"""Batches that carry their own structure: objectives bind the kernel to it, and training takes them as they come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from polydiff.core import grids
from polydiff.core.batches import Plan, batches
from polydiff.core.clouds import Centred
from polydiff.core.consistency import Consistency, plain
from polydiff.core.denoisers import Denoiser, GaussianDenoiser, v
from polydiff.core.distillation import Distillation
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.hybrid import Hybrid
from polydiff.core.interpolants import Interpolant
from polydiff.core.noise import Diagonal
from polydiff.core.objectives import Denoising
from polydiff.core.randomness import example_generators
from polydiff.core.rectified import Coupled
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.score_entropy import ScoreEntropy
from polydiff.core.structure import opened
from polydiff.core.training import Interrupted, train
from polydiff.core.vdm import VDM, LearnedSchedule
from tests.core.cases import INDEX, B, normal
from tests.core.test_resume import stop_at
from tests.core.training_case import OPTIONS, state

STRUCTURE: dict[str, Any] = {"index": INDEX, "num_graphs": B}
X_0 = Gaussian(Cosine(), Centred()).given(**STRUCTURE).project(normal(len(INDEX), 3))


class Rows(nn.Module):
    """Any network on rows that is told one number per cloud and whose row is whose; structure does not reach it."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 3)).double()

    def forward(self, x: Tensor, c: Tensor, graph: Graph, level: Tensor) -> Tensor:
        told = torch.stack([c / 1000, level.to(c)], 1)[graph.index].double()
        return self.body(torch.cat([x.double(), told], 1))


class Graph:
    """What a network may take that is no tensor; it can be moved."""

    def __init__(self, index: Tensor, moved: str = ""):
        self.index, self.moved = index, moved

    def to(self, device: torch.device) -> Graph:
        return Graph(self.index.to(device), str(device))


def condition() -> dict[str, Any]:
    return {"graph": Graph(INDEX), "level": torch.arange(B)}


def learned(denoiser: Denoiser, kernel: Any) -> nn.Module:
    schedule = LearnedSchedule()
    own = Gaussian(schedule, kernel.noise)
    return VDM(GaussianDenoiser(denoiser.network, schedule, v), own)


def consistent(teacher: Any) -> Callable[[Any, Any], nn.Module]:
    times = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    return lambda denoiser, kernel: Consistency(
        denoiser, kernel, lambda n: times, lambda step: 3, denoiser if teacher else None, weight=plain
    )


OBJECTIVES: dict[str, Callable[[Any, Any], nn.Module]] = {
    "denoising": Denoising,
    "hybrid": lambda denoiser, kernel: Hybrid(denoiser, kernel, grids.uniform(4)),
    "score entropy": ScoreEntropy,
    "vdm": learned,
    "distillation": lambda denoiser, kernel: Distillation(denoiser, denoiser, kernel, grids.uniform(4)),
    "consistency": consistent(False),
    "consistency distillation": consistent(True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_structure_in_the_batch_is_structure_of_the_kernel(name: str) -> None:
    """The same numbers as with the kernel bound beforehand; the unbound kernel refuses, and stays unbound."""
    losses = []
    for bound, structure in ((True, {}), (False, {"structure": STRUCTURE})):
        kernel = Gaussian(Cosine(), Centred())
        kernel = kernel.given(**STRUCTURE) if bound else kernel
        objective = OBJECTIVES[name](GaussianDenoiser(Rows(), Cosine(), v), kernel)
        batch = {"x_0": X_0, **condition(), **structure}
        losses.append(objective(batch, example_generators(0, 0, range(B))))
    assert losses[0].shape == (B,)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    objective = OBJECTIVES[name](GaussianDenoiser(Rows(), Cosine(), v), Gaussian(Cosine(), Centred()))
    objective({"x_0": X_0, **condition(), "structure": STRUCTURE}, example_generators(0, 0, range(B)))
    with pytest.raises(ArgumentError, match="^x: "):
        objective({"x_0": X_0, **condition()}, example_generators(0, 0, range(B)))


def partner(x_0: Tensor, generator: Any) -> Tensor:
    return -x_0


PATHS = [Coupled(RectifiedFlow(), partner, Centred()), Interpolant(partner, noise=Centred())]


@pytest.mark.parametrize("path", PATHS, ids=["coupled", "interpolant"])
def test_paths_are_bound_too(path: Any) -> None:
    view = path.given(**STRUCTURE)
    assert view.examples(X_0) == B and path.noise.num_graphs == 0
    assert view.schedule is path.schedule and view.partner is partner
    objective = Denoising(GaussianDenoiser(Rows(), path.schedule, v), path)
    batch = {"x_0": X_0, **condition(), "structure": STRUCTURE}
    assert objective(batch, example_generators(0, 0, range(B))).shape == (B,)
    given = objective({**batch, "x_1": -X_0}, example_generators(0, 0, range(B)))
    torch.testing.assert_close(given, objective(batch, example_generators(0, 0, range(B))), rtol=0, atol=0)


def test_masks_are_structure_as_well() -> None:
    """A dense law: cells off the mask count neither as error nor as dimensions."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x_0 = normal(2, 3) * mask
    objective = Denoising(GaussianDenoiser(Zero(), Cosine(), v), Gaussian(Cosine(), Diagonal(torch.ones(()))))
    losses = objective({"x_0": x_0, "structure": {"mask": mask}}, example_generators(0, 0, range(2)))
    bound = Denoising(objective.denoiser, objective.kernel.given(mask=mask))
    torch.testing.assert_close(losses, bound({"x_0": x_0}, example_generators(0, 0, range(2))), rtol=0, atol=0)


class Zero(nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return 0 * x


def test_bad_batches_are_named() -> None:
    kernel = Gaussian(Cosine(), Centred())
    for wrong in (None, [X_0], {}, {"structure": STRUCTURE}):
        with pytest.raises(ArgumentError, match="^batch"):
            opened(kernel, wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match=r'^batch\["structure"\]'):
        opened(kernel, {"x_0": X_0, "structure": INDEX})
    with pytest.raises(ArgumentError, match="^structure"):
        opened(kernel, {"x_0": X_0, "structure": {"rows": INDEX}})
    own = opened(kernel, {"x_0": X_0, "label": 1})
    assert own.kernel is kernel and own.condition == {"label": 1}


# ------------------------------------------------------------------------------------------------------------ training


class Molecules(Dataset[Any]):
    """Clouds of 1 to 5 points; whole batches are ragged and hold more than tensors."""

    def __init__(self, count: int = 22):
        sizes = torch.arange(count) % 5 + 1
        self.clouds = list(normal(int(sizes.sum()), 3).float().split(sizes.tolist()))

    def __len__(self) -> int:
        return len(self.clouds)

    def __getitem__(self, index: int) -> Any:
        return self.batch([index])

    def batch(self, indices: Sequence[int] | Tensor) -> Mapping[str, Any]:
        chosen = [self.clouds[int(i)] for i in indices]
        chosen = [cloud - cloud.mean(0) for cloud in chosen]
        index = torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor([len(cloud) for cloud in chosen]))
        return {
            "x_0": torch.cat(chosen),
            "structure": {"index": index, "num_graphs": len(chosen)},
            "graph": Graph(index),
            "level": torch.as_tensor(indices) % 2,
        }


class Watched(Denoising):
    """The objective, which also looks at what has become of the batch."""

    def forward(self, batch: Mapping[str, Any], generator: Any = None) -> Tensor:
        assert batch["graph"].moved == "cpu"
        assert isinstance(batch["structure"]["num_graphs"], int)
        return super().forward(batch, generator)


def run(folder: Path, *, resume: bool = False, on_log: Any = None, **options: Any) -> Any:
    denoiser = GaussianDenoiser(Rows(), RectifiedFlow(), v)
    objective = Watched(denoiser, Gaussian(RectifiedFlow(), Centred()))
    settings = replace(OPTIONS, **{"steps": 12, "batch_size": 8, "checkpoint_every": 4, **options})
    return train(objective, Molecules(), settings, folder=folder, resume=resume, on_log=on_log)


@pytest.mark.parametrize("step", [3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_training_resumes_bit_by_bit(tmp_path: Path, step: int, workers: int) -> None:
    whole = state(tmp_path / "whole", run(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", on_log=stop_at(step), workers=workers)
    assert state(tmp_path / "parts", run(tmp_path / "parts", resume=True, workers=workers)) == whole


def test_ragged_training_does_not_depend_on_the_split(tmp_path: Path) -> None:
    """Every example counts the same in however many parts a batch is computed, whatever their numbers of rows."""
    one, two = (run(tmp_path / str(n), accumulate=n) for n in (1, 2))
    for mine, other in zip(one.objective.parameters(), two.objective.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    for mine, other in zip(one.history, two.history, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)
    before = Rows().parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, one.objective.parameters(), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_a_ragged_batch(workers: int) -> None:
    """The parts of all processes in turn are the batch of one, cloud by cloud."""
    data = Molecules()
    (whole,) = batches(data, Plan(3, len(data), 8), 2, 3, workers)
    shares = [batches(data, Plan(3, len(data), 8, 2, rank, 2), 2, 3, workers) for rank in range(2)]
    parts = [part for pair in zip(*shares, strict=True) for part in pair]
    assert [place for part in parts for place in part.positions] == list(whole.positions)
    torch.testing.assert_close(torch.cat([p.values["x_0"] for p in parts]), whole.values["x_0"], rtol=0, atol=0)
    assert all(part.values["structure"]["num_graphs"] == 2 for part in parts)
    assert all(len(part.values["x_0"]) == len(part.values["structure"]["index"]) for part in parts)
