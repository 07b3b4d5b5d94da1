"""What a batch holds: data, the structure that binds the kernel to them, and conditions of the network.

Structure (which row is whose, which cells are targets) belongs to the states: the kernel must be bound to it before it
can draw noise or sum an error. So a batch may carry it, as the keywords of `given`, beside the conditions that the
network takes, and every objective opens its batches here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from .errors import ArgumentError

__all__ = ["Opened", "opened"]

K = TypeVar("K")


class Opened(NamedTuple, Generic[K]):
    """A batch taken apart.

    Attributes:
        kernel: bound to the batch's structure.
        x_0: the data.
        condition: everything else, which the network takes.
    """

    kernel: K
    x_0: Any
    condition: dict[str, Any]


def opened(kernel: K, batch: Mapping[str, Any]) -> Opened[K]:
    """The batch taken apart: `{"x_0": ..., "structure": {...}, condition: ...}`.

    Args:
        kernel: a kernel or a path; bound to `batch["structure"]`, a mapping of keywords of its `given`, where there is
            one, else taken as it is.
        batch: "x_0", perhaps "structure", and the conditions.
    """
    if not isinstance(batch, Mapping) or "x_0" not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else batch
        raise ArgumentError("batch", got, 'a mapping with "x_0" and the conditions')
    structure = batch.get("structure", {})
    if not isinstance(structure, Mapping):
        raise ArgumentError('batch["structure"]', structure, "a mapping: the keywords of the kernel's `given`")
    if structure:
        own: Any = kernel
        kernel = own.given(**structure)
    return Opened(kernel, batch["x_0"], {k: v for k, v in batch.items() if k not in ("x_0", "structure")})
