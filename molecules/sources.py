"""Where molecules come from: named sets, and the user's own files, as streams of molecules to prepare.

`qm9`: the small organic molecules of Ramakrishnan, Dral, Rupp and von Lilienfeld 2014 (Sci. Data 1, 140022), one
minimum of B3LYP/6-31G(2df,p) each, split by ring system (`splits`). `mini-qm9`: the 1,000 molecules of QM9 on which
conformer generators are compared (Ganea et al. 2021, arXiv:2106.07802), as SMILES; minima of MMFF94 are made.
`small`: the list in `smiles`, which needs no download.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from rdkit import Chem, rdBase

from ..core.downloads import TIMEOUT, download, offline
from ..core.errors import DataError
from .drafts import Problem, parse
from .preparing import Broken, Entry
from .smiles import SMILES
from .splits import Split, by_name, by_scaffold

__all__ = ["NAMES", "Source", "from_file", "qm9"]

GDB9 = "http://deepchem.io.s3-website-us-west-1.amazonaws.com/datasets/gdb9.tar.gz"
GDB9_MD5 = "560f62d8e6c992ca0cf8ed8d013f9131"
MINI = "https://raw.githubusercontent.com/PattanaikL/GeoMol/0910538/data/QM9/test_smiles.csv"
MINI_SHA256 = "9e253eef6f6f595237a670aa994e746186b572bf94ee579e1c402879ab2ec075"
MINI_SIZE = 27483

_SINGLE, _DOUBLE, _TRIPLE, _AROMATIC = (
    Chem.BondType.SINGLE,
    Chem.BondType.DOUBLE,
    Chem.BondType.TRIPLE,
    Chem.BondType.AROMATIC,
)
_ORDERS = {1: _SINGLE, 2: _DOUBLE, 3: _TRIPLE, 4: _AROMATIC}


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


def qm9(root: Path) -> Source:
    """QM9, from `<root>/molecules/qm9/qm9_xyz.npz` (arrays with derived bonds) or DeepChem's gdb9 with its bonds."""
    for place in (root / "molecules" / "qm9", root / "qm9", root):
        if (place / "qm9_xyz.npz").is_file():
            return _qm9_arrays(place / "qm9_xyz.npz")
    return _qm9_sdf(root / "molecules" / "qm9" / "gdb9.tar.gz")


def _qm9_arrays(path: Path) -> Source:
    """Plain arrays: z, xyz_milliangstrom, formal_charge over atoms, bonds (i, j, order), gdb_index, bonds_ok."""
    needed = ("gdb_index", "n_atoms", "z", "xyz_milliangstrom", "formal_charge", "n_bonds", "bonds", "bonds_ok")
    try:
        with np.load(path, allow_pickle=False) as stored:
            have = {key: stored[key] for key in needed}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as QM9 arrays ({', '.join(needed)}): {error}") from error
    rows = np.concatenate([[0], np.cumsum(have["n_atoms"].astype(np.int64))])
    lines = np.concatenate([[0], np.cumsum(have["n_bonds"].astype(np.int64))])

    def one(k: int) -> Entry | Broken:
        name, row, line = f"gdb {have['gdb_index'][k]}", slice(*rows[k : k + 2]), slice(*lines[k : k + 2])
        x = have["xyz_milliangstrom"][row] / 1000.0
        mol = _molecule(have["z"][row], have["formal_charge"][row], have["bonds"][line], x)
        return (name, mol) if isinstance(mol, Problem) else Entry(name, mol, x[None])

    order = _shuffled(np.flatnonzero(have["bonds_ok"] == 1))
    content = hashlib.sha256(have["xyz_milliangstrom"].tobytes() + have["gdb_index"].tobytes()).hexdigest()[:16]
    return Source("qm9", f"qm9 {content}", ("B3LYP",), lambda split, count: _select(map(one, order), split, count))


def _qm9_sdf(path: Path) -> Source:
    """DeepChem's archive: gdb9.sdf inside gdb9.tar.gz."""
    if not path.is_file():
        try:
            with urlopen(Request(GDB9, method="HEAD"), timeout=TIMEOUT) as answer:
                size = int(answer.headers["Content-Length"])
        except (OSError, TypeError, ValueError) as error:
            problem = "is not there and could not be downloaded"
            raise DataError(offline("qm9", path, problem, GDB9, error)) from error
        download("qm9", GDB9, path, GDB9_MD5, algorithm="md5", size=size)
    sdf = path.with_name("gdb9.sdf")
    if not sdf.is_file():
        try:
            with tarfile.open(path) as archive:
                member = next(m for m in archive.getmembers() if Path(m.name).name == "gdb9.sdf" and m.isfile())
                member.name = f"{sdf.name}.part"
                archive.extract(member, sdf.parent, filter="data")
        except (OSError, tarfile.TarError, StopIteration) as error:
            raise DataError(f"{path}: has no gdb9.sdf that can be read: {error}") from error
        sdf.with_name(f"{sdf.name}.part").replace(sdf)
    supplier = Chem.SDMolSupplier(str(sdf), removeHs=False)

    def one(k: int) -> Entry | Broken:
        with rdBase.BlockLogs():
            mol = supplier[k]
        name = f"gdb {k + 1}"
        return _with_geometry(name, [mol]) if mol is not None else (name, Problem("invalid", "not a possible molecule"))

    order = _shuffled(np.arange(len(supplier)))
    return Source("qm9", "qm9 sdf", ("B3LYP",), lambda split, count: _select(map(one, order), split, count))


def _molecule(z: np.ndarray, charges: np.ndarray, bonds: np.ndarray, x: np.ndarray) -> Chem.Mol | Problem:
    """A molecule from its atoms and bonds, its stereochemistry from its geometry."""
    made = Chem.RWMol()
    for number, charge in zip(z.tolist(), charges.tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        made.AddAtom(atom)
    for i, j, order in bonds.tolist():
        made.AddBond(i, j, _ORDERS[order])
        if order == 4:
            made.GetBondBetweenAtoms(i, j).SetIsAromatic(True)
            made.GetAtomWithIdx(i).SetIsAromatic(True)
            made.GetAtomWithIdx(j).SetIsAromatic(True)
    try:
        with rdBase.BlockLogs():
            Chem.SanitizeMol(made)
    except ValueError as error:  # RDKit's MolSanitizeException is one
        return Problem("invalid", str(error))
    conformer = Chem.Conformer(len(x))
    conformer.SetPositions(np.ascontiguousarray(x))
    conformer.Set3D(True)
    made.AddConformer(conformer, assignId=True)
    mol = made.GetMol()
    Chem.AssignStereochemistryFrom3D(mol)
    parts = len(Chem.GetMolFrags(mol))
    return mol if parts == 1 else Problem("disconnected", f"{parts} parts")


def _with_geometry(name: str, mols: Sequence[Chem.Mol]) -> Entry | Broken:
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


def _shuffled(places: np.ndarray) -> list[int]:
    """A fixed order, so that a part of a set is like the whole."""
    return np.random.default_rng(0).permutation(places).tolist()


def _select(stream: Iterator[Entry | Broken], split: Split, count: int | None) -> Iterator[Entry | Broken]:
    """The first `count` molecules of a stream whose ring system belongs to the split; failures count as training's."""
    taken = 0
    for entry in stream:
        if count is not None and taken >= count:
            return
        if (by_scaffold(entry.mol) if isinstance(entry, Entry) else "train") == split:
            taken += 1
            yield entry


def mini_qm9(root: Path) -> Source:
    """Published SMILES of QM9 molecules; ensembles are made, and split at random by molecule."""
    for place in (root / "molecules" / "geom_test_smiles", root / "geom_test_smiles"):
        path = place / "qm9_test_smiles.csv.gz"
        if path.is_file():
            break
    else:
        path = root / "molecules" / "geom_test_smiles" / "qm9_test_smiles.csv"
        download("mini-qm9", MINI, path, MINI_SHA256, size=MINI_SIZE)
    return _smiles_source("mini-qm9", _smiles_table(path))


def small() -> Source:
    """The list that comes with the package; ensembles are made, and split at random by molecule."""
    return _smiles_source("small", [(smiles, smiles) for smiles in SMILES])


def from_file(path: Path) -> Source:
    """The user's own molecules: `.sdf` with conformers as references, or SMILES (`.smi`, `.txt`, `.csv`).

    SDF: records that follow each other with one title and the same atoms are conformers of one molecule. SMILES: one a
    line, a name may follow; of a table the column `smiles`. Split at random by molecule.
    """
    suffix = "".join(Path(path.name.removesuffix(".gz")).suffixes[-1:]).lower()
    if suffix == ".sdf":
        return _sdf_source(path)
    if suffix in (".smi", ".txt", ".csv"):
        table = _smiles_table(path)
        if not table:
            raise DataError(f"{path}: no molecules")
        return _smiles_source(path.stem, table)
    raise DataError(f"{path}: expected .sdf (conformers), or .smi, .txt or .csv of SMILES")


def _smiles_table(path: Path) -> list[tuple[str, str]]:
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


def _smiles_source(name: str, table: Sequence[tuple[str, str]]) -> Source:
    """Molecules as SMILES, of which ensembles are made; equal molecules go to one split."""
    content = hashlib.sha256(repr(list(table)).encode()).hexdigest()[:16]

    def entries(split: Split, count: int | None) -> Iterator[Entry | Broken]:
        taken = 0
        for place in _shuffled(np.arange(len(table))):
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


def _sdf_source(path: Path) -> Source:
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
        if mol is not None and groups and title and groups[-1][0] == title and _alike(groups[-1][1][0], mol):
            groups[-1][1].append(mol)
        else:
            groups.append((title or f"record {place + 1}", [mol]))

    def entries(split: Split, count: int | None) -> Iterator[Entry | Broken]:
        taken = 0
        for place in _shuffled(np.arange(len(groups))):
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
                made = _with_geometry(title, found)
            if where == split:
                taken += 1
                yield made

    content = hashlib.sha256(data).hexdigest()[:16]
    return Source(path.stem, f"{path.stem} {content}", ("B3LYP",), entries)


def _alike(a: Chem.Mol | None, b: Chem.Mol) -> bool:
    """Whether two records have the same atoms and bonds in the same order."""
    if a is None or a.GetNumAtoms() != b.GetNumAtoms() or a.GetNumBonds() != b.GetNumBonds():
        return False
    atoms = zip(a.GetAtoms(), b.GetAtoms(), strict=True)
    if any((p.GetAtomicNum(), p.GetFormalCharge()) != (q.GetAtomicNum(), q.GetFormalCharge()) for p, q in atoms):
        return False
    pairs = {(*sorted((x.GetBeginAtomIdx(), x.GetEndAtomIdx())), x.GetBondType()) for x in a.GetBonds()}
    return pairs == {(*sorted((x.GetBeginAtomIdx(), x.GetEndAtomIdx())), x.GetBondType()) for x in b.GetBonds()}


NAMES: Mapping[str, Callable[[Path], Source]] = {
    "small": lambda root: small(),
    "mini-qm9": mini_qm9,
    "qm9": qm9,
}
"""The edge: names that users type to the functions that find them under a data root."""
