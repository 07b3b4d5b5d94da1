r"""How good molecules without given bonds are: bonds read off distances, stable atoms, validity, uniqueness, novelty.

Published figures of unconditional 3-D generation all rest on one reading (Hoogeboom et al. 2022, "Equivariant Diffusion
for Molecule Generation in 3D", section 5 and appendix E): two atoms at distance d picometres are joined by

    order 1 where d < single + 10,  order 2 where also d < double + 5,  order 3 where also d < triple + 3,

with the typical lengths of chemistry's tables; a higher order counts only where the lower ones hold. An atom is stable
if its orders sum to the valency of its neutral element; a molecule is stable if all its atoms are. A molecule is valid
if RDKit accepts the graph of those orders, and its name is the canonical SMILES of its largest fragment.

The reading has blind spots that one must know. It knows no charges, so zwitterions are unstable. It knows no aromatic
bonds: those of benzene (139.5 pm) lie a hair above the limit of C=C (139), so that its carbons count as unstable, and
QM9's own geometries reach about 95 %, not 100 %, of stable molecules. `determined` reads the same bonds but lets RDKit
solve for orders that fit the valencies (Kim and Kim 2015, xyz2mol): what users want, and not what papers report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from rdkit import Chem, RDLogger
from rdkit.Chem import rdDetermineBonds
from rdkit.Geometry import Point3D
from torch import Tensor

from ..core.errors import ArgumentError

__all__ = [
    "VALENCIES",
    "Atoms",
    "Figures",
    "Perceive",
    "bond_orders",
    "by_lengths",
    "determined",
    "figures",
    "name_of",
    "skeleton",
    "stable_atoms",
]


class Atoms(NamedTuple):
    """A molecule without bonds."""

    elements: tuple[str, ...]
    """symbols of N atoms"""
    positions: Tensor
    """(N, 3) in Angstrom"""


Perceive: TypeAlias = Callable[[Atoms], Chem.Mol | None]
"""Bonds from a geometry: a sanitised molecule with one conformer, or None where none can be made out."""

VALENCIES: dict[str, tuple[int, ...]] = {
    "H": (1,), "B": (3,), "C": (4,), "N": (3,), "O": (2,), "F": (1,),
    "Si": (4,), "P": (3, 5), "S": (4,), "Cl": (1,), "Br": (1,), "I": (1,),
}  # fmt: skip
"""Bonds of neutral elements, as the published figures count them (sulphur: 4)."""

# Typical lengths in picometres, from the tables of bond lengths and energies of general chemistry.
SINGLE: dict[str, dict[str, int]] = {
    "H": {"H": 74, "B": 119, "C": 109, "N": 101, "O": 96, "F": 92, "Si": 148, "P": 144, "S": 134, "Cl": 127,
          "Br": 141, "I": 161},
    "B": {"Cl": 175},
    "C": {"C": 154, "N": 147, "O": 143, "F": 135, "Si": 185, "P": 184, "S": 182, "Cl": 177, "Br": 194, "I": 214},
    "N": {"N": 145, "O": 140, "F": 136, "P": 177, "S": 168, "Cl": 175, "Br": 214, "I": 222},
    "O": {"O": 148, "F": 142, "Si": 163, "P": 163, "S": 151, "Cl": 164, "Br": 172, "I": 194},
    "F": {"F": 142, "Si": 160, "P": 156, "S": 158, "Cl": 166, "Br": 178, "I": 187},
    "Si": {"Si": 233, "S": 200, "Cl": 202, "Br": 215, "I": 243},
    "P": {"P": 221, "S": 210, "Cl": 203, "Br": 222},
    "S": {"S": 204, "Cl": 207, "Br": 225, "I": 234},
    "Cl": {"Cl": 199, "Br": 214},
    "Br": {"Br": 228},
    "I": {"I": 266},
}  # fmt: skip
DOUBLE: dict[str, dict[str, int]] = {
    "C": {"C": 134, "N": 129, "O": 120, "S": 160}, "N": {"N": 125, "O": 121}, "O": {"O": 121, "P": 150},
    "P": {"S": 186},
}  # fmt: skip
TRIPLE: dict[str, dict[str, int]] = {"C": {"C": 120, "N": 116, "O": 113}, "N": {"N": 110}}
MARGINS = (10, 5, 3)
"""Picometres above the typical length of a single, double, triple bond."""
KNOWN = tuple(VALENCIES)
BOND_TYPES = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
LARGEST_ITERATIONS = 10_000
"""Combinations of valencies that `determined` tries, a fraction of a second; hopeless geometries have millions."""


def limits() -> Tensor:
    """(3, E, E) Angstrom: below these the orders 1, 2, 3 hold; 0 where there is no such bond."""
    table = torch.zeros(3, len(KNOWN), len(KNOWN), dtype=torch.float64)
    for order, (lengths, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), MARGINS, strict=True)):
        for one, others in lengths.items():
            for other, length in others.items():
                i, j = KNOWN.index(one), KNOWN.index(other)
                table[order, i, j] = table[order, j, i] = (length + margin) / 100
    return table


LIMITS = limits()


def bond_orders(atoms: Atoms) -> Tensor:
    """Orders of all bonds by their lengths, (N, N) long, 0 where there is none.

    Raises:
        ArgumentError: an element that the table does not hold, or positions of another shape.
    """
    check_atoms(atoms)
    kind = torch.tensor([KNOWN.index(element) for element in atoms.elements])
    positions = atoms.positions.detach().to("cpu", torch.float64)
    # Differences, not the expanded square: that would lose the third decimal far from the origin.
    distances = (positions.unsqueeze(1) - positions).norm(dim=-1)
    holds = distances < LIMITS[:, kind.unsqueeze(1), kind]
    return holds.long().cumprod(0).sum(0).fill_diagonal_(0)


def stable_atoms(atoms: Atoms, orders: Tensor | None = None) -> Tensor:
    """Which atoms have the bonds that their elements ask for, (N,) bool; `orders` those of `bond_orders`."""
    sums = (bond_orders(atoms) if orders is None else orders).sum(1).tolist()
    return torch.tensor(
        [total in VALENCIES[element] for total, element in zip(sums, atoms.elements, strict=True)], dtype=torch.bool
    )


def skeleton(atoms: Atoms) -> Chem.RWMol:
    """The atoms with their positions as one conformer, no bonds, no implicit hydrogens."""
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(atoms.elements))
    conformer.Set3D(True)
    for place, (element, position) in enumerate(zip(atoms.elements, atoms.positions.tolist(), strict=True)):
        mol.AddAtom(Chem.Atom(element))
        conformer.SetAtomPosition(place, Point3D(*position))
    mol.AddConformer(conformer, assignId=True)
    return mol


def by_lengths(atoms: Atoms) -> Chem.Mol | None:
    """Bonds by the table of lengths, as published figures have it; missing valencies count as implicit hydrogens."""
    orders = bond_orders(atoms)
    mol = skeleton(atoms)
    for i, j in orders.triu().nonzero().tolist():
        mol.AddBond(i, j, BOND_TYPES[int(orders[i, j])])
    return sanitised(mol)


def determined(atoms: Atoms) -> Chem.Mol | None:
    """Bonds where the lengths say so, of orders that RDKit finds to fit a neutral molecule's valencies.

    The table says who is bonded, since RDKit's own radii also join atoms across small cages. Charges within the
    molecule are allowed; stereochemistry is that of the geometry. None where no assignment exists, or atoms would be
    left as radicals or unconnected.
    """
    orders = bond_orders(atoms)
    mol = skeleton(atoms)
    for i, j in orders.triu().nonzero().tolist():
        mol.AddBond(i, j, Chem.BondType.SINGLE)
    if len(Chem.GetMolFrags(mol)) > 1:
        return None
    with Quiet():
        try:
            rdDetermineBonds.DetermineBondOrders(mol, charge=0, maxIterations=LARGEST_ITERATIONS)
        except (ValueError, RuntimeError):
            return None
    found = sanitised(mol)
    if found is None or any(atom.GetNumRadicalElectrons() for atom in found.GetAtoms()):
        return None
    Chem.AssignStereochemistryFrom3D(found)
    return found


def sanitised(mol: Chem.RWMol) -> Chem.Mol | None:
    """The molecule as RDKit accepts it, or None."""
    found = mol.GetMol()
    with Quiet():
        try:
            Chem.SanitizeMol(found)
        except ValueError:
            return None
    return found


class Quiet:
    """RDKit's log is silent inside: what cannot be sanitised is counted, not printed."""

    def __enter__(self) -> None:
        self.block = RDLogger.logger() and Chem.rdBase.BlockLogs()

    def __exit__(self, *_: object) -> None:
        del self.block


def name_of(mol: Chem.Mol) -> str:
    """Canonical SMILES of the largest fragment without stereochemistry. Hydrogens stay atoms, so that one whose bonds
    were read as too few is no other molecule."""
    largest = max(Chem.GetMolFrags(mol, asMols=True), key=lambda part: part.GetNumAtoms())
    return Chem.MolToSmiles(largest, isomericSmiles=False)


@dataclass(frozen=True)
class Figures:
    """Shares in [0, 1] over a set of generated molecules; NaN where nothing is left to count."""

    count: int
    """Molecules generated, the failures among them."""
    atoms_stable: float
    """Of all atoms."""
    molecules_stable: float
    """Of all molecules: every atom stable."""
    valid: float
    """Of all molecules."""
    connected: float
    """Of all molecules: valid, and in one piece."""
    unique: float
    """Different names, of the valid ones."""
    novel: float
    """Names that the training set lacks, of the different ones; NaN without a training set."""


def figures(
    molecules: Iterable[Atoms | None], *, perceive: Perceive = by_lengths, known: Collection[str] | None = None
) -> Figures:
    """The published figures of a set of molecules.

    Args:
        molecules: geometries; None for one that was asked for and failed, which counts as unstable and invalid.
        perceive: how bonds are read for validity; stability always goes by lengths.
        known: names of the training set, each from `name_of`.
    """
    count = atoms = stable = whole = connected = 0
    names: list[str] = []
    for one in molecules:
        count += 1
        if one is None:
            continue
        there = stable_atoms(one)
        atoms, stable, whole = atoms + len(there), stable + int(there.sum()), whole + bool(there.all())
        if (mol := perceive(one)) is not None:
            names.append(name_of(mol))
            connected += len(Chem.GetMolFrags(mol)) == 1
    different = set(names)
    novel = share(sum(name not in known for name in different), len(different)) if known is not None else float("nan")
    return Figures(
        count,
        share(stable, atoms),
        share(whole, count),
        share(len(names), count),
        share(connected, count),
        share(len(different), len(names)),
        novel,
    )


def share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def check_atoms(atoms: Atoms) -> None:
    """An ArgumentError unless every element is known and has a finite position."""
    unknown: Sequence[str] = sorted(set(atoms.elements) - set(KNOWN))
    if unknown or not atoms.elements:
        raise ArgumentError("elements", unknown or atoms.elements, f"at least one atom, all of {', '.join(KNOWN)}")
    if atoms.positions.shape != (len(atoms.elements), 3) or not bool(atoms.positions.isfinite().all()):
        raise ArgumentError("positions", atoms.positions, f"finite numbers of shape ({len(atoms.elements)}, 3)")
