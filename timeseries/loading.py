"""From the name of a model on a command line to the model, and from a model to its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..core.commands import CONFIG_NAME
from ..core.config import load as load_options
from ..core.errors import ArgumentError
from ..core.runs import model_folder
from .options import Train
from .pipeline import ImputationPipeline

__all__ = ["device", "load_model", "trained_with"]


def load_model(name: str) -> ImputationPipeline:
    """A model by name, from a folder with a model, or from the folder of a finished run; on the GPU if there is one.

    Raises:
        DataError, CheckpointError, ConfigError: see `core.pipeline.Pipeline.from_pretrained`.
    """
    path = model_folder(Path(name), "timeseries")
    return ImputationPipeline.from_pretrained(path if path.is_dir() else name, device=device())


def trained_with(
    model: str,
    data: str | None,
    names: tuple[str, ...],
    *,
    carry: tuple[str, ...] | None = None,
    day_first: bool | None = None,
) -> Train:
    """How the model's run was begun, on the data set that is asked for.

    Args:
        model: as for `load_model`.
        data: a data set; None for the one that the run was trained on, or that the shipped model is named after.
        names: of the data sets that have one.
        carry, day_first: how own files are read; None as in the run.

    Raises:
        ArgumentError: nothing tells the data set.
    """
    told = {"carry": carry, "day_first": day_first}
    return replace(begun(model, data, names), **{name: value for name, value in told.items() if value is not None})


def begun(model: str, data: str | None, names: tuple[str, ...]) -> Train:
    """The same without what is told of the files."""
    kept = Path(model) / CONFIG_NAME
    found = None
    if (kept.parent / "model").is_dir() and kept.is_file():
        found = load_options(kept, "train", "timeseries", Train)
    if data is not None:
        if found is None or data in names:
            return Train(data=data)
        return found if found.data == data else Train(data=data, carry=found.carry)
    if found is not None:
        return found
    if model in names:
        return Train(data=model)
    raise ArgumentError("--data", None, f"the data set that {model} was trained on: its folder does not tell")


def device() -> str:
    """Where models work."""
    return "cuda" if torch.cuda.is_available() else "cpu"
