"""The generator's symmetries, in float64, and that it sees what it must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.core.randomness import seeded
from polydiff.molecules.generation_network import Generator, GeneratorConfig

SIZES = [5, 1, 9, 2, 4]
INDEX = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
TYPES = 4
C = torch.tensor([10.0, 300.0, 420.0, 700.0, 990.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def network() -> Generator:
    """All weights different from zero."""
    config = GeneratorConfig(types=TYPES, width=16, vectors=8, depth=2, radial=8, scale=1.4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = config.build().double()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def state(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = seeded(seed)
    x = torch.randn(sum(SIZES), 3, generator=g, dtype=torch.float64)
    return x, torch.randint(TYPES + 1, (sum(SIZES),), generator=g)


def rotation(seed: int, sign: float = 1.0) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q * (sign * torch.linalg.det(q).sign())


@torch.no_grad()
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["rotation", "reflection"])
def test_vectors_turn_with_the_molecule_and_logits_do_not(network: Generator, sign: float) -> None:
    x, types = state()
    turn = torch.stack([rotation(k, sign) for k in range(len(SIZES))])[INDEX]  # one for every molecule
    assert bool((torch.linalg.det(turn) * sign > 0.99).all())
    vectors, logits = network((x, types), C, INDEX)
    turned, same = network(((turn @ x[:, :, None]).squeeze(2), types), C, INDEX)
    assert float(vectors.abs().max()) > 0.1 and float(logits.std()) > 0.1
    torch.testing.assert_close(turned, (turn @ vectors[:, :, None]).squeeze(2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(same, logits, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_the_place_does_not_matter(network: Generator) -> None:
    x, types = state()
    shift = 100 * torch.randn(len(SIZES), 3, generator=seeded(1), dtype=torch.float64)
    for mine, other in zip(network((x + shift[INDEX], types), C, INDEX), network((x, types), C, INDEX), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_outputs_move_with_their_atoms_and_molecules(network: Generator) -> None:
    x, types = state()
    order = torch.cat([torch.randperm(n, generator=seeded(n)) + sum(SIZES[:k]) for k, n in enumerate(SIZES)])
    for mine, other in zip(network((x[order], types[order]), C, INDEX), network((x, types), C, INDEX), strict=True):
        torch.testing.assert_close(mine, other[order], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_neighbours_in_the_batch_change_nothing(network: Generator) -> None:
    x, types = state()
    whole = network((x, types), C, INDEX)
    for k in range(len(SIZES)):
        rows = k == INDEX
        alone = network((x[rows], types[rows]), C[k : k + 1], torch.zeros(SIZES[k], dtype=torch.long))
        for mine, other in zip(alone, whole, strict=True):
            torch.testing.assert_close(mine, other[rows], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_everything_is_seen(network: Generator) -> None:
    """A type, a far atom's position, and the time change the outputs of all atoms of their molecule, of no others."""
    x, types = state()
    before = torch.cat(network((x, types), C, INDEX), 1)
    first = INDEX == 0

    def changed(x: Tensor = x, types: Tensor = types, c: Tensor = C) -> Tensor:
        return (torch.cat(network((x, types), c, INDEX), 1) - before).abs().amax(1) > 1e-9

    other, far, later = types.clone(), x.clone(), C.clone()
    other[0], far[0], later[0] = (types[0] + 1) % (TYPES + 1), x[0] + torch.tensor([0.0, 0.3, 30.0]), 11.0
    for mine in (changed(types=other), changed(x=far), changed(c=later)):
        assert torch.equal(mine, first)


@torch.no_grad()
def test_outputs_are_smooth_where_atoms_meet(network: Generator) -> None:
    x, types = state()
    x[1] = x[0]
    for output in network((x, types), C, INDEX):
        assert bool(output.isfinite().all())


def test_gradients_reach_every_weight(network: Generator) -> None:
    x, types = state()
    vectors, logits = network((x, types), C, INDEX)
    loss = vectors.square().sum() + logits.square().sum()
    for name, gradient in zip(
        dict(network.named_parameters()), torch.autograd.grad(loss, list(network.parameters())), strict=True
    ):
        assert bool((gradient != 0).any()), name


def test_a_fresh_network_says_nothing() -> None:
    """Zero vectors and equal logits: the loss begins at the size of the data."""
    net = GeneratorConfig(types=TYPES, width=8, vectors=8, depth=1).build()
    x, types = state()
    vectors, logits = net((x.float(), types), C.float(), INDEX)
    assert vectors.dtype == torch.float32 and not bool(vectors.any()) and not bool(logits.any())
    assert vectors.shape == (len(INDEX), 3) and logits.shape == (len(INDEX), TYPES)


def test_the_unit_of_positions_is_the_scale(network: Generator) -> None:
    """Distances are told in Angstrom: another unit is another function."""
    x, types = state()
    other = Generator(replace(network.config, scale=0.7)).double()
    other.load_state_dict(network.state_dict())
    mine, theirs = network((x, types), C, INDEX)[1], other((x, types), C, INDEX)[1]
    assert not torch.allclose(mine, theirs, atol=1e-3)


def test_bad_input_is_named(network: Generator) -> None:
    x, types = state()
    for xs, c, index, name in (
        ((x[:, :2], types), C, INDEX, r"xs\[0\]"),
        ((x, types[1:]), C, INDEX, r"xs\[1\]"),
        ((x, types.double()), C, INDEX, r"xs\[1\]"),
        ((x, types), C[:, None], INDEX, "c"),
        ((x, types), C, INDEX[1:], "index"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}"):
            network(xs, c, index)
    for bad in (
        {"width": 13},
        {"vectors": 12},
        {"depth": 0},
        {"types": 0},
        {"scale": 0.0},
        {"width": 4096, "depth": 64},
    ):
        with pytest.raises(ConfigError):
            GeneratorConfig(**{"types": TYPES, **bad})
