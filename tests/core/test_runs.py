"""Folders of runs, and the command line that would repeat one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from polydiff.core.commands import parse
from polydiff.core.config import Invocation, save
from polydiff.core.errors import ArgumentError, DataError
from polydiff.core.runs import check_begun, check_free, command_line, make_folder, model_folder


@dataclass(frozen=True)
class Group:
    """A group."""

    width: int = 4
    """Of it."""
    sizes: tuple[int, ...] = (1, 2)
    """Of its parts."""
    cpu: bool = False
    """A matter of the machine."""


@dataclass(frozen=True)
class Options:
    """Some options."""

    group: Group = field(default_factory=lambda: Group(width=6))
    name: str = "a"
    """A text."""
    fast: bool = True
    """A switch."""
    out: Path = Path("runs/x")
    """A folder."""
    processes: int = 1
    """A matter of the machine."""
    resume: Annotated[bool, Invocation()] = False
    """How to start."""


def test_the_command_line_says_what_differs_and_reads_back() -> None:
    assert command_line(Options(), "train", "x") == "polydiff train x"
    options = Options(Group(4, (3, 5), cpu=True), name="two words", fast=False, out=Path("y"), processes=3, resume=True)
    line = command_line(options, "train", "x")
    # The group's width is at its class's default, but not at that of the command.
    assert line == "polydiff train x --name 'two words' --no-fast --width 4 --sizes 3 5"
    again = parse(Options, "train", "x", "polydiff train x", shlex.split(line)[3:])
    assert again == replace(options, group=Group(4, (3, 5)), out=Path("runs/x"), processes=1, resume=False)


def test_a_model_is_found_in_its_run(tmp_path: Path) -> None:
    assert model_folder(tmp_path, "text") == tmp_path
    assert model_folder(Path("owner/name"), "text") == Path("owner/name")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(DataError, match=r"polydiff train text --out .* --resume"):
        model_folder(tmp_path, "text")
    (tmp_path / "model").mkdir()
    assert model_folder(tmp_path, "text") == tmp_path / "model"


def test_folders_are_made_or_the_reason_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="no folder"):
        make_folder(tmp_path / "file" / "b")


def test_results_of_other_options_are_kept_apart(tmp_path: Path) -> None:
    options = Options(out=tmp_path)
    check_free(options, "sample", "x")
    save(tmp_path / "config.json", "sample", "x", options)
    check_free(options, "sample", "x")
    check_free(replace(options, processes=2), "sample", "x")
    check_free(replace(options, name="b"), "sample", "x")  # what failed before its first result is in nobody's way
    (tmp_path / "00000.png").touch()
    check_free(options, "sample", "x")
    for other, command in ((replace(options, name="b"), "sample"), (options, "evaluate")):
        with pytest.raises(ArgumentError, match="--out"):
            check_free(other, command, "x")


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"name": "b"}, "--name: got 'b', expected 'a', with which"), ({"fast": False}, "--fast"), ({}, "--width")],
)
def test_a_run_goes_on_with_the_options_that_it_was_begun_with(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    begun = Options(out=tmp_path, resume=True)
    save(tmp_path / "config.json", "train", "x", begun)
    check_begun(replace(begun, processes=3, group=replace(begun.group, cpu=True)), "x")
    with pytest.raises(ArgumentError, match=named):
        check_begun(replace(begun, **changed or {"group": replace(begun.group, width=8)}), "x")


def test_only_a_run_that_was_begun_is_resumed(tmp_path: Path) -> None:
    check_begun(Options(out=tmp_path), "x")
    (tmp_path / "metrics.jsonl").touch()  # as a run leaves it that failed in its first step
    check_begun(Options(out=tmp_path), "x")
    with pytest.raises(ArgumentError, match="--resume"):
        check_begun(Options(out=tmp_path, resume=True), "x")
    save(tmp_path / "config.json", "train", "x", Options())
    check_begun(Options(out=tmp_path, resume=True), "x")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ArgumentError, match="--out: .*--resume to go on"):
        check_begun(Options(out=tmp_path), "x")
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "checkpoints" / "step_000000001").mkdir(parents=True)
    check_begun(Options(out=tmp_path, resume=True), "x")
    with pytest.raises(ArgumentError, match="--out: .*--resume to go on"):
        check_begun(Options(out=tmp_path), "x")
