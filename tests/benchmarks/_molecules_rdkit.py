"""RDKit alone, the peer of the benchmarks of molecules; nothing else is imported, so that nothing else costs.

    python -m tests.benchmarks._molecules_rdkit INPUT.smi OUTPUT.sdf [--conformers N] [--processes N] [--relax]

is SMILES in, SDF out by ETKDGv3 and, with --relax, MMFF94, as a chemist's own script would do it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

__all__ = ["drawn_by_rdkit"]

TIMEOUT = 60
"""Seconds for the distance geometry of a molecule, as on our side."""


def drawn_by_rdkit(mol: Chem.Mol, count: int, seed: int, relax: bool) -> Chem.Mol:
    """A copy with ETKDGv3 conformers, relaxed by MMFF94 if asked and if MMFF94 knows the atoms; none if it fails.

    Args:
        mol: with hydrogens as atoms.
        count: of conformers.
        seed: of RDKit.
        relax: whether MMFF94 follows.
    """
    made = Chem.Mol(mol)
    made.RemoveAllConformers()
    options = rdDistGeom.ETKDGv3()
    options.randomSeed, options.timeout, options.numThreads = seed, TIMEOUT, 1
    with rdBase.BlockLogs():
        rdDistGeom.EmbedMultipleConfs(made, count, options)
        if relax and made.GetNumConformers() and rdForceFieldHelpers.MMFFHasAllMoleculeParams(made):
            rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(made, numThreads=1, maxIters=2000)
    return made


def block(row: str, count: int, relax: bool) -> str:
    """The SDF records of one row of SMILES and id; nothing if it fails."""
    smiles, _, identity = row.partition("\t")
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            return ""
        made = drawn_by_rdkit(Chem.AddHs(mol), count, 0, relax)
    made.SetProp("_Name", identity)
    return "".join(Chem.MolToMolBlock(made, confId=conformer.GetId()) + "$$$$\n" for conformer in made.GetConformers())


def peer() -> None:
    """The peer's command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--conformers", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--relax", action="store_true")
    options = parser.parse_args()
    rows = options.input.read_text(encoding="utf-8").splitlines()
    work = partial(block, count=options.conformers, relax=options.relax)
    with (
        ProcessPoolExecutor(options.processes) as pool,
        options.output.open("w", encoding="utf-8") as file,
    ):
        file.writelines(pool.map(work, rows, chunksize=4))


if __name__ == "__main__":
    peer()
