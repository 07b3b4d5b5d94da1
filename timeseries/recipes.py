"""How a network of time series is trained unless one says otherwise; by name, as configuration files hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from ..core.names import ParametrisationName, ScheduleName, WeightName

__all__ = ["ConditioningName", "Recipe", "SeriesScheduleName"]

SeriesScheduleName: TypeAlias = ScheduleName | Literal["csdi"]
ConditioningName: TypeAlias = Literal["log-snr", "time", "index-50"]


@final
@dataclass(frozen=True)
class Recipe:
    """What goes with a network.

    Attributes:
        schedule: of the noise.
        parametrisation: how the network's output is read.
        conditioning: what the network is told of time.
        weighting: of the loss: unweighted in what the network predicts.
        settled: why there is no choice of schedule; empty where there is.
    """

    schedule: SeriesScheduleName
    parametrisation: ParametrisationName
    conditioning: ConditioningName
    weighting: WeightName
    settled: str = ""
