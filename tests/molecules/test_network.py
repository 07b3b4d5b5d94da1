"""The equivariant network: symmetries, mirror images, independence of the batch, and what reaches what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from rdkit import Chem
from torch import Tensor

from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.molecules.graphs import batch, graph
from polydiff.molecules.network import EquivariantConfig

SIZES = EquivariantConfig(width=16, vectors=8, depth=2, radial=8, levels=2, scale=0.5)
CHIRAL = ("C[C@H](O)F", "C[S@](=O)c1ccccc1", "N[C@@H](C)C(=O)O", "[H][H]")
PLAIN = ("CCO", "C/C=C/C", "O=CN")


def graphs(*smiles: str):
    return [graph(Chem.AddHs(Chem.MolFromSmiles(one))) for one in smiles]


def network(config: EquivariantConfig = SIZES, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A network all of whose parameters matter: the zero ones too are random."""
    torch.manual_seed(seed)
    net = config.build()
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return net.to(dtype)


def problem(*smiles: str, seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 4.0) -> dict:
    found: Any = batch(graphs(*smiles))
    g = torch.Generator().manual_seed(seed)
    rows, count = len(found.batch), len(smiles)
    return {
        "x": torch.randn(rows, 3, generator=g, dtype=torch.float64).to(dtype),
        "c": (1000 * torch.rand(count, generator=g, dtype=torch.float64)).to(dtype),
        "graph": found,
        "level": torch.arange(count) % 2,
        "draft": (spread * torch.randn(rows, 3, generator=g, dtype=torch.float64)).to(dtype),
    }


def rotation(seed: int = 0) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q)


def turned(given: dict, by: Tensor) -> dict:
    return given | {"x": given["x"] @ by.to(given["x"].dtype).T, "draft": given["draft"] @ by.to(given["x"].dtype).T}


def exchanged(given: dict) -> dict:
    """The mirrored chirality: two neighbours of every centre change places."""
    found = given["graph"].clone()
    found.chiral_index = found.chiral_index[[0, 2, 1, 3, 4]]
    return given | {"graph": found}


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-10):
    got, expected = got.detach(), expected.detach()
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("draft", [1.0, 0.0])
def test_equivariance(draft):
    net, given = network(), problem(*CHIRAL, *PLAIN)
    given["draft"] = draft * given["draft"]
    y = net(**given)
    assert y.shape == given["x"].shape and bool((y.abs().sum(1) > 0).all())
    by = rotation()
    assert_close(net(**turned(given, by)), y @ by.T)
    assert_close(net(**exchanged(turned(given, -by))), -y @ by.T)
    # A wrong hand is seen, by the molecules that have one only.
    mirrored, chiral = net(**turned(given, -by)) + y @ by.T, given["graph"].batch < 3
    for k in range(len(CHIRAL) + len(PLAIN)):
        difference = float(mirrored[given["graph"].batch == k].detach().abs().max())
        assert difference > 1e-3 if k < 3 else difference < 1e-10
    assert bool(chiral.any())


def test_translation():
    net, given = network(), problem(*CHIRAL)
    y = net(**given)
    assert_close(net(**given | {"draft": given["draft"] + torch.tensor([1e4, -1e4, 5e3])}), y, 1e-9)


def test_single_precision():
    net, given = network(dtype=torch.float32), problem(*CHIRAL, *PLAIN, dtype=torch.float32)
    y, by = net(**given), rotation()
    assert y.dtype == torch.float32
    assert_close(net(**turned(given, by)), y @ by.float().T, 2e-5)
    assert_close(y.double(), network()(**problem(*CHIRAL, *PLAIN)), 2e-5)


def test_permutation():
    net, given = network(), problem("C[C@H](O)F", "C/C=C/C")
    sizes = (given["graph"].ptr[1:] - given["graph"].ptr[:-1]).tolist()
    g = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(n, generator=g) + p for n, p in zip(sizes, given["graph"].ptr, strict=False)])
    new = order.argsort()
    other = given["graph"].clone()
    other.atom = other.atom[order]
    edges = torch.randperm(other.edge_index.shape[1], generator=g)
    other.edge_index, other.edge = new[other.edge_index][:, edges], other.edge[edges]
    other.chiral_index = new[other.chiral_index]
    y = net(**given)
    assert_close(net(**given | {"x": given["x"][order], "draft": given["draft"][order], "graph": other}), y[order])
    shuffled = given["graph"].clone()
    shuffled.edge_index, shuffled.edge = shuffled.edge_index[:, edges], shuffled.edge[edges]
    assert_close(net(**given | {"graph": shuffled}), y)


def test_even_permutations_of_neighbours_mean_the_same():
    net, given = network(), problem("C[C@H](O)F")
    y = net(**given)
    for rows, same in (([0, 2, 3, 1, 4], True), ([0, 4, 3, 2, 1], True), ([0, 1, 2, 4, 3], False)):
        other = given["graph"].clone()
        other.chiral_index = other.chiral_index[rows]
        difference = float((net(**given | {"graph": other}) - y).abs().max())
        assert difference < 1e-10 if same else difference > 1e-3


def test_batch_independence():
    net, given = network(), problem(*CHIRAL, *PLAIN, *CHIRAL)
    y = net(**given)
    for k, one in enumerate(graphs(*CHIRAL, *PLAIN, *CHIRAL)):
        mine = given["graph"].batch == k
        alone = net(
            given["x"][mine], given["c"][k : k + 1], batch([one]), given["level"][k : k + 1], given["draft"][mine]
        )
        assert_close(alone, y[mine])


def test_every_pair_is_seen_at_any_distance():
    net, given = network(), problem("C" * 66)  # 200 atoms
    assert len(given["x"]) == 200
    given["draft"] = 20 * given["draft"]
    x = given["x"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(**given | {"x": x})[0].square().sum(), x)
    assert bool((slope.abs().sum(1) > 0).all())
    far = given["x"].clone()
    far[-1] += 1000.0
    near = far.clone()
    near[-1, 0] += 10.0
    y = net(**given | {"x": far})
    assert 0 < float((net(**given | {"x": near}) - y)[0].abs().max()) < 0.1 * float(y[0].abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_where_atoms_coincide(dtype):
    net, given = network(dtype=dtype), problem(*CHIRAL, dtype=dtype)
    x = torch.zeros_like(given["x"]).requires_grad_()
    y = net(**given | {"x": x, "draft": torch.zeros_like(x)})
    assert bool((y == 0).all()), "no direction, no vector"
    torch.autograd.grad(y, x, torch.ones_like(y))[0].isfinite().all()
    x = (given["x"][:1].expand_as(given["x"]) + 0).requires_grad_()
    y = net(**given | {"x": x, "draft": torch.zeros_like(x)})
    y.square().sum().backward()
    assert bool(y.isfinite().all()) and x.grad is not None and bool(x.grad.isfinite().all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_untrained_output_is_zero_and_learns():
    torch.manual_seed(0)
    net, given = SIZES.build(), problem(*CHIRAL, *PLAIN, dtype=torch.float32)
    assert not net(**given).any()
    # After one step everything that the loss can feel has a gradient.
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (net(**given) - given["x"].flip(1)).square().mean().backward()
        optimiser.step()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_time_level_and_draft_matter():
    net, given = network(), problem(*PLAIN)
    y = net(**given)
    whole = {"x": given["x"] + given["draft"], "draft": torch.zeros_like(given["draft"])}  # the same geometry
    for other in ({"c": given["c"] + 1}, {"level": 1 - given["level"]}, whole):
        assert float((net(**given | other) - y).abs().max()) > 1e-6


def test_edges_matter():
    net, given = network(), problem("C/C=C/C")
    y = net(**given)
    for column in range(given["graph"].edge.shape[1]):
        other = given["graph"].clone()
        other.edge = other.edge.clone()
        other.edge[3, column] = 1 - other.edge[3, column].clamp(max=1)
        assert float((net(**given | {"graph": other}) - y).abs().max()) > 1e-6


def test_scale_is_the_unit_of_length():
    # Draft 2 in units of 0.5 Å is draft 1 in units of 1 Å: without displacements they are the same molecule.
    one, two = network(replace(SIZES, scale=0.5)), network(replace(SIZES, scale=1.0))
    given = problem(*PLAIN)
    given["x"] = torch.zeros_like(given["x"])
    assert_close(two(**given | {"draft": given["draft"] / 2}), one(**given))


def test_distances_are_those_of_the_geometry_in_angstrom():
    """Now: of the draft and the displacements together; before: of the draft. Both come in units of 0.5 Å."""
    net, given = network(), problem("C[C@H](O)F")
    seen: list[Tensor] = []
    net.radial.register_forward_hook(lambda module, told, found: seen.append(told[0]))
    net(**given)
    i, j = given["graph"].edge_index
    for told, x in zip(seen, (given["x"] + given["draft"], given["draft"]), strict=True):
        expected = (0.25 * (x[i] - x[j]).square().sum(1) + 0.01).sqrt()
        assert_close(told[0][i, j], expected)


def test_bfloat16_keeps_geometry():
    net, given = network(dtype=torch.float32), problem(*CHIRAL, dtype=torch.float32)
    exact = net(**given)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(**given)
        # A translation by 1e3 Å rounds to nothing in float32, but would to 4 Å in bfloat16.
        moved = net(**given | {"draft": given["draft"] + 1e3})
    assert y.dtype == torch.float32
    assert_close(y, exact, 0.05)
    assert_close(moved, y, 0.02)


def test_number_of_parameters():
    for config in (SIZES, EquivariantConfig(), EquivariantConfig(width=24, vectors=16, depth=1, radial=5, levels=1)):
        assert config.num_parameters == sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"width": 0}, "width"), ({"width": 17}, "width"), ({"vectors": 12}, "vectors"), ({"depth": True}, "depth"),
        ({"radial": 1}, "radial"), ({"levels": 0}, "levels"), ({"scale": math.nan}, "scale"),
        ({"width": 4096, "vectors": 4096, "depth": 64}, "network size"),
    ],
)  # fmt: skip
def test_refused_sizes(values, named):
    with pytest.raises(ConfigError, match=named):
        EquivariantConfig(**values)


@pytest.mark.parametrize("named", ["x", "c", "level", "draft"])
def test_refused_input(named):
    given = problem(*PLAIN)
    with pytest.raises(ArgumentError, match=named):
        network()(**given | {named: given[named][1:]})


def test_refused_level():
    given = problem(*PLAIN)
    with pytest.raises(ArgumentError, match="level"):
        network()(**given | {"level": torch.tensor([0, 1, 7])})
