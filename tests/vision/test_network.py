"""The image networks: against an independent U-Net, by invariance, and against the sizes they promise."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polydiff.core.errors import ArgumentError, ConfigError
from polydiff.core.layers import attend
from polydiff.vision.architectures import MAX_PARAMETERS, DiTConfig, UNetConfig
from polydiff.vision.layers import Normalisation
from polydiff.vision.network import DiT, UNet, Upsample

UNETS = [
    UNetConfig(in_channels=1, out_channels=2, num_classes=5, width=16, multipliers=(1, 2), blocks=1, attention=(0,)),
    UNetConfig(width=8, multipliers=(1, 1, 3), blocks=2, attention=(1, 2), heads=2, dropout=0.2),
    UNetConfig(in_channels=2, width=12, multipliers=(2,), blocks=1, patch=2, num_classes=1, groups=3),
]
DITS = [
    DiTConfig(in_channels=1, out_channels=2, num_classes=5, width=16, depth=2, heads=2),
    DiTConfig(patch=4, width=32, depth=1, heads=4, expansion=2, dropout=0.2),
]
CONFIGS = [*UNETS, *DITS]


def perturbed(config: UNetConfig | DiTConfig, seed: int = 0) -> UNet | DiT:
    """A network whose zero-initialised layers are not zero any more, in evaluation mode."""
    torch.manual_seed(seed)
    network = config.build().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return network


def inputs(config: UNetConfig | DiTConfig, batch: int = 3, size: int = 8) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, c and labels that include "no label"."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, size, size, generator=generator)
    c = torch.rand(batch, generator=generator) * 1000
    label = torch.arange(batch).remainder(config.num_classes + 1) if config.num_classes else None
    return x, c, label


def distance(a: Tensor, b: Tensor) -> float:
    """Relative distance of a from b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameter_formula_counts_the_real_parameters(config):
    assert config.num_parameters == sum(p.numel() for p in config.build().parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_shapes_dtypes_and_zero_start(config):
    network = config.build()
    x, c, label = inputs(config)
    x = torch.cat([x, x], dim=3)  # not square
    out = network(x, c, label)
    assert out.shape == (3, config.out_channels, 8, 16) and out.dtype == x.dtype
    assert torch.equal(out, torch.zeros_like(out))
    network = perturbed(config)
    reference = network(x, c, label)
    assert reference.abs().mean() > 0.01
    assert network.double()(x.double(), c, label).dtype == torch.float64
    assert network.bfloat16()(x, c, label).dtype == torch.float32
    assert distance(network(x, c, label), reference) < 0.05


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradient_reaches_every_parameter(config):
    network = perturbed(config)
    x, c, label = inputs(config)
    network(x, c, label).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_no_example_touches_another(config):
    network = perturbed(config).double()
    x, c, label = inputs(config)
    together = network(x.double(), c, label)
    for i in range(len(x)):
        alone = network(x[i : i + 1].double(), c[i : i + 1], None if label is None else label[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_memory_layout_changes_nothing(config):
    network = perturbed(config).double()
    x, c, label = inputs(config, size=12 if config.patch == 2 else 8)
    x = x.double()
    reference = network(x, c, label)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    for other in (x.contiguous(memory_format=torch.channels_last), strided):
        assert torch.allclose(network(other, c, label), reference, rtol=0, atol=1e-6)
    channels_last = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert torch.allclose(channels_last(x, c, label), reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.num_classes], ids=str)
def test_labels_steer_and_none_is_the_null_label(config):
    network = perturbed(config)
    x, c, _ = inputs(config)
    null = torch.full((3,), config.num_classes)
    assert torch.equal(network(x, c), network(x, c, null))
    for label in range(config.num_classes):
        assert distance(network(x, c, torch.full((3,), label)), network(x, c)) > 1e-3
    assert distance(network(x, c + 1), network(x, c)) > 1e-4
    assert torch.equal(network(x, c, null.int()), network(x, c, null))


@pytest.mark.parametrize("config", [UNETS[1], DITS[1]], ids=str)
def test_dropout_acts_in_training_only(config):
    network = perturbed(config)
    x, c, label = inputs(config)
    assert torch.equal(network(x, c, label), network(x, c, label))
    network.train()
    assert not torch.equal(network(x, c, label), network(x, c, label))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_sampling_path_equals_training_path_in_bfloat16(config):
    """Without gradients other kernels run; both must be the float32 network up to bfloat16's rounding."""
    network = perturbed(config)
    x, c, label = inputs(config)
    reference = network(x, c, label).detach()
    with torch.autocast("cpu", torch.bfloat16):
        training = network(x, c, label)
        assert training.requires_grad
        with torch.no_grad():
            sampling = network(x, c, label)
    assert distance(training, reference) < 0.03 and distance(sampling, reference) < 0.03
    assert distance(sampling, training) < 0.03


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_in_bfloat16_are_those_of_float32(config):
    network = perturbed(config)
    x, c, label = inputs(config)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = (network(x, c, label) - x.sum(1, keepdim=True)).square().mean()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for name, exact, rounded in zip(dict(network.named_parameters()), *gradients, strict=True):
        assert (rounded - exact).norm() < 0.1 * exact.norm() + 1e-3, name


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("channels", "groups", "height", "width"), [(32, 8, 16, 16), (12, 3, 7, 5), (6, 1, 1, 3)])
def test_fused_normalisation_is_as_exact_as_the_library_one(silu, modulated, channels, groups, height, width):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = (2 * draw(4, channels, height, width) + 1).bfloat16().to(memory_format=torch.channels_last)
    modulation = draw(4, 2 * channels).bfloat16() if modulated else None
    norm = Normalisation(groups, channels)
    with torch.no_grad():
        norm.weight.copy_(draw(channels))
        norm.bias.copy_(draw(channels))
    exact = Normalisation(groups, channels).double()
    exact.load_state_dict(norm.state_dict())
    towards = draw(4, channels, height, width).bfloat16()

    def run(layer: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_(), *layer.parameters()]
        leaves += [] if modulation is None else [modulation.to(dtype).requires_grad_()]
        out = layer(leaves[0], leaves[3] if modulated else None, silu)
        assert out.dtype == dtype
        return [out, *torch.autograd.grad(out, leaves, towards.to(dtype))]

    for got, expected in zip(run(norm, torch.bfloat16), run(exact, torch.float64), strict=True):
        assert distance(got, expected) < 0.012
    with torch.no_grad():
        before, expected = x.clone(), exact(x.double(), None if modulation is None else modulation.double(), silu)
        assert distance(norm(x, modulation, silu), expected) < 0.012
        assert torch.equal(x, before), "the input must stay as it was"


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("channels", "groups", "height", "width"), [(32, 8, 16, 16), (12, 3, 7, 5)])
def test_normalisation_for_the_compiler_is_the_library_one(modulated, channels, groups, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, height, width, generator=generator).mul(2).add(1).requires_grad_()
    modulation = torch.randn(3, 2 * channels, generator=generator, requires_grad=True) if modulated else None
    norm = Normalisation(groups, channels)
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
    towards = torch.randn(3, channels, height, width, generator=generator)
    leaves = [x, *norm.parameters()] + ([] if modulation is None else [modulation])
    expected, got = norm(x, modulation, True), norm.traced(x, modulation, True)
    assert distance(got, expected) < 1e-5
    gradients = (torch.autograd.grad(out, leaves, towards) for out in (got, expected))
    for one, other in zip(*gradients, strict=True):
        assert distance(one, other) < 1e-4
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(norm.traced(x, modulation, True), expected) < 1e-2


def test_normalisation_is_invariant_to_offset_and_scale():
    norm = Normalisation(2, 8)
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        a, b = norm(x.to(dtype)), norm((4 * x + 3).to(dtype))
        assert (a - b).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", [False, True])
def test_attention_is_the_softmax_of_scaled_products(dtype, gradient):
    qkv = torch.randn(2, 10, 3 * 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(gradient)
    out = attend(qkv, 2)
    q, k, v = qkv.detach().double().view(2, 10, 3, 2, 4).unbind(2)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(2).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 10, 8)
    assert out.dtype == dtype and distance(out.detach(), expected) < (1e-5 if dtype == torch.float32 else 0.01)


def test_transformer_moves_with_its_patches_but_for_the_positions(monkeypatch):
    """Without positions a permutation of the patches permutes the output; with positions it does not."""
    network = perturbed(DITS[0]).double()
    x, c, label = inputs(DITS[0])
    x = x.double()

    def roll(images: Tensor) -> Tensor:
        return images.roll((2, 4), dims=(2, 3))

    assert distance(network(roll(x), c, label), roll(network(x, c, label))) > 1e-3
    monkeypatch.setattr(DiT, "positions", lambda self, height, width, device: torch.zeros(height * width, 16))
    assert distance(network(roll(x), c, label), roll(network(x, c, label))) < 1e-6


def test_positions_are_distinct_and_their_products_depend_on_the_offset_only():
    table = DITS[0].build().positions(4, 6, torch.device("cpu")).view(4, 6, -1)
    assert torch.pdist(table.flatten(0, 1)).min() > 0.5
    product = torch.einsum("ijc,klc->ijkl", table, table)
    assert torch.allclose(product[0, 0, 1, 2], product[2, 3, 3, 5], atol=1e-5)


def test_unet_equals_an_independent_implementation():
    """diffusers' UNet2DModel with the same weights computes the same function, to 1e-5."""
    diffusers = pytest.importorskip("diffusers")
    config = UNetConfig(num_classes=4, width=16, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, groups=4)
    network = perturbed(config)
    assert isinstance(network, UNet)
    peer = diffusers.UNet2DModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=5,
    ).eval()
    peer.mid_block.attentions[0].group_norm = nn.GroupNorm(4, 32)  # it has none with scale and shift; ADM has
    stages = [stage for level in network.encoder for stage in level]  # type: ignore[union-attr]
    stages += [*network.middle] + [stage for level in network.decoder for stage in level]  # type: ignore[union-attr]
    blocks = [block for down in peer.down_blocks for block in down.resnets]
    blocks += [*peer.mid_block.resnets] + [block for up in peer.up_blocks for block in up.resnets]
    attentions = [a for part in [*peer.down_blocks, peer.mid_block] for a in getattr(part, "attentions", [])]
    attentions += [a for part in peer.up_blocks for a in getattr(part, "attentions", [])]
    pairs = [
        (network.input, peer.conv_in),
        (network.conditioning.hidden, peer.time_embedding.linear_1),
        (network.conditioning.output, peer.time_embedding.linear_2),
        (network.norm, peer.conv_norm_out),
        (network.output, peer.conv_out),
        (next(network.downsample.children()), peer.down_blocks[0].downsamplers[0].conv),  # pyright: ignore[reportAttributeAccessIssue]
        (next(network.upsample.children()), peer.up_blocks[0].upsamplers[0].conv),  # pyright: ignore[reportAttributeAccessIssue]
    ]
    peer.class_embedding.weight.data.copy_(network.conditioning.label.weight)  # type: ignore[union-attr]
    rows = zip(
        network.modulation.weight.split(network.splits), network.modulation.bias.split(network.splits), strict=True
    )
    for stage, block, (weight, bias) in zip(stages, blocks, rows, strict=True):
        ours = stage.residual
        pairs += [(ours.norm_1, block.norm1), (ours.conv_1, block.conv1), (ours.norm_2, block.norm2)]
        pairs += [(ours.conv_2, block.conv2)]
        pairs += [(ours.shortcut, block.conv_shortcut)] if block.conv_shortcut is not None else []
        block.time_emb_proj.weight.data.copy_(weight)
        block.time_emb_proj.bias.data.copy_(bias)
    attending = [stage.attention for stage in stages if not isinstance(stage.attention, nn.Identity)]
    for ours, theirs in zip(attending, attentions, strict=True):
        pairs += [(ours.norm, theirs.group_norm), (ours.output, theirs.to_out[0])]
        for part, weight, bias in zip("qkv", ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True):
            getattr(theirs, f"to_{part}").weight.data.copy_(weight)
            getattr(theirs, f"to_{part}").bias.data.copy_(bias)
    for ours, theirs in pairs:
        theirs.weight.data.copy_(ours.weight)
        theirs.bias.data.copy_(ours.bias)
    assert sum(p.numel() for p in peer.parameters()) == config.num_parameters
    x, c, label = inputs(config)
    with torch.no_grad():
        assert distance(network(x, c, label), peer(x, c, label).sample) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_configurations_survive_json(config):
    text = json.dumps(dataclasses.asdict(config))
    assert type(config)(**json.loads(text)) == config


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"width": 16_000, "multipliers": (64,)}, "parameters"),
        ({"num_classes": 10**6, "width": 8_192}, "parameters"),
        ({"blocks": 10**9}, "blocks"),
        ({"width": 10**12}, "width"),
        ({"width": 7}, "width"),
        ({"width": True}, "width"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": "12"}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"attention": (3,)}, "attention"),
        ({"attention": (1, 1)}, "attention"),
        ({"heads": 3}, "heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"patch": 0}, "patch"),
        ({"in_channels": -1}, "in_channels"),
        ({"groups": 2.0}, "groups"),
    ],
)
def test_absurd_unet_sizes_are_refused_before_allocation(changes, names):
    tracemalloc.start()
    with pytest.raises(ConfigError, match=names):
        UNetConfig(**changes)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"width": 16_000, "depth": 200, "heads": 4}, "parameters"),
        ({"depth": 10**9}, "depth"),
        ({"width": 6, "heads": 2}, "width"),
        ({"heads": 5}, "heads"),
        ({"expansion": 0}, "expansion"),
        ({"patch": "2"}, "patch"),
    ],
)
def test_absurd_transformer_sizes_are_refused(changes, names):
    with pytest.raises(ConfigError, match=names):
        DiTConfig(**changes)
    assert DiTConfig().num_parameters < MAX_PARAMETERS


@pytest.mark.parametrize("config", [UNETS[0], DITS[0]], ids=str)
def test_bad_input_is_refused_by_name(config):
    network = config.build()
    x, c, label = inputs(config)
    assert label is not None
    for argument, call in {
        "x": lambda: network(x[:, :, :7], c, label),
        "x ": lambda: network(x.repeat(1, 2, 1, 1), c, label),
        "x  ": lambda: network(x[0], c, label),
        "x   ": lambda: network(x.long(), c, label),
        "c": lambda: network(x, c[:2], label),
        "label": lambda: network(x, c, torch.tensor([0, 1, 6])),
        "label ": lambda: network(x, c, torch.tensor([0, 1, -1])),
        "label  ": lambda: network(x, c, label[:2]),
        "label   ": lambda: network(x, c, label.float()),
    }.items():
        with pytest.raises(ArgumentError) as caught:
            call()
        assert caught.value.argument == argument.strip()
    with pytest.raises(ArgumentError, match="no classes"):
        UNETS[1].build()(*inputs(UNETS[1])[:2], torch.zeros(3, dtype=torch.long))


def test_upsampling_repeats_pixels_before_its_convolution():
    upsample = Upsample(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), upsample.weight, upsample.bias, padding=1)
    assert torch.allclose(upsample(x), expected, atol=1e-6)
