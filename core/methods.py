"""The names that command lines and configuration files use for methods, and what they mean.

This is the edge: inside the library a method is a class or function passed in, never a string. The keys of each table
are spelled out as Literals in the torch-free `names`, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from . import denoisers, grids, objectives, schedules
from .adaptive import adaptive
from .ancestral import ancestral
from .any_order import any_order
from .ddim import ddim
from .dpm_solver import dpm_solver_pp_2m, dpm_solver_pp_2s, dpm_solver_pp_3m
from .dpm_solver_sde import dpm_solver_pp_sde
from .langevin import predictor_corrector
from .multistep import deis
from .names import (
    GridName,
    ParametrisationName,
    ReadingName,
    SamplerName,
    ScheduleName,
    TokenSamplerName,
    WeightName,
)
from .ode import euler, heun
from .pndm import f_pndm, pndm
from .sampling import Step
from .sde import reverse_diffusion
from .tau_leaping import tau_leaping
from .unipc import unipc
from .unmasking import cached, confidence, first_hitting

__all__ = ["GRIDS", "PARAMETRISATIONS", "READINGS", "SAMPLERS", "SCHEDULES", "TOKEN_SAMPLERS", "WEIGHTS"]

SCHEDULES: dict[ScheduleName, Callable[[], schedules.Schedule]] = {
    "linear": schedules.LinearBeta,
    "cosine": schedules.Cosine,
    "sigmoid": schedules.Sigmoid,
    "quadratic": schedules.Quadratic,
    "ve": schedules.VarianceExploding,
    "sub-vp": schedules.SubVP,
    "edm": schedules.EDM,
    "rectified-flow": schedules.RectifiedFlow,
}

PARAMETRISATIONS: dict[ParametrisationName, denoisers.Parametrisation] = {
    "eps": denoisers.eps,
    "x0": denoisers.x0,
    "v": denoisers.v,
    "score": denoisers.score,
    "flow": denoisers.flow,
    "edm": denoisers.edm(),
}

READINGS: dict[ReadingName, Callable[[Tensor, Tensor], Tensor]] = {
    "logits": denoisers.logits,
    "context": denoisers.context,
}

WEIGHTS: dict[WeightName, objectives.Weight] = {
    "simple": objectives.simple,
    "plain": objectives.plain,
    "velocity": objectives.velocity,
    "flow": objectives.flow_velocity,
    "likelihood": objectives.likelihood,
    "min-snr": objectives.min_snr(),
    "p2": objectives.p2(),
    "edm": objectives.edm(),
}

GRIDS: dict[GridName, Callable[[int, schedules.Schedule], Tensor]] = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "log-snr": grids.log_snr,
    "karras": grids.karras,
}


SAMPLERS: dict[SamplerName, Callable[..., Iterator[Step]]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm-solver++": dpm_solver_pp_2m,
    "dpm-solver++-2s": dpm_solver_pp_2s,
    "dpm-solver++-3m": dpm_solver_pp_3m,
    "deis": deis,
    "unipc": unipc,
    "pndm": pndm,
    "f-pndm": f_pndm,
    "adaptive": adaptive,
    "reverse-diffusion": reverse_diffusion,
    "predictor-corrector": predictor_corrector(reverse_diffusion),
    "sde-dpm-solver++": dpm_solver_pp_sde,
}
"""`sampler(denoise, kernel, x, times, generator=...)`."""

TOKEN_SAMPLERS: dict[TokenSamplerName, Callable[..., Iterator[Step]]] = {
    "ancestral": ancestral,
    "first-hitting": first_hitting,
    "cached": cached,
    "confidence": confidence,
    "any-order": any_order,
    "tau-leaping": tau_leaping,
}
"""Of the same form; all but ancestral and tau-leaping are for absorbing kernels."""
