"""Configurations: dataclasses that are written beside every run and read back strictly.

A configuration file is JSON::

    {"format_version": 1, "command": "train", "domain": "vision", "options": {...}}

`options` mirrors a dataclass, nested dataclasses included. Reading is strict, for a file may be old, edited by hand or
come from a stranger: an unknown key, a value of another type or out of its range, or an unknown `format_version` is a
`ConfigError` that names the key. A key that is left out has the dataclass's default. Nothing in a file is ever executed
or looked up as code.

Fields may be bool, int, float, str, `Path`, `None`, `Literal`, enumerations of these by `|`, lists, tuples and
dataclasses. Bounds are written into the type, `width: Annotated[int, Range(1, 4096)]`. A field that says how to start a
run rather than what the run is stays out of the file: `resume: Annotated[bool, Invocation()]`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError
from .files import write_atomically

__all__ = ["FORMAT_VERSION", "Invocation", "Range", "check", "check_fields", "from_dict", "load", "save", "to_dict"]

FORMAT_VERSION = 1
"""Raised whenever a file of the older form would be misread."""

LARGEST_FILE = 1 << 20
LARGEST_INTEGER = (1 << 63) - 1
LONGEST = 10_000

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, for `Annotated`; they also keep a file from asking for terabytes."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"between {self.low:.19g} and {self.high:.19g}"


@dataclasses.dataclass(frozen=True)
class Invocation:
    """Marks, in `Annotated`, a field that files do not hold, because it concerns one start of a command only."""


def to_dict(options: Any) -> dict[str, Any]:
    """`options`, a dataclass, as plain JSON values; fields marked `Invocation` are left out."""
    return {field.name: _encode(getattr(options, field.name)) for field in _fields(type(options))}


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """An instance of the dataclass `kind` from plain JSON values.

    Args:
        kind: the dataclass.
        values: a dict as `to_dict` makes it.
        where: name of the place of `values` in the file, for messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value is of the wrong type or out of its range.
    """
    if not isinstance(values, dict):
        raise ConfigError(where or "options", values, "a table of options")
    fields = {field.name: field for field in _fields(kind)}
    hints = _hints(kind)
    for key in values:
        if key not in fields:
            raise ConfigError(_join(where, str(key)), values[key], f"one of the keys {', '.join(fields)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _decode(hints[name], values[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(_join(where, name), None, "a value: this key has no default")
    return kind(**arguments)


def check(options: T) -> T:
    """`options` itself if every field has its type and lies in its range, so for values from a command line too.

    Raises:
        ConfigError: naming the first field that does not.
    """
    from_dict(type(options), to_dict(options))
    return options


def check_fields(instance: Any) -> None:
    """A ConfigError unless every field of a dataclass has its type and lies in its range; for `__post_init__`."""
    kind = type(instance)
    for field in _fields(kind):
        _decode(_hints(kind)[field.name], _encode(getattr(instance, field.name)), field.name)


def save(path: str | os.PathLike[str], command: str, domain: str, options: Any) -> None:
    """Write `options` to `path` so that `load` gives them back; whole or not at all.

    Raises:
        ConfigError: `options` would not be read back as they are; nothing was written.
    """
    values = to_dict(options)
    again = from_dict(type(options), values)
    for field in _fields(type(options)):
        if getattr(again, field.name) != getattr(options, field.name):
            raise ConfigError(field.name, getattr(options, field.name), "a value that a configuration file can hold")
    whole = {"format_version": FORMAT_VERSION, "command": command, "domain": domain, "options": values}
    write_atomically(path, json.dumps(whole, indent=2, allow_nan=False) + "\n")


def load(path: str | os.PathLike[str], command: str, domain: str, kind: type[T]) -> T:
    """Read the options of one command of one domain from a file that `save` wrote, or that a person did.

    Raises:
        ConfigError: the file cannot be read, is for something else, or holds a value that cannot be used.
    """
    whole = _read(Path(path))
    version = whole.pop("format_version", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        newer = isinstance(version, int) and version > FORMAT_VERSION
        form = (
            f'{{"format_version": {FORMAT_VERSION}, "command": "{command}", "domain": "{domain}", "options": {{...}}}}'
        )
        expected = f"{FORMAT_VERSION}" + ("; update polydiff to read this file" if newer else f", as in {form}")
        raise ConfigError("format_version", version, f"{expected}, in {path}")
    for key, expected in (("command", command), ("domain", domain)):
        if (got := whole.pop(key, None)) != expected:
            raise ConfigError(key, got, f"{expected!r}, in {path}")
    options = whole.pop("options", None)
    for key, value in whole.items():
        raise ConfigError(key, value, f"only format_version, command, domain and options, in {path}")
    return from_dict(kind, options)


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in `path`: UTF-8, of sensible size, no key twice, no NaN."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ConfigError(next(name for name in names if names.count(name) > 1), "the key twice", "each key once")
        return found

    def constant(name: str) -> Any:
        raise ConfigError(str(path), name, "finite numbers")

    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(str(path), f"more than {LARGEST_FILE} bytes", "a configuration file")
        whole = json.loads(content.decode("utf-8"), object_pairs_hook=table, parse_constant=constant)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(str(path), error.strerror or str(error), "a configuration file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), str(error), "a configuration file in JSON") from error
    if not isinstance(whole, dict):
        raise ConfigError(str(path), whole, "a table with format_version, command, domain and options")
    return whole


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that configuration files hold."""
    marked = {name for name, hint in _hints(kind).items() if Invocation() in getattr(hint, "__metadata__", ())}
    return [field for field in dataclasses.fields(kind) if field.init and field.name not in marked]


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _encode(value: Any) -> Any:
    """Plain JSON for a field's value."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, os.PathLike):
        # "./digits" stays a path when read back where `digits` alone would be one of the names of a Literal.
        text = os.fspath(value)
        return text if os.path.dirname(text) else os.path.join(".", text)
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint` demands, or a ConfigError that names `where`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        decoded = _decode(arguments[0], value, where)
        for bounds in arguments[1:]:
            if isinstance(bounds, Range) and decoded is not None and decoded not in bounds:
                raise ConfigError(where, value, str(bounds))
        return decoded
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        for choice in arguments:
            if value == choice and type(value) is type(choice):
                return choice
        raise ConfigError(where, value, f"one of {', '.join(repr(choice) for choice in arguments)}")
    if origin in (list, tuple):
        return _decode_sequence(origin, arguments, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, where)
    if hint in _SCALARS:
        expected, convert = _SCALARS[hint]
        decoded = convert(value)
        if decoded is _REFUSED:
            raise ConfigError(where, value, expected)
        return decoded
    raise TypeError(f"{where}: configurations cannot hold fields of type {hint}")


def _decode_union(members: Sequence[Any], value: Any, where: str) -> Any:
    """The first member that takes `value`, in the order they are written."""
    errors: list[ConfigError] = []
    for member in members:
        try:
            return _decode(member, value, where)
        except ConfigError as error:
            errors.append(error)
    nested = [error for error in errors if error.argument != where]
    if nested:  # a field inside one member is wrong: more telling than the list of members
        raise nested[0]
    raise ConfigError(where, value, " or ".join(error.expected for error in errors))


def _decode_sequence(origin: type, members: Sequence[Any], value: Any, where: str) -> Any:
    """A list, a tuple of fixed length, or a tuple of any length."""
    if not isinstance(value, list) or len(value) > LONGEST:
        raise ConfigError(where, value, f"a list of at most {LONGEST} values")
    if origin is list or (len(members) == 2 and members[1] is Ellipsis):
        members = [members[0]] * len(value)
    if len(members) != len(value):
        raise ConfigError(where, value, f"a list of {len(members)} values")
    return origin(
        _decode(member, item, f"{where}[{i}]") for i, (member, item) in enumerate(zip(members, value, strict=True))
    )


_REFUSED = object()


def _none(value: Any) -> Any:
    return None if value is None else _REFUSED


def _boolean(value: Any) -> Any:
    return value if isinstance(value, bool) else _REFUSED


def _integer(value: Any) -> Any:
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER
    return value if fits else _REFUSED


def _number(value: Any) -> Any:
    whole = _integer(value) is not _REFUSED
    return float(value) if whole or (isinstance(value, float) and math.isfinite(value)) else _REFUSED


def _text(value: Any) -> Any:
    return value if isinstance(value, str) and len(value) <= LONGEST and "\0" not in value else _REFUSED


def _path(value: Any) -> Any:
    return Path(value) if _text(value) is not _REFUSED and value else _REFUSED


_SCALARS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    type(None): ("nothing (null)", _none),
    bool: ("true or false", _boolean),
    int: ("a whole number below 2^63", _integer),
    float: ("a finite number", _number),
    str: (f"a text of at most {LONGEST} characters", _text),
    Path: ("a path", _path),
}
