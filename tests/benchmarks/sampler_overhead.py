"""What a sampler costs besides its network, beside diffusers' schedulers.

    python -m tests.benchmarks.sampler_overhead

The network is null: it returns one preallocated tensor, and both sides call it. Ours is the full cost of a step of the
generator, the denoiser (eps parametrisation, published indices) included; theirs is `scale_model_input` and `step`. Each run
goes through a grid of 50 steps of DDPM's schedule; the two sides alternate in one process on one thread. A figure is the
median over all inner steps of all repetitions, per network call (Heun: two per step). `unit` is one bare fused update,
torch.add(x, y, alpha=a); `randn` the draw that a stochastic sampler cannot avoid. `grid` is what is paid once per grid.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser, eps, index
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.gaussian import Gaussian
from polydiff.core.ode import euler, exploding, heun
from polydiff.core.sampling import Step
from polydiff.core.schedules import Tabulated

STEPS, T, SEED = 50, 1000, 0
SIZES = {(64, 3, 32, 32): 12, (1, 3, 8, 8): 120}
"""shape -> repetitions"""
RESULT = Path(__file__).parent / "results" / "sampler_overhead.json"

BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": T}
PAIRS: dict[str, tuple[Callable[[], Any], Callable[..., Iterator[Step[Tensor]]], dict[str, Any]]] = {
    "DDIM": (lambda: diffusers.DDIMScheduler(clip_sample=False, **BETAS), ddim, {}),
    "DDPM": (lambda: diffusers.DDPMScheduler(clip_sample=False, **BETAS), ancestral, {"generator": True}),
    "Euler": (lambda: diffusers.EulerDiscreteScheduler(**BETAS), euler, {"coordinates": exploding}),
    "Heun": (lambda: diffusers.HeunDiscreteScheduler(**BETAS), heun, {"coordinates": exploding}),
    "DPM++ 2M": (lambda: diffusers.DPMSolverMultistepScheduler(**BETAS), dpm_solver_pp_2m, {}),
}


class Null(nn.Module):
    """A network that costs nothing."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.output


def theirs(scheduler: Any, x: Tensor, network: nn.Module, generator: torch.Generator | None) -> tuple[float, list[float]]:
    """(seconds once per grid, seconds of every call) of a scheduler driven as its documentation says."""
    clock = time.perf_counter
    options = {} if generator is None else {"generator": generator}
    before = clock()
    scheduler.set_timesteps(STEPS)
    x = x * scheduler.init_noise_sigma
    once, seconds = clock() - before, []
    for t in scheduler.timesteps:
        before = clock()
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **options).prev_sample
        seconds.append(clock() - before)
    return once, seconds


def ours(
    sampler: Callable[..., Iterator[Step[Tensor]]],
    denoiser: GaussianDenoiser,
    kernel: Gaussian,
    x: Tensor,
    options: dict[str, Any],
) -> tuple[float, list[float]]:
    """The same of a sampler; what the first step costs beyond the others is paid once per grid."""
    clock, seconds = time.perf_counter, []
    before = clock()
    for _ in sampler(denoiser.given(kernel), kernel, x, grids.leading(STEPS, T), **options):
        seconds.append((clock() - before) / (2 if sampler is heun else 1))
        before = clock()
    return seconds[0] - statistics.median(seconds), seconds


def bare(function: Callable[[], Any], count: int) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(count):
        before = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - before)
    return statistics.median(seconds)


def measure(shape: tuple[int, ...], repetitions: int) -> dict[str, Any]:
    """Microseconds per network call of every pair at one size."""
    generator = torch.Generator().manual_seed(SEED)
    x, output = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    denoiser = GaussianDenoiser(Null(output), Tabulated.from_betas(torch.linspace(1e-4, 0.02, T)), eps, index(T))
    kernel = Gaussian(denoiser.schedule)
    calls: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in PAIRS}
    grid: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in PAIRS}
    units, draws = [], []
    for repetition in range(repetitions + 1):
        for name, (make, sampler, options) in PAIRS.items():
            random = "generator" in options
            both: list[Callable[[], tuple[float, list[float]]]] = [
                lambda make=make, random=random: theirs(make(), x, denoiser.network, generator if random else None),
                lambda sampler=sampler, options=options, random=random: ours(
                    sampler, denoiser, kernel, x, options | ({"generator": generator} if random else {})
                ),
            ]
            for side in (0, 1) if repetition % 2 else (1, 0):
                once, seconds = both[side]()
                if repetition > 0:  # the first one warms up
                    grid[name][side].append(once)
                    calls[name][side].extend(seconds[2:-2])
        units.append(bare(lambda: torch.add(x, output, alpha=0.5), 50))
        draws.append(bare(lambda: torch.randn(shape, generator=generator), 20))
    unit, draw = statistics.median(units), statistics.median(draws)
    result: dict[str, Any] = {"unit_us": 1e6 * unit, "randn_us": 1e6 * draw, "schedulers": {}}
    for name, (their_calls, our_calls) in calls.items():
        them, us = statistics.median(their_calls), statistics.median(our_calls)
        row = {
            "diffusers_us": 1e6 * them,
            "polydiff_us": 1e6 * us,
            "diffusers_units": them / unit,
            "polydiff_units": us / unit,
            "ratio": us / them,
            "diffusers_grid_us": 1e6 * statistics.median(grid[name][0]),
            "polydiff_grid_us": 1e6 * statistics.median(grid[name][1]),
        }
        if "generator" in PAIRS[name][2]:
            row["ratio_without_randn"] = (us - draw) / (them - draw)
        result["schedulers"][name] = row
    return result


def cpu_model() -> str:
    """The processor's name, without anything that tells the machine apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        sizes = {"x".join(map(str, shape)): measure(shape, repetitions) for shape, repetitions in SIZES.items()}
    report = {
        "benchmark": "sampler_overhead",
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m tests.benchmarks.sampler_overhead",
        "seed": SEED,
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": 1},
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "steps": STEPS,
        "sizes": sizes,
    }
    for size, result in sizes.items():
        print(f"\n{size}: unit {result['unit_us']:.1f} us, randn {result['randn_us']:.1f} us")
        print(f"{'':10}{'diffusers':>12}{'polydiff':>12}{'units':>16}{'ratio':>8}{'without randn':>15}{'grid us':>18}")
        for name, row in result["schedulers"].items():
            without = f"{row['ratio_without_randn']:.2f}" if "ratio_without_randn" in row else ""
            print(
                f"{name:10}{row['diffusers_us']:9.1f} us{row['polydiff_us']:9.1f} us"
                f"{row['diffusers_units']:8.1f}{row['polydiff_units']:8.1f}{row['ratio']:8.2f}{without:>15}"
                f"{row['diffusers_grid_us']:9.0f}{row['polydiff_grid_us']:9.0f}"
            )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
