"""What drawing whole molecules takes and gives: options, likelihoods, and molecules of RDKit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias, TypedDict

import torch
from rdkit import Chem
from torch import Tensor

from ..core.errors import ArgumentError
from ..core.sampling import Step
from .stability import Atoms, Perceive, skeleton

__all__ = ["STATUS", "How", "Likelihood", "Sampler", "State", "atoms_of", "molecule", "parted"]

STATUS = "status"
"""Property of the molecules that a pipeline gives: ok, or invalid where bonds cannot be made out."""

State: TypeAlias = tuple[Tensor, Tensor]
"""Positions (rows, 3) in units of the model's scale, types (rows,) long."""

Sampler: TypeAlias = Callable[..., Iterator[Step[State]]]


class How(TypedDict, total=False):
    """The keywords of drawing."""

    steps: int
    """Network calls, 250 by default."""
    sampler: Sampler
    """For any kernel, `sampler(denoise, kernel, x, times, generator=)`; ancestral by default."""
    seed: int
    """0 by default."""
    first: int
    """Number of the first molecule, 0 by default: calls with first = 0 and first = 100 do not repeat each other."""
    batch_size: int
    """Molecules that pass through the network at once, 64 by default."""


class Likelihood(NamedTuple):
    """An upper bound on -log p of one molecule, in nats."""

    nats: float
    """-log p(positions, types | N): a density in Angstrom^-3(N - 1) of centred positions times a probability of types;
    atoms are labelled."""
    size: float
    """-log p(N) by the histogram, infinite for a size that the training set lacks."""
    dof: int
    """3 (N - 1)"""
    atoms: int
    """N"""

    @property
    def bits(self) -> float:
        """`nats` in bits."""
        return self.nats / math.log(2)

    @property
    def unlabelled(self) -> float:
        """The same for atoms without labels: N! orders of one molecule, all equally likely, add up."""
        return self.nats - math.lgamma(self.atoms + 1)


def parted(count: int, width: int) -> Iterator[range]:
    """0 ... count - 1 in stretches of `width`."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ArgumentError("batch_size", width, "an integer >= 1")
    return (range(start, min(start + width, count)) for start in range(0, count, width))


def atoms_of(mol: Chem.Mol) -> Atoms:
    """Elements and positions of a molecule's first conformer.

    Raises:
        ArgumentError: a molecule without positions.
    """
    if not mol.GetNumConformers() or not mol.GetNumAtoms():
        raise ArgumentError("mol", "a molecule without positions", "a molecule with a conformer")
    positions = torch.from_numpy(mol.GetConformer().GetPositions().copy()).double()
    return Atoms(tuple(atom.GetSymbol() for atom in mol.GetAtoms()), positions)


def molecule(atoms: Atoms, bonds: Perceive) -> Chem.Mol:
    """The molecule with its bonds, or without any, as its status says."""
    found = bonds(atoms)
    mol = skeleton(atoms).GetMol() if found is None else found
    mol.SetProp(STATUS, "invalid" if found is None else "ok")
    return mol
