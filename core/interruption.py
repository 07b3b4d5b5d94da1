"""What surrounds a long computation: signals that wait for a good moment, and the caller's randomness left alone."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, final

import numpy
import torch

__all__ = ["Interrupted", "Signals", "own_randomness"]


class Interrupted(SystemExit):
    """SIGTERM or SIGINT came, and the state was saved. Uncaught, the process exits with 128 + signal: 143 or 130.

    Attributes:
        step: steps done; a resumed run goes on from here.
        folder: of the run.
    """

    def __init__(self, signum: int, step: int, folder: Path):
        super().__init__(128 + signum)
        self.signum, self.step, self.folder = signum, step, folder


@final
class Signals:
    """Notes SIGTERM and SIGINT instead of dying of them. A second signal acts at once, as it would have without us.

    Attributes:
        received: the signal this process got, or 0.
        stop: whether any process got one, as all agreed after the last step.
    """

    def __init__(self):
        self.received, self.stop = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # only there does Python allow handlers
            self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before = {}


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's global generators (torch, numpy, random) as they were."""
    before, numbers = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(before)
        numpy.random.set_state(numbers)  # noqa: NPY002
