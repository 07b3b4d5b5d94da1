"""Train a diffusion model of conformers: `polydiff train molecules`, `python -m polydiff.molecules.train`, or `train`.

With `--task molecules` the command trains one of whole molecules (`generation_train`).

The run's folder holds `config.json` (what `--config` reads back), `checkpoints/`, `metrics.jsonl`, `logs/` for
TensorBoard, and at the end `model/`, which `ConformerPipeline.from_pretrained` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..core.commands import CONFIG_NAME, run
from ..core.config import save
from ..core.errors import ArgumentError
from ..core.machine import machine
from ..core.methods import WEIGHTS
from ..core.names import ParametrisationName, ScheduleName, WeightName
from ..core.objectives import Denoising
from ..core.pipeline import Card
from ..core.runs import check_begun, command_line
from ..core.training import Trained
from ..core.training import train as train_objective
from . import generation_train
from .data import Conformers, load
from .dual import DualConfig
from .generation_options import GenerationTrain
from .kernel import Aligned
from .model import DEFAULT_SCALE, LEVELS, NOISES, ConformerConfig, Level
from .network import EquivariantConfig
from .objectives import AlignedTarget, ChainRule
from .options import LevelName, Network, ObjectiveName, TaskName, Train
from .pipeline import ConformerPipeline
from .splits import Split
from .tasks import CONFORMERS, MOLECULES, chosen, refuse

__all__ = ["conformer_config", "generation_options", "main", "objective_of", "scale_of", "train"]

SCHEDULE: ScheduleName = "rectified-flow"
PARAMETRISATION: ParametrisationName = "flow"
WEIGHTING: WeightName = "flow"
VECTORS, BLOCKS = 32, 4
"""Of conformers, where the options leave them open."""


def main(options: Train) -> None:
    """Train as the options say and write the model."""
    TASKS[options.task](options)


def whole_molecules(options: Train) -> None:
    """`--task molecules`."""
    generation_train.main(generation_options(options), options)


def generation_options(options: Train) -> GenerationTrain:
    """What training whole molecules takes of the options."""
    if len(options.data) != 1:
        raise ArgumentError("--data", options.data, "one data set: for --task molecules")
    return chosen(GenerationTrain, options, CONFORMERS, data=options.data[0], task=options.task)


def conformers(options: Train) -> None:
    """`--task conformers`."""
    refuse(options, ["types"], MOLECULES)
    check_begun(options, "molecules")
    data = data_of(options, "train")

    def announce(size: int) -> None:
        print(
            f"{data.name}: {len(data)} pairs of start and conformer to train on, {', '.join(data.levels)}; "
            f"{options.network.kind} network of {size / 1e6:.2f} million parameters; {machine()}",
            flush=True,
        )
        if data.problems:
            print(f"{data.name}: left out: {', '.join(f'{n} {why}' for why, n in data.problems.items())}", flush=True)

    _, trained = train(data, options, announce=announce)
    if trained.is_main_process:
        print(f"model in {options.out / 'model'}; draw from it: polydiff sample molecules --model {options.out} "
              '--smiles "CCO"')  # fmt: skip


TASKS: Mapping[TaskName, Callable[[Train], None]] = {"conformers": conformers, "molecules": whole_molecules}


def train(
    data: Conformers,
    options: Train,
    *,
    announce: Callable[[int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> tuple[ConformerPipeline, Trained]:
    """Train on a data set already loaded; returns the pipeline with averaged weights, and the history.

    Args:
        data: loaded with the start and scale of the options, see `data_of`.
        options: see there.
        announce: called once with the number of parameters, before training begins.
        on_log: called with each new entry of the log.

    Raises:
        ArgumentError: `options.out` holds a run already and `options.resume` is False.
        TrainingError, CheckpointError: see `core.training.train`.
    """
    config = conformer_config(data, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.training.seed)
        pipeline = ConformerPipeline(config, ConformerPipeline.build(config))
    if announce is not None:
        announce(sum(parameter.numel() for parameter in pipeline.model.parameters()))
    objective = objective_of(pipeline, options)
    trained = train_objective(
        objective,
        data,
        options.training,
        folder=options.out,
        resume=options.resume,
        # Only now is the folder known to hold no other run.
        on_begin=lambda: save(options.out / CONFIG_NAME, "train", "molecules", options),
        on_log=on_log,
    )
    pipeline.model.load_state_dict(trained.average(pipeline.model).state_dict())
    pipeline.model.eval()
    if trained.is_main_process:
        pipeline.save_pretrained(options.out / "model", card=card(data, options, trained.history[-1]["seconds"]))
    return pipeline, trained


def data_of(options: Train, split: Split) -> Conformers:
    """The data set that the options name, in the frame and units of the model that they describe."""
    return load(
        options.data,
        split,
        start=options.start,
        scale=scale_of(options),
        data_root=options.data_root,
        count=options.count,
        drafts=options.drafts,
        levels=options.levels,
        seed=options.data_seed,
    )


def scale_of(options: Train) -> float:
    """Angstrom."""
    return DEFAULT_SCALE[options.start] if options.scale is None else options.scale


def aligned(pipeline: ConformerPipeline, options: Train) -> nn.Module:
    """Denoising on pairs whose noise is turned onto the data."""
    path = Aligned(pipeline.model.schedule, NOISES[pipeline.config.start]())
    return Denoising(pipeline.model, path, WEIGHTS[options.weighting or WEIGHTING])


OBJECTIVES: Mapping[ObjectiveName, Callable[[ConformerPipeline, Train], nn.Module]] = {
    "denoising": lambda pipeline, options: Denoising(
        pipeline.model, pipeline.kernel, WEIGHTS[options.weighting or WEIGHTING]
    ),
    "aligned": aligned,
    "aligned-target": lambda pipeline, options: AlignedTarget(
        pipeline.model, pipeline.kernel, WEIGHTS[options.weighting or WEIGHTING]
    ),
    "chain-rule": lambda pipeline, options: ChainRule(pipeline.model, pipeline.kernel),
}


def objective_of(pipeline: ConformerPipeline, options: Train) -> nn.Module:
    """The loss that the options ask for."""
    return OBJECTIVES[options.objective](pipeline, options)


def conformer_config(data: Conformers, options: Train) -> ConformerConfig:
    """The model that the options ask for, completed by what the data say."""
    return ConformerConfig(
        network=network_config(options.network, len(data.levels), scale_of(options)),
        schedule=options.schedule or SCHEDULE,
        parametrisation=options.parametrisation or PARAMETRISATION,
        start=options.start,
        scale=scale_of(options),
        levels=tuple(Level(level_named(name), data.elements[name]) for name in data.levels),
    )


def level_named(name: str) -> LevelName:
    """A level by name, as a type that configurations can hold."""
    return next(level for level in LEVELS if level == name)


def network_config(network: Network, levels: int, scale: float) -> EquivariantConfig | DualConfig:
    """The sizes that a command line asks for, for so many levels and displacements in units of `scale` Angstrom."""
    depth = network.blocks or BLOCKS
    if network.kind == "dual":
        refuse(network, ["vectors"], "equivariant networks")
        return DualConfig(width=network.width, depth=depth, levels=levels, scale=scale)
    vectors = network.vectors or VECTORS
    return EquivariantConfig(width=network.width, vectors=vectors, depth=depth, levels=levels, scale=scale)


def card(data: Conformers, options: Train, seconds: float) -> Card:
    """What is known about the model when training ends; figures are added by whoever measures them."""
    grown = {
        "draft": "refined from ETKDGv3 drafts (the starting law is N(draft, scale^2), so it depends on the data)",
        "harmonic": "from harmonic noise along the bonds",
        "centred": "from noise",
    }[options.start]
    return Card(
        title=f"Conformers like those of {data.name}",
        summary=f"A diffusion model of conformers, {grown}.",
        data=f"{data.name}, {len(data)} training pairs; levels: {', '.join(data.levels)}",
        command=command_line(options, "train", "molecules"),
        time=f"{seconds / 60:.1f} minutes",
        machine=machine(),
        seed=options.training.seed,
        limits="Knows the elements and sizes of its training molecules. B3LYP means minima of "
        "B3LYP/6-31G(2df,p), MMFF94 those of the force field; neither is an experiment.",
        tags=("diffusion", "chemistry", "conformers"),
    )


if __name__ == "__main__":
    run(Train, main, command="train", domain="molecules")
