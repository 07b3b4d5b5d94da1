"""Figures for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["shown", "with_error"]


def with_error(found: Mapping[str, Any], percent: bool) -> str:
    """A mean and its standard error."""
    error = found.get("standard error")
    return shown(found.get("mean"), percent) + ("" if error is None else f" ± {shown(error, percent)}")


def shown(value: float | None, percent: bool = False) -> str:
    """A number for people; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if percent else f"{value:.3g}"
