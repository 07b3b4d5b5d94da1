"""Frames of a run."""

from __future__ import annotations

import pytest
import torch

from polydiff.core import schedules
from polydiff.core.ancestral import ancestral
from polydiff.core.categorical import absorbing
from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.grids import uniform
from polydiff.core.randomness import seeded
from polydiff.core.sampling import Step
from polydiff.core.trajectories import frames, guesses, moments
from tests.problems import GaussianData, TokenData


@pytest.mark.parametrize(
    ("steps", "count", "numbers"),
    [
        (10, 4, [0, 3, 6, 9]),
        (9, 3, [0, 4, 8]),
        (5, 5, [0, 1, 2, 3, 4]),
        (3, 8, [0, 1, 2]),
        (7, 1, [6]),
        (0, 3, []),
    ],
)
def test_moments_are_even(steps: int, count: int, numbers: list[int]) -> None:
    assert moments(steps, count) == numbers


@pytest.mark.parametrize("steps", range(1, 40))
def test_moments_are_as_many_as_asked_for_and_nearly_equally_far(steps: int) -> None:
    for count in range(2, steps + 1):
        chosen = moments(steps, count)
        gaps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
        assert (len(chosen), chosen[0], chosen[-1]) == (count, 0, steps - 1)
        assert max(gaps) - min(gaps) <= 1


def test_a_count_is_needed() -> None:
    with pytest.raises(ArgumentError, match="count"):
        list(frames([], 0))


def test_frames_are_the_sampler_s_own_steps_with_its_noise_in_front() -> None:
    data, kernel = GaussianData.standard(), Gaussian(schedules.Cosine())
    x = kernel.prior(data.sample(3)).sample(seeded(0))
    steps = list(ddim(data.denoise(kernel), kernel, x, uniform(12)))
    shown = list(frames([Step(1.0, x, None), *steps], 5))
    assert [step.t for step in shown] == [float(uniform(12)[i]) for i in (0, 3, 6, 9, 12)]
    assert shown[0].x is x
    assert shown[-1].x is steps[-1].x
    said = list(guesses(kernel, shown))
    assert said[0] is shown[0]
    for step, guess in zip(shown[1:], said[1:], strict=True):
        assert torch.equal(guess.x, step.belief.mean)
        assert guess.t == step.t
    assert torch.equal(said[-1].x, steps[-1].x)


def test_known_totals_give_frames_while_the_sampler_runs() -> None:
    seen: list[int] = []

    def running():
        for number in range(6):
            seen.append(number)
            yield Step(1 - number / 6, number, None)

    first = next(frames(running(), 3, total=6))
    assert (first.x, seen) == (0, [0])
    assert [step.x for step in frames(running(), 3, total=6)] == [step.x for step in frames(running(), 3)]


def test_tokens_say_tokens() -> None:
    data, kernel = TokenData.standard(K=4, without=3), absorbing(schedules.RectifiedFlow(), 4, mask=3)
    x = kernel.prior(data.sample(50)).sample(seeded(0))
    shown = list(frames(ancestral(data.denoise(kernel), kernel, x, uniform(6), generator=seeded(1)), 3))
    said = list(guesses(kernel, shown, seeded(2)))
    assert (shown[0].x == 3).any()
    for step, guess in zip(shown, said, strict=True):
        assert (guess.x < 3).all()  # no mask in a guess
        assert guess.x.shape == step.x.shape
