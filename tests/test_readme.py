"""The README's Python runs as it is printed."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from polydiff.core import grids

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


def test_the_methods_of_the_core_on_the_shipped_model() -> None:
    text = (ROOT / "core" / "README.md").read_text(encoding="utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names: dict[str, Any] = {"__name__": "readme"}
    exec(block, names)
    for name in ("x_0", "drawn", "between", "changed", "filled"):
        assert names[name].shape == (2, 1, 28, 28)
        assert bool(names[name].isfinite().all())
    assert torch.equal(names["filled"][:, :, :14], names["x_0"][:, :, :14])
    assert bool(names["found"].nats.isfinite().all())


def test_training_calibrating_and_distilling_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "core" / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["solver"].rmse < names["solver"].rmse_start
    assert names["nats"].shape == (8,) and bool(names["nats"].isfinite().all())
    with torch.no_grad():
        x, kernel = torch.randn(2000, 2), names["kernel"]
        drawn = names["last"](names["ddim"](names["quick"].given(kernel), kernel, x, grids.uniform(4)))
    # The data's deviations are 1 and 0.2.
    assert 0.6 < float(drawn[:, 0].std()) < 1.3 and float(drawn[:, 1].std()) < 0.5


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<!-- table: vision_quality -->\n|" in README


def test_conformers_from_the_shipped_model() -> None:
    text = (ROOT / "molecules" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(block, names)
    assert names["mol"].GetNumConformers() == 5
    assert [one.status for one in names["many"]] == ["ok", "ok", "invalid"]
    given, kept = names["core"], names["completed"]
    assert kept.GetNumConformers() == 2
    for conformer in kept.GetConformers():
        for atom, place in given.items():
            assert torch.allclose(torch.tensor(conformer.GetPositions()[atom]), torch.tensor(place).double(), atol=1e-6)
