"""`polydiff COMMAND DOMAIN [options]`: the one place that knows all domains.

Every domain has a module `options` with one dataclass per command (`Train`, `Sample`, `Evaluate`, `Demo`), free of
torch, and a module per command (`train`, …) whose `main(options)` does the work and is imported only when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from ..core.commands import run

__all__ = ["COMMANDS", "DOMAINS", "main"]

DOMAINS = ("vision", "text", "molecules", "timeseries")

METHODS = "run every method of the core on the smallest case of every domain, and print what works"

COMMANDS = {
    "train": "train a model on a data set or on your own files",
    "sample": "draw from a trained model",
    "calibrate": "fit a sampler of few network calls to a trained model, and keep it there",
    "evaluate": "measure a trained model against held-out data",
    "demo": "train, sample and evaluate something small; writes a page of results",
}

EPILOG = """\
examples:
  polydiff demo vision                                          the whole way in a few minutes
  polydiff train vision --data fashion-mnist --out runs/first   train on a real data set
  polydiff train vision --out runs/first --resume               go on where that run stopped
  polydiff sample vision --model runs/first --count 16          draw from it
  polydiff train text --data novels --out runs/novels           text: any file or folder will do, too
  polydiff sample text --model runs/novels --prompt "it was "   write on; --infill "the [MASK:3] sat" fills gaps
  polydiff sample molecules in.smi -o out.sdf                   conformers of every SMILES in a file
  polydiff sample timeseries gaps.csv -o filled.csv             gaps of a table filled; --horizon 24 forecasts
  polydiff methods                                              what works in which domain, by running it

Options in full: polydiff COMMAND DOMAIN --help. An error is one line; --traceback shows where it came from.
"""


class _Version(argparse.Action):
    """Print the version, looked up only then: package metadata is slow to read."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"polydiff {version('polydiff')}")
        parser.exit()


def _package(name: str) -> str:
    return f"{(__package__ or '').rpartition('.')[0]}.{name}"


def _summary(domain: str) -> str:
    """The first line of a domain's docstring."""
    return (import_module(_package(domain)).__doc__ or "").partition("\n")[0]


def _parser() -> argparse.ArgumentParser:
    """Reads the command and the domain; every other word is left to the domain's options."""
    parser = argparse.ArgumentParser(
        prog="polydiff",
        usage="polydiff COMMAND DOMAIN [options]",
        description="One diffusion core, many domains.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        prog="polydiff", title="commands", dest="command", metavar="COMMAND", required=True
    )
    for command, summary in COMMANDS.items():
        below = commands.add_parser(
            command,
            usage=f"polydiff {command} DOMAIN [options]",
            description=f"{summary[0].upper()}{summary[1:]}.",
            help=summary,
            epilog=f"Options in full: polydiff {command} DOMAIN --help",
            allow_abbrev=False,
        )
        domains = below.add_subparsers(
            prog=f"polydiff {command}", title="domains", dest="domain", metavar="DOMAIN", required=True
        )
        for domain in DOMAINS:
            domains.add_parser(domain, help=_summary(domain), add_help=False, allow_abbrev=False)
    methods = commands.add_parser(
        "methods",
        usage="polydiff methods [DOMAIN] [--markdown]",
        description=f"{METHODS[0].upper()}{METHODS[1:]}.",
        help=METHODS,
        epilog="Exit status 1 if a method fails where its mathematics holds.",
        allow_abbrev=False,
    )
    methods.add_argument("domain", nargs="?", choices=DOMAINS, help="this domain only")
    methods.add_argument("--markdown", action="store_true", help="as a Markdown table")
    return parser


def _methods(domain: str | None, markdown: bool) -> int:
    """Prints the matrix method x domain; the exit status."""
    matrix = import_module(_package("core.matrix"))
    domains = DOMAINS if domain is None else (domain,)
    cells = matrix.evaluate({name: import_module(_package(f"{name}.tiny")).case for name in domains})
    print(matrix.table(cells, markdown))
    return int(any(one.status == "FAILED" for one in cells))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `polydiff` command; ends the process with the status that `core.commands.run` documents."""
    parser = _parser()
    found, rest = parser.parse_known_args(arguments)
    command, domain = found.command, found.domain
    if command == "methods":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        sys.exit(_methods(domain, found.markdown))
    kind = getattr(import_module(_package(f"{domain}.options")), command.capitalize())

    def work(options: Any) -> None:
        import_module(_package(f"{domain}.{command}")).main(options)

    run(kind, work, command=command, domain=domain, prog=f"polydiff {command} {domain}", arguments=rest)


if __name__ == "__main__":
    main()
