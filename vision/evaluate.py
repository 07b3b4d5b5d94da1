"""Measure a model of images: `polydiff evaluate vision`, `python -m polydiff.vision.evaluate`.

Prints a table, writes `results.json` with everything behind it and `samples.png`. Each figure stands beside the same
figure of held-out images, which is what a perfect model would reach.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.commands import CONFIG_NAME, run
from ..core.config import load as load_options
from ..core.config import save, to_dict
from ..core.errors import ArgumentError, DataError
from ..core.files import write_atomically
from ..core.machine import machine
from ..core.runs import make_folder
from . import metrics
from .classifier import cached, extractor_options, judge_options
from .data import NAMES, Images, load, pictures
from .options import Evaluate, Train
from .pipeline import ImagePipeline
from .sample import batches, load_model, used

__all__ = ["bound", "evaluate", "main", "table"]


def main(options: Evaluate) -> None:
    """Draw, measure, print and write."""
    pipeline = load_model(options.model)
    options = with_data(options)
    assert options.data is not None
    train, test = (
        load(options.data, split, data_root=options.data_root, size=options.size) for split in ("train", "test")
    )
    print(f"{options.model} on {train.name}, {used(pipeline, options)}", flush=True)
    make_folder(options.out)
    save(options.out / CONFIG_NAME, "evaluate", "vision", options)
    results, samples = evaluate(pipeline, train, test, options)
    write_atomically(options.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    pictures(samples[:100], train.levels, scale=max(1, 64 // train.shape[2])).save(options.out / "samples.png")
    for row in table(results):
        print(f"{row['figure']:<72} {row['model']:>10} {row['held-out images']:>16}")
    print(f"written to {options.out / 'results.json'}")


def with_data(options: Evaluate) -> Evaluate:
    """The options, completed by the data that the run was trained on, or that the shipped model is named after."""
    if options.data is not None:
        return options
    kept = Path(options.model) / CONFIG_NAME
    if (kept.parent / "model").is_dir() and kept.is_file():
        trained = load_options(kept, "train", "vision", Train)
        return replace(options, data=trained.data, size=options.size if options.size is not None else trained.size)
    if options.model in NAMES:
        return replace(options, data=options.model)  # pyright: ignore[reportArgumentType]
    raise ArgumentError("--data", None, f"the data set that {options.model} was trained on: its folder does not tell")


def evaluate(pipeline: ImagePipeline, train: Images, test: Images, options: Evaluate) -> tuple[dict[str, Any], Tensor]:
    """All figures, JSON-able, and the samples they were taken of, uint8 (count, C, H, W).

    Raises:
        ArgumentError: the model does not fit the data.
    """
    config = pipeline.config
    if (config.shape, config.levels, config.class_names) != (train.shape, train.levels, train.class_names):
        mine = f"{config.shape} with {len(config.class_names)} classes and {config.levels} levels"
        raise ArgumentError(
            "data", f"{train.name} {train.shape} with {train.num_classes} classes", f"the model's own: {mine}"
        )
    if min(len(train), len(test)) < 10:
        found = f"{len(train)} training and {len(test)} held-out images"
        raise ArgumentError("data", found, "10 of each (of a folder without train/ and test/, a tenth is held out)")
    labels = pipeline.labels(None, options.count)
    samples = torch.cat(list(batches(pipeline, labels, options)))
    judge = cached(train, judge_options(), progress=True) if train.num_classes > 1 else None
    results = metrics.evaluate_samples(samples, labels, train, test, judge, extractor(train, options), options.seed)
    if options.bits:
        results["bits per dimension"] = bound(pipeline, test, options)
    results["options"] = to_dict(options) | {"out": None, "data_root": None}
    results["machine"], results["date"] = machine(), datetime.date.today().isoformat()
    return results, samples


def extractor(train: Images, options: Evaluate) -> metrics.Extractor:
    """Inception where asked for or, with `auto`, where its weights can be had; else a classifier of the data."""
    if options.features != "classifier":
        try:
            return metrics.Inception(train.levels)
        except DataError:
            if options.features == "inception":
                raise
    return cached(train, extractor_options(), progress=True) if train.num_classes > 1 else metrics.Pixels()


def bound(pipeline: ImagePipeline, test: Images, options: Evaluate) -> dict[str, Any]:
    """The bound on held-out images in bits per dimension: mean and standard error of the whole, means of its parts."""
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(options.seed))[: options.bits]
    parts = pipeline.bits_per_dim(
        test.images[chosen],
        test.labels[chosen] if test.num_classes else None,
        steps=options.bits_steps,
        seed=options.seed,
        batch_size=options.batch_size,
        precision=torch.bfloat16 if options.precision == "bf16" else torch.float32,
        progress=True,
    )
    whole = parts["total"].double()
    error = float(whole.std() / len(whole) ** 0.5) if len(whole) > 1 else None
    means = {name: float(value.double().mean()) for name, value in parts.items()}
    return {**means, "standard error": error, "images": len(whole), "steps": options.bits_steps}


def table(results: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of figure, model, held-out images, for people."""
    rows = [
        {"figure": name, "model": f"{row['value']:.4g}", "held-out images": f"{row['reference']:.4g}"}
        for name, row in results["figures"].items()
    ]
    if bits := results.get("bits per dimension"):
        label = f"bits per dimension, upper bound ({bits['steps']} steps, {bits['images']} held-out images)"
        rows.append({"figure": label, "model": f"{bits['total']:.4f}", "held-out images": ""})
        for part in ("prior", "gaps", "reconstruction"):
            rows.append({"figure": f"  of which {part}", "model": f"{bits[part]:.4f}", "held-out images": ""})
    return rows


if __name__ == "__main__":
    run(Evaluate, main, command="evaluate", domain="vision")
