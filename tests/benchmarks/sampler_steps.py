"""What every sampler adds to its own arithmetic, per network call at 64 x 3 x 32 x 32 on the CPU.

    python -m tests.benchmarks.sampler_steps

The network is null. A first run records which states are combined with which numbers; the bare loop repeats exactly
that arithmetic (the same fused additions, the same draws of noise) from the recorded list of known numbers. `extra` is
the sampler's time beyond it from the second step on; the first, in which the table of the whole grid is made, counts as
`grid`. All run by turns in one process on one thread; figures are medians over the repetitions, per network call. The
adaptive solver, which chooses its own steps, is left out. Three parts of `extra` are also measured alone:

    held     a caller keeps the last step, so its state and those of its belief are still in memory, and in the way of
             the cache, during the next one: the bare loop's time when it keeps the same states, beyond its own
    norms    the predictor-corrector's, which are not sums of states, as calls of torch
    warm     `extra` at 2 x 1 x 2 x 2: what is done besides the sums, when states do not drive it out of the cache
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polydiff.core import grids
from polydiff.core.denoisers import GaussianDenoiser, eps, index
from polydiff.core.files import write_atomically
from polydiff.core.gaussian import Gaussian
from polydiff.core.machine import machine
from polydiff.core.methods import SAMPLERS
from polydiff.core.names import SamplerName
from polydiff.core.noise import ZERO, Isotropic
from polydiff.core.sampling import Step
from polydiff.core.schedules import Tabulated

from .sampler_overhead import Null

RESULT = Path(__file__).parent / "results" / "sampler_steps.json"
SHAPE, TINY, STEPS, T, SEED, REPETITIONS = (64, 3, 32, 32), (2, 1, 2, 2), 50, 1000, 0, 9
GOAL = 60.0
"""Microseconds."""

Operation = tuple[int, list[tuple[float | Tensor, int]]]
"""(where the result goes, [(number, where the state is)]); no terms for a draw of noise, and what is changed in place
is its own first term."""


class Recording(Isotropic):
    """Isotropic noise that writes down what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.operations: list[Operation] = []
        self.held: list[tuple[int, int]] = []
        """(the state, the number of operations until the next step)"""
        self.norms = 0

    def place(self, x: Tensor) -> int:
        """The number of a state; tensors are kept alive, so that no two share an id."""
        for number in range(len(self.kept) - 1, -1, -1):
            if self.kept[number] is x:
                return number
        self.kept.append(x)
        return len(self.kept) - 1

    def follow(self, steps: Iterator[Step[Tensor]]) -> None:
        """Runs a sampler and notes what each of its steps holds."""
        kept: list[int] = []
        for step in steps:
            self.held += [(place, len(self.operations)) for place in kept]
            kept = [self.place(state) for state in (step.x, *(state for _, state in step.belief.times(1.0)))]

    def combine(self, *terms: tuple[float | Tensor, Tensor]) -> Tensor:
        result = super().combine(*terms)
        weights: dict[int, float | Tensor] = {}
        for number, x in terms:
            number = (
                number if isinstance(number, float) else torch.as_tensor(number, dtype=x.dtype).reshape(-1, 1, 1, 1)
            )
            weights[self.place(x)] = weights.get(self.place(x), 0.0) + number
        self.operations.append((self.place(result), [(number, place) for place, number in weights.items()]))
        return result

    def perturbed(self, scale: float | Tensor, generator: Any, *terms: tuple[float | Tensor, Tensor]) -> Tensor:
        result = super().perturbed(scale, generator, *terms)
        mean, drawn = self.place(result), self.operations[-1][0]
        self.operations.append((mean, [(1.0, mean), (scale, drawn)]))
        return result

    def norm(self, x: Tensor) -> Tensor:
        self.norms += 1
        return super().norm(x)

    def draw(self, like: Tensor, generator: Any = None) -> Tensor:
        result = super().draw(like, generator)
        self.operations.append((self.place(result), []))
        return result


def bare(
    operations: list[Operation],
    given: dict[int, Tensor],
    generator: torch.Generator,
    held: Iterable[tuple[int, int]] = (),
) -> Callable[[], None]:
    """The loop over the recorded arithmetic; states are dropped after their last use, as in the sampler, or later."""
    last_use = {place: i for i, (_, terms) in enumerate(operations) for _, place in terms}
    for place, end in held:
        last_use[place] = max(last_use.get(place, 0), end - 1)
    done_by: dict[int, list[int]] = {}
    for place in last_use.keys() - given.keys():
        done_by.setdefault(last_use[place], []).append(place)
    plan = [(out, terms, done_by.get(i, [])) for i, (out, terms) in enumerate(operations)]
    shape = given[0].shape

    def run() -> None:
        states = dict(given)
        for out, terms, done in plan:
            if not terms:
                states[out] = torch.randn(shape, generator=generator)
                continue
            (number, place), *rest = terms
            if place == out:
                result = states[out]
            elif isinstance(number, Tensor):
                result = states[place] * number
            elif number == 1.0 and rest:
                x, ((number, place), *rest) = states[place], rest
                if isinstance(number, Tensor):
                    result = torch.addcmul(x, states[place], number)
                else:
                    result = torch.add(x, states[place], alpha=number)
                del x
            else:
                result = torch.add(ZERO, states[place], alpha=number)
            for number, place in rest:
                if isinstance(number, Tensor):
                    result.addcmul_(states[place], number)
                else:
                    result.add_(states[place], alpha=number)
            for place in done:
                states.pop(place, None)
            states[out] = result

    return run


def timed(steps: Iterator[Any]) -> tuple[float, float, int]:
    """(seconds of the first step, seconds of all others, their number)."""
    before = time.perf_counter()
    next(steps)
    middle = time.perf_counter()
    rest = sum(1 for _ in steps)
    return middle - before, time.perf_counter() - middle, rest


def measure(name: SamplerName, shape: tuple[int, ...]) -> dict[str, float]:
    """One sampler: microseconds per network call."""
    generator = torch.Generator().manual_seed(SEED)
    x, output = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    schedule = Tabulated.from_betas(torch.linspace(1e-4, 0.02, T))
    network = Null(output)
    denoiser, times = GaussianDenoiser(network, schedule, eps, index(T)), grids.leading(STEPS, T)
    calls = 0

    def count(module: Any, arguments: Any) -> None:
        nonlocal calls
        calls += 1

    recording = Recording()
    given = {recording.place(x): x, recording.place(output): output}
    hook = network.register_forward_pre_hook(count)
    kernel = Gaussian(schedule, recording)
    recording.follow(SAMPLERS[name](denoiser.given(kernel), kernel, x, times, generator=generator))
    hook.remove()
    kernel = Gaussian(schedule)
    loop = bare(recording.operations, given, generator)
    holding = bare(recording.operations, given, generator, recording.held)

    def norms() -> None:
        for _ in range(recording.norms):
            torch.linalg.vector_norm(x.flatten(1), dim=1)

    found: list[tuple[float, ...]] = []
    for repetition in range(REPETITIONS + 1):
        alone = []
        for part in (loop, holding, norms):
            before = time.perf_counter()
            part()
            alone.append(1e6 * (time.perf_counter() - before) / calls)
        first, rest, steps = timed(SAMPLERS[name](denoiser.given(kernel), kernel, x, times, generator=generator))
        # Calls are shared out evenly over the steps, the first included.
        step = rest / steps * (steps + 1) / calls
        if repetition > 0:
            arithmetic, held, _ = alone
            found.append((*alone, 1e6 * step, 1e6 * (first - rest / steps), 1e6 * step - arithmetic, held - arithmetic))
    arithmetic, _, of_norms, whole, grid, extra, held = (statistics.median(row) for row in zip(*found, strict=True))
    return {
        "calls": calls,
        "arithmetic_us": arithmetic,
        "sampler_us": whole,
        "extra_us": extra,
        "held_us": held,
        "norms_us": of_norms,
        "grid_us": grid,
        "goal_us": GOAL,
    }


def main() -> None:
    """Measures, prints, writes."""
    torch.set_num_threads(1)
    rows = {}
    print("microseconds per call, but the grid's once")
    print(
        f"{'sampler':22}{'calls':>6}{'arithmetic':>12}{'sampler':>10}{'extra':>8}{'held':>8}{'norms':>8}{'warm':>8}{'grid':>10}"
    )
    with torch.no_grad():
        for name in SAMPLERS:
            if name == "adaptive":
                continue
            row = rows[name] = measure(name, SHAPE) | {"warm_us": measure(name, TINY)["extra_us"]}
            print(
                f"{name:22}{row['calls']:6.0f}{row['arithmetic_us']:12.0f}{row['sampler_us']:10.0f}"
                f"{row['extra_us']:8.0f}{row['held_us']:8.0f}{row['norms_us']:8.0f}{row['warm_us']:8.0f}{row['grid_us']:10.0f}"
            )
    whole = {
        "command": "python -m tests.benchmarks.sampler_steps",
        "seed": SEED,
        "shape": SHAPE,
        "steps": STEPS,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "samplers": rows,
    }
    write_atomically(RESULT, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
