"""The whole way on the digits: train, sample, evaluate, and one page that shows it, `index.html`.

`polydiff demo vision`, or `demo(report, options)` to add the section to a page of several domains.
"""

from __future__ import annotations

import shutil
import time

import torch
from matplotlib.figure import Figure

from ..core.commands import run
from ..core.machine import machine
from ..core.options import TrainingOptions
from ..core.report import Report
from ..core.runs import command_line
from .data import load, pictures, to_uint8
from .evaluate import evaluate, table
from .options import Demo, Evaluate, Network, Train
from .pipeline import ImagePipeline
from .train import train

__all__ = ["demo", "main"]

GUIDANCE = 1.0
"""Weight of classifier-free guidance."""

SCALE = 6  # screen pixels per pixel of a digit


def main(options: Demo) -> None:
    """Write the page."""
    report = Report("polydiff: images")
    report.text(
        "A small diffusion model of handwritten digits (scikit-learn's scans of 8 x 8 pixels), trained, sampled and "
        "measured in one go by `polydiff demo vision`."
    )
    demo(report, options)
    report.link("../demo-text/index.html", "The same of text, once `polydiff demo text` has been run.")
    report.write(options.out / "index.html")
    print(f"written: {options.out / 'index.html'}")


def demo(report: Report, options: Demo) -> None:
    """Add the section on images to a report; the run behind it is in `options.out / "vision"`, made anew."""
    started = time.monotonic()
    data, held_out = load("digits", "train"), load("digits", "test")
    settings = training(options)
    if settings.out.is_dir():  # a demo's own folder, whose run is made again
        shutil.rmtree(settings.out)
    pipeline, trained = train(data, settings)
    trained_at = time.monotonic()
    count, steps, guidance = (40, 5, GUIDANCE) if options.quick else (1000, 20, GUIDANCE)
    measure = Evaluate(
        model=str(settings.out),
        data="digits",
        features="classifier",
        count=count,
        bits=20 if options.quick else 450,
        bits_steps=5 if options.quick else 100,
        steps=steps,
        guidance=guidance,
        batch_size=250,
        seed=options.seed,
        precision="bf16" if bf16() else "no",
    )
    results, samples = evaluate(pipeline, data, held_out, measure)

    line = command_line(settings, "train", "vision")
    report.heading("Images: digits")
    report.text(
        f"Trained in {trained_at - started:.0f} s with `{line}`, sampled with {steps} network calls an "
        f"image and guidance {guidance}; {time.monotonic() - started:.0f} s in all on {machine()}."
    )
    report.picture(
        pictures(samples[:100], data.levels, SCALE, columns=10), "Samples; the columns ask for 0, 1, 2, ... 9."
    )
    report.picture(
        pictures(by_class(held_out.images, held_out.labels), data.levels, SCALE), "Held-out digits, for comparison."
    )
    report.picture(path(pipeline, steps, guidance, options.seed), "From noise to digits: states, left to right.")
    report.picture(curve(trained.history), "Training loss, the mean squared error of v (logarithmic).")
    report.table(
        table(results),
        "Figures of the samples, and the same figures of held-out real digits: what a perfect model would reach.",
    )


def training(options: Demo) -> Train:
    """The demo's run."""
    return Train(
        data="digits",
        out=options.out / "vision",
        network=Network(width=32, multipliers=(1, 2), blocks=1),
        training=TrainingOptions(
            steps=4 if options.quick else 1500,
            batch_size=128,
            learning_rate=2e-3,
            warmup=100,
            decay_to=0.02,
            ema=0.995,
            precision="bf16" if bf16() else "no",
            channels_last=True,
            checkpoint_every=500,
            log_every=2 if options.quick else 25,
            seed=options.seed,
        ),
    )


def bf16() -> bool:
    """Whether this machine multiplies in bfloat16; elsewhere it would be slower, not faster."""
    return torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def by_class(images: torch.Tensor, labels: torch.Tensor, rows: int = 3) -> torch.Tensor:
    """The first `rows` images of each of ten classes, row by row."""
    chosen = [torch.nonzero(labels == k).squeeze(1)[:rows] for k in range(10)]
    return images[torch.stack(chosen, 1).flatten()]


@torch.no_grad()
def path(pipeline: ImagePipeline, steps: int, guidance: float, seed: int, shown: int = 10):
    """A picture with one row per digit and one column per state on the way from noise to data."""
    states = [step.x for step in pipeline.trajectory(list(range(0, 10, 2)), steps=steps, guidance=guidance, seed=seed)]
    chosen = [states[round(i * (len(states) - 1) / (shown - 1))] for i in range(shown)]
    strip = torch.stack(chosen, 1).flatten(0, 1).clamp(-1, 1)
    return pictures(to_uint8(strip, pipeline.config.levels), pipeline.config.levels, SCALE, columns=shown)


def curve(history: list[dict[str, float]]) -> Figure:
    """Loss against step."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([entry["step"] for entry in history], [entry["loss"] for entry in history])
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    return figure


if __name__ == "__main__":
    run(Demo, main, command="demo", domain="vision")
