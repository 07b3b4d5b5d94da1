r"""Exact log-likelihood by the probability-flow ODE (Song et al. 2021, eq. 39), for Gaussian kernels.

The flow is x_t = alpha_t x_0 + sigma_t x_1 with the belief m for x_0 and eps = (x_t - alpha_t m)/sigma_t for x_1. In
y = x/k, k = alpha + sigma, over the clock u = sigma/k, it is finite at alpha = 0 and at sigma = 0 alike,

    dy/du = eps - m,      d log p(y)/du = -(k/sigma) (d - k tr dm/dx),

with d and the trace on the support of the noise law. Integrated from the data to the noise,

    log p(x_0) = log p(x_1) + d log k_1 + int (k/sigma) (d - k tr dm/dx) du.

At t = 0 the belief is x itself whatever the network, so the slope there is -y and the divergence -d: the solve starts
at the data, with no offset, if the data have a smooth density. Where they have none (few levels, a manifold) the
integral diverges at 0; with `from_data=False` the last interval of the grid is left out and alpha x_0 stands for x at
t_1, as published figures do (their offset is 1e-5, and it changes them): state t_1 beside such a number.

The trace is sum_v v' (dm/dx) v over probes v drawn once per solve: `exact` takes the unit vectors of every example, one
backward pass each, `rademacher` and `normal` random ones (Hutchinson; Grathwohl et al. 2019, FFJORD). With probes drawn
anew at each call the solver would integrate noise. Nothing here is differentiable: each call's graph is freed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torchdiffeq import odeint

from .errors import ArgumentError
from .gaussian import Belief, Gaussian
from .kernel import Time
from .noise import Noise
from .randomness import Randomness
from .sampling import columns, prepared

__all__ = [
    "HEUN",
    "RK4",
    "Likelihood",
    "Prior",
    "RungeKutta",
    "adaptive_log_likelihood",
    "exact",
    "log_likelihood",
    "normal",
    "rademacher",
]

Denoise: TypeAlias = Callable[[Tensor, Time], Belief]
Probes: TypeAlias = Callable[[Noise, Tensor, Randomness], Iterable[Tensor]]
"""(noise, like, generator) -> v_1, v_2, ... with E sum v v' the projection on the support; read many times."""


class Prior(Protocol):
    """The law where the solve ends: a `Normal`, or a fitted start of `truncation`."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Nats, (B,)."""
        ...


class Likelihood(NamedTuple):
    """What a solve found."""

    nats: Tensor
    """log p(x_0) in nats, (B,); `bounds.bits_per_dim` takes its negative, as bounds are bounds on -log p"""
    x_1: Tensor
    """the latent state at the grid's first time"""
    calls: int
    """of the denoiser; each is followed by one backward pass per probe"""


class RungeKutta(NamedTuple):
    """An explicit method; nodes are 0, 1/2 or 1."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


HEUN = RungeKutta((0, 1), ((), (1,)), (1 / 2, 1 / 2))
"""Order 2. The denoiser is called at the grid's own times only, which suits networks trained on a table."""
RK4 = RungeKutta((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
"""Order 4. The denoiser is called half-way (in u) between the grid's times too."""


class Units:
    """The unit vectors of every example, projected: one state per element of the largest example."""

    def __init__(self, noise: Noise, like: Tensor):
        count = noise.examples(like)
        which = noise.spread(torch.arange(count, dtype=torch.float64), like.double()).expand_as(like).long()
        sizes = torch.bincount(which.flatten(), minlength=count)
        first = sizes.cumsum(0) - sizes
        # An example's elements follow one another in memory order.
        self.place = torch.arange(like.numel(), device=like.device).reshape(like.shape) - first[which]
        self.noise, self.like, self.most = noise, like, int(sizes.max())

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self.most):
            yield self.noise.project((self.place == i).to(self.like))


def exact(noise: Noise, like: Tensor, generator: Randomness = None) -> Units:
    """The trace itself, one backward pass per element."""
    return Units(noise, like)


def rademacher(count: int = 1) -> Probes:
    """Hutchinson's estimate from `count` vectors of random signs: the least variance."""
    return drawn(count, torch.sign)


def normal(count: int = 1) -> Probes:
    """Hutchinson's estimate from `count` normal vectors."""
    return drawn(count, lambda z: z)


def drawn(count: int, shape: Callable[[Tensor], Tensor]) -> Probes:
    """Independent vectors, each a fixed function of normal numbers, on the support."""
    if not isinstance(count, int) or count < 1:
        raise ArgumentError("count", count, "an integer >= 1")

    def draw(noise: Noise, like: Tensor, generator: Randomness = None) -> list[Tensor]:
        return [noise.project(shape(noise.standard(like, generator)) / math.sqrt(count)) for _ in range(count)]

    return draw


class Field:
    """The slope of the flow and its divergence, with the probes of one solve."""

    def __init__(self, denoise: Denoise, kernel: Gaussian, x_0: Tensor, probes: Iterable[Tensor]):
        self.denoise, self.kernel, self.probes, self.calls = denoise, kernel, probes, 0
        self.dof = kernel.dims(x_0).to(x_0.dtype)

    def at_data(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The limit at sigma = 0, alpha = 1."""
        return self.kernel.combine((-1.0, x)), -self.dof

    def __call__(self, x: Tensor, t: Time, alpha: Time, sigma: Time) -> tuple[Tensor, Tensor]:
        """(dy/du, its divergence (B,)) at x."""
        self.calls += 1
        k = alpha + sigma
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            belief = self.denoise(x, t)
            # First the open sum: x and alpha m would cancel in the type of the state where sigma is small.
            slope = self.kernel.combine((1 / sigma, x), *belief.times(-k / sigma)).detach()
            mean, trace = belief.mean, torch.zeros_like(self.dof)
            if not mean.requires_grad:
                raise ArgumentError("denoise", self.denoise, "a denoiser that autograd can follow from x_t")
            for v in self.probes:
                (gradient,) = torch.autograd.grad(mean, x, v, retain_graph=True)
                trace = trace + self.kernel.noise.total(gradient * v)
        return slope, number(k / sigma, trace) * (self.dof - number(k, trace) * trace)


def log_likelihood(
    denoise: Denoise,
    kernel: Gaussian,
    x_0: Tensor,
    times: Tensor,
    *,
    probes: Probes = exact,
    method: RungeKutta = RK4,
    from_data: bool = True,
    prior: Prior | None = None,
    generator: Randomness = None,
) -> Likelihood:
    """log p(x_0) on a fixed grid: deterministic given the probes, and no example depends on its batch.

    Args:
        denoise: (x_t, t) -> belief, differentiable in x_t, each example for itself.
        kernel: Gaussian, any noise law.
        x_0: data; off the noise law's support they have probability 0.
        times: grid (n + 1,) or (n + 1, B), as for samplers; RK4 calls 4 n - 1 times, Heun 2 n - 1.
        probes: `exact`, `rademacher(count)` or `normal(count)`.
        method: `RK4` or `HEUN`.
        from_data: start at t = 0, for data with a smooth density. Pixels of few levels have none: add noise within
            the levels (`dequantisation`), or take False, which starts at t_1 from alpha x_0, see above.
        prior: law of the state at times[0]; the kernel's by default.
        generator: draws the probes, once.
    """
    falling, _, _ = prepared(kernel, times)
    t = falling.flip(0) if from_data else falling.flip(0)[1:]
    if len(t) < 2:
        raise ArgumentError("times", times, "two intervals at least, since the last is left out")
    alpha, sigma = (table.detach() for table in kernel.schedule(t))
    k, u = alpha + sigma, sigma / (alpha + sigma)
    nodes = {0.0: (t[:-1], alpha[:-1], sigma[:-1]), 1.0: (t[1:], alpha[1:], sigma[1:])}
    if 0.5 in method.nodes:
        nodes[0.5] = at_clock(kernel, (u[:-1] + u[1:]) / 2)
    tables = {node: list(zip(*columns(*table), strict=True)) for node, table in nodes.items()}
    field = Field(denoise, kernel, x_0, prepared_probes(probes, kernel, x_0, generator))
    x = x_0.detach() if from_data else kernel.combine((columns(alpha[:1])[0][0], x_0.detach()))
    gained = torch.zeros_like(field.dof)
    for i, (du, k_0, k_1) in enumerate(zip(*columns(u.diff(dim=0), k[:-1], k[1:]), strict=True)):
        slopes: list[Tensor] = []
        rates: list[Tensor] = []
        for node, row in zip(method.nodes, method.rows, strict=True):
            now, alpha_t, sigma_t = tables[node][i]
            k_t = alpha_t + sigma_t
            inner = [(k_t * du * a, slope) for a, slope in zip(row, slopes, strict=True) if a != 0]
            x_t = kernel.combine((k_t / k_0, x), *inner) if inner else x
            start = from_data and i == 0 and not slopes
            slope, rate = field.at_data(x_t) if start else field(x_t, now, alpha_t, sigma_t)
            slopes.append(slope)
            rates.append(rate)
        x = kernel.combine((k_1 / k_0, x), *((k_1 * du * b, f) for b, f in zip(method.weights, slopes, strict=True)))
        mean_rate = sum((b * rate for b, rate in zip(method.weights, rates, strict=True)), torch.zeros_like(gained))
        gained = gained + number(du, gained) * mean_rate
    stretch = k[-1].log() if from_data else k[-1].log() - k[0].log() + alpha[0].log()
    return closed(kernel, x_0, x, gained + field.dof * number(stretch, gained), prior, field.calls)


def adaptive_log_likelihood(
    denoise: Denoise,
    kernel: Gaussian,
    x_0: Tensor,
    *,
    first: float = 1.0,
    offset: float = 0.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    probes: Probes = exact,
    prior: Prior | None = None,
    generator: Randomness = None,
) -> Likelihood:
    """log p(x_0) by torchdiffeq's Dormand-Prince pair of order 5, with one sequence of steps for the batch.

    A step is accepted when every example meets the tolerance by its own norm (root mean square over its state and its
    log-density), so a large batch does not dilute one example's error. The steps still depend on the whole batch, and
    results differ within the tolerance with its company; for numbers that do not, take `log_likelihood`.

    Args:
        first: the time of the prior, in (offset, 1].
        offset: start at this time from alpha x_0, 0 for the data themselves (see above).
        rtol: relative tolerance.
        atol: absolute tolerance, on y and on nats.
        denoise, kernel, x_0, probes, prior, generator: as for `log_likelihood`.
    """
    if not 0 <= offset < first <= 1:
        raise ArgumentError("offset, first", (offset, first), "0 <= offset < first <= 1")
    ends = torch.tensor([offset, first], dtype=torch.float64)
    alpha, sigma = (table.detach() for table in kernel.schedule(ends))
    k, noise = alpha + sigma, kernel.noise
    field = Field(denoise, kernel, x_0, prepared_probes(probes, kernel, x_0, generator))

    def slope(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if float(u) <= 0:
            return field.at_data(state[0])
        now, alpha_t, sigma_t = (float(value) for value in at_clock(kernel, u.detach().to("cpu", torch.float64)))
        return field(kernel.combine((alpha_t + sigma_t, state[0])), now, alpha_t, sigma_t)

    def worst(state: tuple[Tensor, Tensor]) -> Tensor:
        return ((noise.total(state[0] ** 2) + state[1] ** 2) / (field.dof + 1)).sqrt().max()

    begin = kernel.combine((float(alpha[0] / k[0]), x_0.detach())), torch.zeros_like(field.dof)
    clock = (sigma / k).to(x_0.device)
    # Stepped onto: beyond the end there is no time.
    options = {"norm": worst, "step_t": clock[1:]}
    y, gained = odeint(slope, begin, clock, rtol=rtol, atol=atol, method="dopri5", options=options)
    x = kernel.combine((float(k[1]), y[-1]))
    stretch = float(k[1].log() - k[0].log() + alpha[0].log())
    return closed(kernel, x_0, x, gained[-1] + field.dof * stretch, prior, field.calls)


def at_clock(kernel: Gaussian, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(t, alpha, sigma) where sigma/(alpha + sigma) is u."""
    t = kernel.schedule.inverse(2 * (torch.log1p(-u) - u.log())).detach()
    alpha, sigma = kernel.schedule(t)
    return t, alpha.detach(), sigma.detach()


def prepared_probes(probes: Probes, kernel: Gaussian, x_0: Tensor, generator: Randomness) -> Iterable[Tensor]:
    """The probes of a solve; an ArgumentError for states that are not floating."""
    if not isinstance(x_0, Tensor) or not x_0.is_floating_point():
        raise ArgumentError("x_0", x_0, "a floating tensor")
    return probes(kernel.noise, x_0, generator)


def closed(kernel: Gaussian, x_0: Tensor, x_1: Tensor, gained: Tensor, prior: Prior | None, calls: int) -> Likelihood:
    """The density of the end, projected against the drift of rounding, and the gain along the way."""
    x_1 = kernel.project(x_1)
    law: Prior = kernel.prior(x_1) if prior is None else prior
    possible = kernel.noise.supports(x_0, torch.zeros_like(x_0))
    return Likelihood((law.log_prob(x_1) + gained).masked_fill(~possible, -math.inf), x_1, calls)


def number(value: Time, like: Tensor) -> Time:
    """A float, or a tensor (B,) of like's type and device."""
    return value.to(like) if isinstance(value, Tensor) else value
