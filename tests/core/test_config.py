"""Configurations come back as they were written, and whatever else a file holds is refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydiff.core.config import FORMAT_VERSION, Invocation, Range, check, check_fields, from_dict, load, save, to_dict
from polydiff.core.errors import ConfigError
from polydiff.core.files import write_atomically


@dataclass(frozen=True)
class Inner:
    width: Annotated[int, Range(1, 4096)] = 8
    rates: tuple[Annotated[float, Range(0, 1)], ...] = (0.5, 0.25)
    pair: tuple[int, str] = (1, "a")
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    data: Literal["digits", "mnist"] | Path = "digits"
    root: Path | None = None
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None
    rate: float = 1e-3
    fast: bool = False
    limit: Annotated[int, Range(1, 10)] | None = None
    resume: Annotated[bool, Invocation()] = False


@dataclass(frozen=True)
class Required:
    model: str


integers = st.integers(-(2**63) + 1, 2**63 - 1)
paths = st.text("abc./", min_size=1, max_size=12).map(Path)
inners = st.builds(
    Inner,
    width=st.integers(1, 4096),
    rates=st.lists(st.floats(0, 1), max_size=4).map(tuple),
    pair=st.tuples(integers, st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5)),
    names=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5), max_size=3),
)
options = st.builds(
    Options,
    data=st.sampled_from(["digits", "mnist"]) | paths | st.just(Path("digits")),
    root=st.none() | paths,
    inner=inners,
    other=st.none() | inners,
    rate=st.floats(allow_nan=False, allow_infinity=False),
    fast=st.booleans(),
    limit=st.none() | st.integers(1, 10),
)


@given(options)
def test_round_trip(value: Options):
    again = from_dict(Options, json.loads(json.dumps(to_dict(value))))
    assert again == value
    assert type(again.data) is type(value.data)


def test_file_round_trip(tmp_path: Path):
    value = Options(data=Path("digits"), inner=Inner(width=3, names=["é"]), limit=2, resume=True)
    save(tmp_path / "run" / "config.json", "train", "vision", value)
    whole = json.loads((tmp_path / "run" / "config.json").read_text())
    assert whole["format_version"] == FORMAT_VERSION
    assert "resume" not in whole["options"]
    assert load(tmp_path / "run" / "config.json", "train", "vision", Options) == replace(value, resume=False)
    assert os.listdir(tmp_path / "run") == ["config.json"]


def test_keys_left_out_have_their_defaults():
    assert from_dict(Options, {"inner": {"width": 2}}) == Options(inner=Inner(width=2))
    with pytest.raises(ConfigError, match=r"model: .*no default"):
        from_dict(Required, {})


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"inner": {"widht": 8}}, "inner.widht"),
        ({"inner": {"width": 0}}, "inner.width"),
        ({"inner": {"width": 10**12}}, "inner.width"),
        ({"inner": {"width": 8.0}}, "inner.width"),
        ({"inner": {"width": True}}, "inner.width"),
        ({"inner": {"width": None}}, "inner.width"),
        ({"inner": {"rates": [0.5, 1.5]}}, "inner.rates[1]"),
        ({"inner": {"rates": 0.5}}, "inner.rates"),
        ({"inner": {"rates": [0.5] * 100_000}}, "inner.rates"),
        ({"inner": {"pair": [1]}}, "inner.pair"),
        ({"inner": {"pair": ["a", 1]}}, "inner.pair[0]"),
        ({"inner": []}, "inner"),
        ({"other": {"width": -1}}, "other.width"),
        ({"data": 3}, "data"),
        ({"data": ""}, "data"),
        ({"data": "a\0b"}, "data"),
        ({"rate": "fast"}, "rate"),
        ({"rate": float("inf")}, "rate"),
        ({"rate": 10**400}, "rate"),
        ({"fast": 1}, "fast"),
        ({"limit": 11}, "limit"),
        ({"resume": True}, "resume"),
        ({"__class__": "os.system"}, "__class__"),
    ],
)
def test_refused_by_name(values: dict[str, Any], argument: str):
    with pytest.raises(ConfigError) as caught:
        from_dict(Options, values)
    assert caught.value.argument == argument
    assert caught.value.expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["width", "data", "x"]), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*to_dict(Options()), "x"]), json_values, max_size=3))
def test_anything_else_is_a_config_error(values: dict[str, Any]):
    try:
        accepted = from_dict(Options, values)
    except ConfigError:
        return
    assert from_dict(Options, to_dict(accepted)) == accepted


@pytest.mark.parametrize(
    ("content", "argument"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "format_version"),
        ({"format_version": True}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"command": "sample"}, "command"),
        ({"domain": "text"}, "domain"),
        ({"extra": 1}, "extra"),
        ({"options": [1]}, "options"),
        ({"options": {"rate": "x"}}, "rate"),
    ],
)
def test_files_for_something_else(tmp_path: Path, content: dict[str, Any], argument: str):
    whole = {"format_version": FORMAT_VERSION, "command": "train", "domain": "vision", "options": {}}
    (tmp_path / "c.json").write_text(json.dumps(whole | content))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "c.json", "train", "vision", Options)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b'{"rate": NaN}', b"[" * 100_000, b" " * (1 << 21), b'{"a": 1, "a": 2}'],
    ids=["empty", "truncated", "list", "not-utf8", "nan", "deep", "huge", "twice"],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ConfigError):
        load(tmp_path / "c.json", "train", "vision", Options)


def test_missing_file_and_folder(tmp_path: Path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match=str(tmp_path)):
            load(path, "train", "vision", Options)


def test_nothing_is_written_that_would_not_be_read(tmp_path: Path):
    for bad in (Options(rate=float("nan")), Options(inner=Inner(width=0)), Options(limit="3")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            save(tmp_path / "c.json", "train", "vision", bad)
        with pytest.raises(ConfigError):
            check(bad)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_atomically(tmp_path / "f", "old")

    def broken(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_what_is_no_file_is_written_into(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "new")
    assert os.read(reader, 10) == b"new" and pipe.is_fifo()
    os.close(reader)


@dataclass(frozen=True)
class Checked:
    """Checks itself."""

    size: Annotated[int, Range(1, 8)] = 2
    share: Annotated[float, Range(0, 0.5)] = 0.0
    most: Annotated[int, Range(1, 8)] | None = None

    def __post_init__(self):
        check_fields(self)


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 0), ("size", 9), ("size", 2.0), ("size", True), ("share", 0.6), ("share", float("nan")), ("most", 9)],
)
def test_fields_check_themselves(name: str, value: Any):
    with pytest.raises(ConfigError) as caught:
        Checked(**{name: value})
    assert caught.value.argument == name


def test_fields_in_range_are_taken():
    assert from_dict(Checked, to_dict(Checked(8, 0.5, 1))) == Checked(8, 0.5, 1)
