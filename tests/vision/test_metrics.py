"""Figures against closed forms, hand-made sets, and independent implementations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import binomtest
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from polydiff.core.errors import ArgumentError, DataError
from polydiff.vision import metrics
from polydiff.vision.data import Images
from polydiff.vision.metrics import (
    Inception,
    Pixels,
    agreement,
    density_coverage,
    evaluate_samples,
    extract,
    frechet_distance,
    kernel_distance,
    nearest,
    pixel_nearest,
    polynomial_mmd,
    precision_recall,
    reference,
    wilson,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(n: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """n vectors whose sample mean and unbiased covariance are exactly these."""
    white = normal(n, len(mean), seed=seed)
    white = torch.linalg.qr(white - white.mean(0)).Q * math.sqrt(n - 1)
    return mean + white @ torch.linalg.cholesky(covariance).T


def covariance(d: int, seed: int) -> Tensor:
    a = normal(d, d, seed=seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def gauss_frechet(m: Tensor, c: Tensor, n: Tensor, d: Tensor) -> float:
    root = np.real(sqrtm((c @ d).numpy()))
    return float((m - n).square().sum() + c.trace() + d.trace() - 2 * np.trace(root))


@pytest.fixture(scope="module")
def sets() -> tuple[Images, Images]:
    """Two draws of one law of small images: class k is bright in row k."""

    def draw(count: int, seed: int) -> Images:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 4
        x = torch.randint(0, 60, (count, 1, 4, 4), generator=generator)
        x[torch.arange(count), 0, labels] += 140
        return Images(x.to(torch.uint8), labels, "abcd", name="rows")

    return draw(400, 0), draw(200, 1)


class Judge:
    """Reads the brightest row: right on every image of `sets`."""

    name, class_names = "row judge", tuple("abcd")

    def predict(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 3)).argmax(1)


def test_frechet_distance_is_the_closed_form() -> None:
    m, n = normal(7, seed=1), normal(7, seed=2)
    c, d = covariance(7, 3), covariance(7, 4)
    x, y = exactly(50, m, c, 5), exactly(80, n, d, 6)
    assert frechet_distance(x, y) == pytest.approx(gauss_frechet(m, c, n, d), rel=1e-10)
    scale = torch.eye(7, dtype=torch.float64)
    assert frechet_distance(exactly(50, m, 4 * scale, 1), exactly(50, m + 2, 9 * scale, 2)) == pytest.approx(7 + 28)


def test_frechet_distance_invariants() -> None:
    x, y = normal(60, 5), normal(90, 5, seed=1) * 2 + 1
    rotation = torch.linalg.qr(normal(5, 5, seed=2)).Q
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert frechet_distance(x + 100, y + 100) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    few = normal(10, 64)  # fewer than dimensions: a singular covariance
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, few + 1) == pytest.approx(64, rel=1e-9)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = normal(300, 16) @ covariance(16, 1), normal(200, 16, seed=1) + 0.3
    theirs = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y) == pytest.approx(float(theirs), rel=1e-8)


def test_kernel_distance_agrees_with_torchmetrics_and_by_hand() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(40, 6), normal(40, 6, seed=1) + 0.5
    assert polynomial_mmd(x, y) == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)
    x, y = normal(5, 3), normal(4, 3, seed=1)

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    own = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    own += sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    cross = sum(k(a, b) for a in x for b in y) / 20
    assert polynomial_mmd(x, y) == pytest.approx(own - 2 * cross, rel=1e-10)


def test_kernel_distance_is_unbiased_and_sees_differences() -> None:
    values = torch.tensor([polynomial_mmd(normal(12, 4, seed=i), normal(20, 4, seed=i + 5000)) for i in range(2000)])
    error = float(values.std()) / math.sqrt(len(values))
    biased = 2 * (1 + 3 + 3 + 4 / 16) / 12  # what leaving the diagonal in would add, roughly
    assert abs(float(values.mean())) < 4 * error and error < biased / 20
    x = normal(300, 4)
    mean, spread = kernel_distance(x, normal(200, 4, seed=1) + 1, subsets=10, size=100)
    assert mean > 10 * spread / math.sqrt(10)
    assert kernel_distance(x, x + 1, subsets=5, size=50) == kernel_distance(x, x + 1, subsets=5, size=50)


def by_scikit_learn(real: Tensor, samples: Tensor, k: int) -> tuple[float, float, float, float]:
    def radii(x: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x).kneighbors(x)[0][:, -1]

    r, s = real.numpy(), samples.numpy()
    distance = np.linalg.norm(r[:, None] - s[None], axis=-1)
    in_real, in_samples = distance <= radii(r)[:, None], distance <= radii(s)[None, :]
    return (
        float(in_real.any(0).mean()),
        float(in_samples.any(1).mean()),
        float(in_real.sum(0).mean() / k),
        float(in_real.any(1).mean()),
    )


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 0.8])
def test_manifolds_agree_with_scikit_learn(k: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real, samples = normal(150, 5), normal(90, 5, seed=1) * 0.8 + offset
    expected = by_scikit_learn(real, samples, k)
    for cells in (metrics.CELLS, 1000):  # whole, and in chunks of a few rows
        monkeypatch.setattr(metrics, "CELLS", cells)
        got = (*precision_recall(real, samples, k), *density_coverage(real, samples, k))
        assert got == pytest.approx(expected, abs=1e-12)


def test_manifolds_known_by_hand() -> None:
    line = torch.arange(10, dtype=torch.float64).unsqueeze(1)  # every 1-ball reaches to the neighbours, 1 away
    assert precision_recall(line, torch.tensor([[0.5], [4.2], [50.0], [51.0]]).double(), 1) == (0.5, 0.8)
    # sample balls: 0.5 and 4.2 are 3.7 apart, so they hold 0 … 4 and 1 … 7: 8 of 10; 50 and 51 hold none
    far = torch.tensor([[100.0], [101.0]]).double()
    assert precision_recall(line, far, 1) == (0.0, 0.0)
    assert density_coverage(line, far, 1) == (0.0, 0.0)
    # the samples 3 and 3 lie in the balls of 2, 3, 4; density 3, coverage 3 of 10
    assert density_coverage(line, torch.tensor([[3.0], [3.0]]).double(), 1) == (3.0, 0.3)
    collapsed = line[:1].repeat(6, 1)
    assert precision_recall(line, collapsed, 3) == (1.0, 0.1)
    assert precision_recall(line, line, 3) == (1.0, 1.0)
    assert density_coverage(line + 1e6, line + 1e6, 2)[1] == 1.0


def test_density_is_one_for_equal_laws() -> None:
    values = [density_coverage(normal(200, 3, seed=i), normal(200, 3, seed=i + 99))[0] for i in range(20)]
    assert np.mean(values) == pytest.approx(1, abs=float(4 * np.std(values) / math.sqrt(20)))


def test_nearest_agrees_with_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(60, 8) + 1000, normal(150, 8, seed=1) + 1000
    distance, index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(y.numpy()).kneighbors(x.numpy())
    monkeypatch.setattr(metrics, "CELLS", 1000)
    got = nearest(x, y)
    assert np.array_equal(got[1].numpy(), index[:, 0])
    np.testing.assert_allclose(got[0].numpy(), distance[:, 0], rtol=1e-8)
    assert (nearest(y[7:9], y)[0] == 0).all()


def test_pixel_distance_is_in_units_of_the_range() -> None:
    black, white = torch.zeros(1, 3, 4, 5, dtype=torch.uint8), torch.full((1, 3, 4, 5), 16, dtype=torch.uint8)
    train = Images(black, torch.zeros(1, dtype=torch.int64), levels=17)
    assert pixel_nearest(white, train)[0].tolist() == pytest.approx([1.0])
    assert pixel_nearest(black + 4, train)[0].tolist() == pytest.approx([0.25])


@pytest.mark.parametrize("successes, total", [(0, 10), (10, 10), (97, 100), (1, 3)])
def test_wilson_agrees_with_scipy(successes: int, total: int) -> None:
    for confidence in (0.5, 0.95, 0.999):
        theirs = binomtest(successes, total).proportion_ci(confidence, method="wilson")
        assert wilson(successes, total, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_agreement_counts() -> None:
    wanted, predicted = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 1, 0])
    table = agreement(predicted, wanted, ("a", "b", "c", "d"))
    assert (table["share"], table["n"]) == (4 / 6, 6)
    assert {k: (v["share"], v["n"]) for k, v in table["classes"].items()} == {"a": (2 / 3, 3), "b": (1, 2), "c": (0, 1)}
    assert (table["classes"]["b"]["low"], table["classes"]["b"]["high"]) == wilson(2, 2)


def test_fresh_samples_get_the_reference_and_copies_are_flagged(sets: tuple[Images, Images]) -> None:
    train, test = sets
    pixels = Pixels()

    def figures(samples: Tensor, labels: Tensor) -> dict:
        return evaluate_samples(samples, labels, train, test, Judge(), pixels)["figures"]  # type: ignore[arg-type]

    def named(table: dict, start: str) -> dict:
        (row,) = [row for name, row in table.items() if name.startswith(start)]
        return row

    same = figures(test.images, test.labels)
    assert all(row["value"] == row["reference"] for row in same.values())
    assert named(same, "class agreement")["value"] == 1.0
    near = [row for name, row in same.items() if name.startswith("share nearer")]
    assert len(near) == 2 and all(row["value"] == 0.05 for row in near)

    copies = figures(train.images[:300], train.labels[:300])
    assert all(row["value"] == 1.0 for name, row in copies.items() if name.startswith("share nearer"))
    assert all(row["value"] == 0.0 for name, row in copies.items() if name.startswith("nearest training"))

    one_class = figures(test.images[test.labels == 0], test.labels[test.labels == 0])
    for name in ("coverage", "recall"):
        assert named(one_class, name)["value"] < 0.5 * named(one_class, name)["reference"]
    assert named(one_class, "FID")["value"] > 10 * named(one_class, "FID")["reference"]
    assert named(one_class, "KID")["value"] > 10 * abs(named(one_class, "KID")["reference"])
    wrong = figures(test.images, (test.labels + 1) % 4)
    assert named(wrong, "class agreement")["value"] == 0 and named(wrong, "FID") == named(same, "FID")


def test_evaluation_is_named_sized_and_json(sets: tuple[Images, Images]) -> None:
    train, test = sets
    result = evaluate_samples(test.images[:50], None, train, test, None, Pixels(2), seed=3)
    assert json.loads(json.dumps(result)) == result and "agreement" not in result
    assert (result["samples"], result["compared"], result["training"], result["seed"]) == (50, 50, 400, 3)
    assert "FID (pixels, at most 2 x 2)" in result["figures"]
    alone = reference(train, test, 50, Pixels(2), seed=3)
    assert all(result["figures"][name]["reference"] == value for name, value in alone.items())
    full = evaluate_samples(test.images, test.labels, train, test, Judge(), Pixels())  # type: ignore[arg-type]
    assert full["agreement"]["held-out"]["classes"]["c"]["n"] == 50
    assert list(full["distances"]["pixels"]["samples"]) == ["0%", "1%", "5%", "25%", "50%", "75%", "100%"]


def test_choice_keeps_the_shares_of_classes() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    chosen = metrics._choice(labels, 50, 0)
    assert labels[chosen].bincount().tolist() == [30, 15, 5] and len(chosen.unique()) == 50
    assert not torch.equal(chosen, metrics._choice(labels, 50, 1))


def test_inception_runs_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import inception_v3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = inception_v3(weights=None, init_weights=False)
    grey = Inception(levels=17, model=model)
    images = torch.randint(0, 17, (2, 1, 8, 8), dtype=torch.uint8)
    features = extract(grey, images)
    assert features.shape == (2, 2048) and "torchvision" in grey.name
    as_colour = extract(Inception(levels=17, model=model), images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(features, as_colour)

    def offline(**_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(metrics, "inception_v3", offline)
    with pytest.raises(DataError, match="download.pytorch.org.*no network"):
        Inception()


@pytest.mark.parametrize(
    "function", [frechet_distance, polynomial_mmd, kernel_distance, precision_recall, density_coverage, nearest]
)
def test_features_are_checked(function) -> None:
    good, nan = normal(20, 3), normal(20, 3)
    nan[4, 1] = math.nan
    for bad, match in (
        (nan, "finite"),
        (nan.nan_to_num(math.inf), "finite"),
        (good[:0], "N >="),
        (good.long(), "floating"),
        (good[:, 0], "floating features"),
        (normal(20, 4), "dimension"),
    ):
        with pytest.raises(ArgumentError, match=match):
            function(good, bad)
    with pytest.raises(ArgumentError, match="N >="):
        function(good[:0], good)


def test_arguments_are_checked(sets: tuple[Images, Images]) -> None:
    train, test = sets
    samples, labels, judge = test.images[:20], test.labels[:20], Judge()

    def refuse(match: str, *arguments: object) -> None:
        with pytest.raises(ArgumentError, match=match):
            evaluate_samples(*arguments, Pixels())  # type: ignore[arg-type]

    refuse("samples: .*uint8", samples.float(), labels, train, test, judge)
    refuse("samples: .*4, 4", samples[:, :, :3], labels, train, test, judge)
    refuse("samples: .*at least 10", samples[:9], labels[:9], train, test, judge)
    refuse("labels: got 4", samples, torch.full((20,), 4), train, test, judge)
    refuse("labels: ", samples, labels[:5], train, test, judge)
    refuse("labels: ", samples, labels.float(), train, test, judge)
    refuse("labels: ", samples, None, train, test, judge)
    with pytest.raises(ArgumentError, match="another network"):
        evaluate_samples(samples, labels, train, test, judge, judge)  # type: ignore[arg-type]
    few = Images(samples // 16, labels, "abcd", levels=17)
    with pytest.raises(ArgumentError, match="pixel values 0 … 16"):
        evaluate_samples(samples, None, few, few, None, Pixels())
    with pytest.raises(ArgumentError, match="count"):
        reference(train, test, 201, Pixels())
    for k in (0, 20):
        with pytest.raises(ArgumentError):
            precision_recall(normal(20, 3), normal(20, 3), k)
    with pytest.raises(ArgumentError, match="features"):
        extract(lambda images: images.float().flatten(1)[:-1], samples)  # type: ignore[arg-type]
