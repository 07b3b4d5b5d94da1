"""Training computes what it says, however it is split over parts, loaders and processes; see also `test_resume`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polydiff.core import checkpoints
from polydiff.core.batches import Plan, Tensors, batches, epoch_order
from polydiff.core.categorical import absorbing
from polydiff.core.denoisers import GaussianDenoiser, TokenDenoiser
from polydiff.core.ema import EMA
from polydiff.core.errors import ArgumentError, TrainingError
from polydiff.core.gaussian import Gaussian
from polydiff.core.objectives import Denoising, low_discrepancy
from polydiff.core.options import TrainingOptions
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.score_entropy import ScoreEntropy, antithetic, stratified
from polydiff.core.training import learning_rate, train
from polydiff.core.vdm import VDM, LearnedSchedule
from tests.core import training_case
from tests.core.training_case import OPTIONS, POISONED, STEPS, Examples, Objective, run, state, vectors

# torch finds two workers many where a test runner gives each process one core
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("one_thread"),
]


# ------------------------------------------------------------------------------------------------- the same arithmetic


def losses(trained: Any) -> torch.Tensor:
    return torch.tensor([entry["loss"] for entry in trained.history], dtype=torch.float64)


def test_whole_batches_equal_single_examples(tmp_path: Path):
    one = state(tmp_path / "a", run(tmp_path / "a", data=Tensors(x_0=vectors())))
    other = state(tmp_path / "b", run(tmp_path / "b", data=Examples(vectors(), augment=0.0)))
    assert one == other


def test_parts_change_rounding_only(tmp_path: Path):
    data = Tensors(x_0=vectors())
    runs = [run(tmp_path / str(n), accumulate=n, data=data, objective=Objective(dropout=0.0)) for n in (1, 2, 4)]
    for other in runs[1:]:
        torch.testing.assert_close(losses(other), losses(runs[0]), rtol=1e-5, atol=1e-6)


def vdm() -> nn.Module:
    schedule = LearnedSchedule(-6.0, 4.0, hidden=8)
    return VDM(GaussianDenoiser(Reading(), schedule), Gaussian(schedule))


def stratified_denoising() -> nn.Module:
    schedule = Cosine()
    return Denoising(GaussianDenoiser(Reading(), schedule), Gaussian(schedule), times=low_discrepancy())


def score_entropy(shares: Any) -> nn.Module:
    schedule = RectifiedFlow()
    network = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4))
    denoiser = TokenDenoiser(Blind(network), schedule)
    return ScoreEntropy(denoiser, absorbing(schedule, 5, mask=4), shares=shares)


class Blind(nn.Module):
    """A network that is not told the time."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.network(x)


class Reading(nn.Module):
    """A linear network that is told the time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(training_case.WIDTH + 1, training_case.WIDTH)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([x, c.to(x).reshape(-1, 1) / 1000], 1))


TIED: dict[str, Callable[[], nn.Module]] = {
    "VDM": vdm,
    "low_discrepancy": stratified_denoising,
    "stratified": lambda: score_entropy(stratified),
    "antithetic": lambda: score_entropy(antithetic),
}


@pytest.mark.parametrize("name", TIED)
def test_parts_change_rounding_only_where_a_law_ties_the_batch(tmp_path: Path, name: str):
    tokens = torch.randint(4, (training_case.SIZE, 6), generator=torch.Generator().manual_seed(1))
    data = Tensors(x_0=tokens if name in ("stratified", "antithetic") else vectors())

    def made() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return TIED[name]()

    runs = [
        losses(run(tmp_path / str(n), accumulate=n, data=data, objective=made(), steps=8, learning_rate=1e-3))
        for n in (1, 2, 4)
    ]
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=1e-4, atol=1e-5)


def test_seeds_and_learning(tmp_path: Path):
    whole = state(tmp_path / "whole", run(tmp_path / "whole"))
    assert state(tmp_path / "a", run(tmp_path / "a", seed=4))["history"] != whole["history"]
    data = Tensors(x_0=vectors())
    long = losses(run(tmp_path / "b", data=data, steps=200, decay_to=1.0))
    assert long[-20:].mean() < 0.8 * long[:20].mean()


def test_dropout_is_drawn_anew_for_every_part_of_every_step(tmp_path: Path):
    masks = []

    class Masked(Objective):
        def forward(self, batch: Any, generator: Any = None) -> torch.Tensor:
            masks.append(torch.nn.functional.dropout(torch.ones(40), 0.5, self.training))
            return super().forward(batch, generator)

    run(tmp_path, objective=Masked(), steps=3, accumulate=2)
    assert len(masks) == 6
    assert len({tuple(mask.tolist()) for mask in masks}) == 6


def test_bfloat16_trains_float32_weights(tmp_path: Path):
    trained = run(tmp_path, precision="bf16", objective=Objective(dropout=0.0))
    plain = run(tmp_path / "plain", objective=Objective(dropout=0.0))
    assert all(p.dtype == torch.float32 for p in trained.objective.parameters())
    assert not torch.equal(losses(trained), losses(plain))
    torch.testing.assert_close(losses(trained), losses(plain), rtol=0.03, atol=0.03)


def test_optimizer_against_torchs_own_loop(tmp_path: Path):
    """Clipping, decay, learning rate, AdamW and average against the textbook loop."""
    data = Tensors(x_0=vectors())
    options = replace(OPTIONS, accumulate=1, clip=0.3)
    trained = run(tmp_path, data=data, objective=Objective(dropout=0.0), accumulate=1, clip=0.3)
    objective = Objective(dropout=0.0)
    mean = {name: p.detach().clone() for name, p in objective.named_parameters()}
    biases = [p for name, p in objective.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in objective.named_parameters() if name.endswith("weight")]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1.0, foreach=False, fused=False)
    plan = Plan(options.seed, training_case.SIZE, 16)
    from polydiff.core.randomness import example_generators

    clipped = 0
    for n in range(STEPS):
        indices = plan.indices(n, range(16))
        loss = objective({"x_0": vectors()[indices]}, example_generators(options.seed, n, range(16))).mean()
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(objective.parameters(), 0.3)
        clipped += bool(norm > 0.3)
        warm = min(1, (n + 1) / 5)
        cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * max(0, n - 5) / 25)) / 2
        for group in adam.param_groups:
            group["lr"] = 1e-2 * warm * cosine
        adam.step()
        d = min(0.9, (1 + n) / (10 + n))
        for name, p in objective.named_parameters():
            mean[name] = d * mean[name] + (1 - d) * p.detach()
    assert 0 < clipped < STEPS
    for name, p in objective.named_parameters():
        torch.testing.assert_close(trained.objective.get_parameter(name), p, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trained.ema.get_parameter(name), mean[name], rtol=1e-4, atol=1e-6)


def test_learning_rate():
    options = TrainingOptions(steps=100, warmup=10, learning_rate=2.0, decay_to=0.25)
    assert learning_rate(options, 0) == pytest.approx(0.2)
    assert learning_rate(options, 9) == pytest.approx(2.0)
    assert learning_rate(options, 55) == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert learning_rate(options, 100) == pytest.approx(0.5)
    assert {learning_rate(replace(options, decay_to=1.0), step) for step in range(10, 100)} == {2.0}
    assert learning_rate(replace(options, warmup=0), 0) == 2.0


def test_average():
    module = nn.BatchNorm1d(2)
    module.bias.requires_grad_(False)
    average = EMA(module, 0.99)
    assert [average.decay_at(n) for n in (0, 8, 10_000)] == [0.1, 0.5, 0.99]
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.bias.fill_(5.0)
        module.get_buffer("running_mean").fill_(7.0)
    average.update(module, 0)
    assert average.module.get_parameter("weight").tolist() == pytest.approx([0.1 + 0.9 * 3] * 2)
    assert average.module.get_parameter("bias").tolist() == [5.0, 5.0]
    assert average.module.get_buffer("running_mean").tolist() == [7.0, 7.0]
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
    with pytest.raises(ArgumentError, match="decay"):
        EMA(module, 1.0)


def test_callbacks(tmp_path: Path):
    seen: list[Any] = []
    train(
        Objective(),
        Examples(vectors()),
        replace(OPTIONS, steps=5, log_every=2, checkpoint_every=4),
        folder=tmp_path,
        on_begin=lambda: seen.append((tmp_path / "metrics.jsonl").exists()),
        on_log=lambda entry: seen.append(entry["step"]),
        on_checkpoint=lambda path: seen.append(path.name),
    )
    assert seen == [True, 2, 4, "step_000000004", 5, "step_000000005"]
    assert list((tmp_path / "logs").iterdir())


@pytest.mark.slow
def test_compiled_network(tmp_path: Path):
    compiled = run(tmp_path / "a", compile=True, objective=Objective(dropout=0.0))
    plain = run(tmp_path / "b", objective=Objective(dropout=0.0))
    torch.testing.assert_close(losses(compiled), losses(plain), rtol=1e-4, atol=1e-4)
    assert compiled.objective.state_dict().keys() == plain.objective.state_dict().keys()
    assert compiled.objective.get_submodule("network")._compiled_call_impl is not None


def test_without_average_the_weights_themselves_come_back(tmp_path: Path):
    trained = run(tmp_path, steps=2, ema=0.0)
    assert trained.ema is trained.objective


# --------------------------------------------------------------------------------------------------- order of the data


@pytest.mark.parametrize(("size", "batch", "parts", "world"), [(50, 16, 1, 1), (50, 16, 2, 4), (5, 12, 3, 2)])
def test_order(size: int, batch: int, parts: int, world: int):
    """Every process reads its share; together they read epoch after epoch, each example once an epoch."""
    stream: list[int] = []
    for step in range(3 * size):
        places: dict[int, int] = {}
        for rank in range(world):
            plan = Plan(7, size, batch, parts, rank, world)
            for part in range(parts):
                positions = plan.positions(part)
                indices = plan.indices(step, positions).tolist()
                places |= dict(zip(positions, indices, strict=True))
        assert sorted(places) == list(range(batch))
        stream += [places[i] for i in range(batch)]
    epochs = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[1] == epoch_order(7, 1, size).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_belongs_to_the_example(workers: int):
    data = Examples(vectors())
    plan = Plan(3, training_case.SIZE, 8, 2)
    whole = {b.positions: b.values["x_0"] for b in batches(data, plan, 4, 5, 0)}
    late = [b for b in batches(data, plan, 2, 5, workers) if b.step == 4]
    assert len(late) == 2
    for batch in late:
        assert torch.equal(batch.values["x_0"], whole[batch.positions])
    assert len(torch.cat(list(whole.values())).unique()) == 8 * training_case.WIDTH


# ---------------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("workers", [0, 2])
def test_loss_that_is_not_finite(tmp_path: Path, workers: int):
    poisoned = vectors()
    poisoned[POISONED] = float("inf")
    first = next(n for n in range(9) if POISONED in Plan(3, 50, 16).indices(n, range(16)))
    assert first == 2
    objective = Objective()
    with pytest.raises(
        TrainingError, match=rf"step {first}: loss (nan|inf).* examples {POISONED} of the data"
    ) as caught:
        run(tmp_path, objective=objective, data=Examples(poisoned), workers=workers)
    assert f"newest checkpoint: step {first}" in str(caught.value)
    sound = run(tmp_path / "sound", steps=first, decay_to=OPTIONS.decay_to)
    newest = checkpoints.load_newest(tmp_path / "checkpoints")
    assert newest.step == first
    for name, p in objective.named_parameters():
        assert torch.equal(p, newest.tensors["model"][name])
        assert p.isfinite().all()
        assert p.shape == sound.objective.get_parameter(name).shape


def test_gradient_that_is_not_finite(tmp_path: Path):
    class Root(Objective):
        def forward(self, batch, generator):
            loss = super().forward(batch, generator)
            edge = self.get_parameter("network.0.bias")[0]
            return loss + (edge - edge).sqrt() if self.seen > 8 else loss  # adds 0, with an infinite slope

    with pytest.raises(TrainingError, match=r"step 4: loss \d.*gradient norm (nan|inf).*in the gradient"):
        run(tmp_path, objective=Root())
    newest = checkpoints.load_newest(tmp_path / "checkpoints")
    assert newest.step == 4
    assert newest.tensors["model"]["seen"] == 4 * OPTIONS.accumulate  # the state before the step, its buffers too


# ------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 15}, "batch_size: got 15, expected a multiple of accumulate x processes = 2 x 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"steps": -1}, "steps"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"precision": "fp16"}, "precision"),
        ({"objective": nn.Identity()}, "objective"),
        ({"data": iter([])}, "data"),
        ({"data": []}, "data"),
        ({"compile": True, "objective": nn.Linear(2, 2)}, "compile"),
    ],
)
def test_bad_arguments_leave_nothing(tmp_path: Path, options: dict[str, Any], named: str):
    with pytest.raises(ArgumentError, match=named):
        run(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("losses", [torch.zeros(()), torch.zeros(8, 1), torch.zeros(8, dtype=torch.int64), 0.0])
def test_objective_of_the_wrong_kind(tmp_path: Path, losses: Any):
    class Wrong(Objective):
        def forward(self, batch, generator):
            return losses

    with pytest.raises(ArgumentError, match=r"objective: .* one loss per example: a floating \(8,\)"):
        run(tmp_path, objective=Wrong())
    corrected = run(tmp_path, steps=2)  # the folder is as good as new
    assert [entry["step"] for entry in corrected.history] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_tensors_of_different_length():
    with pytest.raises(ArgumentError, match="tensors"):
        Tensors(x_0=torch.zeros(3), label=torch.zeros(4))


# ----------------------------------------------------------------------------------------------------------- processes


def launch(*arguments: str) -> subprocess.Popen[str]:
    """The case on two processes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", training_case.__file__, *arguments]
    return subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_terminated(tmp_path: Path):
    """SIGTERM to the launcher reaches all; they stop at the same step and leave it on disk."""
    process = launch(str(tmp_path), "long")
    log = tmp_path / "long" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size > 0):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    step = checkpoints.load_newest(tmp_path / "long" / "checkpoints").step
    assert step > 0
    assert json.loads(log.read_text().splitlines()[-1])["step"] <= step
    found = run(
        tmp_path / "long",
        resume=True,
        steps=step + 2,
        objective=Objective(dropout=0.0),
        decay_to=1.0,
        data=Tensors(x_0=vectors()),
    )
    assert found.history[-1]["step"] == step + 2


def test_two_processes(tmp_path: Path):
    """torchrun with gloo reaches the same losses, saves what one process resumes, and stops as one."""
    process = launch(str(tmp_path))
    _, errors_shown = process.communicate(timeout=300)
    assert process.returncode == 0, errors_shown[-3000:]
    options: dict[str, Any] = {"decay_to": 1.0, "data": Tensors(x_0=vectors())}
    alone = run(tmp_path / "alone", objective=Objective(dropout=0.0, times=stratified), **options)
    resumed = run(
        tmp_path / "good", objective=Objective(dropout=0.0, times=stratified), resume=True, accumulate=1, **options
    )
    assert [entry["step"] for entry in resumed.history] == list(range(1, STEPS + 1))
    torch.testing.assert_close(losses(resumed), losses(alone), rtol=0, atol=1e-5)
    for mine, other in zip(resumed.ema.parameters(), alone.ema.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)

    errors = [json.loads((tmp_path / f"error-{rank}.json").read_text()) for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert f"examples {POISONED} of the data" in errors[0]
    assert errors[0].startswith("step 2: ")
    assert checkpoints.load_newest(tmp_path / "bad" / "checkpoints").step == 2
