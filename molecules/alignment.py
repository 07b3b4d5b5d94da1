r"""Rigid alignment of ragged batches of point clouds.

The rotation that brings a centred cloud x closest to a centred cloud y, point i to point i, is

    R = argmin sum_i |R x_i - y_i|^2 over proper rotations = V diag(1, 1, d) U',    sum_i x_i y_i' = U S V',

d = det(U) det(V) (Kabsch 1976; Umeyama 1991, eq. 40, for clouds in a plane or mirrored ones, which the determinant
keeps from being reflected: a molecule and its mirror image are two molecules). Where the cloud leaves part of the
rotation open (points on a line, one point) any of the best ones is returned, and it is a rotation all the same.
Everything is computed in float64, for all clouds at once. No gradient is meant to flow through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import ArgumentError

__all__ = ["kabsch", "rmsd", "rotations"]


def rotations(x: Tensor, y: Tensor, index: Tensor, num_graphs: int) -> Tensor:
    """The proper rotations that bring each cloud of x closest to that of y, (B, 3, 3) float64: y_i about R x_i.

    Args:
        x, y: (rows, 3), of one unit; each cloud is seen from its own centre.
        index: (rows,) long, whose row is whose.
        num_graphs: B; clouds without rows get a rotation, too.
    """
    check(x, y, index)
    x, y = centred(x, index, num_graphs)[0], centred(y, index, num_graphs)[0]
    products = x.new_zeros(num_graphs, 3, 3).index_add(0, index, x.unsqueeze(2) * y.unsqueeze(1))
    U, _, Vh = torch.linalg.svd(products)
    flip = torch.ones(num_graphs, 3, dtype=x.dtype, device=x.device)
    flip[:, 2] = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
    return (Vh.mT * flip.unsqueeze(1)) @ U.mT


def kabsch(x: Tensor, y: Tensor, index: Tensor, num_graphs: int) -> Tensor:
    """x with each of its clouds rotated about its centre onto that of y and put at y's centre, (rows, 3), x's dtype.

    Arguments as `rotations`. Where both are centred this is x rotated.
    """
    turn = rotations(x, y, index, num_graphs)[index]
    mine, (_, centre) = centred(x, index, num_graphs)[0], centred(y, index, num_graphs)
    return ((turn @ mine.unsqueeze(2)).squeeze(2) + centre[index]).to(x.dtype)


def rmsd(x: Tensor, y: Tensor, index: Tensor, num_graphs: int) -> Tensor:
    """Root mean square distance of points after the best alignment, (B,) float64 in the unit of x; 0 without rows."""
    moved = kabsch(x.double(), y, index, num_graphs)
    squares = moved.new_zeros(num_graphs).index_add(0, index, (moved - y).square().sum(1))
    return (squares / counts(index, num_graphs)).sqrt()


def centred(x: Tensor, index: Tensor, num_graphs: int) -> tuple[Tensor, Tensor]:
    """(x seen from the centre of its cloud (rows, 3), the centres (B, 3)), float64."""
    x = x.double()
    centre = x.new_zeros(num_graphs, x.shape[1]).index_add(0, index, x) / counts(index, num_graphs).unsqueeze(1)
    return x - centre[index], centre


def counts(index: Tensor, num_graphs: int) -> Tensor:
    """Rows per cloud, at least 1, (B,) float64."""
    return torch.bincount(index, minlength=num_graphs).clamp_min(1).double()


def check(x: Tensor, y: Tensor, index: Tensor) -> None:
    """An ArgumentError unless both are (rows, 3)."""
    if x.ndim != 2 or x.shape[1] != 3 or len(x) != len(index):
        raise ArgumentError("x", x, f"points ({len(index)}, 3)")
    if y.shape != x.shape:
        raise ArgumentError("y", y, f"points {tuple(x.shape)}, as x")
