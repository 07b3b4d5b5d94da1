"""Reports: one HTML file with everything inside, which opens anywhere and loads nothing.

Pictures and sounds are embedded as data, so that the file can be mailed, archived or attached to a run as it is. Every
text is escaped. The page follows the reader's light or dark mode, fits narrow screens and prints.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, final

from .errors import ArgumentError
from .files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["Report"]

LOADING = re.compile(
    r"<[^>]*\s(?:src|srcset|href|xlink:href|action|poster)\s*=\s*(?![\"']?(?:data:|#))[^\s>]*"
    r"|url\(\s*(?![\"']?(?:data:|#))[^)]*|@import\b|<(?:link|iframe|object|embed|base)\b",
    re.IGNORECASE,
)
"""Attributes and rules that name something outside the page."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60666d; --line: #d9dde1; --page: #ffffff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9ba1a8; --line: #373c42; --page: #16181b; --band: #1e2125; }
}
* { box-sizing: border-box; }
body { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; color: var(--ink); background: var(--page);
       font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 .6rem; padding-top: 1rem;
     border-top: 1px solid var(--line); }
a { color: inherit; }
p { margin: 0 0 1rem; max-width: 46rem; white-space: pre-line; }
figure { margin: 1.2rem 0 1.6rem; break-inside: avoid; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .45rem; max-width: 46rem; }
img { display: block; max-width: 100%; height: auto; box-shadow: 0 0 0 1px var(--line); border-radius: 6px;
      background: #fff; }
img.pixels { image-rendering: pixelated; }
audio { display: block; width: 100%; max-width: 30rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: left; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--band); }
.number { text-align: right; }
.unfold { font: .95rem/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.unfold span { animation: unfold .6s both; animation-delay: calc(var(--s) * 1s); border-radius: 3px; }
@keyframes unfold { from { color: transparent; background: var(--line); } 40% { background: #7aa2f7; } }
summary { color: var(--soft); font-size: .9rem; cursor: pointer; margin-bottom: .5rem; }
@media (prefers-reduced-motion: reduce) { .unfold span { animation: none; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; } .unfold span { animation: none; }
}
"""


@final
class Report:
    """A page that is built from top to bottom and written once.

    Args:
        title: heading of the page and title of the window.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph; an empty line begins another one."""
        self._parts.extend(f"<p>{html.escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())

    def picture(self, picture: Figure | Image, caption: str, *, scale: int = 1) -> None:
        """A matplotlib figure (kept as vectors) or a PIL image (kept pixel by pixel).

        Args:
            picture: the figure or image; it is not changed or closed.
            caption: stands below, and for the picture where it cannot be seen.
            scale: for an image: each pixel is shown as a square of this many.

        Raises:
            ArgumentError: neither a figure nor an image, or a scale below 1.
        """
        if scale < 1:
            raise ArgumentError("scale", scale, "a whole number from 1")
        content, size = io.BytesIO(), ""
        if hasattr(picture, "savefig"):
            picture.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})  # type: ignore[union-attr]
            kind = "image/svg+xml"
        elif hasattr(picture, "save"):
            picture.save(content, format="PNG", optimize=True)  # type: ignore[union-attr]
            kind, size = "image/png", f' width="{picture.width * scale}"'  # type: ignore[union-attr]
            size += ' class="pixels"' if scale > 1 else ""
        else:
            raise ArgumentError("picture", picture, "a matplotlib figure or a PIL image")
        source = _embedded(kind, content.getvalue())
        self._figure(f'<img src="{source}" alt="{html.escape(caption)}"{size}>', caption)

    def table(self, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
        """A table, one mapping from column to value per row; columns in the order in which they first appear.

        Floats are shown with four significant digits, None and missing values as a dash.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        numeric = {column: all(_is_number(row.get(column)) for row in rows) for column in columns}

        def cell(tag: str, column: str, content: Any) -> str:
            name = ' class="number"' if numeric[column] else ""
            return f"<{tag}{name}>{html.escape(_shown(content))}</{tag}>"

        head = "".join(cell("th", column, column) for column in columns)
        body = "".join(f"<tr>{''.join(cell('td', c, row.get(c)) for c in columns)}</tr>\n" for row in rows)
        table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
        self._figure(f'<div class="scroll">{table}</div>', caption)

    def unfold(self, pieces: Sequence[str], steps: Sequence[int], caption: str, *, seconds: float = 8.0) -> None:
        """A text whose pieces appear one step after another; closing and opening it plays it again.

        Readers who want no motion, and paper, see the whole text.

        Args:
            pieces: of the text, in reading order.
            steps: the step in which each appears, from 0.
            caption: stands below.
            seconds: from the first step to the last.

        Raises:
            ArgumentError: not one step for each piece, or negative ones.
        """
        if len(steps) != len(pieces) or min(steps, default=0) < 0:
            raise ArgumentError("steps", len(steps), f"a step from 0 for each of the {len(pieces)} pieces")
        scale = seconds / max(1, max(steps, default=0))
        spans = "".join(
            f'<span style="--s:{step * scale:.2f}">{html.escape(piece)}</span>'
            for piece, step in zip(pieces, steps, strict=True)
        )
        opened = "<details open><summary>close and open to play it again</summary>"
        self._figure(f'{opened}<div class="unfold">{spans}</div></details>', caption)

    def block(self, markup: str, caption: str) -> None:
        """Markup that the package has made, as it stands: drawings, views with a script of their own.

        Nothing in it is escaped, so that texts from elsewhere must be when it is made.

        Args:
            markup: whole elements, with everything inside.
            caption: stands below.

        Raises:
            ArgumentError: markup that would load something.
        """
        if (found := LOADING.search(markup)) is not None:
            raise ArgumentError("markup", found.group(), "markup that loads nothing: a report has everything inside")
        self._figure(markup, caption)

    def link(self, target: str, text: str) -> None:
        """A paragraph that leads to another page, by its path from this one.

        Raises:
            ArgumentError: an address elsewhere: reports lead to their neighbours only.
        """
        if ":" in target or target.startswith("/"):
            raise ArgumentError("target", target, "a relative path")
        self._parts.append(f'<p><a href="{html.escape(target)}">{html.escape(text)}</a></p>')

    def audio(self, wav: bytes, caption: str) -> None:
        """A sound with a player.

        Args:
            wav: a whole WAV file; 16-bit PCM plays in every browser.
            caption: stands below.

        Raises:
            ArgumentError: not a WAV file.
        """
        if wav[:4] != b"RIFF" or wav[8:12] != b"WAVE":
            raise ArgumentError("wav", wav[:12], "the bytes of a WAV file")
        self._figure(f'<audio controls src="{_embedded("audio/wav", wav)}"></audio>', caption)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to `path`, whole or not at all; missing folders are made."""
        title, body = html.escape(self.title), "\n".join(self._parts)
        write_atomically(
            path,
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n",
        )

    def _figure(self, content: str, caption: str) -> None:
        below = f"\n<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>\n{content}{below}\n</figure>")


def _embedded(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _is_number(value: Any) -> bool:
    """Whether a value stands in a column of numbers; gaps do."""
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def _shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "\N{EN DASH}"
    if not isinstance(value, Real) or isinstance(value, Integral) or not math.isfinite(value):
        return str(value)
    number = float(value)
    digits = f"{number:.4g}"
    return f"{number:.0f}" if "e" in digits and 1 <= abs(number) < 1e9 else digits
