"""GeoDiff's dual encoder: symmetries, the faults of the published program, and parameters that all learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rdkit import Chem
from torch import Tensor

from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.molecules.dual import DualConfig
from polydiff.molecules.graphs import batch, graph

SIZES = DualConfig(width=16, depth=2, local_depth=2, radial=8, levels=2, scale=0.5)
SMILES = ("C[C@H](O)F", "C/C=C/C", "O=CN", "[H][H]")


def network(dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    net = SIZES.build()
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return net.to(dtype)


def problem(*smiles: str, dtype: torch.dtype = torch.float64) -> dict:
    found: Any = batch([graph(Chem.AddHs(Chem.MolFromSmiles(one))) for one in smiles])
    g = torch.Generator().manual_seed(0)
    rows, count = len(found.batch), len(smiles)
    return {
        "x": torch.randn(rows, 3, generator=g, dtype=torch.float64).to(dtype),
        "c": (1000 * torch.rand(count, generator=g, dtype=torch.float64)).to(dtype),
        "graph": found,
        "level": torch.arange(count) % 2,
        "draft": (4 * torch.randn(rows, 3, generator=g, dtype=torch.float64)).to(dtype),
    }


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-10):
    assert float((got - expected).detach().abs().max()) <= tolerance * float(expected.detach().abs().max())


@pytest.mark.parametrize("drafted", [1.0, 0.0])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_equivariance(drafted, mirror):
    net, given = network(), problem(*SMILES)
    given["draft"] = drafted * given["draft"]
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    q = q * torch.linalg.det(q) * mirror
    y = net(**given)
    assert_close(net(**given | {"x": given["x"] @ q.T, "draft": given["draft"] @ q.T}), y @ q.T)
    assert_close(net(**given | {"draft": given["draft"] + 1e4}), y, 1e-9)
    # Pulls are mutual, so their sum vanishes, molecule by molecule.
    sums = torch.zeros(len(SMILES), 3, dtype=torch.float64).index_add(0, given["graph"].batch, y)
    assert float(sums.detach().abs().max()) < 1e-12 * float(y.detach().abs().max()) * len(y)


def test_permutation_and_order_of_edges():
    net, given = network(), problem("C[C@H](O)F")
    g = torch.Generator().manual_seed(1)
    order = torch.randperm(len(given["x"]), generator=g)
    new, other = order.argsort(), given["graph"].clone()
    edges = torch.randperm(other.edge_index.shape[1], generator=g)
    other.atom, other.chiral_index = other.atom[order], new[other.chiral_index]
    other.edge_index, other.edge = new[other.edge_index][:, edges], other.edge[edges]
    found = net(**given | {"x": given["x"][order], "draft": given["draft"][order], "graph": other})
    assert_close(found, net(**given)[order])


def test_batch_independence():
    net, given = network(), problem(*SMILES)
    y = net(**given)
    for k, one in enumerate(SMILES):
        mine = given["graph"].batch == k
        alone = problem(one) | {"x": given["x"][mine], "draft": given["draft"][mine]}
        assert_close(net(**alone | {"c": given["c"][k : k + 1], "level": given["level"][k : k + 1]}), y[mine])


def test_every_pair_is_seen_at_any_distance():
    net, given = network(), problem("C" * 20)
    given["draft"] = 20 * given["draft"]
    x = given["x"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(**given | {"x": x})[0].square().sum(), x)
    assert bool((slope.abs().sum(1) > 0).all())


def test_all_parameters_learn():
    torch.manual_seed(0)
    net, given = SIZES.build(), problem(*SMILES, dtype=torch.float32)
    assert not net(**given).any()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (net(**given) - given["x"].flip(1)).square().mean().backward()
        optimiser.step()
    rare = ("atoms", "kinds")  # tables: rows of what does not occur in this batch stay
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    assert any(part in name for name, _ in net.named_parameters() for part in rare)


def test_local_branch_takes_pairs_of_at_most_three_hops():
    net, given = network(), problem("CCCC")
    with torch.no_grad():
        for p in net.pull_far.parameters():
            p.zero_()
    hops = given["graph"].edge[:, 1]
    y = net(**given)
    for h in (1, 2, 3, 4, 5):
        other = given["graph"].clone()
        other.edge = other.edge.clone()
        other.edge[hops == h, 2] = 1
        assert bool((net(**given | {"graph": other}) != y).any()) == (h <= 3)


def test_time_level_and_draft_matter():
    net, given = network(), problem(*SMILES)
    y = net(**given)
    whole = {"x": given["x"] + given["draft"], "draft": torch.zeros_like(given["draft"])}
    for other in ({"c": given["c"] + 1}, {"level": 1 - given["level"]}, whole):
        assert float((net(**given | other) - y).detach().abs().max()) > 1e-6


def test_distances_are_those_of_the_geometry_in_angstrom():
    """Now: of the draft and the displacements together; before: of the draft. Both come in units of 0.5 Å."""
    net, given = network(), problem("C[C@H](O)F")
    seen: list[Tensor] = []
    net.radial.register_forward_hook(lambda module, told, found: seen.append(told[0]))
    net(**given)
    i, j = given["graph"].edge_index
    for told, x in zip(seen, (given["x"] + given["draft"], given["draft"]), strict=True):
        expected = (0.25 * (x[i] - x[j]).square().sum(1) + 0.01).sqrt()
        assert_close(told, expected)


def test_gradients_where_atoms_coincide():
    net, given = network(), problem(*SMILES)
    x = torch.zeros_like(given["x"]).requires_grad_()
    net(**given | {"x": x, "draft": torch.zeros_like(x)}).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


def test_number_of_parameters():
    for config in (SIZES, DualConfig(), DualConfig(width=6, depth=1, local_depth=3, radial=4, levels=1)):
        assert config.num_parameters == sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"width": 3}, "width"), ({"depth": 0}, "depth"), ({"local_depth": 1.5}, "local_depth"),
        ({"scale": math.inf}, "scale"),
    ],
)  # fmt: skip
def test_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        DualConfig(**values)
    given = problem(*SMILES)
    with pytest.raises(ArgumentError, match="draft"):
        network()(**given | {"draft": given["draft"][1:]})
