"""Texts with gaps: `[MASK]` stands for one token, `[MASK:12]` for twelve.

The text between gaps is known and stays as it is. It is turned into tokens piece by piece, so gaps never change how
their neighbours are written, and a filled text is put together from the very pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ArgumentError
from .vocabulary import Vocabulary

__all__ = ["LARGEST_GAP", "Template", "encoded"]

GAP = re.compile(r"\[MASK(:[^\]]*)?\]")
LARGEST_GAP = 100_000


@dataclass(frozen=True)
class Template:
    """A text with gaps.

    Attributes:
        pieces: known texts (str) and gaps (int, their numbers of tokens), in order.
        tokens: (N,) long; 0 in gaps.
        hidden: (N,) bool, True in gaps.
    """

    pieces: tuple[str | int, ...]
    tokens: Tensor
    hidden: Tensor

    @staticmethod
    def read(text: str, vocabulary: Vocabulary, normalise: bool = False) -> Template:
        """Take a text apart.

        Args:
            text: with at least one gap.
            vocabulary: for the pieces between.
            normalise: bring the pieces into the vocabulary's form first, as training text is.

        Raises:
            ArgumentError: no string, no gap, a gap of no token or of a size that is no number, or a symbol that the
                vocabulary lacks, with its position in `text`.
        """
        if not isinstance(text, str):
            raise ArgumentError("text", text, "a string, one text at a time")
        pieces: list[str | int] = []
        starts: list[int] = []
        place = 0
        for gap in GAP.finditer(text):
            pieces += [text[place : gap.start()], size(gap)]
            starts += [place, gap.start()]
            place = gap.end()
        if not pieces:
            raise ArgumentError("text", text, "a text with a gap: [MASK] for one token, [MASK:12] for twelve")
        pieces.append(text[place:])
        starts.append(place)
        if normalise:
            pieces = [piece if isinstance(piece, int) else vocabulary.normalise(piece) for piece in pieces]
        tokens: list[int] = []
        hidden: list[bool] = []
        for start, piece in zip(starts, pieces, strict=True):
            known = [0] * piece if isinstance(piece, int) else encoded("text", piece, vocabulary, start)
            tokens += known
            hidden += [isinstance(piece, int)] * len(known)
        return Template(tuple(piece for piece in pieces if piece != ""), torch.tensor(tokens), torch.tensor(hidden))

    def filled(self, tokens: Sequence[int], vocabulary: Vocabulary) -> str:
        """The text with its gaps filled; the known pieces letter by letter as they were.

        Args:
            tokens: (N,); those in gaps are read.
            vocabulary: of the tokens.
        """
        parts: list[str] = []
        place = 0
        for piece in self.pieces:
            if isinstance(piece, int):
                parts.append(vocabulary.decode(tokens[place : place + piece]))
                place += piece
            else:
                parts.append(piece)
                place += len(vocabulary.encode(piece))
        return "".join(parts)


def encoded(name: str, text: str, vocabulary: Vocabulary, start: int = 0) -> list[int]:
    """The tokens of an argument's text, or of the part of it that begins at `start`.

    Raises:
        ArgumentError: a symbol that the vocabulary lacks: names the argument, the position in it, and `normalise` where
            that would help.
    """
    try:
        return vocabulary.encode(text)
    except ArgumentError as error:
        place = next((i for i, symbol in enumerate(text) if not has(vocabulary, symbol)), None)
        if place is None:
            raise
        symbol, help_ = text[place], ""
        if vocabulary.normalise(text) != text:
            help_ = "; normalise (--normalise) brings a text into this form"
        got = f"the symbol {symbol!r} (U+{ord(symbol):04X}) at position {start + place}"
        raise ArgumentError(name, got, error.expected + help_) from error


def has(vocabulary: Vocabulary, symbol: str) -> bool:
    """Whether a vocabulary can spell a symbol."""
    try:
        vocabulary.encode(symbol)
    except ArgumentError:
        return False
    return True


def size(gap: re.Match[str]) -> int:
    """The number of tokens of a gap."""
    if gap[1] is None:
        return 1
    number = gap[1][1:]
    if not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= LARGEST_GAP and len(number) < 9):
        raise ArgumentError("text", gap[0], f"[MASK] or [MASK:n] with n tokens, 1 ... {LARGEST_GAP}")
    return int(number)
