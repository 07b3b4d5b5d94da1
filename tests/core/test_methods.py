"""Names on command lines and the objects that they mean agree."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from polydiff.core import methods, names


@pytest.mark.parametrize(
    ("literal", "table"),
    [
        (names.ScheduleName, methods.SCHEDULES),
        (names.ParametrisationName, methods.PARAMETRISATIONS),
        (names.WeightName, methods.WEIGHTS),
        (names.GridName, methods.GRIDS),
        (names.SamplerName, methods.SAMPLERS),
        (names.ReadingName, methods.READINGS),
        (names.TokenSamplerName, methods.TOKEN_SAMPLERS),
    ],
)
def test_every_name_means_something(literal: Any, table: dict[str, Any]) -> None:
    assert get_args(literal) == tuple(table)
    assert len({id(value) for value in table.values()}) == len(table)
