r"""Which seen cells a model is asked for in training: strategies that draw targets.

A window has seen cells and missing ones. Training hides some of the seen cells, the targets, and asks for them given
the rest. What is hidden decides what the model learns to answer (Tashiro et al. 2021, section 4.3 and appendix B):

    Random      a share u of the cells, u uniform in [low, high] per window     the paper's "random"
    Patterned   the cells that another window, drawn from a bank, has missing   "historical" (the training set's own
                                                                                 patterns) and "test pattern"
    Mixture     one of several strategies for each window                       "mix": Random and Patterned, evenly
    Blocks      rectangles: a stretch of time of some features                   sensors that fail together for a while
    WholeSeries some features altogether                                         sensors that are not there
    Forecast    the last rows                                                    the future
    Sparing     another strategy, some features never                            covariates, known in the future too

A strategy is called as strategy(seen, generator, present) and answers with targets within `seen`. Each window uses the
numbers of its own generator alone, and always as many, so that batches can be split and their order changed. (The
published "historical" takes the pattern of the example before.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from ..core.errors import ArgumentError
from ..core.randomness import Randomness, rand, seeded

__all__ = [
    "BANK",
    "Blocks",
    "Forecast",
    "Mixture",
    "Patterned",
    "Random",
    "Sparing",
    "Strategy",
    "WholeSeries",
    "share",
    "typical",
    "whole",
]

BANK = 4096  # windows whose gaps are learnt, and in which targets are counted


class Strategy(Protocol):
    """Draws targets."""

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        """The cells to be asked for, (B, L, K) bool, within `seen`.

        Args:
            seen: (B, L, K) bool, the cells with a truth.
            generator: one, or a list with one per window.
            present: (B, L) bool, False on the padding at the end of shorter windows; absent = all present.
        """
        ...


def share(part: float) -> Random:
    """The same share of the seen cells in every window: for evaluation at one missing rate; 1 for all of them."""
    return Random(part, part)


def typical(strategy: Strategy, seen: Tensor, present: Tensor | None = None, *, seed: int = 0) -> float:
    """The mean number of targets per window, for `Imputation(per=...)`.

    Args:
        strategy: as in training.
        seen, present: of some windows of the training data, as for strategies.
        seed: of the draw.

    Raises:
        ArgumentError: the strategy asks for nothing in any of the windows.
    """
    generators = [seeded(seed, i) for i in range(len(check_seen(seen)))]
    mean = float(strategy(seen, generators, present).sum()) / max(1, len(seen))
    if mean == 0:
        raise ArgumentError("strategy", strategy, "one that finds targets in these windows")
    return mean


def whole(seen: Tensor, present: Tensor | None = None) -> Tensor:
    """Where a window has no gap, (B, L, K) bool, for `Patterned`: seen, or padding, which is none."""
    return seen if present is None else seen | ~present.unsqueeze(-1)


@final
@dataclass(frozen=True)
class Random:
    """round(u n) of the n seen cells, all choices alike, u uniform in [low, high] per window."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ArgumentError("low, high", (self.low, self.high), "0 <= low <= high <= 1")

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        cells = check_seen(seen).flatten(1)
        u = self.low + (self.high - self.low) * numbers(seen, 1, generator)
        scores = numbers(seen, cells.shape[1], generator)
        return lowest(scores, cells, (u.squeeze(1) * cells.sum(1)).round().long()).reshape(seen.shape)


@final
@dataclass(frozen=True, eq=False)
class Patterned:
    """The seen cells that a pattern drawn from a bank has missing.

    A window that has nothing there, its own pattern drawn for instance, is asked for nothing.

    Attributes:
        patterns: (P, L, K) bool, True = given; longer ones are cut to the windows at hand. Patterns that have nothing
            missing are left out.

    Raises:
        ArgumentError: no bool (P, L, K), or no pattern with a missing cell.
    """

    patterns: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.patterns, Tensor) or self.patterns.dtype != torch.bool or self.patterns.ndim != 3:
            raise ArgumentError("patterns", self.patterns, "a bool tensor (P, L, K)")
        gaps = self.patterns[~self.patterns.flatten(1).all(1)]
        if not len(gaps):
            raise ArgumentError("patterns", self.patterns, "at least one pattern with a missing cell")
        object.__setattr__(self, "patterns", gaps)

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        rows, features = check_seen(seen).shape[1:]
        P, L, K = self.patterns.shape
        if features != K or rows > L:
            raise ArgumentError("seen", tuple(seen.shape), f"windows of at most {L} rows and of {K} features")
        place = (numbers(seen, 1, generator).squeeze(1) * P).long().to(self.patterns.device)
        return seen & ~self.patterns[place, :rows].to(seen.device)


@final
@dataclass(frozen=True)
class Mixture:
    """One of several strategies for each window.

    Attributes:
        strategies: at least one.
        weights: of their probabilities; alike by default.
    """

    strategies: tuple[Strategy, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.strategies:
            raise ArgumentError("strategies", self.strategies, "at least one")
        weights = self.weights or (1.0,) * len(self.strategies)
        sound = all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        if len(weights) != len(self.strategies) or not sound:
            raise ArgumentError("weights", self.weights, f"{len(self.strategies)} finite numbers >= 0, not all 0")
        object.__setattr__(self, "weights", tuple(weights))

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        ends = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        u = numbers(check_seen(seen), 1, generator) * ends[-1].to(seen.device)
        which = (u >= ends[:-1].to(seen.device)).sum(1)
        targets = torch.zeros_like(seen)
        # All of them draw for every window: a window's numbers must not depend on what its neighbours chose.
        for number, strategy in enumerate(self.strategies):
            targets = torch.where((which == number)[:, None, None], strategy(seen, generator, present), targets)
        return targets


@final
@dataclass(frozen=True)
class Blocks:
    """Rectangles of time and features.

    Each takes a stretch of up to `longest` of the window's rows, at least one, anywhere in it, of one feature for sure
    and of every other one with a probability that is drawn anew for each rectangle, uniform in [0, 1].

    Attributes:
        most: rectangles per window are uniform in 1 ... most.
        longest: share of the window's rows, in (0, 1]; lengths are uniform up to it.
    """

    most: int = 3
    longest: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.most, int) or self.most < 1:
            raise ArgumentError("most", self.most, "an integer >= 1")
        if not 0 < self.longest <= 1:
            raise ArgumentError("longest", self.longest, "a share in (0, 1]")

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        B, L, K = check_seen(seen).shape
        rows = lengths(seen, present).unsqueeze(1)  # (B, 1)
        count = (numbers(seen, 1, generator) * self.most).long() + 1
        u = numbers(seen, self.most * (4 + K), generator).reshape(B, self.most, 4 + K)
        length = (u[..., 0] * (self.longest * rows).ceil()).long() + 1  # (B, most)
        start = (u[..., 1] * (rows - length + 1)).long()
        sure = (u[..., 2] * K).long()
        features = u[..., 4:] < u[..., 3:4]
        features = features | (torch.arange(K, device=seen.device) == sure.unsqueeze(-1))
        place = torch.arange(L, device=seen.device)
        times = (place >= start.unsqueeze(-1)) & (place < (start + length).unsqueeze(-1))  # (B, most, L)
        times = times & (torch.arange(self.most, device=seen.device) < count).unsqueeze(-1)
        return seen & (times.unsqueeze(-1) & features.unsqueeze(-2)).any(1)


@final
@dataclass(frozen=True)
class WholeSeries:
    """All seen cells of some features: a number of them uniform in 1 ... M - 1 of the M that have any, 1 if M = 1."""

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        there = check_seen(seen).any(1)  # (B, K)
        u = numbers(seen, 1, generator).squeeze(1)
        count = (u * (there.sum(1) - 1).clamp_min(1)).long() + 1
        return seen & lowest(numbers(seen, seen.shape[2], generator), there, count).unsqueeze(1)


@final
@dataclass(frozen=True)
class Forecast:
    """The seen cells of the last rows.

    Attributes:
        horizon: how many rows.
        shortest: if given, their number is uniform in shortest ... horizon per window.
    """

    horizon: int
    shortest: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise ArgumentError("horizon", self.horizon, "an integer >= 1")
        if self.shortest is not None and not (isinstance(self.shortest, int) and 1 <= self.shortest <= self.horizon):
            raise ArgumentError("shortest", self.shortest, f"an integer in 1 ... {self.horizon}")

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        least = self.horizon if self.shortest is None else self.shortest
        u = numbers(check_seen(seen), 1, generator)
        horizon = least + (u * (self.horizon - least + 1)).long()
        future = torch.arange(seen.shape[1], device=seen.device) >= lengths(seen, present).unsqueeze(1) - horizon
        return seen & future.unsqueeze(-1)


@final
@dataclass(frozen=True)
class Sparing:
    """Another strategy that does not see some features, so that these are never asked for.

    Attributes:
        strategy: of the others.
        features: the numbers of those that are spared.
    """

    strategy: Strategy
    features: tuple[int, ...]

    def __call__(self, seen: Tensor, generator: Randomness = None, present: Tensor | None = None) -> Tensor:
        K = check_seen(seen).shape[2]
        if not all(0 <= feature < K for feature in self.features):
            raise ArgumentError("features", self.features, f"numbers in 0 ... {K - 1}")
        others = torch.ones(K, dtype=torch.bool)
        others[list(self.features)] = False
        return self.strategy(seen & others.to(seen.device), generator, present)


def check_seen(seen: Tensor) -> Tensor:
    """seen itself, or an ArgumentError unless it is a bool tensor (B, L, K)."""
    if not isinstance(seen, Tensor) or seen.dtype != torch.bool or seen.ndim != 3:
        raise ArgumentError("seen", seen, "a bool tensor (B, L, K)")
    return seen


def numbers(seen: Tensor, count: int, generator: Randomness) -> Tensor:
    """(B, count) uniform numbers in [0, 1), float64 so that no two are equal."""
    return rand((len(seen), count), generator, dtype=torch.float64, device=seen.device)


def lengths(seen: Tensor, present: Tensor | None) -> Tensor:
    """Rows per window without the padding at its end, (B,) long."""
    if present is None:
        return torch.full((len(seen),), seen.shape[1], device=seen.device)
    return ((torch.arange(seen.shape[1], device=seen.device) + 1) * present).amax(1)


def lowest(scores: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Per row the `count` (B,) lowest of the scores (B, n) in [0, 1) where `among` (B, n) is True, as a mask (B, n)."""
    scores = torch.where(among, scores, 2.0)
    last = scores.sort(1).values.gather(1, (count - 1).clamp_min(0).unsqueeze(1))
    return among & (scores <= last) & (count > 0).unsqueeze(1)
