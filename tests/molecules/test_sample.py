"""From files of SMILES to SDF files: every row accounted for, nothing lost or repeated by an interruption."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rdkit import Chem

from polydiff.core.errors import ArgumentError, CheckpointError, DataError
from polydiff.molecules import sample as module
from polydiff.molecules.options import Sample
from polydiff.molecules.pipeline import ConformerPipeline
from polydiff.molecules.rows import read_rows, rows_of
from polydiff.molecules.sample import main, sample
from polydiff.molecules.sdf import Parts, report_path
from polydiff.molecules.stereo import keeps_stereo
from tests.molecules.models import still, untrained

ROWS = """CCO ethanol
C[C@H](O)[C@@H](N)C(=O)O	L-threonine, maybe
oops bad

CC.O two parts
c1ccccc1
C[Fe] iron
CCO ethanol
F/C=C/F e
C[C@H]1CC[C@@H](C)CC1 ring
"""
IDS = ["ethanol", "L-threonine, maybe", "bad", "row4", "two parts", "row6", "iron", "ethanol-2", "e", "ring"]
STATUSES = ["ok", "ok", "invalid", "invalid", "disconnected", "ok", "unsupported-element", "ok", "ok", "ok"]


@pytest.fixture
def asked(tmp_path: Path) -> Sample:
    """Three rows a chunk."""
    source = tmp_path / "input.smi"
    source.write_text(ROWS)
    return Sample(
        input=source, model="tiny", num_conformers=2, steps=1, chunk=3, progress=False, out=tmp_path / "out.sdf"
    )


@pytest.fixture(scope="module")
def pipeline() -> ConformerPipeline:
    return still()


def run(pipeline: ConformerPipeline, options: Sample) -> dict[str, int]:
    assert options.input is not None
    return sample(pipeline, read_rows(options.input), options)


def report(path: Path) -> list[dict[str, str]]:
    with open(report_path(path), newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------------------------- rows


def test_every_line_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.smi"
    path.write_text(ROWS)
    rows = read_rows(path)
    assert [row.id for row in rows] == IDS and [row.number for row in rows] == list(range(1, 11))
    assert [row.smiles for row in rows][1:4] == ["C[C@H](O)[C@@H](N)C(=O)O", "oops", ""]
    packed = tmp_path / "b.smi.gz"
    packed.write_bytes(gzip.compress(ROWS.encode()))
    assert read_rows(packed) == rows
    path.write_text("smiles name\nC methane\n")
    assert [(row.smiles, row.id) for row in read_rows(path)] == [("C", "methane")]


def test_ids_are_made_unique_and_that_is_noted() -> None:
    rows = rows_of([("C", "a"), ("CC", "a"), ("CCC", "a-2"), ("O", "a"), ("N", ""), ("F", "row5")])
    assert [row.id for row in rows] == ["a", "a-3", "a-2", "a-4", "row5-2", "row5"]
    assert [bool(row.note) for row in rows] == [False, True, False, True, True, False]
    assert "a was taken" in rows[1].note


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffName,SMILES,x\n"one, or so",CCO,1\n,CC,2\nthree,,3\n', encoding="utf-8")
    assert [(row.id, row.smiles) for row in read_rows(path)] == [("one, or so", "CCO"), ("row2", "CC"), ("three", "")]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column smiles among a, b"):
        read_rows(path)
    (tmp_path / "b.tsv").write_text("smiles\tid\nC\tm\n")
    assert read_rows(tmp_path / "b.tsv")[0].id == "m"


def test_columns_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("Structure,CAS,smiles\nCCO,64-17-5,C\n")
    (row,) = read_rows(path, "structure", "CAS")
    assert (row.smiles, row.id) == ("CCO", "64-17-5")
    assert read_rows(path)[0].smiles == "C"
    for names in (("SMI", None), (None, "SMI")):
        with pytest.raises(DataError, match="no column SMI .*there are: Structure, CAS, smiles"):
            read_rows(path, *names)
    (tmp_path / "a.smi").write_text("CCO")
    with pytest.raises(ArgumentError, match="--id-column"):
        read_rows(tmp_path / "a.smi", None, "CAS")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, why in (
        ("binary.smi", b"\x00\x01\x02", "not a text file"),
        ("empty.smi", b"", "no rows"),
        ("broken.smi.gz", b"no gzip", "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=why) as caught:
            read_rows(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(DataError, match="missing"):
        read_rows(tmp_path / "missing.smi")
    (tmp_path / "latin.smi").write_bytes(b"CCO caf\xe9\n\xff\xfe bad\n")
    assert read_rows(tmp_path / "latin.smi")[0].smiles == "CCO"


# ----------------------------------------------------------------------------------------------------------------- SDF


def test_conformers_carry_id_stereochemistry_and_properties(asked: Sample, pipeline: ConformerPipeline) -> None:
    counts = run(pipeline, asked)
    assert {k: v for k, v in counts.items() if v} == {
        "ok": 6, "invalid": 2, "disconnected": 1, "unsupported-element": 1, "conformers": 12
    }  # fmt: skip
    lines = report(asked.out)
    assert [line["id"] for line in lines] == IDS and [line["status"] for line in lines] == STATUSES
    assert [line["conformers"] for line in lines] == ["2" if status == "ok" else "0" for status in STATUSES]
    assert all(bool(line["message"]) == (line["status"] != "ok" or line["id"] == "ethanol-2") for line in lines)
    assert all(float(line["seconds"]) >= 0 for line in lines) and lines[0]["level"] == "B3LYP"
    found = list(Chem.SDMolSupplier(str(asked.out), removeHs=False))
    wanted = [line for line in lines if line["status"] == "ok" for _ in range(2)]
    assert [mol.GetProp("_Name") for mol in found] == [line["id"] for line in wanted]
    for k, (mol, line) in enumerate(zip(found, wanted, strict=True)):
        asked_for = Chem.AddHs(Chem.MolFromSmiles(line["smiles"]))
        assert mol.GetNumAtoms() == asked_for.GetNumAtoms() and mol.GetConformer().Is3D()
        assert keeps_stereo(asked_for, mol.GetConformer().GetPositions())
        known = mol.GetPropsAsDict()
        assert known["rank"] == k % 2 and known["seed"] == 0 and known["model"] == "tiny"
        assert known["level"] in ("B3LYP", "MMFF94") and (k % 2 or (known["relative_energy"], known["rmsd"]) == (0, 0))
        assert known["relative_energy"] >= 0
        assert isinstance(known["energy"], float)
    assert [p.name for p in asked.out.parent.iterdir() if "parts" in p.name or "tmp" in p.name] == []


def test_the_same_molecule_has_the_same_conformers_wherever_it_stands(
    asked: Sample, pipeline: ConformerPipeline
) -> None:
    run(pipeline, asked)
    found = list(Chem.SDMolSupplier(str(asked.out), removeHs=False))
    first, again = ([m for m in found if m.GetProp("_Name") == name] for name in ("ethanol", "ethanol-2"))
    for one, other in zip(first, again, strict=True):
        assert abs(one.GetConformer().GetPositions() - other.GetConformer().GetPositions()).max() < 2e-4


def test_compressed_by_name_and_equal(asked: Sample, pipeline: ConformerPipeline) -> None:
    run(pipeline, asked)
    packed = replace(asked, out=asked.out.with_name("other.sdf.gz"))
    run(pipeline, packed)
    assert gzip.decompress(packed.out.read_bytes()) == asked.out.read_bytes()
    assert report_path(packed.out).name == "other.report.csv"
    first = packed.out.read_bytes()
    run(pipeline, packed)
    assert packed.out.read_bytes() == first


# ------------------------------------------------------------------------------------------------------- interruptions


class Killed(BaseException):
    """As a signal that nothing catches."""


def killed_after(pipeline: ConformerPipeline, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = pipeline.generate, []

    def generate(*words: Any, **options: Any) -> Any:
        calls.append(words)
        if len(calls) > chunks:
            raise Killed
        return whole(*words, **options)

    monkeypatch.setattr(pipeline, "generate", generate)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_killed_run_goes_on_without_loss_or_repeat(asked: Sample, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = untrained()
    run(pipeline, asked)
    expected, table = asked.out.read_bytes(), report(asked.out)
    other = replace(asked, out=asked.out.with_name("killed.sdf"))
    with monkeypatch.context() as patch:
        killed_after(pipeline, done, patch)
        with pytest.raises(Killed):
            run(pipeline, other)
    assert not other.out.exists()
    parts = Parts(other.out)
    assert [parts.has(number) for number in range(4)] == [number < done for number in range(4)]
    (parts.folder / f"{done:06d}.sdf").write_text("half of a record, not sealed")
    with pytest.raises(ArgumentError, match="resume"):
        run(pipeline, other)
    with monkeypatch.context() as patch:
        killed_after(pipeline, 4 - done, patch)  # no more chunks than are missing
        run(pipeline, replace(other, resume=True))
    assert other.out.read_bytes() == expected
    without = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in lines] for lines in (report(other.out), table)
    ]
    assert without[0] == without[1]
    assert not parts.folder.exists()


def test_only_the_same_run_is_resumed(
    asked: Sample, pipeline: ConformerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(pipeline, 1, patch)
        with pytest.raises(Killed):
            run(pipeline, asked)
    again = replace(asked, resume=True)
    for change in ({"num_conformers": 3}, {"seed": 1}, {"chunk": 4}, {"relax": True}):
        with pytest.raises(ArgumentError, match=next(iter(change))):
            run(pipeline, replace(again, **change))
    with pytest.raises(ArgumentError, match="weights"):
        run(untrained(), again)
    assert asked.input is not None
    asked.input.write_text(ROWS.replace("CCO", "CCN"))
    with pytest.raises(ArgumentError, match="input"):
        run(pipeline, again)
    asked.input.write_text(ROWS)
    seal = Parts(asked.out).seal(0)
    kept = seal.read_text()
    seal.write_text("{")
    with pytest.raises(CheckpointError, match="start again"):
        run(pipeline, again)
    seal.write_text(kept)
    assert json.loads(kept)[0]["id"] == "ethanol"
    run(pipeline, replace(again, processes=1))


def test_chunks_may_change_while_nothing_is_kept(
    asked: Sample, pipeline: ConformerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_after(pipeline, 0, patch)
        with pytest.raises(Killed):
            run(pipeline, asked)
    with pytest.raises(ArgumentError, match="seed"):
        run(pipeline, replace(asked, resume=True, chunk=5, seed=1))
    with monkeypatch.context() as patch:
        killed_after(pipeline, 1, patch)
        with pytest.raises(Killed):
            run(pipeline, replace(asked, resume=True, chunk=5))
    with pytest.raises(ArgumentError, match="chunk"):
        run(pipeline, replace(asked, resume=True))
    assert run(pipeline, replace(asked, resume=True, chunk=5))["ok"] == 6


# ------------------------------------------------------------------------------------------------------------ commands


def test_processes_change_nothing(asked: Sample, pipeline: ConformerPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks under way at a time; threads stand for processes, which take seconds to start."""
    run(pipeline, asked)

    @contextmanager
    def threads(count: int) -> Any:
        with ThreadPoolExecutor(count) as pool:
            yield pool

    monkeypatch.setattr(module, "processes", threads)
    other = replace(asked, out=asked.out.with_name("other.sdf"), processes=2)
    run(pipeline, other)
    assert other.out.read_bytes() == asked.out.read_bytes()


def test_cheap_mistakes_are_told_without_torch(tmp_path: Path) -> None:
    """In a process of its own, where nothing else has imported it; a model of whole molecules needs no input."""
    (tmp_path / "config.json").write_text('{"pipeline": "MoleculePipeline"}')
    code = f"""
import sys
from polydiff.molecules.options import Sample
from polydiff.core.commands import run
Sample(model={str(tmp_path)!r}, smiles=()).check_at_once()
try:
    run(Sample, lambda options: print("main"), command="sample", domain="molecules", arguments=[])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "False\n" and done.returncode == 2
    assert "give a file of SMILES, or --smiles" in done.stderr


def test_the_command(asked: Sample, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "load_model", lambda name: still())
    main(replace(asked, input=None, smiles=("CCO", "oops")))
    told = capsys.readouterr().out
    assert "2 conformers in" in told and "1 ok, 1 invalid" in told and "2 molecules, ancestral, 1 steps" in told
    main(replace(asked, input=None, smiles=("CCO", "oops"), resume=True))
    assert "finished already" in capsys.readouterr().out
    assert asked.input is not None
    for wrong, why in (
        (replace(asked, input=None), "give a file of SMILES, or --smiles"),
        (replace(asked, smiles=("C",)), "give a file or --smiles, not both"),
        (replace(asked, input=None, smiles=("C",), id_column="id"), "--id-column"),
        (replace(asked, out=asked.out.parent), "this is a folder"),
        (replace(asked, out=asked.input / "x" / "out.sdf"), "cannot"),
    ):
        with pytest.raises(ArgumentError, match=why):
            main(wrong)
        with pytest.raises(ArgumentError, match=why):
            wrong.check_at_once()
    with pytest.raises(DataError, match="gone"):
        replace(asked, input=asked.out.with_name("gone.smi")).check_at_once()
    monkeypatch.setattr(module, "load_model", lambda name: still(levels=still().config.levels[:1]))
    with pytest.raises(ArgumentError, match="level"):
        main(replace(asked, level="MMFF94"))
