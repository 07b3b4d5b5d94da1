"""Where texts come from, and how each is split into training, validation and test.

`python-docs`  the prose of Python's own documentation topics, in the standard library, so that nothing is downloaded.
               About 190,000 letters to train on; the text differs a little between versions of Python.
`text8`        the first 10^8 letters of a cleaned English Wikipedia (Mahoney 2011), split 90 / 5 / 5 million.
`novels`       17 English novels of 1811-1897 in the public domain, split by book (15, 1 and 1; see `novels`).
`lm1b`         the One Billion Word Benchmark (Chelba et al. 2013, arXiv:1312.3005), one shuffled sentence a line; whole
               in memory, about 4 GB.

Texts that come without a split are cut in order: the last tenth is held out, half of it for validation, half as test.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from ..core.downloads import download, patience
from ..core.errors import DataError
from ..core.files import write_atomically
from .novels import NOVELS, NOVELS_URL, Split

__all__ = ["NAMES", "Split", "read"]

SUFFIXES = (".txt", ".md", ".txt.xz")
SPLITS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)
}  # fmt: skip

TEXT8_URL, TEXT8_SIZE = "http://mattmahoney.net/dc/text8.zip", 31_344_016
TEXT8_SHA256 = "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"
TEXT8_MD5 = "3bea1919949baf155f99411df5fada7e"
TEXT8_PARTS: Mapping[Split, slice] = {
    "train": slice(0, 90_000_000), "valid": slice(90_000_000, 95_000_000), "test": slice(95_000_000, 100_000_000)
}  # fmt: skip

LM1B = ("billion-word-benchmark/lm1b", "plain_text", "8d52bfd3cc2819fc1166dbb8144c328e2690de3e")
"""Repository, configuration and revision (its files as parquet, which hold no code)."""


def read(source: str | os.PathLike[str], split: Split, root: Path) -> tuple[str, str]:
    """The name of a source and the text of one split.

    A folder with `train`, `valid` and `test`, files (`train.txt`, …) or subfolders, has its split; of any other file
    or folder, whose files are joined in the order of their names by an empty line, a part is cut. The same goes for
    data sets of the hub, whose rows are joined line by line.

    Raises:
        DataError: naming the file at fault, and the position in it.
    """
    label = os.fspath(source)
    if (named := NAMES.get(label)) is not None:
        return label, named(root, split)
    if label.startswith("hf:"):
        name, _, column = label.removeprefix("hf:").partition(":")
        return label, hub(name, split, column or None)
    path = Path(source).expanduser()
    if path.is_file():
        return path.name, cut(contents(path), split)
    if path.is_dir():
        return path.resolve().name, folder(path, split)
    raise DataError(
        f"{label}: neither a data set ({', '.join(NAMES)}, hf:owner/name) nor a file or folder of {', '.join(SUFFIXES)}"
    )


def cut(text: str, split: Split) -> str:
    """The first nine tenths, the next twentieth, or the last."""
    first, second = len(text) * 18 // 20, len(text) * 19 // 20
    return {"train": text[:first], "valid": text[first:second], "test": text[second:]}[split]


def folder(path: Path, split: Split) -> str:
    """One split of a folder; see `read`."""
    own = {one: _named(path, names) for one, names in SPLITS.items()}
    if own["train"] is not None:
        found = own[split]
        if found is None:
            raise DataError(
                f"{path}: has train but no {' or '.join(SPLITS[split])} ({', '.join(SUFFIXES)}, or a folder)"
            )
        return contents(found) if found.is_file() else _joined(found)
    if stray := next((place for place in own.values() if place is not None), None):
        raise DataError(f"{stray}: held out, but {path} has no train beside it")
    return cut(_joined(path), split)


def contents(path: Path) -> str:
    """A text file, UTF-8 (with or without its mark), packed if its name ends in `.xz`; line ends become newlines."""
    try:
        data = path.read_bytes()
        data = lzma.decompress(data) if path.suffix == ".xz" else data
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The mark at the start is not counted by the decoder.
        position = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        raise DataError(
            f"{path}: byte {data[position]:#04x} at position {position} is not UTF-8; convert it"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def python_docs(split: Split) -> str:
    """The prose of `pydoc_data.topics`: paragraphs that end like sentences, each once.

    Topics repeat each other's paragraphs, so a paragraph belongs to the longest topic that has it, and the split is by
    topic, by a hash of its name: nothing held out is trained on.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    chosen: dict[str, list[str]] = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        own = [paragraph for paragraph in _prose(topics[name]) if paragraph not in seen]
        seen.update(own)
        place = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
        if split == ("train" if place < 0.8 else "valid" if place < 0.9 else "test"):
            chosen[name] = list(dict.fromkeys(own))
    return "\n\n".join(paragraph for name in sorted(chosen) for paragraph in chosen[name]) + "\n"


def _prose(topic: str) -> list[str]:
    """The paragraphs of sentences: no grammar, no code, no tables, no rules under headings."""
    found = []
    for paragraph in topic.split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        whole = " ".join(line for line in lines if not re.fullmatch(r"[-*=~^\"'#+| ]*", line))
        if " " in whole and whole.endswith((".", ":", "!", "?", ";")) and "::=" not in whole and ">>>" not in whole:
            found.append(whole)
    return found


def text8(root: Path, split: Split) -> str:
    """text8, found as `text8` or `text8.zip` in the folder `text8` (or in `root` itself), or downloaded there."""
    places = [root / "text8", root / "text" / "text8", root]
    unpacked = next((place / "text8" for place in places if (place / "text8").is_file()), None)
    if unpacked is not None:
        path, data = unpacked, unpacked.read_bytes()
    else:
        packed = next((place / "text8.zip" for place in places if (place / "text8.zip").is_file()), None)
        path = packed or download("text8", TEXT8_URL, places[0] / "text8.zip", TEXT8_SHA256, size=TEXT8_SIZE)
        try:
            with zipfile.ZipFile(path) as archive:
                data = archive.read("text8")
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it to have it downloaded again") from error
    if (found := hashlib.md5(data, usedforsecurity=False).hexdigest()) != TEXT8_MD5:
        raise DataError(f"{path}: {len(data)} bytes of MD5 {found}, text8 has 100000000 of {TEXT8_MD5}; delete it")
    return data[TEXT8_PARTS[split]].decode("ascii")


def novels(root: Path, split: Split) -> str:
    """The novels, found as `<split>.txt.xz` in a folder `gutenberg_novels`, or put together from their source."""
    checksum, books = NOVELS[split]
    places = [root / "text" / "gutenberg_novels", root / "gutenberg_novels"]
    file = f"{split}.txt.xz"
    path = next((place / file for place in places if (place / file).is_file()), None)
    if path is None:
        path = places[1] / file
        parts = [_book(places[1] / "source", *book) for book in books]
        text = "\n\n\n".join(parts) + "\n"
        write_atomically(path, lzma.compress(text.encode()))
    text = contents(path)
    if (found := hashlib.sha256(text.encode()).hexdigest()) != checksum:
        raise DataError(f"{path}: SHA-256 {found} of the text, expected {checksum}; delete it to have it fetched again")
    return text


def _book(place: Path, title: str, size: int, checksum: str) -> str:
    path = place / title.rpartition("/")[2].replace(" ", "_")
    return contents(download("novels", NOVELS_URL + quote(title), path, checksum, size=size)).strip()


def hub(name: str, split: Split, column: str | None, config: str | None = None, revision: str | None = None) -> str:
    """One split of a data set of the Hugging Face hub, read by `datasets`; see `read`.

    The column is "text", or the only one of strings, unless it is named. Where there is no split for validation (or
    test), it is cut from the training rows.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise DataError(f"{name}: needs the library datasets: pip install 'polydiff[text]'") from error
    try:
        with patience():
            there = get_dataset_split_names(name, config, revision=revision)
            own = {one: next((n for n in names if n in there), None) for one, names in SPLITS.items()}
            chosen = own[split] or own["train"]
            if chosen is None:
                raise DataError(f"{name}: no split {' or '.join(SPLITS[split])}; it has {', '.join(there)}")
            rows = load_dataset(name, config, split=chosen, revision=revision)
    except DataError:
        raise
    except Exception as error:  # whatever the library's many readers raise
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{name}: cannot be had from the Hugging Face hub ({type(error).__name__}: {reason}); check the name, or "
            "fetch it once while online"
        ) from error
    strings = [key for key, kind in rows.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    column = column or ("text" if "text" in strings else strings[0] if len(strings) == 1 else None)
    if column is None or column not in strings:
        raise DataError(f"{name}: column {column}; name one with hf:{name}:COLUMN, of: {', '.join(strings)}")
    text = "\n".join(row for row in rows[column] if row)
    # A split of its own stays whole; the training rows give up what is cut from them.
    if (own["valid"] and own["test"]) or (own[split] and split != "train"):
        return text
    parts = {one: cut(text, one) for one in SPLITS}
    if split == "train":
        return parts["train"] + (parts["valid"] if own["valid"] else "") + (parts["test"] if own["test"] else "")
    return parts[split]


def _named(path: Path, names: tuple[str, ...]) -> Path | None:
    """The file or subfolder of `path` that is called one of `names`."""
    places = (path / f"{name}{suffix}" for name in names for suffix in (*SUFFIXES, ""))
    return next((place for place in places if place.exists()), None)


def _joined(path: Path) -> str:
    """The texts of a folder and what is below it, in the order of their paths, an empty line between."""
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.name.lower().endswith(SUFFIXES) and file.is_file() and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"{path}: no files {', '.join(SUFFIXES)}")
    return "\n\n".join(contents(file) for file in files)


NAMES: Mapping[str, Callable[[Path, Split], str]] = {
    "python-docs": lambda root, split: python_docs(split),
    "text8": text8,
    "novels": novels,
    "lm1b": lambda root, split: hub(LM1B[0], split, "text", LM1B[1], LM1B[2]),
}
"""The edge: names that users type to the functions that read; each takes (data root, split)."""
