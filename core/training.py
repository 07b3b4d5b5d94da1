"""Training: one loop for every domain, on one device or many, that can be interrupted anywhere.

Theory. Minimise the mean over examples of an objective's per-example losses by AdamW (Loshchilov and Hutter 2019) with
clipped gradients, a warmed-up and then constant or cosine learning rate, and an exponential moving average of the
weights, with which one samples.

Every number drawn is a pure function of (seed, step, position in the global batch): the order of the data, the noise
and times inside the objective, the augmentation of the examples; what a whole batch shares, such as the offset of its
stratified times, of (seed, step); dropout's of (seed, step, first position of the part).
So the state of a run is its weights, averages and moments and the number of steps done; a resumed run equals an
uninterrupted one bit for bit; and one process and several draw the same and differ by rounding alone (dropout aside).

A run lives in a folder: `checkpoints/` (see `checkpoints`), `metrics.jsonl` and `logs/` (see `records`).

Launched by `torchrun` or `accelerate launch`, the same call trains on all processes; they must share a file system.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO, cast, final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from . import checkpoints
from .batches import Batch, Plan, batches, seed_everything
from .config import check
from .ema import EMA
from .errors import ArgumentError, CheckpointError, ConfigError, DataError, TrainingError
from .interruption import Interrupted, Signals, own_randomness
from .options import TrainingOptions, binding, check_same
from .randomness import Share
from .records import Records, holds_records, read_records

__all__ = ["Interrupted", "Trained", "learning_rate", "train"]

_DROPOUT = 0x64726F70  # sets this use of the seed apart from the others


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        objective: the module that was passed in, trained in place.
        ema: a copy with averaged weights, in evaluation mode; `objective` itself where `options.ema` is 0.
        history: the log's entries: step, loss (mean since the last entry), learning_rate, gradient_norm (before
            clipping), examples_per_second, seconds.
        is_main_process: True on one process of those that trained together: the one that writes files.
    """

    objective: nn.Module
    ema: nn.Module
    history: list[dict[str, float]]
    is_main_process: bool = True

    def average(self, part: nn.Module) -> nn.Module:
        """The copy of a part of the objective that has averaged weights."""
        return self.ema.get_submodule(next(name for name, one in self.objective.named_modules() if one is part))


def learning_rate(options: TrainingOptions, step: int) -> float:
    """The learning rate of the step that follows `step` earlier ones: linear warm-up, then a cosine to
    `decay_to` times the peak at the last step (constant for 1)."""
    warm = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
    span = max(1, options.steps - options.warmup)
    done = min(1.0, max(0, step - options.warmup) / span)
    share = options.decay_to + (1.0 - options.decay_to) * 0.5 * (1.0 + math.cos(math.pi * done))
    return options.learning_rate * warm * share


def train(
    objective: nn.Module,
    data: Dataset[Any],
    options: TrainingOptions,
    *,
    folder: str | os.PathLike[str],
    resume: bool = False,
    lasting: bool = True,
    on_begin: Callable[[], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> Trained:
    """Train `objective` on `data`; see the module's docstring.

    Args:
        objective: `objective(batch, generators) -> losses`, (B,) floating: one loss per example of the mapping `batch`,
            noise drawn from `generators`, one per example (a `randomness.Share`). Moved to the device and trained in
            place.
        data: map-style data set of dicts of tensors; with a method `batch(indices) -> dict` whole batches are taken
            from it, which is much faster for data in memory, and what lets batches be ragged: their values may then be
            of any shape, nested (mappings, tuples, lists), or anything with a method `to(device)`. With
            `fingerprint() -> str`, resuming demands the same.
        options: see `TrainingOptions`.
        folder: of the run.
        resume: go on from the newest sound checkpoint in `folder`; begin at step 0 where no checkpoint was written yet.
        lasting: whether `folder` outlives the call; without, who interrupts is told that nothing is kept.
        on_begin: called once before the first step, on the main process; `folder` has been checked and made by then.
        on_log: called with each new entry of the log, on the main process.
        on_checkpoint: called with the path of each checkpoint written, on the main process.

    Raises:
        ArgumentError: something cannot be used, `folder` holds a run and `resume` is False, or another process trains
            in it. Nothing was changed; only what is wrong with the losses shows in the first step, after which the
            same folder can be begun in again.
        ConfigError: an option, or the data, differ from those of the run to resume.
        CheckpointError: no checkpoint is sound or fits the objective, or none can be written.
        TrainingError: a loss or gradient is not finite; the step was not taken and the state before it is saved.
        Interrupted: SIGTERM or SIGINT; the state is saved.
    """
    check(options)
    accelerator = Accelerator(
        cpu=options.cpu, mixed_precision="no"
    )  # autocast is ours: it must not depend on launchers
    run = _Run(objective, data, options, Path(folder), accelerator, on_log, on_checkpoint, lasting)
    try:
        run.begin(resume)
        if on_begin is not None and accelerator.is_main_process:
            on_begin()
    except BaseException:
        run.end()
        raise
    with own_randomness(accelerator.device), Signals() as signals:
        try:
            run.go(signals)
        finally:
            run.end()
    average = objective if run.ema is None else run.ema.module
    return Trained(objective, average, run.history, accelerator.is_main_process)


@final
class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        objective: nn.Module,
        data: Dataset[Any],
        options: TrainingOptions,
        folder: Path,
        accelerator: Accelerator,
        on_log: Callable[[dict[str, float]], None] | None,
        on_checkpoint: Callable[[Path], None] | None,
        lasting: bool,
    ):
        self.objective, self.data, self.options, self.folder = objective, data, options, folder
        self.lasting = lasting
        self.accelerator, self.on_log, self.on_checkpoint = accelerator, on_log, on_checkpoint
        self.names = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        weights = dict(objective.named_parameters(remove_duplicate=False))
        self.beside = objective.state_dict().keys() - weights.keys()
        if not self.names:
            raise ArgumentError("objective", objective, "a module with parameters to train")
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise ArgumentError("data", type(data).__name__, "a data set with a length that can be indexed")
        size, world = len(data), accelerator.num_processes  # pyright: ignore[reportArgumentType]: checked above
        self.plan = Plan(options.seed, size, options.batch_size, options.accumulate, accelerator.process_index, world)
        if options.compile and not self._networks():
            raise ArgumentError("compile", True, "an objective with a submodule called `network`")
        self.step = 0
        self.saved: int | None = None
        self.loss_sum, self.loss_count = 0.0, 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.records: Records | None = None
        self.lock: TextIO | None = None
        self.bar: tqdm[NoReturn] | None = None

    # ------------------------------------------------------------------------------------------ begin and end

    def begin(self, resume: bool) -> None:
        """Hold and check the folder, restore the state, and open the log."""
        if self.accelerator.is_main_process:
            self._own_folder()
        checkpoint = None
        if resume and checkpoints.list_steps(self._checkpoints):
            checkpoint = checkpoints.load_newest(self._checkpoints)
            self._check(checkpoint)
        elif not resume and (checkpoints.list_steps(self._checkpoints) or holds_records(self.folder)):
            raise ArgumentError("folder", str(self.folder), "a folder without a run, or resume=True to go on with it")
        self.accelerator.wait_for_everyone()  # all have looked before anyone writes

        options, device = self.options, self.accelerator.device
        self.objective.to(device)
        if options.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]: missing overload
        self.objective.train()
        if checkpoint is not None:
            self.objective.load_state_dict(checkpoint.tensors["model"])
        self.ema = EMA(self.objective, options.ema) if options.ema > 0 else None
        self.optimizer = self._optimizer()
        if checkpoint is not None:
            self._restore(checkpoint)
        if options.compile:
            for network in self._networks():
                network.compile()
        self.model = self.accelerator.prepare_model(self.objective)
        if self.accelerator.is_main_process:
            self.records = Records(self.folder, self.history, self.step)
            self.bar = tqdm(
                total=options.steps, initial=self.step, unit="step", disable=not options.progress, dynamic_ncols=True
            )

    def _own_folder(self) -> None:
        """Make the folder and hold it for this process; the system lets go of it however the process ends."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / ".lock", "a")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{self.folder}: no folder to keep a run in ({error})") from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.close()
            raise ArgumentError("folder", str(self.folder), "a folder in which no other process is training") from error

    def end(self) -> None:
        if self.lock is not None:
            self.lock.close()
        if self.records is not None:
            self.records.close()
        if self.bar is not None:
            self.bar.close()

    def _check(self, checkpoint: checkpoints.Checkpoint) -> None:
        """That the checkpoint is of this run: same options, data and module."""
        state = checkpoint.state
        keys, groups = {"options", "data", "loss_sum", "loss_count", "seconds"}, {"model", "optimizer"}
        if not (keys <= state.keys() and groups <= checkpoint.tensors.keys() and isinstance(state["options"], dict)):
            raise CheckpointError(f"{checkpoint.path}: not a checkpoint of a training run")
        check_same(self.options, state["options"])
        if state["data"] != self._data():
            raise ConfigError("data", self._data(), f"{state['data']}, with which the run was begun")
        if checkpoint.step > self.options.steps:
            raise ArgumentError("steps", self.options.steps, f"at least {checkpoint.step}, the steps already done")
        own = {name: (tuple(x.shape), x.dtype) for name, x in self.objective.state_dict().items()}
        groups = ["model", "ema"] if self.options.ema > 0 else ["model"]
        for group in groups:
            found = {name: (tuple(x.shape), x.dtype) for name, x in checkpoint.tensors.get(group, {}).items()}
            for name in sorted(own.keys() | found.keys()):
                if own.get(name) != found.get(name):
                    got, expected = found.get(name, "nothing"), own.get(name, "nothing")
                    raise CheckpointError(f"{checkpoint.path}: {group}: {name} is {got}, the objective has {expected}")

    def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        state, tensors = checkpoint.state, checkpoint.tensors
        self.step = self.saved = checkpoint.step
        self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
        self.seconds = state["seconds"]
        self.history = read_records(self.folder, last=self.step)
        if self.ema is not None:
            self.ema.module.load_state_dict(tensors["ema"])
        moments: dict[int, dict[str, Tensor]] = {}
        for index, (name, parameter) in enumerate(self._ordered()):
            prefix = f"{name}:"
            for key, value in tensors["optimizer"].items():
                if key.startswith(prefix):
                    if value.shape == parameter.shape and value.ndim > 0:  # the kernels want the parameter's strides
                        value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
                    moments.setdefault(index, {})[key[len(prefix) :]] = value
        whole = {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(whole)

    # --------------------------------------------------------------------------------------------------- the loop

    def go(self, signals: Signals) -> None:
        options = self.options
        pin = self.accelerator.device.type == "cuda"
        feed = batches(self.data, self.plan, self.step, options.steps, options.workers, pin)
        self.last_saved_at = self.last_logged_at = self.started = time.perf_counter()
        with contextlib.closing(feed):
            while self.step < options.steps:
                self._take_step(feed, signals)
                # Several processes must agree, which they do once a step; one alone can look again.
                if signals.stop or (signals.received and self.plan.world == 1):
                    self._save()
                    self.accelerator.wait_for_everyone()
                    self._interrupted(signals)
        if signals.received:  # in the last step, after the others were asked
            self._interrupted(signals)

    def _interrupted(self, signals: Signals) -> NoReturn:
        if self.accelerator.is_main_process:
            kept = f"all is saved in {self.folder}: resume it" if self.lasting else "nothing is kept"
            tqdm.write(f"interrupted after step {self.step} of {self.options.steps}; {kept}", file=sys.stderr)
        raise Interrupted(signals.received or signal.SIGTERM, self.step, self.folder)

    def _take_step(self, feed: Iterator[Batch], signals: Signals) -> None:
        options, step = self.options, self.step
        rate = learning_rate(options, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = self._beside()
        parts = [self._part(next(feed), last=part == options.accumulate - 1) for part in range(options.accumulate)]
        losses = torch.cat([part.losses for part in parts])
        gradients = [p.grad for p in self.names.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        counts = [losses.sum(), (~losses.isfinite()).sum(), torch.tensor(float(signals.received != 0))]
        shared = torch.stack([count.to(losses) for count in counts])
        shared = cast(Tensor, self.accelerator.reduce(shared, "sum"))
        # One transfer a step: the optimizer may not move before the host knows that all is finite.
        total, broken, stop, size = torch.cat([shared, norm.to(losses).reshape(1)]).tolist()
        signals.stop = stop > 0
        if broken or not math.isfinite(size):
            self._refuse(parts, before, total / options.batch_size, size)
        if options.clip > 0:
            nn.utils.clip_grads_with_norm_(list(self.names.values()), options.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.objective, step)
        self.step += 1
        self._record(total / options.batch_size, rate, size)
        if self._due():
            self._save()

    def _part(self, batch: Batch, last: bool) -> _Part:
        """Losses of one part of the batch; their gradient is added to the parameters'."""
        options, device = self.options, self.accelerator.device
        values = {name: self._move(value) for name, value in batch.values.items()}
        generators = Share(options.seed, batch.step, batch.positions, options.batch_size)
        seed_everything(options.seed, batch.step, batch.positions.start, _DROPOUT)
        # Gradients meet once per step: only the last part's backward pass talks to the other processes.
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                losses = self.model(values, generators)
            if not isinstance(losses, Tensor) or losses.shape != (len(generators),) or not losses.is_floating_point():
                raise ArgumentError("objective", losses, f"one loss per example: a floating ({len(generators)},)")
            (losses.float().mean() / options.accumulate).backward()
        return _Part(batch.indices, losses.detach().float())

    def _refuse(self, parts: list[_Part], before: dict[str, Any], loss: float, norm: float) -> NoReturn:
        """Save the state before the step, and say what is wrong."""
        self.objective.load_state_dict(before, strict=False)
        own = [i for part in parts for i in part.indices[~part.losses.isfinite().cpu()].tolist()]
        bad: list[int] = gather_object(own)  # of all processes
        self.optimizer.zero_grad(set_to_none=True)
        sound = all(x.isfinite().all() for x in self.objective.state_dict().values())
        if sound:  # the update before may have left weights that are not
            self._save()
        self.accelerator.wait_for_everyone()
        where = f"examples {', '.join(map(str, sorted(bad)[:20]))} of the data" if bad else "the gradient"
        raise TrainingError(
            f"step {self.step}: loss {loss}, gradient norm {norm}: not finite in {where}; the step was not taken; "
            f"newest checkpoint: step {self.saved}"
        )

    # ------------------------------------------------------------------------------------------- log and checkpoints

    def _record(self, loss: float, rate: float, norm: float) -> None:
        options, now = self.options, time.perf_counter()
        self.loss_sum += loss
        self.loss_count += 1
        if self.bar is not None:
            self.bar.update()
        if self.step % options.log_every and self.step != options.steps:
            return
        speed = self.loss_count * options.batch_size / max(now - self.last_logged_at, 1e-9)
        entry: dict[str, float] = {
            "step": self.step,
            "loss": self.loss_sum / self.loss_count,
            "learning_rate": rate,
            "gradient_norm": norm,
            "examples_per_second": round(speed, 3),
            "seconds": round(self.seconds + now - self.started, 3),
        }
        self.loss_sum, self.loss_count, self.last_logged_at = 0.0, 0, now
        self.history.append(entry)
        if self.records is not None:
            self.records.append(entry)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {entry['loss']:.4g}, {speed:.4g} examples/s", refresh=False)
        if self.on_log is not None and self.accelerator.is_main_process:
            self.on_log(entry)

    def _due(self) -> bool:
        every, minutes = self.options.checkpoint_every, self.options.checkpoint_minutes
        late = minutes > 0 and time.perf_counter() - self.last_saved_at >= 60 * minutes
        return late or self.step == self.options.steps or (every > 0 and self.step % every == 0)

    def _save(self) -> None:
        """Write a checkpoint of the present state, unless there is one."""
        if self.saved == self.step:
            return
        self.saved, self.last_saved_at = self.step, time.perf_counter()
        if self.records is None:
            return
        self.records.synchronise()
        moments = self.optimizer.state_dict()["state"]
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self.objective.state_dict(),
            "optimizer": {
                f"{name}:{key}": value
                for index, (name, _) in enumerate(self._ordered())
                for key, value in moments.get(index, {}).items()
            },
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.module.state_dict()
        state = {
            "options": binding(self.options),
            "data": self._data(),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "seconds": self.seconds + time.perf_counter() - self.started,
        }
        path = checkpoints.save(self._checkpoints, self.step, tensors, state, keep=self.options.keep)
        if self.on_checkpoint is not None:
            self.on_checkpoint(path)

    # ----------------------------------------------------------------------------------------------------- small things

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _beside(self) -> dict[str, Any]:
        """A copy of the objective's state beside its parameters: what forward passes may change."""
        if not self.beside:
            return {}
        state = self.objective.state_dict()
        values = ((name, state[name]) for name in self.beside)
        return {name: x.clone() if isinstance(x, Tensor) else copy.deepcopy(x) for name, x in values}

    def _networks(self) -> list[nn.Module]:
        return [m for name, m in self.objective.named_modules() if name.rpartition(".")[2] == "network"]

    def _data(self) -> dict[str, Any]:
        fingerprint = getattr(self.data, "fingerprint", None)
        return {"size": self.plan.size, "fingerprint": fingerprint() if callable(fingerprint) else None}

    def _ordered(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters in the optimizer's order: those that decay, then the others."""
        return sorted(self.names.items(), key=lambda item: item[1].ndim < 2)

    def _optimizer(self) -> torch.optim.AdamW:
        options = self.options
        decaying = [p for p in self.names.values() if p.ndim >= 2]
        others = [p for p in self.names.values() if p.ndim < 2]
        groups = [{"params": decaying, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=options.learning_rate,
            betas=options.betas,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )

    def _move(self, value: Any) -> Any:
        """A value on the device: a tensor, mappings, tuples and lists of them, whatever has a method `to`."""
        if isinstance(value, Mapping):
            return {name: self._move(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._move(part) for part in value)
        if not isinstance(value, Tensor):
            return value.to(self.accelerator.device) if hasattr(value, "to") else value
        value = value.to(self.accelerator.device, non_blocking=True)
        if self.options.channels_last and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value


class _Part(NamedTuple):
    """Indices in the data and detached losses of one part of a batch, (B,) each."""

    indices: Tensor
    losses: Tensor
