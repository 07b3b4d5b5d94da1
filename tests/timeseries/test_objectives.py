"""Posing windows and the imputation loss, beside loops and the published per-cell mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core.batches import Tensors
from polydiff.core.denoisers import GaussianDenoiser, eps
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.objectives import plain, simple, uniform
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import randn, seeded
from polydiff.core.schedules import Cosine
from polydiff.core.training import train
from polydiff.timeseries.kernel import targets
from polydiff.timeseries.objectives import Imputation, pose
from polydiff.timeseries.targets import Random, share
from polydiff.timeseries.tiny import case

B, L, K = 4, 6, 3
SCHEDULE = Cosine()


def batch() -> dict[str, Tensor]:
    """Windows with gaps; the third has nothing seen, the last is two rows shorter."""
    g = torch.Generator().manual_seed(0)
    seen = torch.rand(B, L, K, generator=g) < 0.7
    seen[2] = False
    present = torch.ones(B, L, dtype=torch.bool)
    present[3, 4:] = False
    seen &= present.unsqueeze(-1)
    values = torch.randn(B, L, K, generator=g, dtype=torch.float64).masked_fill(~seen, 0)
    stamps = torch.arange(L, dtype=torch.float64).expand(B, L)
    return {"values": values, "seen": seen, "stamps": stamps, "present": present}


class Linear(nn.Module):
    """A network with two weights, of all that it is told."""

    def __init__(self, a: float = 0.3, b: float = -0.2):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor, *, observed: Tensor, known: Tensor, **rest: Tensor) -> Tensor:
        self.told = {"observed": observed, "known": known, **rest}
        return self.weights[0].to(x) * x + self.weights[1].to(x) * (observed.mean((1, 2), keepdim=True) + 1)


def objective(strategy: Any = None, per: float = 5.0, network: nn.Module | None = None, **options: Any) -> Imputation:
    denoiser = GaussianDenoiser(Linear() if network is None else network, SCHEDULE, eps)
    options.setdefault("times", uniform(0.05, 0.9))
    return Imputation(denoiser, targets(SCHEDULE), strategy or Random(), per, **options)


def own(*positions: int) -> list[torch.Generator]:
    return [seeded(4, i) for i in positions]


@pytest.mark.parametrize("blind", [True, False])
def test_a_posed_window_cell_by_cell(blind: bool) -> None:
    given = batch()
    posed = objective(blind=blind).posed(given, own(*range(B)))
    target = Random()(given["seen"], own(*range(B)), given["present"])
    assert bool(target.any())
    structure = posed["structure"]
    counted = structure.get("counted", structure["mask"])
    for i, l, k in torch.cartesian_prod(torch.arange(B), torch.arange(L), torch.arange(K)).tolist():
        place = (i, l, k)
        truth = given["values"][place]
        asked, shown = bool(target[place]), bool(given["seen"][place] & ~target[place])
        missing = bool(given["present"][i, l] & ~given["seen"][place])
        assert bool(posed["known"][place]) is shown
        assert float(posed["observed"][place]) == (float(truth) if shown else 0)
        assert float(posed["x_0"][place]) == (float(truth) if asked else 0)
        assert bool(counted[place]) is asked
        assert bool(structure["mask"][place]) is (asked or (blind and missing))
    assert torch.equal(posed["stamps"], given["stamps"])
    assert torch.equal(posed["present"], given["present"])
    whole = {name: value for name, value in given.items() if name != "present"}
    assert "present" not in objective().posed(whole, own(*range(B)))


def test_posing_for_sampling() -> None:
    """Without truth every cell that is missing is asked for, padding excepted; broken values do not matter."""
    given = batch()
    values = given["values"].masked_fill(~given["seen"], math.nan)
    posed = pose(values, given["seen"], given["stamps"], present=given["present"])
    assert torch.equal(posed["structure"]["mask"], ~given["seen"] & given["present"].unsqueeze(-1))
    assert posed["structure"].keys() == {"mask"}
    assert torch.equal(posed["observed"], given["values"])
    assert bool((posed["x_0"] == 0).all())
    padded = given["seen"] | ~given["present"].unsqueeze(-1)
    again = pose(values, padded, given["stamps"], present=given["present"])
    assert torch.equal(again["known"], given["seen"])
    assert bool(again["observed"].isfinite().all())


@pytest.mark.parametrize("weight", [simple, plain])
def test_the_loss_is_the_weighted_error_of_counted_cells(weight: Any) -> None:
    """Beside the error of the noise, from the same random numbers."""
    given, generators = batch(), own(*range(B))
    losses = objective(weight=weight).forward(given, own(*range(B))).detach()
    target = Random()(given["seen"], generators, given["present"])
    t = uniform(0.05, 0.9)(SCHEDULE, B, generators)
    z = randn((B, L, K), generators, dtype=torch.float64)
    alpha, sigma = (number.reshape(B, 1, 1) for number in SCHEDULE(t))
    known = given["seen"] & ~target
    mask = given["present"].unsqueeze(-1) & ~known
    x_t = (alpha * given["values"] * target + sigma * z) * mask
    guess = Linear()(x_t, t, observed=given["values"] * known, known=known)
    scale = 1.0 if weight is simple else (sigma / alpha) ** 2
    error = (scale * (guess - z) ** 2 * target).sum((1, 2)) / 5
    torch.testing.assert_close(losses, error.detach(), rtol=1e-9, atol=1e-12)
    assert float(losses[2]) == 0 and bool((losses[[0, 1, 3]] > 0).all())


def test_what_the_network_is_told() -> None:
    network, given = Linear(), batch()
    objective(network=network).forward({**given, "extra": torch.ones(B)}, own(*range(B)))
    assert network.told.keys() == {"observed", "known", "stamps", "present", "extra"}
    target = Random()(given["seen"], own(*range(B)), given["present"])
    assert not bool((network.told["observed"] * target).any())
    assert not bool((network.told["known"] & target).any())


def test_equal_windows_give_the_published_mean() -> None:
    """All windows with n counted cells and per = n: the batch's mean is the mean over its counted cells."""
    values = randn((B, L, K), seeded(0), dtype=torch.float64)
    full = {"values": values, "seen": torch.ones(B, L, K, dtype=torch.bool), "stamps": batch()["stamps"]}
    n = L * K // 3
    losses = objective(share(1 / 3), per=n)(full, own(*range(B))).detach()
    each_cell = objective(share(1 / 3), per=1.0)(full, own(*range(B))).detach()
    assert float(losses.mean()) == pytest.approx(float(each_cell.sum()) / (B * n), rel=1e-12)


def test_a_window_counts_by_its_cells_and_not_by_its_neighbours() -> None:
    given = batch()
    together = objective()(given, own(*range(B)))
    for i in range(B):
        alone = {name: value[i : i + 1] for name, value in given.items()}
        torch.testing.assert_close(objective()(alone, own(i))[0], together[i], rtol=1e-12, atol=0)
    torch.testing.assert_close(objective(per=10.0)(given, own(*range(B))), together / 2, rtol=1e-12, atol=0)
    # A network that says nothing leaves the noise of the counted cells, which is theirs whatever else is counted.
    first = given["seen"] & (torch.arange(K) == 0)
    asked = [{**given, "target": target} for target in (first, given["seen"] & ~first, given["seen"])]
    one, two, both = (objective(network=Linear(0.0, 0.0))(each, own(*range(B))).detach() for each in asked)
    torch.testing.assert_close(one + two, both, rtol=1e-12, atol=0)
    assert bool((one > 0)[[0, 1, 3]].all()) and bool((two > 0)[[0, 1, 3]].all())


def test_padding_that_claims_to_be_seen_is_not() -> None:
    given = batch()
    claimed = {**given, "seen": given["seen"] | ~given["present"].unsqueeze(-1)}
    one, two = (objective(share(0.5))(windows, own(*range(B))) for windows in (given, claimed))
    assert torch.equal(one, two)


def test_nothing_seen_costs_nothing_and_breaks_nothing() -> None:
    given = batch()
    nothing = {**given, "seen": torch.zeros_like(given["seen"])}
    loss = objective()
    losses = loss(nothing, own(*range(B)))
    assert losses.tolist() == [0.0] * B
    losses.mean().backward()
    gradients = [p.grad for p in loss.parameters()]
    assert all(g is not None and bool((g == 0).all()) for g in gradients)
    mixed = objective()
    mixed(given, own(*range(B))).mean().backward()
    assert all(bool(p.grad.isfinite().all()) and bool((p.grad != 0).any()) for p in mixed.parameters())  # pyright: ignore


def test_targets_that_come_along_are_used() -> None:
    """For losses of evaluation: the strategy is not asked and draws nothing."""
    given = batch()
    target = given["seen"] & (torch.arange(L) >= 3).unsqueeze(1)

    def never(seen: Tensor, generator: Any = None, present: Any = None) -> Tensor:
        raise AssertionError

    one = objective(never)({**given, "target": target}, own(*range(B)))

    def these(seen: Tensor, generator: Any = None, present: Any = None) -> Tensor:
        return target

    assert torch.equal(one, objective(these)(given, own(*range(B))))
    with pytest.raises(ArgumentError, match="target"):
        objective()({**given, "target": ~given["seen"]}, own(*range(B)))


def test_levels_are_of_the_given_cells() -> None:
    def level(values: Tensor, known: Tensor) -> Tensor:
        return (values * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)

    given, shift = batch(), torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
    target = given["seen"] & (torch.arange(L) == 1).unsqueeze(1)
    one = objective(level=level).posed({**given, "target": target})
    moved = {**given, "values": (given["values"] + shift) * given["seen"], "target": target}
    two = objective(level=level).posed(moved)
    assert bool(one["known"].any(1)[[0, 1, 3]].all())
    for name in ("x_0", "observed"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-12)
    totals = one["observed"].sum(1)
    torch.testing.assert_close(totals, torch.zeros_like(totals), rtol=0, atol=1e-12)
    expected = (given["values"] - level(given["values"], given["seen"] & ~target)) * target
    torch.testing.assert_close(one["x_0"], expected)


def test_training_does_not_depend_on_how_batches_are_split(tmp_path: Path) -> None:
    """Through core training: parts of a batch change nothing but rounding."""
    given = batch()
    ends = []
    for parts in (1, 2, 4):
        loss = objective(network=Linear())
        options = TrainingOptions(
            steps=3, batch_size=4, accumulate=parts, warmup=0, learning_rate=0.05, progress=False, cpu=True
        )
        train(loss, Tensors(**given), options, folder=tmp_path / str(parts))
        ends.append(next(iter(loss.parameters())).detach())
    assert not torch.equal(ends[0], Linear().weights)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-5, atol=1e-6)


def test_the_tiny_network_learns() -> None:
    tiny = case()
    condition: Any = tiny.condition
    given = {
        "values": tiny.x_0 + condition["observed"],
        "seen": condition["present"].unsqueeze(-1).expand_as(tiny.x_0),
        "stamps": condition["stamps"],
        "present": condition["present"],
    }
    denoiser: Any = tiny.denoiser
    loss = Imputation(denoiser, targets(denoiser.schedule), Random(), 7.0)
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    history = []
    for step in range(60):
        losses = loss(given, [seeded(step % 5, i) for i in range(3)])
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        history.append(float(losses.detach().mean()))
    assert sum(history[-5:]) < 0.9 * sum(history[:5])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"values": torch.zeros(B, L, K, dtype=torch.long)}, "values"),
        ({"values": torch.zeros(B, L)}, "values"),
        ({"seen": torch.ones(B, L, K)}, "seen"),
        ({"seen": torch.ones(B, L, K + 1, dtype=torch.bool)}, "seen"),
        ({"stamps": torch.zeros(B, L + 1)}, "stamps"),
        ({"target": torch.ones(B, L, K)}, "target"),
    ],
)
def test_bad_batches_are_named(change: Any, word: str) -> None:
    with pytest.raises(ArgumentError, match=word):
        objective()({**batch(), **change}, own(*range(B)))


def test_bad_arguments_are_named() -> None:
    given = batch()
    del given["stamps"]
    with pytest.raises(ArgumentError, match="stamps"):
        objective()(given)
    given = batch()
    with pytest.raises(ArgumentError, match="present"):
        pose(given["values"], given["seen"], given["stamps"], present=torch.ones(B, L))
    with pytest.raises(ArgumentError, match="counted"):
        pose(given["values"], given["seen"], given["stamps"], counted=given["seen"])
    for per in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="per"):
            objective(per=per)
    denoiser = GaussianDenoiser(Linear(), SCHEDULE, eps)
    with pytest.raises(ArgumentError, match="Targets"):
        Imputation(denoiser, Gaussian(SCHEDULE), Random(), 1.0)
