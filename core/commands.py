"""Commands: a dataclass of options, a `main(options)`, and what lies between a command line and the two.

`run` serves `polydiff train vision …` and `python -m polydiff.vision.train …` alike: it reads the options (defaults,
then a configuration file, then flags), checks them, calls `main`, and turns errors that polydiff raises on purpose into
one line on stderr and exit status 2. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .config import check, load
from .errors import ConfigError, PolydiffError

__all__ = ["CONFIG_NAME", "parse", "run"]

CONFIG_NAME = "config.json"
"""The name under which a run keeps its configuration in its folder."""

TRACEBACK_FLAG = "--traceback"
TRACEBACK_VARIABLE = "POLYDIFF_TRACEBACK"

T = TypeVar("T")


def parse(kind: type[T], command: str, domain: str, prog: str, arguments: Sequence[str]) -> T:
    """Options from a command line.

    A flag wins over the file named by `--config`, which wins over the defaults. `--resume` alone starts from the
    configuration in the folder given by `--out`, if there is one: a run continues as it was begun.

    Args:
        kind: the dataclass of options; fields `config`, `resume` and `out` have the meaning above, if they exist.
        command, domain: what a configuration file must be for.
        prog: the name to show in help.
        arguments: the command line after the command's name.

    Raises:
        ConfigError: the file or a value cannot be used.
        SystemExit: after `--help` (status 0) or a command line that cannot be read (status 2, explained on stderr).
    """
    import tyro

    def read(default: T | None) -> Any:
        return tyro.cli(
            kind,
            prog=prog,
            args=list(arguments),
            default=tyro.MISSING_NONPROP if default is None else default,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
        )

    file = _config_file(kind, prog, arguments)
    if file is not None:
        return _checked(read(load(file, command, domain, kind)))
    options = read(None)
    if getattr(options, "resume", False) and (kept := Path(options.out) / CONFIG_NAME).exists():
        options = read(load(kept, command, domain, kind))
    return _checked(options)


def run(
    kind: type[T],
    main: Callable[[T], object],
    *,
    command: str,
    domain: str,
    prog: str | None = None,
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Parse a command line into `kind`, call `main` with it, and end the process.

    Options with a method `check_at_once()` are asked first: it tells errors of files and folders in no time, while
    `main` may have to load torch.

    Exit status: 0 when `main` returns; 2 for a `PolydiffError` or an OSError (a full disk), shown as one line (with its
    traceback after `--traceback` or with POLYDIFF_TRACEBACK set); 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    traceback = TRACEBACK_FLAG in words or bool(os.environ.get(TRACEBACK_VARIABLE))
    words = [word for word in words if word != TRACEBACK_FLAG]
    try:
        options: Any = parse(kind, command, domain, prog or f"python -m polydiff.{domain}.{command}", words)
        if hasattr(options, "check_at_once"):
            options.check_at_once()
        main(options)
    except PolydiffError as error:
        if traceback:
            raise
        print(f"polydiff: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written
        if traceback:
            raise
        print(f"polydiff: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if traceback:
            raise
        print("polydiff: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _checked(options: T) -> T:
    """The options if every value can be used; else a ConfigError that names the flag."""
    try:
        return check(options)
    except ConfigError as error:  # what a file held has been checked before
        name = error.argument.rpartition(".")[2].partition("[")[0]
        raise error.called("--" + name.replace("_", "-")) from None


def _config_file(kind: Any, prog: str, arguments: Sequence[str]) -> Path | None:
    """The value of `--config`, which has to be known before the rest can be read against it."""
    if not any(field.name == "config" for field in dataclasses.fields(kind)):
        return None
    parser = argparse.ArgumentParser(prog=prog, usage=f"{prog} [options]", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    found, rest = parser.parse_known_args(list(arguments))
    return None if {"-h", "--help"} & set(rest) else found.config
