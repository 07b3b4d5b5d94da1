"""The pipeline in the interfaces of scikit-learn and sktime.

    DiffusionImputer().fit_transform(X)                       # in place of SimpleImputer, IterativeImputer, …
    DiffusionForecaster().fit(y, fh=range(1, 25)).predict()
    forecaster.predict_interval(coverage=[0.5, 0.9])          # columns (variable, coverage, "lower" | "upper")

Unlike the imputers of scikit-learn, which know no order of rows, these take rows as times: they must come in order, and
what is filled into one depends on its neighbours. sktime is not imported; its horizons are understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias, final

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..core.errors import ArgumentError
from ..core.options import TrainingOptions
from .horizons import following, joined, levels_of, names_of, steps_of, timed

__all__ = ["DiffusionForecaster", "DiffusionImputer"]

Table: TypeAlias = "pd.Series | pd.DataFrame"


@final
class DiffusionImputer(TransformerMixin, BaseEstimator):
    """Fills gaps (NaN) of a table whose rows are times; a transformer of scikit-learn.

    Args:
        window, level, network, options: of training, see `ImputationPipeline.fit`; None for what suits the data.
        pipeline: a fitted pipeline, which is used as it is, `fit` then learning no more than the columns; None trains
            one.
        count: of samples.
        point: what of them is filled in, "median" or "mean".
        steps: network calls.
        seed: of everything random.

    Attributes:
        pipeline_: the fitted pipeline: quantiles and sample paths are to be had from it.
        n_features_in_, feature_names_in_: as in scikit-learn.
    """

    n_features_in_: int

    def __init__(
        self,
        *,
        window: int | None = None,
        level: Literal["series", "window"] | None = None,
        network: Any = None,
        options: TrainingOptions | None = None,
        pipeline: Any = None,
        count: int = 100,
        point: Literal["median", "mean"] = "median",
        steps: int = 10,
        seed: int = 0,
    ) -> None:
        self.window = window
        self.level: Literal["series", "window"] | None = level
        self.network = network
        self.options = options
        self.pipeline = pipeline
        self.count = count
        self.point = point
        self.steps = steps
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the observed cells.

        Args:
            X: array or DataFrame (L, K), NaN = missing; the index of a DataFrame, if of dates, is time.
            y: not used.

        Raises:
            ValueError: X cannot be used.
        """
        rows = self._rows(X, reset=True)
        self.pipeline_ = _fitted(self, rows)
        return self

    def transform(self, X: Any) -> Any:
        """X with its gaps filled, observed cells as they came: an array (L, K), or what `set_output` asks for.

        Raises:
            ValueError: X cannot be used.
        """
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        filled = self.pipeline_.impute(rows, count=self.count, point=self.point, steps=self.steps, seed=self.seed)
        return np.asarray(filled)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, which are those that came."""
        check_is_fitted(self)
        known = getattr(self, "feature_names_in_", None)
        if input_features is None:
            return np.array([f"x{k}" for k in range(self.n_features_in_)], dtype=object) if known is None else known
        names = np.asarray(input_features, dtype=object)
        if names.shape != (self.n_features_in_,):
            raise ValueError(f"input_features should have length equal to number of features ({self.n_features_in_})")
        if known is not None and not (names == known).all():
            raise ValueError("input_features is not equal to feature_names_in_")
        return names

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _rows(self, X: Any, *, reset: bool) -> Any:
        """X as the pipeline takes it: floats, checked against the columns of `fit`."""
        # A copy: the pipeline's results may share memory with what it was given.
        values = validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan", copy=True
        )
        if not isinstance(X, pd.DataFrame):
            return values
        return pd.DataFrame(values, index=X.index, columns=[str(column) for column in X.columns])


@final
class DiffusionForecaster(BaseEstimator):
    """Forecasts with quantiles and intervals, in the interface of sktime's forecasters.

    Forecasts start after the last row that `fit` or `update` has seen. Gaps (NaN) are allowed. Rows are steps: the
    index must be of integers, dates or periods at equal distances (or a frequency of the calendar).

    Args:
        window, level, network, options, pipeline, count, point, steps, seed: as of `DiffusionImputer`.

    Attributes:
        pipeline_: the fitted pipeline.
    """

    _y: Table
    _X: pd.DataFrame | None
    _fh: np.ndarray | None

    def __init__(
        self,
        *,
        window: int | None = None,
        level: Literal["series", "window"] | None = None,
        network: Any = None,
        options: TrainingOptions | None = None,
        pipeline: Any = None,
        count: int = 100,
        point: Literal["median", "mean"] = "median",
        steps: int = 10,
        seed: int = 0,
    ) -> None:
        self.window = window
        self.level: Literal["series", "window"] | None = level
        self.network = network
        self.options = options
        self.pipeline = pipeline
        self.count = count
        self.point = point
        self.steps = steps
        self.seed = seed

    def fit(self, y: Table, X: pd.DataFrame | None = None, fh: Any = None) -> Self:
        """Train on y.

        Args:
            y: Series, or DataFrame (L, K) of several variables.
            X: (L, C), covariates whose future will be known, with the index of y.
            fh: horizon of `predict` and its like where they are not given one.

        Raises:
            ArgumentError: y, X or fh cannot be used.
        """
        rows = joined(y, X)
        steps = None if fh is None else steps_of(fh, y.index)
        covariates = () if X is None else tuple(str(name) for name in X.columns)
        pipeline = _fitted(self, timed(rows, self.pipeline), covariates)
        self._y, self._X, self._fh, self.pipeline_ = y.copy(), None if X is None else X.copy(), steps, pipeline
        return self

    def update(self, y: Table, X: pd.DataFrame | None = None) -> Self:
        """Take in rows that follow, without training; forecasts start after them.

        Raises:
            ArgumentError: other variables, or rows that do not follow.
        """
        check_is_fitted(self, "pipeline_")
        if type(y) is not type(self._y) or names_of(y) != names_of(self._y):
            raise ArgumentError("y", y, f"a {type(self._y).__name__} with the variables {names_of(self._y)}")
        if (X is None) != (self._X is None) or (X is not None and names_of(X) != names_of(self._X)):
            raise ArgumentError("X", X, "the covariates of fit")
        longer = pd.concat([self._y, y])
        further = None if X is None or self._X is None else pd.concat([self._X, X])
        joined(longer, further)
        self._y, self._X = longer, further
        return self

    @property
    def cutoff(self) -> Any:
        """The last time that was seen."""
        check_is_fitted(self, "pipeline_")
        return self._y.index[-1]

    def predict(self, fh: Any = None, X: pd.DataFrame | None = None) -> Table:
        """Point forecasts, in the form of y.

        Args:
            fh: steps after the last row (1 = the next), one or several, or times; a ForecastingHorizon; None for that
                of `fit`.
            X: the future of the covariates: every row from the next one to the last of fh, at least.

        Raises:
            ArgumentError: fh or X cannot be used.
        """
        found, index = self._forecast(fh, X, None)
        if isinstance(self._y, pd.Series):
            return pd.Series(found[0][:, 0], index=index, name=self._y.name)
        return pd.DataFrame(found[0], index=index, columns=self._y.columns)

    def predict_quantiles(
        self, fh: Any = None, X: pd.DataFrame | None = None, alpha: float | Sequence[float] = (0.05, 0.95)
    ) -> pd.DataFrame:
        """Quantile forecasts with columns (variable, alpha); a Series without a name is variable 0.

        Args:
            fh, X: as in `predict`.
            alpha: levels from 0 to 1.

        Raises:
            ArgumentError: fh, X or alpha cannot be used.
        """
        levels = levels_of("alpha", alpha)
        found, index = self._forecast(fh, X, levels)
        columns = pd.MultiIndex.from_product([names_of(self._y), levels])
        return pd.DataFrame(found.transpose(1, 2, 0).reshape(len(index), -1), index=index, columns=columns)

    def predict_interval(
        self, fh: Any = None, X: pd.DataFrame | None = None, coverage: float | Sequence[float] = 0.9
    ) -> pd.DataFrame:
        """Central intervals with columns (variable, coverage, "lower" or "upper").

        Args:
            fh, X: as in `predict`.
            coverage: from 0 to 1.

        Raises:
            ArgumentError: fh, X or coverage cannot be used.
        """
        levels = levels_of("coverage", coverage)
        ends = [end for level in levels for end in ((1 - level) / 2, (1 + level) / 2)]
        found, index = self._forecast(fh, X, ends)
        columns = pd.MultiIndex.from_product([names_of(self._y), levels, ["lower", "upper"]])
        return pd.DataFrame(found.transpose(1, 2, 0).reshape(len(index), -1), index=index, columns=columns)

    def _forecast(self, fh: Any, X: pd.DataFrame | None, levels: list[float] | None) -> tuple[np.ndarray, pd.Index]:
        """Forecasts (Q, H, K), Q = 1 for points, and their times."""
        check_is_fitted(self, "pipeline_")
        if fh is None and self._fh is None:
            raise ArgumentError("fh", None, "a horizon, here or in fit")
        steps = self._fh if fh is None else steps_of(fh, self._y.index)
        assert steps is not None
        horizon = int(steps.max())
        index = following(self._y.index, horizon)
        rows = timed(joined(self._y, self._X), self.pipeline_)
        if (X is None) != (self._X is None):
            raise ArgumentError("X", X, "covariates if, and only if, fit had them")
        future = None
        if X is not None:
            if not isinstance(X, pd.DataFrame) or names_of(X) != names_of(self._X) or not index.isin(X.index).all():
                raise ArgumentError("X", X, f"columns {names_of(self._X)} and rows from {index[0]} to {index[-1]}")
            future = timed(X.loc[index].set_axis([str(name) for name in X.columns], axis=1), self.pipeline_)
        found = self.pipeline_.forecast(
            rows, horizon, covariates=future, quantiles=levels, count=self.count, point=self.point, steps=self.steps,
            seed=self.seed,
        )  # fmt: skip
        each = np.stack([np.asarray(one, dtype=np.float64) for one in (found if levels is not None else [found])])
        return each[:, steps - 1, : len(names_of(self._y))], index[steps - 1]


def _fitted(adapter: DiffusionImputer | DiffusionForecaster, rows: Any, covariates: tuple[str, ...] = ()) -> Any:
    """The adapter's pipeline, or one that is trained on rows."""
    if adapter.pipeline is not None:
        return adapter.pipeline
    from .pipeline import ImputationPipeline  # here: parameters can be set and searched without loading the networks

    return ImputationPipeline().fit(
        rows, window=adapter.window, level=adapter.level, covariates=covariates, network=adapter.network,
        options=adapter.options, seed=adapter.seed,
    )  # fmt: skip
