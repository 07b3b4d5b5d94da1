"""Options of the image commands, as they appear on the command line and in `config.json`.

No torch here: `polydiff train vision --help` reads this module alone. Names such as `--schedule cosine` are turned into
objects by the commands, nowhere deeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..core.config import Invocation, Range
from ..core.names import GridName, ParametrisationName, SamplerName, ScheduleName, WeightName
from ..core.options import TrainingOptions

__all__ = ["Calibrate", "Demo", "Evaluate", "Network", "Sample", "Train"]

Count = Annotated[int, Range(1, 10**9)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
DataSet = Literal["digits", "mnist", "fashion-mnist", "cifar10"]


@dataclass(frozen=True)
class Network:
    """The denoising network."""

    kind: Literal["unet", "dit"] = "unet"
    """Architecture: convolutional U-Net or diffusion transformer."""
    width: Annotated[int, Range(4, 16_384)] = 64
    """Channels of the U-Net's first level, or of every transformer block."""
    multipliers: tuple[Annotated[int, Range(1, 64)], ...] = (1, 2)
    """U-Net: channels of each level in units of width; each level halves height and width."""
    blocks: Annotated[int, Range(1, 1024)] = 2
    """Residual blocks per level of the U-Net, or transformer blocks in all."""
    attention: tuple[Annotated[int, Range(0, 9)], ...] = ()
    """U-Net: levels with self-attention, 0 the finest; the middle always has it."""
    heads: Annotated[int, Range(1, 1024)] = 4
    """Attention heads."""
    patch: Annotated[int, Range(1, 64)] = 1
    """Patches of this many pixels squared enter as one: faster, coarser."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability of dropping a feature in training."""


@dataclass(frozen=True)
class Train:
    """Train a diffusion model of images.

    Writes the configuration, checkpoints, logs for TensorBoard and the finished model into the folder --out. On several
    devices: torchrun --nproc-per-node N -m polydiff.vision.train, with the same options.
    """

    data: DataSet | Path = "digits"
    """A data set by name, or the path of a folder of images (one subfolder per class) or of an .npz file."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    size: Annotated[int, Range(1, 16_384)] | None = None
    """For a folder: images are resized and cut to this height and width."""
    out: Path = Path("runs/vision")
    """Folder of the run."""
    network: Network = field(default_factory=Network)
    schedule: ScheduleName = "cosine"
    """Noise schedule."""
    parametrisation: ParametrisationName = "v"
    """What the network predicts."""
    weighting: WeightName = "velocity"
    """Which error the loss leaves unweighted: the noise's (simple), the data's (plain), ...; or a published weight."""
    label_dropout: Annotated[float, Range(0, 1)] = 0.1
    """Share of examples that hide their class, which classifier-free guidance needs."""
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(batch_size=128, learning_rate=1e-3, channels_last=True)
    )
    """The training loop."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""
    resume: Annotated[bool, Invocation()] = False
    """Go on from the newest valid checkpoint in --out, with the options kept there."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained model; writes one PNG each and a grid into the folder --out.

    On several devices or cores: --processes N. The images do not depend on the number of processes.
    """

    model: str = "fashion-mnist"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    label: tuple[str, ...] = ()
    """Classes to draw, by name or number, in turn; none for all classes in turn."""
    count: Annotated[int, Range(1, 10**7)] = 16
    """Number of images."""
    steps: Annotated[int, Range(1, 100_000)] = 50
    """Intervals of the time grid: network calls of most samplers; heun, -2s and correctors make about twice as many."""
    sampler: SamplerName | None = None
    """Algorithm; None for the model's calibrated solver of so many steps where it has one, else dpm-solver++."""
    grid: GridName = "log-snr"
    """How the steps are spaced in time; a calibrated solver has its own grid."""
    guidance: Annotated[float, Range(0, 1e3)] = 1.0
    """Weight of classifier-free guidance; 1 for none, more for clearer classes and less variety."""
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Images that pass through the network at once."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes that share the work."""
    seed: Seed = 0
    """Image i depends on this seed and i alone."""
    out: Path = Path("runs/samples")
    """Folder for the images."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model against held-out images; prints a table and writes it with its options into --out.

    Each figure stands beside the same figure of real images, which is what a perfect model would reach.
    """

    model: str = "fashion-mnist"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    data: DataSet | Path | None = None
    """The data set that the model was trained on: a name, or a path as for train; None for the run's own."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    size: Annotated[int, Range(1, 16_384)] | None = None
    """For a folder: images are resized and cut to this height and width."""
    features: Literal["auto", "inception", "classifier"] = "auto"
    """Feature space of the distances; auto takes Inception where its weights can be had. Figures name theirs."""
    count: Annotated[int, Range(10, 10**7)] = 1_000
    """Images to draw."""
    bits: Annotated[int, Range(0, 10**7)] = 500
    """Held-out images whose bits per dimension are bounded; 0 for none."""
    bits_steps: Annotated[int, Range(1, 100_000)] = 100
    """Steps of that bound; more are tighter."""
    steps: Annotated[int, Range(1, 100_000)] = 50
    """Intervals of the time grid: network calls of most samplers; heun, -2s and correctors make about twice as many."""
    sampler: SamplerName | None = None
    """Algorithm; None for the model's calibrated solver of so many steps where it has one, else dpm-solver++."""
    grid: GridName = "log-snr"
    """How the steps are spaced in time; a calibrated solver has its own grid."""
    guidance: Annotated[float, Range(0, 1e3)] = 1.0
    """Weight of classifier-free guidance; 1 for none, more for clearer classes and less variety."""
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Images that pass through a network at once."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes that share the sampling."""
    seed: Seed = 0
    """Decides every random choice."""
    out: Path = Path("runs/evaluation")
    """Folder for the results."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Calibrate:
    """Fit solvers to a trained model, for few network calls, and keep them with it.

    `sample` and `evaluate` use them from then on when --steps is one of --calls and --guidance the same. Needs no data:
    solvers are fitted to the model's own flow from noise.
    """

    model: Path = Path("runs/vision")
    """A folder with a model or a finished run; the solvers are written into it."""
    calls: tuple[Annotated[int, Range(1, 200)], ...] = (5, 10)
    """Network calls, a solver for each."""
    guidance: Annotated[float, Range(0, 1e3)] = 1.0
    """Weight of classifier-free guidance that the solvers are for."""
    count: Annotated[int, Range(8, 10**6)] = 256
    """Images to fit; half as many again to choose by."""
    iterations: Annotated[int, Range(0, 1000)] = 15
    """Of Gauss-Newton; 0 chooses the best classical solver."""
    fine: Annotated[int, Range(10, 100_000)] = 50
    """Steps of the fine solution, four network calls each."""
    batch_size: Annotated[int, Range(1, 2**20)] = 128
    """Images that pass through the network at once."""
    seed: Seed = 0
    """Decides the noise."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Demo:
    """Train a small model on the digits, sample it, evaluate it, and show all that on one page, index.html.

    Takes a few minutes on two cores and needs no download.
    """

    out: Path = Path("runs/demo")
    """Folder for the page and the run behind it."""
    quick: bool = False
    """A few steps only: the page comes out in seconds, the pictures do not."""
    seed: Seed = 0
    """Decides every random choice."""
