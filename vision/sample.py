"""Draw images from a trained model: `polydiff sample vision`, `python -m polydiff.vision.sample`.

Image i depends on the seed and on i alone. With several processes each takes whole batches of the same composition, so
the pixels are the same as with one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.commands import CONFIG_NAME, run
from ..core.config import save
from ..core.methods import GRIDS, SAMPLERS
from ..core.names import GridName, SamplerName
from ..core.runs import check_free, make_folder, model_folder
from .data import picture, pictures
from .options import Evaluate, Sample
from .pipeline import ImagePipeline

__all__ = ["batches", "load_model", "main"]


def main(options: Sample) -> None:
    """Draw and write `000000.png`, ... and `grid.png` into `options.out`."""
    pipeline = load_model(options.model)
    labels = pipeline.labels(list(options.label) or None, options.count)
    make_folder(options.out)
    check_free(options, "sample", "vision")
    print(used(pipeline, options), flush=True)
    save(options.out / CONFIG_NAME, "sample", "vision", options)
    levels, names = pipeline.config.levels, pipeline.config.class_names
    drawn: list[Tensor] = []
    for images in batches(pipeline, labels, options):
        for i, image in enumerate(images, start=sum(map(len, drawn))):
            name = "" if labels is None or int(labels[i]) >= len(names) else "-" + slug(names[int(labels[i])])
            picture(image, levels).save(options.out / f"{i:06d}{name}.png")
        drawn.append(images)
    shown = torch.cat(drawn)[:100]
    grid = pictures(shown, levels, scale=max(1, 64 // shown.shape[-1]), columns=min(10, len(shown)))
    grid.save(options.out / "grid.png")
    print(f"{options.count} images in {options.out}, the first of them together in {options.out / 'grid.png'}")


def used(pipeline: ImagePipeline, options: Sample | Evaluate) -> str:
    """Which algorithm the options come to, in words."""
    steps, guidance = options.steps, options.guidance
    if options.sampler is not None:
        return f"{options.sampler}, {steps} steps"
    if pipeline.solver(steps, guidance) is not None:
        return f"the model's solver calibrated for {steps} calls and guidance {guidance:g}"
    known = ", ".join(f"{calls} at guidance {one.guidance:g}" for calls, one in sorted(pipeline.solvers.items()))
    return f"dpm-solver++, {steps} steps" + (f" (calibrated solvers: calls {known})" if known else "")


def load_model(name: str) -> ImagePipeline:
    """A model by name, from a folder with a model, or from the folder of a finished run."""
    path = model_folder(Path(name), "vision")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ImagePipeline.from_pretrained(path if path.is_dir() else name, device=device)


def batches(pipeline: ImagePipeline, labels: Tensor | None, options: Sample | Evaluate) -> Iterator[Tensor]:
    """Images in order, uint8 (B, C, H, W) each, batches shared out among processes; each reads the model anew.

    Args:
        pipeline: the model that `options.model` names.
        labels: classes, (options.count,), or None.
        options: how to draw.
    """
    count, processes = options.count, options.processes
    starts = range(0, count, options.batch_size)
    parts = [range(start, min(start + options.batch_size, count)) for start in starts]
    common = {
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "precision": torch.bfloat16 if options.precision == "bf16" else torch.float32,
    }
    jobs: list[tuple[Any, ...]] = [
        (
            None if labels is None else labels[part.start : part.stop].tolist(),
            len(part),
            part.start,
            options.sampler,
            options.grid,
            common,
        )
        for part in parts
    ]
    with tqdm(total=count, unit="image") as bar:
        if processes == 1:
            for job in jobs:
                images = _batch(pipeline, *job)
                bar.update(len(images))
                yield images
        else:
            threads = max(1, torch.get_num_threads() // processes)
            context = multiprocessing.get_context("spawn")
            with context.Pool(min(processes, len(jobs)), _begin, (options.model, threads)) as pool:
                for array in pool.imap(_work, jobs):
                    bar.update(len(array))
                    yield torch.from_numpy(array)


def slug(text: str) -> str:
    """A class name as part of a file name."""
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _batch(
    pipeline: ImagePipeline,
    labels: Sequence[int] | None,
    count: int,
    first: int,
    sampler: SamplerName | None,
    grid: GridName,
    common: dict[str, Any],
) -> Tensor:
    algorithm = None if sampler is None else SAMPLERS[sampler]
    return pipeline.sample(labels, count=count, first=first, sampler=algorithm, grid=GRIDS[grid], **common)


_worker: list[ImagePipeline] = []


def _begin(model: str, threads: int) -> None:
    torch.set_num_threads(threads)
    _worker[:] = [load_model(model)]


def _work(job: tuple[Any, ...]) -> Any:
    return _batch(_worker[0], *job).numpy()


if __name__ == "__main__":
    run(Sample, main, command="sample", domain="vision")
