"""How good samples are: distances between laws of images, and what a judge and the training set say of each sample.

The figures compare features: an *extractor* maps images to vectors, and its name stands in the name of every figure,
because a distance in one network's features cannot be compared with a distance in another's. Beside each figure stands
its real-against-real value: held-out images in the samples' place, as many, against the same training images. No
generator need do better, and a sample set that does has come too near to the training images.

- FID (Heusel et al. 2017, arXiv:1706.08500): |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), biased upwards in small
  samples (Binkowski et al.), hence the equal numbers.
- KID (Binkowski et al. 2018, arXiv:1801.01401): squared MMD under (x.y/D + 1)^3, unbiased for independent draws; where
  both sides have their classes in the same exact shares it comes out a little below zero for equal laws.
- precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991): the share of samples inside the union of balls
  around real images that reach to their k-th neighbour, and the reverse.
- density and coverage (Naeem et al. 2020, arXiv:2002.09797): how many real balls a sample lies in, over k; the share of
  real balls that hold a sample.
- class agreement: the share of samples that a judge reads as the class asked for.
- nearest training distance: copies of training images are too near; held-out images show how near is natural.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, Protocol, final
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception_V3_Weights, inception_v3

from ..core.errors import ArgumentError, DataError
from .classifier import Classifier
from .data import Images

__all__ = [
    "Extractor",
    "Inception",
    "Pixels",
    "agreement",
    "density_coverage",
    "evaluate_samples",
    "extract",
    "frechet_distance",
    "kernel_distance",
    "nearest",
    "pixel_nearest",
    "polynomial_mmd",
    "precision_recall",
    "reference",
    "wilson",
]

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)
NEAR = 0.05  # a sample is "near" when it is nearer to the training set than all but this share of held-out images
CELLS = 20_000_000  # entries of a distance matrix that are held at once


class Extractor(Protocol):
    """Images, uint8 (B, C, H, W), to features, floating (B, D); `name` tells which, for instance "pixels"."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


def extract(extractor: Extractor, images: Tensor) -> Tensor:
    """Features in float64 (B, D), checked.

    Raises:
        ArgumentError: images are not uint8 (B, C, H, W), or the extractor's answer is no finite (B, D).
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ArgumentError("images", images, "uint8 (B, C, H, W)")
    features = extractor(images)
    if features.ndim != 2 or len(features) != len(images):
        raise ArgumentError("features", features, f"({len(images)}, D)")
    return _checked("features", features, 1)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The squared Wasserstein-2 distance between the Gaussians that have the means and covariances of x and y.

    With C_x = A^T A and C_y = B^T B, where A and B are the triangles of the centred features' QR decomposition, the
    trace of (C_x C_y)^(1/2) is the sum of the singular values of A B^T: no matrix root, no squared condition number,
    and no complex eigenvalues where there are fewer examples than dimensions.

    Args:
        x, y: features (N, D) and (M, D), N, M >= 2.

    Returns:
        >= 0, in squared units of the features.
    """
    x, y = _pair(x, y, 2)
    a, b = _factor(x), _factor(y)
    between = (x.mean(0) - y.mean(0)).square().sum()
    within = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return float((between + within).clamp(min=0))


def polynomial_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD between x (N, D) and y (M, D) under the kernel (x.y/D + 1)^3; it may be negative."""
    x, y = _pair(x, y, 2)
    dimension, n, m = x.shape[1], len(x), len(y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / dimension + 1).pow(3)

    def own(a: Tensor) -> Tensor:
        return kernel(a, a).sum() - (a.square().sum(1) / dimension + 1).pow(3).sum()

    return float(own(x) / (n * (n - 1)) + own(y) / (m * (m - 1)) - 2 * kernel(x, y).mean())


def kernel_distance(x: Tensor, y: Tensor, *, subsets: int = 50, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """KID: `polynomial_mmd` averaged over random subsets of `size` (at most what there is) of each side.

    Returns:
        the mean, and the standard deviation over subsets.
    """
    x, y = _pair(x, y, 2)
    if subsets < 2 or size < 2:
        raise ArgumentError("subsets, size", (subsets, size), "at least 2 of at least 2")
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(
        [polynomial_mmd(_subset(x, size, generator), _subset(y, size, generator)) for _ in range(subsets)],
        dtype=torch.float64,
    )
    return float(values.mean()), float(values.std())


def precision_recall(real: Tensor, samples: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall between features (N, D) and (M, D), N, M > k."""
    real, samples = _neighbours(real, samples, k)
    return _inside(samples, real, _radii(real, k)), _inside(real, samples, _radii(samples, k))


def density_coverage(real: Tensor, samples: Tensor, k: int = 5) -> tuple[float, float]:
    """Density (1 in expectation for equal laws, unbounded above) and coverage between features (N, D), (M, D)."""
    real, samples = _neighbours(real, samples, k)
    radii = _radii(real, k)
    balls, nearest_sample = 0, torch.full((len(real),), math.inf, dtype=torch.float64)
    for _, squared in _distances(samples, real):
        balls += int((squared <= radii).sum())
        nearest_sample = torch.minimum(nearest_sample, squared.amin(0))
    return balls / (k * len(samples)), float((nearest_sample <= radii).double().mean())


def nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of x (N, D) the nearest row of `reference` (M, D): Euclidean distance, float64 (N,), and index (N,).

    The search runs in float32 matrix products, the distance to the winner is computed anew in float64, so that an exact
    copy is at distance 0 exactly.
    """
    x, reference = _pair(x, reference, 1)
    centre = reference.mean(0)
    rows, columns = (x - centre).float(), (reference - centre).float()
    norms = columns.square().sum(1)
    chunk = max(1, CELLS // len(columns))
    best = [torch.addmm(norms, part, columns.T, alpha=-2).argmin(1) for part in rows.split(chunk)]
    index = torch.cat(best)
    return (x - reference[index]).square().sum(1).sqrt(), index


def pixel_nearest(images: Tensor, train: Images) -> tuple[Tensor, Tensor]:
    """`nearest` in pixel space: root of the mean squared difference, in units of the full range (0 … 1)."""
    _check_images("images", images, train)
    distance, index = nearest(images.flatten(1).float(), train.images.flatten(1).float())
    return distance / ((train.levels - 1) * math.sqrt(images[0].numel())), index


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) for a share of `total` trials."""
    if not 0 <= successes <= total or total < 1:
        raise ArgumentError("successes, total", (successes, total), "0 <= successes <= total, total >= 1")
    if not 0 < confidence < 1:
        raise ArgumentError("confidence", confidence, "a number in (0, 1)")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def agreement(predicted: Tensor, wanted: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """The share of examples read as the class asked for, overall and per class, each with its 95 % interval.

    Args:
        predicted, wanted: long (B,), values 0 … num_classes - 1.

    Returns:
        {"share", "low", "high", "n", "classes": {name: {"share", "low", "high", "n"}}}; absent classes are left out.
    """
    for argument, labels in (("predicted", predicted), ("wanted", wanted)):
        _check_labels(argument, labels, len(predicted), len(class_names))
    right = predicted == wanted

    def row(chosen: Tensor) -> dict[str, Any]:
        hits, n = int(right[chosen].sum()), int(chosen.sum())
        low, high = wilson(hits, n)
        return {"share": hits / n, "low": low, "high": high, "n": n}

    rows = {name: row(wanted == i) for i, name in enumerate(class_names) if bool((wanted == i).any())}
    return {**row(torch.ones_like(right)), "classes": rows}


def reference(train: Images, test: Images, count: int, extractor: Extractor, seed: int = 0) -> dict[str, float]:
    """The figures that need no judge, for `count` held-out images as samples: what a perfect generator would get."""
    _check_images("test", test.images, train)
    if not 10 <= count <= len(test):
        raise ArgumentError("count", count, f"10 … {len(test)}, the number of held-out images")
    chosen = _choice(test.labels, count, seed)
    return _measure(test.images[chosen], train, extract(extractor, train.images), extractor, seed)[0]


def evaluate_samples(
    samples: Tensor,
    labels: Tensor | None,
    train: Images,
    test: Images,
    judge: Classifier | None,
    extractor: Extractor,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a set of samples, each with its real-against-real value beside it.

    Laws are compared at n = min(samples, held-out, training images) of each kind, drawn by `seed`; the FID and KID take
    all training images. Class agreement uses every sample, and its reference every held-out image.

    Args:
        samples: uint8 (B, C, H, W), in the training set's shape and levels.
        labels: the classes asked for, long (B,); None (then judge must be None too) for unconditional samples.
        train, test: training and held-out images of the same set.
        judge: reads classes; must not be the extractor.

    Returns:
        JSON-able: {"samples", "compared", "extractor", "seed", "figures": {name: {"value", "reference", "better"}},
        "agreement": as from `agreement` for samples and held-out images, "distances": quantiles of nearest training
        distances}.

    Raises:
        ArgumentError: names what does not fit, before anything is computed.
    """
    _check_images("samples", samples, train)
    _check_images("test", test.images, train)
    if (labels is None) != (judge is None):
        raise ArgumentError("labels", labels, "labels and a judge, or neither")
    if labels is not None and judge is not None:
        _check_labels("labels", labels, len(samples), train.num_classes)
        if judge.class_names != train.class_names:
            raise ArgumentError("judge", judge.class_names, f"the classes of {train.name}: {train.class_names}")
        if judge is extractor:
            raise ArgumentError("judge", judge.name, "another network than the extractor")
    count = min(len(samples), len(test), len(train))
    if count < 10:
        raise ArgumentError("samples", count, "at least 10 samples, held-out and training images")
    features = extract(extractor, train.images)
    none = torch.zeros(len(samples), dtype=torch.int64)
    of = {"value": (samples, none if labels is None else labels), "reference": (test.images, test.labels)}
    figures, near, distances, read = {}, {}, {}, {}
    for kind, (images, asked) in of.items():
        chosen = _choice(asked, count, seed)
        figures[kind], near[kind] = _measure(images[chosen], train, features, extractor, seed)
        if judge is not None:
            read[kind] = agreement(judge.predict(images), asked, train.class_names)
            figures[kind]["class agreement"] = read[kind]["share"]
    for space in near["value"]:
        limit = near["reference"][space].quantile(NEAR)
        for kind in of:
            name = f"share nearer to a training image than {1 - NEAR:.0%} of held-out images ({space})"
            figures[kind][name] = float((near[kind][space] < limit).double().mean())
        distances[space] = {
            side: {f"{q:.0%}": float(near[kind][space].quantile(q)) for q in QUANTILES}
            for kind, side in (("value", "samples"), ("reference", "held-out"))
        }
    rows = {
        name: {"value": value, "reference": figures["reference"][name], "better": _better(name)}
        for name, value in figures["value"].items()
    }
    result: dict[str, Any] = {"samples": len(samples), "compared": count, "training": len(train), "seed": seed}
    result |= {"extractor": extractor.name, "figures": rows, "distances": distances}
    if read:
        result["agreement"] = {"samples": read["value"], "held-out": read["reference"]}
    return result


def _measure(
    images: Tensor, train: Images, train_features: Tensor, extractor: Extractor, seed: int
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The figures of one set of images against the training set, and the nearest distances in each space."""
    features = extract(extractor, images)
    real = train_features[_choice(train.labels, min(len(train), len(images)), seed + 1)]
    kid, _ = kernel_distance(features, train_features, seed=seed)
    precision, recall = precision_recall(real, features)
    density, coverage = density_coverage(real, features)
    near = {
        "pixels": pixel_nearest(images, train)[0],
        extractor.name: nearest(features, train_features)[0],
    }
    figures = {
        f"FID ({extractor.name})": frechet_distance(features, train_features),
        f"KID x 1000 ({extractor.name})": 1000 * kid,
        f"precision ({extractor.name})": precision,
        f"recall ({extractor.name})": recall,
        f"density ({extractor.name})": density,
        f"coverage ({extractor.name})": coverage,
    }
    for space, distance in near.items():
        figures[f"nearest training distance, median ({space})"] = float(distance.median())
    return figures, near


def _better(name: str) -> str:
    """Which way a figure improves: "lower", "higher", or towards its "reference"."""
    if name.startswith(("FID", "KID")):
        return "lower"
    return "higher" if name.startswith(("precision", "recall", "coverage", "class agreement")) else "reference"


def _checked(argument: str, x: Tensor, rows: int) -> Tensor:
    if x.ndim != 2 or not x.is_floating_point() or len(x) < rows or x.shape[1] < 1:
        raise ArgumentError(argument, x, f"floating features (N, D) with N >= {rows}")
    if not bool(x.isfinite().all()):
        raise ArgumentError(argument, x, "finite features; there are NaN or infinite ones")
    return x.detach().to("cpu", torch.float64)


def _pair(x: Tensor, y: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    x, y = _checked("x", x, rows), _checked("y", y, rows)
    if x.shape[1] != y.shape[1]:
        raise ArgumentError("y", y, f"features of the same dimension as x, {x.shape[1]}")
    return x, y


def _neighbours(real: Tensor, samples: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both sets, checked, and moved together to where rounding matters least."""
    if k < 1:
        raise ArgumentError("k", k, "a positive number of neighbours")
    real, samples = _pair(real, samples, k + 1)
    centre = real.mean(0)
    return real - centre, samples - centre


def _check_images(argument: str, images: Tensor, like: Images) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != like.shape or not len(images):
        raise ArgumentError(argument, images, f"uint8 (B, {', '.join(map(str, like.shape))}), as in {like.name}")
    if int(images.max()) >= like.levels:
        raise ArgumentError(argument, int(images.max()), f"pixel values 0 … {like.levels - 1}, as in {like.name}")


def _check_labels(argument: str, labels: Tensor, count: int, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,) or count < 1:
        raise ArgumentError(argument, labels, f"long ({count},)")
    unknown = labels[(labels < 0) | (labels >= num_classes)]
    if len(unknown):
        raise ArgumentError(argument, int(unknown[0]), f"labels 0 … {num_classes - 1}")


def _choice(labels: Tensor, count: int, seed: int) -> Tensor:
    """`count` random indices, in which each class keeps its share (up to rounding)."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place[order].argsort(stable=True)][:count]


def _subset(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=generator)[:size]]


def _factor(x: Tensor) -> Tensor:
    """Upper triangular (or trapezoidal) R with R^T R = the covariance of x, unbiased."""
    return torch.linalg.qr(x - x.mean(0), mode="r").R / math.sqrt(len(x) - 1)


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Squared distances of x (N, D) to y (M, D), some rows at a time, each with the index of its first row."""
    norms = y.square().sum(1)
    chunk = max(1, CELLS // len(y))
    for start in range(0, len(x), chunk):
        part = x[start : start + chunk]
        squared = torch.addmm(norms, part, y.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
        yield start, squared.clamp_(min=0)


def _radii(x: Tensor, k: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row; a hair more, so that rounding keeps ties inside."""
    radii = []
    for start, squared in _distances(x, x):
        rows = torch.arange(len(squared))
        squared[rows, start + rows] = math.inf
        radii.append(squared.kthvalue(k, dim=1).values)
    return torch.cat(radii) * (1 + 1e-9) + 1e-12 * x.square().sum(1).mean()


def _inside(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of rows of x that lie in at least one ball."""
    return sum(int((squared <= radii).any(1).sum()) for _, squared in _distances(x, centres)) / len(x)


@final
class Pixels:
    """The pixels, averaged to at most `side` x `side`: for sets without classes, where no network is at hand."""

    def __init__(self, side: int = 16):
        if side < 1:
            raise ArgumentError("side", side, "a positive number of pixels")
        self.side = side

    @property
    def name(self) -> str:
        return f"pixels, at most {self.side} x {self.side}"

    def __call__(self, images: Tensor, /) -> Tensor:
        height, width = (min(self.side, n) for n in images.shape[2:])
        return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1) / 255


@final
class Inception:
    """torchvision's Inception v3 (Szegedy et al. 2015, arXiv:1512.00567), 2,048 averaged features.

    Its weights are torchvision's (ImageNet), not the TensorFlow port behind published FIDs: figures are comparable with
    each other and not with papers, and the name says so.

    Args:
        levels: of the images. device: where it runs. model: another Inception v3, for instance loaded from a file;
            None: torchvision's weights, downloaded on first use.

    Raises:
        DataError: the weights cannot be reached.
    """

    def __init__(self, levels: int = 256, device: str = "cpu", model: nn.Module | None = None):
        if model is None:
            try:
                model = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1, progress=True)
            except (URLError, OSError, RuntimeError) as error:
                where = Inception_V3_Weights.IMAGENET1K_V1.url
                raise DataError(
                    f"Inception v3: weights cannot be downloaded from {where} ({error}); use a classifier's features"
                ) from error
        model.register_module("fc", nn.Identity())  # the features, not the classes
        self.model, self.levels, self.device = model.to(device).eval().requires_grad_(False), levels, device

    @property
    def name(self) -> str:
        return "torchvision Inception v3 features"

    @torch.inference_mode()
    def __call__(self, images: Tensor, /) -> Tensor:
        mean = torch.tensor([0.485, 0.456, 0.406], device=self.device).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], device=self.device).view(3, 1, 1)
        features = []
        for part in images.split(50):
            x = part.to(self.device).float().div(self.levels - 1).expand(-1, 3, -1, -1)
            x = F.interpolate(x, size=(299, 299), mode="bilinear", antialias=True, align_corners=False)
            features.append(self.model((x - mean) / std).float().cpu())
        return torch.cat(features)
