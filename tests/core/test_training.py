"""Training can be interrupted anywhere and split over processes without changing what it computes."""

from __future__ import annotations

import json
import math
import multiprocessing
import multiprocessing.context
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from polydiff.core import checkpoints
from polydiff.core.batches import Plan, Tensors, batches, epoch_order
from polydiff.core.ema import EMA
from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError, TrainingError
from polydiff.core.options import TrainingOptions, binding, check_same
from polydiff.core.training import Interrupted, learning_rate, train
from tests.core import training_case
from tests.core.training_case import OPTIONS, POISONED, Examples, Objective, run, state, vectors

STEPS = OPTIONS.steps

# torch finds two workers many where a test runner gives each process one core
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the uninterrupted run ends with."""
    folder = tmp_path_factory.mktemp("whole")
    return state(folder, run(folder))


def stop_at(step: int, signum: int = signal.SIGTERM):
    def on_log(entry: dict[str, float]) -> None:
        if entry["step"] == step:
            signal.raise_signal(signum)

    return on_log


# -------------------------------------------------------------------------------------------------------------- resume


def interrupt_and_resume(folder: Path, step: int, workers: int) -> dict[str, Any]:
    torch.manual_seed(step)  # whatever the caller's generators hold must not matter
    with pytest.raises(Interrupted) as caught:
        run(folder, on_log=stop_at(step), workers=workers)
    assert caught.value.code == 143
    assert caught.value.step == step
    assert checkpoints.list_steps(folder / "checkpoints")[-1] == step
    random.seed(step)
    return state(folder, run(folder, resume=True, workers=workers))


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (13, 0), (17, 2)])
def test_interrupted_equals_uninterrupted(tmp_path: Path, whole: dict[str, Any], step: int, workers: int):
    assert interrupt_and_resume(tmp_path, step, workers) == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_interrupted_at_every_step(tmp_path: Path, whole: dict[str, Any], step: int, workers: int):
    assert interrupt_and_resume(tmp_path, step, workers) == whole


def test_every_step_in_one_chain(tmp_path: Path, whole: dict[str, Any]):
    """Thirty interruptions in a row: nothing is lost at any of them."""
    for step in range(1, STEPS + 1):
        with pytest.raises(Interrupted):
            run(tmp_path, resume=step > 1, on_log=stop_at(step))
    assert state(tmp_path, run(tmp_path, resume=True)) == whole


def test_a_longer_run_goes_on(tmp_path: Path):
    constant: dict[str, Any] = {"decay_to": 1.0}
    long = state(tmp_path / "long", run(tmp_path / "long", **constant))
    run(tmp_path / "short", steps=12, **constant)
    assert state(tmp_path / "short", run(tmp_path / "short", resume=True, **constant)) == long
    again = state(tmp_path / "short", run(tmp_path / "short", resume=True, **constant))
    assert again == long  # nothing left to do
    with pytest.raises(ArgumentError, match="steps: got 12, expected at least 30"):
        run(tmp_path / "short", resume=True, steps=12, **constant)


def test_channels_last_moments_keep_their_places(tmp_path: Path):
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, batch, generator):
            return (self.network(batch["x_0"]).mean(1) - 1).square().mean((1, 2))

    data = Tensors(x_0=torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    options: dict[str, Any] = {"channels_last": True, "data": data}
    one = state(tmp_path / "a", run(tmp_path / "a", objective=Convolution(), **options))
    with pytest.raises(Interrupted):
        run(tmp_path / "b", objective=Convolution(), on_log=stop_at(11), **options)
    assert state(tmp_path / "b", run(tmp_path / "b", objective=Convolution(), resume=True, **options)) == one


def test_damaged_checkpoint_is_passed_over(tmp_path: Path, whole: dict[str, Any]):
    with pytest.raises(Interrupted):
        run(tmp_path, on_log=stop_at(24))
    file = tmp_path / "checkpoints" / "step_000000024" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="step_000000024"):
        trained = run(tmp_path, resume=True)
    assert state(tmp_path, trained) == whole


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: got 0.001, expected 0.01"),
        ({"batch_size": 32}, "batch_size"),
        ({"seed": 4}, "seed"),
        ({"ema": 0.0}, "ema"),
        ({"betas": (0.9, 0.99)}, "betas"),
        ({"data": Tensors(x_0=torch.zeros(49, 4))}, "data"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, options: dict[str, Any], named: str):
    run(tmp_path, steps=3)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=named):
        run(tmp_path, resume=True, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_option_is_binding_or_free():
    loose = {"steps", "accumulate", "workers", "checkpoint_every", "checkpoint_minutes", "keep", "log_every"}
    loose |= {"compile", "channels_last", "cpu", "progress"}
    assert binding(OPTIONS).keys() == {field.name for field in fields(TrainingOptions)} - loose
    recorded = json.loads(json.dumps(binding(OPTIONS)))
    check_same(replace(OPTIONS, steps=99, workers=3, keep=1), recorded)
    with pytest.raises(ConfigError, match="clip"):
        check_same(replace(OPTIONS, clip=9.0), recorded)


def test_another_objective_is_refused(tmp_path: Path):
    run(tmp_path, steps=3)
    with pytest.raises(CheckpointError, match=r"model: network.0.bias is \(\(16,\), torch.float32\)"):
        run(tmp_path, steps=3, resume=True, objective=Objective(hidden=17))


def test_a_run_is_not_overwritten(tmp_path: Path):
    run(tmp_path, steps=2)
    with pytest.raises(ArgumentError, match="folder"):
        run(tmp_path, steps=2)


def test_resume_without_a_checkpoint_begins(tmp_path: Path, whole: dict[str, Any]):
    assert state(tmp_path, run(tmp_path, resume=True)) == whole


def test_the_log_has_each_step_once(tmp_path: Path):
    with pytest.raises(Interrupted):
        run(tmp_path, on_log=stop_at(15), checkpoint_every=10)
    (tmp_path / "checkpoints" / "step_000000015" / "state.json").unlink()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 16, "lo')
    with pytest.warns(UserWarning, match=r"state\.json: missing"):
        trained = run(tmp_path, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines == trained.history


def test_windows_of_the_log_survive(tmp_path: Path):
    def losses(folder: Path) -> list[tuple[float, float]]:
        trained = run(folder, resume=True, log_every=7)
        return [(entry["step"], entry["loss"]) for entry in trained.history]

    expected = losses(tmp_path / "a")
    assert [step for step, _ in expected] == [7, 14, 21, 28, 30]
    calls = 0

    class Counting(Examples):
        def __getitem__(self, index):
            nonlocal calls
            calls += 1
            if calls == 16 * 10 - 3:  # in mid-step 10, in mid-window
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(index)

    with pytest.raises(Interrupted) as caught:
        run(tmp_path / "b", data=Counting(vectors()), log_every=7)
    assert caught.value.step == 10  # within one step
    assert losses(tmp_path / "b") == expected


# --------------------------------------------------------------------------------------------------- signals and kills


def test_second_signal_acts_at_once(tmp_path: Path):
    class Impatient(Examples):
        def __getitem__(self, index):
            signal.raise_signal(signal.SIGINT)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, data=Impatient(vectors()))


def test_interrupt_has_its_own_code(tmp_path: Path):
    with pytest.raises(Interrupted) as caught:
        run(tmp_path, on_log=stop_at(2, signal.SIGINT))
    assert caught.value.code == 130


def test_a_signal_to_the_loaders_takes_no_data_away(tmp_path: Path, whole: dict[str, Any]):
    """A batch system signals all processes of a job; only the main one may decide what follows."""
    struck = 0

    def strike(entry: dict[str, float]) -> None:
        nonlocal struck
        if entry["step"] == 4:
            for loader in multiprocessing.active_children():
                os.kill(loader.pid or 0, signal.SIGTERM)
                struck += 1

    assert state(tmp_path, run(tmp_path, workers=2, on_log=strike)) == whole
    assert struck >= 2


def test_handlers_and_generators_are_put_back(tmp_path: Path):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    for seed in (torch.manual_seed, numpy.random.seed, random.seed):
        seed(5)
    expected = (torch.rand(3).tolist(), numpy.random.rand(), random.random())  # noqa: NPY002
    for seed in (torch.manual_seed, numpy.random.seed, random.seed):
        seed(5)
    run(tmp_path, steps=3)
    assert (torch.rand(3).tolist(), numpy.random.rand(), random.random()) == expected  # noqa: NPY002
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_training_in_a_thread(tmp_path: Path, whole: dict[str, Any]):
    found = []
    thread = threading.Thread(target=lambda: found.append(state(tmp_path, run(tmp_path))))
    thread.start()
    thread.join()
    assert found == [whole]


def children() -> multiprocessing.context.ForkServerContext:
    """Processes that have torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.core.training_case", "torch.utils.tensorboard", "torch._dynamo"])
    return context


HIDDEN = 400  # wide enough that writing checkpoints takes most of the time


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("wide")
    return state(folder, run(folder, objective=Objective(hidden=HIDDEN)))


def kill_and_resume(folder: Path, signum: int, step: int, delay: float) -> tuple[dict[str, Any], bool, int | None]:
    """Start a run, kill it `delay` seconds after checkpoint `step` (0: its log) appeared, resume it here.

    Returns:
        The final state, whether the kill fell into the writing of a checkpoint, and the exit code.
    """
    process = children().Process(target=training_case.endless, args=(folder, HIDDEN))
    process.start()
    sign = folder / "checkpoints" / f"step_{step:09d}" if step else folder / "metrics.jsonl"
    while not sign.exists() and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(process.pid or 0, signum)
    process.join(60)
    torn = any((folder / "checkpoints").glob(".unfinished-*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every checkpoint that is there must be sound
        trained = run(folder, resume=True, objective=Objective(hidden=HIDDEN))
    return state(folder, trained), torn, process.exitcode


@pytest.mark.parametrize("step", [0, 7, 20])
def test_killed(tmp_path: Path, wide: dict[str, Any], step: int):
    found, _, code = kill_and_resume(tmp_path, signal.SIGKILL, step, 0.03 * random.random())
    assert code in (-signal.SIGKILL, 0)  # 0: a fast machine was done before
    assert found == wide


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(50))
def test_killed_at_random(tmp_path: Path, wide: dict[str, Any], attempt: int):
    found, _, _ = kill_and_resume(tmp_path, signal.SIGKILL, attempt % 30, 0.03 * random.random())
    assert found == wide


def test_terminated(tmp_path: Path, wide: dict[str, Any]):
    found, torn, code = kill_and_resume(tmp_path, signal.SIGTERM, 5, 0.0)
    assert code in (143, 0)
    assert not torn
    assert found == wide


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


def test_seeds_and_learning(tmp_path: Path, whole: dict[str, Any]):
    assert state(tmp_path / "a", run(tmp_path / "a", seed=4))["history"] != whole["history"]
    data = Tensors(x_0=vectors())
    long = losses(run(tmp_path / "b", data=data, steps=200, decay_to=1.0))
    assert long[-20:].mean() < 0.8 * long[:20].mean()


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
    assert checkpoints.load_newest(tmp_path / "checkpoints").step == 4


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
    alone = run(tmp_path / "alone", objective=Objective(dropout=0.0), **options)
    resumed = run(tmp_path / "good", objective=Objective(dropout=0.0), resume=True, **options)
    assert [entry["step"] for entry in resumed.history] == list(range(1, STEPS + 1))
    torch.testing.assert_close(losses(resumed), losses(alone), rtol=0, atol=1e-5)
    for mine, other in zip(resumed.ema.parameters(), alone.ema.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)

    errors = [json.loads((tmp_path / f"error-{rank}.json").read_text()) for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert f"examples {POISONED} of the data" in errors[0]
    assert errors[0].startswith("step 2: ")
    assert checkpoints.load_newest(tmp_path / "bad" / "checkpoints").step == 2
