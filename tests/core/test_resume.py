"""A run that is interrupted or killed anywhere goes on and ends bit for bit as one that is not."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.context
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from polydiff.core import checkpoints
from polydiff.core.batches import Tensors
from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError
from polydiff.core.options import TrainingOptions, binding, check_same
from polydiff.core.training import Interrupted
from tests.core import training_case
from tests.core.training_case import OPTIONS, STEPS, Examples, Objective, run, state, vectors

# torch finds two workers many where a test runner gives each process one core
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.usefixtures("one_thread"),
]


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


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """SIGINT as in a foreground process; those that a shell starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_second_signal_acts_at_once(tmp_path: Path):
    def impatient(entry: dict[str, float]) -> None:
        # In the main thread, where each is handled before the next line; signals of other threads may merge.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_log=impatient)


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
