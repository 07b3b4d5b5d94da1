"""The names of methods on command lines and in configuration files, as types. Free of torch; see `methods`."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = [
    "GridName",
    "ParametrisationName",
    "ReadingName",
    "SamplerName",
    "ScheduleName",
    "TokenSamplerName",
    "WeightName",
]

ScheduleName: TypeAlias = Literal["linear", "cosine", "sigmoid", "quadratic", "ve", "sub-vp", "edm", "rectified-flow"]
ParametrisationName: TypeAlias = Literal["eps", "x0", "v", "score", "flow", "edm"]
WeightName: TypeAlias = Literal["simple", "plain", "velocity", "flow", "likelihood", "min-snr", "p2", "edm"]
ReadingName: TypeAlias = Literal["logits", "context"]
GridName: TypeAlias = Literal["uniform", "quadratic", "log-snr", "karras"]
SamplerName: TypeAlias = Literal[
    "ancestral",
    "ddim",
    "euler",
    "heun",
    "dpm-solver++",
    "dpm-solver++-2s",
    "dpm-solver++-3m",
    "deis",
    "unipc",
    "pndm",
    "f-pndm",
    "adaptive",
    "reverse-diffusion",
    "predictor-corrector",
    "sde-dpm-solver++",
]
TokenSamplerName: TypeAlias = Literal[
    "ancestral", "first-hitting", "cached", "confidence", "any-order", "tau-leaping"
]  # fmt: skip
