"""Files behind the named sets: found or fetched, read out of archives, parsed once and kept as plain arrays."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from ..core.downloads import TIMEOUT, offline
from ..core.errors import DataError
from ..core.files import write_atomically

__all__ = ["blob_id", "cache_folder", "cached", "fetch", "find", "fingerprint", "members"]

_PIECE = 1 << 20
_MOST = 1 << 30
"""Bytes; no source here is longer."""


def find(root: Path, folder: str, names: Sequence[str]) -> Path | None:
    """The first of `names`, files or folders, in `root/timeseries/folder`, `root/folder` or `root`."""
    places = (root / "timeseries" / folder, root / folder, root)
    return next((place / name for place in places for name in names if (place / name).exists()), None)


def fetch(name: str, url: str, path: Path, check: Callable[[Path], object]) -> Path:
    """Fetch a file of which no checksum or size is published: its content is checked instead.

    Args:
        name: of the data set, for messages.
        url: http or https.
        path: of the file; its folder is made.
        check: raises a ValueError (a DataError is one) that says what is wrong with the file.

    Raises:
        DataError: the source cannot be reached or the check fails; `path` is not made.
    """
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # several processes may want the same set
            if path.is_file():
                return path
            file.truncate(0)
            with urlopen(url, timeout=TIMEOUT) as answer:
                while piece := answer.read(_PIECE):
                    if file.tell() + len(piece) > _MOST:
                        raise OSError(f"more than {_MOST} bytes")
                    file.write(piece)
            file.flush()
            check(part)
            os.replace(part, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        part.unlink(missing_ok=True)
        raise DataError(offline(name, path, "is not there and could not be downloaded", url, error)) from error
    return path


def blob_id(path: Path) -> str:
    """The name under which git stores a file of this content: SHA-1 of a header and the bytes."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def members(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the files that end in `suffix`: below a folder, in a tar, or in a zip and the zips in it.

    Names are without folders. Hidden files are left out.

    Raises:
        DataError: the archive cannot be read.
    """
    try:
        if path.is_dir():
            for file in sorted(path.rglob(f"*{suffix}")):
                if file.is_file() and not file.name.startswith("."):
                    yield file.name, file.read_bytes()
        elif zipfile.is_zipfile(path):
            yield from _zipped(path, suffix)
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    if member.isfile() and name.endswith(suffix) and not name.startswith("."):
                        file = archive.extractfile(member)
                        assert file is not None, "a regular file"
                        yield name, file.read()
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path}: cannot be read as an archive ({error}); delete it to have it fetched again"
        ) from error


def _zipped(file: Path | io.BytesIO, suffix: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            name = member.rpartition("/")[2]
            if name.startswith("."):
                continue
            if name.endswith(suffix):
                yield name, archive.read(member)
            elif name.endswith(".zip"):
                yield from _zipped(io.BytesIO(archive.read(member)), suffix)


def fingerprint(path: Path) -> str:
    """Of a file's content; of the names, sizes and times of the files below a folder."""
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    stats = [(file.name, file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]).encode()).hexdigest()


def cache_folder() -> Path:
    """Where parsed sets are kept: POLYDIFF_CACHE, else `$XDG_CACHE_HOME/polydiff` or `~/.cache/polydiff`."""
    own = os.environ.get("POLYDIFF_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polydiff"
    return base.expanduser() / "timeseries"


def cached(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `make` returns, kept in `cache_folder` under `key`; what is there and cannot be read is made again."""
    path = cache_folder() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        made = make()
    buffer = io.BytesIO()
    np.savez(buffer, **made)  # pyright: ignore[reportArgumentType]: its own annotation of **kwds is off
    with suppress(OSError):  # nowhere to keep it, as on a read-only disk: the next use parses again
        write_atomically(path, buffer.getvalue())
    return made
