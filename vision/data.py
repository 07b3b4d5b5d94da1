"""Data sets of images: whole in memory, as integers, read once and checked once.

An image is kept as the integers it was stored as, 0 … levels - 1 (256 levels for ordinary images, 17 for the digits),
because the bound in bits per dimension and the search for copies need them exactly. A model sees
x_0 = 2 v / (levels - 1) - 1 in [-1, 1]; `to_unit` and `to_uint8` are the two directions, exactly inverse on integers.

Sets: `digits` (Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits", UCI; comes with scikit-learn, so
that no download is needed), `mnist` (LeCun et al. 1998), `fashion-mnist` (Xiao et al. 2017, arXiv:1708.07747),
`cifar10` (Krizhevsky 2009), any folder of images, any `.npz` of arrays. Only `load` knows their names.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, final
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity, download_url
from torchvision.transforms import functional as transforms
from torchvision.utils import make_grid

from ..core.downloads import data_folder, offline, patience
from ..core.errors import ArgumentError, DataError

__all__ = ["NAMES", "Images", "Split", "find_label", "load", "picture", "pictures", "to_uint8", "to_unit"]

Split = Literal["train", "test"]

HELD_OUT = 0.25  # of the digits: 450 of 1,797 images


def to_unit(v: Tensor, levels: int = 256) -> Tensor:
    """Integers 0 … levels - 1 (any shape, uint8) to float32 in [-1, 1]."""
    return v.to(torch.float32).mul_(2 / (levels - 1)).sub_(1).clamp_(-1, 1)


def to_uint8(x: Tensor, levels: int = 256) -> Tensor:
    """Floats in [-1, 1] (any shape) to the nearest integers 0 … levels - 1, uint8; what lies outside is clipped.

    Raises:
        ArgumentError: x is not a floating tensor, or holds NaN.
    """
    if not x.is_floating_point():
        raise ArgumentError("x", x, "a floating tensor in [-1, 1]")
    if x.isnan().any():
        raise ArgumentError("x", x, "no NaN")
    return x.float().add(1).mul((levels - 1) / 2).round_().clamp_(0, levels - 1).to(torch.uint8)


def picture(v: Tensor, levels: int = 256, scale: int = 1) -> Image.Image:
    """One image, uint8 (C, H, W) with C = 1 or 3, as a PIL image, every pixel drawn as a square of `scale` pixels."""
    if v.dtype != torch.uint8 or v.ndim != 3 or v.shape[0] not in (1, 3):
        raise ArgumentError("v", v, "a uint8 tensor (C, H, W) with C = 1 or 3")
    full = v if levels == 256 else v.float().mul(255 / (levels - 1)).round_().clamp_(0, 255).to(torch.uint8)
    image = transforms.to_pil_image(full.cpu())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def pictures(v: Tensor, levels: int = 256, scale: int = 1, columns: int = 10) -> Image.Image:
    """Many images, uint8 (B, C, H, W), as one PIL image: a grid read row by row, with thin lines between."""
    if v.dtype != torch.uint8 or v.ndim != 4 or v.shape[1] not in (1, 3) or len(v) == 0:
        raise ArgumentError("v", v, "a uint8 tensor (B, C, H, W) with B > 0 and C = 1 or 3")
    grid = make_grid(v.cpu(), nrow=columns, padding=1, pad_value=levels - 1)
    return picture(grid[: 1 if v.shape[1] == 1 else 3], levels, scale)


def find_label(class_names: Sequence[str], text: str) -> int:
    """The index of the class that `text` means: its number, its name, or a part of the name that only one class has.

    Raises:
        ArgumentError: no class or more than one fits; the message lists the names.
    """
    wanted = text.strip().casefold()
    names = [name.casefold() for name in class_names]
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    fits = [i for i, name in enumerate(names) if wanted and wanted in name]
    if len(fits) != 1:
        raise ArgumentError("label", text, "one of: " + ", ".join(class_names) if class_names else "no label at all")
    return fits[0]


@final
class Images(Dataset[dict[str, Tensor]]):
    """A set of images in memory.

    Attributes:
        images: uint8 (B, C, H, W), values 0 … levels - 1.
        labels: long (B,), values 0 … num_classes - 1; all 0, which then means "no label", where there are no classes.
        class_names: one name a class; empty for an unconditional set.
        levels: how many values a pixel can have, 2 … 256.
        name: what the set is called in figures and errors.

    Raises:
        DataError: shapes, dtypes or values that do not fit together.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        class_names: Sequence[str] = (),
        *,
        levels: int = 256,
        name: str = "images",
    ):
        if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
            raise DataError(f"{name}: images must be a non-empty uint8 tensor (B, C, H, W), got {_brief(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"{name}: labels must be a long tensor ({len(images)},), got {_brief(labels)}")
        if not 2 <= levels <= 256:
            raise DataError(f"{name}: levels must be 2 … 256, got {levels}")
        if int(images.max()) >= levels:
            raise DataError(f"{name}: pixel value {int(images.max())} in a set of {levels} levels")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= max(len(class_names), 1):
            raise DataError(f"{name}: labels {low} … {high}, but there are {len(class_names)} classes")
        self.images, self.labels, self.class_names = images, labels, tuple(class_names)
        self.levels, self.name = levels, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Many items at once: {"x_0": float32 (B, C, H, W), "label": long (B,)}; a hundred times faster than collating.

        Without classes there is no "label".
        """
        indices = torch.as_tensor(indices, dtype=torch.int64)
        x_0 = {"x_0": to_unit(self.images[indices], self.levels)}
        return {**x_0, "label": self.labels[indices]} if self.class_names else x_0

    def select(self, indices: Sequence[int] | Tensor) -> Images:
        """The set of these images only."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        labels = self.labels[indices]
        return Images(self.images[indices], labels, self.class_names, levels=self.levels, name=self.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """0 for an unconditional set; the label `num_classes` means "no label"."""
        return len(self.class_names)

    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels, shape and levels: equal sets have equal fingerprints."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)} {self.levels} {self.class_names}".encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def load(
    source: str | os.PathLike[str],
    split: Split = "train",
    *,
    data_root: str | os.PathLike[str] | None = None,
    size: int | None = None,
) -> Images:
    """A data set by name (`NAMES`), or from the user's own files.

    A folder holds either one subfolder per class, or images directly (unconditional). If it has subfolders `train` and
    `test` these are the splits; otherwise a fixed tenth of each class is held out. An `.npz` file holds `x_train`,
    `x_test` (uint8, (B, H, W) or (B, H, W, C)) and, for classes, `y_train`, `y_test` (integers) and `class_names`.

    Args:
        source: a name or a path.
        split: "train" or "test" (held out, never trained on).
        data_root: where the named sets lie or are downloaded to; default: environment variable POLYDIFF_DATA, else
            `~/.cache/polydiff`. Files already there, as torchvision stores them or in a folder named `mnist`,
            `fashion_mnist`, are only read.
        size: for folders: the middle square, resized to size x size; None: images must all have one size.

    Raises:
        DataError: names the file or set at fault and the way out. ArgumentError: split or size.
    """
    if split not in ("train", "test"):
        raise ArgumentError("split", split, "'train' or 'test'")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ArgumentError("size", size, "a positive number of pixels, or None")
    root = data_folder(data_root)
    named = NAMES.get(str(source))
    if named is not None:
        if size is not None:
            raise ArgumentError("size", size, f"None: the images of {source} have their own size")
        return named(root, split)
    path = Path(source).expanduser()
    if path.is_dir():
        return folder(path, split, size)
    if path.suffix == ".npz" and path.is_file():
        return arrays(path, split, path.stem)
    raise DataError(f"{source}: neither a data set ({', '.join(NAMES)}) nor a folder of images nor an .npz file")


def digits(split: Split) -> Images:
    """scikit-learn's digits, 8 x 8, 17 grey levels: 1,347 for training, 450 held out, classes in equal shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    flat, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, random_state=0, stratify=labels)
    chosen = np.sort(train if split == "train" else test)
    pixels = torch.from_numpy(flat[chosen].astype(np.uint8)).reshape(-1, 1, 8, 8)
    classes = [str(i) for i in range(10)]
    return Images(pixels, torch.from_numpy(labels[chosen].astype(np.int64)), classes, levels=17, name="digits")


def idx(root: Path, split: Split, name: str, official: type[datasets.MNIST], folders: Sequence[str]) -> Images:
    """A set in the MNIST format: four idx files, gzipped or not, found under `root` or downloaded there."""
    classes = [label.split(" - ")[0] for label in official.classes]
    prefix = "train" if split == "train" else "t10k"
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    own = Path(official.__name__) / "raw"  # torchvision's layout
    found = _first([root / own, *(root / f for f in folders)], stems)
    if found is None:
        found = _download(root / own, name, official, stems)
    pixels, labels = _read_idx(found[0], 3), _read_idx(found[1], 1)
    if len(pixels) != len(labels):
        raise DataError(f"{found[0]}: {len(pixels)} images, but {found[1].name} has {len(labels)} labels")
    if len(labels) and int(labels.max()) >= len(classes):
        raise DataError(f"{found[1]}: label {int(labels.max())}, expected 0 … {len(classes) - 1}")
    return Images(pixels.unsqueeze(1), labels.long(), classes, name=name)


def cifar10(root: Path, split: Split) -> Images:
    """CIFAR-10 through torchvision, which checks the MD5 of every file before it opens it."""
    official = datasets.CIFAR10
    try:
        data = official(str(root), train=split == "train")
    except RuntimeError:  # not there, or incomplete: fetched (again)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with patience():
                data = official(str(root), train=split == "train", download=True)
        except (RuntimeError, URLError, OSError, EOFError) as error:
            problem = "is not there and could not be downloaded"
            raise DataError(offline("cifar10", root / official.base_folder, problem, official.url, error)) from error
    pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return Images(pixels, torch.tensor(data.targets, dtype=torch.int64), list(data.classes), name="cifar10")


def arrays(path: Path, split: Split, name: str) -> Images:
    """An `.npz` of plain arrays; see `load`."""
    if not path.is_file():
        raise DataError(f"{name}: {path} is not there; --data-root must point to the folder above")
    try:
        with np.load(path, allow_pickle=False) as stored:
            have = set(stored.files)
            if f"x_{split}" not in have:
                raise DataError(f"{path}: no array x_{split}; it has {', '.join(sorted(have)) or 'nothing'}")
            x = stored[f"x_{split}"]
            y = stored[f"y_{split}"] if f"y_{split}" in have else None
            names = [str(n) for n in stored["class_names"]] if "class_names" in have else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as .npz of plain arrays: {error}") from error
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise DataError(f"{path}: x_{split} has dtype {x.dtype}, shape {x.shape}; expected uint8 (B, H, W[, C])")
    pixels = torch.from_numpy(x).unsqueeze(1) if x.ndim == 3 else torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    if y is None:
        return Images(pixels, torch.zeros(len(x), dtype=torch.int64), name=name)
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise DataError(f"{path}: y_{split} has dtype {y.dtype}, shape {y.shape}; expected integers ({len(x)},)")
    if names is None:
        raise DataError(f"{path}: has labels y_{split} but no class_names")
    return Images(pixels, torch.from_numpy(y.astype(np.int64)), names, name=name)


def folder(path: Path, split: Split, size: int | None = None) -> Images:
    """A folder of images; see `load`. Every file is opened and decoded here, so that none fails in mid-training.

    Grey and colour must not be mixed. Palettes become colours, transparency is laid on white, EXIF rotation is applied.
    """
    inside = path / split
    both = (path / "train").is_dir() and (path / "test").is_dir()
    top = inside if both else path
    # Classes are counted over the whole set, so that both splits agree on the labels even where one lacks a class.
    names = sorted({c.name for part in ([path / "train", path / "test"] if both else [path]) for c in _folders(part)})
    direct = [f for f in sorted(top.iterdir()) if _is_image(f)]
    if direct and names:
        raise DataError(
            f"{direct[0]}: lies beside class folders ({names[0]}, …); use class folders only, or images only"
        )
    groups = [[f for f in sorted((top / name).rglob("*")) if _is_image(f)] for name in names] if names else [direct]
    for name, group in zip(names, groups, strict=False):
        if not group and not both:
            raise DataError(f"{path / name}: a class folder without images ({', '.join(IMG_EXTENSIONS)})")
    if not any(groups):
        raise DataError(f"{top}: no images ({', '.join(IMG_EXTENSIONS)}), neither here nor in class folders")
    if not both:
        groups = [_tenth(group, split) for group in groups]
    files = [(file, label) for label, group in enumerate(groups) for file in group]
    if not files:
        raise DataError(f"{path}: no class has 10 images to hold a tenth out of; make subfolders train and test")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(lambda item: _decode(item[0], size), files))
    first = decoded[0]
    for (file, _), image in zip(files, decoded, strict=True):
        if image.shape[0] != first.shape[0]:
            kinds = {1: "grey", 3: "colour"}
            raise DataError(
                f"{file}: {kinds[image.shape[0]]}, but {files[0][0]} is {kinds[first.shape[0]]}; convert to one mode"
            )
        if image.shape != first.shape:
            raise DataError(
                f"{file}: {image.shape[2]} x {image.shape[1]} pixels, but {files[0][0]} has "
                f"{first.shape[2]} x {first.shape[1]}; give a size (--size) to resize them all"
            )
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Images(torch.stack(decoded), labels, names, name=path.name or str(path))


def _decode(file: Path, size: int | None) -> Tensor:
    """One file as uint8 (C, H, W), C = 1 (grey) or 3."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read as an image: {error}") from error
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise DataError(f"{file}: mode {image.mode}, expected 8-bit grey or colour; convert it")
    colour = image.mode not in ("1", "L", "LA")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    image = image.convert("RGB" if colour else "L")
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return transforms.pil_to_tensor(image)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".") and file.is_file()


def _folders(path: Path) -> list[Path]:
    return [f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")]


def _tenth(group: Sequence[Path], split: Split) -> list[Path]:
    """A fixed tenth for "test", the rest for "train"; the choice depends on the number of files only."""
    order = np.random.default_rng(0).permutation(len(group))
    held = len(group) // 10
    return [group[i] for i in sorted(order[:held] if split == "test" else order[held:])]


def _first(folders: Sequence[Path], stems: tuple[str, str]) -> tuple[Path, Path] | None:
    """The first folder that has both files, plain or gzipped."""
    for place in folders:
        pair = [next((f for f in (place / stem, place / f"{stem}.gz") if f.is_file()), None) for stem in stems]
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    return None


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """An idx file of bytes (LeCun's format: 0 0 8 d, d big-endian sizes, the data), every byte accounted for."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; delete it to have it downloaded again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: starts with {data[:4].hex()}, expected 000008{dimensions:02x} (idx, unsigned bytes)")
    shape = np.frombuffer(data, ">u4", dimensions, 4).tolist()
    if len(data) - header != int(np.prod([int(n) for n in shape], dtype=object)):
        raise DataError(f"{path}: {len(data) - header} bytes of data, its header says {' x '.join(map(str, shape))}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())


def _download(target: Path, name: str, official: type[datasets.MNIST], stems: Sequence[str]) -> tuple[Path, Path]:
    """The gzipped files from their official mirrors, MD5 checked, complete or not there at all."""
    checksums = dict(official.resources)
    for stem in stems:
        file = f"{stem}.gz"
        errors: list[Exception] = []
        for mirror in official.mirrors:
            try:
                target.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=target) as partial, patience():
                    download_url(mirror + file, partial, file, checksums[file])
                    if not check_integrity(os.path.join(partial, file), checksums[file]):
                        raise RuntimeError("wrong MD5")
                    shutil.move(os.path.join(partial, file), target / file)
                break
            except (RuntimeError, URLError, OSError) as error:
                errors.append(error)
        else:
            problem, where = "is not there and could not be downloaded", " or ".join(official.mirrors)
            raise DataError(offline(name, target / file, problem, where, errors[-1]))
    return target / f"{stems[0]}.gz", target / f"{stems[1]}.gz"


def _brief(x: Tensor) -> str:
    return f"shape {tuple(x.shape)}, dtype {str(x.dtype).removeprefix('torch.')}"


NAMES: Mapping[str, Callable[[Path, Split], Images]] = {
    "digits": lambda root, split: digits(split),
    "mnist": lambda root, split: idx(root, split, "mnist", datasets.MNIST, ("mnist", "MNIST")),
    "fashion-mnist": lambda root, split: idx(
        root, split, "fashion-mnist", datasets.FashionMNIST, ("fashion_mnist", "fashion-mnist")
    ),
    "cifar10": cifar10,
    "cifar10-subset": lambda root, split: arrays(root / "cifar10_subset" / "cifar10_5k1k.npz", split, "cifar10-subset"),
}
"""The edge: names that users type to the functions that load; each takes (data root, split)."""
