"""Measure a model of text: `polydiff evaluate text`, `python -m polydiff.text.evaluate`.

Prints a table, writes `results.json` with everything behind it and `samples.txt`. Bits per character stand beside those
of the training text's unigrams and bigrams, figures of samples beside the same figures of held-out text, which is what
a perfect model would reach.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..core.bounds import elbo
from ..core.checkpoints import read_json
from ..core.commands import CONFIG_NAME, run
from ..core.config import load as load_options
from ..core.config import save, to_dict
from ..core.errors import ArgumentError
from ..core.estimates import continuous_elbo, elbo_estimate
from ..core.files import write_atomically
from ..core.grids import uniform
from ..core.machine import machine
from ..core.methods import TOKEN_SAMPLERS
from ..core.randomness import example_generators
from ..core.runs import command_line, make_folder, model_folder
from . import metrics
from .autoregressive import AutoregressivePipeline
from .data import NAMES, Text, load
from .judges import Causal, Judge
from .loading import load_model
from .options import Evaluate, Train
from .pipeline import TextPipeline
from .sample import check_sampler, used

__all__ = ["Baseline", "bits", "draw", "evaluate", "judge", "main", "spaced", "table"]

AnyPipeline = TextPipeline | AutoregressivePipeline

LARGEST_CONFIG = 1 << 20
RULE = "\n=\n"


def main(options: Evaluate) -> None:
    """Draw, measure, print and write."""
    pipeline = load_model(options.model)
    options = with_data(options)
    assert options.data is not None
    config, root = pipeline.config, options.data_root
    train, test = (
        load(options.data, split, length=config.network.length, vocabulary=config.vocabulary, data_root=root)
        for split in ("train", options.split)
    )
    print(f"{options.model} on {train.name}, the {options.split} part", flush=True)
    make_folder(options.out)
    save(options.out / CONFIG_NAME, "evaluate", "text", options)
    results, samples = evaluate(pipeline, train, test, options)
    write_atomically(options.out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_atomically(options.out / "samples.txt", RULE.join(map(config.vocabulary.decode, samples.tolist())) + "\n")
    print(f"texts drawn by: {used(pipeline, options)}")
    print(f"{'':<76} {'model':>18} {'held-out text':>14}")
    for row in table(results):
        print(f"{row['figure']:<76} {row['model']:>18} {row['held-out text']:>14}")
    print(f"written to {options.out / 'results.json'}")


def with_data(options: Evaluate) -> Evaluate:
    """The options, completed by the data that the run was trained on, or that the shipped model is named after.

    Raises:
        ArgumentError: neither tells.
    """
    if options.data is not None:
        return options
    kept = Path(options.model) / CONFIG_NAME
    if (kept.parent / "model").is_dir() and kept.is_file():
        return replace(options, data=load_options(kept, "train", "text", Train).data)
    if options.model in NAMES:
        return replace(options, data=options.model)
    raise ArgumentError("--data", None, f"the data set that {options.model} was trained on: its folder does not tell")


def evaluate(pipeline: AnyPipeline, train: Text, test: Text, options: Evaluate) -> tuple[dict[str, Any], Tensor]:
    """All figures, JSON-able, and the samples they were taken of, long (count, length).

    Args:
        pipeline: the model.
        train, test: training and held-out text in the model's vocabulary.

    Raises:
        ArgumentError: the model does not fit the data, or an option the model. DataError: no such judge.
    """
    if train.vocabulary != pipeline.config.vocabulary or test.vocabulary != pipeline.config.vocabulary:
        raise ArgumentError("data", f"{train.name} in {train.vocabulary}", f"{pipeline.config.vocabulary}, the model's")
    if min(train.length, test.length) < 2:
        raise ArgumentError("data", f"windows of {min(train.length, test.length)}", "windows of 2 tokens or more")
    check_options(pipeline, options)
    by = judge(options.judge) if options.judge is not None else None
    samples = draw(pipeline, test.length, options)
    count = min(len(samples), len(test))
    decode = pipeline.config.vocabulary.decode
    results: dict[str, Any] = {"model": options.model, "data": train.name, "split": options.split}
    results |= metrics.evaluate_samples(samples[:count], spaced(test, count), train.text, decode, by)
    if options.windows:
        results["bits"] = bits(pipeline, train, test, options)
    results |= {"options": to_dict(options), "seed": options.seed, "command": command_line(options, "evaluate", "text")}
    return results | {"machine": machine(), "date": datetime.date.today().isoformat()}, samples


def check_options(pipeline: AnyPipeline, options: Evaluate) -> None:
    """An ArgumentError if the baseline is asked for what only diffusion has, or an absorbing sampler of another."""
    if isinstance(pipeline, AutoregressivePipeline):
        for name in ("sampler", "top_p"):
            if getattr(options, name) is not None:
                raise ArgumentError(f"--{name}", getattr(options, name), "None: the baseline writes token by token")
        if options.bound_steps:
            raise ArgumentError("--bound-steps", options.bound_steps, "none: the baseline's figure is exact")
    else:
        check_sampler(pipeline, options)


def spaced(data: Text, count: int) -> Tensor:
    """`count` windows at even distances, from the first to the last, long (count, L)."""
    chosen = [round(i * (len(data) - 1) / max(1, count - 1)) for i in range(count)]
    return data.batch(chosen)["x_0"]


def draw(pipeline: AnyPipeline, length: int, options: Evaluate) -> Tensor:
    """Samples of one window, long (options.count, length); sample i depends on the seed and on i alone."""
    if isinstance(pipeline, AutoregressivePipeline):
        parts = []
        for part in torch.arange(options.count).split(options.batch_size):
            generators = example_generators(options.seed, 0, part.tolist())
            parts.append(pipeline.model.sample(len(part), length, options.temperature, generators).cpu())
        return torch.cat(parts)
    return pipeline.sample(
        options.count,
        length,
        steps=options.steps,
        sampler=None if options.sampler is None else TOKEN_SAMPLERS[options.sampler],
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        batch_size=options.batch_size,
        precision=precision(options),
    ).cpu()


def bits(pipeline: AnyPipeline, train: Text, test: Text, options: Evaluate) -> dict[str, Any]:
    """Bits per character and per word of held-out windows: the model's, and those of training n-grams.

    Returns:
        {"of": which text and windows, name of the estimate: `metrics.rate`'s figures and, of a bound, its parts in
        bits per character, ..., "unigrams": ..., "bigrams": ...}
    """
    windows = spaced(test, min(options.windows, len(test)))
    counts = metrics.characters(windows, test.vocabulary.decode)
    per_word = test.characters / test.words if test.words else None

    def rated(nats: Mapping[str, Tensor]) -> dict[str, Any]:
        parts = {name: metrics.rate(part, counts)["bits per character"] for name, part in nats.items()}
        del parts["total"]
        return {**metrics.rate(nats["total"], counts, per_word), **parts}

    found: dict[str, Any] = {}
    if isinstance(pipeline, AutoregressivePipeline):
        found["exact"] = rated({"total": exact_nats(pipeline, windows, options)})
    else:
        estimates: dict[str, Any] = {"continuous bound": partial(continuous_elbo, terms=options.terms)}
        for steps in options.bound_steps:
            times = uniform(steps, pipeline.kernel.schedule)
            whole = steps - 1 <= options.terms
            estimates[f"bound of {steps} steps"] = (
                partial(elbo, times=times) if whole else partial(elbo_estimate, times=times, terms=options.terms)
            )
        for name, estimate in estimates.items():
            nats = metrics.bound_nats(
                pipeline.given(),
                pipeline.kernel,
                windows.to(pipeline.device),
                estimate,
                seed=options.seed,
                batch_size=options.batch_size,
                precision=precision(options),
            )
            found[name] = {**rated(nats), "terms": options.terms}
    for name, order in (("unigrams", 1), ("bigrams", 2)):
        nats = metrics.ngram_nats(train.tokens.long(), windows, train.vocabulary.size, order)
        found[name] = rated({"total": nats})
    return found


@torch.no_grad()
def exact_nats(pipeline: AutoregressivePipeline, windows: Tensor, options: Evaluate) -> Tensor:
    """-log p of windows by the chain rule, (N,)."""
    device = next(pipeline.model.parameters()).device
    with torch.autocast(device.type, precision(options), enabled=options.precision == "bf16"):
        parts = [-pipeline.model.log_prob(part.to(device)).double() for part in windows.split(options.batch_size)]
    return torch.cat(parts).cpu()


def precision(options: Evaluate) -> torch.dtype:
    """The number type of the network."""
    return torch.bfloat16 if options.precision == "bf16" else torch.float32


@final
class Baseline:
    """The package's autoregressive model as a judge; texts are brought into its vocabulary's form first."""

    def __init__(self, name: str, pipeline: AutoregressivePipeline):
        self.name, self.pipeline = f"{name}, autoregressive", pipeline

    @property
    def dtype(self) -> str:
        return str(next(self.pipeline.model.parameters()).dtype).removeprefix("torch.")

    def nats(self, texts: Sequence[str], /) -> tuple[Tensor, Tensor]:
        vocabulary = self.pipeline.config.vocabulary
        counts = [len(vocabulary.encode(vocabulary.normalise(text))) for text in texts]
        return torch.tensor(self.pipeline.score(texts), dtype=torch.float64), torch.tensor(counts)


def judge(name: str) -> Judge:
    """A folder with an autoregressive model of this package, or a causal model of transformers by name or folder.

    Raises:
        ArgumentError: a diffusion model. DataError: it cannot be had.
    """
    config = model_folder(Path(name), "text") / CONFIG_NAME
    if config.is_file() and "pipeline" in read_json(config, LARGEST_CONFIG):
        pipeline = load_model(name)
        if not isinstance(pipeline, AutoregressivePipeline):
            raise ArgumentError("--judge", name, "a causal model; this is a diffusion model, which has bounds only")
        return Baseline(name, pipeline)
    return Causal.from_pretrained(name)


def table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of figure, model, held-out text, for people."""
    rows = []
    for name, found in results.get("bits", {}).items():
        about = f"{found['windows']} held-out windows"
        rows.append(row(f"bits per character, {name} ({about})", *with_error(found, "bits per character")))
        for part in ("prior", "gaps", "reconstruction"):
            if part in found:
                rows.append(row(f"  of which {part}", f"{found[part]:.4f}"))
        if "bits per word" in found:
            rows.append(row(f"bits per word, {name}", *with_error(found, "bits per word")))
    rows += [row(name, shown(each["value"]), shown(each["reference"])) for name, each in results["figures"].items()]
    return rows


def row(figure: str, model: str, held_out: str = "") -> dict[str, str]:
    """A row of the table."""
    return {"figure": figure, "model": model, "held-out text": held_out}


def with_error(found: Mapping[str, Any], name: str) -> tuple[str]:
    """A figure and its standard error."""
    error = found["standard error" if name == "bits per character" else "standard error per word"]
    return (f"{found[name]:.4f}" + (f" ± {error:.4f}" if error is not None else ""),)


def shown(value: float | None) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    run(Evaluate, main, command="evaluate", domain="text")
