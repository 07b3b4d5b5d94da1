"""Samplers and objectives on trained models of images: feature FID by method and network calls, and bits per dimension.

    python -m tests.benchmarks.vision_methods [--data digits] [--data-root FOLDER] [--models runs/methods]
        [--steps 1500]

All models share one network, one budget of training images and one seed. The first, `velocity`, is the demo's own: the
samplers are compared on it, and it teaches the distilled and the consistency models. Every sampler starts from the same
noise. FID is taken in the features of a classifier of the data set, of `--samples` images against all training images;
the same figure of held-out images stands beside it. With `--data fashion-mnist` the model that ships takes the place of
the first, as what samplers are compared on and as the teacher; `--steps` is the budget. Models are kept in
`--models` and not trained again; results are written part by part, and parts that were not asked for keep their old
entry.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydiff.core import grids, objectives
from polydiff.core.adaptive import adaptive
from polydiff.core.analytic import Analytic, PosteriorVariance, analytic_ddim, measure
from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import bits_per_dim, elbo
from polydiff.core.calibration import Calibrated, calibrate, trajectories
from polydiff.core.consistency import (
    Consistency,
    consistency,
    consistency_sampler,
    curriculum,
    even,
    squared,
)
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser, flow, v
from polydiff.core.distillation import Distillation, halvings
from polydiff.core.dpm_solver import dpm_solver_pp_2m, dpm_solver_pp_3m
from polydiff.core.files import write_atomically
from polydiff.core.gaussian import Belief
from polydiff.core.hybrid import Hybrid
from polydiff.core.importance import LogSnrUniform
from polydiff.core.langevin import predictor_corrector
from polydiff.core.machine import machine
from polydiff.core.multistep import deis
from polydiff.core.ode import euler, heun
from polydiff.core.options import TrainingOptions
from polydiff.core.pndm import f_pndm, pndm
from polydiff.core.randomness import example_generators
from polydiff.core.rectified import couple
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.sde import reverse_diffusion
from polydiff.core.training import train
from polydiff.core.unipc import unipc
from polydiff.core.vdm import VDM, LearnedSchedule
from polydiff.vision import metrics
from polydiff.vision.architectures import UNetConfig
from polydiff.vision.classifier import cached, extractor_options
from polydiff.vision.data import Images, load, to_uint8
from polydiff.vision.demo import bf16
from polydiff.vision.kernel import Pixels
from polydiff.vision.pipeline import ImagePipeline

RESULT = Path(__file__).parent / "results" / "vision_methods.json"
SEED, BATCH = 0, 250
STEPS, TEACHER_STEPS = 1500, 64
BUDGETS = (10, 20, 50)
T_MIN = 2e-3
"""Where consistency functions end."""
OPTIONS = TrainingOptions(
    steps=STEPS,
    batch_size=128,
    learning_rate=2e-3,
    warmup=100,
    decay_to=0.02,
    ema=0.995,
    precision="bf16" if bf16() else "no",
    channels_last=True,
    checkpoint_every=500,
    log_every=100,
    seed=SEED,
    cpu=True,
    progress=False,
)

Model = tuple[GaussianDenoiser, Pixels]
Draw = Callable[[Callable[..., Belief], Pixels, Tensor, list[torch.Generator]], Iterator[Any]]


class Bench:
    """One data set, its models and its figures."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.data = load(options.data, "train", data_root=options.data_root)
        self.held_out = load(options.data, "test", data_root=options.data_root)
        self.extractor = cached(self.data, extractor_options(), progress=False)
        self.real = metrics.extract(self.extractor, self.data.images)
        self.labels = torch.arange(options.samples) % self.data.num_classes

    # Models

    def network(self, outputs: int = 1) -> nn.Module:
        """The demo's network, the same weights for all."""
        torch.manual_seed(SEED)
        config = UNetConfig(
            in_channels=1,
            out_channels=outputs,
            num_classes=self.data.num_classes,
            width=32,
            multipliers=(1, 2),
            blocks=1,
        )
        return config.build()

    def trained(self, name: str, objective: nn.Module, data: Any = None, **changes: Any) -> Any:
        """The objective with averaged weights after the common budget of training."""
        folder = self.options.models / self.data.name / name
        options = replace(OPTIONS, **{"steps": self.options.steps, "batch_size": self.options.batch} | changes)
        options = replace(options, warmup=min(OPTIONS.warmup, options.steps // 10))
        before = time.monotonic()
        trained = train(objective, data or self.data, options, folder=folder, resume=folder.exists())
        print(f"{name}: {options.steps} steps, {time.monotonic() - before:.0f} s", flush=True)
        return trained.ema

    @property
    def drop(self) -> dict[str, tuple[float, int]]:
        """Label dropout, the same for all."""
        return {"label": (0.1, self.data.num_classes)}

    def denoising(self, name: str, weight: objectives.Weight, times: objectives.Times | None = None) -> Model:
        """A model on the cosine schedule, v-prediction, one weight."""
        schedule = Cosine()
        kernel = Pixels(schedule, self.data.levels)
        denoiser = GaussianDenoiser(self.network(), schedule, v)
        found = self.trained(name, objectives.Denoising(denoiser, kernel, weight, times, self.drop))
        return found.denoiser, found.kernel

    def base(self) -> Model:
        """The model that samplers are compared on."""
        if self.options.data == "digits":
            return self.denoising("velocity", objectives.velocity)
        pipeline = ImagePipeline.from_pretrained(self.options.data)
        return pipeline.model, pipeline.kernel

    # Figures

    def fid(self, images: Tensor) -> float:
        """Feature FID against all training images."""
        return metrics.frechet_distance(metrics.extract(self.extractor, images), self.real)

    @torch.no_grad()
    def samples(self, model: Model, draw: Draw) -> tuple[Tensor, float, float]:
        """(uint8 images, network calls per image, seconds)."""
        denoiser, kernel = model
        calls, drawn, before = 0, [], time.monotonic()
        for start in range(0, len(self.labels), BATCH):
            label = self.labels[start : start + BATCH]
            generators = example_generators(SEED, 0, range(start, start + len(label)))
            x = kernel.prior(torch.zeros(len(label), *self.data.shape)).sample(generators)
            bound = denoiser.given(kernel, label=label)

            def denoise(x: Tensor, t: Any, bound: Any = bound) -> Belief:
                nonlocal calls
                calls += 1
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16()):
                    return bound(x, t)

            drawn.append(to_uint8(last(draw(denoise, kernel, x, generators)), self.data.levels))
        batches = math.ceil(len(self.labels) / BATCH)
        return torch.cat(drawn), calls / batches, time.monotonic() - before

    def row(self, model: Model, method: str, draw: Draw, **facts: Any) -> None:
        """One row of the table of FIDs."""
        images, calls, seconds = self.samples(model, draw)
        found = {"method": method, "calls": calls, "FID": self.fid(images), "seconds": seconds} | facts
        print(f"  {method:34} {calls:7.1f} calls  FID {found['FID']:.4f}  {seconds:6.1f} s", flush=True)
        self.keep(FID=[found])

    @torch.no_grad()
    def bits(self, model: Model, times: Tensor, analytic: PosteriorVariance | None = None, spread: float = -1) -> float:
        """The full bound in bits per dimension on held-out images."""
        denoiser, kernel = model
        chosen = torch.arange(min(self.options.bits, len(self.held_out)))
        total = []
        for part in chosen.split(150):
            batch = self.held_out.batch(part.tolist())
            generators = example_generators(SEED + 1, 0, part.tolist())
            denoise: Any = denoiser.given(kernel, label=batch["label"])
            if analytic is not None:
                denoise = Analytic(denoise, kernel, times, analytic)
            elif spread >= 0:
                denoise = partial(widened, denoise, spread)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16()):
                bound = elbo(denoise, kernel, batch["x_0"], times, generator=generators)
            total.append(bits_per_dim(bound.total, kernel.dims(batch["x_0"])))
        return float(torch.cat(total).double().mean())

    def keep(self, **facts: Any) -> None:
        """Put figures into the results at once; rows of the table of FIDs take the place of older ones."""
        whole = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        whole |= {"command": "python -m tests.benchmarks.vision_methods", "seed": SEED}
        section = whole.setdefault(self.data.name, {})
        new = {(row["method"], row["calls"]): row for row in facts.pop("FID", [])}
        old = [row for row in section.get("FID", []) if (row["method"], row["calls"]) not in new]
        section |= facts | {"FID": old + list(new.values()), "samples": len(self.labels), "machine": machine()}
        section["date"] = datetime.date.today().isoformat()
        write_atomically(RESULT, json.dumps(whole, indent=1) + "\n")


def widened(denoise: Callable[..., Belief], spread: float, x: Tensor, t: Any) -> Belief:
    """The same belief with another reverse variance."""
    return Belief(denoise(x, t).mean, spread)


def on(sampler: Callable[..., Iterator[Any]], times: Tensor) -> Draw:
    """A sampler on a grid."""
    return lambda denoise, kernel, x, generators: sampler(denoise, kernel, x, times, generator=generators)


def samplers(bench: Bench) -> None:
    """Every sampler on the base model."""
    model = bench.base()
    schedule = model[1].schedule
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(len(bench.data), generator=generator)[: min(1000, len(bench.data))]
    batch = bench.data.batch(chosen.tolist())
    with torch.no_grad():
        denoise = model[0].given(model[1], label=batch["label"])
        table = measure(denoise, model[1], batch["x_0"], grids.uniform(100), generator=generator)
    bench.keep(**{"held-out FID": bench.fid(bench.held_out.images)})
    for n in bench.options.calls:
        uniform, snr = grids.uniform(n), grids.log_snr(n, schedule)
        bench.row(model, "DDIM", on(ddim, uniform))
        if n > 100:
            continue  # what all deterministic samplers come to
        bench.row(model, "DDPM, small variance", on(ancestral, uniform))
        bench.row(model, "DDPM, large variance", partial(spread_draw, times=uniform, spread=1.0))
        bench.row(model, "DDPM, analytic variance", partial(analytic_draw, times=uniform, table=table))
        bench.row(model, "analytic DDIM", on(partial(analytic_ddim, table=table), uniform))
        bench.row(model, "Euler", on(euler, uniform))
        bench.row(model, "Heun", on(heun, grids.log_snr((n + 1) // 2, schedule)))
        bench.row(model, "reverse diffusion", on(reverse_diffusion, uniform))
        pc = predictor_corrector(reverse_diffusion)
        bench.row(model, "predictor-corrector", on(pc, grids.uniform(n // 2)))
        bench.row(model, "DPM-Solver++ 2M", on(dpm_solver_pp_2m, snr))
        bench.row(model, "DPM-Solver++ 3M", on(dpm_solver_pp_3m, snr))
        bench.row(model, "DEIS", on(deis, uniform))
        bench.row(model, "UniPC", on(unipc, snr))
        bench.row(model, "PNDM", on(pndm, grids.uniform(n - 1)))
        if n - 9 >= 4:
            bench.row(model, "F-PNDM", on(f_pndm, grids.uniform(n - 9)))
    stops = torch.tensor([1.0, 1e-3, 0.0], dtype=torch.float64)
    for tolerance in (1e-2, 1e-3):
        bench.row(
            model,
            f"adaptive ODE, tolerance {tolerance:g}",
            on(partial(adaptive, rtol=tolerance, atol=tolerance), stops),
        )


def spread_draw(denoise: Any, kernel: Any, x: Tensor, generators: Any, *, times: Tensor, spread: float) -> Any:
    """Ancestral sampling with a fixed reverse variance."""
    return ancestral(partial(widened, denoise, spread), kernel, x, times, generator=generators)


def fitted_draw(denoise: Any, kernel: Any, x: Tensor, generators: Any, *, solver: Calibrated) -> Any:
    """A calibrated solver on its own grid."""
    return solver(denoise, kernel, x)


def analytic_draw(denoise: Any, kernel: Any, x: Tensor, generators: Any, *, times: Tensor, table: Any) -> Any:
    """Ancestral sampling with the optimal reverse variance."""
    return ancestral(Analytic(denoise, kernel, times, table), kernel, x, times, generator=generators)


def calibrated(bench: Bench) -> None:
    """Solvers fitted to the base model, on noise and labels of their own."""
    model = bench.base()
    parts = []
    for i, count in ((0, 256), (1, 128)):
        generators = example_generators(SEED + 100 + i, 0, range(count))
        label = torch.arange(count) % bench.data.num_classes
        x = model[1].prior(torch.zeros(count, *bench.data.shape)).sample(generators)
        parts.append([trajectories(model[0].given(model[1], label=label), model[1], x, steps=100)])
    for n in (5, 10):
        before = time.monotonic()
        solver = calibrate(parts[0], parts[1], n)
        facts = {"rmse": solver.rmse, "classical rmse": solver.rmse_start, "start": solver.start}
        facts["fit seconds"] = time.monotonic() - before
        bench.row(model, "calibrated", partial(fitted_draw, solver=solver), **facts)


def learner(denoiser: GaussianDenoiser) -> Any:
    """A copy of its network that can be trained."""
    return copy.deepcopy(denoiser.network).requires_grad_()


def distilled(bench: Bench) -> None:
    """Progressive distillation of the base model from 64 steps to 1.

    A round has a third of the common budget, from 8 steps on all of it: the fewer the steps, the further the student's
    target is from what it begins with (Salimans & Ho 2022 lengthen their last rounds too).
    """
    teacher, kernel = bench.base()
    times = GRIDS[bench.options.grid](TEACHER_STEPS)
    bench.row((teacher, kernel), "teacher (DDIM)", on(ddim, times))
    for grid in halvings(times):
        student = GaussianDenoiser(learner(teacher), kernel.schedule, v)
        objective = Distillation(student, teacher, kernel, grid)
        n = (len(grid) - 1) // 2
        steps = bench.options.steps if n <= 8 else bench.options.steps // 3
        teacher = bench.trained(f"distilled-{n}", objective, steps=steps, learning_rate=bench.options.rate).denoiser
        if n <= 8:
            bench.row((teacher, kernel), "distilled (DDIM)", on(ddim, grid[::2]))


def graded(n: int) -> Tensor:
    """sqrt(t) in equal intervals from 1 to 1/n, then 0: finer near the data; the last interval is a uniform grid's."""
    return torch.cat([torch.linspace(1, n**-0.5, n, dtype=torch.float64) ** 2, torch.zeros(1, dtype=torch.float64)])


GRIDS = {"uniform": grids.uniform, "graded": graded}


def consistent(bench: Bench) -> None:
    """Consistency distillation and training."""
    teacher, kernel = bench.base()
    schedule = kernel.schedule
    end = torch.tensor(T_MIN, dtype=torch.float64)
    least = float(torch.exp(-schedule.log_snr(end) / 2))

    def grid(n: int) -> Tensor:
        return torch.cat([torch.linspace(1 - 1e-3, T_MIN, n + 1, dtype=torch.float64), torch.zeros(1)])

    for name, source, count in (
        ("consistency distillation", teacher, lambda step: 24),
        ("consistency training", None, None),
    ):
        network = learner(teacher)
        for parameter in network.output.parameters():  # with sigma_data = 1 this reading is v's with the other sign
            parameter.data.neg_()
        denoiser = GaussianDenoiser(network, schedule, consistency(least, 1.0))
        objective = Consistency(
            denoiser,
            kernel,
            grid,
            count or curriculum(bench.options.steps, 10, 80),
            source,
            # The error of v, as the teacher's own: unweighted, the small times are hardly trained.
            weight=lambda schedule, t, s: objectives.velocity(schedule, t),
            law=even,
            metric=squared,
        )
        found = bench.trained(name.replace(" ", "-"), objective, learning_rate=bench.options.rate)
        for n in (1, 2):
            times = torch.tensor([1 - 1e-3, 0.6, 0.0] if n == 2 else [1 - 1e-3, 0.0], dtype=torch.float64)
            bench.row((found.denoiser, kernel), name, on(partial(consistency_sampler, t_min=T_MIN), times))


def rectified(bench: Bench) -> None:
    """Rectified flow, and its second round on its own pairs."""
    schedule = RectifiedFlow()
    kernel = Pixels(schedule, bench.data.levels)
    denoiser = GaussianDenoiser(bench.network(), schedule, flow)
    objective = objectives.Denoising(denoiser, kernel, objectives.flow_velocity, None, bench.drop)
    found = bench.trained("rectified", objective)
    for n in (1, 4, 10, 20):
        bench.row((found.denoiser, kernel), "rectified flow (Euler)", on(euler, grids.uniform(n)))
    pairs = Pairs(found.denoiser, kernel, bench.data, 4096)
    again = GaussianDenoiser(learner(found.denoiser), schedule, flow)
    objective = objectives.Denoising(again, kernel, objectives.flow_velocity)
    second = bench.trained("reflow", objective, pairs, learning_rate=1e-3)
    for n in (1, 4):
        bench.row((second.denoiser, kernel), "reflow (Euler)", on(euler, grids.uniform(n)))


class Pairs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Noise and where the flow carries it, with its label."""

    def __init__(self, denoiser: GaussianDenoiser, kernel: Pixels, data: Images, count: int):
        self.label = torch.arange(count) % data.num_classes
        parts = []
        for part in torch.arange(count).split(512):
            generators = example_generators(SEED + 7, 0, part.tolist())
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16()):
                denoise = denoiser.given(kernel, label=self.label[part])
                like = torch.zeros(len(part), *data.shape)
                parts.append(couple(denoise, kernel, heun, like, grids.uniform(25), generators))
        self.ends = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: item[0] for name, item in self.batch([index]).items()}

    def batch(self, indices: list[int]) -> Mapping[str, Tensor]:
        """Many at once."""
        return {"label": self.label[indices], **{name: end[indices] for name, end in self.ends.items()}}


def likelihoods(bench: Bench) -> None:
    """Bits per dimension by objective and by reverse variance."""
    cosine, levels = Cosine(), bench.data.levels
    models: dict[str, Model] = {
        "velocity": bench.denoising("velocity", objectives.velocity),
        "simple": bench.denoising("simple", objectives.simple),
    }
    law = LogSnrUniform()
    models["likelihood weighting"] = bench.denoising("likelihood", law.weight(objectives.likelihood), law)
    late = LogSnrUniform(low=1 / 50)
    models["likelihood weighting, t > 1/50"] = bench.denoising(
        "likelihood-50", late.weight(objectives.likelihood), late
    )
    times = grids.uniform(50)
    hybrid = Hybrid(
        GaussianDenoiser(bench.network(2), cosine, v, learned_range=True),
        Pixels(cosine, levels),
        times,
        drop=bench.drop,
    )
    found = bench.trained("hybrid", hybrid)
    models["learned variance"] = found.denoising.denoiser, found.denoising.kernel
    # Noise of a third of the distance between two values is where the bits end; the ends are learned from there.
    schedule = LearnedSchedule(gamma_0=2 * math.log(2 / (levels - 1) / 3))
    vdm = bench.trained("vdm", VDM(GaussianDenoiser(bench.network(), schedule, v), Pixels(schedule, levels)))
    models["VDM"] = vdm.denoiser, vdm.kernel
    rows: dict[str, dict[int, float]] = {}
    for name, model in models.items():
        steps = (20, 50, 200, 1000)
        rows[name] = {n: bench.bits(model, matched(n, model[1])) for n in steps}
        print(f"  {name:32} " + "  ".join(f"{n}: {bits:.4f}" for n, bits in rows[name].items()), flush=True)
    for n in BUDGETS:
        bench.row(models["learned variance"], "DDPM, learned variance", on(ancestral, grids.uniform(n)))
    model = models["velocity"]
    generator = torch.Generator().manual_seed(SEED)
    batch = bench.data.batch(range(min(1000, len(bench.data))))
    with torch.no_grad():
        denoise = model[0].given(model[1], label=batch["label"])
        table = measure(denoise, model[1], batch["x_0"], grids.uniform(200), generator=generator)
    images = min(bench.options.bits, len(bench.held_out))
    bench.keep(**{"bits per dimension": rows, "held-out images of the bits": images})
    variances: dict[int, dict[str, float]] = {}
    for n in (10, 20, 50, 200):
        times = grids.uniform(n)
        variances[n] = {
            "small": bench.bits(model, times),
            "large": bench.bits(model, times, spread=1.0),
            "analytic": bench.bits(model, times, table),
        }
        print(f"  {n:4} " + "  ".join(f"{name} {bits:.4f}" for name, bits in variances[n].items()), flush=True)
    bench.keep(**{"bits per dimension by variance": variances})


def matched(n: int, kernel: Pixels) -> Tensor:
    """n intervals, uniform in t down to the schedule's own start."""
    return grids.uniform(n, kernel.schedule)


PARTS = {
    "samplers": samplers,
    "calibrated": calibrated,
    "distilled": distilled,
    "consistency": consistent,
    "rectified": rectified,
    "likelihoods": likelihoods,
}


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["digits", "fashion-mnist"], default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--models", type=Path, default=Path("runs/methods"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of a training")
    parser.add_argument("--batch", type=int, default=OPTIONS.batch_size, help="examples of a training step")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of students")
    parser.add_argument("--grid", choices=GRIDS, default="uniform", help="of the teacher that is distilled")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--bits", type=int, default=450, help="held-out images whose bits are counted")
    parser.add_argument("--calls", type=int, nargs="+", default=[*BUDGETS, 1000], help="budgets of the samplers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    bench = Bench(options)
    for name in options.parts:
        print(name, flush=True)
        PARTS[name](bench)
        budget = {
            "steps of a training": options.steps,
            "batch": options.batch,
            "learning rate of students": options.rate,
            "grid of the teacher": options.grid,
        }
        bench.keep(**{f"{fact}, {name}": number for fact, number in budget.items()})


if __name__ == "__main__":
    main()
