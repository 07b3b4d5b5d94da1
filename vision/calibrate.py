"""Fit solvers to a trained model of images: `polydiff calibrate vision`, `python -m polydiff.vision.calibrate`.

A solver is a small table of times and weights, `solver-<n>.json` beside the weights; see `core.calibration`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..core.calibration import Calibrated, Trajectories, calibrate, trajectories
from ..core.commands import run
from ..core.errors import DataError
from ..core.randomness import example_generators
from ..core.runs import model_folder
from .options import Calibrate
from .pipeline import ImagePipeline
from .sample import load_model

__all__ = ["main", "solvers"]

DRAWN = 0x63616C69  # sets this use of the seed apart from the images that are drawn with it


def main(options: Calibrate) -> None:
    """Fit, print, and write the solvers into the model's folder."""
    folder = model_folder(options.model, "vision")
    if not (folder / "config.json").is_file():
        shipped = ", ".join(ImagePipeline.shipped())
        raise DataError(
            f"{folder}: no folder with a model to write solvers into; of a shipped model ({shipped}) make a copy "
            "first, from Python: ImagePipeline.from_pretrained(name).save_pretrained(folder)"
        )
    pipeline = load_model(str(folder))
    for solver in solvers(pipeline, options):
        calls = len(solver.times) - 1
        path = folder / f"solver-{calls}.json"
        try:
            solver.save(path)
        except OSError as error:
            raise DataError(f"{folder}: the solver cannot be written ({error})") from error
        print(
            f"{calls} calls: root mean square error {solver.rmse:.4g} against the exact flow; "
            f"{solver.rmse_start:.4g} by the best classical solver ({solver.start}); written: {path}",
            flush=True,
        )
    print(f"draw with one: polydiff sample vision --model {options.model} --steps {options.calls[0]}")


def solvers(pipeline: ImagePipeline, options: Calibrate):
    """The solvers, one for each of `options.calls`, as they are found."""
    training, validation = (
        flows(pipeline, options, 0, options.count),
        flows(pipeline, options, options.count, max(options.count // 2, 1)),
    )
    for calls in options.calls:
        found: Calibrated = calibrate(training, validation, calls, iterations=options.iterations)
        yield replace(found, guidance=options.guidance)


def flows(pipeline: ImagePipeline, options: Calibrate, first: int, count: int) -> list[Trajectories]:
    """The fine solutions from `count` draws of noise, classes in turn, in batches."""
    labels = pipeline.labels(None, count)
    found = []
    for part in torch.arange(count).split(options.batch_size):
        generators = example_generators(options.seed, DRAWN, [first + i for i in part.tolist()])
        like = torch.zeros(len(part), *pipeline.config.shape, device=pipeline.device)
        x = pipeline.kernel.prior(like).sample(generators)
        denoise = pipeline.given(None if labels is None else labels[part], options.guidance)
        found.append(trajectories(denoise, pipeline.kernel, x, steps=options.fine))
    return found


if __name__ == "__main__":
    run(Calibrate, main, command="calibrate", domain="vision")
