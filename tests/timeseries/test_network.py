"""The network of time series in float64: its symmetries, its side, padding, irregular times, and that it sees all."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.core.randomness import seeded
from polydiff.timeseries.blocks import FeatureBlock, rotation, turned, waves
from polydiff.timeseries.layers import attention
from polydiff.timeseries.network import SeriesNet, SeriesNetConfig

K, L, B = 5, 7, 3
SMALL = SeriesNetConfig(features=K, width=16, blocks=2, heads=2)
INDUCED = replace(SMALL, inducing=3)
CONFIGS = [SMALL, INDUCED, replace(SMALL, features=1)]
NAMES = ["direct", "induced", "univariate"]


def made(config: SeriesNetConfig, std: float = 0.3) -> SeriesNet:
    """All weights different from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = config.build().double()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=std)
    return network.eval()


def problem(features: int = K, seed: int = 0, b: int = B, length: int = L) -> dict[str, Tensor]:
    g = seeded(seed)
    shape = (b, length, features)
    known = torch.rand(shape, generator=g) < 0.5
    return {
        "x": torch.randn(shape, generator=g, dtype=torch.float64),
        "c": torch.rand(b, generator=g, dtype=torch.float64) * 1000,
        "observed": torch.randn(shape, generator=g, dtype=torch.float64).masked_fill(~known, 0),
        "known": known,
        "stamps": torch.rand(b, length, generator=g, dtype=torch.float64).cumsum(1) * 3,
    }


def close(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.std()) > 0.03
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, INDUCED], ids=["direct", "induced"])
def test_features_may_be_permuted_with_their_vectors(config: SeriesNetConfig) -> None:
    network, inputs = made(config), problem()
    order = torch.tensor([3, 0, 4, 1, 2])
    wanted = network(**inputs)[..., order]
    permuted = {name: v[..., order] if v.ndim == 3 else v for name, v in inputs.items()}
    assert float((network(**permuted) - wanted).abs().max()) > 1e-3  # it knows which feature is which
    network.column.weight.copy_(network.column.weight[order].clone())
    close(network(**permuted), wanted)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_neighbours_in_the_batch_do_not_matter(config: SeriesNetConfig) -> None:
    network, inputs = made(config), problem(config.features)
    wanted = network(**inputs)
    for b in range(B):
        close(network(**{name: v[b : b + 1] for name, v in inputs.items()}), wanted[b : b + 1])


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_padding_changes_nothing(config: SeriesNetConfig) -> None:
    network, inputs = made(config), problem(config.features)
    lengths = [L, 4, 1]
    present = torch.arange(L) < torch.tensor(lengths)[:, None]
    padded = network(**inputs, present=present)
    garbage = dict(inputs)
    for name in ("x", "observed", "known", "stamps"):
        v = inputs[name]
        other = {"x": math.nan, "observed": math.nan, "known": True, "stamps": 77.0}[name]
        garbage[name] = torch.where(present.view(B, L, *[1] * (v.ndim - 2)), v, other)
    close(network(**garbage, present=present), padded)
    assert bool((padded.masked_select(~present[..., None]) == 0).all())
    for b, n in enumerate(lengths):
        alone = {name: v[b : b + 1] if v.ndim == 1 else v[b : b + 1, :n] for name, v in inputs.items()}
        torch.testing.assert_close(padded[b : b + 1, :n], network(**alone), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [False, True], ids=["fused", "written out"])
def test_a_window_without_rows_is_finite(training: bool) -> None:
    network, inputs = made(SMALL), problem()
    present = torch.arange(L) < torch.tensor([0, L, 3])[:, None]
    with torch.set_grad_enabled(training):
        y = network(**inputs, present=present)
    assert bool(y.isfinite().all()) and bool((y[0] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_side_is_made_once_for_all_states(config: SeriesNetConfig) -> None:
    network, inputs = made(config), problem(config.features)
    S, x, c = 4, inputs.pop("x"), inputs.pop("c")
    many = torch.randn(B * S, *x.shape[1:], generator=seeded(5), dtype=torch.float64)
    levels = torch.arange(B * S, dtype=torch.float64) * 81
    present = torch.arange(L) < torch.tensor([L, 4, 1])[:, None]
    for condition in (inputs, inputs | {"present": present}):
        side = network.side(**condition)
        torch.testing.assert_close(network(x, c, side=side), network(x, c, **condition), rtol=0, atol=0)
        folded = network(many, levels, side=side)
        for s in range(S):
            alone = network(many[s::S], levels[s::S], **condition)
            torch.testing.assert_close(folded[s::S], alone, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_given_cells_are_read_from_what_is_observed_and_the_others_from_the_state() -> None:
    network, inputs = made(SMALL), problem()
    wanted, known = network(**inputs), inputs["known"]
    close(network(**inputs | {"x": inputs["x"].masked_fill(known, math.nan)}), wanted)
    close(network(**inputs | {"observed": inputs["observed"].masked_fill(~known, math.nan)}), wanted)
    for change in (
        {"x": inputs["x"] + 1}, {"observed": inputs["observed"] + 1}, {"c": inputs["c"] + 100},
        {"stamps": inputs["stamps"] * 1.1}, {"known": known.roll(1, 1)},
    ):  # fmt: skip
        assert float((network(**inputs | change) - wanted).abs().max()) > 1e-3, list(change)


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_every_cell_reaches_every_other(config: SeriesNetConfig) -> None:
    network, inputs = made(config), problem(config.features)
    inputs["known"] = torch.zeros_like(inputs["known"])
    wanted = network(**inputs)
    moved = inputs["x"].clone()
    moved[:, 2, 0] += 3
    assert bool(((network(**inputs | {"x": moved}) - wanted).abs() > 1e-9).all())


@torch.no_grad()
def test_rows_are_known_by_their_times_alone() -> None:
    network, inputs = made(SMALL), problem()
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    shuffled = {name: v[:, order] if v.ndim > 1 else v for name, v in inputs.items()}
    close(network(**shuffled), network(**inputs)[:, order])


def test_queries_and_keys_see_differences_of_times() -> None:
    g = seeded(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=g, dtype=torch.float64) for _ in range(2))

    def product(first: float, second: float, origin: float = 0.0) -> float:
        by = rotation(torch.tensor([[origin, first, second]], dtype=torch.float64), 4).unsqueeze(2)
        return float((turned(q, by[:, 1:2]) * turned(k, by[:, 2:3])).sum())

    assert product(3.25, 7.5) == pytest.approx(product(103.25, 107.5), rel=1e-10)
    assert product(3.25, 7.5) == pytest.approx(product(3.25, 7.5, origin=-40), rel=1e-10)
    assert product(3.25, 7.5) != pytest.approx(product(3.25, 7.75), rel=1e-4)
    assert product(2.0, 2.0) == pytest.approx(float((q * k).sum()), rel=1e-10)


def test_waves_span_short_and_long_periods() -> None:
    table = waves(torch.tensor([0.0, 3.0, 3_000.0], dtype=torch.float64), 8)
    torch.testing.assert_close(table[0], torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64))
    assert float((table[1, [0, 4]] - table[0, [0, 4]]).abs().max()) < 1e-12  # a whole short period
    assert float((table[2, [3, 7]] - table[0, [3, 7]]).abs().max()) < 1e-12  # a whole long period
    assert float((table[1, [3, 7]] - table[0, [3, 7]]).abs().max()) > 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_the_fused_one(masked: bool) -> None:
    q, k, v = (torch.randn(2, 3, n, 4, generator=seeded(n), dtype=torch.float64) for n in (5, 6, 6))
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]).bool()[:, None, None] if masked else None
    fused = attention(q, k, v, mask)
    weights = torch.einsum("nhld,nhmd->nhlm", q, k) / 2
    if mask is not None:
        weights = weights.masked_fill(~mask, -math.inf)
    wanted = torch.einsum("nhlm,nhmd->nhld", weights.softmax(3), v)
    torch.testing.assert_close(fused, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(attention(q.requires_grad_(), k, v, mask), wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_induced_attention_is_that_of_its_definition() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = FeatureBlock(8, 2, 0.0, 3).double()
        nn.init.normal_(block.mixer.output.weight)
        h = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    assert block.points is not None and block.told is not None
    zero = torch.zeros(2, 1, 1, 8, dtype=torch.float64)
    n = nn.functional.layer_norm(h, (8,))
    q, k, v = (part.unflatten(3, (2, 4)) for part in block.mixer.qkv(n).chunk(3, dim=3))
    to_points = torch.einsum("hpd,rlkhd->rlhpk", block.points, k).div(2).softmax(4)
    told = block.told(torch.einsum("rlhpk,rlkhd->rlphd", to_points, v).flatten(3))
    k_p, v_p = (part.unflatten(3, (2, 4)) for part in told.chunk(2, dim=3))
    from_points = torch.einsum("rlkhd,rlphd->rlhkp", q, k_p).div(2).softmax(4)
    y = torch.einsum("rlhkp,rlphd->rlkhd", from_points, v_p).flatten(3)
    wanted = h + block.mixer.output(torch.cat([y, nn.functional.gelu(block.mixer.hidden(n))], 3))
    close(block(h, zero, zero), wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_gradients_reach_every_parameter(config: SeriesNetConfig) -> None:
    network, inputs = made(config), problem(config.features)
    network(**inputs).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 1e-9, name
    for parameter in (network.modulation.bias, network.given.weight, network.column.weight, network.state):
        assert parameter.grad is not None and bool((parameter.grad.abs() > 1e-12).all())  # each number of them


def test_the_gradient_is_that_of_the_function() -> None:
    network, inputs = made(replace(SMALL, width=8, blocks=1, inducing=2)), problem(length=3, b=2)
    x = inputs.pop("x").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x, **inputs), (x,))


@pytest.mark.parametrize("config", [*CONFIGS, SeriesNetConfig(features=101), SeriesNetConfig(features=35)])
def test_parameters_are_counted(config: SeriesNetConfig) -> None:
    network = config.build()
    assert config.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert (network.features[0].points is not None if config.axes > 1 else False) == (config.points > 0)


def test_many_features_attend_through_points() -> None:
    assert SeriesNetConfig(features=100).points == 0 and SeriesNetConfig(features=101).points == 32
    assert SeriesNetConfig(features=10, inducing=4).points == 4


def test_the_output_starts_at_zero_and_learns() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SMALL.build().double()
    inputs = problem()
    y = network(**inputs)
    assert bool((y == 0).all())
    (y - 1).square().sum().backward()
    assert network.output.weight.grad is not None and bool((network.output.weight.grad != 0).any())


def test_dropout_is_of_training_only() -> None:
    network, inputs = made(replace(SMALL, dropout=0.5)), problem()
    torch.testing.assert_close(network(**inputs), network(**inputs), rtol=0, atol=0)
    network.train()
    with torch.random.fork_rng():
        assert not torch.equal(network(**inputs), network(**inputs))


@pytest.mark.parametrize("config", [SMALL, INDUCED], ids=["direct", "induced"])
def test_bfloat16_is_near(config: SeriesNetConfig) -> None:
    network = made(config, std=0.1).float()
    inputs = {name: v.float() if v.is_floating_point() else v for name, v in problem().items()}
    wanted = network(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(**inputs)
    assert float((found.float() - wanted).detach().abs().max()) < 0.1 * float(wanted.detach().abs().max())
    found.float().square().sum().backward()  # also the backward of 16-bit numbers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.zeros(4, L, K)), ("c", torch.zeros(2)), ("known", torch.zeros(B, L, K)),
        ("observed", torch.zeros(B, L, K + 1)), ("stamps", torch.zeros(L)),
        ("present", torch.ones(B, L + 1, dtype=torch.bool)), ("observed, known, stamps", None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name: str, value: Tensor | None) -> None:
    arguments: dict[str, Any] = dict(problem())
    for key in name.split(", "):
        arguments[key] = value
    with pytest.raises(ArgumentError) as error:
        made(SMALL)(**arguments)
    assert error.value.argument == name


@pytest.mark.parametrize(
    ("field", "value"), [("features", 0), ("heads", 3), ("width", 20), ("inducing", -1), ("dropout", 1.0)]
)
def test_sizes_are_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        SeriesNetConfig(**({"features": 3, "heads": 2} | {field: value}))  # pyright: ignore[reportArgumentType]
    assert error.value.argument == ("heads" if field == "width" else field)
