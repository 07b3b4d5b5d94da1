"""Data sets of conformers: what a pair is, what is kept, what failed and is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers, rdMolAlign
from scipy.spatial.transform import Rotation

from polydiff.core.errors import ArgumentError, DataError
from polydiff.molecules import drafts, graphs, preparing, sources
from polydiff.molecules.data import Conformers, load
from polydiff.molecules.drafts import right_stereo
from polydiff.molecules.graphs import graph
from polydiff.molecules.preparing import Options, deduplicate
from polydiff.molecules.smiles import SMILES
from polydiff.molecules.sources import NAMES
from polydiff.molecules.splits import TEST, VALID, by_name, by_scaffold, scaffold
from polydiff.molecules.symmetry import best_match, symmetry

SHARED = Path(os.environ.get("POLYDIFF_DATA") or Path(__file__).parents[3] / "shared" / "data")

# Their results are a molecule or a problem; which one is what the tests are about.
embed: Any = drafts.embed
parse: Any = drafts.parse
relax: Any = drafts.relax

ENOUGH = "CCO\tethanol\nC[C@H](N)C(=O)O\nC/C=C/C\nOCC(O)CO\nCC(=O)C\nCCCC\nCS(C)(=O)=O\nc1ccccc1O\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "molecules"


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Molecules of the embedded set, two drafts each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load("small", "train", count=8, drafts=2, scale=0.5)


def parts(batch):
    index = batch["structure"]["index"]
    return [(batch["x_0"][index == k], batch["draft"][index == k]) for k in range(batch["structure"]["num_graphs"])]


def test_a_pair_is_molecule_i_mod_m_and_draft_i_div_m(some):
    count = len(some.names)
    assert len(some) == 2 * count == 16
    whole = some.batch(range(len(some)))
    assert whole["x_0"].dtype == whole["draft"].dtype == torch.float32
    assert whole["level"].tolist() == [0] * 16
    assert some.levels == ("MMFF94",)
    for i, (x_0, draft) in enumerate(parts(whole)):
        (alone,) = parts(some.batch([i]))
        assert torch.equal(x_0, alone[0])
        assert torch.equal(draft, alone[1])
        assert len(x_0) == some.molecules[i % count].GetNumAtoms()
        if i < count and some.pairs[i] > 1:
            assert not torch.equal(draft, parts(whole)[i + count][1])
    expected = graph(some.molecules[3])
    for key in ("atom", "edge", "edge_index", "bond_index", "chiral_index"):
        assert torch.equal(whole["graph"][3][key], expected[key])
        assert torch.equal(whole["graph"][3 + count][key], expected[key])
    mixed = some.batch(torch.tensor([5, 2, -1]))
    for (x_0, draft), i in zip(parts(mixed), (5, 2, 15), strict=True):
        assert torch.equal(x_0, parts(whole)[i][0])
        assert torch.equal(draft, parts(whole)[i][1])
    with pytest.raises(IndexError):
        some.batch([16])


def test_a_target_is_the_draft_s_own_minimum_turned_onto_it(some):
    whole = some.batch(range(len(some)))
    for i, (x_0, draft) in enumerate(parts(whole)):
        mol = Chem.Mol(some.molecules[i % len(some.names)])
        target, start = ((v * some.scale).double().numpy() for v in (x_0 + draft, draft))
        np.testing.assert_allclose(target.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(start.mean(0), 0, atol=1e-5)
        known = [c.GetPositions() for c in mol.GetConformers()]
        two = Chem.Mol(mol)
        two.RemoveAllConformers()
        for x in (start, target):
            conformer = Chem.Conformer(len(x))
            conformer.SetPositions(np.ascontiguousarray(x))
            two.AddConformer(conformer, assignId=True)
        here = np.sqrt(((target - start) ** 2).sum(1).mean())
        assert here == pytest.approx(rdMolAlign.AlignMol(Chem.Mol(two), Chem.Mol(two), 1, 0), abs=1e-4)
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(two)
        force = rdForceFieldHelpers.MMFFGetMoleculeForceField(two, properties, confId=1)
        assert np.abs(force.CalcGrad()).max() < 0.5
        lowest = mol.GetConformer(0).GetDoubleProp("energy")
        assert -1e-2 < force.CalcEnergy() - lowest < 10.01
        assert right_stereo(some.graph(i % len(some.names)), target)
        # It is one of the references, up to the width within which these are one.
        assert min(best_match(mol, target, x).rmsd for x in known) < 0.11


def test_references_are_apart_and_sorted(some):
    for mol in some.molecules:
        energies = [c.GetDoubleProp("energy") for c in mol.GetConformers()]
        assert energies == sorted(energies)
        x = [c.GetPositions() for c in mol.GetConformers()]
        assert deduplicate(symmetry(mol), x) == list(range(len(x)))


def test_deduplication_sees_through_relabelling():
    mol = parse("CCC")
    x = embed(mol, 1, 1).GetConformer().GetPositions()
    of = symmetry(mol)
    turned = x[of.every[77]] @ Rotation.random(rng=np.random.default_rng(1)).as_matrix()
    far = x * 1.3
    assert deduplicate(of, [x, turned, far]) == [0, 2]
    assert deduplicate(of, [x, far, x * 1.31, turned]) == [0, 1]  # each against all that are kept


def test_geometries_of_another_stereochemistry_are_no_targets(monkeypatch):
    """Neither those that come with a molecule nor minima that the force field turned over."""
    mol = parse("C[C@H](O)F")
    x = embed(mol, 1, 5).GetConformer().GetPositions()
    given = preparing.Entry("given", mol, np.stack([-x, x]))
    prepare_one: Any = preparing.prepare_one
    (table,) = prepare_one(given, Options(drafts=2))
    assert table["references"].tolist() == [1]
    np.testing.assert_allclose(table["reference"], x - x.mean(0), atol=1e-5)
    (problem,) = prepare_one(preparing.Entry("mirrored", mol, -x[None]), Options(drafts=1))
    assert problem.reason == "stereo-failed"

    def mirroring(made):
        energies = relax(made)
        conformer = made.GetConformer(int(energies.argmin()))
        conformer.SetPositions(np.ascontiguousarray(-conformer.GetPositions()))
        energies[energies.argmin()] -= 1  # the best of all, were it not another molecule
        return energies

    monkeypatch.setattr(preparing, "relax", mirroring)
    (table,) = prepare_one(preparing.Entry("relaxed", mol, relaxed=True), Options(drafts=3))
    for x in (
        *table["reference"].reshape(-1, mol.GetNumAtoms(), 3),
        *table["target"].reshape(-1, mol.GetNumAtoms(), 3),
    ):
        assert right_stereo(graphs.arrays(mol), x)


def test_drafts_depend_on_the_name_and_the_seed():
    mol = parse("CCCO")
    prepare_one: Any = preparing.prepare_one
    made = [
        prepare_one(preparing.Entry(name, mol, relaxed=True), Options(drafts=1, attempts=1, seed=seed))
        for name, seed in (("a", 0), ("a", 0), ("b", 0), ("a", 1))
    ]
    first, again, *others = (tables[0]["draft"] for tables in made)
    np.testing.assert_array_equal(first, again)
    assert all(np.abs(first - other).max() > 0.05 for other in others)


@pytest.mark.parametrize("start", ["harmonic", "centred"])
def test_from_noise_the_state_is_the_geometry(start, tmp_path):
    file = tmp_path / "own.smi"
    file.write_text(ENOUGH)
    data = load(file, start=start, scale=2.0, drafts=3)
    batch = data.batch(range(len(data)))
    assert not batch["draft"].any()
    assert ("bonds" in batch["structure"]) == (start == "harmonic")
    for i, (x_0, _) in enumerate(parts(batch)):
        mol = data.molecules[i % len(data.names)]
        known = [c.GetPositions() for c in mol.GetConformers()]
        expected = known[i // len(data.names) % len(known)]
        np.testing.assert_allclose(x_0.numpy() * 2, expected, atol=1e-5)


def written(path, mols):
    with Chem.SDWriter(str(path)) as writer:
        for title, mol, k in mols:
            one = Chem.Mol(mol, confId=k)
            one.SetProp("_Name", title)
            writer.write(one)
    return path


def own_sdf(tmp_path):
    """Two molecules in training's share of the split, two conformers and one."""
    flexible, rigid = (embed(parse(s), 2, 3) for s in ("C[C@H](O)CCC", "CC(C)=O"))
    for mol in (flexible, rigid):
        relax(mol)
        assert by_name(Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)) == "train"
    path = tmp_path / "own.sdf"
    return written(path, [("a", flexible, 0), ("a", flexible, 1), ("b", rigid, 0)]), flexible, rigid


def test_conformers_of_a_file_are_the_references(tmp_path):
    path, flexible, rigid = own_sdf(tmp_path)
    data = load(path, drafts=3, scale=1.0)
    assert data.levels == ("own",)
    assert sorted(data.names) == ["a", "b"]
    for k, name in enumerate(data.names):
        mol = {"a": flexible, "b": rigid}[name]
        count = {"a": 2, "b": 1}[name]
        known = [c.GetPositions() for c in list(mol.GetConformers())[:count]]
        got = data.molecules[k]
        assert got.GetNumConformers() == count
        assert Chem.MolToSmiles(got) == Chem.MolToSmiles(mol)
        for i in range(3):
            ((x_0, draft),) = parts(data.batch([k + 2 * i]))
            target, start = (x_0 + draft).double().numpy(), draft.double().numpy()
            assert min(best_match(mol, x, target).rmsd for x in known) < 1e-3
            here = np.sqrt(((target - start) ** 2).sum(1).mean())
            assert here == pytest.approx(min(best_match(mol, x, start).rmsd for x in known), abs=1e-3)


def test_levels_are_asked_for_by_name(tmp_path):
    path, *_ = own_sdf(tmp_path)
    both = load(path, drafts=2, levels=("MMFF94", "B3LYP"))
    assert both.levels == ("MMFF94",)  # the file's conformers, and no second set of minima
    asked = ("B3LYP", "MMFF94")  # without "own" they count as the first
    both = load(path, drafts=2, levels=asked)
    assert both.levels == asked
    assert len(both.names) == 4
    level = both.batch(range(4))["level"]
    assert sorted(level.tolist()) == [0, 0, 1, 1]
    for k, mol in enumerate(both.molecules):
        assert mol.GetConformer(0).HasProp("energy") == (level[k] == 1)
    assert both.elements == {"B3LYP": ("H", "C", "O"), "MMFF94": ("H", "C", "O")}
    file = tmp_path / "own.smi"
    file.write_text(ENOUGH)
    with pytest.raises(DataError, match="MMFF94"):
        load(file, levels=("B3LYP",))


def test_every_failure_is_counted(tmp_path):
    file = tmp_path / "own.csv"
    rows = ["x1,C1CC", "x2,C.C", "x3,C[Sn](C)(C)C", "x4,", "x5,CB(C)C"]
    good = [f"g{k},{s.split()[0]}" for k, s in enumerate(ENOUGH.splitlines())]
    file.write_text("\n".join(["ID,Smiles", *rows, *good]))
    loaded = [load(file, split, drafts=1) for split in ("train",)]
    problems = {name: reason for data in loaded for name, reason, _ in data.failures}
    expected = {"x1": "invalid", "x2": "disconnected", "x3": "unsupported-element", "x4": "invalid"}
    assert {k: v for k, v in problems.items() if k != "x5"} == expected
    assert loaded[0].problems["invalid"] == 2
    assert sum(loaded[0].problems.values()) == len(loaded[0].failures)
    inside = {k for k, s in (row.split(",") for row in good) if by_name(Chem.CanonSmiles(s)) == "train"}
    assert set(loaded[0].names) == inside


def test_prepared_molecules_are_kept(tmp_path, cache, monkeypatch):
    first = load("small", count=4, drafts=2)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(preparing, "prepare_one", None)
    again = load("small", count=4, drafts=2)
    assert again.fingerprint() == first.fingerprint()
    monkeypatch.undo()
    monkeypatch.setenv("POLYDIFF_CACHE", str(tmp_path / "cache"))
    other = load("small", count=4, drafts=2, seed=1)
    assert other.names == first.names
    assert other.fingerprint() != first.fingerprint()
    assert load("small", count=4, drafts=2, scale=1.0).fingerprint() != first.fingerprint()


def test_an_interrupted_preparation_goes_on(cache, monkeypatch):
    monkeypatch.setattr(preparing, "_PART", 2)
    real, seen = preparing.prepare_one, []

    def counted(entry, options):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(entry.name)
        return real(entry, options)

    monkeypatch.setattr(preparing, "prepare_one", counted)
    with pytest.raises(KeyboardInterrupt):
        load("small", count=5, drafts=1)
    assert len(list(cache.iterdir())) == 1
    seen[:] = []
    monkeypatch.setattr(
        preparing, "prepare_one", lambda entry, options: (seen.append(entry.name), real(entry, options))[1]
    )
    data = load("small", count=5, drafts=1)
    assert seen == data.names[2:]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(preparing, "prepare_one", real)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])  # a broken file is made again
    assert load("small", count=5, drafts=1).fingerprint() == data.fingerprint()


def test_processes_change_nothing(cache, monkeypatch):
    monkeypatch.setattr(preparing, "_CHUNK", 2)
    made = []
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        made.append(load("small", count=5, drafts=1))
        for file in cache.iterdir():
            file.unlink()
    assert made[0].names == made[1].names
    assert made[0].fingerprint() == made[1].fingerprint()


def test_splits_are_disjoint_and_fixed():
    names = [f"molecule {k}" for k in range(20_000)]
    shares = {s: np.mean([by_name(n) == s for n in names]) for s in ("train", "valid", "test")}
    # four standard deviations of a share of 20,000
    assert shares["valid"] == pytest.approx(VALID, abs=4 * (0.05 * 0.95 / 20_000) ** 0.5)
    assert shares["test"] == pytest.approx(TEST, abs=4 * (0.1 * 0.9 / 20_000) ** 0.5)
    assert [k for k in range(40) if by_name(f"molecule {k}") == "test"] == [7, 24, 28, 35, 37]
    assert scaffold(parse("CC(=O)Nc1ccc(O)cc1")) == "c1ccccc1"
    assert scaffold(parse("C[C@H]1CC1CCC1CO1")) == scaffold(parse("C1CC1CC[C@@H]1CO1"))
    assert scaffold(parse("CCCC(=O)O")) == ""
    assert by_scaffold(parse("CCCC(=O)O")) == "train"
    assert by_scaffold(parse("CC1CC1")) == by_name("C1CC1")
    rings = [mol for mol in map(parse, SMILES) if scaffold(mol)]
    assert all(by_scaffold(mol) == by_name(scaffold(mol)) for mol in rings)
    assert {by_scaffold(mol) for mol in rings} == {"train", "valid", "test"}


def test_a_split_takes_its_own_molecules_only():
    entries: Any = [preparing.Entry(smiles, parse(smiles)) for smiles in SMILES]
    select: Any = sources._select
    found = {split: [e.name for e in select(iter(entries), split, None)] for split in ("train", "valid", "test")}
    assert sorted(name for names in found.values() for name in names) == sorted(SMILES) and all(found.values())
    assert all(by_scaffold(parse(name)) == split for split, names in found.items() for name in names)
    assert [e.name for e in select(iter(entries), "test", 2)] == found["test"][:2]


def test_arrays_of_qm9_are_read_in_angstrom(tmp_path):
    """Water and hydrogen cyanide, the second of which is marked as having no sound bonds."""
    water = np.array([[0, 0, 0], [960, 0, 0], [-240, 930, 0]])
    cyanide = np.array([[0, 0, 0], [1150, 0, 0], [-1070, 0, 0]])
    np.savez(
        tmp_path / "qm9_xyz.npz",
        gdb_index=[3, 5],
        n_atoms=[3, 3],
        z=[8, 1, 1, 6, 7, 1],
        xyz_milliangstrom=np.concatenate([water, cyanide]),
        formal_charge=[0] * 6,
        n_bonds=[2, 2],
        bonds=[[0, 1, 1], [0, 2, 1], [0, 1, 3], [0, 2, 1]],
        bonds_ok=[1, 0],
    )
    entries: Any = sources.qm9(tmp_path).entries
    (entry,) = entries("train", None)
    assert entry.name == "gdb 3" and Chem.MolToSmiles(Chem.RemoveHs(entry.mol)) == "O"
    np.testing.assert_allclose(entry.references, water[None] / 1000)


def test_the_embedded_list_is_sound():
    parsed = [parse(smiles) for smiles in SMILES]
    assert all(isinstance(mol, Chem.Mol) for mol in parsed)
    canonical = {Chem.MolToSmiles(Chem.RemoveHs(mol)) for mol in parsed}
    assert len(canonical) == len(SMILES) > 300
    centres = [graph(mol).chiral_index.shape[1] for mol in parsed]
    assert sum(count >= 2 for count in centres) > 50
    assert {a.GetSymbol() for mol in parsed for a in mol.GetAtoms()} == {
        "H",
        "C",
        "N",
        "O",
        "F",
        "P",
        "S",
        "Cl",
        "Br",
        "I",
    }
    for smiles, count in zip(SMILES, centres, strict=True):
        assert (count > 0) == ("@" in smiles)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"split": "all"}, "split"),
        ({"start": "noise"}, "start"),
        ({"scale": 0.0}, "scale"),
        ({"count": 0}, "count"),
        ({"drafts": 0}, "drafts"),
        ({"levels": ("xtb",)}, "levels"),
        ({"levels": ()}, "levels"),
    ],
)
def test_arguments_are_checked(change, argument):
    with pytest.raises(ArgumentError, match=argument):
        load("small", **{"split": "train", "count": 1, "drafts": 1, **change})


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(DataError, match="qm9"):
        load("qm10")
    empty = tmp_path / "empty.smi"
    empty.write_text("")
    with pytest.raises(DataError, match="no molecules"):
        load(empty)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="smiles"):
        load(table)
    with pytest.raises(DataError, match=r"\.sdf"):
        load(written(tmp_path / "own.mol", []))


@pytest.mark.skipif(not (SHARED / "molecules" / "qm9").is_dir(), reason="needs QM9")
def test_qm9_minima_come_whole_with_their_bonds():
    data = load("qm9", "train", data_root=SHARED, count=24, drafts=2)
    assert isinstance(data, Conformers)
    assert data.levels == ("B3LYP",)
    assert len(data.names) + sum(data.problems.values()) == 24
    with np.load(SHARED / "molecules" / "qm9" / "qm9_xyz.npz", allow_pickle=False) as stored:
        index, n, x = stored["gdb_index"], stored["n_atoms"].astype(int), stored["xyz_milliangstrom"]
    begin = np.cumsum(n) - n
    for k, mol in enumerate(data.molecules):
        assert by_scaffold(mol) == "train"
        row = int(np.flatnonzero(index == int(data.names[k].split()[1]))[0])
        expected = x[begin[row] : begin[row] + n[row]] / 1000
        np.testing.assert_allclose(mol.GetConformer().GetPositions(), expected - expected.mean(0), atol=1e-5)
        ((x_0, draft),) = parts(data.batch([k + len(data.names)]))
        target = ((x_0 + draft) * data.scale).double().numpy()
        assert best_match(mol, expected, target).rmsd < 1e-3
        assert right_stereo(data.graph(k), target)
        # The same molecule from SMILES has the same graph: what is trained on is what is asked for.
        asked = parse(Chem.MolToSmiles(Chem.RemoveHs(mol)))
        order = asked.GetSubstructMatch(mol, useChirality=True)
        assert torch.equal(graph(asked).atom[list(order)], graph(mol).atom)
    held: list[Any] = list(NAMES["qm9"](SHARED).entries("test", 10))
    assert all(by_scaffold(entry.mol) == "test" for entry in held)
    assert Options().drafts == 4


def test_several_sources_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "own.smi").write_text("CCS thiol\nCCCl\n")
    (tmp_path / "other.smi").write_text("CCO\n")
    options: Any = {"drafts": 2, "levels": ("MMFF94",)}
    files = [tmp_path / "own.smi", tmp_path / "other.smi"]
    apart = [load(file, split, **options) for file in files for split in ("train",)]
    both = load(files, "train", **options)
    assert both.names == [name for one in apart for name in one.names]
    assert both.name == "own + other" and both.levels == ("MMFF94",)
    k = len(apart[0].names)
    torch.testing.assert_close(both.batch([k])["x_0"], apart[1].batch([0])["x_0"])
    with pytest.raises(ArgumentError, match="each once"):
        load(["small", "small"])
