"""Train a diffusion model of whole molecules: `polydiff train molecules --task molecules`, or `train(...)`.

The run's folder holds `config.json`, `checkpoints/`, `metrics.jsonl`, `logs/`, and at the end `model/`, which
`MoleculePipeline.from_pretrained` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..core.commands import CONFIG_NAME
from ..core.config import save
from ..core.machine import machine
from ..core.methods import WEIGHTS
from ..core.objectives import Weight, low_discrepancy, plain
from ..core.parts import PartwiseDenoising
from ..core.pipeline import Card
from ..core.runs import check_begun, command_line
from ..core.score_entropy import half_unmasking, unmasking
from ..core.training import Trained
from ..core.training import train as train_objective
from .generation import MoleculePipeline
from .generation_data import Molecules
from .generation_model import MoleculeConfig
from .generation_network import GeneratorConfig
from .generation_options import GenerationTrain, TypeLossName
from .generation_sources import load

__all__ = ["DOMAIN", "main", "molecule_config", "objective_of", "train"]

DOMAIN = "molecules"
FIRST = 1e-3
"""The earliest time that is trained: a thousandth of the way, where positions are known to some thousandths of an Å."""

TYPE_LOSSES: Mapping[TypeLossName, Weight] = {
    "cross-entropy": plain,
    "weighted": unmasking,
    "half-weighted": half_unmasking,
}


def main(options: GenerationTrain, whole: Any = None) -> None:
    """Train as the options say and write the model; `whole` as in `train`."""
    check_begun(options if whole is None else whole, "molecules")
    data = load(options.data, "train", data_root=options.data_root, count=options.count)
    print(
        f"{data.name}: {len(data)} molecules of {', '.join(data.elements)}, up to {len(data.sizes) - 1} atoms; "
        f"{options.types.noise} types; {machine()}",
        flush=True,
    )
    _, trained = train(data, options, whole=whole)
    if trained.is_main_process:
        print(f"model in {options.out / 'model'}; draw from it: polydiff sample {DOMAIN} --model {options.out}")


def train(
    data: Molecules,
    options: GenerationTrain,
    *,
    whole: Any = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> tuple[MoleculePipeline, Trained]:
    """Train on a data set already loaded; returns the pipeline with averaged weights, and the history.

    Args:
        data: to train on.
        options: of the run.
        whole: the command's options that `config.json` is to hold, where `options` were made of larger ones.
        on_log: called with each new entry of the log.

    Raises:
        ArgumentError: options that do not fit one another, or `options.out` holds a run already and `options.resume`
            is False.
        TrainingError, CheckpointError: see `core.training.train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training.seed)
        config = molecule_config(data, options)
        pipeline = MoleculePipeline(config, MoleculePipeline.build(config))
    trained = train_objective(
        objective_of(pipeline, options),
        data,
        options.training,
        folder=options.out,
        resume=options.resume,
        # Only now is the folder known to hold no other run.
        on_begin=lambda: save(options.out / CONFIG_NAME, "train", DOMAIN, options if whole is None else whole),
        on_log=on_log,
    )
    pipeline.model.denoiser.load_state_dict(trained.ema.get_submodule("denoiser").state_dict())
    pipeline.model.eval()
    if trained.is_main_process:
        about = card(data, options, whole, trained.history[-1]["seconds"])
        pipeline.save_pretrained(options.out / "model", card=about)
    return pipeline, trained


def objective_of(pipeline: MoleculePipeline, options: GenerationTrain) -> PartwiseDenoising:
    """The loss that the options ask for."""
    return PartwiseDenoising(
        pipeline.model.denoiser,
        pipeline.kernel,
        [WEIGHTS[options.weighting], TYPE_LOSSES[options.types.type_loss]],
        [1.0, options.types.type_share],
        low_discrepancy(FIRST),
    )


def molecule_config(data: Molecules, options: GenerationTrain) -> MoleculeConfig:
    """The model that the options ask for, completed by what the data say."""
    network = GeneratorConfig(
        types=len(data.elements),
        width=options.network.width,
        vectors=options.network.vectors,
        depth=options.network.blocks,
        scale=data.scale,
    )
    return MoleculeConfig(
        elements=data.elements,
        counts=data.counts,
        sizes=data.sizes,
        network=network,
        noise=options.types.noise,
        schedule=options.schedule,
        type_schedule=options.types.type_schedule,
        parametrisation=options.parametrisation,
        reading=options.types.reading,
    )


def card(data: Molecules, options: GenerationTrain, whole: Any, seconds: float) -> Card:
    """What is known about the model when training ends; figures are added by whoever measures them."""
    return Card(
        title=f"Molecules like {data.name}",
        summary=f"A diffusion model of whole molecules, {', '.join(data.elements)}; types: {options.types.noise}.",
        data=f"{data.name}, {len(data)} training molecules",
        command="" if whole is None else command_line(whole, "train", DOMAIN),
        time=f"{seconds / 60:.1f} minutes",
        machine=machine(),
        seed=options.training.seed,
        limits="Makes molecules like its training set's; they may be unstable, strained or impossible to synthesise.",
        tags=("diffusion", "chemistry"),
    )
