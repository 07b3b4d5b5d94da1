"""Which molecules are trained on and which are held out, as a pure function of the molecule.

`by_scaffold` keeps whole ring systems apart (Bemis and Murcko 1996, J. Med. Chem. 39, 2887): molecules without rings
train; of the scaffolds, 5 % are for validation and 10 % for the test, chosen by a hash of the scaffold's SMILES. So a
held-out molecule has a ring system that training never saw, whatever part of the data is taken. `by_name` splits at
random by a hash of the molecule's own SMILES.

"""

from __future__ import annotations

import hashlib
from typing import Literal

from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

__all__ = ["TEST", "VALID", "Split", "by_name", "by_scaffold", "scaffold"]

Split = Literal["train", "valid", "test"]

VALID, TEST = 0.05, 0.10
"""Shares that are held out."""


def scaffold(mol: Chem.Mol) -> str:
    """SMILES of the ring systems and what links them, without stereochemistry; empty for a molecule without rings."""
    if not mol.GetRingInfo().NumRings():
        return ""
    core = MurckoScaffold.GetScaffoldForMol(Chem.RemoveHs(mol))
    return Chem.MolToSmiles(core, isomericSmiles=False)


def by_scaffold(mol: Chem.Mol) -> Split:
    """Where a molecule belongs by its ring system."""
    name = scaffold(mol)
    return by_name(name) if name else "train"


def by_name(name: str) -> Split:
    """Where a text belongs: a share VALID of all texts to "valid", TEST to "test"."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    return "valid" if place < VALID else "test" if place < VALID + TEST else "train"
