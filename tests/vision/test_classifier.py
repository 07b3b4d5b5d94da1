"""The judge: accurate on held-out images, the same for the same seed, the same when loaded again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from polydiff.core.errors import ArgumentError, CheckpointError, DataError
from polydiff.vision import classifier as module
from polydiff.vision.classifier import (
    Classifier,
    Options,
    cached,
    extractor_options,
    judge_options,
    shift,
    train_classifier,
)
from polydiff.vision.data import Images, load
from polydiff.vision.metrics import agreement, evaluate_samples

SHORT = Options(epochs=1, width=8)


@pytest.fixture(scope="module")
def small() -> Images:
    return load("digits", "train").select(range(300))


@pytest.fixture(scope="module")
def short(small: Images) -> Classifier:
    return train_classifier(small, SHORT)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Classifier]:
    train, cache = load("digits", "train"), tmp_path_factory.mktemp("cache")
    return cached(train, judge_options(), cache=cache), cached(train, extractor_options(), cache=cache)


def equal(a: Classifier, b: Classifier) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_both_read_97_percent_of_held_out_digits(networks: tuple[Classifier, Classifier]) -> None:
    test = load("digits", "test")
    for network in networks:
        accuracy = float((network.predict(test.images) == test.labels).double().mean())
        assert accuracy >= 0.97
        assert agreement(network.predict(test.images), test.labels, test.class_names)["share"] == accuracy


def test_judge_and_extractor_differ_and_measure_digits(networks: tuple[Classifier, Classifier]) -> None:
    judge, extractor = networks
    train, test = load("digits", "train"), load("digits", "test")
    assert judge.options.seed != extractor.options.seed
    assert judge.features(test.images).shape[1] != extractor.features(test.images).shape[1]
    result = evaluate_samples(test.images[:400], test.labels[:400], train, test, judge, extractor)
    figures = result["figures"]
    row = figures["FID (digits classifier features)"]
    noise = torch.randint(0, 17, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bad = evaluate_samples(noise, test.labels[:400], train, test, judge, extractor)["figures"]
    assert row["value"] < 2 * row["reference"] < 0.1 * bad["FID (digits classifier features)"]["value"]
    assert bad["class agreement"]["value"] < 0.3 and figures["class agreement"]["reference"] >= 0.97
    assert bad["coverage (digits classifier features)"]["value"] < 0.1


def test_a_seed_decides_every_weight(small: Images, short: Classifier) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert equal(train_classifier(small, SHORT), short)
    assert torch.equal(torch.get_rng_state(), before)
    assert not equal(train_classifier(small, replace(SHORT, seed=9)), short)


def test_features_lead_to_the_logits_in_any_batch(small: Images, short: Classifier) -> None:
    images = small.images[:7]
    features, logits = short.features(images), short.logits(images)
    torch.testing.assert_close(short.head(features), logits)
    torch.testing.assert_close(torch.cat([short.features(v[None]) for v in images]), features, atol=1e-5, rtol=1e-5)
    assert torch.equal(short(images), features) and torch.equal(short.predict(images), logits.argmax(1))
    assert short.name == "digits classifier features"


def test_saved_and_loaded_is_the_same(tmp_path: Path, small: Images, short: Classifier) -> None:
    short.save(tmp_path / "deep" / "a", note="x")
    again = Classifier.load(tmp_path / "deep" / "a")
    assert equal(again, short) and again.options == short.options and again.class_names == short.class_names
    assert torch.equal(again.logits(small.images), short.logits(small.images))
    short.save(tmp_path / "deep" / "a", dtype=torch.bfloat16)  # over the old one
    narrow = Classifier.load(tmp_path / "deep" / "a")
    torch.testing.assert_close(narrow.logits(small.images), short.logits(small.images), atol=0.1, rtol=0.1)
    assert sorted(f.name for f in (tmp_path / "deep" / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["a"]


def test_cache_trains_once_per_data_and_options(tmp_path: Path, small: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Options] = []

    def count(data: Images, options: Options, **kwargs: object) -> Classifier:
        trained.append(options)
        return train_classifier(data, options)

    monkeypatch.setattr(module, "train_classifier", count)
    first = cached(small, SHORT, cache=tmp_path)
    assert equal(cached(small, SHORT, cache=tmp_path), first) and len(trained) == 1
    cached(small, replace(SHORT, seed=2), cache=tmp_path)
    cached(small.select(range(299)), SHORT, cache=tmp_path)
    assert len(trained) == 3
    (kept,) = [f for f in tmp_path.iterdir() if equal(Classifier.load(f), first)]
    weights = (kept / "model.safetensors").read_bytes()
    (kept / "model.safetensors").write_bytes(weights[:-10])
    assert equal(cached(small, SHORT, cache=tmp_path), first) and len(trained) == 4
    assert (kept / "model.safetensors").read_bytes() == weights
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file.*writable"):  # before any training
        cached(small, replace(SHORT, seed=3), cache=tmp_path / "file")
    assert len(trained) == 4
    monkeypatch.setattr(module, "PRETRAINED", tmp_path / "shipped")
    first.save(tmp_path / "shipped" / "digits-judge")
    assert equal(cached(small, SHORT, cache=tmp_path / "empty"), first) and len(trained) == 4


@pytest.mark.parametrize("damage", ["missing", "weights", "json", "key", "version", "shape", "tensor"])
def test_damaged_files_are_named(tmp_path: Path, short: Classifier, damage: str) -> None:
    folder = tmp_path / "saved"
    short.save(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    values = json.loads(config.read_text())
    if damage == "missing":
        weights.unlink()
    elif damage == "weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "json":
        config.write_text("{")
    elif damage == "tensor":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, weights)
    else:
        change = {"key": ("options", {"widht": 3}), "version": ("format_version", 99), "shape": ("shape", [3, 8, 8])}
        values.update([change[damage]])
        config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="saved"):
        Classifier.load(folder)


def test_shift_moves_whole_pixels() -> None:
    x = torch.arange(2 * 3 * 5 * 6, dtype=torch.float32).reshape(2, 3, 5, 6).repeat(100, 1, 1, 1)
    moved = shift(x, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    seen = set()
    for i in range(len(x)):
        fits = [(a, b) for a in range(3) for b in range(3) if torch.equal(moved[i], padded[i, :, a : a + 5, b : b + 6])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 9
    assert torch.equal(shift(x, 0, torch.Generator()), x)


def test_shapes_from_tiny_to_large() -> None:
    for shape, width in (((1, 4, 4), 16), ((3, 32, 32), 24), ((1, 28, 20), 24), ((3, 64, 64), 24)):
        images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
        data = Images(images, torch.arange(6) % 2, "ab")
        network = train_classifier(data, Options(epochs=1, width=8, batch_size=2))
        assert network.features(images).shape == (6, width)


def test_bad_input(small: Images, short: Classifier) -> None:
    for bad in (small.images.float(), small.images[:, :, :7], small.images[0], small.images[:0], small.images + 10):
        with pytest.raises(ArgumentError, match="images"):
            short.predict(bad)
    unconditional = Images(small.images, torch.zeros(300, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="two classes"):
        train_classifier(unconditional)
    with pytest.raises(ArgumentError, match="4 x 4"):
        train_classifier(Images(small.images[:, :, :3], small.labels, small.class_names))
    for options in ({"width": 0}, {"epochs": 0}, {"batch_size": 0}, {"shift": -1}, {"smoothing": 1.0}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            Options(**options)  # type: ignore[arg-type]


def test_the_command_writes_a_network_that_cached_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "judge_options", lambda: SHORT)
    monkeypatch.setattr(module, "PRETRAINED", tmp_path)
    module.main(["--data", "digits"])
    assert "450 held-out images" in capsys.readouterr().out
    notes = json.loads((tmp_path / "digits-judge" / "config.json").read_text())["notes"]
    test, stored = load("digits", "test"), Classifier.load(tmp_path / "digits-judge")
    assert notes["held_out_accuracy"] == round(float((stored.predict(test.images) == test.labels).double().mean()), 4)
    assert f"{notes['held_out_accuracy']:.2%} of 450" in (tmp_path / "digits-judge" / "README.md").read_text()
    monkeypatch.setattr(module, "train_classifier", None)
    assert equal(cached(load("digits"), SHORT, cache=tmp_path / "own"), stored)
