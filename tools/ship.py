"""Put a finished run into the package: bfloat16 weights, and a card with the figures of its evaluation.

polydiff train DOMAIN ... --out runs/fashion
polydiff evaluate DOMAIN --model runs/fashion ... --out runs/fashion/evaluation
python tools/ship.py DOMAIN runs/fashion fashion-mnist --results runs/fashion/evaluation/results.json --licence MIT
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from polydiff.core.config import load
from polydiff.core.pipeline import Card, Pipeline
from polydiff.core.records import read_records
from polydiff.molecules import evaluate as molecules_evaluate
from polydiff.molecules import generation_evaluate, generation_sources, generation_train
from polydiff.molecules import train as molecules_train
from polydiff.molecules.loading import load_generator
from polydiff.molecules.options import Train as TrainMolecules
from polydiff.molecules.pipeline import ConformerPipeline
from polydiff.text import data as text_data
from polydiff.text import evaluate as text_evaluate
from polydiff.text import train as text_train
from polydiff.text.loading import load_model as load_text
from polydiff.text.loading import vocabulary_named
from polydiff.text.options import Train as TrainText
from polydiff.timeseries import evaluate as timeseries_evaluate
from polydiff.timeseries import train as timeseries_train
from polydiff.timeseries.loading import load_model as load_timeseries
from polydiff.timeseries.options import Train as TrainTimeseries
from polydiff.vision import data as vision_data
from polydiff.vision import evaluate as vision_evaluate
from polydiff.vision import train as vision_train
from polydiff.vision.options import Train as TrainVision
from polydiff.vision.sample import load_model as load_vision

ROOT = Path(__file__).parent.parent


class Run(NamedTuple):
    """A finished run."""

    pipeline: Pipeline
    card: Card
    table: Callable[[Any], Sequence[Mapping[str, str]]]
    """results -> rows of figure, model, and the same figure of others, such as held-out data"""
    limits: str


def vision(run: Path, data_root: Path | None) -> Run:
    """A run of images."""
    trained = load(run / "config.json", "train", "vision", TrainVision)
    data = vision_data.load(trained.data, "train", data_root=data_root, size=trained.size)
    return Run(
        load_vision(str(run)),
        vision_train.card(data, trained, seconds(run, trained)),
        vision_evaluate.table,
        "Draws pictures like its training set and nothing else, with that set's choice of classes and its errors. Fine "
        "detail (prints, straps, open sandals) comes out blurred or broken more often than plain garments.",
    )


def text(run: Path, data_root: Path | None) -> Run:
    """A run of text."""
    trained = load(run / "config.json", "train", "text", TrainText)
    vocabulary = vocabulary_named(trained.vocabulary)
    data = text_data.load(trained.data, "train", length=trained.length, vocabulary=vocabulary, data_root=data_root)
    return Run(
        load_text(str(run)),
        text_train.card(data, trained, seconds(run, trained)),
        text_evaluate.table,
        "Spells like its training set and imitates its phrases; it makes no sense beyond a few words, knows lower-case "
        "letters and spaces only, and repeats the language and the views of its books.",
    )


def molecules(run: Path, data_root: Path | None) -> Run:
    """A run of conformers, or of whole molecules."""
    trained = load(run / "config.json", "train", "molecules", TrainMolecules)
    return {"conformers": conformers, "molecules": whole_molecules}[trained.task](run, data_root, trained)


def whole_molecules(run: Path, data_root: Path | None, trained: TrainMolecules) -> Run:
    """A run of whole molecules."""
    options = molecules_train.generation_options(trained)
    data = generation_sources.load(options.data, "train", data_root=data_root, count=options.count)
    return Run(
        load_generator(str(run)),
        generation_train.card(data, options, trained, seconds(run, trained)),
        generation_evaluate.table,
        "Makes small molecules like its training set's and no others. Elements and positions are drawn, bonds are read "
        "off them: some of what comes out is unstable, charged oddly, strained or impossible to make.",
    )


def conformers(run: Path, data_root: Path | None, trained: TrainMolecules) -> Run:
    """A run of conformers."""
    data = molecules_train.data_of(replace(trained, data_root=data_root), "train")
    return Run(
        ConformerPipeline.from_pretrained(run),
        molecules_train.card(data, trained, seconds(run, trained)),
        molecules_evaluate.table,
        "Refines drafts of ETKDGv3: what these miss, such as a ring conformer that was not drawn, it seldom finds. "
        "Trained on small molecules (QM9: at most nine heavy atoms of C, N, O); by B3LYP it knows these elements only, "
        "and larger molecules or others by MMFF94 with less evidence. Geometries are of isolated molecules.",
    )


def timeseries(run: Path, data_root: Path | None) -> Run:
    """A run of time series."""
    trained = load(run / "config.json", "train", "timeseries", TrainTimeseries)
    data = timeseries_train.data_of(replace(trained, data_root=data_root), "train")
    return Run(
        load_timeseries(str(run)),
        timeseries_train.card(data, trained, seconds(run, trained)),
        timeseries_evaluate.table,
        f"Knows the features of its training set ({len(data.features)} of them), in its units and at its spacing in "
        "time, and no others: fit a model of your own to other series, which takes a minute. Its intervals hold for "
        "data like the training set's; of a process that changes, they know nothing.",
    )


DOMAINS: dict[str, Callable[[Path, Path | None], Run]] = {
    "vision": vision,
    "text": text,
    "molecules": molecules,
    "timeseries": timeseries,
}


def seconds(run: Path, trained: TrainVision | TrainText | TrainMolecules | TrainTimeseries) -> float:
    """How long the training took."""
    return read_records(run, last=trained.training.steps)[-1]["seconds"]


def main() -> None:
    """Write `DOMAIN/pretrained/NAME`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--results", type=Path, help="results.json of `polydiff evaluate`; without it, no figures")
    parser.add_argument("--licence", required=True, help="of the weights, as SPDX")
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    found = DOMAINS[options.domain](options.run, options.data_root)
    limits = f"{found.limits} Weights are stored in bfloat16; the figures are of these stored weights."
    figures = {} if options.results is None else {"figures": facts(options.results, options.name, found.table)}
    written = replace(found.card, licence=options.licence, limits=limits, **figures)
    folder = ROOT / options.domain / "pretrained" / options.name
    found.pipeline.save_pretrained(folder, card=written, dtype=torch.bfloat16)
    print(f"written: {folder}")


def facts(results: Path, name: str, table: Callable[[Any], Sequence[Mapping[str, str]]]) -> dict[str, str]:
    """The card's figures, each with the same figure of what it is compared with."""
    found = json.loads(results.read_text(encoding="utf-8"))
    found = found.get(name, found)  # also the results of tests/benchmarks/vision_quality.py
    options = found["options"]
    about = [f"{options['steps'] or 'default'} calls of {options['sampler'] or 'the default sampler'}"]
    about += [f"guidance {options['guidance']}"] if "guidance" in options else []
    about += [f"`{found['command']}`"] if "command" in found else []
    rows = {}
    for row in table(found):
        (_, figure), (_, model), *others = row.items()
        beside = ", ".join(f"{other}: {value or '-'}" for other, value in others)
        rows[figure] = f"{model} ({beside})"
    return {"measured on": f"{', '.join(about)}; {found['date']}, {found['machine']}", **rows}


if __name__ == "__main__":
    main()
