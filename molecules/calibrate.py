"""Fit solvers to a trained model: `polydiff calibrate molecules`, `python -m polydiff.molecules.calibrate`.

A solver is a small table of times and weights, `solver-<n>.json` beside the weights; see `core.calibration`. It is
fitted to the model's own flow, from drafts and noise of many different molecules.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.calibration import Calibrated, Trajectories, calibrate, trajectories
from ..core.commands import run
from ..core.errors import DataError
from ..core.randomness import seeded
from ..core.runs import model_folder
from .loading import load_model
from .options import Calibrate
from .pipeline import ConformerPipeline
from .rows import read_rows
from .smiles import SMILES
from .work import Drafted, Rules, chunks, draft, key_of

__all__ = ["flows", "main", "molecules", "solvers"]

DRAWN = 0x63616C69  # sets this use of the seed apart from the conformers that are drawn with it


def main(options: Calibrate) -> None:
    """Fit, print, and write the solvers into the model's folder."""
    folder = model_folder(options.model, "molecules")
    if not (folder / "config.json").is_file():
        shipped = ", ".join(ConformerPipeline.shipped()) or "none"
        raise DataError(
            f"{folder}: no folder with a model to write solvers into; of a shipped model ({shipped}) make a copy "
            "first, from Python: ConformerPipeline.from_pretrained(name).save_pretrained(folder)"
        )
    pipeline = load_model(str(folder))
    for solver in solvers(pipeline, options):
        calls = len(solver.times) - 1
        path = folder / f"solver-{calls}.json"
        try:
            solver.save(path)
        except OSError as error:
            raise DataError(f"{folder}: the solver cannot be written ({error})") from error
        angstrom = pipeline.config.scale
        print(
            f"{calls} calls: root mean square error {solver.rmse * angstrom:.3g} A per coordinate against the "
            f"exact flow; {solver.rmse_start * angstrom:.3g} A by {solver.start}; written: {path}",
            flush=True,
        )
    print(f"draw with one: polydiff sample molecules --model {options.model} --steps {options.calls[0]}")


def solvers(pipeline: ConformerPipeline, options: Calibrate):
    """The solvers, one for each of `options.calls`, as they are found."""
    found, more = molecules(pipeline, options), max(options.count // 2, 1)
    training = flows(pipeline, found, options, 0, options.count)
    validation = flows(pipeline, found, options, options.count, more)
    for calls in options.calls:
        solver: Calibrated = calibrate(training, validation, calls, iterations=options.iterations)
        yield solver


def molecules(pipeline: ConformerPipeline, options: Calibrate) -> list[Drafted]:
    """The molecules to fit on, drafted: those of the input that the model knows."""
    names: Sequence[str] = SMILES if options.input is None else [row.smiles for row in read_rows(options.input)]
    rules = Rules(pipeline.levels(options.level), pipeline.config.start == "draft", seed=options.seed)
    found: list[Drafted] = []
    for smiles in names:
        if len(found) >= options.count + options.count // 2:
            break
        one = draft(smiles, 1, 0, rules)
        if isinstance(one, Drafted) and len(one.graph.atom) > 1:
            found.append(one)
    if not found:
        raise DataError(f"{options.input or 'the molecules of polydiff'}: none that the model knows")
    return found


def flows(
    pipeline: ConformerPipeline, found: Sequence[Drafted], options: Calibrate, first: int, count: int
) -> list[Trajectories]:
    """The fine solutions from `count` draws of noise, molecules in turn, in batches."""
    mine = [found[(first + i) % len(found)] for i in range(count)]
    solved: list[Trajectories] = []
    sizes = [len(one.graph.atom) for one in mine]
    for part in chunks(range(count), [size * (size - 1) for size in sizes], options.pairs):
        these = [mine[i] for i in part]
        denoise, kernel, drafts = pipeline.given(
            [one.graph for one in these], [one.positions[0] for one in these], [one.level for one in these]
        )
        generators = [seeded(options.seed, DRAWN, key_of(mine[i].smiles), first + i) for i in part]
        x = kernel.prior(torch.zeros_like(drafts)).sample(generators)
        solved.append(trajectories(denoise, kernel, x, steps=options.fine))
    return solved


if __name__ == "__main__":
    run(Calibrate, main, command="calibrate", domain="molecules")
