"""Root-mean-square deviation of conformers, least over rigid motions and over symmetries of the molecule.

    rmsd(x, y) = min over maps m, proper rotations R and translations b of  sqrt(sum_i |R x_i + b - y_m(i)|^2 / n)

in Å, over the maps of `automorphisms`. For each map the best rotation is Horn's (1987, J. Opt. Soc. Am. A 4:629): with
C = sum_i x_i y_m(i)^T of centred points, sum |R x - y|^2 = sum |x|^2 + sum |y|^2 - 2 lambda, lambda the largest
eigenvalue of a symmetric 4 x 4 matrix made of C; mirror images are never taken for one another. Distances below about
1e-7 Å are rounding.

Where the maps of all atoms are too many to be written out, the likeliest maps of the heavy atoms (fitted with each
group of hydrogens at its centre, which no permutation moves) are improved by turns: best permutation of every group
given the rotation, best rotation given the permutations. That is an upper bound, and `Symmetry.exact` says so.

No function here changes what it is given; coordinates are plain arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem

from ..core.errors import ArgumentError
from .automorphisms import Symmetry

__all__ = ["matched", "positions", "rmsd"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

STARTS = 4  # maps of the heavy atoms that are improved by turns where there are more
ROUNDS = 20  # turns at most; nearly all end after three
CHUNK = 1 << 20  # numbers in the largest array at once
NEWTON = 7  # steps; every one less only leaves more eigenvalues to be found
TINY = 1e-300


def positions(mol: Chem.Mol) -> Floats:
    """Coordinates of all conformers of a molecule in their order, whatever their ids, Å: a copy, (C, N, 3)."""
    found = [conformer.GetPositions() for conformer in mol.GetConformers()]
    return np.array(found, dtype=np.float64).reshape(len(found), mol.GetNumAtoms(), 3)


def rmsd(x: Floats, y: Floats, symmetry: Symmetry) -> Floats:
    """Distances between all conformers of two ensembles of a molecule.

    Args:
        x, y: (A, N, 3) and (B, N, 3), Å, atoms in the molecule's order.
        symmetry: of the molecule, from `symmetry`.

    Returns:
        (A, B), Å.

    Raises:
        ArgumentError: shapes that do not fit the molecule, or coordinates that are not finite.
    """
    return matched(x, y, symmetry)[0]


def matched(x: Floats, y: Floats, symmetry: Symmetry) -> tuple[Floats, Indices]:
    """Distances as `rmsd` gives them, and the maps behind them.

    Returns:
        (A, B), Å, and (A, B, n): which atom of y atom `symmetry.atoms[i]` of x lies on.
    """
    x, y = _checked("x", x, symmetry), _checked("y", y, symmetry)
    shape = (len(x), len(y))
    distances, chosen = np.zeros(shape), np.zeros((*shape, len(symmetry.atoms)), dtype=np.int64)
    if 0 in shape:
        return distances, chosen
    inverse = np.zeros(symmetry.num_atoms, dtype=np.int64)
    inverse[symmetry.atoms] = np.arange(len(symmetry.atoms))
    maps = inverse[symmetry.maps]
    x, y = (_centred(z[:, symmetry.atoms]) for z in (x, y))
    size = max(1, CHUNK // (16 * len(y)))
    for rows in (slice(i, i + size) for i in range(0, len(x), size)):
        if symmetry.groups:
            overlap, best = _by_turns(x[rows], y, maps, symmetry.groups)
        else:
            overlap, order = _best_map(x[rows], y, maps)
            best = maps[order]
        squares = (x[rows] ** 2).sum((1, 2))[:, None] + (y**2).sum((1, 2)) - 2 * overlap
        distances[rows] = np.sqrt(np.maximum(squares, 0) / len(symmetry.atoms))
        chosen[rows] = symmetry.atoms[best]
    return distances, chosen


# ----------------------------------------------------------------------------------------------------- rotations


def _checked(name: str, x: Floats, symmetry: Symmetry) -> Floats:
    """An array in float64, if it fits."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 3 or x.shape[1:] != (symmetry.num_atoms, 3):
        raise ArgumentError(name, x, f"coordinates of shape (conformers, {symmetry.num_atoms}, 3)")
    if not np.isfinite(x).all():
        raise ArgumentError(name, "coordinates that are not finite", "finite ones: leave failures out, and count them")
    return x


def _centred(x: Floats) -> Floats:
    return x - x.mean(-2, keepdims=True)


def _horn(covariance: Floats) -> Floats:
    """Horn's matrices (..., 4, 4) of sums of x y^T (..., 3, 3)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = ([covariance[..., i, j] for j in range(3)] for i in range(3))
    rows = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _covariances(x: Floats, y: Floats, maps: Indices) -> Iterator[tuple[int, Floats]]:
    """Chunks of maps: where each begins, and sums of x y^T (k, A, B, 3, 3)."""
    a, b, n = len(x), len(y), x.shape[1]
    size = max(1, CHUNK // (b * n * 3 + a * b * 16))
    left = x.transpose(0, 2, 1).reshape(a * 3, n)
    for i in range(0, len(maps), size):
        part = maps[i : i + size]
        right = y[:, part].transpose(1, 2, 0, 3).reshape(len(part), n, b * 3)
        yield i, (left @ right).reshape(len(part), a, 3, b, 3).transpose(0, 1, 3, 2, 4)


def _largest(covariance: Floats) -> Floats:
    """Largest eigenvalues of Horn's matrices (...,) of sums of x y^T (..., 3, 3)."""
    return np.linalg.eigvalsh(_horn(covariance))[..., -1].astype(np.float64, copy=False)


def _at_most(covariance: Floats) -> Floats:
    """Upper bounds of `_largest`, about ten times faster; loose, by one in a hundred, where two eigenvalues are equal.

    The eigenvalues are the roots of l^4 - 2 p l^2 - 8 d l + p^2 - 4 q with p = |C|^2, d = det C, q = |cofactors of C|^2
    (Theobald 2005, Acta Cryst. A61:478). All are real, so that Newton's steps from sqrt(3 p), above the largest, come
    down to it and never pass it.
    """
    rows = [[covariance[..., i, j] for j in range(3)] for i in range(3)]
    minors = [
        rows[(i + 1) % 3][(j + 1) % 3] * rows[(i + 2) % 3][(j + 2) % 3]
        - rows[(i + 1) % 3][(j + 2) % 3] * rows[(i + 2) % 3][(j + 1) % 3]
        for i in range(3)
        for j in range(3)
    ]
    p = (covariance**2).sum((-2, -1))
    d = rows[0][0] * minors[0] + rows[0][1] * minors[1] + rows[0][2] * minors[2]
    last = p * p - 4 * sum(minor * minor for minor in minors)
    bound = np.sqrt(3 * p)
    for _ in range(NEWTON):
        slope = 4 * bound * (bound * bound - p) - 8 * d
        value = ((bound * bound - 2 * p) * bound - 8 * d) * bound + last
        bound = bound - np.maximum(value, 0) / np.maximum(slope, TINY)
    return bound


def _best_map(x: Floats, y: Floats, maps: Indices) -> tuple[Floats, Indices]:
    """The largest overlaps over the maps and which maps they are, both (A, B).

    Eigenvalues are found from the highest bound down, until no bound is left above the best of them.
    """
    shape = len(x), len(y)
    values, order = np.full(shape, -np.inf), np.zeros(shape, dtype=np.int64)
    for start, covariance in _covariances(x, y, maps):
        bound = np.full((1, *shape), np.inf)  # of one map there is nothing to spare
        if len(covariance) > 1:
            bound = _at_most(covariance) * (1 + 1e-9)
        while True:
            likeliest = bound.argmax(0)[None]
            open_ = np.nonzero(np.take_along_axis(bound, likeliest, 0)[0] > values)
            if not len(open_[0]):
                break
            which = likeliest[0][open_]
            found = _largest(covariance[which, *open_])
            bound[which, *open_] = -np.inf
            better = found > values[open_]
            places = open_[0][better], open_[1][better]
            values[places], order[places] = found[better], start + which[better]
    return values, order


def _likely_maps(x: Floats, y: Floats, maps: Indices, count: int) -> Indices:
    """Which maps have the largest overlaps, best first, (count, A, B)."""
    values, order = np.zeros((0, len(x), len(y))), np.zeros((0, len(x), len(y)), dtype=np.int64)
    for start, covariance in _covariances(x, y, maps):
        numbers = np.broadcast_to(np.arange(start, start + len(covariance))[:, None, None], covariance.shape[:3])
        values, order = np.concatenate([values, _at_most(covariance)]), np.concatenate([order, numbers])
        best = np.argsort(-values, axis=0, kind="stable")[:count]
        values, order = np.take_along_axis(values, best, 0), np.take_along_axis(order, best, 0)
    return order


def _by_turns(x: Floats, y: Floats, maps: Indices, groups: tuple[Indices, ...]) -> tuple[Floats, Indices]:
    """Largest overlaps (A, B) and maps (A, B, n) found by turns of rotation and permutation of the groups."""
    flat = np.eye(x.shape[1])
    for group in groups:
        flat[np.ix_(group, group)] = 1 / len(group)
    order = _likely_maps(flat @ x, flat @ y, maps, STARTS)
    shape = order.shape
    left = np.broadcast_to(x[None, :, None], (*shape, *x.shape[1:])).reshape(-1, *x.shape[1:])
    right = np.broadcast_to(y[None, None], (*shape, *y.shape[1:])).reshape(-1, *y.shape[1:])
    chosen = maps[order].reshape(len(left), -1)
    pairs = np.arange(len(left))[:, None]
    overlap, rotated = _rotated(flat @ left, flat @ right[pairs, chosen], left)
    overlap = np.full_like(overlap, -np.inf)
    for _ in range(ROUNDS):
        for group in groups:
            products = rotated[:, group] @ right[pairs, chosen[:, group]].transpose(0, 2, 1)
            orders = np.array(list(permutations(range(len(group)))))
            sums = products[:, np.arange(len(group)), orders].sum(-1)
            chosen[:, group] = np.take_along_axis(chosen[:, group], orders[sums.argmax(1)], 1)
        before = overlap
        overlap, rotated = _rotated(left, right[pairs, chosen], left)
        if (overlap <= before + 1e-12).all():
            break
    overlap, chosen = overlap.reshape(shape), chosen.reshape(*shape, -1)
    best = overlap.argmax(0)[None]
    return np.take_along_axis(overlap, best, 0)[0], np.take_along_axis(chosen, best[..., None], 0)[0]


def _rotated(x: Floats, y: Floats, moved: Floats) -> tuple[Floats, Floats]:
    """Overlaps (P,) of x (P, n, 3) with y in the best rotations, and `moved` in these rotations."""
    values, vectors = np.linalg.eigh(_horn(x.transpose(0, 2, 1) @ y))
    w, i, j, k = vectors[..., -1].T
    rotation = np.stack(
        [
            np.stack([1 - 2 * (j * j + k * k), 2 * (i * j - k * w), 2 * (i * k + j * w)], -1),
            np.stack([2 * (i * j + k * w), 1 - 2 * (i * i + k * k), 2 * (j * k - i * w)], -1),
            np.stack([2 * (i * k - j * w), 2 * (j * k + i * w), 1 - 2 * (i * i + j * j)], -1),
        ],
        -2,
    )
    return values[..., -1], moved @ rotation.transpose(0, 2, 1)
