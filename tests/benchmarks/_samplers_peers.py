"""The deterministic solvers of diffusers, k-diffusion and azula on one exact denoiser, with their options.

Every peer is a function (oracle, x, calls) -> x_0, or None where the calls do not suffice for a single run; a choice
that the library itself refuses is an `Unusable` with its reason, which the benchmark counts and names. A peer starts
from x ~ N(0, I) at the last index of DDPM's table, is driven as its documentation says, and is given the exact belief
at the noise level that it believes to be at, also where it rounds the time that it would tell a network. The formulas
of k-diffusion are written here from the papers: LMS (Adams-Bashforth in sigma), Heun and DPM-2 (Karras et al. 2022),
DPM++ 2M (Lu et al. 2022b) and iPNDM (Zhang & Chen 2023), in sigma on Karras' and exponential grids.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import azula.denoise
import azula.noise
import azula.sample
import diffusers
import numpy as np
import torch
from torch import Tensor

from tests.problems import MixtureData

__all__ = ["BETAS", "Oracle", "Unusable", "azula_peers", "diffusers_peers", "k_peers", "scheduled"]

BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
Peer = Callable[["Oracle", Tensor, int], Tensor | None]


class Unusable(Exception):
    """The library raises an error for these options and this number of calls; the message is its own."""


class Oracle:
    """The exact denoiser in noise levels s = sigma/alpha of z = x/alpha; counts its calls."""

    def __init__(self, data: MixtureData):
        self.data, self.calls = data, 0
        kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
        self.table = ((1 - kept) / kept).sqrt()
        self.first = float(self.table[-1])

    def mean(self, z: Tensor, s: float) -> Tensor:
        self.calls += 1
        return self.data.mean(z, 1.0, s)

    def eps(self, x: Tensor, s: float) -> Tensor:
        """eps for x on the variance-preserving path at noise level s."""
        z = x * math.hypot(1.0, s)
        return (z - self.mean(z, s)) / s


# diffusers -----------------------------------------------------------------------------------------------------------

SPACINGS = [{"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}]
NOISES = [
    *SPACINGS,
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
LAMBDAS = [*NOISES, {"use_lu_lambdas": True}]
ORDERS = [{"solver_order": order} for order in (1, 2, 3)]
FINALS = [{"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}]


def options(*axes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes."""
    for choice in product(*axes):
        yield {name: value for part in choice for name, value in part.items()}


SCHEDULERS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "DDIM": ("DDIMScheduler", list(options(SPACINGS, [{"clip_sample": False}]))),
    "PNDM": ("PNDMScheduler", list(options(SPACINGS, [{"skip_prk_steps": skip} for skip in (True, False)]))),
    "Euler": ("EulerDiscreteScheduler", list(options(NOISES))),
    "Heun": ("HeunDiscreteScheduler", list(options(NOISES))),
    "DPM2": ("KDPM2DiscreteScheduler", list(options(NOISES))),
    "LMS": ("LMSDiscreteScheduler", list(options(NOISES))),
    "DPM++ multistep": (
        "DPMSolverMultistepScheduler",
        [
            *options(LAMBDAS, ORDERS, FINALS, [{"lower_order_final": True}]),
            *options(LAMBDAS, ORDERS[1:], FINALS[:1], [{"lower_order_final": True, "euler_at_final": True}]),
            *options(LAMBDAS, ORDERS[1:], FINALS[1:], [{"lower_order_final": False}]),
        ],
    ),
    "DPM multistep": (
        "DPMSolverMultistepScheduler",
        list(options(LAMBDAS, ORDERS, FINALS[1:], [{"algorithm_type": "dpmsolver"}])),
    ),
    "DPM++ singlestep": (
        "DPMSolverSinglestepScheduler",
        list(options([{}, *NOISES[2:]], ORDERS, [{"lower_order_final": True}])),
    ),
    "DEIS": ("DEISMultistepScheduler", list(options(NOISES, ORDERS))),
    "UniPC": (
        "UniPCMultistepScheduler",
        list(options(NOISES, ORDERS, FINALS, [{"solver_type": "bh1"}, {"solver_type": "bh2"}])),
    ),
}


def diffusers_peers() -> Iterator[tuple[str, str, Peer]]:
    """(name, options, peer)"""
    for name, (kind, choices) in SCHEDULERS.items():
        for choice in choices:
            yield name, ", ".join(f"{key}={value}" for key, value in choice.items()), scheduled(kind, choice)


def scheduled(kind: str, choice: dict[str, Any]) -> Peer:
    def run(oracle: Oracle, x: Tensor, calls: int) -> Tensor | None:
        scheduler = getattr(diffusers, kind)(**BETAS, **choice)
        for steps in range(calls, 0, -1):  # the largest number of steps that stays within the calls
            try:
                scheduler.set_timesteps(steps)
            except (ValueError, IndexError, NotImplementedError) as error:
                raise Unusable(f"{kind}.set_timesteps({steps}): {type(error).__name__}: {error}") from error
            if len(scheduler.timesteps) <= calls:
                break
        else:
            return None
        exploding = hasattr(scheduler, "scale_model_input") and float(scheduler.init_noise_sigma) != 1.0
        x = x * float(scheduler.init_noise_sigma)
        if kind == "KDPM2DiscreteScheduler":
            levels = interleaved(scheduler)
        elif hasattr(scheduler, "sigmas"):
            levels = scheduler.sigmas.double().tolist()
        else:
            levels = oracle.table[scheduler.timesteps.long()].tolist()
        for i, t in enumerate(scheduler.timesteps):
            s = levels[i]
            scaled = scheduler.scale_model_input(x, t).double() if exploding else x
            x = scheduler.step(oracle.eps(scaled, s), t, x).prev_sample.double()
        return x

    return run


def interleaved(scheduler: Any) -> list[float]:
    """KDPM2's noise levels in the order of its calls: at each step, then between it and the next."""
    own = scheduler.sigmas.double().tolist()
    between = scheduler.sigmas_interpol.double().tolist()
    return [between[i] if i % 2 else own[i] for i in range(len(scheduler.timesteps))]


# k-diffusion ---------------------------------------------------------------------------------------------------------


def k_peers() -> Iterator[tuple[str, str, Peer]]:
    """(name, options, peer)"""
    methods: dict[str, tuple[Callable[..., Tensor], int]] = {
        "euler": (k_euler, 1),
        "heun": (k_heun, 2),
        "dpm_2": (k_dpm_2, 2),
        "dpmpp_2m": (k_dpmpp_2m, 1),
        **{f"lms {order}": (partial(k_lms, order=order), 1) for order in (2, 3, 4)},
        **{f"ipndm {order}": (partial(k_ipndm, order=order), 1) for order in (2, 3, 4)},
    }
    for name, (method, per_step) in methods.items():
        for rho, last in product((3.0, 5.0, 7.0, math.inf), (0.2, 0.1, 0.05, 0.03, 0.01)):
            yield name, f"rho {rho}, sigma_min {last}", k_run(method, per_step, rho, last)


def k_run(method: Callable[..., Tensor], per_step: int, rho: float, last: float) -> Peer:
    def run(oracle: Oracle, x: Tensor, calls: int) -> Tensor | None:
        # Methods of two calls a step make one in the step to 0.
        steps = calls if per_step == 1 else (calls + 1) // 2
        u = np.linspace(0, 1, steps)
        if math.isinf(rho):
            levels = np.exp(math.log(oracle.first) * (1 - u) + math.log(last) * u)
        else:
            levels = (oracle.first ** (1 / rho) * (1 - u) + last ** (1 / rho) * u) ** rho
        return method(oracle, x * math.hypot(1.0, oracle.first), [*levels.tolist(), 0.0])

    return run


def slope(oracle: Oracle, z: Tensor, s: float) -> Tensor:
    return (z - oracle.mean(z, s)) / s


def k_euler(oracle: Oracle, z: Tensor, levels: list[float]) -> Tensor:
    for s, r in zip(levels[:-1], levels[1:], strict=True):
        z = z + (r - s) * slope(oracle, z, s)
    return z


def k_heun(oracle: Oracle, z: Tensor, levels: list[float]) -> Tensor:
    for s, r in zip(levels[:-1], levels[1:], strict=True):
        d = slope(oracle, z, s)
        if r > 0:
            d = (d + slope(oracle, z + (r - s) * d, r)) / 2
        z = z + (r - s) * d
    return z


def k_dpm_2(oracle: Oracle, z: Tensor, levels: list[float]) -> Tensor:
    for s, r in zip(levels[:-1], levels[1:], strict=True):
        d = slope(oracle, z, s)
        if r > 0:
            middle = math.sqrt(s * r)
            d = slope(oracle, z + (middle - s) * d, middle)
        z = z + (r - s) * d
    return z


def k_dpmpp_2m(oracle: Oracle, z: Tensor, levels: list[float]) -> Tensor:
    previous, h_previous = None, 0.0
    for s, r in zip(levels[:-1], levels[1:], strict=True):
        mean = oracle.mean(z, s)
        if r == 0:
            return mean
        h, used = math.log(s / r), mean
        if previous is not None:
            lean = h / (2 * h_previous)
            used = (1 + lean) * mean - lean * previous
        z = r / s * z + (1 - r / s) * used
        previous, h_previous = mean, h
    return z


NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)


def k_lms(oracle: Oracle, z: Tensor, levels: list[float], order: int) -> Tensor:
    history: list[Tensor] = []
    for i, (s, r) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        history = [*history, slope(oracle, z, s)][-order:]
        known = levels[i + 1 - len(history) : i + 1]
        at = (s + r) / 2 + (r - s) / 2 * NODES
        for j, d in enumerate(history):
            basis = np.prod([(at - other) / (known[j] - other) for k, other in enumerate(known) if k != j], axis=0)
            z = z + float((WEIGHTS * basis).sum() * (r - s) / 2) * d
    return z


ADAMS = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def k_ipndm(oracle: Oracle, z: Tensor, levels: list[float], order: int) -> Tensor:
    history: list[Tensor] = []
    for s, r in zip(levels[:-1], levels[1:], strict=True):
        history = [slope(oracle, z, s), *history][:order]
        z = z + (r - s) * sum(w * d for w, d in zip(ADAMS[len(history)], history, strict=True))  # pyright: ignore
    return z


# azula ---------------------------------------------------------------------------------------------------------------


class Exact(azula.denoise.Denoiser):
    """The oracle as azula's denoiser under one of its schedules."""

    def __init__(self, oracle: Oracle, schedule: Any):
        super().__init__()
        self.oracle, self.schedule = oracle, schedule

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> azula.denoise.DiracPosterior:
        alpha_t, sigma_t = (float(number) for number in self.schedule(t))
        return azula.denoise.DiracPosterior(self.oracle.mean(x_t / alpha_t, sigma_t / alpha_t))


SAMPLERS = ["DDIMSampler", "EulerSampler", "HeunSampler", "zABSampler", "vABSampler", "zEABSampler", "xEABSampler"]
SAMPLERS += ["REABSampler"]


def azula_peers() -> Iterator[tuple[str, str, Peer]]:
    """(name, options, peer); with `denoised` the last call is spent on the belief at the end of the grid."""
    for kind in SAMPLERS:
        ordered = "order" in inspect.signature(getattr(azula.sample, kind)).parameters
        for order in (2, 3, 4) if ordered else (None,):
            for schedule, least, denoised in product(
                ("VESchedule", "VPSchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule"),
                (1e-3, 1e-2, 3e-2, 0.1),
                (False, True),
            ):
                name = kind if order is None else f"{kind} {order}"
                yield (
                    name,
                    f"{schedule}, sigma_min {least}, denoised {denoised}",
                    azula_run(kind, order, schedule, least, denoised),
                )


def azula_run(kind: str, order: int | None, schedule_name: str, least: float, denoised: bool) -> Peer:
    def run(oracle: Oracle, x: Tensor, calls: int) -> Tensor | None:
        levels = {"sigma_max": oracle.first} if schedule_name == "VESchedule" else {"alpha_min": 1 / oracle.first}
        schedule = getattr(azula.noise, schedule_name)(sigma_min=least, **levels)
        steps = (calls - denoised) // (2 if kind == "HeunSampler" else 1)
        if steps < 1:
            return None
        # The time at which the schedule has the common first noise level: theirs begin near it, or a little above.
        low, high = 0.5, 1.5
        for _ in range(60):
            middle = (low + high) / 2
            alpha, sigma = schedule(torch.tensor(middle, dtype=torch.float64))
            low, high = (low, middle) if float(sigma / alpha) > oracle.first or float(alpha) <= 0 else (middle, high)
        start = (low + high) / 2
        denoiser = Exact(oracle, schedule)
        extra = {} if order is None else {"order": order}
        sampler = getattr(azula.sample, kind)(
            denoiser, start=start, steps=steps, silent=True, dtype=torch.float64, **extra
        )
        alpha, _ = schedule(torch.tensor(start, dtype=torch.float64))
        x = sampler(x * math.hypot(1.0, oracle.first) * alpha)
        alpha, sigma = (float(number) for number in schedule(torch.tensor(0.0, dtype=torch.float64)))
        return oracle.mean(x / alpha, sigma / alpha) if denoised else x / alpha

    return run
