"""Whether conformers are possible at all: stereochemistry, physical plausibility, strain.

**Stereochemistry** is read from the coordinates by RDKit and compared with what the molecule specifies: the chiral tag
of every specified tetrahedral centre, and on which sides the stereo atoms of every specified double bond lie.

**PoseBusters** (Buttenschoen et al. 2024, Chem. Sci. 15:3130), its tests of single molecules: sanitisation, lengths
of bonds and angles, clashes, flatness of rings and double bonds, and the energy ratio. A test that gives no answer is
no pass: it is counted apart. Each conformer goes in as a molecule of its own, for the tests look at conformer 0 alone.

**Strain** is the MMFF94 energy of a conformer above that of the minimum that it relaxes to, in kcal/mol.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers, rdMolTransforms

from ..core.errors import DataError
from .drafts import Problem, relax
from .stereo import sense

__all__ = ["Strain", "Verdict", "energies", "pose_busters", "single", "stereo_right", "strain"]

Floats = NDArray[np.float64]

CIS = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
TRANS = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)
TETRAHEDRAL = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)


def single(mol: Chem.Mol, place: int) -> Chem.Mol:
    """A copy of the molecule that has one conformer, that at `place` in the order of its conformers, with id 0."""
    copy = Chem.Mol(mol, True)  # without conformers
    copy.AddConformer(list(mol.GetConformers())[place], assignId=False)
    next(iter(copy.GetConformers())).SetId(0)
    return copy


def stereo_right(mol: Chem.Mol) -> NDArray[np.bool_]:
    """Which of the specified stereo elements each conformer has right.

    Args:
        mol: the molecule as asked for, with conformers; it is not changed.

    Returns:
        (C, S): tetrahedral centres in the order of atoms, then double bonds in that of bonds.
    """
    centres = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetChiralTag() in TETRAHEDRAL]
    doubles = [bond for bond in mol.GetBonds() if bond.GetStereo() in CIS + TRANS and len(bond.GetStereoAtoms()) == 2]
    right = np.zeros((mol.GetNumConformers(), len(centres) + len(doubles)), dtype=bool)
    for i, conformer in enumerate(mol.GetConformers()):
        if centres:
            seen = single(mol, i)
            Chem.AssignAtomChiralTagsFromStructure(seen, 0, replaceExistingTags=True)
            for k, atom in enumerate(centres):
                tag = seen.GetAtomWithIdx(atom).GetChiralTag()
                if tag not in TETRAHEDRAL:  # RDKit reads none off the nitrogen of a small ring
                    tag = sense(seen.GetAtomWithIdx(atom), conformer.GetPositions())
                right[i, k] = tag == mol.GetAtomWithIdx(atom).GetChiralTag()
        for k, bond in enumerate(doubles, start=len(centres)):
            left, other = bond.GetStereoAtoms()
            ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            turn = abs(rdMolTransforms.GetDihedralDeg(conformer, left, *ends, other))
            right[i, k] = turn < 90 if bond.GetStereo() in CIS else turn > 90
    return right


@final
@dataclass(frozen=True)
class Verdict:
    """What PoseBusters said of a conformer.

    Args:
        tests: by name; None where there was no answer.
    """

    tests: dict[str, bool | None]

    @property
    def passed(self) -> bool:
        """Every test passed; one without an answer did not."""
        return bool(self.tests) and all(answer is True for answer in self.tests.values())

    @property
    def unanswered(self) -> bool:
        """Some test gave no answer."""
        return not self.tests or any(answer is None for answer in self.tests.values())


def pose_busters(mol: Chem.Mol) -> list[Verdict]:
    """PoseBusters' tests of every conformer, about 0.3 s each.

    Raises:
        DataError: posebusters is not installed.
    """
    if importlib.util.find_spec("posebusters") is None:
        raise DataError("posebusters is not installed: `pip install posebusters`, or leave its figures out")
    from posebusters import PoseBusters

    config = dict(PoseBusters(config="mol").config)
    modules: list[dict[str, Any]] = []
    for module in config["modules"]:  # one of them is listed twice, once without anything to look at
        if module.get("chosen_binary_test_output") and module not in modules:
            modules.append(module)
    busters = PoseBusters(config=config | {"modules": modules})
    verdicts = []
    for i in range(mol.GetNumConformers()):
        with rdBase.BlockLogs():
            try:
                row = busters.bust([single(mol, i)]).iloc[0]
            except (IndexError, KeyError, RuntimeError, ValueError):  # its own handling of errors may raise
                verdicts.append(Verdict({}))
                continue
        verdicts.append(Verdict({name: _answer(value) for name, value in row.items()}))
    return verdicts


@final
@dataclass(frozen=True)
class Strain:
    """MMFF94 energies of conformers and of the minima that they relax to, kcal/mol, (C,) each.

    NaN where the minimiser did not converge, and everywhere for a molecule that has no parameters.
    """

    energies: Floats
    relaxed: Floats

    @property
    def strain(self) -> Floats:
        """How much is lost on the way, (C,)."""
        return self.energies - self.relaxed


def energies(mol: Chem.Mol) -> Floats:
    """MMFF94 energies of conformers as they are, kcal/mol, (C,); NaN without parameters."""
    with rdBase.BlockLogs():
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        if properties is None:
            return np.full(mol.GetNumConformers(), np.nan)
        fields = [
            rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties, confId=conformer.GetId())
            for conformer in mol.GetConformers()
        ]
        return np.array([field.CalcEnergy() for field in fields])


def strain(mol: Chem.Mol) -> Strain:
    """Strain of every conformer; the molecule is not changed."""
    copy = Chem.Mol(mol)
    found = relax(copy)
    nothing = np.full(mol.GetNumConformers(), np.nan)
    return Strain(energies(mol), nothing if isinstance(found, Problem) else np.asarray(found, dtype=np.float64))


def _answer(value: object) -> bool | None:
    """A cell of the table: True, False, or neither."""
    return bool(value) if isinstance(value, bool | np.bool_) else None
