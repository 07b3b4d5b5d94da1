"""Stereochemistry of conformers that are returned as ok, judged by others than the product's own gate.

    python -m tests.benchmarks.molecules_stereo --data-root FOLDER [--model qm9] [--count 200] [--conformers 10]

The list: GEOM's test molecules of QM9 and of Drugs with two or more specified centres, a specified double bond or a
charged atom, and `HARD` ones written here; those with elements that the model does not know are left in, as their
status says. Each goes through `polydiff sample molecules`. A conformer is judged from the mol block in the SDF alone:

- by RDKit: the block is read without its stereo flags, stereochemistry assigned from the coordinates, and the canonical
  isomeric SMILES without hydrogens compared with that of the molecule asked for;
- by InChI: the library reads the block itself, and its string is compared with that of the molecule asked for.

What a molecule leaves open may come as it likes: its stereoisomers are enumerated and any will do; a molecule with more
than `ISOMERS` is not judged. The same judges look at ETKDGv3 alone, with MMFF94, and, so that one knows that they see
anything, at mirror images of chiral molecules, which must be wrong. Molecules with a wrong conformer are listed.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rdkit import Chem, rdBase
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers, StereoEnumerationOptions

from ._molecules import cleared, given_smiles, keep, records, run, sample_command, statuses
from ._molecules_rdkit import drawn_by_rdkit

RESULT = Path(__file__).parent / "results" / "molecules_stereo.json"
SEED = 0
ISOMERS = 256

HARD = {
    "tartaric acid, R,R": "O[C@H]([C@@H](O)C(=O)O)C(=O)O",
    "tartaric acid, meso": "O[C@@H]([C@@H](O)C(=O)O)C(=O)O",
    "pseudo-asymmetric triol": "C[C@H](O)[C@H](O)[C@@H](C)O",
    "pseudo-asymmetric triol, other": "C[C@H](O)[C@@H](O)[C@@H](C)O",
    "beta-glucose": "OC[C@H]1O[C@@H](O)[C@H](O)[C@@H](O)[C@@H]1O",
    "alpha-mannose": "OC[C@H]1O[C@H](O)[C@@H](O)[C@@H](O)[C@@H]1O",
    "myo-inositol": "O[C@H]1[C@H](O)[C@@H](O)[C@H](O)[C@H](O)[C@@H]1O",
    "menthol": "CC(C)[C@@H]1CC[C@@H](C)C[C@H]1O",
    "camphor": "CC1(C)[C@@H]2CC[C@@]1(C)C(=O)C2",
    "alpha-pinene": "CC1=CC[C@H]2C[C@@H]1C2(C)C",
    "cis-1,2-dimethylcyclopropane": "C[C@H]1C[C@H]1C",
    "trans-1,2-dimethylcyclopropane": "C[C@H]1C[C@@H]1C",
    "cis-decalin": "C1CC[C@H]2CCCC[C@H]2C1",
    "trans-decalin": "C1CC[C@@H]2CCCC[C@H]2C1",
    "threonine zwitterion": "C[C@@H](O)[C@H]([NH3+])C(=O)[O-]",
    "allothreonine zwitterion": "C[C@H](O)[C@H]([NH3+])C(=O)[O-]",
    "isoleucine zwitterion": "CC[C@H](C)[C@H]([NH3+])C(=O)[O-]",
    "carnitine": "C[N+](C)(C)C[C@H](O)CC(=O)[O-]",
    "fumaric acid dianion": "[O-]C(=O)/C=C/C(=O)[O-]",
    "maleic acid anion": "OC(=O)/C=C\\C(=O)[O-]",
    "E,Z-hexa-2,4-diene": "C/C=C/C=C\\C",
    "Z,Z-hexa-2,4-diene": "C\\C=C/C=C\\C",
    "E-acetaldoxime": "C/C=N/O",
    "Z-acetaldoxime": "C/C=N\\O",
    "E-diimine": "C/N=N/C",
    "Z-diimine": "C/N=N\\C",
    "E-crotyl alcohol with a centre": "C/C=C/[C@H](C)O",
    "Z-cyclooctene with a centre": "O[C@@H]1CCC/C=C\\CC1",
    "E-cyclooctene": "C1CCC/C=C/CC1",
    "penicillin core": "CC1(C)S[C@@H]2[C@H](N)C(=O)N2[C@H]1C(=O)O",
    "methyl phenyl sulfoxide": "C[S@](=O)c1ccccc1",
    "N-oxide": "C[N@@+]([O-])(CC)Cc1ccccc1",
    "chiral quaternary ammonium": "C[N@+](CC)(CCC)CC=C",
    "aziridine diester": "COC(=O)[C@H]1N[C@H]1C(=O)OC",
    "epoxide with a centre": "C[C@H](O)[C@@H]1CO1",
    "spiro ketal": "C1CCC2(CC1)O[C@@H](C)[C@@H](C)O2",
    "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]34C)[C@@H]1CC[C@@H]2O",
    "retinal": "CC1=C(C(C)(C)CCC1)/C=C/C(/C)=C/C=C/C(/C)=C/C=O",
    "quinine": "COc1ccc2nccc([C@@H](O)[C@@H]3C[C@@H]4CC[N@]3C[C@@H]4C=C)c2c1",
    "ephedrine cation": "C[NH2+][C@@H](C)[C@H](O)c1ccccc1",
    "chlorofluorobromo ethane": "C[C@](F)(Cl)Br",
}


class Asked(NamedTuple):
    """What a molecule asks for, as either judge writes it; an empty set: this judge cannot tell."""

    smiles: frozenset[str]
    inchi: frozenset[str]


def relevant(mol: Chem.Mol) -> bool:
    """Whether it has two specified centres, a specified double bond or a charged atom."""
    centres = sum(atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED for atom in mol.GetAtoms())
    double = any(bond.GetStereo() > Chem.BondStereo.STEREOANY for bond in mol.GetBonds())
    return centres >= 2 or double or any(atom.GetFormalCharge() for atom in mol.GetAtoms())


def chosen(root: Path, count: int) -> dict[str, str]:
    """id -> SMILES: the first `count` relevant ones of either GEOM set, and those written here."""
    found: dict[str, str] = {}
    for source in ("geom-qm9", "geom-drugs"):
        taken = 0
        for smiles in given_smiles(root, source):
            mol = Chem.MolFromSmiles(smiles)
            if taken < count and mol is not None and "." not in smiles and relevant(mol):
                found[f"{source}-{taken}"] = smiles
                taken += 1
    return found | {f"hard-{name.replace(' ', '-').replace(',', '')}": smiles for name, smiles in HARD.items()}


def canonical(mol: Chem.Mol) -> str:
    """Isomeric SMILES without hydrogens, through a second reading so that equal molecules are written alike."""
    again = Chem.MolFromSmiles(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    return Chem.MolToSmiles(again) if again is not None else ""


def asked(smiles: str) -> Asked:
    """What the judges compare with."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))  # with hydrogens, for imines are open where hydrogens may lie
    options = StereoEnumerationOptions(onlyUnassigned=True, unique=True, maxIsomers=ISOMERS + 1)
    isomers = [mol, *EnumerateStereoisomers(mol, options=options)]  # and itself: judges may leave open what it does
    if len(isomers) > ISOMERS + 1:
        return Asked(frozenset(), frozenset())
    return Asked(
        frozenset(canonical(isomer) for isomer in isomers) - {""},
        frozenset(Chem.MolToInchi(isomer) for isomer in isomers) - {""},
    )


def by_rdkit(block: str) -> str:
    """The SMILES that RDKit reads off the coordinates."""
    mol = Chem.MolFromMolBlock(block, removeHs=False)
    if mol is None:
        return ""
    for atom in mol.GetAtoms():
        atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    for bond in mol.GetBonds():
        if bond.GetStereo() != Chem.BondStereo.STEREONONE:
            bond.SetStereo(Chem.BondStereo.STEREONONE)
    Chem.AssignStereochemistryFrom3D(mol, replaceExistingTags=True)
    return canonical(mol)


def chiral(molecules: dict[str, str], wanted: dict[str, Asked]) -> dict[str, str]:
    """Those whose mirror image is no answer."""
    found = {}
    for identity, smiles in molecules.items():
        mirrored = Chem.MolFromSmiles(smiles)
        for atom in mirrored.GetAtoms():
            atom.InvertChirality()
        if wanted[identity].smiles and canonical(mirrored) not in wanted[identity].smiles and "@" in smiles:
            found[identity] = smiles
    return found


def judged(found: Iterable[tuple[str, str]], wanted: dict[str, Asked]) -> dict[str, Any]:
    """Shares of conformers (id, mol block) that have what is asked for.

    Returns:
        {"conformers", judge: {"judged", "right", "share", "wrong": [first ids]}, "both wrong"}.
    """
    right: dict[str, list[tuple[str, bool]]] = {"RDKit": [], "InChI": []}
    count, both, molecules = 0, 0, set()
    for identity, block in found:
        count += 1
        molecules.add(identity)
        target = wanted[identity]
        verdicts = []
        if target.smiles:
            verdicts.append(by_rdkit(block) in target.smiles)
            right["RDKit"].append((identity, verdicts[-1]))
        if target.inchi:
            verdicts.append(Chem.MolBlockToInchi(block) in target.inchi)
            right["InChI"].append((identity, verdicts[-1]))
        both += bool(verdicts) and not any(verdicts)
    told: dict[str, Any] = {"molecules": len(molecules), "conformers": count, "wrong by all judges": both}
    for judge, verdicts in right.items():
        good = sum(verdict for _, verdict in verdicts)
        wrong = list(dict.fromkeys(identity for identity, verdict in verdicts if not verdict))
        told[judge] = {
            "judged": len(verdicts),
            "right": good,
            "share": good / len(verdicts) if verdicts else None,
            "molecules with a wrong one": wrong,
        }
    return told


def kinds(molecules: dict[str, str]) -> dict[str, int]:
    """How many molecules of the list have what."""
    total: collections.Counter[str] = collections.Counter()
    for smiles in molecules.values():
        mol = Chem.MolFromSmiles(smiles)
        centres = sum(atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED for atom in mol.GetAtoms())
        total["two or more centres"] += centres >= 2
        total["double bonds"] += any(bond.GetStereo() > Chem.BondStereo.STEREOANY for bond in mol.GetBonds())
        total["charges"] += any(atom.GetFormalCharge() for atom in mol.GetAtoms())
    return dict(total)


def ours(options: argparse.Namespace, molecules: dict[str, str], wanted: dict[str, Asked]) -> dict[str, Any]:
    """What `polydiff sample molecules` returns."""
    source, out = options.root / "input.smi", cleared(options.root / "polydiff.sdf")
    source.write_text("".join(f"{smiles}\t{identity}\n" for identity, smiles in molecules.items()), encoding="utf-8")
    told = ["--processes", str(options.processes), "--seed", str(SEED)]
    done = run(sample_command(source, out, options.model, options.conformers, *told))
    if done.code:
        raise RuntimeError(f"the command ended with {done.code}:\n{done.tail}")
    states = statuses(out)
    ok = ((identity, block) for identity, block in records(out) if states[identity] == "ok")
    sources: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for identity, state in states.items():
        sources[source_of(identity)][state] += 1
    return judged(ok, wanted) | {
        "statuses": dict(collections.Counter(states.values())),
        "statuses by source": {name: dict(each) for name, each in sources.items()},
        "not ok": {identity: state for identity, state in states.items() if state not in ("ok", "unsupported-element")},
    }


def source_of(identity: str) -> str:
    """Where a molecule comes from."""
    return "hard" if identity.startswith("hard-") else identity.rpartition("-")[0]


def theirs(
    options: argparse.Namespace, molecules: dict[str, str], wanted: dict[str, Asked], relax: bool, mirror: bool
) -> dict[str, Any]:
    """RDKit's conformers."""

    def blocks() -> Iterable[tuple[str, str]]:
        for identity, smiles in molecules.items():
            made = drawn_by_rdkit(Chem.AddHs(Chem.MolFromSmiles(smiles)), options.conformers, SEED, relax)
            for conformer in made.GetConformers():
                if mirror:
                    conformer.SetPositions(-conformer.GetPositions())
                yield identity, Chem.MolToMolBlock(made, confId=conformer.GetId())

    return judged(blocks(), wanted)


def main() -> None:
    """Draw, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--count", type=int, default=200, help="molecules of either GEOM set")
    parser.add_argument("--conformers", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--parts", nargs="+", help="some of the parts only")
    parser.add_argument("--root", type=Path, default=Path("runs/molecules-stereo"), help="where files are written")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    rdBase.DisableLog("rdApp.*")  # InChI and the readers warn of every odd structure

    molecules = chosen(options.data_root, options.count)
    with rdBase.BlockLogs():
        wanted = {identity: asked(smiles) for identity, smiles in molecules.items()}
    about = {
        "command": "python -m tests.benchmarks.molecules_stereo",
        "seed": SEED,
        "model": Path(options.model).name,
        "molecules": len(molecules),
        "kinds": kinds(molecules),
        "conformers": options.conformers,
    }
    parts = {
        "polydiff": lambda: ours(options, molecules, wanted),
        "ETKDGv3": lambda: theirs(options, molecules, wanted, relax=False, mirror=False),
        "ETKDGv3 + MMFF94": lambda: theirs(options, molecules, wanted, relax=True, mirror=False),
        "mirror images of ETKDGv3": lambda: theirs(
            options, chiral(molecules, wanted), wanted, relax=False, mirror=True
        ),
    }
    for name in options.parts or parts:
        with rdBase.BlockLogs():
            entry = parts[name]()
        keep(options.out, about, "sides", name, entry)
        shares = "  ".join(
            f"{judge} {entry[judge]['right']} of {entry[judge]['judged']}" for judge in ("RDKit", "InChI")
        )
        print(f"{name:18} {entry['conformers']} conformers  {shares}  {entry.get('statuses', '')}", flush=True)


if __name__ == "__main__":
    main()
