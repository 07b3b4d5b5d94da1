"""Molecules to look at: drawings in two dimensions, and ensembles to turn in three, on pages that load nothing.

`sketches` and `view` give markup for `core.report.Report.block`. A view is a canvas and a small script of its own, so
that it opens without a network, from an archive, years later. It shows one geometry at a time, conformers or the steps
of a sampler, all laid onto the first one; drag to turn it, turn the wheel over it to come nearer.

`online_page` gives a page drawn by 3Dmol.js (Rego and Koes 2015, Bioinformatics 31:1322), which is more beautiful; but
py3Dmol does not carry that script, so that the page loads it from the network whenever it is opened.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D
from scipy.spatial.transform import Rotation

from ..core.errors import ArgumentError, DataError
from .rmsd import positions

__all__ = ["laid_on_first", "online_page", "sketches", "view"]

Floats = NDArray[np.float64]

COLOURS = {
    "H": "#f2f2f2", "B": "#f5b08f", "C": "#5b626a", "N": "#3b6fd4", "O": "#dd3a35", "F": "#6cc24a", "Si": "#d8b48a",
    "P": "#f08a24", "S": "#e8c22e", "Cl": "#3fae49", "As": "#b07fd0", "Se": "#e79a3c", "Br": "#96382e", "I": "#7d3fa8",
}  # fmt: skip
OTHER = "#c060a0"

SCRIPT = """
(function () {
  "use strict";
  const box = document.currentScript.previousElementSibling, scene = JSON.parse(box.dataset.scene);
  const canvas = box.querySelector("canvas"), pen = canvas.getContext("2d");
  const slider = box.querySelector("input"), label = box.querySelector("output");
  let turn = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], zoom = 1, last = null;
  function times(a, b) {
    return a.map(row => b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0)));
  }
  function rotate(dx, dy) {
    const [a, b] = [Math.cos(dx), Math.sin(dx)], [c, d] = [Math.cos(dy), Math.sin(dy)];
    turn = times([[1, 0, 0], [0, c, -d], [0, d, c]], times([[a, 0, b], [0, 1, 0], [-b, 0, a]], turn));
  }
  function draw() {
    const frame = Number(slider.value), ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio; canvas.height = height * ratio;
    pen.setTransform(ratio, 0, 0, ratio, width * ratio / 2, height * ratio / 2);
    pen.clearRect(-width, -height, 2 * width, 2 * height);
    const unit = zoom * 0.5 * Math.min(width, height) / scene.radius, far = 4 * scene.radius;
    const at = scene.frames[frame].map(p => {
      const q = turn.map(row => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]), s = unit * far / (far - q[2]);
      return [q[0] * s, -q[1] * s, q[2], s];
    });
    const items = at.map((p, i) => [p[2], () => {
      const r = scene.sizes[i] * p[3], colour = scene.colours[i];
      const shade = pen.createRadialGradient(p[0] - r / 3, p[1] - r / 3, r / 8, p[0], p[1], r);
      shade.addColorStop(0, "#fff"); shade.addColorStop(0.35, colour); shade.addColorStop(1, colour);
      pen.beginPath(); pen.arc(p[0], p[1], r, 0, 7); pen.fillStyle = shade; pen.fill();
      pen.lineWidth = 0.8; pen.strokeStyle = "rgba(0, 0, 0, 0.45)"; pen.stroke();
    }]);
    for (const [i, j, order] of scene.bonds) {
      const a = at[i], b = at[j], long = Math.hypot(b[0] - a[0], b[1] - a[1]) || 1;
      const nx = -(b[1] - a[1]) / long, ny = (b[0] - a[0]) / long, middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
      for (const [from, end, z] of [[a, i, (3 * a[2] + b[2]) / 4], [b, j, (a[2] + 3 * b[2]) / 4]]) {
        items.push([z - 0.05, () => {
          for (let k = 0; k < order; k++) {
            const off = (k - (order - 1) / 2) * 0.19 * from[3];
            pen.beginPath(); pen.moveTo(from[0] + nx * off, from[1] + ny * off);
            pen.lineTo(middle[0] + nx * off, middle[1] + ny * off);
            pen.lineWidth = (order > 1 ? 0.1 : 0.17) * from[3]; pen.strokeStyle = scene.colours[end]; pen.stroke();
          }
        }]);
      }
    }
    items.sort((a, b) => a[0] - b[0]).forEach(item => item[1]());
    label.textContent = scene.labels[frame];
  }
  canvas.addEventListener("pointerdown", e => {
    last = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointermove", e => {
    if (last === null) return;
    rotate((e.clientX - last[0]) / 120, (e.clientY - last[1]) / 120);
    last = [e.clientX, e.clientY]; draw();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
  canvas.addEventListener("wheel", e => {
    zoom = Math.min(6, Math.max(0.3, zoom * Math.exp(-e.deltaY / 600))); e.preventDefault(); draw();
  }, { passive: false });
  slider.addEventListener("input", draw); window.addEventListener("resize", draw);
  rotate(0.25, 0.35); draw();
})();
"""


def sketches(mols: Sequence[Chem.Mol], legends: Sequence[str], *, width: int = 220, height: int = 170) -> str:
    """Drawings of molecules, without their hydrogens, side by side; markup for a report.

    Args:
        mols: they are not changed.
        legends: a text below each.
        width, height: of one drawing, pixels.

    Raises:
        ArgumentError: not one legend for each.
    """
    if len(legends) != len(mols):
        raise ArgumentError("legends", len(legends), f"a text for each of the {len(mols)} molecules")
    cells = []
    for mol, legend in zip(mols, legends, strict=True):
        flat = bare(mol)
        rdDepictor.Compute2DCoords(flat)
        drawing = rdMolDraw2D.MolDraw2DSVG(width, height)
        rdMolDraw2D.PrepareAndDrawMolecule(drawing, flat)
        drawing.FinishDrawing()
        svg = drawing.GetDrawingText()
        svg = svg[svg.index("<svg") :].replace("<!-- END OF HEADER -->", "")
        svg = re.sub(r"\s(xmlns(:\w+)?|xml:space|version|baseProfile)='[^']*'", "", svg)
        cells.append(f"<div>{svg}<small>{html.escape(legend)}</small></div>")
    style = f"display:grid;grid-template-columns:repeat(auto-fill,{width}px);gap:1rem;overflow-wrap:anywhere"
    return f'<div style="{style}">{"".join(cells)}</div>'


def view(mol: Chem.Mol, x: Floats | None = None, labels: Sequence[str] | None = None, *, height: int = 340) -> str:
    """Geometries of a molecule to turn by mouse or finger, with a slider from one to the next; markup for a report.

    Args:
        mol: whose atoms and bonds are drawn.
        x: (F, N, 3), Å, the geometries; None for the molecule's conformers.
        labels: a text for each.
        height: pixels.

    Raises:
        ArgumentError: no geometry, or one that is not finite or of other atoms; not one label for each.
    """
    x = positions(mol) if x is None else np.asarray(x, dtype=np.float64)
    if x.ndim != 3 or len(x) == 0 or x.shape[1:] != (mol.GetNumAtoms(), 3) or not np.isfinite(x).all():
        raise ArgumentError("x", x, f"finite geometries of shape (1 or more, {mol.GetNumAtoms()}, 3)")
    if labels is None:
        labels = [f"conformer {i + 1} of {len(x)}" for i in range(len(x))]
    if len(labels) != len(x):
        raise ArgumentError("labels", len(labels), f"a text for each of the {len(x)} geometries")
    laid = laid_on_first(mol, x)
    _, _, axes = np.linalg.svd(laid[0])  # the broad side to the reader
    laid = laid @ (axes * [[1], [1], [np.linalg.det(axes)]]).T
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    skeleton = Chem.Mol(mol)
    Chem.Kekulize(skeleton, clearAromaticFlags=True)
    scene = {
        "frames": laid.round(3).tolist(),
        "labels": list(labels),
        "bonds": [
            (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), max(1, min(3, round(bond.GetBondTypeAsDouble()))))
            for bond in skeleton.GetBonds()
        ],
        "colours": [COLOURS.get(symbol, OTHER) for symbol in symbols],
        "sizes": [0.24 if symbol == "H" else 0.36 for symbol in symbols],
        "radius": round(float(np.linalg.norm(laid, axis=-1).max()) + 0.5, 3),
    }
    data, name = html.escape(json.dumps(scene)), html.escape(Chem.MolToSmiles(bare(mol)))
    hidden = ' style="display:none"' if len(x) == 1 else ' style="width:60%"'
    return (
        f'<div class="molecule" data-scene="{data}">'
        f'<canvas role="img" aria-label="{name}" style="width:100%;height:{height}px;touch-action:none;cursor:grab">'
        "</canvas>"
        f'<input type="range" min="0" max="{len(x) - 1}" value="0" aria-label="geometry"{hidden}> <output></output>'
        f"</div><script>{SCRIPT}</script>"
    )


def bare(mol: Chem.Mol) -> Chem.Mol:
    """A copy without hydrogens, or with them where RDKit cannot think them away."""
    with rdBase.BlockLogs():
        try:
            return Chem.RemoveHs(mol)
        except Chem.MolSanitizeException:
            return Chem.Mol(mol)


def laid_on_first(mol: Chem.Mol, x: Floats) -> Floats:
    """Geometries (F, N, 3) centred and turned (never mirrored) onto the first, by heavy atoms where there are some."""
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    chosen = heavy if len(heavy) > 2 else list(range(mol.GetNumAtoms()))
    centred = x - x[:, chosen].mean(1, keepdims=True)
    if len(chosen) < 2:
        return centred
    turned = [centred[0]]
    for each in centred[1:]:
        found, *_ = Rotation.align_vectors(centred[0, chosen], each[chosen])
        turned.append(found.apply(each))
    return np.stack(turned)


def online_page(mol: Chem.Mol, title: str, *, width: int = 640, height: int = 480) -> str:
    """A whole page with all conformers drawn by 3Dmol.js, one after another. It needs the network and says so.

    Raises:
        DataError: py3Dmol is not installed.
    """
    if importlib.util.find_spec("py3Dmol") is None:
        raise DataError("py3Dmol is not installed: `pip install py3Dmol`, or use `view`, which needs nothing")
    import py3Dmol

    scene = py3Dmol.view(width=width, height=height)
    blocks = [Chem.MolToMolBlock(mol, confId=conformer.GetId()) for conformer in mol.GetConformers()]
    scene.addModelsAsFrames("".join(f"{block}$$$$\n" for block in blocks), "sdf")
    scene.setStyle({"stick": {"radius": 0.12}, "sphere": {"scale": 0.24}})
    scene.zoomTo()
    if len(blocks) > 1:
        scene.animate({"loop": "forward", "interval": 700})
    heading = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{heading}</title>\n</head>\n'
        f"<body>\n<h1>{heading}</h1>\n<p>This page loads 3Dmol.js from the network whenever it is opened.</p>\n"
        f"{scene.write_html()}\n</body>\n</html>\n"
    )
