"""Whole molecules to learn from: elements and positions, ragged, in memory.

A batch is `{"x_0": (positions, types), "structure": {...}, "index": ...}`: rows of all its molecules one after another,
positions centred and in units of `scale`. By default that unit is the root mean square of the centred coordinates per
degree of freedom, so that positions have about the size of their noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.errors import ArgumentError, DataError
from .generation_model import LARGEST, structure_of
from .stability import VALENCIES, Atoms, by_lengths, name_of

__all__ = ["Molecules"]


@final
class Molecules(Dataset[dict[str, Any]]):
    """Molecules without bonds.

    Args:
        molecules: at least one, each of at most `generation_model.LARGEST` atoms.
        name: of the set, for messages and cards.
        elements: symbols in the order of the types; None for those that occur, in the order of the periodic table.
        scale: Angstrom in one unit of positions; None as the module's docstring says.

    Attributes:
        elements, scale, name: as above.
        counts: how often each element occurs.
        sizes: how many molecules have 0, 1, 2, ... atoms.

    Raises:
        DataError: nothing there, an element that is not known, a molecule too large.
    """

    def __init__(
        self,
        molecules: Iterable[Atoms],
        name: str,
        *,
        elements: Sequence[str] | None = None,
        scale: float | None = None,
    ):
        every = list(molecules)
        seen = {element for one in every for element in one.elements}
        self.elements = tuple(e for e in VALENCIES if e in seen) if elements is None else tuple(elements)
        if strange := sorted(seen - set(self.elements)):
            raise DataError(f"{name}: elements {', '.join(strange)}; known are {', '.join(elements or VALENCIES)}")
        lengths = torch.tensor([len(one.elements) for one in every], dtype=torch.long)
        if not len(lengths) or not 1 <= int(lengths.min()) <= int(lengths.max()) <= LARGEST:
            raise DataError(f"{name}: no molecules, or one that is empty or has more than {LARGEST} atoms")
        place = {element: number for number, element in enumerate(self.elements)}
        self.name = name
        self.lengths = lengths
        self.ends = lengths.cumsum(0)
        self.types = torch.tensor([place[e] for one in every for e in one.elements])
        index = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        x = torch.cat([one.positions.double() for one in every])
        x -= (torch.zeros(len(lengths), 3, dtype=x.dtype).index_add(0, index, x) / lengths[:, None])[index]
        if not bool(x.isfinite().all()):
            raise DataError(f"{name}: positions that are not finite numbers")
        freedom = max(3 * int((lengths - 1).sum()), 1)
        self.scale = (float(x.square().sum() / freedom) ** 0.5 or 1.0) if scale is None else float(scale)
        if not self.scale > 0:
            raise ArgumentError("scale", scale, "Angstrom, a positive number")
        self.positions = (x / self.scale).float()

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(torch.bincount(self.types, minlength=len(self.elements)).tolist())

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(torch.bincount(self.lengths).tolist())

    @cached_property
    def names(self) -> frozenset[str]:
        """What `stability.figures` calls known: names of the molecules by the lengths of their bonds."""
        read = (by_lengths(self.atoms(i)) for i in range(len(self)))
        return frozenset(name_of(mol) for mol in read if mol is not None)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.batch([index])

    def rows(self, index: int) -> slice:
        """Where a molecule's rows are among all."""
        end = int(self.ends[index])
        return slice(end - int(self.lengths[index]), end)

    def atoms(self, index: int) -> Atoms:
        """One molecule, centred, in Angstrom."""
        rows = self.rows(index)
        elements = tuple(self.elements[t] for t in self.types[rows].tolist())
        return Atoms(elements, self.positions[rows].double() * self.scale)

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Any]:
        """Many molecules at once.

        Returns:
            "x_0": positions (rows, 3) float32 and types (rows,) long; "structure": for the product kernel's `given`;
            "index": whose row is whose, (rows,) long.
        """
        rows = [self.rows(int(i)) for i in indices]
        x = torch.cat([self.positions[one] for one in rows])
        types = torch.cat([self.types[one] for one in rows])
        structure = structure_of([one.stop - one.start for one in rows])
        return {"x_0": (x, types), "structure": structure, "index": structure["part_0"]["index"]}

    def fingerprint(self) -> str:
        """SHA-256 over everything that a batch is made of, by which a resumed run knows its data."""
        digest = hashlib.sha256(f"{self.elements} {self.scale!r}".encode())
        for tensor in (self.lengths, self.types, self.positions):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
