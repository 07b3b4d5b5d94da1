"""Put a finished run of images into the package: bfloat16 weights, and a card with the figures of its evaluation.

polydiff train vision ... --out runs/fashion
polydiff evaluate vision --model runs/fashion ... --out runs/fashion/evaluation
python tools/ship.py runs/fashion fashion-mnist --results runs/fashion/evaluation/results.json --licence MIT
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from polydiff.core.config import load
from polydiff.core.records import read_records
from polydiff.vision.data import load as load_data
from polydiff.vision.evaluate import table
from polydiff.vision.options import Train
from polydiff.vision.sample import load_model
from polydiff.vision.train import card

PRETRAINED = Path(__file__).parent.parent / "vision" / "pretrained"
LIMITS = (
    "Draws pictures like its training set and nothing else, with that set's choice of classes and its errors. Fine "
    "detail (prints, straps, open sandals) comes out blurred or broken more often than plain garments. Weights are "
    "stored in bfloat16; the figures are of these stored weights."
)


def main() -> None:
    """Write `vision/pretrained/NAME`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--results", type=Path, help="results.json of `polydiff evaluate`; without it, no figures")
    parser.add_argument("--licence", required=True, help="of the weights, as SPDX")
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    trained = load(options.run / "config.json", "train", "vision", Train)
    data = load_data(trained.data, "train", data_root=options.data_root, size=trained.size)
    seconds = read_records(options.run, last=trained.training.steps)[-1]["seconds"]
    written = replace(
        card(data, trained, seconds), licence=options.licence, limits=LIMITS, **facts(options.results, options.name)
    )
    pipeline = load_model(str(options.run))
    pipeline.save_pretrained(PRETRAINED / options.name, card=written, dtype=torch.bfloat16)
    print(f"written: {PRETRAINED / options.name}")


def facts(results: Path | None, name: str) -> dict[str, object]:
    """The card's figures, each with the same figure of held-out images."""
    if results is None:
        return {}
    found = json.loads(results.read_text(encoding="utf-8"))
    found = found.get(name, found)  # also the results of tests/benchmarks/vision_quality.py
    options = found["options"]
    head = (
        f"{found['samples']} samples, {options['steps']} calls of {options['sampler']}, guidance {options['guidance']}"
    )
    rows = {row["figure"]: f"{row['model']} (held-out images: {row['held-out images'] or '-'})" for row in table(found)}
    return {"figures": {"measured on": f"{head}; {found['date']}, {found['machine']}", **rows}}


if __name__ == "__main__":
    main()
