"""Quality of the image models: the demo's digits, trained here, and the Fashion-MNIST model that ships.

    python -m tests.benchmarks.vision_quality [--data-root FOLDER] [--only digits fashion-mnist]

Every figure stands beside the same figure of held-out real images. Writes results/vision_quality.json and the pictures
of the README. Fashion-MNIST is downloaded unless --data-root has it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from polydiff.core.files import write_atomically
from polydiff.core.machine import machine
from polydiff.vision import demo
from polydiff.vision.data import load, pictures
from polydiff.vision.evaluate import evaluate, table
from polydiff.vision.options import Demo, Evaluate
from polydiff.vision.pipeline import ImagePipeline
from polydiff.vision.train import train

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "vision_quality.json"
PICTURES = HERE.parent.parent / "docs"
MEASURE = Evaluate(features="classifier", count=2000, steps=20, batch_size=250, precision="bf16", bits_steps=200)


def digits(data_root: Path | None) -> dict[str, Any]:
    """Train as the demo does, then measure with the demo's guidance."""
    data, held_out = load("digits", "train"), load("digits", "test")
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        options = demo.training(Demo(out=Path(folder)))
        pipeline, _ = train(data, options)
        seconds = time.monotonic() - started
        measure = replace(MEASURE, model=str(options.out), data="digits", guidance=demo.GUIDANCE, bits=450)
        results, samples = evaluate(pipeline, data, held_out, measure)
    pictures(samples[:60], data.levels, 5, columns=20).save(PICTURES / "digits.png", optimize=True)
    return {**results, "training seconds": seconds}


def fashion_mnist(data_root: Path | None) -> dict[str, Any]:
    """Measure the shipped model at the guidance that its card recommends."""
    data, held_out = (load("fashion-mnist", split, data_root=data_root) for split in ("train", "test"))
    pipeline = ImagePipeline.from_pretrained("fashion-mnist")
    measure = replace(MEASURE, model="fashion-mnist", data="fashion-mnist", guidance=1.2, bits=1000)
    results, samples = evaluate(pipeline, data, held_out, measure)
    pictures(samples[:60], data.levels, 2, columns=20).save(PICTURES / "fashion-mnist.png", optimize=True)
    return results


def main() -> None:
    """Measure, print, write; sets not asked for keep their old entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--only", nargs="+", choices=["digits", "fashion-mnist"], default=["digits", "fashion-mnist"])
    options = parser.parse_args()
    whole = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    whole |= {"command": "python -m tests.benchmarks.vision_quality", "seed": MEASURE.seed}
    for name, measure in (("digits", digits), ("fashion-mnist", fashion_mnist)):
        if name in options.only:
            whole[name] = measure(options.data_root) | {"machine": machine(), "date": datetime.date.today().isoformat()}
            print(name)
            for row in table(whole[name]):
                print(f"  {row['figure']:<72} {row['model']:>10} {row['held-out images']:>12}")
            RESULTS.parent.mkdir(exist_ok=True)
            write_atomically(RESULTS, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
