"""From the name of a model on a command line to the model, of either task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.errors import DataError
from ..core.runs import model_folder
from .generation import MoleculePipeline
from .options import TaskName
from .pipeline import ConformerPipeline

__all__ = ["load_generator", "load_model", "task_of"]

TASKS: Mapping[str, TaskName] = {MoleculePipeline.__name__: "molecules"}


def task_of(name: str) -> TaskName:
    """What a model draws, as its `config.json` tells; "conformers" where nothing else is told.

    Args:
        name: of a model that ships with polydiff, a folder with a model or a finished run, or a repository.

    Raises:
        CheckpointError: a configuration that cannot be read.
    """
    try:
        return TASKS.get(ConformerPipeline.kind_of(place(name)), "conformers")
    except DataError:  # no such model: who loads it says so, after the other options have been looked at
        return "conformers"


def load_model(name: str) -> ConformerPipeline:
    """A model of conformers, on the GPU if there is one."""
    return ConformerPipeline.from_pretrained(place(name), device=device())


def load_generator(name: str) -> MoleculePipeline:
    """A model of whole molecules, on the GPU if there is one."""
    return MoleculePipeline.from_pretrained(place(name), device=device())


def place(name: str) -> Path | str:
    """The folder of the model if the name is that of a folder."""
    path = model_folder(Path(name), "molecules")
    return path if path.is_dir() else name


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
