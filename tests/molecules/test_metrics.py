"""Figures of conformers: cases computed by hand, identities, thresholds at equality, failures, invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdMolDescriptors, rdMolTransforms
from scipy.spatial.transform import Rotation

from polydiff.core.errors import ArgumentError, DataError
from polydiff.molecules import geometry, validity
from polydiff.molecules.automorphisms import symmetry
from polydiff.molecules.drafts import relax
from polydiff.molecules.metrics import P1, P2, Scores, best_of, failed, scores, statistics, summary, sweep
from polydiff.molecules.rmsd import positions, rmsd

BY_HAND = np.array([[0.1, 0.9], [0.5, 0.6], [0.7, 2.0]])  # three drawn, two references; one is missing


def embedded(smiles: str, count: int = 3, seed: int = 7) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=seed)
    return mol


# ------------------------------------------------------------------------------------------- coverage and matching


def test_scores_by_hand() -> None:
    found = scores(BY_HAND, P1, 0.5)
    assert found.figures() == pytest.approx((1 / 2, (0.1 + 0.6) / 2, 2 / 4, (0.1 + 0.5 + 0.7) / 3))
    assert (found.references, found.drawn, found.missing, found.failed) == (2, 3, 1, False)


def test_a_distance_of_delta_covers_under_one_protocol_only() -> None:
    matrix = np.array([[0.5], [0.5]])
    assert scores(matrix, P1, 0.5).figures() == (1, 0.5, 1, 0.5)
    assert scores(matrix, P2, 0.5).figures() == (0, 0.5, 0, 0.5)
    assert scores(matrix, P2, np.nextafter(0.5, 1)).coverage_recall == 1
    assert dict(P1.deltas) == {"qm9": 0.5, "drugs": 1.25} and dict(P2.deltas) == {"qm9": 0.5, "drugs": 0.75}
    assert P1.ratio == P2.ratio == 2


def test_drawn_conformers_beyond_the_protocol_are_not_looked_at() -> None:
    matrix = np.array([[1.0], [2.0], [0.0]])
    assert scores(matrix, P1, 0.5) == scores(matrix[:2], P1, 0.5)


@pytest.mark.parametrize("protocol", [P1, P2])
def test_failures_are_zero_coverage(protocol) -> None:
    each = [scores(np.zeros((2, 1)), protocol, 0.5), failed(3, protocol, 0.5)]
    assert each[1].failed and each[1].missing == 6
    found = summary(each)
    assert (found["molecules"], found["failed"], found["missing conformers"]) == (2, 1, 6)
    assert found["COV-R"]["mean"] == found["COV-P"]["mean"] == 0.5
    assert found["MAT-R"]["mean"] == found["MAT-P"]["mean"] == 0 and found["MAT-R"]["count"] == 1
    everything = summary([failed(1, protocol, 0.5)])
    assert everything["COV-R"]["mean"] == 0 and everything["MAT-R"]["mean"] is None
    assert found["protocol"] == protocol.name and protocol.rule in found["rule"]


def test_protocols_and_thresholds_do_not_mix() -> None:
    one, other, wider = scores(BY_HAND, P1, 0.5), scores(BY_HAND, P2, 0.5), scores(BY_HAND, P1, 1.25)
    for each in ([one, other], [one, wider], []):
        with pytest.raises(ArgumentError, match="one protocol"):
            summary(each)


def test_references_drawn_again_cover_everything() -> None:
    mol = embedded("CC(C)CO")
    x, found = positions(mol), symmetry(mol)
    matrix = rmsd(np.concatenate([x, x @ Rotation.random(rng=np.random.default_rng(0)).as_matrix().T + 3]), x, found)
    for protocol in (P1, P2):
        assert scores(matrix, protocol, 1e-5).figures() == pytest.approx((1, 0, 1, 0), abs=1e-6)


def test_scores_of_random_matrices_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    for g, r in itertools.product((1, 2, 5, 8), (1, 3, 4)):
        matrix = rng.integers(0, 6, (g, r)) / 4
        for protocol in (P1, P2):
            used = matrix[: 2 * r].tolist()
            near = [min(row[j] for row in used) for j in range(r)]
            back = [min(row) for row in used]
            small = (lambda d: d <= 0.5) if protocol is P1 else (lambda d: d < 0.5)
            expected = (
                sum(map(small, near)) / r,
                sum(near) / r,
                sum(map(small, back)) / (2 * r),
                sum(back) / len(back),
            )
            assert scores(matrix, protocol, 0.5).figures() == pytest.approx(expected)


def test_sweep() -> None:
    rows = sweep([BY_HAND, np.zeros((0, 1))], P1, [0.0, 0.1, 0.5, 5.0])
    assert [row["COV-R"] for row in rows] == [0, 0.25, 0.25, 0.5]
    assert [row["COV-P"] for row in rows] == [0, 0.125, 0.25, 0.375]
    assert sweep([BY_HAND], P2, [0.1])[0]["COV-R"] == 0


def test_statistics() -> None:
    found = statistics([1, 2, 3, 10, math.nan])
    assert (found["mean"], found["median"], found["count"]) == (4, 2.5, 4)
    assert found["standard error"] == pytest.approx(math.sqrt(50 / 3 / 4))
    low, high = found["mean interval"]
    assert 1 < low < 4 < high < 10
    # As many molecules as resampling needs to be near the normal law: 1.96 standard errors on either side.
    x = np.random.default_rng(0).standard_normal(4000)
    found = statistics(x)
    assert np.subtract(found["mean interval"], found["mean"]) == pytest.approx(
        np.array([-1.96, 1.96]) * found["standard error"], rel=0.1
    )
    assert statistics(x, seed=1)["mean interval"] != found["mean interval"] == statistics(x, seed=0)["mean interval"]
    one, nothing = statistics([2.0]), statistics([math.nan])
    assert one["mean"] == 2 and one["standard error"] is None
    assert nothing["mean"] is None and nothing["count"] == 0


def test_best_of_is_the_mean_over_subsets() -> None:
    d = [0.9, 0.2, 0.4, 1.3, 0.7]
    for n in range(1, 6):
        expected = np.mean([min(subset) for subset in itertools.combinations(d, n)])
        assert best_of(d, n) == pytest.approx(expected)
    for n in (0, 6):
        with pytest.raises(ArgumentError, match="count"):
            best_of(d, n)


@pytest.mark.parametrize(
    ("matrix", "delta", "named"),
    [
        (np.zeros((2, 0)), 0.5, "distances"),
        (np.zeros(2), 0.5, "distances"),
        (np.array([[np.nan]]), 0.5, "distances"),
        (np.array([[-1.0]]), 0.5, "distances"),
        (BY_HAND, -0.5, "delta"),
        (BY_HAND, math.nan, "delta"),
    ],
)
def test_what_is_no_distance_is_refused(matrix: np.ndarray, delta: float, named: str) -> None:
    with pytest.raises(ArgumentError, match=named):
        scores(matrix, P1, delta)
    assert isinstance(scores(BY_HAND, P1, 0), Scores)


# --------------------------------------------------------------------------------------------------------- geometry


def test_bonds_and_angles_are_rdkits() -> None:
    mol = embedded("CC#CC(=O)N")
    pairs, triples, x = geometry.bonds(mol), geometry.angles(mol), positions(mol)
    expected = sum(d * (d - 1) // 2 for d in (atom.GetDegree() for atom in mol.GetAtoms()))
    assert len(pairs) == mol.GetNumBonds() and len(triples) == len({(*sorted((i, k)), j) for i, j, k in triples})
    assert len(triples) == expected
    for c, conformer in enumerate(mol.GetConformers()):
        lengths = [rdMolTransforms.GetBondLength(conformer, int(i), int(j)) for i, j in pairs]
        sizes = [rdMolTransforms.GetAngleDeg(conformer, *map(int, row)) for row in triples]
        assert geometry.bond_lengths(x, pairs)[c] == pytest.approx(lengths)
        assert geometry.angle_sizes(x, triples)[c] == pytest.approx(sizes, abs=1e-5)


def test_local_errors_are_to_the_nearest_reference_by_the_right_atoms() -> None:
    mol = embedded("CC(C)CO", 2)
    references, found = positions(mol), symmetry(mol, heavy=False)
    drawn = references[[1, 0]].copy()
    # Hydrogens renamed, the whole turned: nothing is wrong.
    drawn[:, found.atoms] = drawn[:, found.maps[-1]]
    drawn = drawn @ Rotation.random(rng=np.random.default_rng(0)).as_matrix().T + 5
    for error in geometry.local_errors(mol, drawn, references, found).values():
        assert error.shape == (2,) and np.allclose(error, 0, atol=1e-8)
    # All of one conformer 1 % larger: lengths are, angles are not.
    mean = geometry.bond_lengths(references, geometry.bonds(mol)).mean(1)
    grown = geometry.local_errors(mol, references * np.array([1.01, 1])[:, None, None], references, found)
    assert grown["bond lengths, Å"] == pytest.approx([0.01 * mean[0], 0])
    assert grown["bond angles, °"] == pytest.approx([0, 0], abs=1e-6)
    with pytest.raises(ArgumentError, match="references"):
        geometry.local_errors(mol, drawn, references[:0], found)
    with pytest.raises(ArgumentError, match="symmetry"):
        geometry.local_errors(mol, drawn, references, symmetry(mol))


def test_an_angle_error_by_hand() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("O"))

    def water(angle: float, length: float) -> np.ndarray:
        half = math.radians(angle) / 2
        return np.array([[0, 0, 0], [math.sin(half), math.cos(half), 0], [-math.sin(half), math.cos(half), 0]]) * length

    references = np.stack([water(104, 0.96), water(160, 0.96)])
    found = geometry.local_errors(mol, np.stack([water(107, 0.99)]), references, symmetry(mol, heavy=False))
    assert found["bond lengths, Å"] == pytest.approx([0.03]) and found["bond angles, °"] == pytest.approx([3])
    # Pooled, both references count: |107 - 104| / 2 + |107 - 160| / 2.
    pooled = geometry.distributional_errors([(mol, np.stack([water(107, 0.99)]), references)])
    assert pooled["bond angles, °"] == {"mean": pytest.approx(28), "kinds": {"H-O-H": pytest.approx(28)}}
    assert pooled["bond lengths, Å"]["kinds"] == {"H-O single": pytest.approx(0.03)}


def test_distributional_errors_do_not_see_which_conformer() -> None:
    mol, other = embedded("CCO", 4), embedded("CC=O", 2)
    x, y = positions(mol), positions(other)
    same = geometry.distributional_errors([(mol, x[::-1], x), (other, y, y[:0])])
    assert same["bond lengths, Å"]["mean"] == pytest.approx(0, abs=1e-12)
    assert set(same["bond lengths, Å"]["kinds"]) == {"C-C single", "C-H single", "C-O single", "H-O single"}
    moved = geometry.distributional_errors([(mol, x * 1.1, x), (other, y, y)])
    kinds = moved["bond lengths, Å"]["kinds"]
    assert kinds["C-O double"] == pytest.approx(0) and kinds["C-O single"] == pytest.approx(0.143, abs=0.005)
    # C-C occurs in both molecules, half of the weight on one that is right.
    assert kinds["C-C single"] == pytest.approx(0.1 * 1.51 / 2, rel=0.2)
    assert geometry.distributional_errors([])["bond lengths, Å"]["mean"] is None


def test_shape_of_an_ensemble() -> None:
    mol = embedded("CCCCO")
    expected = [rdMolDescriptors.CalcRadiusOfGyration(mol, confId=c.GetId()) for c in mol.GetConformers()]
    assert geometry.radius_of_gyration(mol, positions(mol) + 7) == pytest.approx(expected, rel=1e-5)
    d = np.array([[0, 1, 2], [1, 0, 6], [2, 6, 0.0]])
    assert geometry.diversity(d) == pytest.approx(3) and math.isnan(geometry.diversity(d[:1, :1]))


# --------------------------------------------------------------------------------------------------------- validity


def test_stereo_elements_are_read_from_coordinates() -> None:
    mol = embedded("C[C@H](N)[C@@H](F)/C=C/Cl", 2)
    mol.GetConformer(0).SetId(9)  # ids are no places
    before = positions(mol)
    assert validity.stereo_right(mol).tolist() == [[True] * 3] * 2
    mirrored = Chem.Mol(mol)
    mirrored.GetConformer(1).SetPositions(-mirrored.GetConformer(1).GetPositions())
    assert validity.stereo_right(mirrored).tolist() == [[True] * 3, [False, False, True]]
    for smiles, expected in (
        ("C[C@@H](N)[C@@H](F)/C=C/Cl", [False, True, True]),
        ("C[C@H](N)[C@@H](F)/C=C\\Cl", [True, True, False]),
        ("C[C@H](N)C(F)C=CCl", [True]),  # what is not asked for cannot be wrong
        ("CC(N)C(F)C=CCl", []),
    ):
        asked = Chem.AddHs(Chem.MolFromSmiles(smiles))
        for conformer in mol.GetConformers():
            asked.AddConformer(conformer, assignId=True)
        assert validity.stereo_right(asked).tolist() == [expected] * 2
    assert np.array_equal(positions(mol), before) and mol.GetConformer(9)


def test_pose_busters_judges_every_conformer(monkeypatch: pytest.MonkeyPatch) -> None:
    mol = embedded("c1ccccc1O", 3)
    broken = mol.GetConformer(1).GetPositions()
    broken[0] = broken[3]
    mol.GetConformer(1).SetPositions(broken)
    verdicts = validity.pose_busters(mol)
    assert [one.passed for one in verdicts] == [True, False, True]
    assert not any(one.unanswered for one in verdicts)  # the energy of conformers other than 0 too
    assert all("internal_energy" in one.tests and len(one.tests) == 12 for one in verdicts)
    silent = validity.Verdict({"a": True, "b": None})
    assert silent.unanswered and not silent.passed and not validity.Verdict({}).passed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="posebusters"):
        validity.pose_busters(mol)


def test_strain_is_what_relaxing_gains() -> None:
    mol = embedded("CCCO", 2)
    before = positions(mol)
    found = validity.strain(mol)
    assert np.array_equal(positions(mol), before) and (found.strain > 0.1).all()
    assert found.energies == pytest.approx(validity.energies(mol))
    assert relax(mol) == pytest.approx(found.relaxed)
    assert validity.strain(mol).strain == pytest.approx([0, 0], abs=1e-2)
    unknown = embedded("C[Si](C)(C)B(C)C", 1)
    assert np.isnan(validity.strain(unknown).strain).all()
