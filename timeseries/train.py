"""Train a model of time series: `polydiff train timeseries`, `python -m polydiff.timeseries.train`, or `train(...)`.

The run's folder holds `config.json` (what `--config` reads back), `checkpoints/`, `metrics.jsonl`, `logs/` for
TensorBoard, and at the end `model/`, which `ImputationPipeline.from_pretrained` reads. `--network csdi` is the
published network in the published recipe (quadratic betas of 50 steps, eps, unweighted), computed our way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.commands import CONFIG_NAME, run
from ..core.config import save
from ..core.errors import ArgumentError
from ..core.machine import machine
from ..core.pipeline import Card
from ..core.runs import check_begun, command_line
from ..core.training import Trained
from ..core.training import train as train_objective
from ..core.wording import counted
from .checks import READ, flags
from .csdi import CSDIConfig
from .data import Windows, load
from .fitting import MANY
from .model import SeriesConfig, SeriesModel, imputation_of
from .network import SeriesNetConfig
from .objectives import Imputation
from .options import NetworkName, TargetsName, Train
from .pipeline import ImputationPipeline
from .sources import Split
from .targets import BANK, Blocks, Forecast, Mixture, Patterned, Random, Sparing, Strategy, WholeSeries, whole

__all__ = ["data_of", "main", "objective_of", "series_config", "targets_of", "train"]


def main(options: Train) -> None:
    """Train as the options say and write the model."""
    check_begun(options, "timeseries")
    data = data_of(options, "train")

    def announce(size: int) -> None:
        print(
            f"{data.name}: {counted(len(data), 'window')} of {counted(data.window, 'step')} and "
            f"{counted(len(data.features), 'feature')} to train on; "
            f"network of {size:,} parameters ({options.network}), targets: {', '.join(options.targets)}; "
            f"{machine()}",
            flush=True,
        )

    _, trained = train(data, options, announce=announce)
    if trained.is_main_process:
        print(f"model in {options.out / 'model'}; use it: polydiff sample timeseries gaps.csv --model {options.out}")


def train(
    data: Windows,
    options: Train,
    *,
    announce: Callable[[int], None] | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> tuple[ImputationPipeline, Trained]:
    """Train on a data set already loaded; returns the pipeline with averaged weights, and the history.

    Args:
        data: see `data_of`.
        options: see there.
        announce: called once with the number of parameters, before training begins.
        on_log: called with each new entry of the log.

    Raises:
        ArgumentError: options that do not fit the data, or `options.out` holds a run already and `options.resume` is
            False.
        TrainingError, CheckpointError: see `core.training.train`.
    """
    config = series_config(data, options)
    model = SeriesModel.drawn(config, data.centre, data.spread, seed=options.training.seed)
    pipeline = ImputationPipeline(config, model)
    if announce is not None:
        announce(sum(parameter.numel() for parameter in model.parameters()))
    objective = objective_of(model, config, data, options)
    trained = train_objective(
        objective,
        data,
        options.training,
        folder=options.out,
        resume=options.resume,
        # Only now is the folder known to hold no other run.
        on_begin=lambda: save(options.out / CONFIG_NAME, "train", "timeseries", options),
        on_log=on_log,
    )
    model.taught(trained)
    if trained.is_main_process:
        pipeline.save_pretrained(options.out / "model", card=card(data, options, trained.history[-1]["seconds"]))
    return pipeline, trained


def data_of(options: Train, split: Split) -> Windows:
    """The data set that the options name, in windows.

    Raises:
        ArgumentError: of few series none fills a window.
        DataError: see `data.load`.
    """
    with flags(READ):
        data = load(
            options.data,
            split,
            window=options.window,
            stride=options.stride,
            level=options.level,
            data_root=options.data_root,
            carry=options.carry,
            day_first=options.day_first,
        )
    if split == "train" and options.window is not None and data.ragged and len(data) < MANY:
        rows = int(data.some(MANY)["present"].sum(1).max())
        if rows < options.window:
            raise ArgumentError("--window", options.window, f"at most {rows}, the rows of {data.name}")
    return data


def objective_of(model: SeriesModel, config: SeriesConfig, data: Windows, options: Train) -> Imputation:
    """The loss that the options ask for: of every counted cell alike."""
    strategy, seed = targets_of(data, options), options.training.seed
    return imputation_of(config, model, strategy, data.some(BANK), weighting=options.weighting, seed=seed)


def targets_of(data: Windows, options: Train) -> Strategy:
    """The strategy of hiding cells; covariates are never hidden.

    Raises:
        ArgumentError: a pattern is asked for of data without gaps, or a covariate is none of the features.
    """
    strategies = tuple(STRATEGIES[name](data, options) for name in options.targets)
    strategy = strategies[0] if len(strategies) == 1 else Mixture(strategies)
    return Sparing(strategy, columns(options.covariates, data.features)) if options.covariates else strategy


def columns(names: tuple[str, ...], features: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of covariates among the features."""
    for name in names:
        if name not in features:
            raise ArgumentError("--covariates", name, f"some of the features {', '.join(features)}")
    return tuple(features.index(name) for name in names)


def patterns(data: Windows, options: Train) -> Patterned:
    """What other windows lack."""
    some = data.some(BANK)
    there = whole(some["seen"], some.get("present"))
    if bool(there.all()):
        raise ArgumentError(
            "--targets", options.targets, f"random, blocks, series or forecast: {data.name} has no gaps"
        )
    return Patterned(there)


def forecast(data: Windows, options: Train) -> Forecast:
    """The last rows: so many, or any number up to half a window."""
    if options.horizon is None:
        return Forecast(max(1, data.window // 2), 1)
    if options.horizon >= data.window:
        raise ArgumentError("--horizon", options.horizon, f"fewer rows than the {data.window} of a window")
    return Forecast(options.horizon)


STRATEGIES: Mapping[TargetsName, Callable[[Windows, Train], Strategy]] = {
    "random": lambda data, options: Random(),
    "historical": patterns,
    "mix": lambda data, options: Mixture((Random(), patterns(data, options))),
    "pattern": lambda data, options: patterns(data_of(options, "test"), options),
    "blocks": lambda data, options: Blocks(),
    "series": lambda data, options: WholeSeries(),
    "forecast": forecast,
}


NETWORKS: Mapping[NetworkName, type[SeriesNetConfig] | type[CSDIConfig]] = {"ours": SeriesNetConfig, "csdi": CSDIConfig}


def series_config(data: Windows, options: Train) -> SeriesConfig:
    """The model that the options ask for, completed by what the data say.

    Raises:
        ArgumentError: a schedule of CSDI's network, which is told one of 50 indices of its own.
    """
    columns(options.covariates, data.features)
    kind = NETWORKS[options.network]
    if options.schedule is not None and kind.recipe.settled:
        raise ArgumentError("--schedule", options.schedule, f"nothing: {kind.recipe.settled}")
    words = {name: kind.terms.get(name, name) for name in vars(options.sizes)}
    sizes = {words[name]: value for name, value in vars(options.sizes).items() if value is not None}
    with flags({field: f"--{name}" for name, field in words.items()}):
        network = kind(features=len(data.features), **sizes)
    return SeriesConfig.of(
        network, features=tuple(data.features), window=data.window, level=data.level, step=data.step,
        covariates=options.covariates, schedule=options.schedule, parametrisation=options.parametrisation,
    )  # fmt: skip


def card(data: Windows, options: Train, seconds: float) -> Card:
    """What is known about the model when training ends; figures are added by whoever measures them."""
    shown = ", ".join(data.features[:12]) + (", ..." if len(data.features) > 12 else "")
    return Card(
        title=f"Time series like {data.name.partition(' (')[0]}",
        summary=f"A diffusion model that fills gaps and forecasts, in windows of {data.window} steps of "
        f"{counted(len(data.features), 'feature')} ({shown}).",
        data=f"{data.name}, {len(data)} training windows; targets: {', '.join(options.targets)}",
        command=command_line(options, "train", "timeseries"),
        time=f"{seconds / 60:.1f} minutes",
        machine=machine(),
        seed=options.training.seed,
        limits="Knows the features of its training set, in its units and at its spacing in time, and no others. Its "
        "intervals hold for data like the training set's.",
        tags=("diffusion", "time-series", "imputation", "forecasting"),
    )


if __name__ == "__main__":
    run(Train, main, command="train", domain="timeseries")
