"""Arithmetic on states beside plain tensors: what every solver's step is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core.clouds import Centred
from polydiff.core.gaussian import Belief
from polydiff.core.noise import Diagonal, Isotropic, Noise
from polydiff.core.randomness import seeded
from tests.core.cases import INDEX, B, normal

EACH = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
LAWS: dict[str, tuple[Noise, Tensor, Tensor]] = {
    "isotropic": (Isotropic(), normal(B, 2, 3), EACH[:, None, None]),
    "diagonal": (Diagonal(torch.rand(2, 3)), normal(B, 2, 3), EACH[:, None, None]),
    "centred": (Centred(INDEX, B), normal(len(INDEX), 3), EACH[INDEX, None]),
}
"""law, state, and `EACH` spread over the state by hand"""


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("first", [1.0, 0.3, EACH], ids=["one", "float", "(B,)"])
@pytest.mark.parametrize("second", [0.0, -1.7, EACH], ids=["zero", "float", "(B,)"])
def test_combine_is_the_weighted_sum(law: str, first: Any, second: Any) -> None:
    noise, x, spread = LAWS[law]
    y, z = x.flip(-1) + 1, x.square()
    before = [state.clone() for state in (x, y, z)]
    a, b = (spread if isinstance(number, Tensor) else number for number in (first, second))
    expected = a * x + b * y + 0.7 * z
    torch.testing.assert_close(noise.combine((first, x), (second, y), (0.7, z)), expected, rtol=1e-14, atol=1e-14)
    assert all(torch.equal(one, two) for one, two in zip(before, (x, y, z), strict=True))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("number", [0.3, EACH], ids=["float", "(B,)"])
def test_a_state_that_is_met_again_counts_again(law: str, number: Any) -> None:
    """The same tensor in several terms, as in a step whose belief is an open sum with x_t."""
    noise, x, spread = LAWS[law]
    y = x.flip(-1) + 1
    a = spread if isinstance(number, Tensor) else number
    combined = noise.combine((number, x), (2.0, y), (-0.9, x), (0.5, y), (number, x))
    torch.testing.assert_close(combined, (2 * a - 0.9) * x + 2.5 * y, rtol=1e-14, atol=1e-14)
    belief = Belief.sum(noise.combine, (number, x), (0.4, y))
    step = noise.combine((1.5, x), *belief.times(0.2))
    torch.testing.assert_close(step, 1.5 * x + 0.2 * (a * x + 0.4 * y), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(belief.mean, a * x + 0.4 * y, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("law", [Isotropic(), Diagonal(torch.ones(()))], ids=["isotropic", "diagonal"])
def test_dimensions_are_counted_in_any_type(law: Noise) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert law.dof(torch.zeros(2, 3, 160, 161, dtype=dtype)).tolist() == [3 * 160 * 161] * 2
    assert law.dof(torch.zeros(0, 3)).shape == (0,)


def test_dimensions_of_large_clouds_are_counted_in_any_type() -> None:
    law = Centred(torch.zeros(5001, dtype=torch.long), 1)
    assert law.dof(torch.zeros(5001, 3, dtype=torch.bfloat16)).tolist() == [15_000]


@pytest.mark.parametrize("law", LAWS)
def test_the_norm_is_the_root_of_the_squares(law: str) -> None:
    """With a gradient of 0, not NaN, where it is 0."""
    noise, x, _ = LAWS[law]
    x = noise.project(x)
    torch.testing.assert_close(noise.norm(x) ** 2, noise.squares(x), rtol=1e-14, atol=0)
    nothing = torch.zeros_like(x, requires_grad=True)
    norm = noise.norm(nothing)
    (gradient,) = torch.autograd.grad(norm.sum(), nothing)
    assert torch.equal(norm, torch.zeros_like(norm)) and torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scale", [0.3, EACH], ids=["float", "(B,)"])
def test_a_perturbed_sum_is_the_sum_and_a_draw(law: str, scale: Any) -> None:
    """No state that is given is changed, not even one that is the whole sum."""
    noise, x, spread = LAWS[law]
    before = x.clone()
    z = (spread if isinstance(scale, Tensor) else scale) * noise.draw(x, seeded(1))
    torch.testing.assert_close(noise.perturbed(scale, seeded(1), (1.0, x)), x + z, rtol=1e-14, atol=1e-14)
    y = x.flip(-1)
    torch.testing.assert_close(noise.perturbed(scale, seeded(1), (0.5, x), (-2.0, y)), 0.5 * x - 2 * y + z)
    assert torch.equal(x, before)
