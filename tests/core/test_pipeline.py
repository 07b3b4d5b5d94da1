"""What is kept comes back; what does not fit, lies, or leads elsewhere is refused by name."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from polydiff.core.calibration import Calibrated
from polydiff.core.config import Range
from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError, DataError
from polydiff.core.pipeline import Card, Pipeline


@dataclass(frozen=True)
class Sizes:
    width: Annotated[int, Range(1, 2**62)] = 8
    depth: Annotated[int, Range(1, 2**62)] = 2
    names: tuple[str, ...] = ("cat", "dog")


class Model(nn.Module):
    table: torch.Tensor

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(sizes.width, sizes.width) for _ in range(sizes.depth))
        self.register_buffer("table", torch.linspace(0, 1, 7, dtype=torch.float64).sqrt())
        self.register_buffer("scale", torch.tensor(1 / 3))
        if float(self.table[1]) < 0:  # a check that reads values, as schedules have them
            raise ArgumentError("table", self.table, "positive")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


class Toy(Pipeline[Sizes]):
    config_class = Sizes

    @classmethod
    def build(cls, config: Sizes) -> nn.Module:
        return Model(config)


def toy(**sizes: Any) -> Toy:
    torch.manual_seed(0)
    config = Sizes(**sizes)
    return Toy(config, Model(config))


class WithNotes(Toy):
    """A domain that keeps a file beside the weights."""

    beside = ("notes.txt",)
    notes = ""

    def write_beside(self, folder: Path) -> None:
        (folder / "notes.txt").write_text(self.notes)

    def read_beside(self, folder: Path) -> None:
        self.notes = (folder / "notes.txt").read_text()


def test_a_domain_keeps_files_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    pipeline = WithNotes(Sizes(), Model(Sizes()))
    pipeline.notes = "kept"
    folder = pipeline.save_pretrained(tmp_path / "model")
    assert WithNotes.from_pretrained(folder).notes == "kept"
    wanted: list[str] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        wanted.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    WithNotes.from_pretrained("me/model")
    assert "notes.txt" in wanted
    (tmp_path / "elsewhere.txt").write_text("secret")
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(CheckpointError, match="leads out"):
        WithNotes.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy().save_pretrained(tmp_path / "toy")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    whole = json.loads((folder / "config.json").read_text())
    change(whole)
    (folder / "config.json").write_text(json.dumps(whole))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Other weights, with a hash that fits."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    edit(folder, lambda whole: whole.update(weights={}))


def test_round_trip(folder: Path):
    saved, found = toy(), Toy.from_pretrained(folder)
    assert found.config == saved.config
    assert not found.model.training
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)
        assert found.model.state_dict()[name].dtype == tensor.dtype
    assert all(p.requires_grad for p in found.model.parameters())
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    torch.testing.assert_close(found.model(torch.ones(1, 8)), saved.model(torch.ones(1, 8)), rtol=0, atol=0)


def test_half_precision_is_widened_and_buffers_are_not_rounded(tmp_path: Path):
    saved = toy()
    saved.save_pretrained(tmp_path, dtype=torch.bfloat16)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert stored["layers.0.weight"].dtype == torch.bfloat16
    found = Toy.from_pretrained(tmp_path).model.state_dict()
    for name, tensor in saved.model.state_dict().items():
        expected = tensor.bfloat16().float() if name.startswith("layers") else tensor
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], expected)


def test_saving_again_replaces(folder: Path):
    other = Toy(Sizes(width=3), Model(Sizes(width=3)))
    other.save_pretrained(folder, card=Card("Another"))
    found = Toy.from_pretrained(folder)
    assert found.config.width == 3
    assert "# Another" in (found.card or "")
    found.save_pretrained(folder)
    assert "# Another" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("pipeline", "options", "named"),
    [
        (toy(), {"dtype": torch.float64}, "dtype"),
        (Toy(Sizes(width=0), Model(Sizes())), {}, "width"),
        (Toy(Sizes(), nn.Linear(2, 2).to(torch.float32).requires_grad_(False)), {"dtype": torch.int64}, "dtype"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, pipeline: Toy, options: dict[str, Any], named: str):
    with pytest.raises(ArgumentError, match=named):
        pipeline.save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path):
    pipeline = toy()
    with torch.no_grad():
        pipeline.model.get_parameter("layers.1.bias")[2] = 1e38
        pipeline.save_pretrained(tmp_path / "a", dtype=torch.bfloat16)
        with pytest.raises(ArgumentError, match=r"layers.1.bias.*finite"):
            pipeline.save_pretrained(tmp_path / "b", dtype=torch.float16)  # beyond float16
    assert not (tmp_path / "b").exists()


def test_a_full_disk_leaves_the_former_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=r"toy: .*No space left"):
        Toy(Sizes(), Model(Sizes())).save_pretrained(folder)
    monkeypatch.undo()
    Toy.from_pretrained(folder)
    assert len(os.listdir(folder)) == 3


class Crash(BaseException):
    """The process ends here."""


def solver(calls: int, rmse: float = 0.0) -> Calibrated:
    times = tuple((calls - i) / calls for i in range(calls + 1))
    weights = tuple((1.0,) * i for i in range(1, calls + 1))
    return Calibrated(times, (0.0,) * calls + (1.0,), (1.0,) * calls + (0.0,), weights, weights, "none", rmse, rmse)


def test_solvers_outlive_a_crash_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is read has the old solvers or the new ones, none of them of other weights than those it is read with."""
    for changed in (False, True):
        for moment in itertools.count():
            folder = tmp_path / f"{changed}-{moment}"
            pipeline = toy()
            pipeline.solvers = {3: solver(3), 5: solver(5)}
            pipeline.save_pretrained(folder)
            if changed:
                nn.init.zeros_(pipeline.model.layers[0].weight)  # pyright: ignore
            pipeline.solvers = {3: solver(3, 1.0), 4: solver(4, 1.0)}
            left = moment

            def crash(real: Callable[..., Any]) -> Callable[..., Any]:
                def counted(*arguments: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left == -1:
                        raise Crash
                    return real(*arguments, **options)

                return counted

            with monkeypatch.context() as patch:
                for module, name in ((os, "replace"), (Path, "unlink")):
                    patch.setattr(module, name, crash(getattr(module, name)))
                try:
                    pipeline.save_pretrained(folder)
                except Crash:
                    pass
                else:
                    assert left == 0 and moment >= 5
                    assert Toy.from_pretrained(folder).solvers == pipeline.solvers
                    assert sorted(path.name for path in folder.glob("*.json")) == [
                        "config.json",
                        "solver-3.json",
                        "solver-4.json",
                    ]
                    break
            try:
                found = Toy.from_pretrained(folder).solvers
            except CheckpointError:
                assert changed  # the new weights are there, and not yet their configuration
                continue
            assert 3 in found and found.keys() & {4, 5}
            if changed:
                assert found == {3: solver(3), 5: solver(5)}


# ------------------------------------------------------------------------------------------------ files from strangers


CONFIGS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda c: c.update(format_version=2), "format_version: got 2"),
    (lambda c: c.pop("format_version"), "format_version"),
    (lambda c: c.update(pipeline="Other"), "pipeline: got 'Other', expected 'Toy'"),
    (lambda c: c.update(pipeline="os.system"), "pipeline"),
    (lambda c: c.update(config=3), "config"),
    (lambda c: c.update(weights=None), "weights"),
    (lambda c: c["config"].update(width="8"), "config.width"),
    (lambda c: c["config"].update(width=-8), "config.width"),
    (lambda c: c["config"].update(width=True), "config.width"),
    (lambda c: c["config"].update(import_path="os"), "config.import_path"),
    (lambda c: c["config"].update(width=2**61), "config: got .*cannot be made"),
    (lambda c: c["config"].update(width=2**20), "config: got .*larger than the weights"),  # 4 TiB
    (lambda c: c["config"].update(depth=2**61), "config: got .*larger than the weights"),
]


@pytest.mark.parametrize(("change", "named"), CONFIGS)
def test_configuration_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], named: str):
    edit(folder, change)
    with pytest.raises(ConfigError, match=named):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 10_000, "\0", " " * (1 << 21)])
def test_configuration_that_is_not_json(folder: Path, text: str):
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        Toy.from_pretrained(folder)


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layers.1.bias"][0] = float("nan")


WEIGHTS: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda t: t.pop("layers.0.bias"), "layers.0.bias is missing"),
    (lambda t: t.update(extra=torch.ones(1)), "extra is not part of the model"),
    (lambda t: t.update({"layers.0.bias": torch.ones(9)}), r"layers.0.bias has shape \(9,\), expected \(8,\)"),
    (lambda t: t.update({"layers.0.bias": torch.ones(8, dtype=torch.int32)}), "layers.0.bias has type torch.int32"),
    (lambda t: t.update({"layers.0.bias": torch.ones(8).double()}), "layers.0.bias has type torch.float64"),
    (lambda t: t.update(table=t["table"].float()), "table has type torch.float32, expected torch.float64"),
    (poison, "layers.1.bias has values that are not finite"),
]


@pytest.mark.parametrize(("change", "named"), WEIGHTS)
def test_weights_that_do_not_fit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], named: str):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=named):
        Toy.from_pretrained(folder)


def test_all_that_does_not_fit_is_named(folder: Path):
    edit(folder, lambda whole: whole["config"].update(width=7, depth=3))
    with pytest.raises(CheckpointError) as caught:
        Toy.from_pretrained(folder)
    assert "layers.2.bias is missing" in str(caught.value)
    assert "layers.0.weight has shape (8, 8), expected (7, 7)" in str(caught.value)


def test_flipped_weights(folder: Path):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 16
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not the weights that config\.json was written with"):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04K\x00.", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"{]"]
)
def test_weights_that_are_not_safetensors(folder: Path, data: bytes):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_links_out_of_the_folder(folder: Path, name: str):
    shutil.move(folder / name, folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: leads out of its folder"):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        Toy.from_pretrained(folder)


# --------------------------------------------------------------------------------------------------- names and the hub


@pytest.fixture
def shipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Toy]:
    """A pipeline whose package ships one model, called `small`."""
    package = types.ModuleType("toy_domain")
    package.__path__ = [str(tmp_path / "toy_domain")]
    package.__file__ = str(tmp_path / "toy_domain" / "__init__.py")
    (tmp_path / "toy_domain").mkdir()
    (tmp_path / "toy_domain" / "__init__.py").touch()
    toy().save_pretrained(tmp_path / "toy_domain" / "pretrained" / "small")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_domain", raising=False)
    monkeypatch.chdir(tmp_path)

    class Shipping(Toy):
        __module__ = "toy_domain.pipeline"

    Shipping.__name__ = "Toy"
    return Shipping


def test_shipped_models(shipping: type[Toy]):
    assert list(shipping.shipped()) == ["small"]
    assert shipping.from_pretrained("small").config == Sizes()
    with pytest.raises(DataError, match=r"large: no such folder, .*models that ship: small"):
        shipping.from_pretrained("large")
    with pytest.raises(ArgumentError, match="revision"):
        shipping.from_pretrained("small", revision="main")


@pytest.mark.parametrize("name", ["../small", "/etc", "a/../b", "..", "a/b/c", "a/..", "a//b", "", "small\0", "C:\\a"])
def test_names_that_are_not_names(shipping: type[Toy], name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises((DataError, CheckpointError)):
        shipping.from_pretrained(name)


def test_hub_cache_links_to_its_blobs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "models--me--toy"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (cache / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{path.name}")
    asked: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, sorted(allow_patterns)))
        return str(cache / "snapshots" / "abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert Toy.from_pretrained("me/toy", revision="v1").config == Sizes()
    assert asked == [("me/toy", "v1", ["README.md", "config.json", "model.safetensors", "solver-*.json"])]
    link = cache / "snapshots" / "abc" / "model.safetensors"
    link.unlink()
    link.symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="leads out"):
        Toy.from_pretrained("me/toy")


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *names, **options: real(*names, **options, local_files_only=True, cache_dir=tmp_path),
    )
    with pytest.raises(DataError, match=r"me/toy: .*Hugging Face hub.*while online"):
        Toy.from_pretrained("me/toy")


def test_push_to_hub(folder: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: str | None = None):
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", (repo_id, options)))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            calls.append(("upload", (repo_id, commit_message, sorted(os.listdir(folder_path)))))
            calls.append(("config", Toy.from_pretrained(folder_path).config))
            return "https://huggingface.co/me/toy/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    pipeline = Toy.from_pretrained(folder)
    assert pipeline.push_to_hub("me/toy", private=True, token="secret", message="First").endswith("commit/1")
    assert calls == [
        ("token", "secret"),
        ("create", ("me/toy", {"private": True, "exist_ok": True})),
        ("upload", ("me/toy", "First", ["README.md", "config.json", "model.safetensors"])),
        ("config", Sizes()),
    ]
    with pytest.raises(ArgumentError, match="repo_id"):
        pipeline.push_to_hub("toy")

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(DataError, match=r"me/toy: .*no route"):
        pipeline.push_to_hub("me/toy")


def test_card():
    card = Card(
        "Digits",
        summary="Draws digits.",
        data="UCI digits: 1347 scans",
        licence="Apache-2.0",
        command="polydiff train vision",
        time="3 minutes",
        machine="2 cores",
        seed=0,
        figures={"FID (classifier), test": 1.23456, "agreement": "98 %"},
        limits="Only digits.",
    )
    text = card.markdown()
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert huggingface_hub.ModelCardData(**yaml.safe_load(head)).license == "apache-2.0"
    for part in ("# Digits", "Draws digits.", "UCI digits: 1347 scans", "Apache-2.0", "polydiff train vision"):
        assert part in body
    for part in ("3 minutes", "2 cores", "**Seed**: 0", "| FID (classifier), test | 1.235 |", "98 %", "Only digits."):
        assert part in body
    assert "None" not in Card("Empty").markdown()
