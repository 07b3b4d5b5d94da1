"""Data: every byte accounted for, both layouts found, nothing written where only reading was asked, clear errors."""

from __future__ import annotations

import gzip
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from polydiff.core.errors import ArgumentError, DataError
from polydiff.vision.data import Images, Split, find_label, load, picture, pictures, to_uint8, to_unit
from torch.utils.data import DataLoader

SHARED = Path(os.environ.get("POLYDIFF_DATA") or Path(__file__).parents[3] / "shared" / "data" / "vision")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may reach the network or the user's cache."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("offline in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("POLYDIFF_DATA", str(tmp_path / "default"))


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_set(folder: Path, suffix: str = ".gz", count: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng, written = np.random.default_rng(seed), {}
    for split in ("train", "t10k"):
        x, y = rng.integers(0, 256, (count, 5, 4)), rng.integers(0, 10, count)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", x)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", y)
        written |= {f"{split}_x": x, f"{split}_y": y}
    return written


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 6), value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(path)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_scaling_is_one_to_one(levels: int) -> None:
    v = torch.arange(levels, dtype=torch.uint8)
    x = to_unit(v, levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[-1] == 1
    torch.testing.assert_close(x.double(), 2 * v.double() / (levels - 1) - 1, atol=2e-7, rtol=0)
    assert torch.equal(to_uint8(x, levels), v)
    near = (x.double() + (torch.rand(levels, dtype=torch.float64) - 0.5) * 1.9 / (levels - 1)).float()
    assert torch.equal(to_uint8(near, levels), v)


@given(st.floats(-3, 3, width=32), st.integers(2, 256))
def test_to_uint8_is_the_nearest_level(x: float, levels: int) -> None:
    grid = 2 * np.arange(levels) / (levels - 1) - 1
    got = int(to_uint8(torch.tensor([x]), levels))
    assert abs(grid[got] - x) <= np.abs(grid - x).min() + 1e-6


def test_to_uint8_refuses() -> None:
    with pytest.raises(ArgumentError, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))
    with pytest.raises(ArgumentError, match="floating"):
        to_uint8(torch.tensor([0]))


def test_digits_are_scikit_learns_split_once_for_all() -> None:
    from sklearn.datasets import load_digits

    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test), train.shape, train.levels, train.num_classes) == (1347, 450, (1, 8, 8), 17, 10)
    both = torch.cat([train.images, test.images]).flatten(1).numpy()
    flat, labels = load_digits(return_X_y=True)
    joined = np.column_stack([both, torch.cat([train.labels, test.labels]).numpy()])
    official = np.column_stack([flat, labels])
    assert np.array_equal(joined[np.lexsort(joined.T)], official[np.lexsort(official.T)])  # a partition of the whole
    share = train.labels.bincount() / len(train) - test.labels.bincount() / len(test)
    assert share.abs().max() < 0.005
    assert load("digits", "test").fingerprint() == test.fingerprint() != train.fingerprint()


def test_items_batches_and_loader_agree() -> None:
    data = load("digits", "test")
    chosen = torch.tensor([3, 1, 4])
    batch = data.batch(chosen)
    assert batch["x_0"].dtype == torch.float32 and batch["label"].dtype == torch.int64
    assert torch.equal(batch["x_0"], torch.stack([data[i]["x_0"] for i in chosen.tolist()]))
    assert torch.equal(to_uint8(batch["x_0"], 17), data.images[chosen])
    collated = next(iter(DataLoader(data, batch_size=5)))
    assert all(torch.equal(collated[k], v) for k, v in data.batch(range(5)).items())
    assert torch.equal(data.select([7, 8]).images, data.images[7:9])


@pytest.mark.parametrize("layout", ["mnist/.gz", "mnist/", "MNIST/raw/.gz", "MNIST/raw/"])
def test_idx_in_every_layout_and_only_read(tmp_path: Path, layout: str) -> None:
    folder, _, suffix = layout.rpartition("/")
    written = write_set(tmp_path / folder, suffix)
    os.chmod(tmp_path / folder, stat.S_IRUSR | stat.S_IXUSR)
    before = sorted(tmp_path.rglob("*"))
    prefixes: dict[Split, str] = {"train": "train", "test": "t10k"}
    for split, prefix in prefixes.items():
        data = load("mnist", split, data_root=tmp_path)
        assert np.array_equal(data.images[:, 0].numpy(), written[f"{prefix}_x"])
        assert np.array_equal(data.labels.numpy(), written[f"{prefix}_y"])
    assert sorted(tmp_path.rglob("*")) == before
    os.chmod(tmp_path / folder, stat.S_IRWXU)


def test_names_do_not_mix_sets_up(tmp_path: Path) -> None:
    a, b = write_set(tmp_path / "mnist", seed=1), write_set(tmp_path / "fashion_mnist", seed=2)
    assert np.array_equal(load("mnist", data_root=tmp_path).images[:, 0].numpy(), a["train_x"])
    fashion = load("fashion-mnist", data_root=tmp_path)
    assert np.array_equal(fashion.images[:, 0].numpy(), b["train_x"]) and fashion.class_names[9] == "Ankle boot"


def test_idx_reader_agrees_with_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    write_set(tmp_path / "FashionMNIST" / "raw", "")
    theirs, ours = FashionMNIST(str(tmp_path)), load("fashion-mnist", data_root=tmp_path)
    assert torch.equal(theirs.data, ours.images[:, 0]) and torch.equal(theirs.targets, ours.labels)
    assert tuple(theirs.classes) == ours.class_names


def damage(kind: str, images: Path, labels: Path) -> str:
    """Damages a file and returns what the message must contain."""
    raw = gzip.decompress(images.read_bytes())
    if kind == "truncated gzip":
        images.write_bytes(images.read_bytes()[:-9])
    elif kind == "flipped bit":
        data = bytearray(images.read_bytes())
        data[len(data) // 2] ^= 16
        images.write_bytes(bytes(data))
    elif kind == "short":
        images.write_bytes(gzip.compress(raw[:-1]))
    elif kind == "long":
        images.write_bytes(gzip.compress(raw + b"0"))
    elif kind == "magic":
        images.write_bytes(gzip.compress(b"\0\0\x0d" + raw[3:]))
    elif kind == "empty":
        images.write_bytes(b"")
    elif kind == "huge header":
        images.write_bytes(gzip.compress(raw[:4] + b"\xff" * 12 + raw[16:]))
    elif kind == "counts":
        write_idx(labels, np.zeros(5))
        return "6 images"
    elif kind == "label":
        write_idx(labels, np.full(6, 10))
        return "label 10"
    return images.name


KINDS = ["truncated gzip", "flipped bit", "short", "long", "magic", "empty", "huge header", "counts", "label"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_idx_is_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "mnist"
    write_set(folder)
    expected = damage(kind, folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match=expected):
        load("mnist", data_root=tmp_path)


@pytest.mark.parametrize("name, source", [("mnist", "mnist"), ("fashion-mnist", "fashion"), ("cifar10", "toronto")])
def test_offline_names_set_source_and_way_out(tmp_path: Path, name: str, source: str) -> None:
    with pytest.raises(DataError) as caught:
        load(name, data_root=tmp_path)
    message = str(caught.value)
    assert all(part in message for part in (name, "http", source, "--data-root", str(tmp_path)))
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_download_is_checked_and_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from polydiff.vision import data as module
    from torchvision.datasets import MNIST

    source = tmp_path / "source"
    written = write_set(source)
    files = {f.name: f.read_bytes() for f in source.iterdir()}
    asked: list[str] = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.append(url)
        data = files[filename]
        (Path(root) / filename).write_bytes(data[:-1] if url.startswith(MNIST.mirrors[0]) else data)  # a bad mirror

    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(MNIST, "resources", sums)
    monkeypatch.setattr(module, "download_url", fetch)
    root = tmp_path / "root"
    assert np.array_equal(load("mnist", "test", data_root=root).images[:, 0].numpy(), written["t10k_x"])
    assert [url.startswith(MNIST.mirrors[0]) for url in asked] == [True, False, True, False]
    load("mnist", "test", data_root=root)
    assert len(asked) == 4  # kept
    assert sorted(f.name for f in root.rglob("*") if f.is_file()) == sorted(f for f in files if f.startswith("t10k"))
    monkeypatch.setattr(MNIST, "mirrors", MNIST.mirrors[:1])
    with pytest.raises(DataError, match="wrong MD5"):
        load("mnist", "train", data_root=root)
    assert not list(root.rglob("train*"))


def test_arrays(tmp_path: Path) -> None:
    x, y = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3), np.array([1, 0])
    file = tmp_path / "own.npz"
    np.savez(file, x_train=x, y_train=y, class_names=np.array(["a", "b"]), x_test=x[:1, :, :, 0])
    data = load(file)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), x) and data.labels.tolist() == [1, 0]
    assert data.class_names == ("a", "b") and load(file, "test").shape == (1, 3, 3)
    for bad, match in (
        ({"x_train": x.astype(np.float32)}, "float32"),
        ({"x_train": x, "y_train": y}, "class_names"),
        ({"x_train": x, "y_train": np.array([0, 2]), "class_names": np.array(["a", "b"])}, "labels 0 … 2"),
        ({"x_train": x, "y_train": np.array([0]), "class_names": np.array(["a"])}, "labels must be"),
        ({"x_train": np.array([{}], dtype=object)}, "pickle"),
        ({"x_test": x}, "x_train"),
        ({"x_train": x[:0]}, "non-empty"),
    ):
        np.savez(file, **bad)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=match):
            load(file)
    file.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="own.npz"):
        load(file)


def test_folder_of_classes(tmp_path: Path) -> None:
    for label, name in enumerate(("ant", "bee")):
        for i in range(10):
            write_image(tmp_path / name / f"{i}.png", value=100 * label + i)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert (len(train), len(test), train.class_names) == (18, 2, ("ant", "bee"))
    value = torch.cat([train.images, test.images])[:, 0, 0, 0].long()
    assert sorted(value.tolist()) == [*range(10), *range(100, 110)]
    assert torch.equal(value // 100, torch.cat([train.labels, test.labels]))
    assert test.labels.tolist() == [0, 1]


def test_folder_with_its_own_splits(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "bee" / "0.png", value=1)
    write_image(tmp_path / "train" / "ant" / "0.png", value=2)
    write_image(tmp_path / "test" / "bee" / "0.png", value=3)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert train.class_names == test.class_names == ("ant", "bee")
    assert test.labels.tolist() == [1] and test.images[0, 0, 0, 0] == 3 and len(train) == 2


def test_flat_folder_is_unconditional_and_resized(tmp_path: Path) -> None:
    for i in range(12):
        write_image(tmp_path / f"{i:02}.png", mode="L", size=(9, 6 + i), value=20 * i)
    data = load(tmp_path, size=4)
    assert data.shape == (1, 4, 4) and data.num_classes == 0 and data.labels.tolist() == [0] * 11
    assert set(data.images[:, 0, 0, 0].tolist()) <= {20 * i for i in range(12)}
    with pytest.raises(DataError, match=r"(?s)01.png.*9 x 7.*00.png.*--size"):
        load(tmp_path)


def test_resizing_takes_the_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (load(tmp_path, size=4).images == 200).all()


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 3), (10, 20, 30, 0))
    image.putpixel((1, 1), (10, 20, 30, 255))
    image.save(tmp_path / "a.png")
    data = load(tmp_path)
    assert data.images[0, :, 0, 0].tolist() == [255] * 3 and data.images[0, :, 1, 1].tolist() == [10, 20, 30]


def test_folder_errors_name_the_file(tmp_path: Path) -> None:
    def case(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    empty = case("empty")
    with pytest.raises(DataError, match="empty.*no images"):
        load(empty)
    hollow = case("hollow")
    write_image(hollow / "a" / "0.png")
    (hollow / "b").mkdir()
    with pytest.raises(DataError, match="hollow/b.*without images"):
        load(hollow)
    broken = case("broken")
    write_image(broken / "0.png")
    whole = (broken / "0.png").read_bytes()
    (broken / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        load(broken)
    (broken / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        load(broken)
    mixed = case("mixed")
    write_image(mixed / "0.png")
    write_image(mixed / "1.png", mode="L")
    with pytest.raises(DataError, match=r"1\.png: grey, but .*0\.png is colour"):
        load(mixed)
    deep = case("deep")
    write_image(deep / "0.png", mode="I;16")
    with pytest.raises(DataError, match=r"0\.png: mode I;16"):
        load(deep)
    beside = case("beside")
    write_image(beside / "0.png")
    write_image(beside / "a" / "1.png")
    with pytest.raises(DataError, match=r"0\.png: lies beside class folders"):
        load(beside)
    few = case("few")
    write_image(few / "0.png")
    with pytest.raises(DataError, match="tenth"):
        load(few, "test")


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothere.*digits, mnist"):
        load("nothere")
    with pytest.raises(ArgumentError, match="split"):
        load("digits", "valid")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="size"):
        load("digits", size=16)
    with pytest.raises(ArgumentError, match="size"):
        load(tmp_path, size=0)


@pytest.mark.parametrize(
    "images, labels, names, match",
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "a", "uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "a", "B, C, H, W"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "a", "labels"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "a", "labels"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.ones(2, dtype=torch.int64), "a", "labels 1 … 1"),
        (torch.full((2, 1, 3, 3), 17, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "a", "pixel value 17"),
    ],
)
def test_images_refuses(images: torch.Tensor, labels: torch.Tensor, names: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Images(images, labels, names, levels=17)


def test_find_label() -> None:
    names = ("T-shirt/top", "Shirt", "Ankle boot")
    assert [find_label(names, t) for t in ("boot", "2", "shirt", "t-shirt", "ANKLE BOOT")] == [2, 2, 1, 0, 2]
    for unknown in ("hat", "t", "", "3"):
        with pytest.raises(ArgumentError, match="Ankle boot"):
            find_label(names, unknown)


def test_pictures_hold_the_pixels() -> None:
    data = load("digits", "test")
    image = picture(data.images[0], 17, scale=3)
    grey = np.asarray(image)[::3, ::3]
    assert image.size == (24, 24) and grey.max() == round(int(data.images[0].max()) * 255 / 16)
    assert np.array_equal(grey, (data.images[0, 0].float() * 255 / 16).round().numpy())
    assert pictures(data.images[:6], 17, columns=3).size == (3 * 9 + 1, 2 * 9 + 1)
    colour = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert np.array_equal(np.asarray(picture(colour)), colour.permute(1, 2, 0).numpy())
    with pytest.raises(ArgumentError):
        picture(data.images)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real sets")
def test_the_real_sets() -> None:
    for name, count, shape in (
        ("mnist", 10_000, (1, 28, 28)),
        ("fashion-mnist", 10_000, (1, 28, 28)),
        ("cifar10-subset", 1000, (3, 32, 32)),
    ):
        data = load(name, "test", data_root=SHARED)
        assert (len(data), data.shape, data.num_classes) == (count, shape, 10)
    fashion = load("fashion-mnist", "test", data_root=SHARED)
    assert fashion.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # the published order
    assert fashion.labels.bincount().tolist() == [1000] * 10
