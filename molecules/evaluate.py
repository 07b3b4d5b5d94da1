"""Measure a model of conformers: `polydiff evaluate molecules`, `python -m polydiff.molecules.evaluate`.

Prints a table and writes `results.json` with everything behind it. The model's figures stand beside those of ETKDGv3
and of ETKDGv3 relaxed by MMFF94, with the same number of conformers of the same molecules. References are the data
set's own: one minimum of B3LYP, or an ensemble of minima. Where they were made by MMFF94 from ETKDGv3, the second
baseline draws from what made them: it is the ceiling there, and says how far apart two draws of the references are.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rdkit import Chem

from ..core.commands import CONFIG_NAME, run
from ..core.config import load as load_options
from ..core.config import save, to_dict
from ..core.errors import ArgumentError
from ..core.files import write_atomically
from ..core.machine import machine
from ..core.methods import GRIDS, SAMPLERS
from ..core.runs import command_line, make_folder
from ..core.wording import lines
from . import generation_evaluate
from .comparison import SWEEP, Drawn, Draws, Reference, baselines, measure, relaxed_draws, timed
from .data import NAMES, Conformers, load
from .generation_options import GenerationEvaluate
from .loading import load_model, task_of
from .metrics import PROTOCOLS, Protocol
from .options import Evaluate, LevelName, TaskName, Train
from .pipeline import ConformerPipeline
from .reporting import shown, with_error
from .tasks import CONFORMERS, chosen

__all__ = ["draw", "evaluate", "main", "references_of", "table"]

MODEL = "polydiff"  # the model's column, whatever folder it lies in
ATTEMPTS = 20  # draws of ETKDGv3 behind a reference ensemble of MMFF94 minima


def main(options: Evaluate) -> None:
    """Measure a model of either task, which the model tells."""
    TASKS[task_of(options.model)](options)


def whole_molecules(options: Evaluate) -> None:
    """Measure a model of whole molecules."""
    trained, options = trained_with(options), with_data(options)
    asked = chosen(GenerationEvaluate, options, CONFORMERS)
    generation_evaluate.main(asked, options, None if trained is None else trained.count)


def conformers(options: Evaluate) -> None:
    """Draw, measure, print and write."""
    pipeline = load_model(options.model)
    options = with_data(options)
    assert options.data is not None
    data = load(
        options.data,
        options.split,
        start="centred",  # references need no drafts; molecules that cannot be embedded stay in
        scale=1.0,
        data_root=options.data_root,
        count=options.count,
        levels=None if options.level is None else (options.level,),
        attempts=ATTEMPTS,
        seed=options.seed,
    )
    print(f"{options.model} on {data.name}, the {options.split} part: {len(data.names)} molecules", flush=True)
    make_folder(options.out)
    save(options.out / CONFIG_NAME, "evaluate", "molecules", options)
    results = evaluate(pipeline, data, options)
    write_atomically(options.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    for line in lines(table(results)):
        print(line)
    print(results["about"])
    print(f"written to {options.out / 'results.json'}")


TASKS: Mapping[TaskName, Callable[[Evaluate], None]] = {"conformers": conformers, "molecules": whole_molecules}


def trained_with(options: Evaluate) -> Train | None:
    """The options of the run that the model is of, if it is a run's."""
    kept = Path(options.model) / CONFIG_NAME
    found = (kept.parent / "model").is_dir() and kept.is_file()
    return load_options(kept, "train", "molecules", Train) if found else None


def with_data(options: Evaluate) -> Evaluate:
    """The options, completed by the first set that the run was trained on, or that the shipped model is named after.

    Raises:
        ArgumentError: neither tells.
    """
    if options.data is not None:
        return options
    if (trained := trained_with(options)) is not None:
        return replace(options, data=trained.data[0])  # references are of one set and one level
    if options.model in NAMES:
        return replace(options, data=options.model)
    raise ArgumentError("--data", None, f"the data set that {options.model} was trained on: its folder does not tell")


def evaluate(pipeline: ConformerPipeline, data: Conformers, options: Evaluate) -> dict[str, Any]:
    """All figures of the model and of both baselines, JSON-able.

    Args:
        pipeline: the model.
        data: the reference conformers, of one level.

    Raises:
        ArgumentError: references of several levels, or of one that the model was not taught.
    """
    level = level_of(pipeline, data, options)
    protocol = protocol_named(options.protocol)
    delta = protocol.deltas["qm9"] if options.threshold is None else options.threshold
    references = references_of(data)
    model = draw(pipeline, references, options, level, protocol.ratio)
    plain = baselines(references, options.num_conformers, protocol.ratio, options.seed)
    draws = [model, *([relaxed_draws(model)] if options.relax else []), *plain]
    methods = measure(references, draws, protocol, delta, busted=options.posebusters, seed=options.seed)
    conformers = sum(one.mol.GetNumConformers() for one in references)
    drawn = f"{protocol.ratio} for each reference"
    if options.num_conformers is not None:
        drawn = f"{options.num_conformers} conformers of each molecule, {drawn} at least"
    found: dict[str, Any] = {
        "model": options.model,
        "data": data.name,
        "split": options.split,
        "level": level,
        "references": {"molecules": len(references), "conformers": conformers, "left out": dict(data.problems)},
        "protocol": protocol.name,
        "delta": delta,
        "about": (
            f"{len(references)} molecules of {data.name} ({options.split}), {conformers} reference conformers of "
            f"{level}; {drawn}; coverage by {protocol.name}: {protocol.rule} {delta:g} Å on the first "
            f"{protocol.ratio} for each reference; ± is the standard error over molecules"
        ),
        "methods": methods,
    }
    found |= {"options": to_dict(options), "seed": options.seed}
    found["command"] = command_line(options, "evaluate", "molecules")
    return found | {"machine": machine(), "date": datetime.date.today().isoformat()}


def level_of(pipeline: ConformerPipeline, data: Conformers, options: Evaluate) -> LevelName:
    """The level of the references, which the model is asked for; see `evaluate`."""
    known: tuple[LevelName, ...] = tuple(level.name for level in pipeline.config.levels)
    if len(data.levels) != 1:
        raise ArgumentError("--level", options.level, f"one of {', '.join(data.levels)}: the data has them all")
    for name in known:
        if name == data.levels[0]:
            return name
    raise ArgumentError("--level", data.levels[0], f"a level that the model was taught: {', '.join(known)}")


def protocol_named(name: str) -> Protocol:
    """P1 or P2."""
    return next(protocol for protocol in PROTOCOLS if protocol.name == name)


def references_of(data: Conformers) -> list[Reference]:
    """Every molecule of a data set with its reference conformers."""
    return [Reference(name, mol) for name, mol in zip(data.names, data.molecules, strict=True)]


def draw(
    pipeline: ConformerPipeline, references: Sequence[Reference], options: Evaluate, level: LevelName, ratio: int = 2
) -> Draws:
    """What the model draws, in the order in which it was drawn: the best do not come first."""
    precision = torch.bfloat16 if options.precision == "bf16" else torch.float32
    sampler = None if options.sampler is None else SAMPLERS[options.sampler]
    processes = options.processes
    pool = ProcessPoolExecutor(processes, get_context("spawn")) if processes > 1 else nullcontext(None)
    with pool as workers:

        def conformers(mols: Sequence[Chem.Mol], number: int) -> list[Drawn]:
            found = pipeline.generate(
                mols,
                number,
                level=level,
                steps=options.steps,
                sampler=sampler,
                grid=GRIDS[options.grid],
                seed=options.seed,
                energies=False,  # which would order them, the best first
                pairs=options.pairs,
                precision=precision,
                pool=workers,
            )
            return [Drawn(one.mol, one.status) for one in found]

        return timed(MODEL, conformers, references, options.num_conformers, ratio)


def table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of figures, a column for each method, for people."""
    methods: Mapping[str, Any] = results["methods"]
    rows: list[dict[str, str]] = []

    def add(figure: str, of: Any) -> None:
        cells = {name: of(found) for name, found in methods.items()}
        if any(cell != "–" for cell in cells.values()):
            rows.append({"figure": figure, **cells})

    rule = next(iter(methods.values()))["coverage"]["rule"].partition(",")[0]
    for name in ("COV-R", "MAT-R", "COV-P", "MAT-P"):
        percent, unit = name.startswith("COV"), f"%, {rule}" if name.startswith("COV") else "Å"
        title = f"{results['protocol']}: {name}, {unit}"
        add(f"{title}, mean", lambda found, n=name, p=percent: with_error(found["coverage"][n], p))
        add(f"{title}, median", lambda found, n=name, p=percent: shown(found["coverage"][n]["median"], p))
    for i, delta in enumerate(SWEEP):
        if delta < results["delta"]:  # where the protocol's own threshold has everything covered, these still tell
            for name in ("COV-R", "COV-P"):
                title = f"{results['protocol']}: {name} at {delta:g} Å, %, mean"
                add(title, lambda found, n=name, i=i: shown(found["sweep"][i][n], True))
    for name in dict.fromkeys(name for found in methods.values() for name in found["figures"]):
        add(name, lambda found, n=name: with_error(found["figures"].get(n, {}), False))
    for name in ("bond lengths, Å", "bond angles, °"):
        add(f"distribution of {name} (Wasserstein-1)", lambda found, n=name: shown(found["distributions"][n]["mean"]))
    add("stereo elements right, %", lambda found: shown(found["stereo"]["elements right"], True))
    add("conformers with all stereo elements right, %", lambda found: shown(found["stereo"]["conformers right"], True))
    add("passed by PoseBusters, %", lambda found: shown((found["posebusters"] or {}).get("passed"), True))
    add("molecules without conformers", lambda found: str(found["coverage"]["failed"]))
    add("conformers", lambda found: str(found["conformers"]))
    add("seconds per conformer", lambda found: shown(found["seconds per conformer"]))
    return rows


if __name__ == "__main__":
    run(Evaluate, main, command="evaluate", domain="molecules")
