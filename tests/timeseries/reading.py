"""Tables and files to read, and what is written over them."""

from typing import Any

import numpy as np
import pandas as pd

FILL = 7.25


def dates_of(reading: Any) -> Any:
    """The index of its first table."""
    return reading.index[0]


def filled(reading, value=FILL):
    """Arrays to write, other than the truth also where it is observed."""
    return [np.full(one.values.shape, value) for one in reading.series]


def table(rows=6, **columns):
    index = pd.date_range("2020-01-01", periods=rows, freq="D", name="day")
    return pd.DataFrame(columns or {"a": np.arange(rows) + 0.5, "b": np.arange(rows) * 2.0}, index=index)


def csv(tmp_path, text, name="x.csv"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name
