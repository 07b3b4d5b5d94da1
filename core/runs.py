"""The folders that commands write, and the command line that would write one again. Free of torch.

A training run's folder holds `config.json`, `checkpoints/` and, when it has ended, `model/`; every domain's commands
take such a folder where they take a model. A folder of results holds `config.json` beside them, so that results of
different options never mix.
"""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from .commands import CONFIG_NAME
from .config import load, to_dict
from .errors import ArgumentError, ConfigError, DataError
from .options import FREE
from .records import holds_records

__all__ = ["check_begun", "check_free", "command_line", "make_folder", "model_folder"]

LOCAL = frozenset(
    {"data_root", "out", "config", "resume", "progress", "cpu", "log_every", "checkpoint_every", "keep", "processes"}
)
"""Options that say where and how to work on this machine, not what comes out."""


def check_begun(options: Any, domain: str) -> None:
    """An ArgumentError if `options.out` holds no run to resume, one of other options, or one not asked for.

    Weights do not tell how their network was read, on which schedule, or what they learned from: other options would
    make another model of them without a word.
    """
    if not options.resume:
        if holds_records(options.out) or any((options.out / "checkpoints").glob("step_*")):
            raise ArgumentError("--out", str(options.out), "a folder without a run, or --resume to go on with this one")
        return
    kept = options.out / CONFIG_NAME
    if not kept.exists():
        raise ArgumentError("--resume", str(options.out), "--out to name a folder in which a run was begun")
    for name, value, begun in differences(options, load(kept, "train", domain, type(options))):
        if name not in FREE:
            raise ArgumentError(flag(name), value, f"{begun!r}, with which the run was begun")


def make_folder(path: Path) -> None:
    """Make the folder of a command's results; a DataError says why it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: no folder to write results into ({error})") from error


def check_free(options: Any, command: str, domain: str) -> None:
    """An ArgumentError if `options.out` holds results of other options, which would end up among the new ones."""
    kept = options.out / CONFIG_NAME
    # A command that failed or was stopped before its first result left nothing but its options.
    if kept.exists() and any(path != kept for path in options.out.iterdir()):
        try:
            same = to_dict(replace(load(kept, command, domain, type(options)), processes=options.processes))
        except ConfigError:
            same = None
        if same != to_dict(options):
            raise ArgumentError("--out", str(options.out), "a new folder: this one holds the results of other options")


def model_folder(path: Path, domain: str) -> Path:
    """The folder of the model itself: the folder given, or `model` in that of a finished run.

    Raises:
        DataError: a run that has not finished.
    """
    if path.is_dir() and (path / "model").is_dir():
        return path / "model"
    if path.is_dir() and (path / "checkpoints").is_dir():
        raise DataError(
            f"{path}: this run has not finished; go on with `polydiff train {domain} --out {path} --resume`"
        )
    return path


def command_line(options: Any, command: str, domain: str) -> str:
    """The command line with these options, without what is at its default or a matter of this machine.

    Args:
        options: the command's dataclass; groups of options are dataclasses in its fields.
        command, domain: as in `polydiff COMMAND DOMAIN`.
    """
    words = ["polydiff", command, domain]
    for name, value, _ in differences(options, type(options)()):
        if isinstance(value, bool):
            words.append(flag(name) if value else "--no-" + flag(name)[2:])
        else:
            words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def flag(name: str) -> str:
    """How an option is called on the command line."""
    return "--" + name.replace("_", "-")


def differences(options: Any, others: Any) -> list[tuple[str, Any, Any]]:
    """(name, value, the others' value) of what differs, but for matters of this machine; groups come last."""
    own: list[tuple[str, Any, Any]] = []
    groups: list[tuple[str, Any, Any]] = []
    for each in fields(options):
        value, other = getattr(options, each.name), getattr(others, each.name)
        if is_dataclass(value):
            groups += differences(value, other)
        elif each.name not in LOCAL and value != other:
            own.append((each.name, value, other))
    return [*own, *groups]
