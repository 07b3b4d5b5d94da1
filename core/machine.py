"""What a result was measured on: processor or accelerator, cores, versions; no names of hosts, users or paths."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

__all__ = ["machine"]


def machine() -> str:
    """One line for model cards and results files."""
    parts = [f"{processor()}, {torch.get_num_threads()} thread(s)"]
    if torch.cuda.is_available():
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return f"{'; '.join(parts)}; Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"


def processor() -> str:
    """The processor's own name where the system tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    named = facts.get("model name", platform.machine())
    wide = next((flag for flag in ("amx_bf16", "avx512f", "avx2") if flag in facts.get("flags", "").split()), "")
    return f"{named} ({wide})" if wide else named
