"""The stereochemistry that a molecule asks for, and whether positions have it.

What is asked are the tetrahedral centres and double bonds that are specified in the graph, each for itself: a meso
compound's centres too, and pseudo-asymmetric ones, whose labels depend on other labels. Each centre is compared by the
turning sense of its neighbours in the order of its bonds, which needs no priorities (labels R and S would), and each
double bond by the side on which its two reference atoms lie. Whatever is not specified may be anything.

RDKit reads the turning senses off the positions, from three neighbours; a centre that is nearly flat has none and does
not pass, nor one whose fourth neighbour lies on the side of the other three (a hydrogen that slipped through), nor a
double bond turned by more than 60 degrees. The canonical SMILES read off positions that pass is the one asked for.
"""

from __future__ import annotations

import numpy as np
from rdkit import Chem
from rdkit.Geometry import Point3D

__all__ = ["asked", "conformer", "has_stereo", "keeps_stereo", "read_smiles"]

CHIRAL = (Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW)
CIS = (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS)
TRANS = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS)
FLAT = 0.1  # volume of the unit vectors to three neighbours below which a centre has no turning sense
UPRIGHT = 0.5  # cosine of the largest turn of a double bond


def asked(mol: Chem.Mol) -> tuple[list[int], list[int]]:
    """Numbers of the specified tetrahedral centres, and of the specified double bonds."""
    centres = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetChiralTag() in CHIRAL]
    bonds = [bond.GetIdx() for bond in mol.GetBonds() if bond.GetStereo() in CIS + TRANS]
    return centres, bonds


def has_stereo(mol: Chem.Mol) -> bool:
    """Whether anything is specified."""
    return any(asked(mol))


def keeps_stereo(mol: Chem.Mol, positions: np.ndarray) -> bool:
    """Whether positions have every specified centre and double bond as the molecule asks.

    Args:
        mol: with explicit hydrogens; its own conformers are not looked at.
        positions: (N, 3).
    """
    centres, bonds = asked(mol)
    if not np.isfinite(positions).all():
        return False
    if centres:
        found = Chem.Mol(mol, confId=-2)  # none of its conformers
        found.RemoveAllConformers()
        found.AddConformer(conformer(positions), assignId=True)
        Chem.AssignAtomChiralTagsFromStructure(found, replaceExistingTags=True)
        for i in centres:
            atom, wanted = found.GetAtomWithIdx(i), mol.GetAtomWithIdx(i).GetChiralTag()
            tag = atom.GetChiralTag()
            if (tag if tag in CHIRAL else sense(atom, positions)) != wanted or not agree(atom, positions, wanted):
                return False
    return all(side(mol.GetBondWithIdx(i), positions) for i in bonds)


def sense(atom: Chem.Atom, positions: np.ndarray) -> Chem.ChiralType:
    """The turning sense of a centre with three neighbours and a lone pair, also where RDKit holds it for fleeting: a
    nitrogen in a small ring."""
    around = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
    if len(around) != 3:
        return Chem.ChiralType.CHI_UNSPECIFIED
    arms = positions[around] - positions[atom.GetIdx()]
    volume = float(np.linalg.det(arms / np.maximum(np.linalg.norm(arms, axis=1, keepdims=True), 1e-12)))
    if abs(volume) < FLAT:
        return Chem.ChiralType.CHI_UNSPECIFIED
    return CHIRAL[1] if volume > 0 else CHIRAL[0]


def agree(atom: Chem.Atom, positions: np.ndarray, wanted: Chem.ChiralType) -> bool:
    """Whether all four triples of a centre's four neighbours turn in the sense wanted."""
    around = [bond.GetOtherAtomIdx(atom.GetIdx()) for bond in atom.GetBonds()]
    if len(around) != 4:
        return True
    a, b, c, d = positions[around] - positions[atom.GetIdx()]
    volumes = np.linalg.det(np.array([[a, b, c], [a, d, b], [a, c, d], [b, d, c]]))
    return bool((volumes > 0).all() if wanted == CHIRAL[1] else (volumes < 0).all())


def side(bond: Chem.Bond, positions: np.ndarray) -> bool:
    """Whether the reference atoms of a specified double bond lie on the sides asked for."""
    i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    a, b = bond.GetStereoAtoms()
    axis = positions[j] - positions[i]
    axis = axis / max(float(np.linalg.norm(axis)), 1e-12)
    first, second = positions[a] - positions[i], positions[b] - positions[j]
    first, second = first - axis * (first @ axis), second - axis * (second @ axis)
    cosine = float(first @ second) / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-12)
    return cosine > UPRIGHT if bond.GetStereo() in CIS else cosine < -UPRIGHT


def conformer(positions: np.ndarray) -> Chem.Conformer:
    """A conformer of RDKit at positions (N, 3) in Angstrom."""
    made = Chem.Conformer(len(positions))
    made.Set3D(True)
    for i, (x, y, z) in enumerate(positions.tolist()):
        made.SetAtomPosition(i, Point3D(x, y, z))
    return made


def read_smiles(mol: Chem.Mol, conf_id: int = -1) -> str:
    """The canonical SMILES of a conformer's own stereochemistry, as far as the molecule specifies any.

    Compared with that of the molecule this is a second opinion on `keeps_stereo`, by labels and not by turning senses.
    """
    found = Chem.Mol(mol)
    centres, bonds = asked(mol)
    Chem.AssignStereochemistryFrom3D(found, conf_id, replaceExistingTags=True)
    for atom in found.GetAtoms():
        if atom.GetIdx() not in centres:
            atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    for bond in found.GetBonds():
        if bond.GetIdx() not in bonds:
            bond.SetStereo(Chem.BondStereo.STEREONONE)
    return Chem.MolToSmiles(Chem.RemoveHs(found))
