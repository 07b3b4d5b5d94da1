"""From the names on command lines to vocabularies and models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.checkpoints import read_json
from ..core.errors import DataError
from ..core.runs import model_folder
from .autoregressive import AutoregressivePipeline
from .pipeline import TextPipeline
from .vocabulary import TEXT8, Bytes, Characters, Pretrained

__all__ = ["load_diffusion", "load_model", "vocabulary_named"]

LARGEST_CONFIG = 1 << 20
BASELINES = (AutoregressivePipeline.__name__,)

NAMED: Mapping[str, Characters | Bytes] = {"text8": Characters(TEXT8), "bytes": Bytes()}


def vocabulary_named(name: str) -> Characters | Bytes | Pretrained:
    """text8, bytes, or a tokenizer of the Hugging Face libraries by name or folder.

    Raises:
        DataError: no such tokenizer.
    """
    if name not in NAMED and os.path.isabs(name) and not os.path.exists(name):
        raise DataError(f"{name}: no such tokenizer")  # the hub has no names like that; asking it takes seconds
    return NAMED[name] if name in NAMED else Pretrained.read(name)


def load_model(name: str) -> TextPipeline | AutoregressivePipeline:
    """A model by name, from a folder with a model, or from the folder of a finished run; of either kind.

    Raises:
        DataError, CheckpointError, ConfigError: see `core.pipeline.Pipeline.from_pretrained`.
    """
    path = model_folder(Path(name), "text")
    folder = path if path.is_dir() else TextPipeline.shipped().get(name)
    config = None if folder is None else folder / "config.json"
    is_baseline = (
        config is not None and config.is_file() and read_json(config, LARGEST_CONFIG).get("pipeline") in BASELINES
    )
    kind = AutoregressivePipeline if is_baseline else TextPipeline
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return kind.from_pretrained(path if path.is_dir() else name, device=device)


def load_diffusion(name: str, purpose: str) -> TextPipeline:
    """`load_model`, or a DataError that says the purpose for which the baseline will not do."""
    pipeline = load_model(name)
    if not isinstance(pipeline, TextPipeline):
        raise DataError(f"{name}: an autoregressive model, which cannot {purpose}; take a diffusion model")
    return pipeline
