"""Draw whole molecules with a trained model: `polydiff sample molecules --model` with one of these.

Molecule i depends on the seed and on i alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rdkit import Chem

from ..core.errors import ArgumentError, DataError
from ..core.files import write_atomically
from .generation_drawing import STATUS, molecule
from .generation_options import BondsName, GenerationSample
from .loading import load_generator
from .stability import Figures, Perceive, by_lengths, determined, figures

__all__ = ["PERCEIVE", "described", "main", "sdf"]

PERCEIVE: Mapping[BondsName, Perceive] = {"determined": determined, "lengths": by_lengths}


def main(options: GenerationSample) -> None:
    """Draw the molecules, write those that have bonds, and print the share of the good ones."""
    if options.out.is_dir() or options.out.suffix != ".sdf":
        raise ArgumentError("--out", str(options.out), "a file that ends in .sdf")
    drawing, pipeline = options.drawing, load_generator(options.model)
    atoms = pipeline.generate(
        drawing.count, drawing.atoms, steps=options.steps, seed=options.seed, batch_size=drawing.batch_size
    )
    found = [molecule(one, PERCEIVE[drawing.bonds]) for one in atoms]
    kept = [mol for mol in found if drawing.keep_invalid or mol.GetProp(STATUS) == "ok"]
    try:
        write_atomically(options.out, sdf(found, drawing.keep_invalid))
    except OSError as error:
        raise DataError(f"{options.out}: the molecules cannot be written ({error})") from error
    print(described(figures(atoms)))
    print(f"{len(kept)} of {drawing.count} molecules in {os.fspath(options.out)}")


def sdf(molecules: Sequence[Chem.Mol], keep_invalid: bool = False) -> str:
    """The molecules as SDF records; the title is the number of the molecule, with gaps where invalid ones are left out.

    Args:
        molecules: from a pipeline.
        keep_invalid: write those without bonds too.
    """
    records: list[str] = []
    for number, mol in enumerate(molecules):
        status = mol.GetProp(STATUS)
        if status == "ok" or keep_invalid:
            mol = Chem.Mol(mol)
            mol.SetProp("_Name", str(number))
            records.append(f"{Chem.MolToMolBlock(mol, kekulize=status == 'ok')}>  <{STATUS}>\n{status}\n\n$$$$\n")
    return "".join(records)


def described(found: Figures) -> str:
    """The figures in words, as percentages."""
    parts = {
        "atoms stable": found.atoms_stable,
        "molecules stable": found.molecules_stable,
        "valid": found.valid,
        "in one piece": found.connected,
        "unique among the valid": found.unique,
    }
    return "by bond lengths: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in parts.items())
