"""The smallest real case of a domain, on which every generic method is run and tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .denoisers import Denoiser
from .kernel import Kernel

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """What a domain's `tiny.case()` returns: real data, its kernel, and a small denoiser that fits both."""

    name: str
    """The domain's."""
    kernel: Kernel
    """Bound to the structure of `x_0`."""
    denoiser: Denoiser
    """Untrained, but with every weight different from zero."""
    x_0: Any
    """A few examples of the domain's own data."""
    condition: Mapping[str, Any] = field(default_factory=dict)
    """What the network takes besides."""
