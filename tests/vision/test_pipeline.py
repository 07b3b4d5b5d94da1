"""The image pipeline: what users import."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.ddim import ddim
from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError
from polydiff.vision.architectures import DiTConfig, UNetConfig
from polydiff.vision.data import load
from polydiff.vision.pipeline import ImageConfig, ImagePipeline

NAMES = ("Trouser", "Ankle boot", "Bag")


def small(classes: int = 3, **changes: object) -> ImagePipeline:
    """A pipeline with random weights, none of them zero."""
    network = UNetConfig(in_channels=1, out_channels=1, num_classes=classes, width=8, multipliers=(1, 1), blocks=1)
    options = {"shape": (1, 8, 8), "levels": 17, "class_names": NAMES[:classes], "network": network} | changes
    config = ImageConfig(**options)  # pyright: ignore[reportArgumentType]
    model = ImagePipeline.build(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return ImagePipeline(config, model.eval())


def test_image_i_depends_on_the_seed_and_i_alone() -> None:
    pipeline = small()
    labels = [0, 1, 2, 0, 1]
    whole = pipeline.sample(labels, steps=4, seed=3, sampler=ancestral)
    assert whole.shape == (5, 1, 8, 8)
    assert whole.dtype == torch.uint8
    assert int(whole.max()) <= 16
    for batch_size in (1, 2, 5):
        again = pipeline.sample(labels, steps=4, seed=3, sampler=ancestral, batch_size=batch_size)
        assert (again.int() - whole.int()).abs().max() <= 1  # a rounding boundary at most
    tail = pipeline.sample(labels[3:], steps=4, seed=3, sampler=ancestral, first=3)
    assert (tail.int() - whole[3:].int()).abs().max() <= 1
    assert not torch.equal(whole, pipeline.sample(labels, steps=4, seed=4, sampler=ancestral))


def test_labels_by_name_number_and_in_turn() -> None:
    pipeline = small()
    assert pipeline.labels("boot", 2).tolist() == [1, 1]  # pyright: ignore[reportOptionalMemberAccess]
    assert pipeline.labels(["bag", 0], 3).tolist() == [2, 0, 2]  # pyright: ignore[reportOptionalMemberAccess]
    assert pipeline.labels(None, 4).tolist() == [0, 1, 2, 0]  # pyright: ignore[reportOptionalMemberAccess]
    assert small(0).labels(None, 4) is None
    for wrong in ("hat", 4, -1, True, [1.5]):
        with pytest.raises(ArgumentError, match="label"):
            pipeline.labels(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="label"):
        small(0).labels(1)


def test_label_and_guidance_change_the_picture_and_weight_one_is_no_guidance() -> None:
    pipeline = small()
    options = {"steps": 4, "sampler": ddim, "grid": grids.uniform, "seed": 1}
    plain = pipeline.sample([0], **options)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(plain, pipeline.sample([1], **options))  # pyright: ignore[reportArgumentType]
    assert torch.equal(plain, pipeline.sample([0], guidance=1.0, **options))  # pyright: ignore[reportArgumentType]
    assert not torch.equal(plain, pipeline.sample([0], guidance=4.0, **options))  # pyright: ignore[reportArgumentType]
    null = pipeline.sample([3], **options)  # pyright: ignore[reportArgumentType]
    assert torch.equal(null, pipeline.sample([0], guidance=0.0, **options))  # pyright: ignore[reportArgumentType]


def test_call_gives_pil_images_at_scale() -> None:
    images = small()("bag", count=2, steps=2, scale=3)
    assert [type(image) for image in images] == [Image.Image, Image.Image]
    assert images[0].size == (24, 24)


def test_save_and_load_give_the_same_model(tmp_path: Path) -> None:
    pipeline = small()
    pipeline.save_pretrained(tmp_path / "model")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    again = ImagePipeline.from_pretrained(tmp_path / "model")
    assert again.config == pipeline.config
    assert torch.equal(again.sample([1], steps=3), pipeline.sample([1], steps=3))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        ImagePipeline.from_pretrained(tmp_path / "model")


def test_transformer_pipeline_keeps_its_kind(tmp_path: Path) -> None:
    network = DiTConfig(in_channels=1, out_channels=1, num_classes=3, width=16, depth=1, heads=2, patch=2)
    pipeline = small(network=network)
    pipeline.save_pretrained(tmp_path)
    again = ImagePipeline.from_pretrained(tmp_path)
    assert isinstance(again.config.network, DiTConfig)
    assert torch.equal(again.sample([1], steps=3), pipeline.sample([1], steps=3))


def test_config_refuses_what_does_not_fit() -> None:
    network = UNetConfig(in_channels=1, out_channels=1, num_classes=3, width=8, multipliers=(1, 1))
    for changes, name in (
        ({"shape": (3, 8, 8)}, "in_channels"),
        ({"shape": (1, 7, 8)}, "shape"),
        ({"class_names": ("a",)}, "num_classes"),
    ):
        options = {"shape": (1, 8, 8), "class_names": NAMES, "network": network} | changes
        with pytest.raises(ConfigError, match=name):
            ImageConfig(**options)  # pyright: ignore[reportArgumentType]


def test_bits_per_dim_is_reported_by_parts_and_repeatable() -> None:
    pipeline, data = small(levels=17), load("digits", "test")
    images, labels = data.images[:6], data.labels[:6] % 3
    bits = pipeline.bits_per_dim(images, labels, steps=5, batch_size=4)
    assert set(bits) == {"prior", "gaps", "reconstruction", "total"}
    assert all(part.shape == (6,) and part.isfinite().all() for part in bits.values())
    assert torch.allclose(bits["total"], bits["prior"] + bits["gaps"] + bits["reconstruction"], rtol=1e-5)
    assert (bits["total"] > 0).all()
    again = pipeline.bits_per_dim(images, labels, steps=5, batch_size=2)
    assert torch.allclose(bits["total"], again["total"], rtol=1e-4)
    unconditional = pipeline.bits_per_dim(images, steps=5)
    assert not torch.allclose(bits["total"], unconditional["total"])


def test_untrained_model_is_worse_than_a_uniform_law_over_levels_but_prior_term_is_small() -> None:
    pipeline, data = small(), load("digits", "test")
    bits = pipeline.bits_per_dim(data.images[:4], data.labels[:4] % 3, steps=40)
    assert float(bits["total"].mean()) > math.log2(17)
    assert float(bits["prior"].abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda p: p.sample([0], steps=0), "steps"),
        (lambda p: p.sample([0], count=0), "count"),
        (lambda p: p.sample([0], batch_size=0), "batch_size"),
        (lambda p: p.sample([0], guidance=math.nan), "weight"),
        (lambda p: p.bits_per_dim(torch.zeros(2, 1, 8, 8)), "images"),
        (lambda p: p.bits_per_dim(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)), "images"),
        (lambda p: p.bits_per_dim(torch.full((2, 1, 8, 8), 200, dtype=torch.uint8)), "images"),
        (lambda p: p.bits_per_dim(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0])), "label"),
    ],
)
def test_bad_arguments_are_named(call, name: str) -> None:
    with pytest.raises(ArgumentError, match=name):
        call(small())
