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
from typing import Annotated, Any, Self, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from ..core.config import Range
from ..core.denoisers import Conditioning, GaussianDenoiser, index, log_snr, time
from ..core.errors import ArgumentError, ConfigError
from ..core.gaussian import Gaussian
from ..core.methods import PARAMETRISATIONS, WEIGHTS
from ..core.methods import SCHEDULES as CORE_SCHEDULES
from ..core.names import ParametrisationName, WeightName
from ..core.objectives import Times, whole_steps
from ..core.schedules import Schedule, Tabulated
from ..core.training import Trained
from .csdi import CSDIConfig
from .kernel import Targets
from .network import SeriesNetConfig
from .objectives import Imputation
from .recipes import ConditioningName, SeriesScheduleName
from .scaling import LEVEL_OF, Level, normalise, restore
from .targets import Sparing, Strategy, typical

__all__ = [
    "CONDITIONINGS",
    "CSDI_STEPS",
    "SCHEDULES",
    "NetworkConfig",
    "SeriesConfig",
    "SeriesModel",
    "imputation_of",
    "kernel_of",
    "times_of",
]

CSDI_STEPS = 50
"""Of the published chain."""

NetworkConfig: TypeAlias = SeriesNetConfig | CSDIConfig
"""Sizes of a network, which know how such a network is trained, built and told of time."""


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
    network: NetworkConfig
    """Sizes of the network."""
    schedule: SeriesScheduleName = SeriesNetConfig.recipe.schedule
    """Of training; sampling may use another."""
    parametrisation: ParametrisationName = SeriesNetConfig.recipe.parametrisation
    """How the network's output is read."""
    conditioning: ConditioningName = SeriesNetConfig.recipe.conditioning
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
        if self.network.indices is not None:
            if self.indices is None:
                raise ConfigError("conditioning", self.conditioning, "index-50, which is what this network knows")
            if self.network.indices != self.indices:
                raise ConfigError("network.steps", self.network.indices, f"{self.indices}, the steps of the schedule")

    @classmethod
    def of(cls, network: NetworkConfig, **rest: Any) -> Self:
        """The model of a network by its recipe, but for what is said; None says nothing."""
        recipe = network.recipe
        own = {name: getattr(recipe, name) for name in ("schedule", "parametrisation", "conditioning")}
        return cls(network=network, **own | {name: value for name, value in rest.items() if value is not None})

    @property
    def indices(self) -> int | None:
        """T where the network knows the times i/T only, i = 1 ... T."""
        return CSDI_STEPS if self.conditioning == "index-50" else None

    def sparing(self, strategy: Strategy) -> Strategy:
        """The strategy, with covariates never asked for."""
        columns = tuple(map(self.features.index, self.covariates))
        return Sparing(strategy, columns) if columns else strategy


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
        self.level_of = LEVEL_OF[config.level]
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

    @classmethod
    def drawn(cls, config: SeriesConfig, centre: np.ndarray, scale: np.ndarray, *, seed: int) -> Self:
        """A model to be trained, with first weights that a seed decides."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, centre, scale)

    def taught(self, trained: Trained) -> Self:
        """The model itself with the averaged weights of its denoiser's training, in evaluation mode."""
        self.denoiser.load_state_dict(trained.average(self.denoiser).state_dict())
        return self.to(next(self.denoiser.parameters()).device).eval()  # where training took the denoiser alone

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
        level = self.level_of(x, given)
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


def imputation_of(
    config: SeriesConfig,
    model: SeriesModel,
    strategy: Strategy,
    some: Mapping[str, Tensor],
    *,
    weighting: WeightName | None = None,
    seed: int = 0,
) -> Imputation:
    """The loss of a model, of every counted cell alike.

    Args:
        config: of the model.
        model: whose denoiser learns.
        strategy: which seen cells are asked for.
        some: windows of the training data: "seen" (N, L, K) bool, perhaps "present" (N, L) bool.
        weighting: of the error; None for the network's own.
        seed: of the targets by which the cells of a window are counted.
    """
    kernel, times, level = kernel_of(config, model), times_of(config), LEVEL_OF[config.level]
    per = typical(strategy, some["seen"], some.get("present"), seed=seed)
    weight = WEIGHTS[weighting or config.network.recipe.weighting]
    return Imputation(model.denoiser, kernel, strategy, per, weight=weight, times=times, level=level)
