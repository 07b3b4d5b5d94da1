"""Where molecules come from: named sets as streams of molecules to prepare; `readers` has the user's own files.

`qm9`: the small organic molecules of Ramakrishnan, Dral, Rupp and von Lilienfeld 2014 (Sci. Data 1, 140022), one
minimum of B3LYP/6-31G(2df,p) each, split by ring system (`splits`). `mini-qm9`: the 1,000 molecules of QM9 on which
conformer generators are compared (Ganea et al. 2021, arXiv:2106.07802), as SMILES; minima of MMFF94 are made.
`esol`, `freesolv`: small molecules of more elements (Delaney 2004; Mobley and Guthrie 2014), as SMILES.
`small`: the list in `smiles`, which needs no download.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from rdkit import Chem, rdBase

from ..core.downloads import TIMEOUT, download, offline
from ..core.errors import DataError
from .drafts import Problem
from .preparing import Broken, Entry
from .readers import Source, shuffled, smiles_source, smiles_table, with_geometry
from .smiles import SMILES
from .splits import Split, by_scaffold

__all__ = ["NAMES", "qm9"]

GDB9 = "http://deepchem.io.s3-website-us-west-1.amazonaws.com/datasets/gdb9.tar.gz"
GDB9_MD5 = "560f62d8e6c992ca0cf8ed8d013f9131"
DEEPCHEM = "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/"
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

    order = shuffled(np.flatnonzero(have["bonds_ok"] == 1))
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
        return with_geometry(name, [mol]) if mol is not None else (name, Problem("invalid", "not a possible molecule"))

    order = shuffled(np.arange(len(supplier)))
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
    return smiles_source("mini-qm9", smiles_table(path))


def moleculenet(name: str, file: str, checksum: str, size: int) -> Callable[[Path], Source]:
    """A property set of MoleculeNet (Wu et al. 2018), for its SMILES; ensembles are made, and split by molecule."""

    def found(root: Path) -> Source:
        for place in (root / "molecules" / "smiles_moleculenet", root / "smiles_moleculenet"):
            if (path := place / f"{name}.csv.gz").is_file():
                break
        else:
            path = root / "molecules" / "smiles_moleculenet" / f"{name}.csv"
            download(name, DEEPCHEM + file, path, checksum, size=size)
        return smiles_source(name, smiles_table(path))

    return found


def small() -> Source:
    """The list that comes with the package; ensembles are made, and split at random by molecule."""
    return smiles_source("small", [(smiles, smiles) for smiles in SMILES])


NAMES: Mapping[str, Callable[[Path], Source]] = {
    "small": lambda root: small(),
    "mini-qm9": mini_qm9,
    "qm9": qm9,
    "esol": moleculenet(
        "esol", "delaney-processed.csv", "8c06a76f0c6487d29ab0f903e6a7a7139f189ab3c1178f159c8be8964602f189", 96_699
    ),
    "freesolv": moleculenet(
        "freesolv", "SAMPL.csv", "a4fbf3b28fe2e604d6bd7ea0e20b4494ff732400a80f58d1b393677cfbc1b06c", 31_417
    ),
}
"""The edge: names that users type to the functions that find them under a data root."""
