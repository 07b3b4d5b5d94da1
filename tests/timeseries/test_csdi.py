"""CSDI's network against the published weights, and against a reference built from torch's own layers, in float64."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError
from polydiff.core.randomness import seeded
from polydiff.timeseries.csdi import CSDI, CSDIConfig, official

SHARED = Path(os.environ.get("POLYDIFF_DATA") or Path(__file__).parents[3] / "shared" / "data")
PUBLISHED = SHARED / "timeseries" / "csdi_official"
K, L, B = 5, 7, 3


class Reference(nn.Module):
    """Figure 6 of the paper in convolutions and torch's transformer layers, with the names of the published tensors."""

    def __init__(self, features: int, layers: int = 2, c: int = 16, heads: int = 4, e: int = 12, t: int = 10):
        super().__init__()
        self.t, self.embed_layer = t, nn.Embedding(features, 3)

        net: Any = nn.Module()
        self.diffmodel = net
        embedding = net.diffusion_embedding = nn.Module()
        embedding.projection1, embedding.projection2 = nn.Linear(e, e), nn.Linear(e, e)
        net.input_projection, net.output_projection1 = nn.Conv1d(2, c, 1), nn.Conv1d(c, c, 1)
        net.output_projection2, net.residual_layers = nn.Conv1d(c, 1, 1), nn.ModuleList()
        for _ in range(layers):
            layer = nn.Module()
            layer.diffusion_projection = nn.Linear(e, c)
            layer.cond_projection = nn.Conv1d(t + 4, 2 * c, 1)
            layer.mid_projection, layer.output_projection = nn.Conv1d(c, 2 * c, 1), nn.Conv1d(c, 2 * c, 1)
            for name in ("time_layer", "feature_layer"):
                one = nn.TransformerEncoderLayer(c, heads, 64, activation="gelu", batch_first=True)
                layer.add_module(name, nn.TransformerEncoder(one, 1, enable_nested_tensor=False))
            net.residual_layers.append(layer)
        rates = 10.0 ** (torch.arange(e // 2) / (e // 2 - 1) * 4.0)
        angles = torch.arange(50).unsqueeze(1) * rates
        self.register_buffer("table", torch.cat([angles.sin(), angles.cos()], 1), persistent=False)
        self.table: Tensor

    def forward(self, x: Tensor, step: Tensor, observed: Tensor, known: Tensor, stamps: Tensor) -> Tensor:
        net: Any = self.diffmodel
        b, length, k = x.shape
        times = x.new_zeros(b, length, self.t)
        for i in range(self.t // 2):
            times[..., 2 * i] = torch.sin(stamps / 10_000 ** (2 * i / self.t))
            times[..., 2 * i + 1] = torch.cos(stamps / 10_000 ** (2 * i / self.t))
        m = known.to(x.dtype)
        side = torch.cat(
            [
                times[:, :, None].expand(-1, -1, k, -1),
                self.embed_layer.weight.expand(b, length, -1, -1),
                m[..., None],
            ],
            dim=3,
        ).reshape(b, length * k, -1)
        e = net.diffusion_embedding
        silu = nn.functional.silu
        e = silu(e.projection2(silu(e.projection1(self.table[step]))))
        both = torch.stack([m * observed, (1 - m) * x], 1).reshape(b, 2, -1)
        h, skips = net.input_projection(both).relu(), 0
        for layer in net.residual_layers:
            y = (h + layer.diffusion_projection(e)[:, :, None]).unflatten(2, (length, k))  # b c l k
            c = y.shape[1]
            if length > 1:
                y = layer.time_layer(y.permute(0, 3, 2, 1).reshape(b * k, length, c))
                y = y.unflatten(0, (b, k)).permute(0, 3, 2, 1)
            if k > 1:
                y = layer.feature_layer(y.permute(0, 2, 3, 1).reshape(b * length, k, c))
                y = y.unflatten(0, (b, length)).permute(0, 3, 1, 2)
            y = layer.mid_projection(y.reshape(b, c, -1)) + layer.cond_projection(side.transpose(1, 2))
            y = layer.output_projection(y[:, :c].sigmoid() * y[:, c:].tanh())
            h, skips = (h + y[:, :c]) / math.sqrt(2), skips + y[:, c:]
        y = net.output_projection1(skips / math.sqrt(len(net.residual_layers))).relu()
        return net.output_projection2(y).view(b, length, k)


def problem(length: int = L, features: int = K, seed: int = 0, b: int = B) -> dict[str, Tensor]:
    g = seeded(seed)
    shape = (b, length, features)
    known = torch.rand(shape, generator=g) < 0.5
    stamps = torch.rand(b, length, generator=g, dtype=torch.float64).cumsum(1) * 3
    return {
        "x": torch.randn(shape, generator=g, dtype=torch.float64),
        "observed": torch.randn(shape, generator=g, dtype=torch.float64).masked_fill(~known, 0),
        "known": known,
        "stamps": stamps,
    }


def steps(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def made(tmp_path: Path, features: int = K) -> tuple[Reference, CSDI]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reference = Reference(features)
        for parameter in reference.parameters():
            nn.init.normal_(parameter, std=0.3)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    return reference.double().eval(), official(tmp_path / "model.safetensors", heads=4).double()


@torch.no_grad()
@pytest.mark.parametrize(("length", "features"), [(L, K), (1, K), (L, 1), (1, 1)])
def test_the_function_is_the_published_one(tmp_path: Path, length: int, features: int) -> None:
    reference, network = made(tmp_path, features)
    inputs = problem(length, features)
    x = inputs.pop("x")
    wanted = reference(x, torch.tensor([0, 17, 49]), **inputs)
    assert float(wanted.std()) > 0.03
    torch.testing.assert_close(network(x, steps(0, 17, 49), **inputs), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published weights are not on this machine")
def test_the_published_weights_give_the_published_output() -> None:
    network, fixture = official(PUBLISHED / "model.safetensors"), load_file(PUBLISHED / "parity.safetensors")
    noisy, observed, mask, wanted = (
        fixture[name].transpose(1, 2) for name in ("noisy", "observed", "cond_mask", "predicted_noise")
    )
    # Sinusoids of 10^4 radians per step are not to be recomputed in another precision: float32 as published.
    found = network(noisy, fixture["step"].float(), observed=observed, known=mask > 0, stamps=fixture["timepoints"])
    assert float((found - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("config", [CSDIConfig(features=35), CSDIConfig(features=3, channels=8, heads=2, layers=1)])
def test_parameters_are_counted(config: CSDIConfig) -> None:
    assert config.num_parameters == sum(parameter.numel() for parameter in config.build().parameters())


def test_the_paper_s_size() -> None:
    assert CSDIConfig(features=35).num_parameters == 414_065


@torch.no_grad()
def test_a_side_is_made_once_for_all_states(tmp_path: Path) -> None:
    _, network = made(tmp_path)
    inputs = problem()
    S, x = 4, inputs.pop("x")
    many = torch.randn(B * S, L, K, generator=seeded(5), dtype=torch.float64)
    c = torch.arange(B * S, dtype=torch.float64) * 3.7
    present = torch.arange(L) < torch.tensor([L, 4, 1])[:, None]
    for condition in (inputs, inputs | {"present": present}):
        side = network.side(**condition)
        torch.testing.assert_close(network(x, c[:B], side=side), network(x, c[:B], **condition), rtol=0, atol=0)
        folded = network(many, c, side=side)
        for s in range(S):
            alone = network(many[s::S], c[s::S], **condition)
            torch.testing.assert_close(folded[s::S], alone, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_padding_changes_nothing(tmp_path: Path) -> None:
    _, network = made(tmp_path)
    inputs = problem()
    x, c = inputs.pop("x"), steps(3, 20, 44)
    lengths = torch.tensor([L, 4, 1])
    present = torch.arange(L) < lengths[:, None]
    padded = network(x, c, **inputs, present=present)
    garbage = {
        "observed": torch.where(present[..., None], inputs["observed"], math.nan),
        "known": inputs["known"] | ~present[..., None],
        "stamps": torch.where(present, inputs["stamps"], 77.0),
    }
    other = network(torch.where(present[..., None], x, math.nan), c, **garbage, present=present)
    torch.testing.assert_close(other, padded, rtol=1e-12, atol=1e-12)
    assert bool((padded.masked_select(~present[..., None]) == 0).all())
    for b, n in enumerate(lengths.tolist()):
        alone = network(x[b : b + 1, :n], c[b : b + 1], **{name: v[b : b + 1, :n] for name, v in inputs.items()})
        torch.testing.assert_close(padded[b : b + 1, :n], alone, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_given_cells_are_read_from_what_is_observed_and_the_others_from_the_state(tmp_path: Path) -> None:
    _, network = made(tmp_path)
    inputs = problem()
    x, c, known = inputs.pop("x"), steps(3, 20, 44), inputs["known"]
    wanted = network(x, c, **inputs)
    torch.testing.assert_close(network(x.masked_fill(known, 9), c, **inputs), wanted, rtol=0, atol=0)
    garbage = inputs | {"observed": inputs["observed"].masked_fill(~known, math.nan)}
    torch.testing.assert_close(network(x, c, **garbage), wanted, rtol=0, atol=0)
    assert float((network(x + 1, c, **inputs) - wanted).abs().max()) > 1e-3


@torch.no_grad()
def test_between_whole_steps_it_interpolates(tmp_path: Path) -> None:
    _, network = made(tmp_path)
    two = network.embedded(steps(7, 8))
    torch.testing.assert_close(network.embedded(steps(7.25))[0], 0.75 * two[0] + 0.25 * two[1])
    torch.testing.assert_close(network.embedded(steps(-1, 60)), network.embedded(steps(0, 49)), rtol=0, atol=0)


def test_gradients_reach_every_parameter_and_dropout_is_of_training_only() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CSDIConfig(features=K, channels=16, heads=2, layers=2).build().double()
        nn.init.normal_(network.output_2.weight)
        inputs = problem()
        x = inputs.pop("x")
        one, two = (network(x, steps(1, 2, 3), **inputs) for _ in range(2))
        assert not torch.equal(one, two)
        one.square().sum().backward()
        # Keys are shifted alike by their bias, and the last residual goes nowhere: the sign of a right gradient.
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
        network.eval()
        torch.testing.assert_close(network(x, steps(1, 2, 3), **inputs), network(x, steps(1, 2, 3), **inputs))


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan", "heads", "text"])
def test_files_that_do_not_fit(tmp_path: Path, fault: str) -> None:
    made(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors, name = load_file(path), "diffmodel.residual_layers.1.output_projection.bias"
    said, heads = name, 4
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        tensors["more"], said = torch.zeros(1), "more is not part"
    elif fault == "shape":
        tensors[name] = tensors[name][1:].clone()
    elif fault == "nan":
        tensors[name][0] = math.nan
    elif fault == "heads":
        said, heads = "heads", 5
    save_file(tensors, path)
    if fault == "text":
        path.write_text("no tensors")
        said = "cannot be read"
    with pytest.raises(CheckpointError, match=said):
        official(path, heads=heads)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.zeros(4, L, K)), ("x", torch.zeros(B, L, K + 1)), ("c", torch.zeros(2)),
        ("known", torch.zeros(B, L, K)), ("observed", torch.zeros(B, L, K + 1)), ("stamps", torch.zeros(L)),
        ("present", torch.ones(B, K + 9, dtype=torch.bool)), ("observed, known, stamps", None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name: str, value: Tensor | None) -> None:
    network = CSDIConfig(features=K, channels=8, heads=2, layers=1).build().double()
    arguments: dict[str, Any] = problem() | {"c": steps(1, 2, 3)}
    for key in name.split(", "):
        arguments[key] = value
    with pytest.raises(ArgumentError) as error:
        network(arguments.pop("x"), arguments.pop("c"), **arguments)
    assert error.value.argument == name


@pytest.mark.parametrize(
    ("field", "value"),
    [("features", 0), ("heads", 5), ("layers", 1.5), ("step_embedding", 7), ("dropout", 1.0), ("channels", 4097)],
)
def test_sizes_are_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        CSDIConfig(**({"features": 3} | {field: value}))  # pyright: ignore[reportArgumentType]
    assert error.value.argument == field
