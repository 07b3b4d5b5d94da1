"""`unmasking.json`: how many tokens a calibrated absorbing model reveals in each of n steps, beside its weights.

    {"format_version": 1, "steps": {"16": [1, 1, 2, …], …}}

Read strictly, as everything in a model's folder: whole numbers >= 1, as many as the key says, all lists of one sum, the
window that they were measured on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.checkpoints import read_json
from ..core.errors import CheckpointError
from ..core.files import write_atomically

__all__ = ["UNMASKING", "read", "write"]

UNMASKING = "unmasking.json"
FORMAT_VERSION = 1
LARGEST = 1 << 24


def write(folder: Path, steps: Mapping[int, tuple[int, ...]]) -> None:
    """Keep the lists in a model's folder, whole or not at all; without any there is no file."""
    path = folder / UNMASKING
    if not steps:
        path.unlink(missing_ok=True)
        return
    table = {str(calls): list(counts) for calls, counts in sorted(steps.items())}
    write_atomically(path, json.dumps({"format_version": FORMAT_VERSION, "steps": table}) + "\n")


def read(folder: Path, window: int) -> dict[int, tuple[int, ...]]:
    """The lists of a model's folder; none where there is no file.

    Args:
        folder: of the model.
        window: of the model, what each list adds up to.

    Raises:
        CheckpointError: the file is not what `write` writes for such a model.
    """
    path = folder / UNMASKING
    if not path.exists():
        return {}
    whole = read_json(path, LARGEST)
    version, table = whole.get("format_version"), whole.get("steps")
    if whole.keys() != {"format_version", "steps"} or version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(f"{path}: not a table of steps of format {FORMAT_VERSION}")
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: steps are no table")
    found: dict[int, tuple[int, ...]] = {}
    for key, counts in table.items():
        if not (isinstance(counts, list) and all(map(positive, counts)) and key == str(len(counts))):
            raise CheckpointError(f"{path}: {key}: not as many whole numbers >= 1 as that")
        if sum(counts) != window:
            raise CheckpointError(f"{path}: {key}: steps for {sum(counts)} tokens, the model has {window}")
        found[len(counts)] = tuple(counts)
    return found


def positive(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
