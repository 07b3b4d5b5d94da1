"""Data sets of text: whole in memory, as tokens, read once and checked once; examples are windows of them.

A text of N tokens is cut into windows of `length`. Held-out text is cut into consecutive windows that do not overlap,
so that each token is scored once; the N mod length tokens at the end that fill no window are `remainder`. For training
a window starts at every `stride`-th token (a sixteenth of the length) and the last one ends with the text, so every
token is reached, at many places in its window; which windows make up a batch is the training loop's affair.

Figures per character or per word: with the mean loss in nats a token, bits per character are
nats / ln 2 * len(tokens) / characters, and nats per word nats * len(tokens) / words, whatever the vocabulary.

Where the texts come from is the business of `sources`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..core.downloads import data_folder
from ..core.errors import ArgumentError, DataError
from .sources import NAMES, Split, read
from .vocabulary import TEXT8, Bytes, Characters, Pretrained, Vocabulary

__all__ = ["NAMES", "PHASES", "Split", "Text", "load", "spaced_out"]

PHASES = 16
"""In how many places of its window a token of a training set is seen, unless the length has fewer."""


@final
class Text(Dataset[dict[str, Tensor]]):
    """Windows of a text in memory.

    Args:
        tokens: (N,) integers 0 … V - 1, N >= length.
        vocabulary: what they mean.
        length: of a window, L.
        stride: from the start of one window to the next; `length` (the default) for scoring, less for training, where
            the last window ends with the text.
        characters: Unicode code points of the text; counted in what the tokens spell by default.
        words: of the text, separated by white space; likewise.
        name: what the set is called in figures and errors.
        lost: symbols of the original of which the vocabulary's form has nothing, and how often.

    Attributes:
        tokens: uint8 or int32 (N,).
        remainder: tokens at the end that no window holds.

    Raises:
        DataError: too short, or tokens that the vocabulary does not have. ArgumentError: length or stride.
    """

    def __init__(
        self,
        tokens: Tensor,
        vocabulary: Vocabulary,
        length: int,
        *,
        stride: int | None = None,
        characters: int | None = None,
        words: int | None = None,
        name: str = "text",
        lost: Mapping[str, int] | None = None,
    ):
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ArgumentError("length", length, "a positive number of tokens")
        stride = length if stride is None else stride
        if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride <= length:
            raise ArgumentError("stride", stride, f"a number of tokens from 1 to the length, {length}")
        if tokens.ndim != 1 or tokens.dtype not in (torch.uint8, torch.int32, torch.int64):
            raise DataError(f"{name}: tokens must be integers (N,), got {tuple(tokens.shape)} {tokens.dtype}")
        if len(tokens) < length:
            raise DataError(f"{name}: {len(tokens)} tokens, fewer than one window of {length}: take more text")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocabulary.size:
            raise DataError(f"{name}: tokens {low} … {high}, but the vocabulary has 0 … {vocabulary.size - 1}")
        kind = torch.uint8 if vocabulary.size <= 256 else torch.int32
        self.tokens, self.vocabulary, self.length, self.stride = tokens.to(kind), vocabulary, length, stride
        self.name, self._characters, self._words = name, characters, words
        self.lost = dict(lost or {})
        spare = len(tokens) - length
        whole = spare // stride + 1
        # Overlapping windows reach the end of the text by one more; scoring must not count a token twice.
        self._last = spare if stride < length and spare % stride else None
        self.remainder = 0 if self._last is not None else spare - (whole - 1) * stride
        self._windows = whole + (self._last is not None)

    def __len__(self) -> int:
        return self._windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x_0": self.batch([index])["x_0"][0]}

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Many windows at once: {"x_0": long (B, L)}.

        Raises:
            IndexError: there is no such window; negative ones count from the end.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64)
        if indices.numel() and not -len(self) <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"{self.name}: {len(self)} windows, asked for {int(indices.min())} … {int(indices.max())}")
        starts = indices.remainder(len(self)) * self.stride
        if self._last is not None:
            starts.clamp_(max=self._last)
        return {"x_0": self.tokens[starts[:, None] + torch.arange(self.length)].long()}

    @property
    def counts(self) -> Tensor:
        """How often each token occurs, (V,) float64."""
        return torch.bincount(self.tokens, minlength=self.vocabulary.size).double()

    @property
    def text(self) -> str:
        """What the tokens spell."""
        return self.vocabulary.decode(self.tokens.numpy())  # pyright: ignore[reportArgumentType]: an array will do

    @property
    def characters(self) -> int:
        """Unicode code points of the whole text."""
        if self._characters is None:
            self._characters = len(self.text)
        return self._characters

    @property
    def words(self) -> int:
        """Words of the whole text: what white space separates."""
        if self._words is None:
            self._words = len(self.text.split())
        return self._words

    def fingerprint(self) -> str:
        """SHA-256 over tokens, vocabulary and windows: equal sets have equal fingerprints."""
        about = {key: value for key, value in asdict(self.vocabulary).items() if key != "content"}  # pyright: ignore
        digest = hashlib.sha256(f"{type(self.vocabulary).__name__} {about} {self.length} {self.stride}".encode())
        digest.update(self.tokens.contiguous().numpy().data)
        return digest.hexdigest()


def load(
    source: str | os.PathLike[str],
    split: Split = "train",
    *,
    length: int,
    vocabulary: Characters | Pretrained | Bytes | None = None,
    data_root: str | os.PathLike[str] | None = None,
) -> Text:
    """A data set by name (`NAMES`), from the Hugging Face hub, or from the user's own files.

    The text is brought into the vocabulary's form first (`Vocabulary.normalise`: for the alphabet of text8 lower-case
    letters and single spaces; `Text.lost` counts what had no letter). What the vocabulary cannot write after that is
    an error.

    Args:
        source: a name; a file or folder of `.txt`, `.md` or `.txt.xz`; or "hf:owner/name" or "hf:owner/name:column"
            for a data set of the hub; see `sources.read` for how it is split.
        split: "train", "valid" or "test".
        length: of a window in tokens.
        vocabulary: the 27 symbols of text8 by default.
        data_root: where the named sets lie or are downloaded to; default: environment variable POLYDIFF_DATA, else
            `~/.cache/polydiff`. Files already there are only read.

    Raises:
        DataError: names the file or set at fault, the position in it, and the way out. ArgumentError: split or length.
    """
    if split not in ("train", "valid", "test"):
        raise ArgumentError("split", split, "'train', 'valid' or 'test'")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ArgumentError("length", length, "a positive number of tokens")
    vocabulary = Characters(TEXT8) if vocabulary is None else vocabulary
    name, text = read(source, split, data_folder(data_root))
    label = f"{name} ({split})"
    if not text or text.isspace():
        raise DataError(f"{label}: no text")
    lost, text = vocabulary.lost(text), vocabulary.normalise(text)
    try:
        tokens = torch.from_numpy(vocabulary.array(text))
    except ArgumentError as error:
        raise DataError(
            f"{label}: {error.got}, which the vocabulary lacks: take another one (Bytes takes all), or clean it"
        ) from error
    stride = max(1, length // PHASES) if split == "train" else None
    if len(tokens) < length and lost:
        raise DataError(f"{label}: {len(tokens)} tokens, fewer than one window of {length}; {spaced_out(lost)}")
    counts = {"characters": len(text), "words": len(text.split())}
    return Text(tokens, vocabulary, length, stride=stride, name=name, lost=lost, **counts)


def spaced_out(lost: Mapping[str, int]) -> str:
    """What the vocabulary's form of a text does not say, in words."""
    often = sorted(lost, key=lambda symbol: -lost[symbol])[:4]
    return (
        f"{sum(lost.values())} letters, digits or signs that the vocabulary lacks became spaces, such as "
        f"{' '.join(often)}; the vocabulary bytes keeps all"
    )
