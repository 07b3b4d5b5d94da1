"""Drawings and views: what is shown is what was given, and nothing is loaded from elsewhere."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from scipy.spatial.transform import Rotation

from polydiff.core.errors import ArgumentError, DataError
from polydiff.core.report import Report
from polydiff.molecules import depiction
from polydiff.molecules.rmsd import positions


def molecule(smiles: str = "CC(=O)Nc1ccccc1", count: int = 3) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=2)
    return mol


def scene(markup: str) -> dict:
    found = re.search(r'data-scene="([^"]*)"', markup)
    assert found is not None
    return json.loads(html.unescape(found.group(1)))


class Nested(HTMLParser):
    """Checks that tags nest."""

    def __init__(self, markup: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"input", "meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_view_shows_the_geometry_it_was_given() -> None:
    mol = molecule()
    x = positions(mol)
    before = x.copy()
    found = scene(depiction.view(mol))
    frames = np.array(found["frames"])
    assert frames.shape == x.shape and np.array_equal(positions(mol), before)
    for shown, real in zip(frames, x, strict=True):  # the same distances, and not the mirror image
        one, other = shown - shown.mean(0), real - real.mean(0)
        assert Rotation.align_vectors(one, other)[1] < 0.02
    assert [(i, j) for i, j, _ in found["bonds"]] == [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()
    ]
    assert sum(order == 2 for _, _, order in found["bonds"]) == 4  # C=O and a ring in one of its forms
    assert found["labels"] == [f"conformer {k} of 3" for k in (1, 2, 3)]
    assert found["colours"][2] == depiction.COLOURS["O"] and found["sizes"][-1] < found["sizes"][0]
    assert found["radius"] > np.linalg.norm(frames, axis=-1).max()


def test_geometries_are_laid_onto_the_first() -> None:
    mol = molecule(count=1)
    x = positions(mol)[0]
    turned = np.stack([x, Rotation.random(rng=np.random.default_rng(0)).apply(x) + 8, -x])
    laid = depiction.laid_on_first(mol, turned)
    assert np.allclose(laid[0], laid[1], atol=1e-8)
    assert np.abs(laid[2] - laid[0]).max() > 0.5  # a mirror image stays one
    assert depiction.laid_on_first(molecule("[H][H]"), np.zeros((2, 2, 3))).shape == (2, 2, 3)
    assert scene(depiction.view(molecule("[Na+]", 0), np.ones((1, 1, 3))))["frames"] == [[[0, 0, 0]]]


def test_markup_nests_escapes_and_loads_nothing(tmp_path: Path) -> None:
    mol = molecule()
    nasty = '"><script>alert(1)</script>'
    drawings = depiction.sketches([mol, molecule("C[Pt]C", 0)], [nasty, "b"])
    turning = depiction.view(mol, labels=[nasty, "b", "c"])
    assert "alert(1)</script>" not in drawings + turning and html.escape(nasty) in drawings
    assert Nested(drawings).tags.count("svg") == 2 and "canvas" in Nested(turning).tags
    assert "http" not in drawings + turning
    report = Report("molecules")
    report.block(drawings, "drawings")
    report.block(turning, "a <view>")
    report.write(tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert drawings in page and turning in page and "a &lt;view&gt;" in page


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://x/y.js"></script>',
        "<img src='pictures/a.png'>",
        "<img alt='' srcset=b.png>",
        '<a href="//x">y</a>',
        "<p style='background: url(https://x)'>y</p>",
        "<style>@import 'x.css';</style>",
        "<iframe></iframe>",
        '<LINK rel="stylesheet">',
    ],
)
def test_reports_refuse_markup_that_loads(markup: str) -> None:
    with pytest.raises(ArgumentError, match="markup"):
        Report("r").block(markup, "")


def test_reports_take_what_is_inside() -> None:
    Report("r").block('<a href="#top">up</a><img src="data:image/png;base64,AA=="><p>src="x", url</p>', "")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_draws_every_atom_and_bond(tmp_path: Path) -> None:
    mol = molecule("C=O", 2)
    markup = depiction.view(mol)
    script = re.search(r"<script>(.*)</script>", markup, re.DOTALL)
    assert script is not None
    stage = """
    const drawn = { arcs: [], lines: 0 }, heard = {};
    const pen = new Proxy({}, { get: (_, name) => (...a) => {
      if (name === "arc") drawn.arcs.push(a.slice(0, 2));
      if (name === "lineTo") drawn.lines += 1;
      return { addColorStop() {} };
    }, set: () => true });
    const hear = where => ({ addEventListener: (name, what) => { heard[where + name] = what; } });
    const canvas = { clientWidth: 300, clientHeight: 200, getContext: () => pen, setPointerCapture() {} };
    Object.assign(canvas, hear("c "));
    const slider = { value: "0", ...hear("s ") }, label = {};
    const box = { dataset: { scene: SCENE }, querySelector: name => ({ canvas, input: slider, output: label })[name] };
    globalThis.document = { currentScript: { previousElementSibling: box } };
    globalThis.window = { devicePixelRatio: 2, ...hear("w ") };
    """.replace("SCENE", json.dumps(json.dumps(scene(markup))))
    acts = """
    const first = JSON.stringify(drawn.arcs), counts = [drawn.arcs.length, drawn.lines], said = [label.textContent];
    drawn.arcs = [];
    heard["c pointerdown"]({ clientX: 0, clientY: 0, pointerId: 1 });
    heard["c pointermove"]({ clientX: 50, clientY: 20 }); heard["c pointerup"]({});
    const moved = JSON.stringify(drawn.arcs) !== first;
    heard["c pointermove"]({ clientX: 90, clientY: 20 });
    slider.value = "1"; heard["s input"](); said.push(label.textContent);
    heard["c wheel"]({ deltaY: 100, preventDefault() {} });
    console.log(JSON.stringify({ counts, moved, said, inside: drawn.arcs.every(p => Math.abs(p[0]) < 150) }));
    """
    (tmp_path / "view.js").write_text(stage + script.group(1) + acts, encoding="utf-8")
    done = subprocess.run(["node", str(tmp_path / "view.js")], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["counts"] == [4, 2 * (2 + 1 + 1)]  # every atom; half-bonds: C=O has two lines in each half
    assert found == found | {"moved": True, "inside": True, "said": ["conformer 1 of 2", "conformer 2 of 2"]}


def test_online_pages_say_that_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    page = depiction.online_page(molecule(), "a <b>")
    assert "loads 3Dmol.js from the network" in page and "a &lt;b&gt;" in page and page.count("V2000") == 3
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="py3Dmol"):
        depiction.online_page(molecule(), "t")


def test_what_cannot_be_shown_is_refused() -> None:
    mol = molecule()
    x = positions(mol)
    for bad in (x[:0], x[:, :-1], x[0], np.full_like(x, np.nan)):
        with pytest.raises(ArgumentError, match="x: got"):
            depiction.view(mol, bad)
    with pytest.raises(ArgumentError, match="labels"):
        depiction.view(mol, labels=["one"])
    with pytest.raises(ArgumentError, match="legends"):
        depiction.sketches([mol], [])
