"""A report is whole HTML that loads nothing, and what was put in can be read back out of it."""

from __future__ import annotations

import base64
import io
import wave
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from polydiff.core.errors import ArgumentError
from polydiff.core.report import Report

VOID = {"meta", "img", "link", "br", "hr"}
NASTY = "<script>alert(\"1\")</script> & 'x' \N{GREEK SMALL LETTER SIGMA}"


class Page(HTMLParser):
    """Checks that tags nest; keeps texts, attributes and embedded content."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        self.texts.append(data)

    def embedded(self, kind: str) -> list[bytes]:
        start = f"data:{kind};base64,"
        found = [value for name, value in self.attributes if name == "src" and value and value.startswith(start)]
        return [base64.b64decode(value.removeprefix(start), validate=True) for value in found]


def write(report: Report, folder: Path) -> Page:
    report.write(folder / "new" / "index.html")
    return Page(folder / "new" / "index.html")


def sound() -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(800, dtype="<i2").tobytes())
    return content.getvalue()


def test_pictures_decode_to_the_same_pixels(tmp_path: Path):
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (9, 7), np.uint8), rng.integers(0, 256, (5, 6, 3), np.uint8)
    report = Report("t")
    report.picture(Image.fromarray(grey), "grey", scale=8)
    report.picture(Image.fromarray(colour), "colour")
    page = write(report, tmp_path)
    again = [np.asarray(Image.open(io.BytesIO(content))) for content in page.embedded("image/png")]
    assert len(again) == 2
    np.testing.assert_array_equal(again[0], grey)
    np.testing.assert_array_equal(again[1], colour)
    assert ("width", "56") in page.attributes
    assert ("alt", "grey") in page.attributes


def test_figures_stay_vectors(tmp_path: Path):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([1, 2, 4], [3, 1, 2], gid="the-line")
    report = Report("t")
    report.picture(figure, "curve")
    (content,) = write(report, tmp_path).embedded("image/svg+xml")
    assert any(element.get("id") == "the-line" for element in ElementTree.fromstring(content).iter())


def test_sound_comes_back(tmp_path: Path):
    report, wav = Report("t"), sound()
    report.audio(wav, "ramp")
    assert write(report, tmp_path).embedded("audio/wav") == [wav]


def test_every_text_is_escaped(tmp_path: Path):
    report = Report(NASTY)
    report.heading(NASTY)
    report.text(NASTY)
    report.table([{NASTY: NASTY}], NASTY)
    report.picture(Image.new("L", (1, 1)), NASTY)
    report.audio(sound(), NASTY)
    page = write(report, tmp_path)
    assert "script" not in page.tags
    assert page.texts.count(NASTY) == 9  # window, heading of page and section, paragraph, cells and three captions
    assert ("alt", NASTY) in page.attributes


def test_nothing_is_loaded(tmp_path: Path):
    figure = Figure()
    figure.subplots().set_title("https://example.org")
    report = Report("t")
    report.picture(figure, "f")
    report.picture(Image.new("RGB", (2, 2)), "p")
    report.audio(sound(), "s")
    page = write(report, tmp_path)
    assert not {"link", "script", "iframe", "object", "base"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "poster", "action"):
            assert value is not None
            assert value.startswith("data:")
    style = "".join(page.texts)
    assert "@import" not in style
    assert "url(" not in style


def test_tables(tmp_path: Path):
    rows = [
        {"name": "fid", "value": 123456.78, "n": 7},
        {"name": "kid", "value": 0.00012345678, "real": np.float32(0.5)},
        {"name": "bits", "value": None, "real": float("inf"), "n": 3_000_000},
    ]
    report = Report("t")
    report.table(rows)
    page = write(report, tmp_path)
    texts = [text for text in page.texts if text.strip()]
    cells = texts[texts.index("name") :]
    dash = "\N{EN DASH}"
    table = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    assert table == [
        ["name", "value", "n", "real"],
        ["fid", "123457", "7", dash],
        ["kid", "0.0001235", dash, "0.5"],
        ["bits", dash, "3000000", "inf"],
    ]
    assert page.attributes.count(("class", "number")) == 3 * 4  # three columns of numbers, heads included


def test_paragraphs(tmp_path: Path):
    report = Report("t")
    report.text("one\n\n\n\ntwo\n\n")
    page = write(report, tmp_path)
    assert page.tags.count("p") == 2


def test_refusals():
    report = Report("t")
    with pytest.raises(ArgumentError, match="wav"):
        report.audio(b"ID3 an mp3 file", "s")
    with pytest.raises(ArgumentError, match="picture"):
        report.picture(np.zeros((2, 2)), "p")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="scale"):
        report.picture(Image.new("L", (1, 1)), "p", scale=0)
