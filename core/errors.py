"""Typed errors. Each names the argument or file at fault, what came and what was expected.

Checks run before any state changes, so a caller who catches one of these may correct the input and go on.
"""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "PolydiffError",
    "TrainingError",
    "check_counts",
]


class PolydiffError(Exception):
    """Base of every error that polydiff raises on purpose."""


class ArgumentError(PolydiffError, ValueError):
    """An argument that cannot be used.

    Args:
        argument: its name, as the caller wrote it.
        got: what came; described briefly, tensors by shape and dtype.
        expected: what would have been accepted.
    """

    def __init__(self, argument: str, got: Any, expected: str):
        self.argument, self.got, self.expected = argument, describe(got), expected
        super().__init__(f"{argument}: got {self.got}, expected {expected}")

    def called(self, argument: str) -> Self:
        """This error, of an argument that its reader knows by another name."""
        self.argument = argument
        self.args = (f"{argument}: got {self.got}, expected {self.expected}",)
        return self


class ConfigError(ArgumentError):
    """A configuration that cannot be used: an unknown name, a missing key, a size beyond every limit."""


class DataError(PolydiffError, ValueError):
    """A data set or file that cannot be read; the message names the path and the way out."""


class CheckpointError(PolydiffError, RuntimeError):
    """A checkpoint that is incomplete, corrupt or made for something else; the message names the file."""


class TrainingError(PolydiffError, RuntimeError):
    """Training cannot go on, for instance because the loss is not finite; nothing was stepped."""


def describe(value: Any) -> str:
    """A short description of any value for an error message: tensors by shape and dtype, long texts cut."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and len(tuple(shape)) > 0:
        return f"{type(value).__name__} of shape {tuple(shape)}, dtype {str(dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def check_counts(**counts: object) -> None:
    """An ArgumentError unless all are integers >= 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(name, value, "an integer >= 1")
