"""The log of a run: `metrics.jsonl`, one JSON object a line, and the same figures for TensorBoard in `logs/`.

Entries carry their step. When a run resumes from step n, entries after n are taken back, for they will be written
again: so the log of an interrupted run reads like that of an uninterrupted one, each step once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, final

from .files import write_atomically

__all__ = ["FILE", "Records", "holds_records", "read_records"]

FILE = "metrics.jsonl"


def holds_records(folder: Path) -> bool:
    """Whether anything was ever logged in `folder`; a run that failed before leaves an empty log."""
    return (folder / FILE).exists() and (folder / FILE).stat().st_size > 0


def read_records(folder: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The entries of the log in `folder` up to step `last`, in order; a line cut short by a crash ends the log."""
    entries: list[dict[str, Any]] = []
    if not (folder / FILE).exists():
        return entries
    for line in (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            step = entry["step"]
        except (ValueError, TypeError, KeyError):
            break
        if last is None or step <= last:
            entries.append(entry)
    return entries


@final
class Records:
    """Appends to the log.

    Args:
        folder: of the run.
        entries: those to keep; the file is cut back to them.
        step: the step that the run (re)starts from.
    """

    def __init__(self, folder: Path, entries: list[dict[str, Any]], step: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only where it is needed

        write_atomically(folder / FILE, "".join(json.dumps(entry) + "\n" for entry in entries))
        self._file = open(folder / FILE, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(folder / "logs"), purge_step=step + 1)

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry; its `step` says where it belongs."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()  # for those who follow the file
        for name, value in entry.items():
            if name != "step":
                self._board.add_scalar(f"train/{name}", value, entry["step"])

    def synchronise(self) -> None:
        """Let all entries reach the disk, so that a checkpoint written next never knows more than the log."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()
