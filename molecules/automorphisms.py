"""The maps of a molecule onto itself, which `rmsd` takes the least over.

They are the automorphisms of the molecular graph, as in RDKit's `GetBestRMS`: stereochemistry plays no part, and the
terminal oxygens and nitrogens of conjugated groups are alike (nitro, carboxylate; where hydrogens do not count,
carboxylic acids too). They are found once per molecule, by RDKit's substructure search.

The hydrogens of one atom change places without anything else moving, so that the automorphisms are those of the heavy
atoms times the permutations within each group: 6^k for k methyls, which is where enumeration explodes. Up to a limit
the products are written out. Beyond, maps of the heavy atoms and groups of hydrogens are kept apart.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations, product
from typing import final

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from ..core.errors import ArgumentError

__all__ = ["Symmetry", "symmetry"]

Indices = NDArray[np.int64]

LIMIT = 4096  # maps that are tried one by one

TERMINAL = Chem.MolFromSmarts("[O,N;D1;$([O,N;D1]-[*]=[O,N;D1]),$([O,N;D1]=[*]-[O,N;D1])]~[*]")
EITHER = Chem.MolFromSmarts("*-,=*").GetBondWithIdx(0)


@final
@dataclass(frozen=True)
class Symmetry:
    """The maps of a molecule onto itself.

    Args:
        atoms: (n,) the atoms that count.
        maps: (K, n): map k takes atom `atoms[i]` to atom `maps[k, i]`; the first is the identity.
        groups: places in `atoms` of hydrogens that may be permuted besides; empty where the maps hold that already.
        exact: whether this is every map; otherwise distances are upper bounds.
        num_atoms: of the molecule.
    """

    atoms: Indices
    maps: Indices
    groups: tuple[Indices, ...]
    exact: bool
    num_atoms: int


def symmetry(mol: Chem.Mol, *, heavy: bool = True, limit: int = LIMIT) -> Symmetry:
    """Find the maps of a molecule, once for all its conformers.

    Args:
        mol: the molecule; hydrogens count only where they are atoms of their own.
        heavy: compare heavy atoms only, the usual measure of conformers.
        limit: how many maps may be tried for a pair of conformers.

    Raises:
        ArgumentError: a limit below 1, or no atom to compare.
    """
    if limit < 1:
        raise ArgumentError("limit", limit, "a whole number from 1")
    core, hydrogens = _core(mol, heavy)
    if not core:
        raise ArgumentError("mol", Chem.MolToSmiles(mol), "a molecule with heavy atoms" if heavy else "atoms")
    found, complete = _automorphisms(mol, core, None if heavy else hydrogens, limit)
    if heavy:
        return Symmetry(np.array(core), found, (), complete, mol.GetNumAtoms())
    groups = [group for kinds in hydrogens.values() for group in kinds.values()]
    atoms = np.array(core + [h for group in groups for h in group])
    places = {int(atom): i for i, atom in enumerate(atoms)}
    maps = np.array([_carried(row, core, hydrogens) for row in found.tolist()])
    if len(maps) * math.prod(math.factorial(len(group)) for group in groups) <= limit:
        return Symmetry(atoms, _permuted(maps, len(core), groups), (), complete, mol.GetNumAtoms())
    free = tuple(np.array([places[h] for h in group]) for group in groups if len(group) > 1)
    return Symmetry(atoms, maps, free, False, mol.GetNumAtoms())


Hydrogens = dict[int, dict[int, list[int]]]
"""The hydrogens of each atom by their isotope."""


def _core(mol: Chem.Mol, heavy: bool) -> tuple[list[int], Hydrogens]:
    """The atoms that are mapped by search, and the hydrogens that go with them."""
    hydrogens: Hydrogens = defaultdict(lambda: defaultdict(list))
    core: list[int] = []
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() != 1:
            core.append(atom.GetIdx())
            continue
        around = atom.GetNeighbors()
        if len(around) == 1 and around[0].GetAtomicNum() != 1:
            hydrogens[around[0].GetIdx()][atom.GetIsotope()].append(atom.GetIdx())
        elif not heavy:
            core.append(atom.GetIdx())  # of H2, bridges: no group of their own
    return core, hydrogens


def _automorphisms(mol: Chem.Mol, core: list[int], hydrogens: Hydrogens | None, limit: int) -> tuple[Indices, bool]:
    """Maps of the core onto itself, (K, len(core)) in atoms of the molecule, and whether these are all.

    Where hydrogens are given, an atom goes only onto one with as many of each isotope.
    """
    skeleton = Chem.RWMol(mol)
    for atom in skeleton.GetAtoms():
        atom.SetIntProp("_place", atom.GetIdx())
    if hydrogens is None:
        _relax(query := Chem.RWMol(_without(skeleton, core)))
        target = _without(skeleton, core)
    else:
        kinds: dict[object, int] = {}
        for i in core:
            atom = skeleton.GetAtomWithIdx(i)
            kind = (atom.GetIsotope(), tuple(sorted((k, len(group)) for k, group in hydrogens.get(i, {}).items())))
            atom.SetIsotope(kinds.setdefault(kind, len(kinds) + 1))  # an isotope is a label that the search respects
        target = _without(skeleton, core)
        _relax(skeleton)
        query = _without(skeleton, core)
    names = [atom.GetIntProp("_place") for atom in target.GetAtoms()]
    assert names == core
    found = target.GetSubstructMatches(query, uniquify=False, useChirality=False, maxMatches=limit + 1)
    identity = tuple(range(len(core)))
    rows = [identity] + [match for match in found if match != identity]
    return np.array(core)[np.array(rows[:limit])], len(rows) <= limit


def _without(mol: Chem.RWMol, kept: list[int]) -> Chem.RWMol:
    """A copy that has the given atoms only, in their order."""
    copy, keep = Chem.RWMol(mol), set(kept)
    copy.BeginBatchEdit()
    for i in range(mol.GetNumAtoms()):
        if i not in keep:
            copy.RemoveAtom(i)
    copy.CommitBatchEdit()
    return copy


def _relax(query: Chem.RWMol) -> None:
    """Let single and double bonds to the ends of conjugated groups match one another."""
    for end, middle in query.GetSubstructMatches(TERMINAL):
        query.GetAtomWithIdx(end).SetFormalCharge(0)
        query.ReplaceBond(query.GetBondBetweenAtoms(end, middle).GetIdx(), EITHER, preserveProps=False)


def _carried(row: list[int], core: list[int], hydrogens: Hydrogens) -> list[int]:
    """A map of the core, completed by the hydrogens in the order in which they stand."""
    images = dict(zip(core, row, strict=True))
    ends = [h for atom, kinds in hydrogens.items() for kind in kinds for h in hydrogens[images[atom]][kind]]
    return [*row, *ends]


def _permuted(maps: Indices, start: int, groups: list[list[int]]) -> Indices:
    """Every map with every permutation within the groups, which lie one after another from `start`."""
    choices = [list(permutations(range(len(group)))) for group in groups]
    offsets = start + np.cumsum([0, *map(len, groups)])[:-1]
    order = np.array(
        [
            [*range(start), *(o + i for o, one in zip(offsets, each, strict=True) for i in one)]
            for each in product(*choices)
        ],
        dtype=np.int64,
    )
    return maps[:, order].reshape(-1, maps.shape[1])
