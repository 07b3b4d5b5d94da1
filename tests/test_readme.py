"""The README's Python runs as it is printed."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_two_examples() -> None:
    assert len(BLOCKS) == 2
    assert len(BLOCKS[1].splitlines()) < 45


def test_the_pipeline_example_draws_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    assert [image.size for image in names["images"]] == [(28, 28), (28, 28)]  # pyright: ignore[reportGeneralTypeIssues]
    assert (tmp_path / "runs" / "my-model" / "model.safetensors").is_file()


def test_own_network_and_data_reach_the_circle() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(BLOCKS[1], {"__name__": "readme"})
    distance = float(re.search(r"tensor\(([\d.e-]+)\)", printed.getvalue())[1])  # pyright: ignore[reportOptionalSubscript]
    assert distance < 0.06  # untrained networks end 0.4 and more away


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<!-- table: vision_quality -->\n|" in README
