"""What users bring, in the order and the steps of a model, and what is drawn, in the form that they brought.

An array (N, L, K) is N series, an array (L, K) or a table one, a list any number of them, of any lengths. Tables may
have their columns in another order than the model; arrays have no names and go by place, and so does everything for a
model that was fitted to arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core.errors import ArgumentError
from ..core.wording import counted
from .frames import Reading, read
from .series import Series
from .stamps import following

__all__ = ["Taken", "taken"]


@dataclass(frozen=True, eq=False)
class Taken:
    """Series for a model, and the way back.

    Attributes:
        series: their features in the order of the model, their stamps in its steps.
        data: what came.
        reading: how it was read.
        order: of the model's features among the columns that came.
        step: of the model in seconds, 0 if unknown.
    """

    series: tuple[Series, ...]
    data: Any
    reading: Reading
    order: tuple[int, ...]
    step: float = 0.0

    def filled(self, values: Sequence[np.ndarray]) -> Any:
        """What came, its missing cells from `values`, (L, K) of each series; the rest bit for bit."""
        return self.reading.written([self.theirs(one) for one in values])

    def future(self, values: Sequence[np.ndarray]) -> Any:
        """Rows that follow, (H, K) of each series, in a form like that which came, the index continued."""
        rows = [self.theirs(one) for one in values]
        if self.is_array or isinstance(self.data, Tensor):
            whole = self.gathered(rows)
            if isinstance(self.data, Tensor):
                return torch.from_numpy(whole).to(self.data if self.data.is_floating_point() else torch.float64)
            return whole.astype(self.data.dtype) if self.data.dtype.kind == "f" else whole
        names, made = self.reading.names, []
        for one, index in zip(rows, self.reading.index, strict=True):
            made.append(one if index is None else pd.DataFrame(one, following(index, len(one), self.step), list(names)))
        if isinstance(self.data, pd.Series):
            return made[0].iloc[:, 0].rename(self.data.name)
        return made if isinstance(self.data, list | tuple) else made[0]

    def paths(self, samples: Sequence[np.ndarray]) -> Any:
        """Samples (S, T, K) of each series: (S, N, T, K) of an array of many, a list of a list, else as they are."""
        rows = [self.theirs(one) for one in samples]
        return np.stack(rows, 1) if self.is_many else rows if isinstance(self.data, list | tuple) else rows[0]

    def stacked(self, each: Sequence[Any]) -> Any:
        """Several results of `filled` or `future`: an array with one axis more of arrays, else a list."""
        if isinstance(self.data, Tensor):
            return torch.stack(list(each))
        return np.stack(each) if self.is_array else list(each)

    def quantiles(self, form: Callable[[Sequence[np.ndarray]], Any], found: Sequence[np.ndarray], q: Any) -> Any:
        """Quantiles (Q, L, K) of each series in a form, `filled` or `future`: one for a number q, else all of them."""
        each = [form([values[i] for values in found]) for i in range(len(found[0]))]
        return each[0] if np.ndim(q) == 0 else self.stacked(each)

    def gathered(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """(N, H, K) of an array of many series, (H, K) of one."""
        return np.stack(rows) if self.is_many else rows[0]

    def theirs(self, values: np.ndarray) -> np.ndarray:
        """Features in the order that came, float64."""
        if self.order == tuple(range(len(self.order))):
            return values
        return values[..., np.argsort(self.order)]

    @property
    def is_array(self) -> bool:
        return isinstance(self.data, np.ndarray)

    @property
    def is_many(self) -> bool:
        """Whether an array or tensor of several series came."""
        return isinstance(self.data, np.ndarray | Tensor) and self.data.ndim == 3


def taken(X: Any, features: Sequence[str] | None = None, step: float = 0.0, argument: str = "X") -> Taken:
    """The series of X.

    Args:
        X: what `frames.read` takes, or what it made of a file.
        features: of the model; those of the data without.
        step: of the model in seconds, in which stamps are brought; 0 for the series' own.
        argument: what X is called in messages.

    Raises:
        ArgumentError: other features than the model's.
        DataError: see `frames`.
    """
    reading = X if isinstance(X, Reading) else read(X, label=argument)
    if isinstance(X, list | tuple) and reading.index[0] is None and not isinstance(X[0], np.ndarray | Tensor):
        X = np.array(X, dtype=np.float64)  # nested lists of numbers
    names = reading.names
    features = names if features is None else tuple(features)
    order = placed(names, features, argument)
    series = tuple(replace(one, values=one.values[:, order], names=features).paced(step) for one in reading.series)
    return Taken(series, X, reading, order, step)


def placed(names: Sequence[str], features: Sequence[str], argument: str) -> tuple[int, ...]:
    """The place of each feature among the names."""
    nameless = tuple(f"feature {k}" for k in range(len(names)))
    if len(names) == len(features) and tuple(names) == nameless:  # an array, whatever its features are called
        return tuple(range(len(names)))
    if set(names) == set(features):
        return tuple(names.index(name) for name in features)
    if tuple(features) == nameless:
        return tuple(range(len(names)))
    if tuple(names) == nameless or all(name == f"feature {k}" for k, name in enumerate(features)):
        raise ArgumentError(argument, counted(len(names), "column"), f"{len(features)}, as the model has")
    lost = [name for name in features if name not in names]
    odd = [name for name in names if name not in features]
    got = (
        f"{len(names)} features" + f", without {', '.join(lost)}" * bool(lost) + f", with {', '.join(odd)}" * bool(odd)
    )
    raise ArgumentError(argument, got, f"the features of the model: {', '.join(features)}")
