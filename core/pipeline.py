"""Pipelines: a trained model and its configuration, kept in a folder by the conventions of Hugging Face.

    model.safetensors   the weights; float32 parameters may be stored in half precision and are read back as float32
    config.json         {"format_version": 1, "pipeline": "<class>", "weights": {"sha256": …}, "config": {…}}
    README.md           the model card
    solver-<n>.json     optional: calibrated solvers for n network calls
    …                   what a domain keeps beside them, by name, see `Pipeline.beside`

Such a folder may come from a stranger, so reading is strict and checks before it trusts: the configuration must fit the
dataclass; no file may lie outside the folder; nothing in it names code; the model that the configuration asks for is
refused while it is being built as soon as it outgrows the weights in the file; and names, shapes and types of all
weights must be those of the model.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import safetensors
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .calibration import Calibrated
from .checkpoints import read_json, sha256, write_tensors
from .config import from_dict, to_dict
from .errors import ArgumentError, CheckpointError, ConfigError, DataError
from .files import synchronise_folder, write_atomically
from .runs import model_folder

__all__ = ["Card", "Pipeline"]

FORMAT_VERSION = 1
WEIGHTS, CONFIG, CARD, SOLVERS = "model.safetensors", "config.json", "README.md", "solver-*.json"
LARGEST_CONFIG = 1 << 20
LARGEST_HEADER = 10_000_000
SPARE_ELEMENTS = 1 << 26
"""Elements of tensors that a model may make beyond four times its weights: schedule tables, position codes, …"""
SPARE_TENSORS = 10_000

C = TypeVar("C")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A model card: what one must know about weights before using them. Empty entries are left out.

    Attributes:
        title: of the card.
        summary: what the model does, a sentence or two.
        data: what it was trained on, and where that comes from.
        licence: SPDX identifier of the licence of the weights, such as "Apache-2.0".
        command: that trains it again.
        time: the training took.
        machine: it ran on: processor or accelerator, number of cores.
        seed: of the run.
        figures: name -> measured value; the name says the data, and how it was measured.
        limits: what the model cannot do, and what it should not be used for.
        tags: for the hub.
    """

    title: str
    summary: str = ""
    data: str = ""
    licence: str = ""
    command: str = ""
    time: str = ""
    machine: str = ""
    seed: int | None = None
    figures: Mapping[str, float | str] = field(default_factory=dict)
    limits: str = ""
    tags: tuple[str, ...] = ("diffusion",)

    def markdown(self) -> str:
        """The card as README.md, YAML front matter first."""
        head = ["---", "library_name: polydiff", f"tags: {json.dumps(list(self.tags))}"]
        head += [f"license: {json.dumps(self.licence.lower())}"] if self.licence else []
        parts = ["\n".join([*head, "---"]), f"# {self.title}", self.summary]
        facts = {"Data": self.data, "Licence": self.licence, "Training time": self.time, "Machine": self.machine}
        facts["Seed"] = "" if self.seed is None else str(self.seed)
        parts.append("\n".join(f"- **{name}**: {value}" for name, value in facts.items() if value))
        if self.command:
            parts.append(f"## Training\n\n```\n{self.command}\n```")
        if self.figures:
            rows = [f"| {name} | {_figure(value)} |" for name, value in self.figures.items()]
            parts.append("\n".join(["## Figures\n", "| figure | value |", "|---|---|", *rows]))
        if self.limits:
            parts.append(f"## Limits\n\n{self.limits}")
        return "\n\n".join(part for part in parts if part) + "\n"


class Pipeline(ABC, Generic[C]):
    """A model that can be kept and shared; domains add how it is used.

    A subclass names the dataclass of its configuration, `config_class`, and says how to `build` a model from one.

    Args:
        config: the configuration.
        model: the module that `build(config)` makes, trained.

    Attributes:
        card: the text of the model card it was read with, if any; kept when it is saved again.
        solvers: network calls -> the solver calibrated for that many, saved with the model.
    """

    config_class: ClassVar[type[Any]]
    beside: ClassVar[tuple[str, ...]] = ()
    """Names of the files that a domain may keep in the folder besides; see `write_beside`."""

    def __init__(self, config: C, model: nn.Module):
        self.config, self.model = config, model
        self.card: str | None = None
        self.solvers: dict[int, Calibrated] = {}

    @classmethod
    @abstractmethod
    def build(cls, config: C) -> nn.Module:
        """The untrained model of `config`, on the CPU; its state_dict is what is kept."""

    def to(self, device: torch.device | str) -> Self:
        """Move the model to `device`."""
        self.model.to(device)
        return self

    def write_beside(self, folder: Path) -> None:
        """Write the files of `beside` that there is something for, each whole or not at all."""

    def read_beside(self, folder: Path) -> None:
        """Take what the files of `beside` hold; those that exist lie in `folder` itself."""

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, card: Card | None = None, dtype: torch.dtype | None = None
    ) -> Path:
        """Write weights, configuration and card; each file is replaced whole or not at all.

        Args:
            folder: made if missing.
            card: the model card; without it, the card that was read, or one that has only a title.
            dtype: torch.bfloat16 or torch.float16 to store float32 parameters so; buffers are never rounded.

        Returns:
            The folder.

        Raises:
            ArgumentError: a dtype that cannot be used, a configuration that cannot be kept, or weights not finite.
            DataError: the folder cannot be written.
        """
        if dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
            raise ArgumentError("dtype", dtype, "torch.bfloat16, torch.float16 or None")
        config = to_dict(self.config)
        if from_dict(self.config_class, config) != self.config:
            raise ArgumentError("config", self.config, "values that a configuration file can hold")
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            tensors[name] = tensor.to(dtype) if name in parameters and tensor.dtype == torch.float32 else tensor
            if not tensors[name].isfinite().all():
                raise ArgumentError(f"model: {name}", "values that are not finite", "finite weights (also as stored)")

        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as temporary:
                weights = Path(temporary) / WEIGHTS
                write_tensors(weights, tensors, {"format": "pt"})
                digest = sha256(weights)
                os.replace(weights, folder / WEIGHTS)
            synchronise_folder(folder)
            text = self.card if card is None and self.card else (card or Card(type(self).__name__)).markdown()
            write_atomically(folder / CARD, text)
            # Whoever is stopped here has a solver too many, not one too few.
            solvers = {folder / SOLVERS.replace("*", str(calls)): solver for calls, solver in self.solvers.items()}
            for path, solver in solvers.items():
                solver.save(path)
            for old in set(folder.glob(SOLVERS)) - solvers.keys():
                old.unlink()
            self.write_beside(folder)
            synchronise_folder(folder)
            # Last, for it vouches for the weights: whoever reads between the replacements is told so, not fooled.
            whole = {"format_version": FORMAT_VERSION, "pipeline": type(self).__name__, "weights": {"sha256": digest}}
            write_atomically(folder / CONFIG, json.dumps(whole | {"config": config}, indent=2, allow_nan=False) + "\n")
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{folder}: the model cannot be written ({error})") from error
        self.card = text
        return folder

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> Self:
        """Read a pipeline; its model is in evaluation mode.

        Args:
            name_or_path: the folder of a model or of a finished run; or the name of a model that ships with the domain;
                or a repository of the Hugging Face hub, "owner/name".
            revision: branch, tag or commit of the repository.
            device: of the model.

        Raises:
            DataError: nothing of that name, or the hub cannot be reached.
            ConfigError: a configuration that cannot be used, or that asks for another model than the weights are of.
            CheckpointError: weights that are damaged or do not fit; the message names the file and the weights.
        """
        folder, root = cls._locate(name_or_path, revision)
        config_file, weights = (_inside(root, folder / name) for name in (CONFIG, WEIGHTS))
        whole = _read_config(config_file, cls.__name__)
        config = from_dict(cls.config_class, whole["config"], "config")
        found = _header(weights)
        if (expected := whole["weights"].get("sha256")) is not None and sha256(weights) != expected:
            raise CheckpointError(f"{weights}: not the weights that {CONFIG} was written with")
        with _Budget(found):
            model = cls.build(config)
        _load(model, weights, found)
        pipeline = cls(config, model.eval().to(device))
        if (folder / CARD).exists():
            pipeline.card = _inside(root, folder / CARD).read_text(encoding="utf-8", errors="replace")
        for path in sorted(folder.glob(SOLVERS)):
            solver = Calibrated.load(_inside(root, path))
            pipeline.solvers[len(solver.times) - 1] = solver
        for name in cls.beside:
            if (folder / name).exists():
                _inside(root, folder / name)
        pipeline.read_beside(folder)
        return pipeline

    @classmethod
    def kind_of(cls, name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> str:
        """The name of the class that a model was saved by, "" where its configuration does not tell.

        Args, Raises: as `from_pretrained`.
        """
        folder, root = cls._locate(name_or_path, revision)
        return str(read_json(_inside(root, folder / CONFIG), LARGEST_CONFIG).get("pipeline", ""))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: Card | None = None,
        dtype: torch.dtype | None = None,
        private: bool = False,
        message: str = "Upload model",
        token: str | None = None,
    ) -> str:
        """Write the pipeline to a repository of the Hugging Face hub, made if missing.

        Args:
            repo_id: "owner/name".
            card, dtype: as in `save_pretrained`.
            private: whether a new repository is.
            message: of the commit.
            token: of the owner; the one of `hf auth login` by default.

        Returns:
            The address of the commit.

        Raises:
            ArgumentError: as `save_pretrained`, or a repo_id that cannot be one.
            DataError: the hub cannot be reached or refuses.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        if not _is_repository(repo_id):
            raise ArgumentError("repo_id", repo_id, "owner/name")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, dtype=dtype)
            try:
                api = HfApi(token=token)
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
            except (OSError, HfHubHTTPError) as error:
                raise DataError(f"{repo_id}: the Hugging Face hub did not take the model ({error})") from error

    @classmethod
    def shipped(cls) -> dict[str, Path]:
        """The models that come with the domain's package, name -> folder."""
        package = cls.__module__.rpartition(".")[0]
        if not package:
            return {}
        folder = Path(str(importlib.resources.files(package))) / "pretrained"
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        # Classifiers for evaluation lie there too; they are no pipelines.
        return {path.name: path for path in paths if (path / CONFIG).is_file() and _is_pipeline(path / CONFIG)}

    @classmethod
    def _locate(cls, name_or_path: str | os.PathLike[str], revision: str | None) -> tuple[Path, Path]:
        """The folder, and the folder that no file may lie outside of."""
        path = Path(name_or_path)
        name = os.fspath(name_or_path)
        shipped = cls.shipped()
        if path.is_dir() or (isinstance(name_or_path, str) and name in shipped):
            if revision is not None:
                raise ArgumentError("revision", revision, "None: only repositories of the hub have revisions")
            domain = cls.__module__.rpartition(".")[0].rpartition(".")[2]
            folder = model_folder(path, domain) if path.is_dir() else shipped[name]
            return folder, folder
        if isinstance(name_or_path, str) and _is_repository(name):
            folder = _download(name, revision, cls.beside)
            return folder, folder.parent.parent  # the hub's cache links files to its blobs
        known = f"; models that ship: {', '.join(shipped)}" if shipped else ""
        raise DataError(f"{name}: no such folder, shipped model or repository (owner/name){known}")


def _download(name: str, revision: str | None, beside: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = [WEIGHTS, CONFIG, CARD, SOLVERS, *beside]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{name}: no folder of that name, and it cannot be had from the Hugging Face hub ({reason}); "
            "check the name, or fetch it once while online"
        ) from error


def _is_pipeline(config: Path) -> bool:
    try:
        return "pipeline" in read_json(config, LARGEST_CONFIG)
    except CheckpointError:
        return False


def _is_repository(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(_PLAIN.fullmatch(part) and ".." not in part for part in parts)


def _inside(root: Path, path: Path) -> Path:
    """`path`, if it exists and does not lead out of `root`."""
    if not path.exists():
        raise CheckpointError(f"{path}: missing")
    if not path.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(f"{path}: leads out of its folder")
    return path


def _read_config(path: Path, pipeline: str) -> dict[str, Any]:
    try:
        whole = read_json(path, LARGEST_CONFIG)
    except CheckpointError as error:
        raise ConfigError(CONFIG, str(error), "a configuration in JSON") from error
    version = whole.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ConfigError("format_version", version, f"{FORMAT_VERSION}, in {path}")
    if whole.get("pipeline") != pipeline:
        raise ConfigError("pipeline", whole.get("pipeline"), f"{pipeline!r}, in {path}")
    for key in ("weights", "config"):
        if not isinstance(whole.get(key), dict):
            raise ConfigError(key, whole.get(key), f"a table, in {path}")
    return whole


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> shape and dtype of the tensors in a safetensors file, whose data are not read."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise CheckpointError(f"{path}: a header of {size} bytes, at most {LARGEST_HEADER} are read")
        found = {}
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                piece = file.get_slice(name)
                found[name] = (tuple(piece.get_shape()), _DTYPES.get(piece.get_dtype(), piece.get_dtype()))
        return found
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error


def _load(model: nn.Module, path: Path, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Copy the weights in `path` into `model`, after everything has been found to fit."""
    own = model.state_dict(keep_vars=True)
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in own]
    for name in own.keys() & found.keys():
        shape, dtype = found[name]
        wanted, kind = tuple(own[name].shape), own[name].dtype
        if shape != wanted:
            problems.append(f"{name} has shape {shape}, expected {wanted}")
        widens = kind == torch.float32 and dtype in (torch.bfloat16, torch.float16)
        if dtype != kind and not widens:
            problems.append(f"{name} has type {dtype}, expected {kind}")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(sorted(problems)[:8])}{more}")
    with torch.no_grad(), safetensors.safe_open(path, framework="pt") as file:
        for name, target in own.items():
            value = file.get_tensor(name)
            if not value.isfinite().all():
                raise CheckpointError(f"{path}: {name} has values that are not finite")
            target.copy_(value)


class _Budget(TorchFunctionMode):
    """Refuses, before memory is taken, to make more tensors than weights of the given sizes can need.

    Each call of a tensor's constructor is first made on the meta device, where it only tells the size of its result.
    """

    makers: ClassVar[frozenset[Callable[..., Any]]] = frozenset(
        {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.arange}
        | {torch.linspace, torch.logspace, torch.eye, torch.randperm, torch.empty_strided}
    )

    def __init__(self, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]]):
        super().__init__()
        self.elements = 4 * sum(math.prod(shape) for shape, _ in found.values()) + SPARE_ELEMENTS
        self.tensors = 4 * len(found) + SPARE_TENSORS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.makers:
            plain = {key: value for key, value in kwargs.items() if key not in ("generator", "out", "pin_memory")}
            try:
                self.elements -= func(*args, **(plain | {"device": "meta"})).numel()
            except (RuntimeError, OverflowError) as error:  # more elements than can be counted
                raise ConfigError("config", f"a model that cannot be made ({error})", "sizes that can be") from error
            self.tensors -= 1
            if self.elements < 0 or self.tensors < 0:
                raise ConfigError("config", f"a model larger than the weights in {WEIGHTS}", "the sizes of the weights")
        return func(*args, **kwargs)


def _figure(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
