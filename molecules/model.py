r"""What a diffusion model of conformers is made of: its configuration, its denoiser, and the kernel of both.

A molecule is a graph, which is given, and positions x, rows of all atoms one after another. What is diffused is the
displacement from a draft, in units of `scale`,

    y = (x - draft) / scale,        y_t = alpha_t y_0 + sigma_t y_1,        y_1 ~ N(0, Sigma) on centred coordinates.

From a `draft` of distance geometry (ETKDGv3, Riniker and Landrum 2015) the starting law is N(draft, scale^2 P), which
depends on the data: the model refines. From `centred` or `harmonic` noise the draft is 0 and the model makes conformers
from nothing; the harmonic law (Jing et al. 2023, EigenFold; Hassan et al. 2024, ET-Flow) knows which atoms are bonded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from ..core.clouds import Centred
from ..core.config import Range
from ..core.denoisers import Conditioning, GaussianDenoiser, log_snr, time
from ..core.errors import ConfigError
from ..core.gaussian import Gaussian
from ..core.methods import PARAMETRISATIONS, SCHEDULES
from ..core.names import ParametrisationName, ScheduleName
from ..core.schedules import Schedule
from .dual import DualConfig
from .kernel import Harmonic
from .network import EquivariantConfig
from .options import LevelName, StartName

__all__ = ["DEFAULT_SCALE", "LEVELS", "ConditioningName", "ConformerConfig", "Level", "build", "kernel_of", "number_of"]

ConditioningName: TypeAlias = Literal["log-snr", "time"]

LEVELS: tuple[LevelName, ...] = ("B3LYP", "MMFF94", "own")
"""All levels, the most exact first."""

DEFAULT_SCALE: Mapping[StartName, float] = {"draft": 0.25, "harmonic": 1.0, "centred": 1.0}
"""Angstrom: about as far as drafts are from minima, and the size of a bond."""

CONDITIONINGS: Mapping[ConditioningName, Conditioning] = {"log-snr": log_snr, "time": time}

NOISES: Mapping[StartName, Callable[[], Centred]] = {"draft": Centred, "centred": Centred, "harmonic": Harmonic}


@dataclass(frozen=True)
class Level:
    """A reference that the model has learnt."""

    name: LevelName
    """Of the reference."""
    elements: tuple[str, ...]
    """Symbols of the elements that it has seen by it."""


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """All that is needed to build the model, as `config.json` holds it."""

    network: EquivariantConfig | DualConfig = field(default_factory=lambda: EquivariantConfig(scale=0.25))
    """Sizes of the network."""
    schedule: ScheduleName = "rectified-flow"
    """Of training; sampling may use another."""
    parametrisation: ParametrisationName = "flow"
    """How the network's output is read."""
    conditioning: ConditioningName = "log-snr"
    """What the network is told of time."""
    start: StartName = "draft"
    """From what conformers grow."""
    scale: Annotated[float, Range(1e-4, 100.0)] = 0.25
    """Angstrom in which displacements are measured."""
    levels: tuple[Level, ...] = (Level("B3LYP", ("H", "C", "N", "O")), Level("MMFF94", ("H", "C", "N", "O")))
    """The references, each with the elements seen by it; their places here are the numbers that the network is told."""

    def __post_init__(self):
        names = [level.name for level in self.levels]
        if not names or len(set(names)) != len(names):
            raise ConfigError("levels", names, "one level at least, each once")
        if self.network.levels < len(names):
            raise ConfigError("network.levels", self.network.levels, f"at least {len(names)}, the levels")
        if self.network.scale != self.scale:
            raise ConfigError("network.scale", self.network.scale, f"{self.scale}, the scale of the displacements")

    def elements(self, level: LevelName) -> frozenset[str]:
        """The elements that the model knows by a level; none of one that it was not taught."""
        return frozenset(next((known.elements for known in self.levels if known.name == level), ()))


def build(config: ConformerConfig) -> GaussianDenoiser:
    """The untrained denoiser of a configuration."""
    return GaussianDenoiser(
        config.network.build(),
        SCHEDULES[config.schedule](),
        PARAMETRISATIONS[config.parametrisation],
        CONDITIONINGS[config.conditioning],
    )


def kernel_of(config: ConformerConfig, schedule: Schedule | None = None) -> Gaussian:
    """The forward process of a model, to be bound to a batch by `given(**structure)`.

    Args:
        config: of the model.
        schedule: the denoiser's own, which saves it a translation; a new one by default.
    """
    return Gaussian(SCHEDULES[config.schedule]() if schedule is None else schedule, NOISES[config.start]())


def number_of(config: ConformerConfig, level: LevelName) -> int:
    """What the network is told of a level."""
    return [known.name for known in config.levels].index(level)
