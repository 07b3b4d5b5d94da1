"""Vocabularies: how text becomes tokens 0 … size - 1 and comes back.

A vocabulary is a frozen dataclass that goes into a model's configuration. `Characters` has one token a symbol of an
alphabet; `Bytes` one a byte of UTF-8; `Pretrained` is any tokenizer of the Hugging Face libraries, whose
`tokenizer.json` lies beside the configuration: pure data, so that a saved model needs no network and runs no code.

None of them counts the mask: where a kernel has one it is the token `size`, which no text encodes to. Nothing is
dropped in silence: a symbol that the alphabet lacks is an error. What a vocabulary regards as the same text is said by
`normalise`, which callers apply before `encode`: the 27 symbols of text8 stand for lower-case English.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from ..core.config import Invocation, Range
from ..core.errors import ArgumentError, CheckpointError, DataError
from ..core.files import write_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "TEXT8",
    "TOKENIZER",
    "AnyVocabulary",
    "Bytes",
    "Characters",
    "Pretrained",
    "Vocabulary",
    "lost",
    "normalise",
]

TEXT8 = " abcdefghijklmnopqrstuvwxyz"
"""The 27 symbols of text8 (Mahoney 2011)."""

TOKENIZER = "tokenizer.json"
"""The file that a `Pretrained` vocabulary keeps in a model's folder."""
LARGEST_TOKENIZER = 1 << 28


def normalise(text: str) -> str:
    """Text in the 27 symbols of text8: lower-case, every run of anything but a-z one space.

    Compatibility decomposition comes first and drops accents (NFKD without marks: "é" is "e", "ﬁ" is "fi"); letters
    that it does not take apart, such as "æ" or "ß", and digits (text8 itself spells them out) count as not a-z.
    """
    return re.sub("[^a-z]+", " ", re.sub("[^\\x00-\\x7f]+", _plain, text).lower())


def lost(text: str) -> Counter[str]:
    """Letters, digits and signs of which `normalise` leaves nothing, and how often; punctuation is not counted."""
    kept = {symbol for symbol in set(text) if unicodedata.category(symbol)[0] in "ZPC" or normalise(symbol).strip()}
    return Counter({symbol: count for symbol, count in Counter(text).items() if symbol not in kept})


def _plain(run: re.Match[str]) -> str:
    decomposed = unicodedata.normalize("NFKD", run[0])
    return "".join(symbol for symbol in decomposed if not unicodedata.combining(symbol))


class Vocabulary(ABC):
    """What every vocabulary can do."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of tokens, a mask not counted."""

    @abstractmethod
    def array(self, text: str) -> NDArray[np.uint8] | NDArray[np.int32]:
        """The tokens of `text`, (L,); errors as `encode`."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; ArgumentError for one outside 0 … size - 1, such as a mask."""

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`; decoding gives it back (see the classes for what may differ).

        Raises:
            ArgumentError: a symbol that the vocabulary lacks, named with its position.
        """
        return self.array(text).tolist()

    def normalise(self, text: str) -> str:
        """The form of `text` that this vocabulary is for; `text` itself except for the alphabet of text8."""
        return text

    def lost(self, text: str) -> Counter[str]:
        """Letters, digits and signs of which `normalise` leaves nothing, and how often."""
        return Counter()

    def save(self, folder: str | os.PathLike[str]) -> None:  # noqa: B027
        """Write what the configuration does not hold into a model's folder; nothing for most."""

    def at(self, folder: str | os.PathLike[str]) -> Vocabulary:
        """This vocabulary with what `save` wrote into `folder`."""
        return self

    def checked(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """Tokens as an array, after a look at their range."""
        found = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = np.flatnonzero((found < 0) | (found >= self.size))
        if len(wrong):
            position = int(wrong[0])
            raise ArgumentError(f"ids[{position}]", int(found[position]), f"a token in 0 … {self.size - 1}")
        return found


@final
@dataclass(frozen=True)
class Characters(Vocabulary):
    """One token for each symbol of an alphabet, in its order; decoding is exact.

    Raises:
        ArgumentError: an empty alphabet, or a symbol twice.
    """

    alphabet: str
    """The symbols (Unicode code points), each once."""

    def __post_init__(self):
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            raise ArgumentError("alphabet", self.alphabet, "one symbol or more, none of them twice")

    @property
    def size(self) -> int:
        return len(self.alphabet)

    def normalise(self, text: str) -> str:
        """`normalise` for the alphabet of text8, else `text` itself."""
        return normalise(text) if self.alphabet == TEXT8 else text

    def lost(self, text: str) -> Counter[str]:
        return lost(text) if self.alphabet == TEXT8 else Counter()

    def array(self, text: str) -> NDArray[np.uint8] | NDArray[np.int32]:
        places = _places(self.alphabet)
        points = _points(text)
        # The last place of the table stands for every symbol beyond it.
        found = places[np.minimum(points, len(places) - 1)]
        wrong = np.flatnonzero(found < 0)
        if len(wrong):
            position = int(wrong[0])
            raise ArgumentError(
                "text",
                f"the symbol {text[position]!r} (U+{ord(text[position]):04X}) at position {position}",
                f"only symbols of the alphabet {self.alphabet[:64]!r}" + "…" * (self.size > 64),
            )
        return found.astype(np.uint8) if self.size <= 256 else found

    def decode(self, ids: Sequence[int]) -> str:
        return _points(self.alphabet)[self.checked(ids)].tobytes().decode("utf-32-le", errors="surrogatepass")


@final
@dataclass(frozen=True)
class Bytes(Vocabulary):
    """One token for each byte of UTF-8. Decoding sequences that are no UTF-8 gives U+FFFD in their place."""

    @property
    def size(self) -> int:
        return 256

    def array(self, text: str) -> NDArray[np.uint8]:
        try:
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).copy()
        except UnicodeEncodeError as error:
            symbol = text[error.start]
            raise ArgumentError("text", f"{symbol!r} at position {error.start}", "symbols that UTF-8 has") from error

    def decode(self, ids: Sequence[int]) -> str:
        return self.checked(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@final
@dataclass(frozen=True)
class Pretrained(Vocabulary):
    """A tokenizer of the Hugging Face libraries, without the special tokens that it puts around a text.

    Made by `Pretrained.read`, kept by `save` and completed by `at` when a model is read. Whether decoding is exact is
    up to the tokenizer: byte-level ones are, those that lower-case or drop spaces are not.
    """

    entries: Annotated[int, Range(1, 10_000_000)]
    """Number of tokens."""
    sha256: str
    """Of `tokenizer.json`."""
    content: Annotated[str | None, Invocation()] = field(default=None, repr=False, compare=False)
    """The text of `tokenizer.json`; configuration files do not hold it."""

    @staticmethod
    def read(source: str | os.PathLike[str]) -> Pretrained:
        """The tokenizer in a folder or a file `tokenizer.json`, or that of a repository of the Hugging Face hub.

        Raises:
            DataError: it is not there, cannot be reached, or is none that is kept as `tokenizer.json`.
        """
        path = Path(source)
        if path.is_dir() and (path / TOKENIZER).is_file():
            path = path / TOKENIZER
        content = _read(path) if path.is_file() else _fast(os.fspath(source))
        try:
            entries = max(_tokenizer(content).get_vocab(with_added_tokens=True).values(), default=-1) + 1
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{source}: cannot be read as {TOKENIZER} ({error})") from error
        if entries < 1:
            raise DataError(f"{source}: a tokenizer without tokens")
        return Pretrained(entries, hashlib.sha256(content.encode()).hexdigest(), content)

    @property
    def size(self) -> int:
        return self.entries

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself; ArgumentError if this came from a configuration file alone and `at` was not called."""
        if self.content is None:
            raise ArgumentError("vocabulary", self, f"one completed by `at` with the folder that holds {TOKENIZER}")
        return _tokenizer(self.content)

    def array(self, text: str) -> NDArray[np.int32]:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(self.checked(ids).tolist(), skip_special_tokens=False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` into `folder`."""
        if self.content is None:
            raise ArgumentError("vocabulary", self, f"one completed by `at` with the folder that holds {TOKENIZER}")
        write_atomically(Path(folder) / TOKENIZER, self.content)

    def at(self, folder: str | os.PathLike[str]) -> Pretrained:
        """This vocabulary with the `tokenizer.json` of `folder`.

        Raises:
            CheckpointError: it is missing, or not the one of the configuration.
        """
        path = Path(folder) / TOKENIZER
        try:
            content = _read(path)
        except DataError as error:
            raise CheckpointError(str(error)) from error
        if hashlib.sha256(content.encode()).hexdigest() != self.sha256:
            raise CheckpointError(f"{path}: not the tokenizer that the configuration was written with")
        found = Pretrained.read(path)
        if found != self:
            raise CheckpointError(f"{path}: {found.entries} tokens, the configuration has {self.entries}")
        return found


AnyVocabulary: TypeAlias = Characters | Pretrained | Bytes
"""What configurations hold; a table without keys is `Bytes`, so it comes last."""


def _points(text: str) -> NDArray[np.uint32]:
    """Unicode code points, (L,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


@lru_cache(maxsize=16)
def _places(alphabet: str) -> NDArray[np.int32]:
    """Code point -> place in the alphabet or -1; the last entry is -1."""
    points = _points(alphabet)
    places = np.full(int(points.max()) + 2, -1, dtype=np.int32)
    places[points] = np.arange(len(points))
    return places


@lru_cache(maxsize=4)
def _tokenizer(content: str) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_truncation()  # settings that would drop or add tokens
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> str:
    """The text of a `tokenizer.json`."""
    try:
        if path.stat().st_size > LARGEST_TOKENIZER:
            raise DataError(f"{path}: more than {LARGEST_TOKENIZER} bytes")
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _fast(source: str) -> str:
    """`tokenizer.json` of what `transformers` finds under a name, converted where it is of an older kind."""
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except ImportError as error:
        raise DataError(f"{source}: needs transformers: pip install 'polydiff[text]'") from error
    except Exception as error:  # whatever the library's many readers raise
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{source}: no folder with {TOKENIZER}, and the hub has no tokenizer for it ({reason})"
        ) from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise DataError(f"{source}: {type(found).__name__} cannot be kept as {TOKENIZER}; use a fast tokenizer")
    return found.backend_tokenizer.to_str()
