r"""Gauss-Newton for tables: what `calibration` minimises, and the fine solutions that it compares with.

Weights of neighbouring beliefs act almost alike (condition numbers of 1e8 and more), so gradient descent is slow where
Gauss-Newton with Levenberg-Marquardt damping takes some thirty steps. One backward pass through the unrolled solver
gives one row of the Jacobian for every example and all weights at once: each weight is a tensor (B,), so its gradient
is per example. The first pass takes the residual itself, hence the exact gradient; `probes` random directions
orthogonal to it estimate the curvature. Derivatives in the times are central differences of the belief in log-SNR,
which asks nothing of the denoiser's dependence on t. Times are kept in order by log-gaps of log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .candidates import Candidate
from .errors import ArgumentError
from .gaussian import Belief
from .kernel import Path, Time
from .sampling import Step, last
from .tableau import Row, follow

__all__ = [
    "Fit", "Trajectories", "all_errors", "dots", "fine", "rms", "scale_of", "squared_errors", "table_rows",
    "trajectories",
]  # fmt: skip

LEAST_LOG_SNR, MOST_LOG_SNR = -20.0, 30.0
"""Between these lie all call times but the first."""


class Trajectories(NamedTuple):
    """Starts with the ends of their exact flow, and what bound them: one batch of the regression."""

    denoise: Callable[[Tensor, Time], Belief]
    kernel: Path[Tensor]
    x: Tensor
    """states at time `start`"""
    target: Tensor
    """the flow at time 0"""
    start: float


def trajectories(
    denoise: Callable[[Tensor, Time], Belief], kernel: Path[Tensor], x: Tensor, *, start: float = 1.0, steps: int = 200
) -> Trajectories:
    """The fine solutions from x, 4 network calls a step; without gradients.

    Args:
        denoise: (x_t, t) -> belief, bound to conditions and guidance as it will be used.
        kernel: any path, bound to the structure of x.
        x: states at time `start`.
        start: in (0, 1].
        steps: of the fine solver.
    """
    with torch.no_grad():
        return Trajectories(denoise, kernel, x, last(fine(denoise, kernel, x, start=start, steps=steps)), start)


def fine(
    denoise: Callable[[Tensor, Time], Belief], kernel: Path[Tensor], x: Tensor, *, start: float = 1.0, steps: int = 200
) -> Iterator[Step[Tensor]]:
    """Runge-Kutta 4 for d(x/k)/du = (x/k - m)/u, k = alpha + sigma, u = sigma/k, down to u = 1e-5 and then the belief.

    Integrated in the clock arcsinh(50 u), in which steps are equal. Arguments as `trajectories`.
    """
    if not 0 < start <= 1 or steps < 1:
        raise ArgumentError("start, steps", (start, steps), "a time in (0, 1] and at least one step")
    alpha, sigma = kernel.schedule(torch.tensor(start, dtype=torch.float64))
    first, least = (50 * sigma / (alpha + sigma)).detach().asinh(), math.asinh(50e-5)
    clock = torch.linspace(float(first), least, 2 * steps + 1, dtype=torch.float64)
    u, rate, h = clock.sinh() / 50, (clock.cosh() / 50).tolist(), 2 * float(clock[1] - clock[0])
    times = kernel.schedule.inverse(2 * torch.log1p(-u) - 2 * u.log())
    times[0] = start
    alpha, sigma = (number.detach() for number in kernel.schedule(times))
    u, k = (sigma / (alpha + sigma)).tolist(), (alpha + sigma).tolist()
    t, rows = times.tolist(), []
    # Slopes at the start, twice in the middle and at the end of a step; after each, a sum of them over a part of h.
    stages = ((h / 2,), (0.0, h / 2), (0.0, 0.0, h), (h / 6, h / 3, h / 3, h / 6))
    for i in range(0, 2 * steps, 2):
        first_of_step, at, reached = 2 * i, (i, i + 1, i + 1, i + 2), (i + 1, i + 1, i + 2, i + 2)
        for stage, (weights, to) in enumerate(zip(stages, reached, strict=True)):
            # rate (y_j / k - m_j) / u
            used = [(first_of_step + j, at[j], k[to] * w * rate[at[j]] / u[at[j]]) for j, w in enumerate(weights) if w]
            states = [(first_of_step, k[to] / k[i]), *((j, w / k[place]) for j, place, w in used)]
            rows.append(Row(t[at[stage]], states, [(j, -w) for j, _, w in used], t[to] if stage == 3 else None))
    rows.append(Row(t[-1], [], [(4 * steps, 1.0)], 0.0))
    return follow(rows, denoise, kernel, x)


class Fit:
    """Gauss-Newton on one table.

    Free are the call times but the first, in row i the weights of y_i, y_0 and of the `history` newest beliefs. Earlier
    states are sums of y_0 and beliefs, so with the whole history this is every explicit solver.
    """

    def __init__(
        self,
        training: Sequence[Trajectories],
        start: Candidate,
        history: int,
        probes: int,
        generator: torch.Generator,
    ):
        self.training, self.name, self.probes, self.generator = training, start.name, probes, generator
        self.schedule = training[0].kernel.schedule
        n = len(start.times) - 1
        self.n, self.first = n, start.times[0]
        row, column = torch.arange(n).unsqueeze(1), torch.arange(n)
        self.free_states = (column == row) | ((column == 0) & (row > 0))
        self.free_beliefs = (column <= row) & (column > row - history)
        self.fixed_states = torch.where(self.free_states, 0.0, start.states)
        self.fixed_beliefs = torch.where(self.free_beliefs, 0.0, start.beliefs)
        first = self.schedule.log_snr(self.first).clamp_min(LEAST_LOG_SNR).reshape(1).detach()
        self.least = first  # the log-SNR from which gaps count
        gaps = self.schedule.log_snr(start.times[1:-1]).diff(prepend=first).log()
        self.theta = torch.cat([gaps, start.states[self.free_states], start.beliefs[self.free_beliefs]]).detach()
        self.damping = 1e-2
        errors = self.measure(self.theta)
        if errors is None:
            expected = f"call times that fall, with log-SNR in [{LEAST_LOG_SNR:g}, {MOST_LOG_SNR:g}], and finite ends"
            raise ArgumentError("starts", f"{start.name}: {start.times.tolist()}", expected)
        self.errors = errors

    def table(self, theta: Tensor | None = None) -> Candidate:
        theta = self.theta if theta is None else theta
        gaps, of_states, of_beliefs = theta.split(
            [self.n - 1, int(self.free_states.sum()), int(self.free_beliefs.sum())]
        )
        log_snr = self.least + gaps.exp().cumsum(0)
        times = torch.cat([self.first.reshape(1), self.schedule.inverse(log_snr), theta.new_zeros(1)])
        return Candidate(
            self.name,
            times.detach(),
            self.fixed_states.masked_scatter(self.free_states, of_states),
            self.fixed_beliefs.masked_scatter(self.free_beliefs, of_beliefs),
        )

    def measure(self, theta: Tensor) -> Tensor | None:
        """Squared errors of all training trajectories, or None if the times do not fall."""
        if bool(self.least + theta[: self.n - 1].exp().sum() > MOST_LOG_SNR):
            return None
        table = self.table(theta)
        if not bool((table.times[:-1] > table.times[1:]).all()):
            return None
        errors = all_errors(self.training, table)
        return errors if bool(errors.isfinite().all()) else None

    def run(self, iterations: int) -> None:
        """Up to that many steps; stops where none improves the loss."""
        for _ in range(iterations):
            scale = scale_of(self.errors)
            loss = torch.log1p(self.errors / scale).mean()
            gradient, curvature = self.normal_equations(scale)
            if not bool(curvature.diagonal().max() > 0):
                return  # exact already, or nothing depends on the weights
            diagonal = curvature.diagonal().clamp_min(1e-12 * float(curvature.diagonal().max()))
            for _ in range(8):
                step = torch.linalg.solve(curvature + torch.diag(self.damping * diagonal), gradient)
                errors = self.measure(self.theta - step)
                if errors is not None and bool(torch.log1p(errors / scale).mean() < loss):
                    self.theta, self.errors, self.damping = self.theta - step, errors, max(self.damping / 5, 1e-10)
                    break
                self.damping *= 4
            else:
                return

    def normal_equations(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(J'Wr, J'WJ) over all trajectories, W the robust weights."""
        table, size = self.table(), len(self.theta)
        gradient, curvature = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for batch in self.training:
            y, leaves = self.unrolled(batch, table)
            path, dims = batch.kernel, batch.kernel.dims(batch.x).double().cpu()
            residual = path.combine((1.0, y.detach()), (-1.0, batch.target))
            square = dots(path, residual, residual)
            weight = 1 / (dims * scale + square)
            row = self.pullback(y, leaves, residual)
            gradient += row @ weight
            curvature += (row * (weight / square.clamp_min(1e-300))) @ row.T
            for _ in range(self.probes):
                probe = torch.randn(y.shape, generator=self.generator, dtype=torch.float64).to(y)
                probe = path.project(probe)
                share = dots(path, probe, residual) / square.clamp_min(1e-300)
                row = self.pullback(y, leaves, path.combine((1.0, probe), (-share, residual)))
                curvature += (row * (weight / self.probes)) @ row.T
        return gradient, curvature

    def pullback(self, y: Tensor, leaves: list[Tensor], direction: Tensor) -> Tensor:
        """<direction, dy/d parameter> of every example, (parameters, B)."""
        rows = torch.stack(torch.autograd.grad(y, leaves, direction, retain_graph=True))
        # A gap moves all later times.
        gaps = self.theta[: self.n - 1].exp().unsqueeze(1)
        rows[: self.n - 1] = gaps * rows[: self.n - 1].flip(0).cumsum(0).flip(0)
        return rows

    def unrolled(self, batch: Trajectories, table: Candidate) -> tuple[Tensor, list[Tensor]]:
        """The end of the solver, with the free parameters as leaves (B,) in the order of theta."""
        path, n = batch.kernel, self.n
        B = path.examples(batch.x)

        def leaf(value: float) -> Tensor:
            return torch.full((B,), value, dtype=torch.float64, requires_grad=True)

        centres = self.schedule.log_snr(table.times[1:-1])
        nearby = self.schedule.inverse(torch.stack([centres + 1e-3, centres - 1e-3], 1))
        levels = self.schedule.log_snr(nearby).detach()
        around, widths = nearby.tolist(), (levels[:, 0] - levels[:, 1]).tolist()
        shifts = [leaf(0.0) for _ in range(n - 1)]
        calls = iter(range(n))

        def shifted(x: Tensor, t: Time) -> Belief:
            """The belief with its derivative in log-SNR along a shift of 0."""
            mean, i = batch.denoise(x, t).mean, next(calls)
            if i == 0:
                return Belief(mean)
            with torch.no_grad():
                above, below = (batch.denoise(x.detach(), at).mean for at in around[i - 1])
                slope = path.combine((1 / widths[i - 1], above), (-1 / widths[i - 1], below))
            return Belief(path.combine((1.0, mean), (shifts[i - 1], slope)))

        rows, leaves = [], list(shifts)
        entries: list[list[list[tuple[int, Time]]]] = []
        for weights, free in ((table.states, self.free_states), (table.beliefs, self.free_beliefs)):
            side: list[list[tuple[int, Time]]] = []
            for i, (numbers, freedom) in enumerate(zip(weights.tolist(), free.tolist(), strict=True)):
                terms: list[tuple[int, Time]] = []
                for j in range(i + 1):
                    if freedom[j]:
                        leaves.append(leaf(numbers[j]))
                        terms.append((j, leaves[-1]))
                    elif numbers[j] != 0:
                        terms.append((j, numbers[j]))
                side.append(terms)
            entries.append(side)
        times = table.times.tolist()
        rows = [Row(times[i], entries[0][i], entries[1][i], times[i + 1]) for i in range(n)]
        with torch.enable_grad():
            return last(follow(rows, shifted, path, batch.x)), leaves


def dots(path: Path[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Inner products per example, (B,) float64, of two states: the derivative of a x along y in a number a."""
    with torch.enable_grad():
        a = torch.ones(path.examples(x), dtype=torch.float64, requires_grad=True)
        (products,) = torch.autograd.grad(path.combine((a, x.detach())), a, y)
    return products


def squared_errors(batch: Trajectories, table: Candidate) -> Tensor:
    """|y_n - target|^2 per dimension, (B,)."""
    rows = table_rows(table.times.tolist(), table.states.tolist(), table.beliefs.tolist())
    with torch.no_grad():
        y = last(follow(rows, batch.denoise, batch.kernel, batch.x))
        error = batch.kernel.combine((1.0, y), (-1.0, batch.target))
        return dots(batch.kernel, error, error) / batch.kernel.dims(batch.x).double().cpu()


def scale_of(errors: Tensor) -> Tensor:
    """c^2 of squared errors, c three medians."""
    return 9 * errors.median().clamp_min(torch.finfo(torch.float64).tiny)


def all_errors(batches: Sequence[Trajectories], table: Candidate) -> Tensor:
    """`squared_errors` of all trajectories of several batches."""
    return torch.cat([squared_errors(batch, table) for batch in batches])


def rms(batches: Sequence[Trajectories], table: Candidate) -> float:
    """Root mean square error per dimension over all trajectories."""
    return float(all_errors(batches, table).mean().sqrt())


def table_rows(
    times: Sequence[float], states: Sequence[Sequence[float]], beliefs: Sequence[Sequence[float]]
) -> list[Row]:
    """A table for `follow`; weights of 0 are left out."""
    return [
        Row(t, nonzero(of_states), nonzero(of_beliefs), s)
        for t, s, of_states, of_beliefs in zip(times[:-1], times[1:], states, beliefs, strict=True)
    ]


def nonzero(weights: Sequence[float]) -> list[tuple[int, Time]]:
    """(place, weight) of the weights that are not 0."""
    return [(j, weight) for j, weight in enumerate(weights) if weight != 0]
