"""What training, drawing and measuring whole molecules (`--task molecules`) take of the commands' options.

No torch here: `--help` reads the groups of this module. `tasks.chosen` makes the rest of what `options` has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from ..core.config import Range
from ..core.names import ParametrisationName, ReadingName, ScheduleName, WeightName
from ..core.options import TrainingOptions

__all__ = [
    "AtomTypes",
    "BondsName",
    "Drawing",
    "GenerationEvaluate",
    "GenerationSample",
    "GenerationTrain",
    "GeneratorNetwork",
    "TypeLossName",
    "TypeNoiseName",
]

TypeNoiseName: TypeAlias = Literal["absorbing", "uniform", "marginal"]
TypeLossName: TypeAlias = Literal["cross-entropy", "weighted", "half-weighted"]
BondsName: TypeAlias = Literal["determined", "lengths"]


@dataclass(frozen=True)
class AtomTypes:
    """Whole molecules (--task molecules): the types of their atoms."""

    noise: TypeNoiseName = "absorbing"
    """How noise changes types: it masks them, or draws them anew, evenly or as often as they occur."""
    type_schedule: ScheduleName = "rectified-flow"
    """Noise schedule of the types; rectified-flow is a survival of 1 - t."""
    reading: ReadingName = "logits"
    """What the network predicts of types: p(type | everything), or p(type | everything else) (context)."""
    type_loss: TypeLossName = "cross-entropy"
    """Of types: cross-entropy, weighted to the bound (absorbing noise), or half way."""
    type_share: Annotated[float, Range(0.0, 1e6)] = 0.5
    """What types count in the loss beside positions."""


@dataclass(frozen=True)
class Drawing:
    """Whole molecules, from a model that was trained with --task molecules."""

    count: Annotated[int, Range(1, 10**7)] = 100
    """Number of molecules."""
    atoms: Annotated[int, Range(1, 1024)] | None = None
    """Atoms of each, hydrogens counted; None to draw sizes as the training set has them."""
    bonds: BondsName = "determined"
    """How bonds are read from positions: solved for by valencies, or by their lengths alone, as papers report."""
    keep_invalid: bool = False
    """Write molecules without bonds too."""
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Molecules that pass through the network at once."""


@dataclass(frozen=True)
class GeneratorNetwork:
    """The network: equivariant messages between all pairs of atoms."""

    width: int = 64
    """Features of an atom, an even number."""
    vectors: int = 32
    """Vectors of an atom, a multiple of 8."""
    blocks: int = 5
    """Rounds of messages."""


@dataclass(frozen=True)
class GenerationTrain:
    """Training a diffusion model of whole molecules: positions and types of atoms, no graph given.

    Options mean what `options.Train` says.
    """

    data: str = "small"
    data_root: Path | None = None
    count: int | None = None
    out: Path = Path("runs/generator")
    network: GeneratorNetwork = field(default_factory=GeneratorNetwork)
    schedule: ScheduleName = "cosine"
    parametrisation: ParametrisationName = "v"
    weighting: WeightName = "velocity"
    types: AtomTypes = field(default_factory=AtomTypes)
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(batch_size=64, learning_rate=1e-3, decay_to=0.05)
    )
    config: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class GenerationSample:
    """Drawing whole molecules; options mean what `options.Sample` says."""

    model: str = "runs/generator"
    drawing: Drawing = field(default_factory=Drawing)
    steps: int = 250
    """Of the sampler, ancestral."""
    seed: int = 0
    out: Path = Path("runs/molecules.sdf")
    config: Path | None = None


@dataclass(frozen=True)
class GenerationEvaluate:
    """Measuring a model of whole molecules; options mean what `options.Evaluate` says."""

    model: str = "runs/generator"
    data: str | None = None
    data_root: Path | None = None
    split: Literal["valid", "test"] = "test"
    count: int = 100
    """Molecules, drawn and held out alike."""
    steps: int = 250
    """Of the sampler, ancestral."""
    seed: int = 0
    out: Path = Path("runs/evaluation")
    config: Path | None = None
