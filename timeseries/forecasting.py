"""Forecasts: series with rows more, of which nothing is known but covariates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.errors import ArgumentError, check_counts
from .model import SeriesConfig
from .series import Series
from .stitching import Stretch, ahead
from .tables import taken

__all__ = ["prolonged"]


def prolonged(
    series: Sequence[Series], config: SeriesConfig, horizon: int, covariates: Any
) -> tuple[list[Series], list[list[list[Stretch]]]]:
    """The series with `horizon` rows more, and the windows that fill those.

    Args:
        series: of the model's features.
        config: of the model.
        horizon: rows.
        covariates: what is known of them, see `ImputationPipeline.forecast`.

    Raises:
        ArgumentError: no horizon, or covariates that are not those of the model, or of other rows.
    """
    check_counts(horizon=horizon)
    names = config.covariates
    if not names and covariates is not None:
        raise ArgumentError("covariates", covariates, "None: this model was trained without covariates")
    if names and covariates is None:
        raise ArgumentError("covariates", None, f"the next {horizon} rows of {', '.join(names)}")
    known = [one.values for one in taken(covariates, names, argument="covariates").series] if names else []
    if names and (len(known) != len(series) or any(len(one) != horizon for one in known)):
        got = [one.shape for one in known[:4]]
        raise ArgumentError("covariates", got, f"{horizon} rows for each of {len(series)} series")
    columns = [config.features.index(name) for name in names]
    longer: list[Series] = []
    for i, one in enumerate(series):
        rows = np.full((horizon, one.values.shape[1]), np.nan)
        if names:
            rows[:, columns] = known[i]
        longer.append(one.prolonged(rows))
    return longer, [ahead(len(one), horizon, config.window) for one in series]
