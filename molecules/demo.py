"""The whole way on molecules that come with polydiff: draw conformers, measure them; and `index.html`, which shows it.

The model is one that ships, if there is one, else a tiny one that is trained on the spot. `polydiff demo molecules`, or
`demo(report, options)` to add the section to a page of several domains.
"""

from __future__ import annotations

import shutil
import time

import numpy as np
from rdkit import Chem

from ..core.commands import run
from ..core.errors import DataError
from ..core.files import write_atomically
from ..core.machine import machine
from ..core.options import TrainingOptions
from ..core.report import Report
from ..core.runs import command_line
from .comparison import baselines
from .data import Conformers, load
from .depiction import online_page, sketches, view
from .evaluate import ATTEMPTS, draw, evaluate, references_of, table
from .options import Demo, Evaluate, LevelName, Network, Train
from .pipeline import ConformerPipeline
from .rmsd import positions
from .train import data_of, train

__all__ = ["demo", "main"]

MOLECULES = 12
CONFORMERS = 6
SHOWN = 3
ROWS = ("CCO", "C[C@H](N)C(=O)O", "F/C=C/Cl", "C1CC", "[Na+].[Cl-]", "C[Pt]C", "C(C)(C)(C)(C)C")
"""Molecules, and texts that are none: each row gets a status, none stops the others."""


def main(options: Demo) -> None:
    """Write the page."""
    report = Report("polydiff: molecules")
    report.text(
        "Conformers, the shapes that a molecule takes, drawn by a diffusion model beside distance geometry (ETKDGv3) "
        "and distance geometry relaxed by a force field (MMFF94). Drawn and measured in one go by `polydiff demo "
        "molecules`."
    )
    demo(report, options)
    report.link("../demo/index.html", "The same of images, once `polydiff demo vision` has been run.")
    report.write(options.out / "index.html")
    print(f"written: {options.out / 'index.html'}")


def demo(report: Report, options: Demo) -> None:
    """Add the section on molecules to a report; what is made on the way is in `options.out`."""
    started = time.monotonic()
    pipeline, model, made = model_of(options)
    level = level_for(pipeline)
    measure = Evaluate(
        model=model,
        data="small",
        count=3 if options.quick else MOLECULES,
        num_conformers=2 if options.quick else CONFORMERS,
        level=level,
        steps=2 if options.quick else None,
        posebusters=0 if options.quick else MOLECULES,
        seed=options.seed,
    )
    held_out = references(measure)
    results = evaluate(pipeline, held_out, measure)
    report.heading("Molecules: conformers")
    report.text(f"{made} {time.monotonic() - started:.0f} s in all on {machine()}.")
    show(report, pipeline, held_out, measure, level)
    page = options.out / "3dmol.html"
    mol = pipeline.generate([bare(held_out, 0)], measure.num_conformers or 1, level=level, steps=measure.steps)[0].mol
    if mol is not None:
        try:
            write_atomically(page, online_page(mol, held_out.names[0]))
            report.link(page.name, "Conformers in 3Dmol.js; that page loads the script from the network.")
        except DataError:
            pass  # py3Dmol is not among what polydiff needs
    report.table(
        table(results),
        f"{results['about']}. References were made by ETKDGv3 and MMFF94: the second baseline draws from what made "
        "them, and is the ceiling here, not a competitor.",
    )
    found = pipeline.generate(ROWS, 2, level=None, steps=measure.steps, seed=options.seed)
    rows = [
        {"row": row, "status": one.status, "conformers": 0 if one.mol is None else one.mol.GetNumConformers()}
        for row, one in zip(ROWS, found, strict=True)
    ]
    report.table(rows, "Every row gets a status; none stops the others.")


def show(report: Report, pipeline: ConformerPipeline, data: Conformers, options: Evaluate, level: LevelName) -> None:
    """Drawings of molecules, a view of what each method drew, and the way from the start to a conformer."""
    chosen = sorted(range(len(data.names)), key=lambda i: -bare(data, i).GetNumHeavyAtoms())[:SHOWN]
    real = [one for i, one in enumerate(references_of(data)) if i in chosen]
    report.block(sketches([one.mol for one in real], [one.name for one in real]), "Some of the molecules.")
    methods = [draw(pipeline, real, options, level), *baselines(real, options.num_conformers, seed=options.seed)]
    for i, one in enumerate(real):
        frames, labels = [positions(one.mol)[:1]], [f"reference ({level})"]
        for method in methods:
            mol = method.each[i].mol
            if mol is not None:
                found = positions(mol)[:CONFORMERS]
                frames.append(found)
                labels += [f"{method.method}, conformer {k + 1}" for k in range(len(found))]
        report.block(
            view(one.mol, np.concatenate(frames), labels),
            f"{one.name}: drag to turn it, wheel to come nearer; the slider goes from the reference through what each "
            "method drew.",
        )
    for one in [one for one, drawn in zip(real, methods[0].each, strict=True) if drawn.mol is not None][:1]:
        mol = Chem.Mol(one.mol, True)
        steps = list(pipeline.trajectory(mol, level=level, seed=options.seed, steps=options.steps))
        report.block(
            view(mol, np.concatenate([step.x for step in steps]), [label_of(step.t) for step in steps]),
            f"{one.name}: from the start, t = 1, to a conformer, t = 0.",
        )


def label_of(t: object) -> str:
    """The time of a step."""
    return f"t = {float(np.asarray(t, dtype=np.float64).reshape(-1)[0]):.2f}"


def bare(data: Conformers, i: int) -> Chem.Mol:
    """A molecule of the set without conformers."""
    return Chem.Mol(data.molecules[i], True)


def references(options: Evaluate) -> Conformers:
    """Molecules of the embedded set that no model was trained on, and MMFF94 minima of them."""
    attempts = 4 if options.steps is not None else ATTEMPTS
    levels = ("MMFF94",)
    return load("small", "test", start="centred", scale=1.0, count=options.count, levels=levels, attempts=attempts)


def level_for(pipeline: ConformerPipeline) -> LevelName:
    """The level of the embedded set's references, if the model was taught it.

    Raises:
        DataError: it was not.
    """
    for level in pipeline.config.levels:
        if level.name == "MMFF94":
            return level.name
    raise DataError("the shipped model was not taught the level MMFF94, which the demo compares by")


def model_of(options: Demo) -> tuple[ConformerPipeline, str, str]:
    """The shipped model, or a tiny one trained now; its name, and how it came about in words."""
    shipped = ConformerPipeline.shipped()
    for name in () if options.quick else shipped:
        pipeline = ConformerPipeline.from_pretrained(name)
        if any(level.name == "MMFF94" for level in pipeline.config.levels):
            return pipeline, name, f"The model is `{name}`, which ships with polydiff."
    settings = training(options)
    if settings.out.is_dir():  # a demo's own folder, whose run is made again
        shutil.rmtree(settings.out)
    began = time.monotonic()
    pipeline, _ = train(data_of(settings, "train"), settings)
    seconds = time.monotonic() - began
    command = command_line(settings, "train", "molecules")
    made = (
        f"A tiny model, trained in {seconds:.0f} s with `{command}`: it shows the way, not what a long training gives."
    )
    return pipeline, str(settings.out), made


def training(options: Demo) -> Train:
    """The tiny model's run."""
    return Train(
        data="small",
        count=4 if options.quick else 48,
        levels=("MMFF94",),
        drafts=2,
        out=options.out / "molecules",
        network=Network(width=16 if options.quick else 32, blocks=1 if options.quick else 2),
        training=TrainingOptions(
            steps=4 if options.quick else 100,
            batch_size=8,
            learning_rate=2e-3,
            warmup=10,
            decay_to=0.02,
            ema=0.98,
            checkpoint_every=0,
            log_every=2 if options.quick else 10,
            seed=options.seed,
        ),
    )


if __name__ == "__main__":
    run(Demo, main, command="demo", domain="molecules")
