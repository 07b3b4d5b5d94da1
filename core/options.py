"""Options of a training run, as a dataclass that command lines and configuration files share. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from .config import Range, to_dict
from .errors import ConfigError

__all__ = ["FREE", "TrainingOptions", "binding", "check_same"]

FREE = frozenset(
    {"steps", "accumulate", "workers", "checkpoint_every", "checkpoint_minutes", "keep", "log_every"}
    | {"compile", "channels_last", "cpu", "progress"}
)
"""What may differ when a run is resumed: its length, and how the same arithmetic is carried out and recorded."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. The defaults suit a small image model."""

    steps: Annotated[int, Range(1, 10**9)] = 10_000
    """Optimizer steps in all; a resumed run may ask for more."""
    batch_size: Annotated[int, Range(1, 10**6)] = 64
    """Examples per step, over all processes and accumulated parts together."""
    learning_rate: Annotated[float, Range(0.0, 10.0)] = 2e-4
    """Learning rate of AdamW after the warm-up."""
    warmup: Annotated[int, Range(0, 10**9)] = 500
    """Steps over which the learning rate rises from 0 linearly."""
    decay_to: Annotated[float, Range(0.0, 1.0)] = 1.0
    """Share of the learning rate that a cosine ends at, at the last step; 1 keeps the rate constant."""
    betas: tuple[Annotated[float, Range(0.0, 0.999999)], Annotated[float, Range(0.0, 0.999999)]] = (0.9, 0.999)
    """Decay of AdamW's first and second moment."""
    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.0
    """Decoupled weight decay of matrices and filters; biases, norms and other vectors are left alone."""
    ema: Annotated[float, Range(0.0, 0.9999999)] = 0.999
    """Decay of the exponential moving average of the weights, warmed up; 0 keeps none."""
    clip: Annotated[float, Range(0.0, 1e9)] = 1.0
    """Largest gradient norm; larger gradients are scaled down to it. 0 does not clip."""
    accumulate: Annotated[int, Range(1, 10**6)] = 1
    """Parts that each process splits its share of a batch into, to save memory."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast; weights, moments and averages stay float32."""
    channels_last: bool = False
    """Keep images and filters in channels-last memory format, which convolutions often prefer."""
    compile: bool = False
    """Compile the submodules of the objective that are called `network`."""
    workers: Annotated[int, Range(0, 1024)] = 0
    """Processes that load examples; not used by data that hold whole batches in memory."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the data order, the noise and the dropout."""
    checkpoint_every: Annotated[int, Range(0, 10**9)] = 1000
    """Steps between checkpoints; 0 writes one at the end (and when the run is interrupted) only."""
    checkpoint_minutes: Annotated[float, Range(0.0, 1e6)] = 0.0
    """Minutes after which to write a checkpoint in any case; 0 counts steps only."""
    keep: Annotated[int, Range(1, 10**6)] = 2
    """Checkpoints to keep."""
    log_every: Annotated[int, Range(1, 10**9)] = 50
    """Steps between entries of the log; each entry holds the mean loss since the last."""
    cpu: bool = False
    """Train on the CPU even where there is an accelerator."""
    progress: bool = True
    """Show a progress bar."""


def binding(options: TrainingOptions) -> dict[str, Any]:
    """The options that a resumed run must share with the run it continues, as plain JSON values."""
    return {name: value for name, value in to_dict(options).items() if name not in FREE}


def check_same(options: TrainingOptions, recorded: dict[str, Any]) -> None:
    """Refuse to continue a run under other options.

    Args:
        options: of the new start.
        recorded: what `binding` gave for the run that wrote the checkpoint.

    Raises:
        ConfigError: naming the first option that differs.
    """
    asked = binding(options)
    for name in sorted(asked.keys() | recorded.keys()):
        if asked.get(name) != recorded.get(name):
            raise ConfigError(name, asked.get(name), f"{recorded.get(name)!r}, with which the run was begun")
