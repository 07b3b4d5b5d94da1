"""Alignment beside SciPy's, and that it turns and never mirrors."""

from __future__ import annotations

import numpy
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from polydiff.core.errors import ArgumentError
from polydiff.molecules.alignment import kabsch, rmsd, rotations

SIZES = [5, 1, 9, 2, 4, 0, 3]
INDEX = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
COUNT = len(SIZES)


def clouds(seed: int) -> Tensor:
    return torch.randn(len(INDEX), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaped(name: str, seed: int) -> Tensor:
    x = clouds(seed)
    return {"space": x, "plane": x * torch.tensor([1.0, 1, 0]), "line": x * torch.tensor([0.0, 1, 0]), "point": 0 * x}[
        name
    ].double()


def proper(R: Tensor) -> None:
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand_as(R), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(len(R)).double(), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Optimal rotation is not uniquely")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("one", ["space", "plane", "line", "point"])
@pytest.mark.parametrize("two", ["space", "plane", "line"])
def test_the_best_proper_rotation_is_scipys(one: str, two: str, seed: int) -> None:
    x, y = shaped(one, seed) + 3.0, shaped(two, seed + 10) - 5.0
    R, found, moved = rotations(x, y, INDEX, COUNT), rmsd(x, y, INDEX, COUNT), kabsch(x, y, INDEX, COUNT)
    proper(R)
    for graph, size in enumerate(SIZES):
        mine = graph == INDEX
        if size == 0:
            assert found[graph] == 0
            continue
        a, b = x[mine] - x[mine].mean(0), y[mine] - y[mine].mean(0)
        best = Rotation.align_vectors(b.numpy(), a.numpy()) if size > 1 else (None, 0.0)
        turn, distance = best[0], best[1]
        assert float(found[graph]) == pytest.approx(float(distance) / size**0.5, abs=1e-7)
        if turn is not None and size > 3 and one == two == "space":
            numpy.testing.assert_allclose(R[graph].numpy(), turn.as_matrix(), atol=1e-9)
        torch.testing.assert_close(moved[mine], a @ R[graph].T + y[mine].mean(0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["space", "plane", "line"])
def test_a_turned_cloud_comes_back_exactly_and_a_mirrored_one_does_not(name: str) -> None:
    x = shaped(name, 4)
    turn = torch.from_numpy(Rotation.random(COUNT, rng=numpy.random.default_rng(1)).as_matrix())[INDEX]
    y = (turn @ x.unsqueeze(2)).squeeze(2) + torch.tensor([1.0, -20.0, 3.0])
    torch.testing.assert_close(kabsch(x, y, INDEX, COUNT), y, rtol=0, atol=1e-12)
    assert float(rmsd(x, y, INDEX, COUNT).max()) < 1e-12
    mirrored = rmsd(x, x * torch.tensor([1.0, 1.0, -1.0]), INDEX, COUNT)
    # Three points or fewer lie in a plane, and a plane's mirror image is the plane turned.
    apart = torch.tensor([size > 3 and name == "space" for size in SIZES])
    assert bool((mirrored[apart] > 0.1).all()) and float(mirrored[~apart].max()) < 1e-12


def test_each_cloud_is_aligned_by_itself_and_keeps_its_type() -> None:
    x, y = clouds(1).float(), clouds(2).float()
    both = kabsch(x, y, INDEX, COUNT)
    assert both.dtype == torch.float32 and rmsd(x, y, INDEX, COUNT).dtype == torch.float64
    third = INDEX == 2
    alone = kabsch(x[third], y[third], torch.zeros(9, dtype=torch.long), 1)
    torch.testing.assert_close(both[third], alone, rtol=0, atol=1e-6)


def test_wrong_shapes_are_named() -> None:
    for x, y, name in (
        (clouds(0)[1:], clouds(0), "x"),
        (clouds(0)[:, :2], clouds(0), "x"),
        (clouds(0), clouds(0)[1:], "y"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            kabsch(x, y, INDEX, COUNT)
