"""The two tasks of the molecule commands: conformers of given molecules, and whole molecules. Free of torch.

The commands have one dataclass of options each. `chosen` makes of it what one task takes; what belongs to the other
task is refused by its flag, so that nothing that was asked for is ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from ..core.errors import ArgumentError

__all__ = ["CONFORMERS", "MOLECULES", "chosen", "refuse"]

CONFORMERS = "conformers of given molecules"
MOLECULES = "whole molecules"

T = TypeVar("T")


def refuse(options: Any, names: Iterable[str], owner: str) -> None:
    """An ArgumentError with the flag of the first of these options that is not at its default."""
    standard = type(options)()
    for name in names:
        value = getattr(options, name)
        if is_dataclass(value):
            refuse(value, (field.name for field in fields(value)), owner)
        elif value != getattr(standard, name):
            raise ArgumentError(f"--{name.replace('_', '-')}", value, f"nothing: only {owner} take it")


def chosen(kind: type[T], options: Any, owner: str, /, **values: Any) -> T:
    """The options of one task.

    Args:
        kind: dataclass of the task's own options. They have the names that the command gives them; groups likewise.
        options: of the command. None is the task's own default.
        owner: whose the other options are, such as `CONFORMERS`.
        values: of the task's options that are not the command's.

    Raises:
        ArgumentError: an option that the task does not have is not at its default.
    """
    own = {field.name: getattr(kind(), field.name) for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    refuse(options, (field.name for field in fields(options) if field.name not in own.keys() | values.keys()), owner)
    found: dict[str, Any] = {}
    for name in own.keys() & {field.name for field in fields(options)} - values.keys():
        value = getattr(options, name)
        if is_dataclass(own[name]) and type(own[name]) is not type(value):
            value = chosen(type(own[name]), value, owner)
        if value is not None:
            found[name] = value
    return kind(**found, **{name: value for name, value in values.items() if name in own})
