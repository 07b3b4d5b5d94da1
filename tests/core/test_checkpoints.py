"""Checkpoints are whole or absent, and nothing damaged is ever used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polydiff.core import checkpoints
from polydiff.core.checkpoints import list_steps, load, load_newest, save
from polydiff.core.errors import ArgumentError, CheckpointError


def content(step: int) -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(4, 3, generator=g),
            "count": torch.tensor(step),
            "half": torch.ones(2).bfloat16(),
        },
        "rng": {"state": torch.randint(256, (40,), generator=g, dtype=torch.uint8), "empty": torch.zeros(0, 3)},
    }


def write(folder: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save(folder, step, content(step), {"step": step, "rate": 0.1}, keep=keep)


def assert_is(checkpoint: checkpoints.Checkpoint, step: int) -> None:
    assert checkpoint.step == step
    assert checkpoint.state == {"step": step, "rate": 0.1}
    expected = content(step)
    assert checkpoint.tensors.keys() == expected.keys()
    for group, named in expected.items():
        assert checkpoint.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            found = checkpoint.tensors[group][name]
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


def test_round_trip(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, 3, 12)
        assert_is(load_newest(tmp_path), 12)
        assert_is(load(tmp_path / "step_000000003"), 3)


def test_views_and_shared_tensors(tmp_path: Path):
    base = torch.arange(24.0).view(4, 6)
    named = {"base": base, "same": base, "view": base[1:3], "turned": base.T, "last": base.view(2, 3, 2, 2)}
    named["last"] = named["last"].contiguous(memory_format=torch.channels_last)
    save(tmp_path, 1, {"model": named}, {})
    found = load_newest(tmp_path).tensors["model"]
    assert all(torch.equal(found[name], tensor) for name, tensor in named.items())


def test_only_the_newest_are_kept(tmp_path: Path):
    write(tmp_path, 1, 2, 3, 4, keep=2)
    assert list_steps(tmp_path) == [3, 4]
    write(tmp_path, 10**10, keep=2)
    assert list_steps(tmp_path) == [4, 10**10]
    assert_is(load_newest(tmp_path), 10**10)


def test_later_damaged_ones_do_not_push_out_sound_ones(tmp_path: Path):
    write(tmp_path, 10, 20)
    (tmp_path / "step_000000020" / "model.safetensors").write_bytes(b"")
    write(tmp_path, 15, keep=1)
    with pytest.warns(UserWarning, match="step_000000020"):
        assert_is(load_newest(tmp_path), 15)


def test_none(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            load_newest(folder)


def test_same_again_is_left_and_other_is_refused(tmp_path: Path):
    write(tmp_path, 5, 5)
    assert_is(load_newest(tmp_path), 5)
    with pytest.raises(CheckpointError, match="step_000000005: already holds another state"):
        save(tmp_path, 5, content(6), {})
    assert_is(load_newest(tmp_path), 5)
    (tmp_path / "step_000000005" / "state.json").unlink()
    with pytest.warns(UserWarning, match="replaced"):
        write(tmp_path, 5)
    assert_is(load_newest(tmp_path), 5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1, {}, {}), "step"),
        ((1, {"../model": {}}, {}), "tensors"),
        ((1, {}, {"loss": float("nan")}), "state"),
        ((1, {}, {"f": print}), "state"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: tuple, named: str):
    with pytest.raises(ArgumentError, match=named):
        save(tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


# -------------------------------------------------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def remove(path: Path) -> None:
    (path / "rng.safetensors").unlink()


def add(path: Path) -> None:
    (path / "extra.safetensors").write_bytes(b"")


def link(path: Path) -> None:
    shutil.move(path / "model.safetensors", path.parent / "elsewhere")
    (path / "model.safetensors").symlink_to(path.parent / "elsewhere")


def link_manifest(path: Path) -> None:
    shutil.move(path / "manifest.json", path.parent / "elsewhere")
    (path / "manifest.json").symlink_to(path.parent / "elsewhere")


def link_folder(path: Path) -> None:
    shutil.move(path, path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def directory(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").mkdir()


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def broken_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('{"format_version": 1, ')


def deep_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[" * 100_000)


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Tamper with the manifest and make its digest fit."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["digest"]
    change(manifest)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest | {"digest": digest}))


def edited_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"step": 20', '"step": 21'))


def other_step(path: Path) -> None:
    rewrite(path, lambda manifest: manifest.update(step=21))


def other_version(path: Path) -> None:
    rewrite(path, lambda manifest: manifest.update(format_version=2))


def no_files(path: Path) -> None:
    rewrite(path, lambda manifest: manifest.update(files=[]))


def traversal(path: Path) -> None:
    rewrite(path, lambda m: m["files"].update({"../step_000000010/model.safetensors": m["files"]["model.safetensors"]}))


def absolute(path: Path) -> None:
    rewrite(path, lambda m: m["files"].update({str(path / "model.safetensors"): m["files"]["model.safetensors"]}))


def duplicate(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"step": 20', '"step": 20, "step": 20'))


DAMAGE = [truncate, flip, remove, add, link, link_manifest, link_folder, directory, no_manifest, broken_manifest]
DAMAGE += [deep_manifest, edited_manifest, other_step, other_version, no_files, traversal, absolute, duplicate]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_passed_over(tmp_path: Path, damage: Callable[[Path], None]):
    write(tmp_path, 10, 20)
    damage(tmp_path / "step_000000020")
    with pytest.raises(CheckpointError, match="step_000000020"):
        load(tmp_path / "step_000000020")
    with pytest.warns(UserWarning, match="step_000000020") as caught:
        assert_is(load_newest(tmp_path), 10)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="replaced"):  # and training on from step 10 heals it
        write(tmp_path, 20)
    assert_is(load_newest(tmp_path), 20)


def test_all_damaged(tmp_path: Path):
    write(tmp_path, 10, 20)
    truncate(tmp_path / "step_000000010")
    remove(tmp_path / "step_000000020")
    with pytest.raises(CheckpointError, match=r"(?s)step_000000020.*step_000000010"):
        load_newest(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found(data: st.DataObject):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), 7)
        path = Path(folder) / "step_000000007"
        name = data.draw(st.sampled_from(["model.safetensors", "rng.safetensors", "state.json", "manifest.json"]))
        content = bytearray((path / name).read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        (path / name).write_bytes(content)
        try:
            found = load(path)
        except CheckpointError as error:
            assert "step_000000007" in str(error)  # noqa: PT017
        else:  # only white space between the words of the manifest may change unnoticed
            assert name == "manifest.json"
            assert_is(found, 7)


# ---------------------------------------------------------------------------------------------- full disks and crashes


class Faults:
    """Lets the n-th call of os.fsync or os.rename fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException):
        self.calls, self.fail_at, self.error = 0, fail_at, error
        for name in ("fsync", "rename"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, real: Callable) -> Callable:
        def call(*arguments):
            self.calls += 1
            if self.calls == self.fail_at:
                raise self.error
            return real(*arguments)

        return call


def test_full_disk_at_every_moment(tmp_path: Path):
    fail_at = 0
    for fail_at in range(1, 20):
        folder = tmp_path / str(fail_at)
        write(folder, 10)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, fail_at, OSError(errno.ENOSPC, "No space left on device"))
            try:
                write(folder, 20, keep=1)
            except CheckpointError as error:
                assert str(folder) in str(error)  # noqa: PT017
                assert "No space left" in str(error)  # noqa: PT017
                failed = True
            else:
                failed = False
        if faults.calls < fail_at:
            break
        assert not list(folder.glob(".unfinished-*"))
        # Failing after the rename (the folder's own fsync, or pruning) leaves the new one there too.
        assert_is(load_newest(folder), 20 if not failed or (folder / "step_000000020").exists() else 10)
    assert fail_at > 6  # three files, manifest, two folders, one rename at least


def test_real_write_error(tmp_path: Path):
    write(tmp_path, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="step_000000020: cannot be written"):
            save(tmp_path, 20, {"model": {"weight": torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(os.listdir(tmp_path)) == ["step_000000010"]
    assert_is(load_newest(tmp_path), 10)


def test_unwritable_folder(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        write(tmp_path / "file", 1)


def test_leavings_of_a_crash_are_cleaned(tmp_path: Path):
    write(tmp_path, 10)
    (tmp_path / ".unfinished-abc").mkdir()
    (tmp_path / ".unfinished-abc" / "model.safetensors").write_bytes(b"half")
    assert_is(load_newest(tmp_path), 10)
    write(tmp_path, 20)
    assert sorted(os.listdir(tmp_path)) == ["step_000000010", "step_000000020"]
