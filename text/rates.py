"""Rate matrices: whether a matrix is one, whether its chain has one law to end in, and which.

A rate matrix (K, K) is >= 0 off its diagonal and has rows that sum to 0: from i the chain leaves for j at rate R_ij.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..core.errors import ArgumentError

__all__ = ["as_scipy", "as_torch", "check_connected", "check_rate", "stationary"]


def check_rate(rate: Tensor) -> int:
    """K, or an ArgumentError unless rate is a rate matrix (K, K), K >= 2."""
    wrong = ArgumentError("rate", rate, "a matrix (K, K), >= 0 off the diagonal, rows that sum to 0, K >= 2")
    if rate.ndim != 2 or rate.shape[0] != rate.shape[1] or len(rate) < 2:
        raise wrong
    table = as_scipy(rate)
    away = sparse.csr_array(table - sparse.diags_array(table.diagonal(), format="csr"))
    scale = abs(table).max()
    if not (
        np.isfinite(scale) and scale > 0 and bool((away.data >= 0).all()) and abs(table.sum(1)).max() <= 1e-6 * scale
    ):
        raise wrong
    return len(rate)


def as_scipy(matrix: Tensor) -> sparse.csr_array:
    """A dense or coalesced sparse tensor as SciPy's."""
    if not matrix.is_sparse:
        return sparse.csr_array(matrix.cpu().numpy())
    return sparse.csr_array((matrix.values().cpu().numpy(), tuple(matrix.indices().cpu().numpy())), shape=matrix.shape)


def as_torch(matrix: sparse.csr_array) -> Tensor:
    """SciPy's sparse matrix as a coalesced sparse tensor."""
    table = matrix.tocoo()
    index = torch.from_numpy(np.stack([table.row, table.col]).astype(np.int64))
    return torch.sparse_coo_tensor(index, torch.from_numpy(table.data), table.shape, check_invariants=True).coalesce()


def check_connected(argument: str, table: sparse.csr_array, got: object = None) -> None:
    """An ArgumentError unless a symmetric graph is in one piece."""
    count, labels = connected_components(table, directed=False)
    if count > 1:
        sizes = sorted(np.bincount(labels).tolist())
        pieces = f"{got if got is not None else 'a matrix'} ({count} pieces, the smallest of {sizes[0]} symbols)"
        raise ArgumentError(argument, pieces, "a graph in one piece: else no chain ends where it may start from")


def stationary(rate: Tensor) -> Tensor:
    """pi with pi R = 0, exactly 0 for transient states; an ArgumentError unless there is one such law."""
    if bool((rate == rate.T).all()):
        check_connected("rate", as_scipy(rate))
        return torch.full((len(rate),), 1 / len(rate), dtype=torch.float64)
    count, labels = connected_components(as_scipy(rate), directed=True, connection="strong")
    members = torch.from_numpy(labels.astype(np.int64))
    leaves = (rate.cpu() > 0) & (members[:, None] != members)
    closed = [c for c in range(count) if not bool(leaves[members == c].any())]
    if len(closed) != 1:
        raise ArgumentError("rate", f"{len(closed)} closed classes", "one, where every chain ends")
    (inside,) = (members == closed[0]).nonzero(as_tuple=True)
    system = rate.cpu()[inside][:, inside].T.clone()
    system[-1] = 1
    pi = torch.zeros(len(rate), dtype=torch.float64)
    pi[inside] = torch.linalg.solve(system, torch.eye(len(inside), dtype=torch.float64)[-1]).clamp_min(0)
    return pi / pi.sum()
