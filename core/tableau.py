r"""Solvers as tables: every explicit solver of the reverse process is rows of weights.

A row calls the denoiser on the newest state and forms the next state from the history,

    y_(i+1) = sum_j a_ij y_j + sum_j b_ij m_j + c_i z_i,    j <= i,

y_0 the initial state, m_j the beliefs (means of x_0) in the order of their calls, z_i ~ N(0, Sigma). A score or a noise
prediction at t_j is (x_t - alpha_t m)/sigma_t and so on: a linear reading of the same pair. One-step, multistep,
Runge-Kutta and predictor-corrector methods differ only in their weights, which do not depend on the states; families of
solvers are functions from a grid to rows, and `follow` is the only loop. A fitted solver is a table too.

States and beliefs are dropped after the last row that reads them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .gaussian import Belief, Gaussian
from .kernel import Path, Time
from .randomness import Randomness
from .sampling import Step, Steps

__all__ = ["Row", "follow"]


class Row(NamedTuple):
    """One new state. Weights are floats, or float64 tensors (B,)."""

    call: Time | None
    """the time at which the denoiser is called on the newest state first; None for no call"""
    states: Sequence[tuple[int, Time]]
    """(j, weight of y_j)"""
    beliefs: Sequence[tuple[int, Time]]
    """(j, weight of m_j), numbered by calls; the newest may be among them"""
    time: Time | None
    """the time that the new state belongs to, which makes it a step of the sampler; None for an inner stage"""
    noise: Time | None = None
    """weight of fresh noise from the kernel's noise law; None for none"""


def follow(
    rows: Sequence[Row],
    denoise: Callable[[Tensor, Time], Belief],
    kernel: Path[Tensor],
    x: Tensor,
    generator: Randomness = None,
) -> Steps[Tensor]:
    """Runs a table from x, yielding a step for each row that has a time.

    Args:
        rows: the table.
        denoise: (x_t, t) -> belief; only its mean is used.
        kernel: any path; rows with noise need the Gaussian.
        x: the state at the time of the first call.
        generator: one, or a list with one per example; draws the noise.
    """
    state_end, belief_end = last_uses([row.states for row in rows]), last_uses([row.beliefs for row in rows])
    old_states, old_beliefs = ended(state_end, len(rows)), ended(belief_end, len(rows))
    repeated = {j for j, uses in Counter(j for row in rows for j, _ in row.beliefs).items() if uses > 1}
    states: dict[int, Tensor] = {0: x}
    beliefs: dict[int, Belief] = {}
    calls, belief = 0, None
    for i, row in enumerate(rows):
        if row.call is not None:
            belief = denoise(x, row.call)
            if calls in belief_end:
                # A mean that is needed twice is computed once; used once, its sum stays open and costs no pass.
                beliefs[calls] = Belief(belief.mean) if calls in repeated else belief
            calls += 1
        terms = [(weight, states[j]) for j, weight in row.states]
        for j, weight in row.beliefs:
            terms.extend(beliefs[j].times(weight))
        if row.noise is None:
            x = kernel.combine(*terms)
        else:
            assert isinstance(kernel, Gaussian)
            x = kernel.noise.perturbed(row.noise, generator, *terms)
        del terms  # else they would keep states alive during the next call
        for j in old_states[i]:
            del states[j]
        for j in old_beliefs[i]:
            del beliefs[j]
        if row.time is not None:
            sent = yield Step(row.time, x, belief)
            x = x if sent is None else sent
        if i + 1 in state_end:
            states[i + 1] = x


def last_uses(columns: Sequence[Sequence[tuple[int, Time]]]) -> dict[int, int]:
    """index -> the last row that reads it."""
    return {j: i for i, column in enumerate(columns) for j, _ in column}


def ended(ends: dict[int, int], count: int) -> list[list[int]]:
    """For each of `count` rows the indices whose last use it is."""
    rows: list[list[int]] = [[] for _ in range(count)]
    for j, i in ends.items():
        rows[i].append(j)
    return rows
