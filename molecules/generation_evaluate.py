"""Measure a model of whole molecules: `polydiff evaluate molecules --model` with one of these.

What the model draws stands beside held-out molecules, measured alike: the figures are shares of their readings of bonds
(`stability`), which real molecules do not pass in full either. Held-out molecules also cost nats under the model, an
upper bound on -log p of positions and labelled types given the number of atoms (`MoleculePipeline.log_likelihood`).
"""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from ..core.commands import CONFIG_NAME
from ..core.config import save, to_dict
from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.machine import machine
from ..core.runs import command_line, make_folder
from ..core.wording import lines
from .generation import MoleculePipeline
from .generation_data import Molecules
from .generation_options import GenerationEvaluate
from .generation_sources import load
from .loading import load_generator
from .reporting import shown, with_error
from .stability import Atoms, by_lengths, determined, figures

__all__ = ["evaluate", "main", "table"]

MODEL, REAL = "polydiff", "held-out molecules"
READINGS = {"by bond lengths": by_lengths, "by valencies": determined}
SHARES = {
    "atoms_stable": "atoms stable",
    "molecules_stable": "molecules stable",
    "valid": "valid",
    "connected": "valid and in one piece",
    "unique": "unique of the valid",
    "novel": "novel of the unique",
}
OF_ALL = frozenset({"molecules_stable", "valid", "connected"})
"""Shares of independent molecules, whose standard error is a binomial's."""


def main(options: GenerationEvaluate, whole: Any, count: int | None) -> None:
    """Draw, measure, print and write.

    Args:
        options: with the data set.
        whole: the command's options, which are kept with the results.
        count: molecules of the data set that the model was trained on; None for all.
    """
    assert options.data is not None
    pipeline = load_generator(options.model)
    train = load(options.data, "train", data_root=options.data_root, count=count)
    real = load(options.data, options.split, data_root=options.data_root, count=options.count)
    print(f"{options.model} on {real.name}, the {options.split} part: {len(real)} molecules", flush=True)
    make_folder(options.out)
    save(options.out / CONFIG_NAME, "evaluate", "molecules", whole)
    results = evaluate(pipeline, train, real, options)
    results |= {
        "options": to_dict(whole),
        "seed": options.seed,
        "command": command_line(whole, "evaluate", "molecules"),
    }
    results |= {"machine": machine(), "date": datetime.date.today().isoformat()}
    write_atomically(options.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    for line in lines(table(results)):
        print(line)
    print(results["about"])
    print(f"written to {options.out / 'results.json'}")


def evaluate(
    pipeline: MoleculePipeline, train: Molecules, real: Molecules, options: GenerationEvaluate
) -> dict[str, Any]:
    """All figures of the model and of held-out molecules, JSON-able.

    Raises:
        DataError: the model knows no held-out molecule's elements.
    """
    held = [real.atoms(i) for i in range(len(real))]
    known = [one for one in held if set(one.elements) <= set(pipeline.config.elements)]
    if not known:
        raise DataError(
            f"{real.name}: the model knows {', '.join(pipeline.config.elements)}, no molecule of only these"
        )
    began = time.perf_counter()
    drawn = pipeline.generate(options.count, steps=options.steps, seed=options.seed)
    seconds = (time.perf_counter() - began) / options.count
    found = pipeline.log_likelihood(known, seed=options.seed)
    sizes = [one.size for one in found if math.isfinite(one.size)]
    nats = {
        "nats of a molecule, a bound": mean_of([one.nats for one in found]),
        "nats of a molecule without labels": mean_of([one.unlabelled for one in found]),
        "nats of its number of atoms": mean_of(sizes),
    }
    return {
        "model": options.model,
        "data": real.name,
        "split": options.split,
        "training molecules": len(train),
        "left out": {"elements that the model does not know": len(held) - len(known)},
        "sizes that the training set lacks": len(found) - len(sizes),
        "about": (
            f"{len(drawn)} molecules drawn in {options.steps} steps, {len(held)} of {real.name} ({options.split}); "
            f"novel: not among {len(train)} training molecules; nats: of {len(known)} held-out molecules, a density in "
            "Å^-3(N - 1) times a probability of types, given N; ± is the standard error over molecules"
        ),
        "methods": {
            MODEL: {"shares": shares_of(drawn, train.names), "nats": nats, "seconds per molecule": seconds},
            REAL: {"shares": shares_of(held, train.names), "nats": {}, "seconds per molecule": None},
        },
    }


def shares_of(molecules: Sequence[Atoms], known: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """By reading and figure: the share and, where it is that of independent molecules, its standard error."""
    every: dict[str, dict[str, dict[str, Any]]] = {}
    for reading, perceive in READINGS.items():
        found = asdict(figures(molecules, perceive=perceive, known=known))
        count = found["count"]
        every[reading] = {
            name: {"mean": None if math.isnan(found[name]) else found[name]}
            | ({"standard error": math.sqrt(found[name] * (1 - found[name]) / count)} if name in OF_ALL else {})
            for name in SHARES
        }
    for name in ("atoms_stable", "molecules_stable"):
        del every["by valencies"][name]  # stability always goes by lengths
    return every


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error, None where there are too few values."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": fmean(values) if values else None, "standard error": error}


def table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of figures, a column for the model and one for held-out molecules, for people."""
    methods: Mapping[str, Any] = results["methods"]
    first = next(iter(methods.values()))
    rows: list[dict[str, str]] = []
    for reading, names in first["shares"].items():
        for name in names:
            cells = {of: with_error(found["shares"][reading][name], True) for of, found in methods.items()}
            rows.append({"figure": f"{SHARES[name]}, {reading}, %", **cells})
    for name in first["nats"]:
        rows.append(
            {"figure": name, **{of: with_error(found["nats"].get(name, {}), False) for of, found in methods.items()}}
        )
    cells = {of: shown(found["seconds per molecule"]) for of, found in methods.items()}
    return [*rows, {"figure": "seconds per molecule", **cells}]
