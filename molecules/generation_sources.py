"""Data sets of whole molecules by name or file, from the same sources as conformers (`sources`).

References are taken as they are, the first of each molecule; of molecules that come as SMILES the best of a few minima
of MMFF94 is made.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from ..core.downloads import data_folder
from ..core.errors import ArgumentError, DataError
from .drafts import Problem, embed, relax
from .generation_data import Molecules
from .preparing import Entry
from .readers import from_file
from .sources import NAMES
from .splits import Split
from .stability import VALENCIES, Atoms

__all__ = ["geometry", "load"]

ATTEMPTS = 4
"""Conformers of which the one of least energy is kept."""


def load(
    source: str | os.PathLike[str],
    split: Split = "train",
    *,
    data_root: str | os.PathLike[str] | None = None,
    count: int | None = None,
    scale: float | None = None,
) -> Molecules:
    """A data set by name, or from the user's own file.

    Args:
        source: "small" (no download), "mini-qm9", "qm9", or a path: `.sdf` with 3-D conformers, or SMILES.
        split: "train", "valid" or "test", as for conformers: held-out molecules have other ring systems.
        data_root: where the named sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff].
        count: molecules at most, the first of a fixed random order.
        scale: as `Molecules`; give a model's own for data that it is to be measured on.

    Raises:
        DataError: names the file or set at fault and the way out. ArgumentError: split or count.
    """
    if split not in get_args(Split):
        raise ArgumentError("split", split, "'train', 'valid' or 'test'")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ArgumentError("count", count, "a positive number")
    own, path = NAMES.get(str(source)), Path(source).expanduser()
    if own is None and not path.is_file():
        raise DataError(f"{source}: no file, and no data set of that name; there are {', '.join(NAMES)}")
    found = from_file(path) if own is None else own(data_folder(data_root))
    entries = (entry for entry in found.entries(split, count) if isinstance(entry, Entry))
    made = [atoms for atoms in map(geometry, entries) if atoms is not None]
    if not made:
        raise DataError(f"{found.name}: no molecules in the split {split}")
    return Molecules(made, found.name, scale=scale)


def geometry(entry: Entry) -> Atoms | None:
    """A molecule's geometry; None where it has none and none can be made, or an element is not known."""
    elements = tuple(atom.GetSymbol() for atom in entry.mol.GetAtoms())
    if not set(elements) <= VALENCIES.keys():
        return None
    if entry.references is not None:
        return Atoms(elements, torch.from_numpy(entry.references[0]).double())
    mol = embed(entry.mol, ATTEMPTS)
    if isinstance(mol, Problem):
        return None
    energies = relax(mol)
    if isinstance(energies, Problem):
        return None
    if not np.isfinite(energies).any():
        return None
    return Atoms(elements, torch.from_numpy(mol.GetConformers()[int(np.nanargmin(energies))].GetPositions().copy()))
