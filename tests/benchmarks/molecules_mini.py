"""Coverage on mini-QM9 by network calls, beside GeoDiff with the same training and beside RDKit.

    python -m tests.benchmarks.molecules_mini --data-root FOLDER [--minutes 60] [--parts rdkit ours-draft ...]

mini-QM9 is published QM9 SMILES with ensembles made here: ETKDGv3 + MMFF94 within 10 kcal/mol, without duplicates. So
RDKit with MMFF94 is no competitor but the ceiling: it makes the references.

`geodiff` is the published recipe (`_molecules_peers`); `ours-harmonic` starts from harmonic noise, which in training is
turned onto the data; `ours-draft` refines ETKDGv3 drafts. Each is trained for the same --minutes of wall time on one
thread, on the same molecules: a short trial tells how many steps fit, and what training took stands in the results.

The sample is fixed before anything is drawn: the first --molecules test molecules that have 2 ... --references
references. By P1 each is drawn twice as many conformers as it has references, on one thread, molecules batched. COV and
MAT are of heavy atoms; COV at 0.5 Angstrom and by threshold from 0.05; errors are over molecules (bootstrap). GeoDiff
is given the better of the --w-global, chosen by MAT-R on validation molecules; it draws with the branch left out that
its sampler discards, and `seconds per conformer as published`, from the times of some steps, has it computed.

Models and draws lie in --root; a run that was killed goes on where it stopped, and results are written part by part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from torch import nn

from polydiff.core.files import write_atomically
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import seeded
from polydiff.core.training import train
from polydiff.molecules import train as training
from polydiff.molecules.comparison import Drawn, Draws, Reference, baselines, measure, timed, with_positions
from polydiff.molecules.data import Conformers, load
from polydiff.molecules.evaluate import references_of
from polydiff.molecules.graphs import arrays, assemble
from polydiff.molecules.metrics import P1
from polydiff.molecules.options import Network, Train
from polydiff.molecules.pipeline import ConformerPipeline

from ._molecules import elapsed, keep, kept
from ._molecules_peers import GeoDiff, T

RESULT = Path(__file__).parent / "results" / "molecules_mini.json"
SEED, DELTA, LEVEL = 0, 0.5, "MMFF94"
TRIAL = 12
"""Steps that tell the speed; the first third is not looked at."""
CONFORMERS = 48
"""Of GeoDiff in one batch."""
LOCAL_ALONE = 2988
"""Steps of its 5000 in which its sampler discards the global branch."""


class Bench:
    """The molecules, the budget, and the figures."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.test = self.sample("test", options.molecules)
        self.about = {
            "command": "python -m tests.benchmarks.molecules_mini",
            "seed": SEED,
            "minutes": options.minutes,
            "training molecules": options.training,
            "molecules": len(self.test),
            "references": sum(one.mol.GetNumConformers() for one in self.test),
            "level": LEVEL,
            "threshold": DELTA,
        }

    def data(self, split: str, **options: Any) -> Conformers:
        """mini-QM9, in one order for all."""
        return load(
            "mini-qm9",
            split,  # pyright: ignore[reportArgumentType]
            data_root=self.options.data_root,
            drafts=self.options.pairs,
            levels=(LEVEL,),
            **options,
        )

    def sample(self, split: str, count: int) -> list[Reference]:
        """The first molecules with a number of references that suits."""
        found = references_of(self.data(split, start="centred", scale=1.0))
        return [one for one in found if 2 <= one.mol.GetNumConformers() <= self.options.references][:count]

    # Training

    def steps(self, name: str, objective: Callable[[], nn.Module], data: Any, options: TrainingOptions) -> int:
        """How many steps fit into the budget; told once, and kept."""
        path = self.options.root / f"{name}.steps.json"
        asked = {"minutes": self.options.minutes, "training molecules": self.options.training}
        if not path.exists():
            trial = replace(options, steps=TRIAL, log_every=1, checkpoint_every=0)
            folder = self.options.root / f"{name}.trial"
            history = train(objective(), data, trial, folder=folder, resume=folder.exists()).history
            first, last = history[TRIAL // 3], history[-1]
            seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
            steps = max(1, round(60 * self.options.minutes / seconds))
            write_atomically(path, json.dumps(asked | {"steps": steps, "seconds of a step": seconds}))
        found = json.loads(path.read_text(encoding="utf-8"))
        if any(found[key] != value for key, value in asked.items()):
            raise SystemExit(f"{path} was made with other options: take another --root")
        return found["steps"]

    def geodiff(self) -> GeoDiff:
        """The peer after its budget."""
        data = self.data("train", start="centred", scale=1.0, count=self.options.training)
        options = TrainingOptions(
            batch_size=64,
            learning_rate=1e-3,
            betas=(0.95, 0.999),
            warmup=0,
            ema=0.0,
            clip=1e4,
            seed=SEED,
            checkpoint_minutes=5,
            checkpoint_every=0,
            log_every=10,
            cpu=True,
            progress=False,
        )

        def objective() -> GeoDiff:
            torch.manual_seed(SEED)
            return GeoDiff()

        steps = self.steps("geodiff", objective, data, options)
        folder = self.options.root / "geodiff"
        options = replace(options, steps=steps)
        found = train(objective(), data, options, folder=folder, resume=folder.exists())
        self.trained("geodiff", objective(), data, options, found.history)
        return found.objective.eval()  # pyright: ignore[reportReturnType]

    def ours(self, name: str, start: Any, objective: Any) -> ConformerPipeline:
        """Ours after the same budget."""
        network = Network(width=self.options.width, blocks=self.options.depth)
        folder = self.options.root / name
        loop = TrainingOptions(
            batch_size=self.options.batch,
            learning_rate=self.options.learning_rate,
            warmup=50,
            decay_to=0.02,
            ema=0.999,
            seed=SEED,
            checkpoint_minutes=5,
            checkpoint_every=0,
            log_every=10,
            cpu=True,
            progress=False,
        )
        told = Train(
            data=("mini-qm9",),
            data_root=self.options.data_root,
            count=self.options.training,
            levels=(LEVEL,),
            start=start,
            drafts=self.options.pairs,
            objective=objective,
            network=network,
            training=loop,
            out=folder,
            resume=folder.exists(),
        )
        data = training.data_of(told, "train")

        def fresh() -> nn.Module:
            config = training.conformer_config(data, told)
            torch.manual_seed(SEED)
            return training.objective_of(ConformerPipeline(config, ConformerPipeline.build(config)), told)

        loop = replace(loop, steps=self.steps(name, fresh, data, loop))
        told = replace(told, training=loop)
        pipeline, found = training.train(data, told)
        self.trained(name, pipeline.model, data, loop, found.history)
        return pipeline

    def trained(
        self, name: str, model: nn.Module, data: Conformers, options: TrainingOptions, history: list[dict[str, float]]
    ) -> None:
        """Keep what a training took."""
        entry = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": options.steps,
            "batch": options.batch_size,
            "pairs": len(data),
            "seconds": history[-1]["seconds"],
            "loss": history[-1]["loss"],
        }
        keep(self.options.out, self.about, "training", name, entry)
        print(f"{name}: {entry['steps']} steps in {entry['seconds']:.0f} s", flush=True)

    # Figures

    def missing(self, name: str) -> bool:
        """Whether a method has no figures yet."""
        return self.options.again or name not in kept(self.options.out, self.about).get("methods", {})

    def score(self, draws: Draws, **facts: Any) -> None:
        """Measure what was drawn."""
        found = measure(self.test, [draws], P1, DELTA)[draws.method]
        entry = facts | {
            "coverage": found["coverage"],
            "sweep": found["sweep"],
            "figures": found["figures"],
            "stereo": found["stereo"],
            "statuses": found["statuses"],
            "conformers": found["conformers"],
            "seconds per conformer": found["seconds per conformer"],
        }
        keep(self.options.out, self.about, "methods", draws.method, entry)
        means = {name: found["coverage"][name]["mean"] for name in ("COV-R", "MAT-R", "COV-P", "MAT-P")}
        told = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items() if mean is not None)
        print(f"  {draws.method:28} {told}  {entry['seconds per conformer'] or 0:.4f} s each", flush=True)


def rdkit(bench: Bench) -> None:
    """ETKDGv3, and what made the references."""
    if bench.missing("ETKDGv3") or bench.missing("ETKDGv3 + MMFF94"):
        for draws in baselines(bench.test, None, P1.ratio, SEED + 1):
            bench.score(draws)


def ours(bench: Bench, name: str, start: str, objective: str) -> None:
    """Train one of ours and draw with each number of calls."""
    pipeline = bench.ours(name, start, objective)
    for calls in bench.options.calls:
        method = f"{name}, {calls} calls"
        if not bench.missing(method):
            continue

        def draw(mols: Sequence[Chem.Mol], number: int, calls: int = calls) -> list[Drawn]:
            found = pipeline.generate(mols, number, level=LEVEL, steps=calls, seed=SEED, energies=False)
            return [Drawn(one.mol, one.status) for one in found]

        draw([Chem.Mol(one.mol, True) for one in bench.test[:2]], 1)  # what is loaded on first use
        bench.score(timed(method, draw, bench.test, None, P1.ratio), calls=calls)


def geodiff(bench: Bench) -> None:
    """Train the peer, choose its weight, draw."""
    model = bench.geodiff()
    steps = bench.options.peer_steps
    valid = bench.sample("valid", bench.options.peer_valid)
    choice = {}
    for w in bench.options.w_global:
        draws = drawn(bench, model, valid, "valid", w, steps)
        found = measure(valid, [draws], P1, DELTA)[draws.method]["coverage"]
        choice[w] = found["MAT-R"]["mean"]
        print(f"  w_global {w}: MAT-R {choice[w]} on {len(valid)} validation molecules", flush=True)
    chosen = min(choice, key=lambda w: float("inf") if choice[w] is None else choice[w])
    draws = drawn(bench, model, bench.test, "test", chosen, steps)
    draws = Draws(f"geodiff, {steps} calls", draws.each, draws.seconds)
    facts = as_published(bench, model, draws)
    bench.score(draws, calls=steps, w_global=chosen, w_globals=[{"w": w, "MAT-R": choice[w]} for w in choice], **facts)


def drawn(
    bench: Bench, model: GeoDiff, references: Sequence[Reference], split: str, w_global: float, steps: int
) -> Draws:
    """Conformers of the peer, batch by batch, each kept in a file with the seconds it took."""
    wanted = [(k, P1.ratio * one.mol.GetNumConformers()) for k, one in enumerate(references)]
    batches, filled = [], CONFORMERS
    for k, number in wanted:
        if filled + number > CONFORMERS:
            batches.append([])
            filled = 0
        batches[-1].append((k, number))
        filled += number
    each: list[Drawn] = [Drawn(None, "not drawn")] * len(references)
    seconds = 0.0
    key = zlib.crc32(repr([(references[k].name, number) for k, number in wanted]).encode())
    for part, batch in enumerate(batches):
        path = bench.options.root / f"geodiff-{split}-{key:08x}-{w_global:g}-{steps}-{part}.npz"
        if not path.exists():
            graphs = [arrays(references[k].mol) for k, number in batch for _ in range(number)]
            (x, finite), took = elapsed(
                lambda graphs=graphs, part=part: model.sample(
                    assemble(graphs), seeded(SEED, part), w_global=w_global, steps=steps
                )
            )
            np.savez(path, x=x.numpy(), finite=finite.numpy(), seconds=took)
        found = np.load(path)
        seconds += float(found["seconds"])
        rows, which = iter(found["x"]), iter(found["finite"])
        for k, number in batch:
            mol = references[k].mol
            shapes = [np.array(list(itertools.islice(rows, mol.GetNumAtoms()))) for _ in range(number)]
            good = [
                x.astype(np.float64) for x, fine in zip(shapes, itertools.islice(which, number), strict=True) if fine
            ]
            each[k] = Drawn(with_positions(mol, np.array(good))) if good else Drawn(None, "not finite")
    return Draws(f"w_global {w_global:g}", each, seconds)


def as_published(bench: Bench, model: GeoDiff, draws: Draws) -> dict[str, float]:
    """Seconds per conformer if the discarded branch is computed, from the difference on some steps."""
    steps = min(20, bench.options.peer_steps)
    graphs = [arrays(one.mol) for one in bench.test[:4] for _ in range(P1.ratio * one.mol.GetNumConformers())]
    batch, seconds = assemble(graphs), {}
    for _ in range(2):  # the first warms up
        for skip in (True, False):
            seconds[skip] = elapsed(lambda skip=skip: model.sample(batch, seeded(SEED), steps=steps, skip=skip))[1]
    more = max(0.0, seconds[False] - seconds[True]) / steps / len(graphs) * LOCAL_ALONE * bench.options.peer_steps / T
    count = sum(one.mol.GetNumConformers() for one in draws.each if one.mol is not None)
    return {"seconds per conformer as published": draws.seconds / max(1, count) + more}


PARTS: dict[str, Callable[[Bench], None]] = {
    "rdkit": rdkit,
    "ours-draft": lambda bench: ours(bench, "ours-draft", "draft", "denoising"),
    "ours-harmonic": lambda bench: ours(bench, "ours-harmonic", "harmonic", "aligned"),
    "geodiff": geodiff,
}


def main() -> None:
    """Train, draw, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument(
        "--root", type=Path, default=Path("runs/molecules-mini"), help="where models and draws are kept"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, for each")
    parser.add_argument("--training", type=int, default=None, help="training molecules, None for all")
    parser.add_argument("--pairs", type=int, default=5, help="of each training molecule; GeoDiff's data has 5")
    parser.add_argument("--molecules", type=int, default=30)
    parser.add_argument("--references", type=int, default=6, help="most references of a test molecule")
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 20, 100, 1000])
    parser.add_argument("--batch", type=int, default=64, help="of ours")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of ours")
    parser.add_argument("--width", type=int, default=Network().width)
    parser.add_argument("--depth", type=int, default=Network().blocks)
    parser.add_argument("--w-global", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--peer-steps", type=int, default=T)
    parser.add_argument("--peer-valid", type=int, default=4, help="validation molecules that choose w_global")
    parser.add_argument("--again", action="store_true", help="also figures that are there already")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.root.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    print(f"{bench.about}", flush=True)
    for name in options.parts:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
