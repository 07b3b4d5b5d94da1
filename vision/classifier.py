"""A small classifier, trained on a data set itself, that measures samples where no published network can.

It has two uses, and each is given to its own network, of another width, trained from another seed, so that what one
happens to like does not decide the other's figure:

- the judge reads the class of a conditional sample (Ravuri and Vinyals 2019, "Classification accuracy score", use the
  reverse direction; here real images train and samples are read);
- the extractor gives the features, the averaged last layer, in which FID and its relatives compare laws of images.

Both see training images only. The network is a plain residual one (He et al. 2016, arXiv:1512.03385) with batch
normalisation, trained with random shifts, AdamW and one cycle of the learning rate (Smith 2018, arXiv:1803.09820).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..core.errors import ArgumentError, CheckpointError, DataError
from .data import Images, load, to_unit

__all__ = ["Classifier", "Options", "cached", "extractor_options", "judge_options", "main", "shift", "train_classifier"]

FORMAT = 1
PRETRAINED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Options:
    """How a classifier is built and trained; with the data and the version of this file it decides every weight.

    Args:
        seed: of weights, order and shifts.
        width: channels of the first stage; the next has twice as many, all later ones, and the features, three times.
        epochs: passes over the data; None: as many as make 480,000 images, but 6 … 60.
        batch_size, learning_rate (the cycle's peak), weight_decay: of AdamW.
        shift: images move by up to this many pixels; None: a fourteenth of the height, but at least 1.
        smoothing: of the labels.
    """

    seed: int = 1
    width: int = 28
    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 6e-3
    weight_decay: float = 0.02
    shift: int | None = None
    smoothing: float = 0.05

    def __post_init__(self) -> None:
        for name in ("width", "batch_size"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, getattr(self, name), "a positive number")
        if self.epochs is not None and self.epochs < 1:
            raise ArgumentError("epochs", self.epochs, "a positive number, or None")
        if self.shift is not None and self.shift < 0:
            raise ArgumentError("shift", self.shift, "pixels >= 0, or None")
        if not 0 <= self.smoothing < 1:
            raise ArgumentError("smoothing", self.smoothing, "a share in [0, 1)")

    def complete(self, data: Images) -> Options:
        """The same with every None replaced by what it means for this data."""
        epochs = min(60, max(6, round(480_000 / len(data)))) if self.epochs is None else self.epochs
        return replace(self, epochs=epochs, shift=max(1, data.shape[1] // 14) if self.shift is None else self.shift)


def judge_options() -> Options:
    """The network that reads classes."""
    return Options(seed=1, width=28)


def extractor_options() -> Options:
    """The network that gives features: neither weights nor width are the judge's."""
    return Options(seed=2, width=24)


def shift(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Moves each image (B, C, H, W) by its own whole number of pixels, at most `pixels`, edges repeated."""
    if pixels == 0:
        return x
    count, _, height, width = x.shape
    by = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + by[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + by[1]).clamp(0, width - 1)
    moved = x[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)


def train_classifier(
    data: Images, options: Options | None = None, *, device: str = "cpu", progress: bool = False
) -> Classifier:
    """Trains on `data`; the same data, options, machine and number of threads give the same weights.

    Raises:
        ArgumentError: the set has fewer than two classes, fewer images than one batch needs, or images below 4 x 4.
    """
    if data.num_classes < 2:
        raise ArgumentError("data", data.name, "a set with at least two classes")
    if min(data.shape[1:]) < 4 or len(data) < 2:
        raise ArgumentError("data", data.images, "at least 2 images of at least 4 x 4 pixels")
    options = (options or judge_options()).complete(data)
    assert options.epochs is not None
    assert options.shift is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Classifier(data.shape, data.class_names, data.levels, options, data.name, data.fingerprint())
    model.to(device).train()
    generator = torch.Generator().manual_seed(options.seed)
    size = min(options.batch_size, len(data))
    steps = len(data) // size
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.epochs * steps, pct_start=0.2
    )
    # bf16 only where the machine multiplies in it; elsewhere it would be slower, not faster.
    fast = device.startswith("cuda") or bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    with tqdm(
        total=options.epochs * steps, desc=f"classifier of {data.name}", disable=not progress, leave=False
    ) as bar:
        for _ in range(options.epochs):
            order = torch.randperm(len(data), generator=generator)
            for chosen in order[: steps * size].split(size):
                x = shift(to_unit(data.images[chosen], data.levels), options.shift, generator)
                x = x.to(device).contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=fast):
                    logits = model.head(model.network(x))
                loss = F.cross_entropy(
                    logits.float(), data.labels[chosen].to(device), label_smoothing=options.smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                bar.update()
    return model.eval().requires_grad_(False)


@final
class Classifier(nn.Module):
    """Reads uint8 images of one shape and one number of levels; always returns to the CPU.

    Args:
        shape: (C, H, W) of the images. class_names: one a class. levels: as in `Images`.
        options: what it was, or will be, trained with. trained_on, fingerprint: name and hash of the training data.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        class_names: Sequence[str],
        levels: int,
        options: Options,
        trained_on: str,
        fingerprint: str,
    ):
        super().__init__()
        self.shape, self.class_names, self.levels = tuple(shape), tuple(class_names), levels
        self.options, self.trained_on, self.fingerprint = options, trained_on, fingerprint
        channels, side, width = shape[0], min(shape[1:]), options.width
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inside, halvings = width, 0
        while side > 8 or halvings == 0:
            outside = width * (2 if halvings == 0 else 3)
            layers += [nn.MaxPool2d(2), Block(inside, outside)]
            inside, side, halvings = outside, side // 2, halvings + 1
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(inside, len(self.class_names))

    @property
    def name(self) -> str:
        """What stands in a figure's name, for instance "digits classifier features"."""
        return f"{self.trained_on} classifier features"

    def features(self, images: Tensor) -> Tensor:
        """The averaged last layer: uint8 (B, C, H, W) to float32 (B, D), in chunks, without gradient."""
        return self._run(images, self.network)

    def forward(self, images: Tensor) -> Tensor:
        """The features; so that a classifier is an extractor."""
        return self.features(images)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, num_classes)."""
        return self._run(images, nn.Sequential(self.network, self.head))

    def predict(self, images: Tensor) -> Tensor:
        """The most likely class, long (B,)."""
        return self.logits(images).argmax(1)

    @torch.inference_mode()
    def _run(self, images: Tensor, network: nn.Module, chunk: int = 500) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.shape or not len(images):
            expected = f"uint8 (B, {', '.join(map(str, self.shape))}) with B > 0, as in {self.trained_on}"
            raise ArgumentError("images", images, expected)
        if int(images.max()) >= self.levels:
            raise ArgumentError("images", int(images.max()), f"pixel values 0 … {self.levels - 1}")
        network.eval()
        device = self.head.weight.device
        return torch.cat([network(to_unit(part.to(device), self.levels)).float().cpu() for part in images.split(chunk)])

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype = torch.float32, **notes: Any) -> None:
        """Writes `model.safetensors` and `config.json`, both or none; `notes` (JSON) are kept in the config.

        dtype bfloat16 halves the file; loading widens it again.
        """
        target = Path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        config = {
            "format_version": FORMAT,
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "levels": self.levels,
            "trained_on": self.trained_on,
            "fingerprint": self.fingerprint,
            "options": asdict(self.options),
            "notes": notes,
        }
        state = self.state_dict()
        tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()}
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            complete = Path(temporary) / "complete"
            complete.mkdir()
            save_file(tensors, complete / "model.safetensors")
            (complete / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if target.exists():
                shutil.rmtree(target)
            os.replace(complete, target)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Classifier:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the other.
        """
        source = Path(folder)
        try:
            config = json.loads((source / "config.json").read_text())
            if config["format_version"] != FORMAT:
                raise CheckpointError(f"{source}: format_version {config['format_version']}, expected {FORMAT}")
            options = Options(**config["options"])
            shape, names, levels = tuple(config["shape"]), config["class_names"], config["levels"]
            model = cls(shape, names, levels, options, config["trained_on"], config["fingerprint"])
            tensors = load_file(source / "model.safetensors")
            state = model.state_dict()
            model.load_state_dict({k: v.to(state[k].dtype) if k in state else v for k, v in tensors.items()})
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{source}: not a saved classifier: {error}") from error
        return model.eval().requires_grad_(False)


@final
class Block(nn.Module):
    """relu(skip(x) + bn(conv(relu(bn(conv(x)))))), 3 x 3; the skip is 1 x 1."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(inside, outside, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.skip(x) + self.norms[1](self.second(h)))


def cached(
    data: Images,
    options: Options | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Classifier:
    """`train_classifier`, unless the same data and options were trained before: shipped, or kept under `cache`.

    Args:
        cache: default: `classifiers` in POLYDIFF_CACHE, else `~/.cache/polydiff`. A damaged entry is trained anew.
    """
    options = (options or judge_options()).complete(data)
    base = Path(os.environ.get("POLYDIFF_CACHE") or Path.home() / ".cache" / "polydiff").expanduser()
    key = hashlib.sha256(json.dumps([FORMAT, data.fingerprint(), asdict(options)]).encode()).hexdigest()[:16]
    own = Path(cache or base / "classifiers") / f"{data.name}-{key}"
    for folder in (own, *sorted(PRETRAINED.glob("*-judge")), *sorted(PRETRAINED.glob("*-features"))):
        if (folder / "config.json").is_file():
            try:
                found = Classifier.load(folder)
            except CheckpointError:
                continue
            if found.fingerprint == data.fingerprint() and found.options == options:
                return found.to(device)
    try:  # before the training, which may take minutes
        own.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=own.parent):
            pass
    except OSError as error:
        raise DataError(f"{own.parent}: a classifier cannot be kept there ({error}); give a writable cache") from error
    trained = train_classifier(data, options, device=device, progress=progress)
    trained.save(own)
    return trained


def card(model: Classifier, command: str, notes: dict[str, Any]) -> str:
    """The model card of a stored classifier."""
    parameters = sum(p.numel() for p in model.parameters())
    return f"""# A classifier of {model.trained_on}

Reads or measures samples in `polydiff.vision.metrics`; not meant for anything else. {parameters:,} parameters,
bfloat16, seed {model.options.seed}, {model.options.epochs} epochs over the training images only (their SHA-256 and all
options: `config.json`). Held-out images read correctly: {notes["held_out_accuracy"]:.2%} of {notes["held_out"]:,}.
Training took {notes["training_seconds"]:.0f} s on {notes["threads"]} CPU thread(s) with torch {notes["torch"]}.
To train it again (other machines round differently, so the weights will differ a little):

    {command}

It knows the classes and the look of its training set alone: whatever else it is shown, it answers with one of them.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains one of the two networks and writes it, in bfloat16, with its held-out accuracy as stored."""
    roles = {"judge": judge_options, "features": extractor_options}
    parser = argparse.ArgumentParser(prog="python -m polydiff.vision.classifier", description=main.__doc__)
    parser.add_argument("--data", default="fashion-mnist", help="a data set by name, or a folder with class subfolders")
    parser.add_argument("--data-root", help="where the named data sets lie")
    parser.add_argument("--role", choices=roles, default="judge", help="which of the two networks")
    parser.add_argument("--out", type=Path, help="folder to write; default: pretrained/<data>-<role> in this package")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(arguments)
    train, test = (load(chosen.data, split, data_root=chosen.data_root) for split in ("train", "test"))
    begun = time.perf_counter()
    model = train_classifier(train, roles[chosen.role](), device=chosen.device, progress=True)
    seconds = time.perf_counter() - begun
    out = chosen.out or PRETRAINED / f"{train.name}-{chosen.role}"
    model.save(out, torch.bfloat16)
    stored = Classifier.load(out)
    accuracy = float((stored.predict(test.images) == test.labels).double().mean())
    notes = {"held_out_accuracy": round(accuracy, 4), "held_out": len(test), "training_seconds": round(seconds, 1)}
    notes |= {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    stored.save(out, torch.bfloat16, **notes)
    command = f"python -m polydiff.vision.classifier --data {chosen.data} --role {chosen.role}"
    (out / "README.md").write_text(card(stored, command, notes))
    print(f"{out}: {accuracy:.2%} of {len(test)} held-out images, trained in {seconds:.0f} s")


if __name__ == "__main__":
    main()
