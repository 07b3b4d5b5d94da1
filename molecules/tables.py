"""Prepared molecules as tables: made, joined, kept and read.

A table is a plain dictionary of arrays: per molecule `name`, `level`, `pairs`, and the numbers `atoms`, `bonds`,
`centres`, `references`, `bytes` of its rows in `atom`, `edge`, `bond`, `chiral`, `draft`, `target` (D times N rows),
`reference` (K times N rows), `energy`, `mol` (RDKit's own binary form). Failures are rows of `problem`.
"""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.files import write_atomically
from .graphs import ATOM_SIZES, EDGE_SIZES

__all__ = ["Table", "join", "nothing", "read", "write"]

Table = dict[str, np.ndarray]


def nothing() -> Table:
    """A table without rows."""
    whole = ("atoms", "bonds", "centres", "references", "bytes", "level", "pairs")
    small = {"atom": (np.uint8, len(ATOM_SIZES)), "edge": (np.uint8, len(EDGE_SIZES)), "bond": (np.int16, 2)}
    small |= {"chiral": (np.int16, 5), **dict.fromkeys(("draft", "target", "reference"), (np.float32, 3))}
    return {
        "name": np.empty(0, dtype="U1"),
        **{key: np.empty(0, dtype=np.int64) for key in whole},
        **{key: np.empty((0, width), dtype=kind) for key, (kind, width) in small.items()},
        "energy": np.empty(0),
        "mol": np.empty(0, dtype=np.uint8),
        "problem": np.empty((0, 3), dtype="U1"),
    }


def join(tables: Sequence[Table]) -> Table:
    """Tables one after another."""
    return {key: np.concatenate([empty, *(table[key] for table in tables)]) for key, empty in nothing().items()}


def read(path: Path) -> Table | None:
    """A kept table; None if there is none, or none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in nothing()}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def write(path: Path, table: Table) -> bool:
    """Keep a table; whether that worked."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **table)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        warnings.warn(f"{path}: prepared molecules could not be kept ({error})", stacklevel=2)
        return False
    return True
