"""Find how many tokens to reveal in each of few steps: `polydiff calibrate text`, `python -m polydiff.text.calibrate`.

The loss of a hidden token falls as more of the text is known. Revealing k tokens at once when j are known costs k times
the loss at j; `core.any_order.optimal_steps` finds the counts of least total cost (Hoogeboom et al. 2022, section 3.3).
They are kept as `unmasking.json` beside the weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ..core.any_order import any_order_losses, optimal_steps
from ..core.categorical import Categorical
from ..core.commands import CONFIG_NAME, run
from ..core.config import load as load_options
from ..core.errors import ArgumentError, DataError
from ..core.randomness import example_generators
from ..core.runs import model_folder
from . import revealing
from .data import Text, load
from .loading import load_diffusion
from .options import Calibrate, Evaluate, Train
from .pipeline import TextPipeline

__all__ = ["cost", "losses", "main", "source"]

DRAWN = 0x63616C69  # sets this use of the seed apart from the texts that are drawn with it


def main(options: Calibrate) -> None:
    """Measure, solve, print, and write the steps into the model's folder."""
    folder = model_folder(options.model, "text")
    if not (folder / CONFIG_NAME).is_file():
        shipped = ", ".join(TextPipeline.shipped()) or "none"
        raise DataError(
            f"{folder}: no folder with a model to write steps into; of a shipped model ({shipped}) make a copy first, "
            "from Python: TextPipeline.from_pretrained(name).save_pretrained(folder)"
        )
    pipeline = load_diffusion(str(folder), "be calibrated")
    check(pipeline, options)
    data = load(
        source(str(options.model), options),
        "valid",
        length=pipeline.window,
        vocabulary=pipeline.config.vocabulary,
        data_root=options.data_root,
    )
    measured = losses(pipeline, data, options)
    for calls in options.calls:
        counts = optimal_steps(measured, calls)
        pipeline.unmasking[calls] = tuple(counts.tolist())
        one_by_one = cost(measured, torch.ones_like(measured).long())
        print(
            f"{calls} calls: {cost(measured, counts):.4f} bits a token; {one_by_one:.4f} one by one, "
            f"{cost(measured, even(pipeline.window, calls)):.4f} with as many tokens in each call",
            flush=True,
        )
    try:
        revealing.write(folder, pipeline.unmasking)
    except OSError as error:
        raise DataError(f"{folder}: the steps cannot be written ({error})") from error
    print(f"written: {folder / revealing.UNMASKING}; draw: polydiff sample text --model {options.model} "
          f"--steps {options.calls[0]}")  # fmt: skip


def check(pipeline: TextPipeline, options: Calibrate) -> None:
    """An ArgumentError for a model that is not absorbing, or more calls than it has tokens."""
    if pipeline.kernel.mask is None:
        raise ArgumentError("--model", str(options.model), f"an absorbing model; this is {pipeline.config.kernel}")
    if not options.calls or max(options.calls) > pipeline.window:
        raise ArgumentError("--calls", options.calls, f"numbers from 1 to the {pipeline.window} tokens of a window")


def losses(pipeline: TextPipeline, data: Text, options: Calibrate) -> Tensor:
    """The mean loss of a hidden token in nats when 0 ... L - 1 others are known, (L,) float64."""
    kernel = pipeline.kernel
    if not isinstance(kernel, Categorical):
        raise ArgumentError("pipeline", pipeline.config.kernel, "an absorbing model")
    many = min(options.windows, len(data))
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(options.seed))[:many]
    total = torch.zeros(data.length, dtype=torch.float64)
    for first in range(0, many, options.batch_size):
        part = chosen[first : first + options.batch_size]
        generators = example_generators(options.seed, DRAWN, range(first, first + len(part)))
        x_0 = data.batch(part)["x_0"].to(pipeline.device)
        with torch.no_grad():
            found = any_order_losses(pipeline.given(), kernel, x_0, generator=generators)
        total += found.cpu().to(torch.float64).sum(0)
    return total / many


def cost(losses: Tensor, counts: Tensor) -> float:
    """Bits a token of revealing so many tokens in each step."""
    first = counts.cumsum(0) - counts
    return float((counts * losses[first]).sum() / len(losses) / math.log(2))


def even(total: int, calls: int) -> Tensor:
    """`calls` counts as equal as can be that add up to `total`."""
    return (torch.arange(1, calls + 1) * total // calls).diff(prepend=torch.zeros(1, dtype=torch.long))


def source(model: str, options: Calibrate | Evaluate) -> str:
    """The data set that the options name, or that the run which made the model was trained on.

    Raises:
        ArgumentError: neither is known.
    """
    if options.data is not None:
        return options.data
    kept = Path(model) / CONFIG_NAME
    if (Path(model) / "model").is_dir() and kept.is_file():
        return load_options(kept, "train", "text", Train).data
    raise ArgumentError("--data", None, f"the data set that {model} was trained on: its folder does not tell")


if __name__ == "__main__":
    run(Calibrate, main, command="calibrate", domain="text")
