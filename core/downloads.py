"""Files from official sources: found, fetched, resumed and checked, whole or not there at all.

A download is written to `<name>.part` beside its place; an interrupted one goes on from where it stopped if the server
can (HTTP ranges, RFC 9110, section 14). Only after its checksum agrees does a rename give the file its name, so a file
that has its name is sound.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from .errors import DataError

__all__ = ["TIMEOUT", "data_folder", "download", "offline", "patience"]

TIMEOUT = 30.0
"""Seconds without an answer before a download counts as offline."""

_PIECE = 1 << 18


def data_folder(data_root: str | os.PathLike[str] | None) -> Path:
    """Where data sets lie: `data_root`, else environment variable POLYDIFF_DATA, else `~/.cache/polydiff`."""
    return Path(data_root or os.environ.get("POLYDIFF_DATA") or Path.home() / ".cache" / "polydiff").expanduser()


def offline(name: str, path: Path, problem: str, url: str, error: Exception) -> str:
    """What to tell the user whose data set `name` has a `problem` with the file `path`, whose source is `url`."""
    return (
        f"{name}: {path} {problem} ({error}). Source: {url}. Offline: point --data-root (or POLYDIFF_DATA) to a folder "
        "that has the files"
    )


@contextmanager
def patience() -> Iterator[None]:
    """Downloads of other libraries give up after TIMEOUT seconds of silence; many set no limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(name: str, url: str, path: Path, checksum: str, *, algorithm: str = "sha256", size: int) -> Path:
    """Fetch `url` to `path` unless it is there.

    Args:
        name: of the data set, for messages.
        url: http or https.
        path: of the file; its folder is made.
        checksum: hexadecimal digest of the whole file.
        algorithm: of the checksum, as hashlib names it.
        size: of the file in bytes; never more is written.

    Returns:
        `path`.

    Raises:
        DataError: the source cannot be reached, or what came has another size or checksum; `path` is not made.
    """
    if path.is_file():
        return path
    problem = "is not there and could not be downloaded"
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # several processes may want the same set
            if path.is_file():
                return path
            _fetch(url, file, size)
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != checksum:
            part.unlink()
            raise OSError(f"{algorithm} {found}, expected {checksum}")
        os.replace(part, path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(offline(name, path, problem, url, error)) from error
    finally:
        if part.is_file() and part.stat().st_size == 0:
            part.unlink(missing_ok=True)
    return path


def _fetch(url: str, file: IO[bytes], size: int) -> None:
    """Append to `file` what it lacks of the `size` bytes at `url`."""
    done = file.seek(0, os.SEEK_END)
    if done > size:
        done = file.seek(0)
        file.truncate()
    if done == size:
        return
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:
            raise
        answer = urlopen(url, timeout=TIMEOUT)
    with answer, tqdm(total=size, initial=done, unit="B", unit_scale=True, desc=Path(file.name).stem) as bar:
        if answer.status != 206 and done:  # the server sends the whole file
            done = file.seek(0)
            file.truncate()
            bar.reset()
        while piece := answer.read(_PIECE):
            done += len(piece)
            if done > size:
                file.truncate(0)
                raise OSError(f"more than the expected {size} bytes")
            file.write(piece)
            bar.update(len(piece))
    if done < size:
        raise OSError(f"{done} of {size} bytes; run it again to go on from there")
