"""The evaluate and demo commands of molecules, and the comparison behind them: what is compared, counted, refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from scipy.spatial.transform import Rotation

from polydiff.core.checkpoints import read_json
from polydiff.core.errors import ArgumentError
from polydiff.core.report import Report
from polydiff.core.wording import lines
from polydiff.molecules import comparison, demo, evaluate
from polydiff.molecules.comparison import Drawn, Draws, Reference
from polydiff.molecules.metrics import P1, P2
from polydiff.molecules.model import ConformerConfig, Level
from polydiff.molecules.network import EquivariantConfig
from polydiff.molecules.options import Demo, Evaluate
from polydiff.molecules.pipeline import ConformerPipeline
from polydiff.molecules.rmsd import positions

SMILES = ("CC(C)CO", "C[C@H](N)C(=O)O", "O")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDIFF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def references(count: int = 2) -> list[Reference]:
    found = []
    for smiles in SMILES:
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=1)
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol)
        found.append(Reference(smiles, mol))
    return found


def turned(reference: Reference, copies: int = 2) -> Chem.Mol:
    """The reference conformers again, each so many times, elsewhere."""
    x = np.concatenate([positions(reference.mol)] * copies)
    return comparison.with_positions(
        reference.mol, x @ Rotation.random(rng=np.random.default_rng(0)).as_matrix().T + 9
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- comparison


def test_the_references_drawn_again_are_perfect() -> None:
    real = references()
    found = comparison.measure(real, [Draws("again", [Drawn(turned(one)) for one in real], 3.0)], P1, 0.5)["again"]
    assert [found["coverage"][name]["mean"] for name in ("COV-R", "COV-P")] == [1, 1]
    assert found["sweep"][0]["COV-R"] == found["sweep"][0]["COV-P"] == 1
    for name, each in found["figures"].items():
        if name.startswith(("error", "heavy", "all")):
            assert each["mean"] == pytest.approx(0, abs=1e-5) and each["count"] == 3
    assert found["figures"]["strain, kcal/mol"]["mean"] == pytest.approx(0, abs=0.02)
    for each in found["distributions"].values():
        assert each["mean"] == pytest.approx(0, abs=1e-6)
    # alanine alone has a stereo element, in each of its four conformers
    assert found["stereo"] == {"elements": 4, "elements right": 1, "conformers": 4, "conformers right": 1}
    assert found["seconds per conformer"] == pytest.approx(3 / 12) and found["posebusters"] is None
    assert list(found["best of"]) == [1, 2] and found["statuses"] == {"ok": 3}
    json.dumps(found, allow_nan=False)


def test_failures_are_counted_and_cover_nothing() -> None:
    real = references()
    each = [Drawn(turned(real[0])), Drawn(None, "no-embedding"), Drawn(None, "stereo-failed")]
    found = comparison.measure(real, [Draws("half", each, 1.0)], P2, 0.5)["half"]
    assert found["coverage"]["failed"] == 2 and found["coverage"]["COV-R"]["mean"] == pytest.approx(1 / 3)
    assert found["figures"]["heavy-atom RMSD, best, Å"]["count"] == 1
    assert found["statuses"] == {"ok": 1, "no-embedding": 1, "stereo-failed": 1}
    assert [row["conformers"] for row in found["molecules"]] == [4, 0, 0]
    nothing = comparison.measure(real, [Draws("none", [Drawn(None, "timeout")] * 3, 1.0)], P2, 0.5)["none"]
    assert nothing["coverage"]["COV-P"]["mean"] == 0 and nothing["seconds per conformer"] is None
    assert nothing["figures"] == {} and nothing["best of"] == {}
    json.dumps(nothing, allow_nan=False)


def test_mirror_images_are_wrong_and_broken_conformers_are_left_out() -> None:
    real = references(1)[1]
    x = positions(real.mol)
    broken = np.concatenate([x, -x, np.full_like(x, np.nan)])
    draws = Draws("m", [Drawn(comparison.with_positions(real.mol, broken))], 1.0)
    found = comparison.measure([real], [draws], P1, 0.1, busted=2)["m"]
    assert found["conformers"] == 2 and found["stereo"]["conformers right"] == 0.5
    assert found["coverage"]["COV-P"]["mean"] == 0.5 and found["coverage"]["COV-R"]["mean"] == 1
    assert found["posebusters"]["conformers"] == 2 and found["posebusters"]["unanswered"] == 0


def test_methods_see_no_references_and_draw_enough() -> None:
    real = [*references(3)[:1], *references(1)[1:]]
    seen: list[tuple[list[str], int]] = []

    def method(mols: Sequence[Chem.Mol], number: int) -> list[Drawn]:
        assert all(mol.GetNumConformers() == 0 for mol in mols)
        seen.append(([Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in mols], number))
        return [Drawn(None, str(mol.GetNumAtoms())) for mol in mols]

    draws = comparison.timed("m", method, real, 4)
    assert seen == [([SMILES[1], SMILES[2]], 4), ([SMILES[0]], 6)]  # twice three references are more than four
    assert [one.status for one in draws.each] == [str(one.mol.GetNumAtoms()) for one in real]
    with pytest.raises(ArgumentError, match="in their order"):
        comparison.timed("m", lambda mols, number: [Drawn(real[0].mol)] * len(mols), real[1:2], 4)
    with pytest.raises(ArgumentError, match="draws"):
        comparison.measure(real, [Draws("m", draws.each[:2], 0.0)], P1, 0.5)
    with pytest.raises(ArgumentError, match="references"):
        comparison.measure([], [], P1, 0.5)


def test_baselines_draw_alike_and_the_force_field_relaxes() -> None:
    real = references()
    plain, relaxed = comparison.baselines(real, 5, seed=3)
    again = comparison.baselines(real[1:], 5, seed=3)[0]
    assert (plain.method, relaxed.method) == ("ETKDGv3", "ETKDGv3 + MMFF94") and relaxed.seconds > plain.seconds
    assert all(one.mol.GetNumConformers() == 5 for draws in (plain, relaxed) for one in draws.each if one.mol)
    one, other = plain.each[1].mol, again.each[0].mol
    assert one is not None and other is not None and np.array_equal(positions(one), positions(other))
    found = comparison.measure(real, [plain, relaxed], P1, 0.5)
    strain = [found[name]["figures"]["strain, kcal/mol"]["mean"] for name in (plain.method, relaxed.method)]
    assert strain[0] > 1 and strain[1] == pytest.approx(0, abs=0.02)


# --------------------------------------------------------------------------------------------------------- commands


@dataclass
class Data:
    """What `evaluate` looks at of a data set."""

    molecules: list[Chem.Mol]
    levels: tuple[str, ...] = ("MMFF94",)
    name: str = "three"

    @property
    def names(self) -> list[str]:
        return list(SMILES[: len(self.molecules)])

    @property
    def problems(self) -> dict[str, int]:
        return {"stereo-failed": 1}


def pipeline(scale: float = 0.25) -> ConformerPipeline:
    """An untrained model that was taught one level."""
    network = EquivariantConfig(width=8, vectors=8, depth=1, scale=scale)
    config = ConformerConfig(network=network, levels=(Level("MMFF94", ("H", "C", "N", "O")),), scale=scale)
    torch.manual_seed(0)
    return ConformerPipeline(config, ConformerPipeline.build(config).eval())


SMALL = Evaluate(model="m", data="small", count=2, num_conformers=3, steps=2, posebusters=0)


def run(data: Data, options: Evaluate, model: ConformerPipeline | None = None) -> dict:
    return evaluate.evaluate(model or pipeline(), data, options)  # pyright: ignore[reportArgumentType]


def test_a_model_without_noise_is_its_drafts() -> None:
    data = Data([one.mol for one in references(1)])
    results = run(data, replace(SMALL, relax=True), pipeline(scale=1e-3))
    assert list(results["methods"]) == ["polydiff", "polydiff + MMFF94", "ETKDGv3", "ETKDGv3 + MMFF94"]
    model, relaxed, plain, ceiling = results["methods"].values()
    # Other drafts than the baseline's, but of the same kind; both relax to minima.
    assert model["conformers"] == plain["conformers"] == 9
    bonds = "error of bond lengths, Å"
    assert model["figures"][bonds]["mean"] == pytest.approx(plain["figures"][bonds]["mean"], rel=0.5)
    assert relaxed["figures"][bonds]["mean"] < 0.3 * model["figures"][bonds]["mean"]
    assert ceiling["figures"]["strain, kcal/mol"]["mean"] == pytest.approx(0, abs=0.02)
    json.dumps(results, allow_nan=False)
    assert results["level"] == "MMFF94" and results["references"] == {
        "molecules": 3,
        "conformers": 3,
        "left out": {"stereo-failed": 1},
    }
    assert {"machine", "date", "seed", "command", "options"} <= results.keys()
    rows = evaluate.table(results)
    assert {"figure", *results["methods"]} == set(rows[0])
    assert "P1: COV-R, %, <= 0.5 Å, mean" in [row["figure"] for row in rows]
    assert len({len(line) for line in lines(rows)}) == 1


def test_protocol_and_threshold_reach_the_figures() -> None:
    data = Data([references(1)[2].mol])
    for protocol, rule in (("P1", "<= 0.2"), ("P2", "< 0.2")):
        results = run(data, replace(SMALL, protocol=protocol, threshold=0.2))
        assert results["protocol"] == protocol
        assert {each["coverage"]["delta"] for each in results["methods"].values()} == {0.2}
        assert any(rule in row["figure"] for row in evaluate.table(results))
        # One heavy atom lies on another: distance 0, covered from any threshold above.
        assert results["methods"]["polydiff"]["coverage"]["COV-R"]["mean"] == 1


def test_levels_that_do_not_fit_are_refused() -> None:
    mols = [references(1)[2].mol]
    with pytest.raises(ArgumentError, match="--level"):
        run(Data(mols, levels=("B3LYP",)), SMALL)
    with pytest.raises(ArgumentError, match="one of"):
        run(Data(mols, levels=("B3LYP", "MMFF94")), SMALL)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    options = replace(SMALL, model=str(tmp_path / "model"), out=tmp_path / "out")
    evaluate.main(options)
    results = read_json(tmp_path / "out" / "results.json", 1 << 24)
    printed = capsys.readouterr().out
    assert results["references"]["molecules"] == 2 and len(results["methods"]) == 3
    for row in evaluate.table(results):
        assert row["figure"] in printed and row["ETKDGv3"] in printed
    assert (tmp_path / "out" / "config.json").is_file()
    with pytest.raises(ArgumentError, match="--data"):
        evaluate.main(replace(options, data=None))


def test_the_demo_writes_a_page(tmp_path: Path) -> None:
    report = Report("molecules")
    demo.demo(report, Demo(out=tmp_path, quick=True))
    report.write(tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<canvas") >= 2 and page.count("<svg") >= 1 and "ETKDGv3 + MMFF94" in page
    for status in ("invalid", "disconnected", "unsupported-element"):
        assert status in page
    assert math.isfinite(len(page)) and "https://" not in page
