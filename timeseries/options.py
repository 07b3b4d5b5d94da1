"""Options of the time-series commands, as they appear on the command line and in `config.json`.

No torch here: `polydiff train timeseries --help` reads this module alone. Names such as `--targets mix` are turned into
objects by the commands, nowhere deeper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from ..core.config import Invocation, Range
from ..core.names import GridName, ParametrisationName, SamplerName, ScheduleName, WeightName
from ..core.options import TrainingOptions
from .checks import check_sample, check_train

__all__ = [
    "Calibrate",
    "Demo",
    "Evaluate",
    "Fitting",
    "HiddenName",
    "LevelName",
    "NetworkName",
    "Sample",
    "Sizes",
    "TargetsName",
    "Train",
]

Count = Annotated[int, Range(1, 10**9)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Steps = Annotated[int, Range(1, 100_000)]
Window = Annotated[int, Range(2, 100_000)]
Share = Annotated[float, Range(0.0, 1.0)]
Quantile = Annotated[float, Range(0.0, 1.0)]

TargetsName: TypeAlias = Literal["random", "historical", "mix", "pattern", "blocks", "series", "forecast"]
"""Which of the known cells of a training window are hidden and learnt."""
LevelName: TypeAlias = Literal["series", "window"]
"""What is taken off a feature: its mean over the training data; or, besides, that of each window's given cells."""
HiddenName: TypeAlias = Literal["random", "blocks", "series", "forecast"]
NetworkName: TypeAlias = Literal["ours", "csdi"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; None for its own default."""

    width: Annotated[int, Range(4, 4096)] | None = None
    """Features of a cell: 64."""
    blocks: Annotated[int, Range(1, 64)] | None = None
    """Blocks, each of attention over time and attention over features: 4."""
    heads: Annotated[int, Range(1, 256)] | None = None
    """Attention heads, which divide the width: 2 (ours) or 8 (csdi)."""
    inducing: Annotated[int, Range(1, 4096)] | None = None
    """Points through which features attend, so that cost grows linearly in their number; None for none up to 100
    features, 32 above. Not of csdi."""
    dropout: Annotated[float, Range(0, 0.99)] | None = None
    """Probability of dropping a number in training: 0 (ours), 0.1 (csdi)."""


@dataclass(frozen=True)
class Train:
    """Train a diffusion model that fills gaps and forecasts.

    Writes the configuration, checkpoints, logs for TensorBoard and the finished model into the folder --out. On several
    devices: torchrun --nproc-per-node N -m polydiff.timeseries.train, with the same options.
    """

    data: str = "co2"
    """Training series by name: co2, elnino, sunspots, macrodata (no download), physionet2012, physionet2012-csdi,
    beijing, beijing-joint, etth1, etth2, electricity, solar, exchange; or a .csv or .parquet file, or a folder of
    them."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    day_first: bool | None = None
    """Whether dates such as 1/2/2023 in files have the day first; None to see it from each file."""
    window: Window | None = None
    """Time steps of a window; None for the data set's own."""
    stride: Count | None = None
    """Steps from one training window to the next; None for 1."""
    out: Path = Path("runs/timeseries")
    """Folder of the run."""
    network: NetworkName = "ours"
    """The denoising network: ours, or CSDI's (Tashiro et al. 2021)."""
    sizes: Sizes = field(default_factory=Sizes)
    targets: tuple[TargetsName, ...] = ("random",)
    """What is hidden in training, one of these for each window: random cells, any share of them; historical: what
    another window lacks; mix of the two; pattern: the gaps of the held-out part; blocks in time; series, whole
    features; forecast, the last rows."""
    horizon: Count | None = None
    """Rows of --targets forecast; None for any number up to half a window."""
    carry: tuple[str, ...] = ()
    """Columns of files that are no series, such as a name or a remark: they are left out."""
    covariates: tuple[str, ...] = ()
    """Features whose future is known when one forecasts, such as a calendar or a planned price: never hidden."""
    level: LevelName | None = None
    """What is taken off a feature: its training mean (series), or each window's own mean besides (window), for
    series that drift; None for the data set's own."""
    schedule: ScheduleName | None = None
    """Noise schedule; None for the network's own."""
    parametrisation: ParametrisationName | None = None
    """What the network predicts; None for the network's own."""
    weighting: WeightName | None = None
    """Which error the loss leaves unweighted; None for the network's own."""
    training: TrainingOptions = field(
        default_factory=lambda: TrainingOptions(batch_size=16, learning_rate=1e-3, decay_to=0.02)
    )
    """The training loop."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""
    resume: Annotated[bool, Invocation()] = False
    """Go on from the newest valid checkpoint in --out, with the options kept there."""

    def check_at_once(self) -> None:
        """See `checks.check_train`."""
        check_train(self)


@dataclass(frozen=True)
class Fitting:
    """How a model is fitted to the file itself, where none is named."""

    window: Window | None = None
    """Time steps of a window; None for a length that suits the file."""
    level: LevelName | None = None
    """What is taken off a column: its mean (series), or each window's own besides (window); None for what suits."""
    fit_steps: Steps | None = None
    """Training steps; None for a number that suits the file."""
    judge: bool = True
    """Hold some cells out of training, and tell how well the model fills them."""
    keep: Path | None = None
    """Keep the fitted model in this folder, for --model the next time; an interrupted fit goes on from there."""


@dataclass(frozen=True)
class Sample:
    """Fill the gaps of a table, and forecast; observed values stay exactly as they are.

    Writes the rows and columns that came, their empty cells filled, and beside them a column `name@0.05` for each of
    --quantiles. Without --model a model is fitted to the table first.
    """

    input: tyro.conf.Positional[Path | None] = None
    """A .csv, .tsv or .parquet file, one row for each time; empty cells are missing. A column of dates or called date,
    time, datetime, timestamp or ds is the time; without one, rows are one step apart."""
    model: str | None = None
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository; None to
    fit one to the input."""
    fitting: Fitting = field(default_factory=Fitting)
    time_column: str | None = None
    """The column of the times; None for the one that is called so or holds dates."""
    day_first: bool | None = None
    """Whether dates such as 1/2/2023 have the day first; None to see it from the column."""
    carry: tuple[str, ...] = ()
    """Columns that are no series, such as a name or a remark: they stay as they are."""
    horizon: Annotated[int, Range(0, 10**6)] = 0
    """Rows to add after the last one, drawn as well. Where something is known of these times already, such as a planned
    price, add the rows yourself and leave empty what is to be drawn."""
    quantiles: tuple[Quantile, ...] = ()
    """Quantiles to write beside the filled columns, such as 0.05 0.5 0.95."""
    samples: Annotated[int, Range(1, 100_000)] = 100
    """Sample paths that medians and quantiles are taken of."""
    mean: bool = False
    """Fill with the mean of the samples instead of their median."""
    steps: Steps | None = None
    """Steps of the sampler; None for the model's calibrated solver, else 10."""
    sampler: SamplerName | None = None
    """Algorithm; None for the model's calibrated solver of so many steps where it has one, else its default."""
    grid: GridName | None = None
    """How the steps are spaced in time; None for the default. A calibrated solver has its own grid."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    plot: Path | None = None
    """Picture of every column with bands and observed points: a .png, .svg or .pdf."""
    progress: bool = True
    """Show a progress bar."""
    seed: Seed = 0
    """Decides every random choice: sample path k depends on this seed, the input and k alone."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=("-o",))] = None
    """File for the filled table, of the input's kind; None for filled.csv, .tsv or .parquet in the folder runs."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file; flags given beside it win."""

    def check_at_once(self) -> None:
        """See `checks.check_sample`."""
        check_sample(self)


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model on held-out cells; prints a table, writes it with its options and a page into --out.

    Known cells of held-out windows are hidden, drawn again and compared with the truth, beside simple ways to fill
    them: the mean, the median, interpolation, the last value, the last season.
    """

    model: str = "runs/timeseries"
    """A model that ships with polydiff by name, a folder with a model or a run, or a Hugging Face repository."""
    data: str | None = None
    """The data set: a name, or a path as for train; None for the run's own."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    carry: tuple[str, ...] | None = None
    """Columns of own files that are no series; None for the run's own."""
    day_first: bool | None = None
    """Whether dates of own files such as 1/2/2023 have the day first; None as in the run, or to see it from them."""
    split: Literal["valid", "test"] = "test"
    """The held-out part."""
    targets: tuple[HiddenName, ...] = ("random",)
    """What is hidden, one after the other: single cells, a measurement for each of --rates; blocks in time; whole
    features; the last --horizon rows."""
    rates: tuple[Annotated[float, Range(0.001, 1.0)], ...] = (0.1, 0.5, 0.9)
    """Shares of the known cells that --targets random hides."""
    horizon: Count | None = None
    """Rows to forecast; None for a quarter of the window."""
    windows: Count = 64
    """Held-out windows, at even distances."""
    stride: Count | None = None
    """Steps from one held-out window to the next; None for the window, so that nothing counts twice."""
    samples: Annotated[int, Range(2, 100_000)] = 100
    """Sample paths of each window."""
    period: Count | None = None
    """Steps of a season, for the baseline that repeats it; None for the data set's own, if it has one."""
    steps: Steps | None = None
    """Steps of the sampler; None for the model's calibrated solver, else 10."""
    sampler: SamplerName | None = None
    """Algorithm; None for the model's calibrated solver of so many steps where it has one, else its default."""
    grid: GridName | None = None
    """How the steps are spaced in time; None for the default. A calibrated solver has its own grid."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 autocast."""
    progress: bool = True
    """Show a progress bar."""
    seed: Seed = 0
    """Decides every random choice."""
    out: Path = Path("runs/evaluation")
    """Folder for the results."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Calibrate:
    """Fit solvers to a trained model, for few network calls, and keep them with it.

    `sample` and `evaluate` use them from then on when --steps is one of --calls. They are fitted to the model's own
    flow, given what is known of training windows of which any share of the cells is hidden.
    """

    model: Path = Path("runs/timeseries")
    """A folder with a model or a finished run; the solvers are written into it."""
    data: str | None = None
    """Windows to condition on: as for train; None for the run's own."""
    data_root: Path | None = None
    """Where the named data sets lie or are downloaded to [POLYDIFF_DATA, else ~/.cache/polydiff]."""
    carry: tuple[str, ...] | None = None
    """Columns of own files that are no series; None for the run's own."""
    day_first: bool | None = None
    """Whether dates of own files such as 1/2/2023 have the day first; None as in the run, or to see it from them."""
    calls: tuple[Annotated[int, Range(1, 200)], ...] = (5, 10)
    """Network calls, a solver for each."""
    count: Annotated[int, Range(8, 10**6)] = 128
    """Windows to fit; half as many again to choose by."""
    iterations: Annotated[int, Range(0, 1000)] = 15
    """Of Gauss-Newton; 0 chooses the best classical solver."""
    fine: Annotated[int, Range(10, 100_000)] = 50
    """Steps of the fine solution, four network calls each."""
    batch_size: Annotated[int, Range(1, 2**20)] = 64
    """Windows that pass through the network at once."""
    progress: bool = True
    """Show a progress bar."""
    seed: Seed = 0
    """Decides which windows and cells, and the noise."""
    config: Annotated[Path | None, Invocation()] = None
    """Read options from this file, such as a run's config.json; flags given beside it win."""


@dataclass(frozen=True)
class Demo:
    """Train a small model on the carbon dioxide of Mauna Loa, fill gaps, forecast, measure, and show all on a page.

    Takes less than a minute on two cores and needs no download.
    """

    out: Path = Path("runs/demo-timeseries")
    """Folder for the page and the run behind it."""
    quick: bool = False
    """A few steps only: the page comes out in seconds, the model knows little."""
    seed: Seed = 0
    """Decides every random choice."""
