"""The harmonic law beside dense linear algebra, the laws of every kernel on it, and the aligned path."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from polydiff.core.clouds import Centred
from polydiff.core.distributions import Normal
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine, RectifiedFlow, VarianceExploding
from polydiff.molecules.alignment import rmsd
from polydiff.molecules.kernel import Aligned, Harmonic
from tests.core import test_inpainting as inpainting
from tests.core import test_laws as laws
from tests.core.cases import CASES, INDEX, SIZES, B, Case, normal

BONDS = torch.tensor([[0, 2, 3, 5, 5, 5, 8, 10], [1, 3, 4, 4, 2, 6, 9, 9]])
"""A pair, a ring of four with a tail, an atom alone, and a chain whose middle has the middle number."""
STRUCTURE: dict[str, Any] = {"index": INDEX, "num_graphs": B, "bonds": BONDS}
STRENGTH = 1.7
SCHEDULES = {"cosine": Cosine, "rectified": RectifiedFlow, "exploding": VarianceExploding}


def bound() -> Harmonic:
    return Harmonic(STRENGTH).given(**STRUCTURE)


def covariance(graph: int) -> Tensor:
    """(strength L)^+ of one molecule, by torch's pseudo-inverse."""
    start, size = sum(SIZES[:graph]), SIZES[graph]
    L = torch.zeros(size, size, dtype=torch.float64)
    for i, j in (BONDS - start).T.tolist():
        if 0 <= i < size:
            e = torch.zeros(size, 1, dtype=torch.float64)
            e[i], e[j] = 1, -1
            L += STRENGTH * e @ e.T
    return torch.linalg.pinv(L, hermitian=True, rtol=1e-9) if size > 1 else L


@pytest.fixture(params=SCHEDULES)
def case(request: pytest.FixtureRequest) -> Case:
    kernel = Gaussian(SCHEDULES[request.param](), Harmonic(STRENGTH)).given(**STRUCTURE)
    return Case(kernel, kernel.project(normal(len(INDEX), 3)))


@pytest.mark.parametrize("between", laws.PAIRS)
def test_both_laws(case: Case, between: str) -> None:
    laws.test_bayes(case, between)
    laws.test_posterior_is_linear_in_the_belief(case, between)


def test_the_other_laws(case: Case) -> None:
    laws.test_impossible_events_are_impossible_on_both_sides(case)
    laws.test_gap_is_the_monte_carlo_divergence(case)
    laws.test_a_conclusion_is_the_mean_or_a_draw(case)
    laws.test_example_generators_make_examples_independent_of_their_neighbours(case)
    laws.test_the_prior_is_where_the_chain_ends(case)


def test_inpainting_on_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "centred harmonic", lambda: case)
    inpainting.test_all_known_gives_it_back_and_nothing_known_is_ancestral_sampling("centred harmonic")
    inpainting.test_parts_have_densities_and_examples_can_be_chosen("centred harmonic")


def basis(size: int) -> Tensor:
    """Orthonormal coordinates of centred positions, (N, N - 1)."""
    start = torch.cat([torch.ones(size, 1, dtype=torch.float64), normal(size, size - 1)], 1)
    return torch.linalg.qr(start).Q[:, 1:]


def test_densities_are_those_of_the_normal_on_centred_states() -> None:
    noise, scales = bound(), torch.tensor([0.5, 1.0, 3.0, 2.0], dtype=torch.float64)
    mean = noise.project(normal(len(INDEX), 3))
    law, other = Normal(mean, scales, noise), Normal(0.3 * mean.flip(1), 0.8, noise)
    x = law.sample(seeded(0))
    assert noise.dof(x).tolist() == [3.0, 12.0, 0.0, 6.0]
    assert float(law.log_prob(x)[2]) == 0
    for graph in (0, 1, 3):
        U = basis(SIZES[graph])
        inner = U.T @ covariance(graph) @ U

        def oracle(one: Normal, scale: float, U: Tensor = U, inner: Tensor = inner, graph: int = graph) -> Any:
            centre = (U.T @ one.mean[graph == INDEX]).T
            return MultivariateNormal(centre, scale**2 * inner)  # three coordinates, a batch of three

        mine = oracle(law, float(scales[graph]))
        expected = mine.log_prob((U.T @ x[graph == INDEX]).T).sum()
        torch.testing.assert_close(law.log_prob(x)[graph], expected, rtol=1e-11, atol=1e-11)
        expected = kl_divergence(mine, oracle(other, 0.8)).sum()
        torch.testing.assert_close(law.kl(other)[graph], expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(noise.log_det(x)[graph], 3 * torch.logdet(inner), rtol=1e-11, atol=1e-11)
    shifted = x + 1e-3 * (INDEX == 1).unsqueeze(1)
    assert law.log_prob(shifted).isinf().tolist() == [False, True, False, False]


def test_squares_are_the_energy_of_the_bonds() -> None:
    x = normal(len(INDEX), 3) + 5.0  # the centre does not matter
    energy = STRENGTH * (x[BONDS[0]] - x[BONDS[1]]).square().sum(1)
    expected = torch.zeros(B, dtype=torch.float64).index_add(0, INDEX[BONDS[0]], energy)
    torch.testing.assert_close(bound().squares(x), expected, rtol=1e-12, atol=1e-12)
    single = bound().squares(x.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-5)


def test_draws_have_the_covariance() -> None:
    """By chi-square along the axes of each law, and bonds outside rings have variance 1/strength."""
    noise, count = bound(), 4000
    many = torch.stack([noise.draw(torch.zeros(len(INDEX), 3, dtype=torch.float64), seeded(i)) for i in range(count)])
    assert float(many[:, INDEX == 2].abs().max()) == 0
    for graph in (0, 1, 3):
        draws = many[:, graph == INDEX].transpose(1, 2).reshape(3 * count, -1)
        values, axes = torch.linalg.eigh(covariance(graph))
        scores = (draws @ axes)[:, 1:] / values[1:].sqrt()
        assert float((draws @ axes)[:, 0].abs().max()) < 1e-9
        # Each sum of squares is chi-square with 3 count degrees; the seed is fixed.
        low, high = stats.chi2.interval(1 - 1e-6, 3 * count)
        assert all(low < total < high for total in scores.square().sum(0).tolist())
        correlations = (scores.T @ scores / len(scores) - torch.eye(SIZES[graph] - 1)).abs()
        assert float(correlations.fill_diagonal_(0).max()) < 5 / len(scores) ** 0.5
    bond = (many[:, 8] - many[:, 9]).square().sum()
    low, high = stats.chi2.interval(1 - 1e-6, 3 * count)
    assert low < STRENGTH * float(bond) < high


def test_a_molecule_does_not_depend_on_its_neighbours_or_the_order_of_atoms() -> None:
    alone = Harmonic(STRENGTH).given(index=torch.zeros(5, dtype=torch.long), num_graphs=1, bonds=BONDS[:, 1:6] - 2)
    noise, generators = bound(), [seeded(i) for i in range(B)]
    draw = noise.draw(torch.zeros(len(INDEX), 3), generators)
    torch.testing.assert_close(alone.draw(torch.zeros(5, 3), [seeded(1)]), draw[2:7], rtol=1e-5, atol=1e-6)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = Harmonic(STRENGTH).given(
        index=torch.zeros(5, dtype=torch.long), num_graphs=1, bonds=order.argsort()[BONDS[:, 1:6] - 2].flip(0)
    )
    x = normal(5, 3)
    torch.testing.assert_close(turned.squares(x[order]), alone.squares(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(turned.times(turned.root, x[order]), alone.times(alone.root, x)[order])


MASK = torch.tensor([True, False, True, False, True, False, True, True, True, False, True])


def shape_of(mask: Tensor) -> Tensor:
    """Orthonormal coordinates (k - 1, N) of the shape of the masked atoms."""
    U = torch.zeros(len(mask), int(mask.sum()) - 1, dtype=torch.float64)
    U[mask] = basis(int(mask.sum()))
    return U.T


def test_a_part_has_the_law_of_its_shape() -> None:
    noise = bound()
    mean = noise.project(normal(len(INDEX), 3))
    law = Normal(mean, 0.7, noise)
    x = law.sample(seeded(3))
    found = law.log_prob(x, MASK)
    for graph in (1, 3):
        mine = graph == INDEX
        P = shape_of(MASK[mine])
        oracle = MultivariateNormal((P @ mean[mine]).T, 0.49 * P @ covariance(graph) @ P.T)
        expected = oracle.log_prob((P @ x[mine]).T).sum()
        torch.testing.assert_close(found[graph], expected, rtol=1e-11, atol=1e-11)
    assert found[[0, 2]].tolist() == [0.0, 0.0]  # one atom has no shape
    part = noise.part(MASK)
    assert part.dof(x).tolist() == [0.0, 6.0, 0.0, 3.0]
    both = part.part(torch.arange(len(INDEX)) < 5)
    assert both.dof(x).tolist() == [0.0, 3.0, 0.0, 0.0]
    torch.testing.assert_close(both.squares(x), noise.part(MASK & (torch.arange(len(INDEX)) < 5)).squares(x))
    draw = part.draw(x, seeded(4))
    assert bool((draw[~MASK] == 0).all()) and bool(part.supports(draw, 0 * draw).all())


def test_blending_conditions_the_law() -> None:
    """What is not known moves to its conditional mean, and only by what the known shape has moved."""
    noise = bound()
    x, known = noise.draw(normal(len(INDEX), 3), seeded(1)), noise.project(normal(len(INDEX), 3).flip(0))
    found = noise.blend(MASK, known, x)
    for graph in (1, 3):
        mine = graph == INDEX
        P, C = shape_of(MASK[mine]), covariance(graph)
        gain = C @ P.T @ torch.linalg.inv(P @ C @ P.T)
        torch.testing.assert_close(found[mine], x[mine] + gain @ P @ (known[mine] - x[mine]), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(P @ found[mine], P @ known[mine], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found[:2], x[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.project(found), found, rtol=0, atol=1e-12)


def test_bad_structure_is_named() -> None:
    def given(**changes: Any) -> None:
        Harmonic().given(**{k: v for k, v in {**STRUCTURE, **changes}.items() if v is not None})

    for wrong in (BONDS[:, 1:], BONDS[:, [0, 1, 2, 3, 4, 6, 7]]):
        graph = 0 if wrong.shape[1] == 7 and int(wrong[0, 0]) != 0 else 1
        with pytest.raises(ArgumentError, match=f"^bonds: .*graph {graph} in several pieces"):
            given(bonds=wrong)
    once_more = torch.tensor([[1], [0]])
    for wrong in (
        BONDS.double(),
        BONDS[0],
        torch.cat([BONDS, once_more], 1),
        torch.cat([BONDS, 0 * once_more], 1),
        torch.cat([BONDS, 2 * once_more], 1),
        torch.cat([BONDS, 11 * once_more], 1),
        -BONDS,
    ):
        with pytest.raises(ArgumentError, match="^bonds"):
            given(bonds=wrong)
    for missing in ("bonds", "index", "num_graphs"):
        with pytest.raises(ArgumentError, match="^structure"):
            given(**{missing: None})
    for strength in (0.0, -1.0, math.inf):
        with pytest.raises(ArgumentError, match="^strength"):
            Harmonic(strength)
    assert Harmonic().given().num_graphs == 0


def test_a_view_leaves_the_law_alone() -> None:
    whole = bound()
    other = whole.given(index=torch.zeros(2, dtype=torch.long), num_graphs=1, bonds=torch.tensor([[0], [1]]))
    part = whole.part(MASK)
    assert whole.dof(torch.zeros(11, 3)).tolist() == [3.0, 12.0, 0.0, 6.0] and whole.rows is None
    assert other.dof(torch.zeros(2, 3)).tolist() == [3.0] and part.rows is not None


@pytest.mark.parametrize("law", [Centred(), Harmonic(STRENGTH)], ids=["centred", "harmonic"])
def test_the_aligned_path_turns_its_noise_onto_the_data(law: Centred) -> None:
    structure = STRUCTURE if isinstance(law, Harmonic) else {k: STRUCTURE[k] for k in ("index", "num_graphs")}
    path = Aligned(RectifiedFlow(), law).given(**structure)
    assert isinstance(path.noise, Centred)
    x_0 = path.project(normal(len(INDEX), 3))
    x_1, plain = path.pair(x_0, seeded(2)), path.noise.draw(x_0, seeded(2))
    # The same draw, turned: nothing but a rotation lies between them, and no rotation would bring it closer.
    assert float(rmsd(plain, x_1, INDEX, B).max()) < 1e-12
    torch.testing.assert_close(path.noise.squares(x_1), path.noise.squares(plain), rtol=1e-9, atol=1e-12)
    distance = path.noise.total((x_1 - x_0) ** 2)
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    torch.testing.assert_close((distance / sizes).sqrt(), rmsd(plain, x_0, INDEX, B), rtol=1e-9, atol=1e-12)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    expected = (1 - t)[INDEX, None] * x_0 + t[INDEX, None] * x_1
    torch.testing.assert_close(path.interpolate(x_0, x_1, t), expected, rtol=1e-12, atol=1e-12)
    alone = path.pair(x_0, [seeded(i) for i in range(B)])
    other = path.pair(x_0, [seeded(i if i == 1 else 50 + i) for i in range(B)])
    torch.testing.assert_close(alone[2:7], other[2:7], rtol=0, atol=1e-12)
    with pytest.raises(ArgumentError, match="^noise"):
        Aligned(RectifiedFlow(), torch.nn.Identity())  # pyright: ignore[reportArgumentType]
