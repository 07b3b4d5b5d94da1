"""The whole way on Python's own documentation: train, write, fill gaps, evaluate; and `index.html`, which shows it.

`polydiff demo text`, or `demo(report, options)` to add the section to a page of several domains.
"""

from __future__ import annotations

import shutil
import time

import torch
from matplotlib.figure import Figure

from ..core.ancestral import ancestral
from ..core.commands import run
from ..core.grids import uniform
from ..core.machine import machine
from ..core.options import TrainingOptions
from ..core.randomness import example_generators
from ..core.report import Report
from ..core.runs import command_line
from .data import load
from .evaluate import evaluate, table
from .loading import vocabulary_named
from .options import Demo, Evaluate, Network, Train
from .pipeline import TextPipeline
from .train import train

__all__ = ["demo", "main", "unmasked"]

STEPS = 32
GAPS = (
    "the expression [MASK:24] of the object ",
    "raises an exception [MASK:16] not defined ",
    "when a class [MASK:10] the method is called ",
)


def main(options: Demo) -> None:
    """Write the page."""
    report = Report("polydiff: text")
    report.text(
        "A small diffusion model of text, letter by letter, trained on the prose of Python's own documentation. It was "
        "trained, wrote, filled gaps and was measured in one go by `polydiff demo text`."
    )
    demo(report, options)
    report.link("../demo/index.html", "The same of images, once `polydiff demo vision` has been run.")
    report.write(options.out / "index.html")
    print(f"written: {options.out / 'index.html'}")


def demo(report: Report, options: Demo) -> None:
    """Add the section on text to a report; the run behind it is in `options.out / "text"`, made anew."""
    started = time.monotonic()
    settings = training(options)
    vocabulary = vocabulary_named(settings.vocabulary)
    data, held_out = (
        load(settings.data, split, length=settings.length, vocabulary=vocabulary) for split in ("train", "test")
    )
    if settings.out.is_dir():  # a demo's own folder, whose run is made again
        shutil.rmtree(settings.out)
    pipeline, trained = train(data, settings)
    assert isinstance(pipeline, TextPipeline)
    trained_at = time.monotonic()
    steps = 4 if options.quick else STEPS
    measure = Evaluate(
        model=str(settings.out),
        data=settings.data,
        windows=16 if options.quick else 200,
        terms=2 if options.quick else 8,
        count=8 if options.quick else 64,
        steps=steps,
        batch_size=64,
        seed=options.seed,
        precision="bf16" if bf16() else "no",
    )
    results, samples = evaluate(pipeline, data, held_out, measure)

    report.heading("Text: Python's documentation")
    report.text(
        f"Trained in {trained_at - started:.0f} s with `{command_line(settings, 'train', 'text')}`. A text of "
        f"{settings.length} letters takes {steps} network calls. {time.monotonic() - started:.0f} s in all on "
        f"{machine()}."
    )
    pieces, order = unmasked(pipeline, steps, options.seed)
    report.unfold(
        pieces, order, f"A sample, unmasked in {steps} steps: letters appear in random order, several at once."
    )
    written = [{"written by the model": pipeline.vocabulary.decode(row)} for row in samples[:4].tolist()]
    report.table(written, "Samples. So small a model has learned which letters go together, and few words.")
    real = held_out.batch(range(0, len(held_out), max(1, len(held_out) // 2)))["x_0"][:2]
    report.table([{"held-out text": pipeline.vocabulary.decode(row)} for row in real.tolist()], "For comparison.")
    filled = [
        {"with a gap": gap, "filled": text}
        for gap in GAPS
        for text in pipeline.infill(gap, count=2, steps=steps, seed=options.seed)
    ]
    report.table(filled, "Gaps filled: what is known stays to the letter, what comes after counts as well.")
    ngrams = {name: results["bits"][name]["bits per character"] for name in ("unigrams", "bigrams")}
    report.picture(curve(trained.history, ngrams), "Training loss, the bound in bits per letter, beside n-gram models.")
    report.table(
        table(results),
        "Figures of the model, and of samples beside those of held-out text: what a perfect model would reach. "
        "Entropies are in nats; bits per character are an upper bound, prior and reconstruction included.",
    )


def training(options: Demo) -> Train:
    """The demo's run."""
    return Train(
        data="python-docs",
        length=96,
        out=options.out / "text",
        # Tied: an output layer of zeros says nothing to the blocks below, and little is learned for hundreds of steps.
        network=Network(width=96, blocks=2, heads=3, tied=True),
        training=TrainingOptions(
            steps=4 if options.quick else 500,
            batch_size=24,
            learning_rate=3e-3,
            warmup=20,
            decay_to=0.02,
            betas=(0.9, 0.98),
            ema=0.98,
            precision="bf16" if bf16() else "no",
            checkpoint_every=0,
            log_every=2 if options.quick else 10,
            seed=options.seed,
        ),
    )


def bf16() -> bool:
    """Whether this machine multiplies in bfloat16; elsewhere it would be slower, not faster."""
    return torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@torch.no_grad()
def unmasked(pipeline: TextPipeline, steps: int, seed: int) -> tuple[list[str], list[int]]:
    """A sample of an absorbing model: its tokens as text, and the step, from 0, in which each was revealed."""
    kernel, mask = pipeline.kernel, pipeline.kernel.mask
    generators = example_generators(seed, 0, range(1))
    like = torch.zeros(1, pipeline.window, dtype=torch.long, device=pipeline.device)
    x = kernel.prior(like).sample(generators)
    order = torch.full_like(like, steps - 1)
    hidden = x == mask
    for i, step in enumerate(ancestral(pipeline.given(), kernel, x, uniform(steps), generator=generators)):
        order[hidden & (step.x != mask)] = i
        hidden, x = step.x == mask, step.x
    return [pipeline.vocabulary.decode([token]) for token in x[0].tolist()], order[0].tolist()


def curve(history: list[dict[str, float]], ngrams: dict[str, float]) -> Figure:
    """Loss in bits against step, and the n-gram models' bits."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    bit = torch.log(torch.tensor(2.0)).item()
    axes.plot([entry["step"] for entry in history], [entry["loss"] / bit for entry in history])
    for (name, bits), style in zip(ngrams.items(), ("--", ":"), strict=True):
        axes.axhline(bits, color="grey", linestyle=style, label=name)
    axes.set(xlabel="step", ylabel="bits per letter")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    run(Demo, main, command="demo", domain="text")
