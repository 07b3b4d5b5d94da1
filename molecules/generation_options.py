"""Options of training and drawing whole molecules (`--task molecules`), as command lines and `config.json` have them.

No torch here: `--help` reads this module alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from ..core.config import Invocation, Range
from ..core.names import ParametrisationName, ReadingName, ScheduleName, WeightName
from ..core.options import TrainingOptions

__all__ = ["BondsName", "GenerationSample", "GenerationTrain", "GeneratorNetwork", "TypeLossName", "TypeNoiseName"]

TypeNoiseName: TypeAlias = Literal["absorbing", "uniform", "marginal"]
TypeLossName: TypeAlias = Literal["cross-entropy", "weighted", "half-weighted"]
BondsName: TypeAlias = Literal["determined", "lengths"]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Steps = Annotated[int, Range(1, 100_000)]


@dataclass(frozen=True)
class GeneratorNetwork:
    """The network: equivariant messages between all pairs of atoms."""

    width: Annotated[int, Range(8, 4096)] = 64
    """Features of an atom, an even number."""
    vectors: Annotated[int, Range(8, 4096)] = 32
    """Vectors of an atom, a multiple of 8."""
    blocks: Annotated[int, Range(1, 64)] = 5
    """Rounds of messages."""


@dataclass(frozen=True)
class GenerationTrain:
    """Train a diffusion model of whole molecules: positions and types of atoms, no graph given.

    Writes the configuration, checkpoints, logs for TensorBoard and the finished model into the folder --out.
    """

    data: str = "small"
    """Training molecules by name: small (no download), qm9; or an SDF file with hydrogens."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    count: Annotated[int, Range(1, 10**9)] | None = None
    """Molecules to train on, the first so many; None for all."""
    out: Path = Path("runs/generator")
    """Folder of the run."""
    network: GeneratorNetwork = field(default_factory=GeneratorNetwork)
    noise: TypeNoiseName = "absorbing"
    """How noise changes types: it masks them, or draws them anew, evenly or as often as they occur."""
    schedule: ScheduleName = "cosine"
    """Noise schedule of the positions."""
    type_schedule: ScheduleName = "rectified-flow"
    """Noise schedule of the types; rectified-flow is a survival of 1 - t."""
    parametrisation: ParametrisationName = "v"
    """What the network predicts of positions."""
    reading: ReadingName = "logits"
    """What it predicts of types: p(type | everything), or p(type | everything else) (context)."""
    weighting: WeightName = "velocity"
    """Which error of positions the loss leaves unweighted: the velocity's, the noise's (simple), the data's (plain)."""
    type_loss: TypeLossName = "cross-entropy"
    """Of types: cross-entropy, weighted to the bound (absorbing noise), or half way."""
    type_share: Annotated[float, Range(0.0, 1e6)] = 0.5
    """What types count in the loss beside positions."""
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(batch_size=64, learning_rate=1e-3, decay_to=0.05)
    )
    """The training loop."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""
    resume: Annotated[bool, Invocation()] = False
    """Go on from the newest valid checkpoint in --out, with the options kept there."""


@dataclass(frozen=True)
class GenerationSample:
    """Draw whole molecules with a trained model; writes an SDF and prints how good they are."""

    model: str = "runs/generator"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    count: Annotated[int, Range(1, 10**7)] = 100
    """Number of molecules."""
    atoms: Annotated[int, Range(1, 1024)] | None = None
    """Atoms of each, hydrogens counted; None to draw sizes as the training set has them."""
    steps: Steps = 250
    """Steps of the sampler, ancestral."""
    bonds: BondsName = "determined"
    """How bonds are read from positions: solved for by valencies, or by their lengths alone, as papers report."""
    keep_invalid: bool = False
    """Write molecules without bonds too."""
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Molecules that pass through the network at once."""
    seed: Seed = 0
    """Molecule i depends on this seed and i alone."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/molecules.sdf")
    """File for the molecules."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file; flags given beside it win."""
