"""Writing files so that nobody ever reads half of one.

The bytes go to a temporary file in the same folder, reach the disk, and only then take the name (rename is atomic
within a file system); the folder is synchronised last, so that the name survives a power cut too.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["synchronise_folder", "write_atomically"]


def synchronise_folder(folder: str | os.PathLike[str]) -> None:
    """Let the names in `folder` reach the disk (nothing to do where folders cannot be opened, as on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all; missing folders are made.

    What is there and no regular file (a device, a pipe) is written into, not replaced.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.write(data)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    synchronise_folder(path.parent)
