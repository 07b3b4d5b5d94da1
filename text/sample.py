"""Write texts with a trained model: `polydiff sample text`, `python -m polydiff.text.sample`.

Text i depends on the seed and on i alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..core.ancestral import ancestral
from ..core.commands import run
from ..core.config import to_dict
from ..core.errors import ArgumentError, DataError
from ..core.files import write_atomically
from ..core.methods import TOKEN_SAMPLERS
from ..core.tau_leaping import tau_leaping
from .autoregressive import AutoregressivePipeline
from .drawing import How
from .filling import particles
from .loading import load_model
from .options import Evaluate, Sample
from .pipeline import TextPipeline
from .templates import encoded

__all__ = ["FOR_EVERY_KERNEL", "SEPARATOR", "check_sampler", "how", "main", "texts", "used", "write"]

SEPARATOR = "=" * 20
"""The line between two texts of a file."""

FOR_EVERY_KERNEL = (ancestral, tau_leaping)
"""Samplers; the others of `TOKEN_SAMPLERS` are for absorbing kernels."""


def main(options: Sample) -> None:
    """Write the texts, print them, and keep them in `options.out`."""
    check(options)
    pipeline = load_model(options.model)
    print(used(pipeline, options), flush=True)
    found = texts(pipeline, options)
    write(options.out, found, options)
    print(f"\n{SEPARATOR}\n".join(found))
    print(f"{SEPARATOR}\n{len(found)} {'text' if len(found) == 1 else 'texts'} in {options.out}")


def check(options: Sample) -> None:
    """An ArgumentError for options that exclude one another."""
    if options.prompt is not None and options.infill is not None:
        raise ArgumentError("--infill", options.infill, "either --prompt or --infill")
    if options.infill is not None and options.length is not None:
        raise ArgumentError("--length", options.length, "nothing beside --infill: [MASK:n] says how much to write")
    if options.out.is_dir():
        raise ArgumentError("--out", str(options.out), "a file, not a folder")


def check_sampler(pipeline: TextPipeline, options: Sample | Evaluate) -> None:
    """An ArgumentError for a sampler that the model's kernel, or what is to be filled, does not go with."""
    if options.sampler is None:
        return
    kernel = pipeline.config.kernel
    if pipeline.kernel.mask is None and TOKEN_SAMPLERS[options.sampler] not in FOR_EVERY_KERNEL:
        able = ", ".join(name for name, sampler in TOKEN_SAMPLERS.items() if sampler in FOR_EVERY_KERNEL)
        raise ArgumentError("--sampler", options.sampler, f"{able}: the model's kernel is {kernel}, not absorbing")
    if not isinstance(options, Sample):
        return
    given = options.infill is not None or options.prompt is not None
    if pipeline.kernel.mask is None and (given or (options.length or 0) > pipeline.window):
        why = "known text conditions by RePaint or --particles, and so does what was written of a long text"
        raise ArgumentError("--sampler", options.sampler, f"None: the model's kernel is {kernel}, where {why}")
    if given and options.particles is not None:
        raise ArgumentError("--sampler", options.sampler, "None beside --particles, a sampler of their own")


def texts(pipeline: TextPipeline | AutoregressivePipeline, options: Sample) -> list[str]:
    """The texts that the options ask for."""
    if isinstance(pipeline, AutoregressivePipeline):
        return baseline(pipeline, options)
    check_sampler(pipeline, options)
    keywords, fill = how(options), None if options.particles is None else particles(options.particles)
    if options.infill is not None:
        return pipeline.infill(
            options.infill, count=options.count, fill=fill, normalise=options.normalise, **keywords
        )  # fmt: skip
    if options.prompt is not None:
        return pipeline.continue_(
            options.prompt, options.length, count=options.count, fill=fill, normalise=options.normalise, **keywords
        )
    if fill is not None:
        raise ArgumentError("--particles", options.particles, "something known: --infill or --prompt")
    return pipeline(options.count, options.length, **keywords)


def baseline(pipeline: AutoregressivePipeline, options: Sample) -> list[str]:
    """Texts of the autoregressive baseline, which writes from left to right."""
    for name in ("infill", "sampler", "particles", "top_p"):
        if (value := getattr(options, name)) is not None:
            raise ArgumentError(f"--{name.replace('_', '-')}", value, "nothing: the model is autoregressive")
    prompt, vocabulary = options.prompt or "", pipeline.config.vocabulary
    known = len(encoded("prompt", vocabulary.normalise(prompt) if options.normalise else prompt, vocabulary))
    length = options.length if options.length is not None else pipeline.config.network.length
    return pipeline(
        prompt, count=options.count, length=known + length, temperature=options.temperature, seed=options.seed
    )


def how(options: Sample | Evaluate) -> How:
    """The keywords of drawing."""
    return {
        "steps": options.steps,
        "sampler": None if options.sampler is None else TOKEN_SAMPLERS[options.sampler],
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "precision": torch.bfloat16 if options.precision == "bf16" else torch.float32,
    }


def used(pipeline: TextPipeline | AutoregressivePipeline, options: Sample | Evaluate) -> str:
    """Which algorithm the options come to, in words."""
    if isinstance(pipeline, AutoregressivePipeline):
        return "autoregressive, one network call a token"
    if options.sampler is not None:
        return f"{options.sampler}, {options.steps} steps"
    if options.steps in pipeline.unmasking:
        return f"the model's {options.steps} calibrated steps"
    known = ", ".join(map(str, sorted(pipeline.unmasking)))
    return f"ancestral, {options.steps} steps" + (f" (calibrated: {known} steps)" if known else "")


def write(path: Path, found: Sequence[str], options: Sample) -> None:
    """Keep texts in a file: one that ends in .json gets them as a list beside the options; any other each text and a
    line's end, with the separator's line between two."""
    if path.suffix == ".json":
        whole = {"texts": list(found), "options": to_dict(options)}
        content = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    else:
        content = f"{SEPARATOR}\n".join(f"{text}\n" for text in found)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path}: the texts cannot be written ({error})") from error


if __name__ == "__main__":
    run(Sample, main, command="sample", domain="text")
