"""Train a diffusion model of images: `polydiff train vision`, `python -m polydiff.vision.train`, or `train(...)`.

The run's folder holds `config.json` (what `--config` reads back), `checkpoints/`, `metrics.jsonl`, `logs/` for
TensorBoard, and at the end `model/`, which `ImagePipeline.from_pretrained` reads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core.commands import CONFIG_NAME, run
from ..core.config import save
from ..core.machine import machine
from ..core.methods import WEIGHTS
from ..core.objectives import Denoising
from ..core.pipeline import Card
from ..core.runs import check_begun, command_line
from ..core.training import Trained
from ..core.training import train as train_objective
from .architectures import DiTConfig, UNetConfig
from .data import Images, load
from .options import Network, Train
from .pipeline import ImageConfig, ImagePipeline

__all__ = ["image_config", "main", "train"]


def main(options: Train) -> None:
    """Train as the options say and write the model."""
    check_begun(options, "vision")
    data = load(options.data, "train", data_root=options.data_root, size=options.size)
    network = image_config(data, options).network
    channels, height, width = data.shape
    print(
        f"{data.name}: {len(data)} images to train on, {channels} x {height} x {width}, {data.num_classes} classes; "
        f"network of {network.num_parameters / 1e6:.2f} million parameters; {machine()}",
        flush=True,
    )
    _, trained = train(data, options)
    if trained.is_main_process:
        print(f"model in {options.out / 'model'}; draw from it: polydiff sample vision --model {options.out}")


def train(
    data: Images, options: Train, *, on_log: Callable[[dict[str, float]], None] | None = None
) -> tuple[ImagePipeline, Trained]:
    """Train on a data set already loaded; returns the pipeline with averaged weights, and the history.

    Raises:
        ArgumentError: `options.out` holds a run already and `options.resume` is False.
        TrainingError, CheckpointError: see `core.training.train`.
    """
    config = image_config(data, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training.seed)
        pipeline = ImagePipeline(config, ImagePipeline.build(config))
    drop = {"label": (options.label_dropout, pipeline.num_classes)} if pipeline.num_classes else None
    objective = Denoising(pipeline.model, pipeline.kernel, WEIGHTS[options.weighting], drop=drop)
    trained = train_objective(
        objective,
        data,
        options.training,
        folder=options.out,
        resume=options.resume,
        # Only now is the folder known to hold no other run.
        on_begin=lambda: save(options.out / CONFIG_NAME, "train", "vision", options),
        on_log=on_log,
    )
    assert isinstance(trained.ema, Denoising)
    pipeline.model.load_state_dict(trained.ema.denoiser.state_dict())
    pipeline.model.eval()
    if trained.is_main_process:
        pipeline.save_pretrained(options.out / "model", card=card(data, options, trained.history[-1]["seconds"]))
    return pipeline, trained


def image_config(data: Images, options: Train) -> ImageConfig:
    """The model that the options ask for, completed by what the data say."""
    return ImageConfig(
        shape=data.shape,
        levels=data.levels,
        class_names=data.class_names,
        network=network_config(options.network, data.shape[0], data.num_classes),
        schedule=options.schedule,
        parametrisation=options.parametrisation,
    )


def card(data: Images, options: Train, seconds: float) -> Card:
    """What is known about the model when training ends; figures are added by whoever measures them."""
    return Card(
        title=f"Images like {data.name}",
        summary="A diffusion model of images" + (", class-conditional." if data.num_classes else "."),
        data=f"{data.name}, {len(data)} training images of shape {data.shape}",
        command=command_line(options, "train", "vision"),
        time=f"{seconds / 60:.1f} minutes",
        machine=machine(),
        seed=options.training.seed,
        limits="Draws images like its training set and nothing else; may repeat that set's errors and biases.",
    )


def network_config(network: Network, channels: int, num_classes: int) -> UNetConfig | DiTConfig:
    """The sizes that a command line asks for, completed by what the data say."""
    if network.kind == "dit":
        return DiTConfig(
            in_channels=channels,
            out_channels=channels,
            num_classes=num_classes,
            width=network.width,
            depth=network.blocks,
            heads=network.heads,
            patch=network.patch,
            dropout=network.dropout,
        )
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        num_classes=num_classes,
        width=network.width,
        multipliers=network.multipliers,
        blocks=network.blocks,
        attention=network.attention,
        heads=network.heads,
        patch=network.patch,
        dropout=network.dropout,
    )


if __name__ == "__main__":
    run(Train, main, command="train", domain="vision")
