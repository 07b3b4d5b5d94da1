"""What is wrong with a command line is told before anything is loaded. Free of torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ArgumentError
from ..core.runs import check_begun, model_folder
from .rows import Row, read_rows, rows_of

if TYPE_CHECKING:
    from .options import Sample, Train

__all__ = ["check_sample", "check_train", "rows_from"]

LARGEST = 1 << 20
"""Bytes of a model's configuration."""


def check_train(options: Train) -> None:
    """An ArgumentError for an --out that holds a run already, or none to resume."""
    check_begun(options, "molecules")


def check_sample(options: Sample) -> None:
    """Errors of the input and of --out.

    A model of whole molecules has no input: where the model's folder tells that, only --out is looked at; and nothing
    is said of a missing input where the model lies elsewhere.
    """
    check_file(options.out)
    if (task := kept_task(options.model)) == "conformers" or (task is None and (options.input or options.smiles)):
        rows_from(options)


def rows_from(options: Sample) -> list[Row]:
    """The rows of the input, or of `--smiles`.

    Raises:
        ArgumentError: both are given, or neither, or columns without a table. DataError: see `rows.read_rows`.
    """
    if options.input is not None and options.smiles:
        raise ArgumentError("input", str(options.input), "one of the two: give a file or --smiles, not both")
    if options.input is not None:
        return read_rows(options.input, options.smiles_column, options.id_column)
    if not options.smiles:
        raise ArgumentError("input", None, "something to draw: give a file of SMILES, or --smiles")
    for flag, name in (("--smiles-column", options.smiles_column), ("--id-column", options.id_column)):
        if name is not None:
            raise ArgumentError(flag, name, "a table (.csv or .tsv) as input")
    return rows_of((smiles, "") for smiles in options.smiles)


def check_file(out: Path) -> None:
    """An ArgumentError where no file can be written."""
    if out.is_dir():
        raise ArgumentError("--out", str(out), "a file; this is a folder")
    folder = next(parent for parent in (out.absolute().parents) if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArgumentError("--out", str(out), f"a file in a folder that can be written; {folder} cannot")


def kept_task(model: str) -> str | None:
    """What a model in a folder, or one that ships, draws; None where it lies elsewhere or cannot be read."""
    path = Path(model)
    folder = model_folder(path, "molecules") if path.is_dir() else Path(__file__).parent / "pretrained" / model
    try:
        with open(folder / "config.json", "rb") as file:
            found = json.loads(file.read(LARGEST))
        return "molecules" if found.get("pipeline") == "MoleculePipeline" else "conformers"
    except (OSError, ValueError, AttributeError):
        return None if "/" in model or path.is_dir() else "conformers"
