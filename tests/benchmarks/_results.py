"""Results of benchmarks in parts: each is written as soon as it is there, and kept for the next run."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polydiff.core.files import write_atomically
from polydiff.core.machine import machine

__all__ = ["elapsed", "keep", "kept", "today"]


def today() -> dict[str, str]:
    """Machine and date, as every part of a result carries them."""
    return {"machine": machine(), "date": datetime.date.today().isoformat()}


def kept(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Results of earlier runs of the same settings, {} otherwise."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return whole if all(whole.get(key) == value for key, value in about.items()) else {}


def keep(path: Path, about: dict[str, Any], section: str, name: str, entry: dict[str, Any]) -> None:
    """Put a part into the results at once, beside the parts of earlier runs of the same settings."""
    whole = kept(path, about) | about
    whole.setdefault(section, {})[name] = entry | today()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(whole, indent=1) + "\n")


def elapsed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, wall seconds)."""
    before = time.perf_counter()
    found = work()
    return found, time.perf_counter() - before
