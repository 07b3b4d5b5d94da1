r"""Calibrated solvers: the table of weights and times that comes closest to the exact flow with n network calls.

Every deterministic explicit solver is a table (`tableau`): call times t_i, weights a_ij of earlier states and b_ij of
beliefs, the same for all states. Given the denoiser and a budget of n calls, the best table is a regression,

    minimise over (t, a, b)    mean over starts x_1 of rho(|y_n(x_1) - flow(x_1)|^2 / c^2),    rho(e) = log(1 + e),

with flow(x_1) the end of the probability-flow ODE, solved finely once. It contains the choice of the space, order,
clock and grid of a classical solver, all of which are tables; the best of those is where it starts. Related: AMED
(Zhou et al. 2024), DPM-Solver-v3 (Zheng et al. 2023), GITS (Chen et al. 2024), Bespoke solvers (Shaul et al. 2024).

The method is damped Gauss-Newton on the whole unrolled solver (`fitting`): seconds where gradient descent takes minutes
and stops earlier. It only calls the denoiser and differentiates it in the state, so conditions, guidance and every law
of noise go through unchanged. Damping keeps the weights near the classical ones where the data do not speak.

rho is robust: most of the mean square error comes from the few trajectories that pass close to the border between two
modes and end in the wrong one. No weight can move them smoothly; what helps them is a smaller error of all the others,
which c = 3 medians measures, and starts at borders in the training, if there are some to spare (`borders`).
Tables are compared on starts that the fit has not seen, the best classical one among them, by the same loss with that
one's c, so a calibrated solver is never worse there: by root mean square error one trajectory more or less across a
border would decide.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Self, final

import torch
from torch import Tensor

from .candidates import Candidate, candidates
from .errors import ArgumentError, DataError
from .files import write_atomically
from .fitting import Fit, Trajectories, all_errors, rms, scale_of, table_rows, trajectories
from .gaussian import Belief
from .grids import check_times
from .kernel import Path, Time
from .randomness import Randomness
from .sampling import Steps
from .tableau import Row, follow

__all__ = ["Calibrated", "Trajectories", "calibrate", "trajectories"]

FORMAT_VERSION = 1
LARGEST_FILE = 1 << 24
MOST_CALLS = 1000


@final
@dataclass(frozen=True)
class Calibrated:
    """A solver as a table, called as every sampler: `calibrated(denoise, kernel, x)` yields steps.

    Attributes:
        times: n + 1 call times, falling to 0.
        alpha, sigma: the schedule at these times, for which alone the weights hold.
        states: row i weighs y_0 ... y_i.
        beliefs: row i weighs m_0 ... m_i.
        start: the classical solver from which the fit began.
        rmse: root mean square error per dimension against the exact flow, on starts that the fit has not seen.
        rmse_start: the same of the best classical solver.
        guidance: weight of classifier-free guidance of the denoiser it was fitted to; for whoever chooses a solver.
    """

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    states: tuple[tuple[float, ...], ...]
    beliefs: tuple[tuple[float, ...], ...]
    start: str
    rmse: float
    rmse_start: float
    guidance: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.times) - 1
        if not 1 <= n <= MOST_CALLS or not len(self.alpha) == len(self.sigma) == n + 1:
            raise ArgumentError("times, alpha, sigma", n + 1, f"2 ... {MOST_CALLS + 1} numbers each")
        for name, table in (("states", self.states), ("beliefs", self.beliefs)):
            if [len(row) for row in table] != list(range(1, n + 1)):
                raise ArgumentError(name, [len(row) for row in table], f"{n} rows of 1 ... {n} weights")
        numbers = [*self.times, *self.alpha, *self.sigma, self.rmse, self.rmse_start, self.guidance]
        numbers += [weight for row in self.states + self.beliefs for weight in row]
        if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
            raise ArgumentError("table", "something else", "finite floats")
        check_times(torch.tensor(self.times, dtype=torch.float64))

    def rows(self) -> list[Row]:
        """The table for `follow`; weights of 0 are left out."""
        return table_rows(self.times, self.states, self.beliefs)

    def __call__(
        self,
        denoise: Callable[[Tensor, Time], Belief],
        kernel: Path[Tensor],
        x: Tensor,
        times: Tensor | None = None,
        *,
        generator: Randomness = None,
    ) -> Steps[Tensor]:
        """Steps along the table's own grid.

        Args:
            denoise: (x_t, t) -> belief; only its mean is used.
            kernel: any path with the schedule that the solver was calibrated for.
            x: the state at the table's first time.
            times: None, or the table's own times.
            generator: not used; all samplers are called alike.
        """
        own = torch.tensor(self.times, dtype=torch.float64)
        if times is not None and not torch.equal(check_times(times), own):
            raise ArgumentError("times", times, f"None: a calibrated solver has its own grid of {len(own) - 1} calls")
        schedule = torch.stack(kernel.schedule(own)).detach()
        expected = torch.tensor([self.alpha, self.sigma], dtype=torch.float64)
        if not torch.allclose(schedule, expected, rtol=1e-6, atol=1e-9):
            raise ArgumentError("kernel", kernel.schedule, "the schedule that the solver was calibrated for")
        return follow(self.rows(), denoise, kernel, x)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all; numbers keep all their bits."""
        write_atomically(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file cannot be read, or is not such a table; the message names it.
        """
        try:
            if File(path).stat().st_size > LARGEST_FILE:
                raise ValueError(f"larger than {LARGEST_FILE} bytes")
            content = json.loads(File(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
                raise ValueError(f"no format_version {FORMAT_VERSION}")
            if not isinstance(content.get("start"), str):
                raise ValueError("start is no text")
            for name in ("times", "alpha", "sigma"):
                content[name] = tuple(content[name])
            for name in ("states", "beliefs"):
                content[name] = tuple(tuple(row) for row in content[name])
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{path} is not a calibrated solver: {error}; calibrate again") from error


def calibrate(
    training: Sequence[Trajectories],
    validation: Sequence[Trajectories],
    calls: int,
    *,
    starts: Iterable[Candidate] | None = None,
    rivals: int = 3,
    iterations: int = 30,
    probes: int = 3,
    history: int = 24,
    generator: torch.Generator | None = None,
) -> Calibrated:
    """The best table with `calls` network calls.

    Args:
        training: batches to fit; each weight needs a few trajectories, 1000 in all are enough for 20 calls. The first
            batch ranks the classical tables. Starts near borders between modes, where solvers err most, teach most.
        validation: batches that the fit does not see, by which tables are compared.
        calls: n >= 1.
        starts: classical tables; by default the family of `candidates`.
        rivals: how many of the best starts are tuned before the best is tuned further.
        iterations: of Gauss-Newton; 0 takes the best classical table as it is.
        probes: random directions per example and iteration that estimate the curvature; each costs a backward pass.
        history: how many of the newest beliefs have free weights in each row.
        generator: draws the probes.
    """
    batches = [*training, *validation]
    if not training or not validation:
        raise ArgumentError("training, validation", (len(training), len(validation)), "at least one batch each")
    if not 1 <= calls <= MOST_CALLS or min(rivals, probes, history) < 1 or iterations < 0:
        expected = f"calls in 1 ... {MOST_CALLS}, rivals, probes, history >= 1, iterations >= 0"
        raise ArgumentError("options", (calls, rivals, probes, history, iterations), expected)
    start, schedule = batches[0].start, batches[0].kernel.schedule
    if any(batch.start != start for batch in batches):
        raise ArgumentError("training, validation", "several start times", "one")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    starts = candidates(schedule, start, calls) if starts is None else starts
    ranked = sorted(((rms(training[:1], table), table) for table in starts), key=lambda pair: pair[0])
    chosen = distinct([table for error, table in ranked if math.isfinite(error)], rivals)
    if not chosen:
        raise ArgumentError("starts", "nothing", "at least one table with a finite error")
    table = classical = min(chosen, key=lambda table: rms(validation, table))
    scale = scale_of(all_errors(validation, classical))

    def loss(table: Candidate) -> float:
        return float(torch.log1p(all_errors(validation, table) / scale).mean())

    if iterations:
        fits = [Fit(training, start, history, probes, generator) for start in chosen]
        for fit in fits:
            fit.run(math.ceil(iterations / 3))
        fit = min(fits, key=lambda fit: loss(fit.table()))
        for steps in (0, iterations // 3, iterations - 2 * (iterations // 3)):
            fit.run(steps)
            table = min(table, fit.table(), key=loss)
    alpha, sigma = schedule(table.times)
    return Calibrated(
        times=tuple(table.times.tolist()),
        alpha=tuple(alpha.tolist()),
        sigma=tuple(sigma.tolist()),
        states=tuple(tuple(row[: i + 1]) for i, row in enumerate(table.states.tolist())),
        beliefs=tuple(tuple(row[: i + 1]) for i, row in enumerate(table.beliefs.tolist())),
        start=table.name,
        rmse=rms(validation, table),
        rmse_start=rms(validation, classical),
    )


def distinct(tables: list[Candidate], count: int) -> list[Candidate]:
    """The first `count` tables that differ in more than their weights."""
    chosen: list[Candidate] = []
    for table in tables:
        if len(chosen) < count and not any(torch.equal(table.times, other.times) for other in chosen):
            chosen.append(table)
    return chosen
