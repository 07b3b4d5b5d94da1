"""The `polydiff` command finds its way, and asking for help loads no heavy library."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polydiff.cli.main import COMMANDS, DOMAINS, main
from polydiff.core.config import check, load, save
from polydiff.core.errors import DataError

PAIRS = [(command, domain) for domain in DOMAINS for command in COMMANDS]


def kind_of(command: str, domain: str) -> Any:
    return getattr(import_module(f"polydiff.{domain}.options"), command.capitalize())


def status(*words: str) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    return stopped.value.code


def install(monkeypatch: pytest.MonkeyPatch, command: str, domain: str, work: Any) -> None:
    """Stand in for the module that does the work."""
    module = ModuleType(f"polydiff.{domain}.{command}")
    module.main = work  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(("command", "domain"), PAIRS)
def test_each_command_reaches_its_module(command: str, domain: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    install(monkeypatch, command, domain, seen.append)
    monkeypatch.setattr(kind_of(command, domain), "check_at_once", lambda options: None, raising=False)
    place = "--out" if hasattr(kind_of(command, domain), "out") else "--model"
    assert status(command, domain, "--seed", "7", place, "elsewhere") == 0
    (options,) = seen
    assert isinstance(options, kind_of(command, domain))
    assert getattr(options, place[2:]) == Path("elsewhere")
    assert "seed=7" in repr(options)


@pytest.mark.parametrize(("command", "domain"), PAIRS)
def test_options_are_sound(command: str, domain: str, tmp_path: Path):
    """Defaults lie in their own bounds, survive the file, and cannot be changed behind one's back."""
    kind = kind_of(command, domain)
    options = check(kind())
    save(tmp_path / "config.json", command, domain, options)
    assert load(tmp_path / "config.json", command, domain, kind) == options
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.out = Path("x")


@pytest.mark.parametrize(("command", "domain"), PAIRS)
def test_help_explains_every_option(command: str, domain: str, capsys: pytest.CaptureFixture[str]):
    assert status(command, domain, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: polydiff {command} {domain}" in shown
    entries = [line.strip("│ ") for line in shown.splitlines() if line.startswith("│")]
    for i, entry in enumerate(entries):
        if entry.startswith("--"):
            words = entry.split("  ", 1)[1:] or [entries[i + 1]]
            assert words[0].strip()[0].isupper(), f"{entry} is not explained"


def test_help_on_the_way_down(capsys: pytest.CaptureFixture[str]):
    assert status("--help") == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert status("train", "--help") == 0
    shown = capsys.readouterr().out
    assert all(domain in shown for domain in DOMAINS)
    assert status("--version") == 0
    assert capsys.readouterr().out.startswith("polydiff ")


@pytest.mark.parametrize("words", [[], ["train"], ["nope"], ["train", "nope"], ["train", "vision", "--nope"]])
def test_misspellings_say_what_there_is(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert status(*words) == 2
    shown = capsys.readouterr().err
    assert "polydiff" in shown
    assert "Traceback" not in shown


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def work(_: Any) -> None:
        raise DataError("x.png: not an image")

    install(monkeypatch, "train", "vision", work)
    assert status("train", "vision") == 2
    assert capsys.readouterr().err == "polydiff: error: x.png: not an image\n"


HELP = [["--help"], ["train", "--help"], *([command, domain, "--help"] for command, domain in PAIRS[::3])]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]):
    code = f"""
import sys
from polydiff.cli.main import main
try:
    main({words!r})
except SystemExit as stopped:
    assert stopped.code == 0
heavy = {{"torch", "torchvision", "numpy", "scipy", "matplotlib", "PIL", "accelerate", "huggingface_hub"}}
loaded = heavy & set(sys.modules)
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "domain"), PAIRS)
def test_every_domain_has_every_command(command: str, domain: str):
    assert callable(import_module(f"polydiff.{domain}.{command}").main)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_has_its_page_and_its_smallest_case(domain: str):
    assert (Path(__file__).parents[2] / domain / "README.md").is_file()
    assert import_module(f"polydiff.{domain}.tiny").case().name == domain
