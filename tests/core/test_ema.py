"""The average of the weights beside its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polydiff.core.ema import EMA
from polydiff.core.errors import ArgumentError


class Learner(nn.Module):
    """One of each kind of tensor that a network holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.zeros(2, dtype=torch.float64), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.seen: torch.Tensor

    def move(self, step: int) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.tensor([1.0, -2.0, 0.5]) * (step + 1) ** 2)
            self.frozen += 1
            self.seen += 1


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_the_average_is_the_published_recursion(decay: float) -> None:
    """m <- d m + (1 - d) w with d = min(decay, (1 + n)/(10 + n)), weight by weight in plain numbers."""
    learner = Learner()
    average, expected = EMA(learner, decay), [0.0, 0.0, 0.0]
    for n in range(120):
        learner.move(n)
        average.update(learner, n)
        d = min(decay, (1 + n) / (10 + n))
        expected = [d * m + (1 - d) * w for m, w in zip(expected, learner.weight.tolist(), strict=True)]
    assert average.module.get_parameter("weight").tolist() == pytest.approx(expected, rel=1e-10)
    assert average.module.get_parameter("frozen").tolist() == [120.0, 120.0]
    assert int(average.module.get_buffer("seen")) == 120


def test_the_warm_up_forgets_the_start() -> None:
    """After 100 steps at one place nothing is left of the random start, which a bare 0.9999 would keep."""
    learner = Learner()
    average = EMA(learner, 0.9999)
    learner.move(0)
    for n in range(100):
        average.update(learner, n)
    torch.testing.assert_close(average.module.get_parameter("weight"), learner.weight.detach(), rtol=1e-6, atol=0)
    assert average.decay_at(0) == pytest.approx(0.1) and average.decay_at(10**9) == 0.9999


def test_the_average_is_a_copy_in_evaluation_mode() -> None:
    learner = Learner()
    average = EMA(learner, 0.9)
    assert learner.training and not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    average.update(learner, 0)
    learner.move(3)
    assert average.module.get_parameter("weight").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_bad_decays_are_named(decay: float) -> None:
    with pytest.raises(ArgumentError, match="decay"):
        EMA(Learner(), decay)
