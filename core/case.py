"""The smallest real case of a domain, on which every generic method is run and tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from .denoisers import Denoiser
from .errors import ArgumentError
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
    choose: Callable[[Mapping[str, Any], Tensor], Mapping[str, Any]] | None = None
    """(condition, index (M,)) -> the condition of the examples numbered by index, repeats allowed. Needed where a
    condition is more than tensors and plain values, such as a batch of graphs."""

    def chosen(self, index: Tensor) -> Case:
        """The case of the examples numbered by index (M,), repeats allowed: data, structure and condition.

        Without `choose`, tensors with one entry for every example, or for every row of x_0, are taken along, other
        tensors and plain values stay.
        """
        kernel, x_0 = self.kernel, self.x_0
        if self.choose is not None:
            condition = self.choose(self.condition, index)
        else:
            condition = {name: self._taken(name, value, index) for name, value in self.condition.items()}
        return replace(self, kernel=kernel.taken(index, x_0), x_0=kernel.take(x_0, index), condition=condition)

    def _taken(self, name: str, value: Any, index: Tensor) -> Any:
        if isinstance(value, Tensor):
            if value.ndim and len(value) == self.kernel.examples(self.x_0):
                return value[index]
            rows = len(self.x_0) if isinstance(self.x_0, Tensor) else -1
            return self.kernel.take(value, index) if value.ndim and len(value) == rows else value
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        got = f"nothing, for the condition {name!r}, a {type(value).__name__}"
        raise ArgumentError("choose", got, "a function that takes the condition of some examples")
