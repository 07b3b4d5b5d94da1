"""Texts: which windows there are, where they come from, and what is refused."""

from __future__ import annotations

import hashlib
import io
import lzma
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polydiff.core.batches import Plan, batches
from polydiff.core.errors import ArgumentError, DataError
from polydiff.text import novels, sources
from polydiff.text.data import NAMES, Split, Text, load
from polydiff.text.vocabulary import TEXT8, Bytes, Characters, Pretrained
from tests.text.test_vocabulary import byte_level

SPLITS: list[Split] = ["train", "valid", "test"]
LETTERS = Characters("".join(map(chr, range(200))))


def numbered(size: int, length: int, stride: int | None = None) -> Text:
    """A text whose tokens are their own places."""
    return Text(torch.arange(size) % 200, LETTERS, length, stride=stride)


@given(st.integers(1, 12), st.integers(0, 60), st.data())
@settings(max_examples=150, deadline=None)
def test_windows(length: int, more: int, data: st.DataObject):
    stride = data.draw(st.one_of(st.none(), st.integers(1, length)))
    text = numbered(length + more, length, stride)
    windows = text.batch(range(len(text)))["x_0"]
    assert windows.dtype == torch.long and windows.shape == (len(text), length)
    starts = windows[:, 0]
    assert torch.equal(windows, starts[:, None] + torch.arange(length))  # consecutive tokens
    seen = windows.flatten()
    if stride is None or stride == length:  # for scoring: each token once, in order, the rest counted
        assert torch.equal(seen, torch.arange(len(text) * length))
        assert text.remainder == length + more - len(seen) < length
    else:  # for training: every token, no window twice
        assert set(seen.tolist()) == set(range(length + more)) and text.remainder == 0
        assert len(set(starts.tolist())) == len(text) and bool((starts.diff() <= stride).all())


def test_items_batches_and_bad_indices():
    text = numbered(50, 8, 3)
    assert torch.equal(text[4]["x_0"], text.batch([4])["x_0"][0])
    assert torch.equal(text.batch(torch.tensor([-1]))["x_0"], text.batch([len(text) - 1])["x_0"])
    assert text.batch([])["x_0"].shape == (0, 8)
    for wrong in (len(text), -len(text) - 1):
        with pytest.raises(IndexError):
            text.batch([wrong])
    with pytest.raises(IndexError):  # or plain iteration would not end
        text[len(text)]


def test_training_draws_are_a_function_of_the_seed():
    text = numbered(150, 8, 1)
    plan = Plan(5, len(text), 4, 1, 0, 1)
    first, again = ([b.values["x_0"] for b in batches(text, plan, 0, 6, 0)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    later = [b.values["x_0"] for b in batches(text, plan, 3, 6, 0)]
    assert all(torch.equal(a, b) for a, b in zip(first[3:], later, strict=True))


def test_counts_characters_words():
    text = Text(torch.tensor(Bytes().encode("né à né")), Bytes(), 2)
    assert text.tokens.dtype == torch.uint8 and len(text.tokens) == 10
    assert (text.characters, text.words) == (7, 3) and text.text == "né à né"
    assert text.counts.dtype == torch.float64 and text.counts.shape == (256,)
    assert float(text.counts[ord("n")]) == 2 and float(text.counts.sum()) == 10
    assert Text(torch.tensor([0, 300]), Characters("".join(map(chr, range(400)))), 1).tokens.dtype == torch.int32


def test_fingerprint_tells_texts_apart():
    base = numbered(50, 8, 3)
    assert base.fingerprint() == numbered(50, 8, 3).fingerprint()
    others = [numbered(51, 8, 3), numbered(50, 7, 3), numbered(50, 8, 4), Text(torch.arange(50), Bytes(), 8, stride=3)]
    assert len({text.fingerprint() for text in (base, *others)}) == 5


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (torch.arange(3), "3 tokens"),
        (torch.tensor([0, 1, 2, 27]), "0 … 27"),
        (torch.tensor([0, 1, -2, 3]), "-2"),
        (torch.rand(9), "integers"),
        (torch.zeros(2, 9, dtype=torch.long), "integers"),
    ],
)
def test_bad_tokens(tokens: torch.Tensor, named: str):
    with pytest.raises(DataError, match=named):
        Text(tokens, Characters(TEXT8), 4)


@pytest.mark.parametrize("arguments", [{"length": 0}, {"length": True}, {"length": 4, "stride": 5}, {"length": 2.0}])
def test_bad_windows(arguments: dict):
    with pytest.raises(ArgumentError):
        Text(torch.zeros(20, dtype=torch.long), Characters(TEXT8), **arguments)


def test_embedded_set():
    sets = {split: load("python-docs", split, length=64) for split in SPLITS}
    assert len(sets["train"].tokens) > 100_000 and all(len(sets[split].tokens) > 10_000 for split in SPLITS)
    assert all(text.vocabulary == Characters(TEXT8) and text.name == "python-docs" for text in sets.values())
    assert (sets["train"].stride, sets["valid"].stride) == (4, 64)
    assert load("python-docs", "test", length=64).fingerprint() == sets["test"].fingerprint()
    # Prose, and none of it on two sides.
    paragraphs = {split: set(sources.python_docs(split).strip().split("\n\n")) for split in SPLITS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not paragraphs[a] & paragraphs[b]
    everything = "".join(map("".join, paragraphs.values()))
    assert "::=" not in everything and ">>>" not in everything and "****" not in everything
    text = sets["train"]
    assert (text.characters, text.words) == (len(text.text), len(text.text.split()))


def test_files_and_folders(tmp_path: Path):
    whole = "".join(f"line {i} of it\r\n" for i in range(400))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + whole.encode())
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(whole.encode()))
    unix = whole.replace("\r\n", "\n")
    for name in ("a.txt", "a.txt.xz"):
        parts = [load(tmp_path / name, split, length=16, vocabulary=Bytes()).text for split in SPLITS]
        assert "".join(parts) == unix
        assert [round(20 * len(part) / len(unix)) for part in parts] == [18, 1, 1]
    own = tmp_path / "own"
    own.mkdir()
    for name, text in (("train.md", "training text"), ("validation.txt", "valid text"), ("test.txt", "test text")):
        (own / name).write_text(text)
    assert [load(own, split, length=4).text for split in SPLITS] == ["training text", "valid text", "test text"]
    (own / "test.txt").unlink()
    with pytest.raises(DataError, match="no test"):
        load(own, "test", length=4)
    nested = tmp_path / "nested"
    for split in SPLITS:
        (nested / split / "deep").mkdir(parents=True)
        (nested / split / "b.txt").write_text(f"{split} two")
        (nested / split / "deep" / "c.txt").write_text("three")
        (nested / split / ".hidden.txt").write_text("no")
        (nested / split / "x.bin").write_bytes(b"\xff")
    assert load(nested, "valid", length=4, vocabulary=Bytes()).text == "valid two\n\nthree"


def test_other_vocabularies(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("The cat sat on the mat. " * 100)
    exact = load(file, length=8, vocabulary=Pretrained.read(byte_level(tmp_path / "bpe")))
    assert exact.text == ("The cat sat on the mat. " * 100)[:2160] and len(exact.tokens) < exact.characters == 2160
    assert exact.words == len(exact.text.split())
    assert load(file, length=8).text.startswith("the cat sat on the mat the")
    with pytest.raises(DataError, match=r"a\.txt.*'T'.*position 0"):
        load(file, length=8, vocabulary=Characters("abc"))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty.txt", b"", "no text"),
        ("blank.txt", b" \n\n " * 30, "no text"),
        ("short.txt", b"abc", "tokens"),
        ("latin.txt", b"abc" * 40 + "é".encode("latin-1") + b"abc", "0xe9 at position 120"),
        ("mark.txt", b"\xef\xbb\xbfab\xff", "0xff at position 5"),
        ("broken.txt.xz", b"not packed", "broken.txt.xz"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, named: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        load(tmp_path / name, length=64)
    assert name in str(caught.value)


def test_bad_sources(tmp_path: Path):
    with pytest.raises(DataError, match="python-docs"):
        load(tmp_path / "nothing", length=8)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no files"):
        load(tmp_path / "folder", length=8)
    (tmp_path / "folder" / "test.txt").write_text("abc")
    with pytest.raises(DataError, match="no train"):
        load(tmp_path / "folder", length=8)
    with pytest.raises(ArgumentError, match="split"):
        load("python-docs", "dev", length=8)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="length"):
        load("python-docs", length=0)


def write_text8(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("text8", content)


def test_text8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = b"the cat sat on a mat" * 20
    monkeypatch.setattr(sources, "TEXT8_MD5", hashlib.md5(content).hexdigest())
    parts = {"train": slice(0, 360), "valid": slice(360, 380), "test": slice(380, 400)}
    monkeypatch.setattr(sources, "TEXT8_PARTS", parts)
    write_text8(tmp_path / "text8" / "text8.zip", content)
    assert load("text8", "valid", length=5, data_root=tmp_path).text == content[360:380].decode()
    (tmp_path / "plain" / "text8").mkdir(parents=True)
    (tmp_path / "plain" / "text8" / "text8").write_bytes(content)
    assert len(load("text8", "train", length=5, data_root=tmp_path / "plain").tokens) == 360
    write_text8(tmp_path / "text8" / "text8.zip", content[:-1])
    with pytest.raises(DataError, match="MD5"):
        load("text8", length=5, data_root=tmp_path)
    (tmp_path / "text8" / "text8.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"text8\.zip"):
        load("text8", length=5, data_root=tmp_path)


def test_text8_is_split_as_published():
    sizes = [part.stop - part.start for part in sources.TEXT8_PARTS.values()]
    assert sizes == [90_000_000, 5_000_000, 5_000_000] and sources.TEXT8_PARTS["test"].stop == 100_000_000


def test_novels_from_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put together from the repository's files, then kept; the checksum is of the text."""
    books = {"An Author/One.md": b"\r\n# One\r\n\r\ntext\r\n", "Another/Two.md": b"# Two\n\nmore text\n\n"}
    text = "# One\n\ntext\n\n\n# Two\n\nmore text\n"
    rows = tuple((title, len(data), hashlib.sha256(data).hexdigest()) for title, data in books.items())
    monkeypatch.setitem(sources.NOVELS, "valid", (hashlib.sha256(text.encode()).hexdigest(), rows))
    asked: list[str] = []

    def fetch(url: str, **_: object) -> io.BytesIO:
        address = url if isinstance(url, str) else url.full_url  # type: ignore[attr-defined]
        asked.append(address)
        answer = io.BytesIO(next(data for title, data in books.items() if title[-6:] == address[-6:]))
        answer.status = 200  # type: ignore[attr-defined]
        return answer

    monkeypatch.setattr("polydiff.core.downloads.urlopen", fetch)
    for _ in range(2):
        assert load("novels", "valid", length=4, vocabulary=Bytes(), data_root=tmp_path).text == text
    assert len(asked) == 2 and asked[0].endswith("/An%20Author/One.md")
    (tmp_path / "gutenberg_novels" / "valid.txt.xz").write_bytes(lzma.compress(b"another text"))
    with pytest.raises(DataError, match="SHA-256"):
        load("novels", "valid", length=4, data_root=tmp_path)


def test_novels_are_seventeen_each_in_one_split():
    titles = [title for _, books in novels.NOVELS.values() for title, _, _ in books]
    assert len(titles) == len(set(titles)) == 17
    assert [len(books) for _, books in novels.NOVELS.values()] == [15, 1, 1]


@pytest.mark.parametrize("name", ["text8", "novels"])
def test_offline_names_set_source_and_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def fetch(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("polydiff.core.downloads.urlopen", fetch)
    with pytest.raises(DataError) as caught:
        load(name, length=8, data_root=tmp_path)
    assert all(part in str(caught.value) for part in (name, "http", "--data-root", str(tmp_path), "no route"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Rows:
    """What `datasets` gives: columns with types."""

    def __init__(self, **columns: list[str]):
        self.columns = columns
        self.features = {key: SimpleNamespace(dtype="string") for key in columns} | {
            "n": SimpleNamespace(dtype="int64")
        }

    def __getitem__(self, key: str) -> list[str]:
        return self.columns[key]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("train", "validation", "test"), ("train", "validation", "test")),
        (("train",), ("train[:18]", "train[18:19]", "train[19:]")),
        (("train", "test"), ("train[:18]+train[19:]", "train[18:19]", "test")),
        (("train", "dev"), ("train[:19]", "dev", "train[19:]")),
    ],
)
def test_hub_sets(monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], expected: tuple[str, ...]):
    contents = {name: name.ljust(10, ".") * 40 for name in there}

    def rows(name: str, config: str | None, *, split: str, revision: str | None) -> Rows:
        assert (name, config, revision) == ("a/b", None, None)
        return Rows(text=[contents[split][:100], "", contents[split][101:]], other=["x" * 20])

    hub = SimpleNamespace(get_dataset_split_names=lambda *_, **__: list(there), load_dataset=rows)
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    whole = {name: text[:100] + "\n" + text[101:] for name, text in contents.items()}

    def part(name: str) -> str:
        if "+" in name:
            return "".join(map(part, name.split("+")))
        name, _, bounds = name.partition("[")
        low, _, high = bounds.rstrip("]").partition(":")
        return whole[name][20 * int(low or 0) : 20 * int(high or 20)]

    for split, wanted in zip(SPLITS, expected, strict=True):
        assert load("hf:a/b", split, length=4, vocabulary=Bytes()).text == part(wanted)
    assert load("hf:a/b:other", "train", length=1, vocabulary=Bytes()).text == "x" * (
        20 if len(there) == 3 else 19 if there[-1] == "dev" else 18 + ("test" in there)
    )
    with pytest.raises(DataError, match="text, other"):
        load("hf:a/b:n", "train", length=1)


def test_hub_errors_are_told(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no hub today\nlong story")

    hub = SimpleNamespace(get_dataset_split_names=fail, load_dataset=fail)
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    for name in ("lm1b", "hf:a/b"):
        with pytest.raises(DataError, match="no hub today") as caught:
            load(name, length=8)
        assert "long story" not in str(caught.value)
    assert set(NAMES) == {"python-docs", "text8", "novels", "lm1b"}
