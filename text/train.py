"""Train a diffusion model of text: `polydiff train text`, `python -m polydiff.text.train`, or `train(...)`.

The run's folder holds `config.json` (what `--config` reads back), `checkpoints/`, `metrics.jsonl`, `logs/` for
TensorBoard, and at the end `model/`, which `TextPipeline.from_pretrained` reads. With `--kernel autoregressive` it is
the baseline that is trained, a causal network of the same size, by the same loop on the same windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..core.commands import CONFIG_NAME, run
from ..core.config import save
from ..core.errors import ArgumentError
from ..core.grids import uniform
from ..core.hybrid import Hybrid
from ..core.machine import machine
from ..core.objectives import Denoising, Weight, low_discrepancy, plain
from ..core.pipeline import Card
from ..core.runs import check_begun, command_line
from ..core.schedules import Schedule
from ..core.score_entropy import ScoreEntropy, half_unmasking, unmasking
from ..core.training import Trained
from ..core.training import train as train_objective
from .autoregressive import AutoregressiveConfig, AutoregressivePipeline
from .data import Text, load, spaced_out
from .loading import vocabulary_named
from .model import STATISTICS, TextConfig, TextModel, neighbourhood
from .network import TransformerConfig
from .options import LossName, Train
from .pipeline import TextPipeline

__all__ = ["main", "network_config", "objective_of", "text_config", "train"]

AnyPipeline = TextPipeline | AutoregressivePipeline


def main(options: Train) -> None:
    """Train as the options say and write the model."""
    check_begun(options, "text")
    check_baseline(options)
    vocabulary = vocabulary_named(options.vocabulary)
    data = load(options.data, "train", length=options.length, vocabulary=vocabulary, data_root=options.data_root)
    network = network_config(data, options)
    print(
        f"{data.name}: {len(data.tokens)} tokens of {vocabulary.size} to train on, in windows of {data.length}; "
        f"network of {network.num_parameters / 1e6:.2f} million parameters, {options.kernel}; {machine()}",
        flush=True,
    )
    if data.lost:
        print(f"{data.name}: {spaced_out(data.lost)}", flush=True)
    _, trained = train(data, options)
    if trained.is_main_process:
        print(f"model in {options.out / 'model'}; draw from it: polydiff sample text --model {options.out}")


def train(
    data: Text, options: Train, *, on_log: Callable[[dict[str, float]], None] | None = None
) -> tuple[AnyPipeline, Trained]:
    """Train on a data set already loaded; returns the pipeline with averaged weights, and the history.

    Raises:
        ArgumentError: options that do not fit one another, or `options.out` holds a run already and `options.resume`
            is False.
        TrainingError, CheckpointError: see `core.training.train`.
    """
    check_baseline(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training.seed)
        pipeline, objective, learnt = begin(data, options)
    trained = train_objective(
        objective,
        data,
        options.training,
        folder=options.out,
        resume=options.resume,
        # Only now is the folder known to hold no other run.
        on_begin=lambda: save(options.out / CONFIG_NAME, "train", "text", options),
        on_log=on_log,
    )
    learnt.load_state_dict(trained.average(learnt).state_dict())
    pipeline.model.eval()
    pipeline.to(next(learnt.parameters()).device)
    if trained.is_main_process:
        about = card(data, options, trained.history[-1]["seconds"])
        pipeline.save_pretrained(options.out / "model", card=about)
    return pipeline, trained


def begin(data: Text, options: Train) -> tuple[AnyPipeline, nn.Module, nn.Module]:
    """The untrained pipeline, the objective, and the part of the objective that the pipeline keeps."""
    if options.kernel == "autoregressive":
        config = AutoregressiveConfig(vocabulary=data.vocabulary, network=network_config(data, options), data=data.name)  # pyright: ignore[reportArgumentType]
        baseline = AutoregressivePipeline(config, AutoregressivePipeline.build(config))
        return baseline, baseline.model, baseline.model
    config = text_config(data, options)
    measured = {"counts": lambda: data.counts.clamp_min(1), "embeddings": lambda: embedded(data)}
    statistics = {name: measured[name]() for name in STATISTICS.get(config.kernel, {})}
    pipeline = TextPipeline(config, TextModel(config, statistics))
    return pipeline, objective_of(pipeline, options), pipeline.model.denoiser


def embedded(data: Text) -> Tensor:
    """Where the tokens lie among each other, by the training text."""
    return neighbourhood(data.tokens, data.vocabulary.size)


def objective_of(pipeline: TextPipeline, options: Train) -> nn.Module:
    """The loss that the options ask for.

    Raises:
        ArgumentError: the weighted loss, which is a bound for absorbing kernels only, of another kernel.
    """
    absorbing = pipeline.kernel.mask is not None
    name: LossName = options.loss or ("weighted" if absorbing else "score-entropy")
    if name in ("weighted", "half-weighted") and not absorbing:
        raise ArgumentError(
            "--loss",
            name,
            f"score-entropy, bound, hybrid or cross-entropy: weights are no bound's for {options.kernel}",
        )
    return OBJECTIVES[name](pipeline, options)


def denoising(weight: Weight) -> Callable[[TextPipeline, Train], nn.Module]:
    """A weighted cross-entropy, times at even distances; none is cut off."""
    return lambda pipeline, options: Denoising(
        pipeline.model.denoiser, pipeline.kernel, weight, low_discrepancy(0.0)
    )  # fmt: skip


def on_bound(cross_entropy: Callable[[Train], float]) -> Callable[[TextPipeline, Train], nn.Module]:
    """The bound on a grid and so much cross-entropy."""

    def build(pipeline: TextPipeline, options: Train) -> nn.Module:
        share = cross_entropy(options)

        def weight(schedule: Schedule, t: Tensor) -> Tensor:
            return share * plain(schedule, t)

        times = uniform(options.bound_steps, pipeline.kernel.schedule)
        return Hybrid(pipeline.model.denoiser, pipeline.kernel, times, 1.0, weight, stop=None)

    return build


OBJECTIVES: Mapping[LossName, Callable[[TextPipeline, Train], nn.Module]] = {
    "weighted": denoising(unmasking),
    "half-weighted": denoising(half_unmasking),
    "cross-entropy": denoising(plain),
    "hybrid": on_bound(lambda options: options.cross_entropy_weight),
    "bound": on_bound(lambda options: 0.0),
    "score-entropy": lambda pipeline, options: ScoreEntropy(pipeline.model.denoiser, pipeline.kernel),
}


def check_baseline(options: Train) -> None:
    """An ArgumentError if the baseline is asked for with what only diffusion has."""
    default = Train()
    if options.kernel == "autoregressive":
        for name in ("loss", "near", "schedule", "reading"):
            if (value := getattr(options, name)) != getattr(default, name):
                raise ArgumentError(f"--{name}", value, "nothing: the autoregressive baseline has no noise")


def network_config(data: Text, options: Train) -> TransformerConfig:
    """The sizes that a command line asks for, completed by what the data say."""
    network = options.network
    return TransformerConfig(
        vocabulary=data.vocabulary.size,
        width=network.width,
        depth=network.blocks,
        heads=network.heads,
        length=data.length,
        causal=options.kernel == "autoregressive",
        tied=network.tied,
        dropout=network.dropout,
    )


def text_config(data: Text, options: Train) -> TextConfig:
    """The diffusion model that the options ask for, completed by what the data say."""
    if options.kernel == "autoregressive":
        raise ArgumentError("--kernel", options.kernel, "a kernel of noise")
    return TextConfig(
        vocabulary=data.vocabulary,  # pyright: ignore[reportArgumentType]: there are no others
        network=network_config(data, options),
        kernel=options.kernel,
        schedule=options.schedule,
        reading=options.reading,
        near=options.near,
    )


def card(data: Text, options: Train, seconds: float) -> Card:
    """What is known about the model when training ends; figures are added by whoever measures them."""
    kind = "An autoregressive model" if options.kernel == "autoregressive" else f"A diffusion model ({options.kernel})"
    return Card(
        title=f"Text like {data.name}",
        summary=f"{kind} of text, {data.vocabulary.size} tokens, windows of {data.length}.",
        data=f"{data.name}, {len(data.tokens)} training tokens",
        command=command_line(options, "train", "text"),
        time=f"{seconds / 60:.1f} minutes",
        machine=machine(),
        seed=options.training.seed,
        limits="Writes text like its training set and nothing else; may repeat that set's errors and biases.",
        tags=("diffusion", "text-generation"),
    )


if __name__ == "__main__":
    run(Train, main, command="train", domain="text")
