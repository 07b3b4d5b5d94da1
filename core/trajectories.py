"""Frames of a sampler's run for pictures and movies: the state and the belief at evenly spaced moments, for any state.

A sampler is a generator of steps, so a movie is a selection of them. `guesses` turns beliefs into states, which can be
shown as the states themselves are: what the model would say if it had to stop there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from .errors import ArgumentError
from .kernel import Kernel
from .randomness import Randomness
from .sampling import Step

__all__ = ["frames", "guesses", "moments"]

X = TypeVar("X")


def moments(steps: int, count: int) -> list[int]:
    """`count` numbers among 0 ... steps - 1, evenly spaced, first and last among them (the last alone for count 1).

    All numbers where count is larger than steps.
    """
    if not isinstance(count, int) or count < 1:
        raise ArgumentError("count", count, "an integer >= 1")
    if count >= steps:
        return list(range(steps))
    return [steps - 1] if count == 1 else [round(i * (steps - 1) / (count - 1)) for i in range(count)]


def frames(steps: Iterable[Step[X]], count: int, total: int | None = None) -> Iterator[Step[X]]:
    """`count` of a run's steps, evenly spaced, the last among them.

    Args:
        steps: a sampler, or any steps; put `Step(times[0], x, None)` before them to see the noise too.
        count: how many to show.
        total: the number of steps; where it is known, frames come while the sampler runs and nothing is stored.
    """
    if total is None:
        steps = list(steps)
        total = len(steps)
    chosen = set(moments(total, count))
    for number, step in enumerate(steps):
        if number in chosen:
            yield step


def guesses(kernel: Kernel[X, Any], steps: Iterable[Step[X]], generator: Randomness = None) -> Iterator[Step[X]]:
    """The same steps with the belief's own x_0 in the state's place (tokens are drawn); those without belief as is."""
    for step in steps:
        yield step if step.belief is None else step._replace(x=kernel.conclude(step.belief, generator))
