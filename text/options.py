"""Options of the text commands, as they appear on the command line and in `config.json`.

No torch here: `polydiff train text --help` reads this module alone. Names such as `--kernel absorbing` are turned into
objects by the commands, nowhere deeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from ..core.config import Invocation, Range
from ..core.names import ReadingName, ScheduleName, TokenSamplerName
from ..core.options import TrainingOptions

__all__ = ["Calibrate", "Demo", "Evaluate", "KernelName", "LossName", "Network", "Sample", "Train"]

Seed = Annotated[int, Range(0, 2**63 - 1)]
Length = Annotated[int, Range(1, 100_000)]
Steps = Annotated[int, Range(1, 100_000)]

KernelName: TypeAlias = Literal[
    "absorbing", "uniform", "marginal", "band", "gaussian", "neighbours", "autoregressive"
]  # fmt: skip
LossName: TypeAlias = Literal["weighted", "half-weighted", "hybrid", "bound", "cross-entropy", "score-entropy"]


@dataclass(frozen=True)
class Network:
    """The denoising network, a transformer."""

    width: Annotated[int, Range(2, 16_384)] = 160
    """Features of a token."""
    blocks: Annotated[int, Range(1, 256)] = 6
    """Transformer blocks."""
    heads: Annotated[int, Range(1, 1024)] = 5
    """Attention heads; they divide the width into even parts."""
    tied: bool = True
    """The output layer is the embedding of the tokens: fewer parameters, and masked models learn from the start, where
    an output layer of its own, which begins at zero, costs them the first hundred steps."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability of dropping a feature in training."""


@dataclass(frozen=True)
class Train:
    """Train a diffusion model of text, or the autoregressive baseline of the same size.

    Writes the configuration, checkpoints, logs for TensorBoard and the finished model into the folder --out. On several
    devices: torchrun --nproc-per-node N -m polydiff.text.train, with the same options.
    """

    data: str = "python-docs"
    """Training text: python-docs (no download), novels, text8, lm1b; a file or folder; or hf:OWNER/NAME[:COLUMN]."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    vocabulary: str = "text8"
    """Tokens: text8 (a-z and space), bytes, or a Hugging Face tokenizer: its name, or a folder with tokenizer.json."""
    length: Length = 256
    """Tokens of a training window."""
    out: Path = Path("runs/text")
    """Folder of the run."""
    network: Network = field(default_factory=Network)
    kernel: KernelName = "absorbing"
    """How noise changes tokens; autoregressive is the baseline without noise, from left to right."""
    schedule: ScheduleName = "rectified-flow"
    """Noise schedule; rectified-flow is a survival of 1 - t."""
    near: Annotated[int, Range(1, 100_000)] | None = None
    """How far tokens move: places at most (band, 3), standard deviation in places (gaussian, 3), neighbours (8)."""
    reading: ReadingName = "logits"
    """What the network's output means: p(x_0 | x_t), or p(x_0 | the other tokens), D3PM's (context)."""
    loss: LossName | None = None
    """What to minimise: weighted cross-entropy (the continuous bound of absorbing kernels), half-weighted (between that
    and plain cross-entropy: better in short trainings), the bound on a grid, hybrid of that and cross-entropy,
    cross-entropy alone, score-entropy (the continuous bound of every kernel). None for weighted where the kernel is
    absorbing, else score-entropy."""
    bound_steps: Steps = 1000
    """Steps of the grid of bound and hybrid."""
    cross_entropy_weight: Annotated[float, Range(0, 1e6)] = 0.01
    """Weight of the cross-entropy in hybrid, beside the bound."""
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(batch_size=64, learning_rate=1e-3, decay_to=0.1)
    )
    """The training loop."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""
    resume: Annotated[bool, Invocation()] = False
    """Go on from the newest valid checkpoint in --out, with the options kept there."""


@dataclass(frozen=True)
class Sample:
    """Write texts with a trained model: from nothing, after a prompt, or into the gaps of a text.

    Prints the texts and writes them to the file --out, a line of "=" between two; into a .json file as an
    object with "texts", a list, and "options".
    """

    model: str = "novels"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    prompt: str | None = None
    """Begin with this text."""
    infill: str | None = None
    """Fill the gaps of this text: [MASK] is one token, [MASK:12] are twelve; the rest stays as it is."""
    count: Annotated[int, Range(1, 10**6)] = 4
    """Number of texts."""
    length: Length | None = None
    """Tokens to write, after the prompt if there is one; None for the model's window. Any length will do."""
    steps: Steps = 64
    """Steps of the sampler for each window."""
    sampler: TokenSamplerName | None = None
    """Algorithm; None for the model's calibrated steps where it has as many, else ancestral."""
    particles: Annotated[int, Range(1, 10_000)] | None = None
    """Kernels that are not absorbing: condition on known text by so many particles; None for RePaint."""
    temperature: Annotated[float, Range(0, 1e3)] = 1.0
    """Below 1 for likelier tokens, above for more surprising ones."""
    top_p: Annotated[float, Range(1e-6, 1)] | None = None
    """Draw from the likeliest tokens that hold this share of the probability only."""
    normalise: bool = False
    """Bring --prompt and --infill into the form of the training text: for text8, lower case and spaces."""
    batch_size: Annotated[int, Range(1, 2**20)] = 32
    """Texts that pass through the network at once."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    seed: Seed = 0
    """Text i depends on this seed and i alone."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("runs/texts.txt")
    """File for the texts."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file; flags given beside it win."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model against held-out text; prints a table and writes it with its options into --out.

    Each figure stands beside the same figure of real text, which is what a perfect model would reach.
    """

    model: str = "novels"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    data: str | None = None
    """The data set that the model was trained on: a name, or a path as for train; None for the run's own."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    split: Literal["valid", "test"] = "test"
    """The held-out part that is scored."""
    windows: Annotated[int, Range(0, 10**7)] = 200
    """Held-out windows whose bits per character are bounded; 0 for none."""
    bound_steps: tuple[Steps, ...] = ()
    """Grids of so many steps whose bound is measured too, besides the continuous one."""
    terms: Annotated[int, Range(1, 10_000)] = 16
    """Times of the bound's estimate for each window; more make it less noisy."""
    count: Annotated[int, Range(2, 10**6)] = 64
    """Texts to draw, each of one window."""
    steps: Steps = 64
    """Steps of the sampler."""
    sampler: TokenSamplerName | None = None
    """Algorithm; None for the model's calibrated steps where it has as many, else ancestral."""
    temperature: Annotated[float, Range(0, 1e3)] = 1.0
    """Below 1 for likelier tokens, above for more surprising ones."""
    top_p: Annotated[float, Range(1e-6, 1)] | None = None
    """Draw from the likeliest tokens that hold this share of the probability only."""
    judge: str | None = None
    """A causal language model of the Hugging Face hub, or a folder with one, for the generative perplexity."""
    batch_size: Annotated[int, Range(1, 2**20)] = 32
    """Windows that pass through the network at once."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    seed: Seed = 0
    """Decides every random choice."""
    out: Path = Path("runs/evaluation")
    """Folder for the results."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Calibrate:
    """Find how many tokens an absorbing model should reveal in each of few steps, and keep that with it.

    Measures the loss by the number of masked tokens on held-out text and solves for the steps of least total loss
    (dynamic programming, Hoogeboom et al. 2022). `sample` and `evaluate` use them from then on when --steps is one of
    --calls.
    """

    model: Path = Path("runs/text")
    """A folder with a model or a finished run; the steps are written into it."""
    data: str | None = None
    """Held-out text: as for train; None for the run's own."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    calls: tuple[Steps, ...] = (16, 32, 64)
    """Network calls, a list of steps for each."""
    windows: Annotated[int, Range(1, 10**6)] = 64
    """Held-out windows to measure."""
    batch_size: Annotated[int, Range(1, 2**20)] = 32
    """Windows that pass through the network at once."""
    seed: Seed = 0
    """Decides which windows, and the order of their tokens."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file; flags given beside it win."""


@dataclass(frozen=True)
class Demo:
    """Train a small model on Python's own documentation, write, fill gaps, evaluate, and show all that on one page.

    Takes less than a minute on two cores and needs no download.
    """

    out: Path = Path("runs/demo-text")
    """Folder for the page and the run behind it."""
    quick: bool = False
    """A few steps only: the page comes out in seconds, the texts are noise."""
    seed: Seed = 0
    """Decides every random choice."""
