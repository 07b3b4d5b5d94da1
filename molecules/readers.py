"""Molecules from files: conformers in SDF, or SMILES, as streams of molecules to prepare."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from ..core.errors import DataError
from .drafts import Problem, parse
from .preparing import Broken, Entry
from .splits import Split, by_name

__all__ = ["Source", "from_file", "shuffled", "smiles_source", "smiles_table", "with_geometry"]


@dataclass(frozen=True)
class Source:
    """Molecules of one split.

    Attributes:
        name: of the set.
        key: what distinguishes its contents; part of the key under which prepared molecules are kept.
        levels: that its references have (names).
        entries: the molecules of a split, in a fixed order, at most so many; what fails comes as (name, Problem).
    """

    name: str
    key: str
    levels: tuple[str, ...]
    entries: Callable[[Split, int | None], Iterator[Entry | Broken]]


def with_geometry(name: str, mols: Sequence[Chem.Mol]) -> Entry | Broken:
    """A molecule of which conformers are given; all have the same atoms in the same order."""
    mol = Chem.Mol(mols[0])
    if not mol.GetNumAtoms():
        return name, Problem("invalid", "no atoms")
    if len(Chem.GetMolFrags(mol)) > 1:
        return name, Problem("disconnected", f"{len(Chem.GetMolFrags(mol))} parts")
    if any(atom.GetNumImplicitHs() or atom.GetNumExplicitHs() for atom in mol.GetAtoms()):
        return name, Problem("invalid", "hydrogens are missing; the geometry must have all atoms")
    Chem.AssignStereochemistryFrom3D(mol)
    return Entry(name, mol, np.stack([other.GetConformer().GetPositions() for other in mols]))


def shuffled(places: np.ndarray) -> list[int]:
    """A fixed order, so that a part of a set is like the whole."""
    return np.random.default_rng(0).permutation(places).tolist()


def from_file(path: Path) -> Source:
    """The user's own molecules: `.sdf` with conformers as references, or SMILES (`.smi`, `.txt`, `.csv`).

    SDF: records that follow each other with one title and the same atoms are conformers of one molecule. SMILES: one a
    line, a name may follow; of a table the column `smiles`. Split at random by molecule.
    """
    suffix = "".join(Path(path.name.removesuffix(".gz")).suffixes[-1:]).lower()
    if suffix == ".sdf":
        return sdf_source(path)
    if suffix in (".smi", ".txt", ".csv"):
        table = smiles_table(path)
        if not table:
            raise DataError(f"{path}: no molecules")
        return smiles_source(path.stem, table)
    raise DataError(f"{path}: expected .sdf (conformers), or .smi, .txt or .csv of SMILES")


def smiles_table(path: Path) -> list[tuple[str, str]]:
    """(name, SMILES) of each line or row."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
    if ".csv" in path.suffixes:
        table = csv.DictReader(io.StringIO(text))
        columns = {name.strip().lower(): name for name in table.fieldnames or ()}
        if "smiles" not in columns:
            raise DataError(f"{path}: no column smiles; it has {', '.join(columns) or 'nothing'}")
        rows = list(table)
        given = columns.get("name") or columns.get("id")
        return [(row[given] if given else row[columns["smiles"]], row[columns["smiles"]] or "") for row in rows]
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(words[-1].strip(), words[0]) for words in lines]


def smiles_source(name: str, table: Sequence[tuple[str, str]]) -> Source:
    """Molecules as SMILES, of which ensembles are made; equal molecules go to one split."""
    content = hashlib.sha256(repr(list(table)).encode()).hexdigest()[:16]

    def entries(split: Split, count: int | None) -> Iterator[Entry | Broken]:
        taken = 0
        for place in shuffled(np.arange(len(table))):
            if count is not None and taken >= count:
                return
            title, smiles = table[place]
            mol = parse(smiles)
            if isinstance(mol, Problem):
                where, made = "train", (title, mol)
            else:
                where, made = by_name(Chem.MolToSmiles(Chem.RemoveHs(mol))), Entry(title, mol, relaxed=True)
            if where == split:
                taken += 1
                yield made

    return Source(name, f"{name} smiles {content}", ("MMFF94",), entries)


def sdf_source(path: Path) -> Source:
    """Conformers from an SDF file, whose bonds and geometry say the stereochemistry."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    with rdBase.BlockLogs():
        mols = list(Chem.ForwardSDMolSupplier(io.BytesIO(data), removeHs=False))
    if not mols:
        raise DataError(f"{path}: no molecules")
    groups: list[tuple[str, list[Chem.Mol | None]]] = []
    for place, mol in enumerate(mols):
        title = mol.GetProp("_Name").strip() if mol is not None and mol.HasProp("_Name") else ""
        if mol is not None and groups and title and groups[-1][0] == title and alike(groups[-1][1][0], mol):
            groups[-1][1].append(mol)
        else:
            groups.append((title or f"record {place + 1}", [mol]))

    def entries(split: Split, count: int | None) -> Iterator[Entry | Broken]:
        taken = 0
        for place in shuffled(np.arange(len(groups))):
            if count is not None and taken >= count:
                return
            title, group = groups[place]
            found = [mol for mol in group if mol is not None]
            if not found:
                where, made = "train", (title, Problem("invalid", "not a possible molecule"))
            elif any(not mol.GetNumConformers() or not mol.GetConformer().Is3D() for mol in found):
                where, made = "train", (title, Problem("invalid", "no 3-D conformer; give SMILES to have some made"))
            else:
                where = by_name(Chem.MolToSmiles(Chem.RemoveHs(found[0]), isomericSmiles=False))
                made = with_geometry(title, found)
            if where == split:
                taken += 1
                yield made

    content = hashlib.sha256(data).hexdigest()[:16]
    return Source(path.stem, f"{path.stem} {content}", ("own",), entries)


def alike(a: Chem.Mol | None, b: Chem.Mol) -> bool:
    """Whether two records have the same atoms and bonds in the same order."""
    if a is None or a.GetNumAtoms() != b.GetNumAtoms() or a.GetNumBonds() != b.GetNumBonds():
        return False
    atoms = zip(a.GetAtoms(), b.GetAtoms(), strict=True)
    if any((p.GetAtomicNum(), p.GetFormalCharge()) != (q.GetAtomicNum(), q.GetFormalCharge()) for p, q in atoms):
        return False
    pairs = {(*sorted((x.GetBeginAtomIdx(), x.GetEndAtomIdx())), x.GetBondType()) for x in a.GetBonds()}
    return pairs == {(*sorted((x.GetBeginAtomIdx(), x.GetEndAtomIdx())), x.GetBondType()) for x in b.GetBonds()}
