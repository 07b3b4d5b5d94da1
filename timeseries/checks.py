"""What is wrong with a command line is told before anything is loaded. Free of torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ArgumentError, DataError
from ..core.runs import check_begun, model_folder

if TYPE_CHECKING:
    from .options import Sample, Train

__all__ = ["PICTURES", "TABLES", "check_sample", "check_train", "flags", "place_of", "source"]

TABLES = (".csv", ".tsv", ".parquet", ".pq")
PICTURES = (".png", ".svg", ".pdf")

READ = {"time": "--time-column", "keep": "--carry", "carry": "--carry"}
"""Arguments of reading files -> flags."""


@contextlib.contextmanager
def flags(names: Mapping[str, str]) -> Iterator[None]:
    """Errors from within name flags, not arguments of Python.

    Args:
        names: argument -> flag.
    """
    try:
        yield
    except ArgumentError as error:
        if error.argument in names:
            error.called(names[error.argument])
        raise
    except DataError as error:
        told = str(error).replace("name columns to carry along in keep", "--carry keeps a column as it is")
        raise DataError(told) from error


def check_train(options: Train) -> None:
    """An ArgumentError for an --out that holds a run already, or none to resume; and for options that contradict."""
    check_begun(options, "timeseries")
    if options.horizon is not None and "forecast" not in options.targets:
        raise ArgumentError("--horizon", options.horizon, "--targets forecast beside it: other targets have none")
    if options.horizon is not None and options.window is not None and options.horizon >= options.window:
        raise ArgumentError("--horizon", options.horizon, f"fewer rows than the {options.window} of a window")
    if not options.targets or len(set(options.targets)) != len(options.targets):
        raise ArgumentError("--targets", options.targets, "one or several, each once")
    if options.network == "csdi" and options.sizes.inducing is not None:
        raise ArgumentError("--inducing", options.sizes.inducing, "nothing: CSDI's features attend to each other")


def check_sample(options: Sample) -> None:
    """Errors of the input, of what is asked of it, and of the files to write."""
    given = source(options)
    check_table("input", given)
    if not given.is_file():
        raise DataError(f"{given}: no such file")
    out = place_of(options)
    check_file("--out", out, (given.suffix.lower(),))
    if out.exists() and given.resolve() == out.resolve():
        raise ArgumentError("--out", str(out), "another file than the input, which stays as it is")
    if options.plot is not None:
        check_file("--plot", options.plot, PICTURES)
    if len(set(options.quantiles)) != len(options.quantiles):
        raise ArgumentError("--quantiles", options.quantiles, "each quantile once")
    if options.model is not None:
        for flag, value in (
            ("--window", options.fitting.window),
            ("--level", options.fitting.level),
            ("--fit-steps", options.fitting.fit_steps),
            ("--no-judge", None if options.fitting.judge else False),
            ("--keep", options.fitting.keep),
        ):
            if value is not None:
                raise ArgumentError(
                    flag, value, "nothing beside --model: it says how one is fitted where none is named"
                )
        model_folder(Path(options.model), "timeseries")
    elif options.fitting.keep is not None and options.fitting.keep.is_file():
        raise ArgumentError("--keep", str(options.fitting.keep), "a folder; this is a file")


def source(options: Sample) -> Path:
    """The table; an ArgumentError without one."""
    if options.input is None:
        raise ArgumentError("input", None, f"a table to fill: a file {', '.join(TABLES)}")
    return options.input


def place_of(options: Sample) -> Path:
    """The file for the filled table."""
    return Path("runs") / f"filled{source(options).suffix.lower()}" if options.out is None else options.out


def check_table(argument: str, path: Path) -> None:
    """An ArgumentError for a name that does not end like a table's."""
    if not path.name.lower().endswith(TABLES):
        raise ArgumentError(argument, str(path), f"a name that ends in {', '.join(TABLES)}")


def check_file(argument: str, path: Path, endings: tuple[str, ...]) -> None:
    """An ArgumentError where no file of such a name can be written."""
    if path.is_dir():
        raise ArgumentError(argument, str(path), "a file; this is a folder")
    if not path.name.lower().endswith(endings):
        raise ArgumentError(argument, str(path), f"a name that ends in {', '.join(endings)}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ArgumentError(argument, str(path), f"a file in a folder that can be written; {folder} cannot")
