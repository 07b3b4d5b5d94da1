"""How near conformers come to the minimum of B3LYP: the model that ships beside RDKit, on scaffolds it has not seen.

    python -m tests.benchmarks.molecules_qm9 --data-root FOLDER [--model qm9] [--count 500] [--calls 5 10 20]

Test molecules are those of QM9 whose ring systems the split keeps from training. Of each, every side draws --conformers
conformers from the graph alone, by one process on one thread: ETKDGv3, the same conformers relaxed by MMFF94, and the
model, asked for B3LYP, with each number of network calls (the solver calibrated for it where the model has one).

Distances to the one B3LYP/6-31G(2df,p) minimum are least over rotations and symmetries: of heavy atoms and of all, of
the best conformer and on the mean; errors of bond lengths and angles are means over conformers. `differences` are
paired by molecule, over those that both sides could do, with standard errors over molecules. Seconds per conformer hold
everything from the molecule to its conformers, drafts included, and imports not.

Draws are kept in --root and not drawn again; results are written part by part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rdkit import Chem

from polydiff.core.files import write_atomically
from polydiff.molecules.comparison import Drawn, Draws, baselines, measure, timed
from polydiff.molecules.data import load
from polydiff.molecules.evaluate import references_of
from polydiff.molecules.metrics import P1
from polydiff.molecules.pipeline import ConformerPipeline

from ._molecules import keep, with_error

RESULT = Path(__file__).parent / "results" / "molecules_qm9.json"
SEED = 0
DELTA = 0.5
FIGURES = (
    "heavy-atom RMSD, best, Å",
    "heavy-atom RMSD, mean, Å",
    "all-atom RMSD, best, Å",
    "all-atom RMSD, mean, Å",
    "error of bond lengths, Å",
    "error of bond angles, °",
)
BASES = ("ETKDGv3", "ETKDGv3 + MMFF94")


class Bench:
    """The molecules, and what every side drew of them."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        data = load(
            "qm9",
            "test",
            start="centred",
            scale=1.0,
            data_root=options.data_root,
            count=options.count,
            levels=("B3LYP",),
        )
        self.references = references_of(data)
        self.left_out = dict(data.problems)
        self.about = {
            "command": "python -m tests.benchmarks.molecules_qm9",
            "seed": SEED,
            "model": Path(options.model).name,
            "molecules": len(self.references),
            "conformers": options.conformers,
        }

    @property
    def pipeline(self) -> ConformerPipeline:
        """The model."""
        return ConformerPipeline.from_pretrained(self.options.model)

    def ours(self, method: str, calls: int) -> list[Draws]:
        """The model's conformers in the order in which they were drawn."""
        pipeline = self.pipeline

        def draw(mols: Sequence[Chem.Mol], number: int) -> list[Drawn]:
            found = pipeline.generate(mols, number, level="B3LYP", steps=calls, seed=SEED, energies=False)
            return [Drawn(one.mol, one.status) for one in found]

        draw([Chem.Mol(one.mol, True) for one in self.references[:2]], 1)  # what is loaded on first use
        return [timed(method, draw, self.references, self.options.conformers)]

    def theirs(self) -> list[Draws]:
        """RDKit's, with and without MMFF94."""
        return baselines(self.references, self.options.conformers, seed=SEED)

    def scored(self, draw: Callable[[], list[Draws]]) -> None:
        """Draw, measure and keep; rows of molecules lie in --root, so that differences can be taken later."""
        for draws in draw():
            found = measure(self.references, [draws], P1, DELTA)[draws.method]
            write_atomically(self.path(draws.method), json.dumps({"about": self.about, "rows": found["molecules"]}))
            entry = {
                "figures": {name: found["figures"].get(name) for name in FIGURES},
                "other figures": {name: one for name, one in found["figures"].items() if name not in FIGURES},
                "distributions": {name: one["mean"] for name, one in found["distributions"].items()},
                "sweep": found["sweep"],
                "stereo": found["stereo"],
                "statuses": found["statuses"],
                "drawn": found["conformers"],
                "seconds per conformer": found["seconds per conformer"],
            }
            keep(self.options.out, self.about, "methods", draws.method, entry)
            print(f"{draws.method:22} {self.line(entry)}", flush=True)

    def line(self, entry: dict[str, Any]) -> str:
        """One line of figures."""
        figures = (one for one in entry["figures"].values() if one is not None)
        told = "  ".join(f"{one['mean']:.4f} ± {one['standard error'] or 0:.4f}" for one in figures)
        return f"{told}  {entry['seconds per conformer'] or 0:.4f} s each"

    def path(self, method: str) -> Path:
        """Where the rows of a method lie."""
        return self.options.root / f"{method.replace(' ', '-')}.json"

    def rows(self, method: str) -> dict[str, dict[str, Any]]:
        """molecule -> figures, {} where the method has not been measured on these molecules."""
        path = self.path(method)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {row["molecule"]: row for row in kept["rows"]} if kept.get("about") == self.about else {}

    def differences(self, methods: Sequence[str]) -> None:
        """How much nearer or farther each method is than RDKit's, paired by molecule; negative is nearer."""
        for method in methods:
            mine, entry = self.rows(method), {}
            for base in (name for name in BASES if name != method):
                theirs = self.rows(base)
                shared = [name for name in mine if name in theirs]
                entry[base] = {
                    figure: paired(
                        [mine[name].get(figure) for name in shared], [theirs[name].get(figure) for name in shared]
                    )
                    for figure in FIGURES
                }
            keep(self.options.out, self.about, "differences", method, entry)


def paired(mine: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, Any]:
    """Mean difference, its standard error over molecules, and the share of molecules where mine is less."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
    less = sum(a < b for a, b in pairs) / len(pairs) if pairs else None
    return with_error([a - b for a, b in pairs]) | {"share less": less}


def main() -> None:
    """Draw, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--conformers", type=int, default=10)
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--again", action="store_true", help="also what has been drawn before")
    parser.add_argument("--root", type=Path, default=Path("runs/molecules-qm9"), help="where rows are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.root.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    print(f"{len(bench.references)} molecules; left out: {bench.left_out or 'none'}", flush=True)
    if options.again or not all(bench.rows(name) for name in BASES):
        bench.scored(bench.theirs)
    methods = {f"polydiff, {calls} calls": calls for calls in options.calls}
    for method, calls in methods.items():
        if options.again or not bench.rows(method):
            bench.scored(lambda method=method, calls=calls: bench.ours(method, calls))
    bench.differences([*methods, "ETKDGv3 + MMFF94"])


if __name__ == "__main__":
    main()
