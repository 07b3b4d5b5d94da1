r"""What a diffusion model of time series is made of: its configuration, its weights, and the kernel of both.

A model learns p(missing cells | given cells) of windows (L, K) of K features. Values are brought to the units of the
network by centre and scale of the training cells, which are kept with the weights; at level "window" the mean of each
window's given cells is taken off besides (see `scaling`). The kernel is the core's Gaussian with the noise law
`kernel.Targets`, bound to the cells of a window when it is known which are missing.

CSDI (Tashiro et al. 2021) is the schedule "csdi", 50 steps whose betas rise quadratically from 1e-4 to 0.5 (section
6.1), told to the network by its index ("index-50") and read as noise ("eps"). Such a network knows whole indices only,
so grids of times are brought to them, see `SeriesConfig.indices`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from ..core.config import Range
from ..core.denoisers import Conditioning, GaussianDenoiser, index, log_snr, time
from ..core.errors import ArgumentError, ConfigError
from ..core.gaussian import Gaussian
from ..core.methods import PARAMETRISATIONS
from ..core.methods import SCHEDULES as CORE_SCHEDULES
from ..core.names import ParametrisationName, ScheduleName
from ..core.objectives import Times, whole_steps
from ..core.schedules import Schedule, Tabulated
from .csdi import CSDIConfig
from .kernel import Targets
from .network import SeriesNetConfig
from .scaling import Level, normalise, restore, window_level

__all__ = [
    "CONDITIONINGS",
    "CSDI_STEPS",
    "SCHEDULES",
    "ConditioningName",
    "SeriesConfig",
    "SeriesModel",
    "SeriesScheduleName",
    "kernel_of",
    "times_of",
]

CSDI_STEPS = 50
"""Of the published chain."""

SeriesScheduleName: TypeAlias = ScheduleName | Literal["csdi"]
ConditioningName: TypeAlias = Literal["log-snr", "time", "index-50"]


def quadratic_betas() -> Tabulated:
    """The published chain of 50 steps: square roots of betas in equal intervals (Tashiro et al. 2021, eq. 13)."""
    return Tabulated.from_betas(torch.linspace(1e-4**0.5, 0.5**0.5, CSDI_STEPS, dtype=torch.float64) ** 2)


SCHEDULES: Mapping[SeriesScheduleName, Callable[[], Schedule]] = {**CORE_SCHEDULES, "csdi": quadratic_betas}
CONDITIONINGS: Mapping[ConditioningName, Conditioning] = {
    "log-snr": log_snr, "time": time, "index-50": index(CSDI_STEPS)
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SeriesConfig:
    """All that is needed to build the model, as `config.json` holds it."""

    features: tuple[str, ...]
    """Names of the features, in order."""
    window: Annotated[int, Range(1, 100_000)]
    """Rows that the model was trained on at once."""
    network: SeriesNetConfig | CSDIConfig
    """Sizes of the network."""
    schedule: SeriesScheduleName = "cosine"
    """Of training; sampling may use another."""
    parametrisation: ParametrisationName = "v"
    """How the network's output is read."""
    conditioning: ConditioningName = "log-snr"
    """What the network is told of time."""
    level: Level = "series"
    """What is subtracted from values: the mean of the training cells; "window", that of a window's given cells too."""
    step: Annotated[float, Range(0.0, 1e12)] = 0.0
    """Seconds from one row to the next: of irregular series the median; 0 where rows carry no time."""
    covariates: tuple[str, ...] = ()
    """Features whose future is known to whoever forecasts."""

    def __post_init__(self):
        if not self.features or len(set(self.features)) != len(self.features):
            raise ConfigError("features", self.features, "at least one, each name once")
        if self.network.features != len(self.features):
            raise ConfigError("network.features", self.network.features, f"{len(self.features)}, the features")
        unknown = sorted(set(self.covariates) - set(self.features))
        if unknown or len(set(self.covariates)) != len(self.covariates):
            raise ConfigError("covariates", self.covariates, f"some of {', '.join(self.features)}, each once")
        if len(self.covariates) == len(self.features):
            raise ConfigError("covariates", self.covariates, "a feature at least that is none")
        if self.conditioning == "index-50" and self.schedule != "csdi":
            raise ConfigError("schedule", self.schedule, f"csdi: the network is told one of {CSDI_STEPS} indices")
        if isinstance(self.network, CSDIConfig):
            if self.conditioning != "index-50":
                raise ConfigError("conditioning", self.conditioning, "index-50, which is what this network knows")
            if self.network.steps != CSDI_STEPS:
                raise ConfigError("network.steps", self.network.steps, f"{CSDI_STEPS}, the steps of the schedule")

    @property
    def indices(self) -> int | None:
        """T where the network knows the times i/T only, i = 1 ... T."""
        return CSDI_STEPS if self.conditioning == "index-50" else None


@final
class SeriesModel(nn.Module):
    """A denoiser of time series and the units that it works in.

    Args:
        config: of the model.
        centre, scale: of the features in the units of the data, (K,); 0 and 1 without, as of a model whose weights are
            read, with which they come. A scale of 0 says that a feature is constant: it is filled with its centre.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        config: SeriesConfig,
        centre: Sequence[float] | np.ndarray | Tensor | None = None,
        scale: Sequence[float] | np.ndarray | Tensor | None = None,
    ):
        super().__init__()
        self.level: Level = config.level
        self.denoiser = GaussianDenoiser(
            config.network.build(),
            SCHEDULES[config.schedule](),
            PARAMETRISATIONS[config.parametrisation],
            CONDITIONINGS[config.conditioning],
        )
        count = len(config.features)
        for name, value, blank in (("centre", centre, 0.0), ("scale", scale, 1.0)):
            known = torch.full((count,), blank) if value is None else torch.as_tensor(value)
            known = known.detach().to("cpu", torch.float64, copy=True)
            if known.shape != (count,) or not bool(known.isfinite().all()):
                raise ArgumentError(name, value, f"{count} finite numbers, one per feature")
            self.register_buffer(name, known)
        if not bool((self.scale >= 0).all()):
            raise ArgumentError("scale", scale, "numbers >= 0")

    def normalised(self, values: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Values in the network's units, and the level that was taken off.

        Args:
            values: (B, L, K) float64 in the units of the data; anything where not given.
            given: (B, L, K) bool.

        Returns:
            float64: (B, L, K), 0 where not given; (B, 1, K), which is 0 at level "series".
        """
        scale = torch.where(self.scale > 0, self.scale, 1)
        x = torch.where(given, normalise(values, self.centre, scale), 0)
        if self.level == "series":
            return x, x.new_zeros(len(x), 1, x.shape[2])
        level = window_level(x, given)
        return torch.where(given, x - level, 0), level

    def restored(self, x: Tensor, level: Tensor) -> Tensor:
        """Network's units to the data's, float64; the inverse of `normalised` where cells are given.

        Args:
            x: (..., L, K).
            level: broadcastable to it.
        """
        return restore(x.to(self.centre) + level, self.centre, self.scale)


def times_of(config: SeriesConfig) -> Times | None:
    """The law of t in training; None for the one of the objective."""
    return None if config.indices is None else whole_steps(config.indices)


def kernel_of(config: SeriesConfig, model: SeriesModel | Any) -> Gaussian:
    """The forward process of a model, to be bound to the cells of windows by `given(mask=, counted=)`."""
    return Gaussian(model.denoiser.schedule, Targets())
