"""Checkpoints that can be trusted: safetensors and JSON only, whole or absent, verified before use.

A checkpoint is a folder::

    step_000000030/
        model.safetensors, optimizer.safetensors, …   one file per group of named tensors
        state.json                                    everything else
        manifest.json                                 step, and size and SHA-256 of each file above

It is written to a temporary folder beside its place; every file and then the manifest reach the disk; only then does a
rename give the folder its name; the parent folder is synchronised; and only then are older checkpoints removed. So
whenever the process is killed, the disk fills up or the power fails, every folder called `step_…` is complete, and at
least one is left. What other programs or the disk itself spoil later is found by the hashes: `load_newest` names the
damaged checkpoint and takes the newest sound one. The hashes guard against accidents and careless edits, not against
somebody who rewrites the manifest as well; but nothing that is read here can execute code or leave its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from .errors import ArgumentError, CheckpointError
from .files import synchronise_folder

__all__ = ["Checkpoint", "list_steps", "load", "load_newest", "read_json", "save", "sha256", "write_tensors"]

FORMAT_VERSION = 1
LARGEST_MANIFEST = 1 << 20
LARGEST_STATE = 1 << 26

_NAME = re.compile(r"step_(\d{9,})")
_GROUP = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TEMPORARY = ".unfinished-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        path: its folder.
        step: how many steps it comes after.
        tensors: group -> name -> tensor, on the CPU.
        state: the JSON values.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    folder: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
) -> Path:
    """Write the checkpoint `folder`/step_…, then remove older ones but the last `keep`.

    A sound checkpoint of the same step that holds the same is left as it is; a damaged one is replaced.

    Args:
        folder: of all checkpoints of a run; made if missing.
        step: number of steps done.
        tensors: group -> name -> tensor; a group is a file, called by lower-case letters, digits and underscores.
        state: anything that JSON holds exactly.
        keep: how many checkpoints up to this one stay.

    Returns:
        The folder of the checkpoint.

    Raises:
        ArgumentError: an argument that cannot be used; nothing was written.
        CheckpointError: the disk is full or the folder cannot be written (earlier checkpoints are intact), or a sound
            checkpoint of this step holds something else.
    """
    parent = Path(folder)
    if step < 0:
        raise ArgumentError("step", step, "0 or more")
    if keep < 1:
        raise ArgumentError("keep", keep, "1 or more")
    for group in tensors:
        if not _GROUP.fullmatch(group):
            raise ArgumentError("tensors", group, "groups called by lower-case letters, digits and underscores")
    try:
        text = json.dumps(dict(state), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError("state", str(error), "values that JSON holds, finite numbers only") from error

    target = parent / f"step_{step:09d}"
    temporary = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _clean(parent)
        temporary = parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
        temporary.mkdir()
        for group, named in tensors.items():
            write_tensors(temporary / f"{group}.safetensors", named)
        _write(temporary / "state.json", text)
        files = {path.name: _entry(path) for path in sorted(temporary.iterdir())}
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
        _write(temporary / "manifest.json", json.dumps(manifest | {"digest": _digest(manifest)}, indent=1))
        synchronise_folder(temporary)
        if _make_way(target, files):
            os.rename(temporary, target)
            synchronise_folder(parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{target}: cannot be written ({error}); earlier checkpoints are intact") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    _prune(parent, step, keep)
    return target


def load_newest(folder: str | os.PathLike[str]) -> Checkpoint:
    """The newest sound checkpoint in `folder`; a warning names each newer one that is damaged.

    Raises:
        CheckpointError: there is none; the message names what is wrong with each that was found.
    """
    problems: list[str] = []
    for step in reversed(list_steps(folder)):
        try:
            checkpoint = load(Path(folder) / f"step_{step:09d}")
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"damaged checkpoint passed over: {problem}; {checkpoint.path} is used", stacklevel=2)
        return checkpoint
    raise CheckpointError(f"{folder}: no checkpoint that can be used" + "".join(f"; {p}" for p in problems))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint after comparing every file with the manifest.

    Raises:
        CheckpointError: something is missing, added, altered, linked or malformed; the message names the file.
    """
    path = Path(path)
    manifest = _verified(path)
    tensors = {}
    try:
        for name in manifest["files"]:
            if name.endswith(".safetensors"):
                tensors[name.removesuffix(".safetensors")] = safetensors.torch.load_file(path / name)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return Checkpoint(path, manifest["step"], tensors, read_json(path / "state.json", LARGEST_STATE))


def list_steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps of the checkpoints in `folder`, ascending, damaged ones included; empty if there is no such folder."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    matches = (_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match and match[0] == f"step_{int(match[1]):09d}")


def write_tensors(path: Path, named: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors from any device to one safetensors file that has reached the disk on return.

    Tensors that share memory (tied weights, views) are written once per name, each in full.
    """
    plain, seen = {}, set()
    for name, tensor in named.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if tensor.numel() > 0 and (storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes):
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    path.touch()
    mode = path.stat().st_mode  # as the umask wants it; safetensors would let the owner alone read the file
    safetensors.torch.save_file(plain, path, metadata)
    os.chmod(path, mode)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a regular file of at most `limit` bytes; no key twice, no NaN or infinity.

    Raises:
        CheckpointError: naming the file.
    """

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number that can be used")

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a regular file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"more than {limit} bytes")
        found = json.loads(content.decode("utf-8"), object_pairs_hook=table, parse_constant=constant)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return found


def _verified(path: Path) -> dict[str, Any]:
    """The manifest, if all that it lists is there and as listed, and nothing else."""
    if path.is_symlink():
        raise CheckpointError(f"{path}: a symbolic link instead of a folder")
    if (path / "manifest.json").is_symlink():
        raise CheckpointError(f"{path / 'manifest.json'}: a symbolic link")
    manifest = read_json(path / "manifest.json", LARGEST_MANIFEST)
    digest = manifest.pop("digest", None)
    if digest != _digest(manifest):
        raise CheckpointError(f"{path / 'manifest.json'}: altered, its digest does not fit")
    version, files = manifest.get("format_version"), manifest.get("files")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path / 'manifest.json'}: format_version {version}, expected {FORMAT_VERSION}")
    if not isinstance(files, dict) or f"step_{manifest.get('step'):>09}" != path.name or "state.json" not in files:
        raise CheckpointError(f"{path / 'manifest.json'}: does not describe {path.name}")
    for name in files:
        if not (
            name == "state.json" or (name.endswith(".safetensors") and _GROUP.fullmatch(name[: -len(".safetensors")]))
        ):
            raise CheckpointError(f"{path / 'manifest.json'}: lists {name!r}, which is not the name of a file of ours")
    present = {entry.name: entry for entry in os.scandir(path) if entry.name != "manifest.json"}
    for name in sorted(files.keys() ^ present.keys()):
        raise CheckpointError(f"{path / name}: {'missing' if name in files else 'not in the manifest'}")
    for name, recorded in files.items():
        if not present[name].is_file(follow_symlinks=False):
            raise CheckpointError(f"{path / name}: not a regular file")
        try:
            found = _entry(path / name)
        except OSError as error:
            raise CheckpointError(f"{path / name}: {error}") from error
        if found != recorded:
            raise CheckpointError(f"{path / name}: {found['bytes']} bytes that are not those of the manifest")
    return manifest


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _make_way(target: Path, files: dict[str, Any]) -> bool:
    """Whether `target` can be written: True if it is free or was damaged, False if it already holds `files`."""
    if not os.path.lexists(target):
        return True
    try:
        present = _verified(target)["files"]
    except CheckpointError as error:
        warnings.warn(f"damaged checkpoint replaced: {error}", stacklevel=3)
        _remove(target)
        return True
    if present != files:
        raise CheckpointError(f"{target}: already holds another state of the same step")
    return False


def _prune(parent: Path, step: int, keep: int) -> None:
    """Remove all but the last `keep` checkpoints up to `step`. Later ones belong to nobody and are never counted."""
    for old in [s for s in list_steps(parent) if s <= step][:-keep]:
        try:
            _remove(parent / f"step_{old:09d}")
        except OSError as error:
            warnings.warn(f"an old checkpoint could not be removed: {error}", stacklevel=3)


def _remove(path: Path) -> None:
    """Remove a checkpoint. It loses its name first, so that nobody finds half of it under a name that promises all."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    doomed = path.with_name(f"{_TEMPORARY}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _clean(parent: Path) -> None:
    """Remove what an interrupted `save` or `_remove` left."""
    for entry in os.scandir(parent):
        if entry.name.startswith(_TEMPORARY) and entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
