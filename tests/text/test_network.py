"""The transformer: against attention written out, by invariance, and against the sizes it promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core.config import from_dict, to_dict
from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.core.layers import attend, attention, sinusoids
from polydiff.text.network import Cache, Rotation, Transformer, TransformerConfig

SMALL = TransformerConfig(vocabulary=5, width=16, depth=2, heads=2, length=8)
CAUSAL = TransformerConfig(vocabulary=5, width=16, depth=2, heads=2, length=8, causal=True)
CONFIGS = [
    SMALL,
    CAUSAL,
    TransformerConfig(vocabulary=5, outputs=6, width=12, depth=1, heads=3, expansion=2, tied=True, dropout=0.3),
]


def perturbed(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A network in float64 whose zero-initialised layers are not zero any more, in evaluation mode."""
    torch.manual_seed(seed)
    network = config.build().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return network


def inputs(config: TransformerConfig, batch: int = 3, length: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(config.vocabulary + 1, (batch, length), generator=generator)
    return x, torch.rand(batch, generator=generator, dtype=torch.float64) * 1000


def written_out(network: Transformer, x: Tensor, c: Tensor) -> Tensor:
    """The whole network by its formulas, place by place and head by head."""
    config, D = network.config, network.config.width // network.config.heads

    def norm(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean = h.mean(-1, keepdim=True)
        return (h - mean) / ((h - mean) ** 2).mean(-1, keepdim=True).add(1e-6).sqrt() * (1 + scale) + shift

    def turned(h: Tensor) -> Tensor:
        """(L, D): complex numbers (feature i, feature i + D/2) times e^(i place / 10000^(2 i / D))."""
        z = torch.complex(h[:, : D // 2], h[:, D // 2 :])
        rates = 10_000.0 ** (-2 * torch.arange(D // 2, dtype=torch.float64) / D)
        z = z * torch.exp(1j * torch.arange(len(h))[:, None] * rates)
        return torch.cat([z.real, z.imag], dim=1)

    rows = []
    conditioning = network.conditioning
    for tokens, one in zip(x, c, strict=True):
        e = conditioning.hidden(sinusoids(one[None], config.width).double())
        e = nn.functional.silu(conditioning.output(nn.functional.silu(e)))[0]
        h = network.embedding.weight[tokens]
        for block in network.blocks:
            numbers = (network.modulation(e) + block.table).view(6, config.width)  # pyright: ignore
            n = norm(h, numbers[0], numbers[1])
            q, k, v = block.qkv(n).split(config.width, dim=1)  # pyright: ignore
            heads = []
            for i in range(config.heads):
                own = slice(i * D, (i + 1) * D)
                scores = turned(q[:, own]) @ turned(k[:, own]).T / math.sqrt(D)
                if config.causal:
                    scores = scores + torch.full_like(scores, -math.inf).triu(1)
                heads.append(scores.softmax(1) @ v[:, own])
            h = h + numbers[2] * block.output(torch.cat(heads, 1))  # pyright: ignore
            n = norm(h, numbers[3], numbers[4])
            a = block.hidden(n)  # pyright: ignore
            h = h + numbers[5] * block.perceptron(a * 0.5 * (1 + torch.erf(a / math.sqrt(2))))  # pyright: ignore
        scale, shift = network.last(e).chunk(2)
        h = norm(h, scale, shift)
        if config.tied:
            rows.append(h @ network.embedding.weight[: config.num_outputs].T + network.bias)
        else:
            rows.append(network.output(h))
    return torch.stack(rows)


@pytest.mark.parametrize("config", CONFIGS, ids=["both ways", "causal", "tied"])
def test_network_is_its_formulas(config: TransformerConfig):
    network = perturbed(config)
    x, c = inputs(config)
    found = network(x, c)
    assert found.shape == (3, 8, config.num_outputs) and found.dtype == torch.float64
    # Angles and sinusoids are taken in float32.
    torch.testing.assert_close(found, written_out(network, x, c), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=["both ways", "causal", "tied"])
def test_sizes_and_configuration(config: TransformerConfig):
    assert config.num_parameters == sum(p.numel() for p in config.build().parameters())
    assert from_dict(TransformerConfig, to_dict(config)) == config


def test_it_starts_knowing_nothing():
    """Zero logits at every time, and blocks that pass their input on."""
    network = SMALL.build()
    x, c = inputs(SMALL)
    assert torch.equal(network(x, c.float()), torch.zeros(3, 8, 5))


def test_only_distances_count():
    """Moved together with what surrounds it, a place sees the same: rotations depend on differences alone."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    network = TransformerConfig(vocabulary=2, width=8, heads=1).build().double()

    def score(i: int, j: int) -> Tensor:
        turned = [
            Rotation.apply(a, *network.rotation(1, place, torch.float64))  # pyright: ignore
            for a, place in ((q, i), (k, j))
        ]
        return (turned[0] * turned[1]).sum()  # pyright: ignore

    torch.testing.assert_close(score(3, 1), score(40, 38), rtol=1e-5, atol=1e-5)
    assert abs(float(score(3, 1) - score(1, 3))) > 1e-3


def test_rotation_has_its_gradient():
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    angles = torch.rand(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: Rotation.apply(x, angles.cos(), angles.sin()), x)  # pyright: ignore
    assert torch.autograd.gradgradcheck(lambda x: Rotation.apply(x, angles.cos(), angles.sin()), x)  # pyright: ignore


def test_any_length_and_batch_neighbours():
    network = perturbed(SMALL)
    x, c = inputs(SMALL, batch=4, length=20)
    whole = network(x, c)
    assert whole.shape == (4, 20, 5)
    for i in range(4):
        torch.testing.assert_close(network(x[i : i + 1], c[i : i + 1])[0], whole[i])
    later = c.clone()
    later[0] += 100
    assert not torch.allclose(network(x, later)[0], whole[0])
    torch.testing.assert_close(network(x, later)[1:], whole[1:])


@pytest.mark.parametrize("config", [SMALL, CAUSAL], ids=["both ways", "causal"])
def test_who_sees_whom(config: TransformerConfig):
    network = perturbed(config)
    x, c = inputs(config, batch=1)
    before = network(x, c)[0]
    for place in range(8):
        changed = x.clone()
        changed[0, place] = (x[0, place] + 1) % 6
        differs = (network(changed, c)[0] - before).abs().amax(1) > 1e-9
        expected = torch.arange(8) >= place if config.causal else torch.ones(8, dtype=torch.bool)
        assert torch.equal(differs, expected)


@pytest.mark.parametrize("cuts", [[1] * 8, [5, 1, 2], [8], [3, 5]])
def test_cache_changes_nothing(cuts: list[int]):
    network = perturbed(CAUSAL)
    x, c = inputs(CAUSAL)
    cache = Cache(8)
    parts = [network(part, c, cache) for part in x.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), network(x, c), rtol=1e-9, atol=1e-9)
    assert cache.used == 8
    with pytest.raises(ArgumentError, match="8 places"):
        network(x[:, :1], c, cache)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_16_bits_follows_the_exact_one(causal: bool):
    """The way through that a CPU takes when it trains in bfloat16, also with fewer queries than keys."""
    generator = torch.Generator().manual_seed(0)
    for queries in (6, 2):
        q = torch.randn(2, 3, queries, 8, generator=generator)
        k, v = torch.randn(2, 2, 3, 6, 8, generator=generator)
        exact = attention(q.double(), k.double(), v.double(), causal)
        place = torch.arange(6 - queries, 6)
        seen = torch.arange(6) <= place[:, None] if causal else torch.ones(queries, 6, dtype=torch.bool)
        scores = (q @ k.mT / math.sqrt(8)).masked_fill(~seen, -math.inf)
        torch.testing.assert_close(exact.float(), scores.softmax(3) @ v, rtol=1e-4, atol=1e-5)
        short = q.bfloat16().requires_grad_()
        reduced = attention(short, k.bfloat16(), v.bfloat16(), causal)
        torch.testing.assert_close(reduced.double(), exact, rtol=0.05, atol=0.05)
        reduced.sum().backward()
        assert short.grad is not None and bool(short.grad.isfinite().all())
    qkv = torch.randn(2, 5, 24, generator=generator)
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    torch.testing.assert_close(attend(qkv, 2), attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("config", [SMALL, CAUSAL], ids=["both ways", "causal"])
def test_autocast_follows_float32(config: TransformerConfig):
    network = perturbed(config).float().train()
    x, c = inputs(config)
    exact = network(x, c.float()).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, c.float())
    assert found.dtype == torch.float32
    assert float((found.detach() - exact).norm() / exact.norm()) < 0.03
    found.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_dropout_only_in_training():
    network = perturbed(CONFIGS[2])
    x, c = inputs(CONFIGS[2])
    assert torch.equal(network(x, c), network(x, c))
    assert not torch.equal(network.train()(x, c), network(x, c))


@pytest.mark.parametrize(
    ("x", "c", "named"),
    [
        (torch.tensor([[0, 6]]), torch.zeros(1), "0 … 6"),
        (torch.tensor([[-1, 2]]), torch.zeros(1), "-1"),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2), "x:"),
        (torch.zeros(1, 2), torch.zeros(1), "x:"),
        (torch.zeros(1, 0, dtype=torch.long), torch.zeros(1), "x:"),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(2), "c:"),
        (torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, dtype=torch.long), "c:"),
    ],
)
def test_bad_input(x: Tensor, c: Tensor, named: str):
    with pytest.raises(ArgumentError, match=named):
        SMALL.build()(x, c)


def test_cache_is_for_causal_networks():
    x, c = inputs(SMALL)
    with pytest.raises(ArgumentError, match="cache"):
        SMALL.build()(x, c.float(), Cache(8))


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocabulary": 0},
        {"heads": 3},
        {"heads": 16},
        {"outputs": 7},
        {"outputs": 4},
        {"dropout": 1.0},
        {"depth": True},
        {"width": 10.0},
        {"vocabulary": 10_000_000, "width": 1024},
    ],
    ids=str,
)
def test_bad_sizes(sizes: dict[str, Any]):
    whole: dict[str, Any] = {"vocabulary": 5, "width": 16, "heads": 2}
    with pytest.raises(ConfigError):
        TransformerConfig(**whole | sizes)
