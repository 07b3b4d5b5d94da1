"""From a command line to `main(options)`: what wins over what, and how errors end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from polydiff.core.commands import run
from polydiff.core.config import Invocation, Range, save
from polydiff.core.errors import ConfigError, DataError


@dataclass(frozen=True)
class Loop:
    """The loop."""

    steps: Annotated[int, Range(1, 1000)] = 10
    """Steps in all."""
    rate: float = 0.1
    """Learning rate."""


@dataclass(frozen=True)
class Options:
    """Train a toy."""

    out: Path = Path("toy")
    """Folder."""
    names: tuple[str, ...] = ()
    """Names."""
    loop: Loop = field(default_factory=Loop)
    config: Annotated[Path | None, Invocation()] = None
    """Configuration."""
    resume: Annotated[bool, Invocation()] = False
    """Go on."""


def read(*arguments: object) -> Options:
    """The options with which `main` is called."""
    seen: list[Options] = []
    with pytest.raises(SystemExit) as stopped:
        run(Options, seen.append, command="train", domain="toy", arguments=[str(word) for word in arguments])
    assert stopped.value.code == 0
    return seen[0]


def fail(error: BaseException | None, *arguments: str) -> Any:
    """The exit status when `main` raises `error`."""

    def main(_: Options) -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as stopped:
        run(Options, main, command="train", domain="toy", arguments=arguments)
    return stopped.value.code


def test_flags_over_file_over_defaults(tmp_path: Path):
    save(tmp_path / "c.json", "train", "toy", Options(names=("a", "b"), loop=Loop(steps=20, rate=0.5)))
    assert read() == Options()
    assert read("--steps", 5, "--names", "x", "y") == Options(names=("x", "y"), loop=Loop(steps=5))
    for given in (["--config", tmp_path / "c.json"], [f"--config={tmp_path / 'c.json'}"]):
        got = read(*given, "--rate", 0.25)
        assert (got.names, got.loop, got.config) == (("a", "b"), Loop(steps=20, rate=0.25), tmp_path / "c.json")


def test_resume_takes_the_run_as_it_was_begun(tmp_path: Path):
    save(tmp_path / "config.json", "train", "toy", Options(out=Path("elsewhere"), loop=Loop(steps=20)))
    got = read("--resume", "--out", tmp_path, "--rate", 0.75)
    assert got == Options(out=tmp_path, loop=Loop(steps=20, rate=0.75), resume=True)
    assert read("--out", tmp_path).loop == Loop()
    assert read("--resume", "--out", tmp_path / "new").loop == Loop()


def test_bounds_hold_for_flags(capsys: pytest.CaptureFixture[str]):
    assert fail(None, "--steps", "0") == 2
    assert capsys.readouterr().err == "polydiff: error: --steps: got 0, expected between 1 and 1000\n"


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert fail(DataError("a.png:\n broken")) == 2
    assert capsys.readouterr().err == "polydiff: error: a.png: broken\n"
    assert fail(OSError(28, "No space left on device", "a.json")) == 2
    assert capsys.readouterr().err == "polydiff: error: [Errno 28] No space left on device: 'a.json'\n"
    assert fail(None, "--config", str(tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err
    assert fail(KeyboardInterrupt()) == 130
    assert fail(None, "--nonsense") == 2


def test_tracebacks_on_demand(monkeypatch: pytest.MonkeyPatch):
    def main(_: Options) -> None:
        raise ConfigError("a", 1, "two")

    with pytest.raises(ConfigError):
        run(Options, main, command="train", domain="toy", arguments=["--traceback"])
    monkeypatch.setenv("POLYDIFF_TRACEBACK", "1")
    with pytest.raises(ConfigError):
        run(Options, main, command="train", domain="toy", arguments=[])


def test_other_errors_pass():
    def main(_: Options) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Options, main, command="train", domain="toy", arguments=[])


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]):
    assert fail(None, "--help") == 0
    assert fail(None, "--config", "none.json", "--help") == 0
    shown = capsys.readouterr().out
    for text in ("python -m polydiff.toy.train", "Train a toy.", "--steps", "Steps in all.", "--resume", "Go on."):
        assert text in shown
