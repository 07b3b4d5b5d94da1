"""Inpainting against exact conditional laws: of the data, and of the sampler's own chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from polydiff.core import schedules
from polydiff.core.ancestral import ancestral
from polydiff.core.categorical import Categorical, absorbing, uniform
from polydiff.core.clouds import Centred
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.grids import uniform as even
from polydiff.core.inpainting import jumps, particle_inpaint, repaint, systematic
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from tests.core.cases import CASES, INDEX, SIZES, Case
from tests.problems import Clouds, GaussianData, TokenData

COVARIANCE = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.0, -0.1], [0.2, -0.1, 0.5]], dtype=torch.float64)
DATA = GaussianData(torch.tensor([0.3, -0.2, 0.5]), COVARIANCE)
KNOWN = torch.tensor([True, False, True])
Y = torch.tensor([1.5, 0.0, -0.4], dtype=torch.float64)


def conditional(mean: Tensor, covariance: Tensor, y: Tensor, known: Tensor) -> tuple[float, float]:
    """Mean and variance of the one unknown coordinate of a normal law."""
    K, U = known.nonzero().flatten(), (~known).nonzero().flatten()
    gain = covariance[U][:, K] @ torch.linalg.inv(covariance[K][:, K])
    of_mean = mean[U] + gain @ (y[K] - mean[K])
    return float(of_mean), float(covariance[U][:, U] - gain @ covariance[K][:, U])


def affine(function: Callable[[Tensor], Tensor], D: int = 3) -> tuple[Tensor, Tensor]:
    """(A, b) of x -> A x + b."""
    b = function(torch.zeros(1, D, dtype=torch.float64))[0]
    return (function(torch.eye(D, dtype=torch.float64)) - b).T, b


def chain(kernel: Gaussian, times: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what ancestral sampling ends in, the known part blurred by its likelihood."""
    denoise, grid = DATA.denoise(kernel), times.tolist()
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        A, b = affine(lambda x, t=t, s=s: kernel.posterior(x, denoise(x, t), s, t).mean)
        scale = kernel.posterior(torch.zeros(1, 3), denoise(torch.zeros(1, 3).double(), t), s, t).scale
        mean, covariance = A @ mean + b, A @ covariance @ A.T + scale**2 * torch.eye(3, dtype=torch.float64)
    A, b = affine(lambda x: denoise(x, grid[-2]).mean)
    alpha, sigma = kernel.schedule(torch.tensor(grid[-2], dtype=torch.float64))
    return A @ mean + b, A @ covariance @ A.T + (sigma / alpha) ** 2 * torch.diag(KNOWN.double())


@pytest.mark.parametrize(
    ("steps", "jump", "resamples", "walk"),
    [
        (4, 1, 1, [0, 1, 2, 3, 4]),
        (3, 1, 2, [0, 1, 0, 1, 2, 1, 2, 3]),
        (5, 2, 2, [0, 1, 2, 1, 0, 1, 2, 3, 4, 3, 2, 3, 4, 5]),
        (4, 2, 3, [0, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 4]),
        (3, 5, 4, [0, 1, 2, 3]),
    ],
)
def test_walks_by_hand(steps: int, jump: int, resamples: int, walk: list[int]) -> None:
    assert jumps(steps, jump, resamples) == walk


@pytest.mark.parametrize(("steps", "jump", "resamples"), [(250, 10, 10), (100, 10, 5), (37, 4, 3), (20, 20, 2)])
def test_walks_of_the_published_kind(steps: int, jump: int, resamples: int) -> None:
    walk = jumps(steps, jump, resamples)
    back = (resamples - 1) * len(range(0, steps - jump, jump))
    assert (walk[0], walk[-1], min(walk), max(walk)) == (0, steps, 0, steps)
    assert all(abs(a - b) == 1 for a, b in pairwise(walk))
    assert sum(b > a for a, b in pairwise(walk)) == steps + back * jump
    turns = [b for a, b, c in zip(walk, walk[1:], walk[2:], strict=False) if a < b > c]
    assert len(turns) == back
    assert {(steps - 1 - place) % jump for place in turns} <= {0}
    assert walk.count(steps) == 1  # nobody goes back from the data


def test_published_walk_of_250_steps_makes_4570_moves() -> None:
    assert len(jumps(250, 10, 10)) - 1 == 250 + 2 * 24 * 9 * 10


@pytest.mark.parametrize("arguments", [(0, 1, 1), (3, 0, 1), (3, 1, 0), (3, 1.5, 1)])
def test_walks_that_cannot_be(arguments: Any) -> None:
    with pytest.raises(ArgumentError):
        jumps(*arguments)


KERNELS = ["isotropic-cosine", "diagonal-exploding", "some_masked-linear", "uniform-cosine", "absorbing-rectified"]
ALL_KERNELS = [*KERNELS, "centred-cosine", "ragged-rectified", "product-cosine"]


def constant(case: Case) -> Callable[[Any, Any], Any]:
    """A denoiser that needs no model: it believes in some fixed data (for tokens, in every token)."""
    denoisers = []
    parts = zip(case.kernel.parts, case.x_0, strict=True) if isinstance(case.x_0, tuple) else [case]
    for kernel, x_0 in parts:
        if isinstance(kernel, Categorical):
            denoisers.append(lambda x, t, k=kernel: k.evidence(x, t).masked_fill(k.log_pi.exp() == 1, -math.inf))
        else:
            denoisers.append(lambda x, t, k=kernel, x_0=x_0: k.certain(k.combine((0.5, x_0))))

    def believe(x: Any, t: Any) -> Any:
        both = zip(denoisers, x if isinstance(case.x_0, tuple) else (x,), strict=True)
        beliefs = tuple(b.log_softmax(-1) if isinstance(b, Tensor) else b for b in (d(y, t) for d, y in both))
        return beliefs if isinstance(case.x_0, tuple) else beliefs[0]

    return believe


def masks(x: Any, value: bool | None) -> Any:
    """All True, all False, or every other element (row of a cloud)."""
    if isinstance(x, tuple):
        return tuple(masks(part, value) for part in x)
    if len(x) == len(INDEX):
        return torch.arange(len(x)) % 2 == 0 if value is None else torch.full((len(x),), value)
    return torch.arange(x[0].numel()).reshape(x[0].shape) % 2 == 0 if value is None else torch.tensor(value)


def flat(x: Any) -> Tensor:
    return torch.cat([flat(part) for part in x]) if isinstance(x, tuple) else x.double().flatten()


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_all_known_gives_it_back_and_nothing_known_is_ancestral_sampling(name: str) -> None:
    case = CASES[name]()
    denoise, times = constant(case), even(4)
    x = case.kernel.prior(case.x_0).sample(seeded(1))

    def run(value: bool | None, resamples: int, generator: Any, step: int = -1) -> Any:
        options: dict[str, Any] = {"known": case.x_0, "mask": masks(case.x_0, value), "jump": 1, "resamples": resamples}
        return list(repaint(denoise, case.kernel, x, times, generator=generator, **options))[step].x

    assert torch.allclose(flat(run(True, 2, seeded(2))), flat(case.x_0), atol=1e-12)
    plain = last(ancestral(denoise, case.kernel, x, times, generator=seeded(2)))
    assert torch.equal(flat(run(False, 1, seeded(2))), flat(plain))
    torch.manual_seed(5)
    from_global = flat(run(False, 1, None))
    torch.manual_seed(5)
    assert torch.equal(from_global, flat(last(ancestral(denoise, case.kernel, x, times))))
    # Two runs from one generator meet different noise.
    one = seeded(3)
    assert not torch.equal(flat(run(True, 2, one, -2)), flat(run(True, 2, one, -2)))


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_parts_have_densities_and_examples_can_be_chosen(name: str) -> None:
    case = CASES[name]()
    kernel, mask = case.kernel, masks(case.x_0, None)
    other = tuple(~m for m in mask) if isinstance(mask, tuple) else ~mask
    law = kernel.marginal(case.x_0, 0.3)
    x = law.sample(seeded(3))
    if "centred" not in name and "product" not in name:  # the halves of a cloud also have places to each other
        assert torch.allclose(law.log_prob(x, mask) + law.log_prob(x, other), law.log_prob(x), rtol=1e-10)
        assert (law.log_prob(x, mask) != law.log_prob(x, other)).any()
    full = masks(case.x_0, True)
    assert torch.allclose(law.log_prob(x, full), law.log_prob(x), rtol=1e-10)
    assert torch.equal(law.log_prob(x, masks(case.x_0, False)), torch.zeros_like(law.log_prob(x)))
    index = torch.tensor([2, 0, 0, 3, 1])
    view, y = kernel.taken(index, x), kernel.take(x, index)
    chosen = view.marginal(kernel.take(case.x_0, index), 0.3)
    assert view.examples(y) == 5
    assert torch.allclose(chosen.log_prob(y), law.log_prob(x)[index], rtol=1e-10)
    again = kernel.blend(mask, case.x_0, x)
    assert torch.allclose(flat(kernel.blend(mask, case.x_0, again)), flat(again), atol=1e-12)
    assert torch.allclose(law.log_prob(case.x_0, mask), law.log_prob(again, mask), rtol=1e-9)


def test_part_of_a_cloud_has_the_density_of_its_shape() -> None:
    """By an orthonormal basis of the shapes of the known rows."""
    clouds = Clouds(SIZES)
    kernel = Gaussian(schedules.Cosine(), Centred()).given(**clouds.structure)
    law = kernel.marginal(clouds.sample(kernel, seeded(1)), 0.6)
    x = law.sample(seeded(2))
    mask = torch.tensor([True, False, True, True, False, True, True, True, True, False, True])
    for graph, expected in enumerate(law.log_prob(x, mask)):
        rows = ((clouds.index == graph) & mask).nonzero().flatten()
        ones = torch.full((len(rows), 1), 1 / math.sqrt(len(rows)), dtype=torch.float64)
        basis = torch.linalg.svd(torch.eye(len(rows)).double() - ones @ ones.T)[0][:, : len(rows) - 1]
        scale = float(kernel.schedule(torch.tensor(0.6, dtype=torch.float64))[1])
        z = basis.T @ (x - law.mean)[rows] / scale
        assert torch.isclose(expected, -(z**2 + math.log(2 * math.pi * scale**2)).sum() / 2, rtol=1e-9, atol=1e-12)


def test_selection_is_fair_slot_by_slot_and_even_in_number() -> None:
    weights = torch.tensor([0.5, 0.05, 0.3, 0.15], dtype=torch.float64)
    place = systematic(weights.log().expand(20_000, 4), seeded(0))
    counts = torch.nn.functional.one_hot(place, 4).sum(1)
    assert (counts >= (4 * weights).floor()).all()
    assert (counts <= (4 * weights).ceil()).all()
    shares = torch.stack([(place == i).double().mean(0) for i in range(4)])  # (particle, slot)
    assert ((shares - weights.unsqueeze(1)).abs() < 4.5 * (weights * (1 - weights) / 20_000).sqrt().unsqueeze(1)).all()
    impossible = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0]]).expand(100, 4)
    assert set(systematic(impossible, seeded(1)).flatten().tolist()) == {1, 3}


@torch.no_grad()
@pytest.mark.parametrize("far", [0.0, 5.0])
def test_particles_are_selected_by_their_effective_number(far: float) -> None:
    """At every step where any number is few, never where none is; how likely the known part is does not matter."""
    kernel, count = Gaussian(schedules.Cosine()), 32
    x = torch.randn(count, 3, generator=seeded(0), dtype=torch.float64)
    known = (Y + far).expand_as(x)
    for threshold in (0.0, 1.0):
        steps = particle_inpaint(
            DATA.denoise(kernel), kernel, x, even(8), known=known, mask=KNOWN, particles=count, threshold=threshold,
            generator=seeded(1),
        )  # fmt: skip
        *left, _ = [len(step.x.unique(dim=0)) for step in steps]  # at the end they are selected in any case
        assert all(number < count if threshold == 1 else number == count for number in left), left


@torch.no_grad()
def test_particles_reach_the_conditional_law_of_the_chain_on_a_coarse_grid() -> None:
    """Exact for the chain as it is, not for the limit of fine grids: the two are far apart here."""
    kernel, times = Gaussian(schedules.Cosine()), even(6)
    mean, variance = conditional(*chain(kernel, times), Y, KNOWN)
    of_data = conditional(DATA.mean, COVARIANCE, Y, KNOWN)
    problems, errors = 400, []
    for particles, threshold in ((1, 0.5), (8, 0.5), (256, 0.5), (256, 1.0)):
        x = torch.randn(problems * particles, 3, generator=seeded(0), dtype=torch.float64)
        steps = particle_inpaint(
            DATA.denoise(kernel),
            kernel,
            x,
            times,
            known=Y.expand_as(x),
            mask=KNOWN,
            particles=particles,
            threshold=threshold,
            generator=seeded(1),
        )
        drawn = last(steps)
        assert torch.equal(drawn[:, KNOWN], Y[KNOWN].expand(len(x), 2))
        each = drawn[:, 1].reshape(problems, particles)
        errors.append(abs(float(each.mean()) - mean) / math.sqrt(variance))
        if particles == 256:
            # Pooled, 3.5 standard errors; forgetting the twist of those selected costs 0.1 to 0.24.
            assert errors[-1] < 0.06
            first = each[:, 0]  # one draw of each problem
            assert abs(float(first.mean()) - mean) < 4 * math.sqrt(variance / problems)
            assert abs(float(first.var()) / variance - 1) < 4 * math.sqrt(2 / problems)
            assert abs(float(first.mean()) - of_data[0]) > 8 * math.sqrt(variance / problems)
    assert errors[0] > 5 * errors[2]
    assert errors[1] > 2 * errors[2]


@torch.no_grad()
def test_repaint_puts_the_known_part_at_its_own_noise() -> None:
    kernel, count = Gaussian(schedules.Cosine()), 4000
    x = torch.randn(count, 3, generator=seeded(0), dtype=torch.float64)
    options: dict[str, Any] = {
        "known": Y.expand_as(x),
        "mask": KNOWN,
        "jump": 1,
        "resamples": 2,
        "generator": seeded(1),
    }
    steps = list(repaint(DATA.denoise(kernel), kernel, x, even(5), **options))
    assert [step.t for step in steps] == [float(even(5)[place]) for place in jumps(5, 1, 2)[1:]]
    for step in steps[:-1]:
        alpha, sigma = kernel.schedule(torch.tensor(step.t, dtype=torch.float64))
        z = (step.x[:, KNOWN] - alpha * Y[KNOWN]) / sigma
        assert (z.mean(0).abs() < 4.5 / math.sqrt(count)).all()
        assert ((z.var(0) - 1).abs() < 4.5 * math.sqrt(2 / count)).all()


@torch.no_grad()
def test_jumps_keep_the_law_and_bring_the_parts_together() -> None:
    """With nothing known, noise and the exact reverse chain keep the data's law; with something, more rounds help."""
    kernel, count = Gaussian(schedules.Cosine()), 4000
    x = torch.randn(count, 3, generator=seeded(0), dtype=torch.float64)

    def run(mask: Tensor, resamples: int) -> Tensor:
        options: dict[str, Any] = {
            "known": Y.expand_as(x),
            "mask": mask,
            "jump": 5,
            "resamples": resamples,
            "generator": seeded(1),
        }
        return last(repaint(DATA.denoise(kernel), kernel, x, even(50), **options))

    free = run(torch.tensor(False), 3)
    assert torch.allclose(free.T.cov(), COVARIANCE, atol=0.12)
    assert torch.allclose(free.mean(0), DATA.mean, atol=0.07)
    mean, _ = conditional(DATA.mean, COVARIANCE, Y, KNOWN)
    errors = [abs(float(run(KNOWN, resamples)[:, 1].mean()) - mean) for resamples in (1, 2, 6)]
    assert errors[0] > 1.3 * errors[1] > 1.3 * 1.3 * errors[2]


@torch.no_grad()
@pytest.mark.parametrize("each", [False, True], ids=["one-grid", "grid-per-example"])
def test_particles_beat_repaint_on_correlated_normal_data(each: bool) -> None:
    """Published setting of repaint (10 resamples, jumps of 10); the particles' mean is nearer by far, and K helps."""
    kernel, problems = Gaussian(schedules.Cosine()), 200
    mean, variance = conditional(DATA.mean, COVARIANCE, Y, KNOWN)

    def columns(count: int) -> Tensor:
        return even(50).unsqueeze(1).expand(-1, count) if each else even(50)

    x = torch.randn(2000, 3, generator=seeded(0), dtype=torch.float64)
    painted = last(
        repaint(DATA.denoise(kernel), kernel, x, columns(2000), known=Y.expand_as(x), mask=KNOWN, generator=seeded(1))
    )[:, 1]
    x = torch.randn(problems * 64, 3, generator=seeded(0), dtype=torch.float64)
    options: dict[str, Any] = {"known": Y.expand_as(x), "mask": KNOWN, "particles": 64}
    ours = last(particle_inpaint(DATA.denoise(kernel), kernel, x, columns(len(x)), generator=seeded(1), **options))[
        :, 1
    ]
    worse, better = abs(float(painted.mean()) - mean), abs(float(ours.mean()) - mean)
    assert worse > 4 * math.sqrt(variance / 2000)
    assert better < worse / 4
    assert abs(float(ours.var()) - variance) < abs(float(painted.var()) - variance) / 3


TOKENS = [
    (lambda: uniform(schedules.RectifiedFlow(), 3), TokenData.standard()),
    (lambda: absorbing(schedules.Cosine(), 4, mask=3), TokenData.standard(K=4, without=3)),
]


def token_chain(data: TokenData, kernel: Categorical, times: Tensor) -> Tensor:
    """The law of what ancestral sampling ends in, over data.states, by enumeration."""
    denoise, grid, S = data.denoise(kernel), times.tolist(), data.states
    law = kernel.prior(S).log_prob(S).exp()

    def onwards(law: Tensor, distribution: Callable[[Tensor], Any]) -> Tensor:
        rows = [distribution(x.unsqueeze(0).expand_as(S)).log_prob(S).exp().nan_to_num() for x in S]
        return law @ torch.stack(rows)

    for t, s in zip(grid[:-2], grid[1:-1], strict=True):
        law = onwards(law, lambda x, t=t, s=s: kernel.reverse(x, denoise(x, t).nan_to_num(-math.inf), s, t))
    return onwards(law, lambda x: kernel.likelihood(denoise(x, grid[-2]).nan_to_num(-math.inf), grid[-2]))


@torch.no_grad()
@pytest.mark.parametrize(("build", "data"), TOKENS, ids=["uniform", "absorbing"])
def test_particles_reach_the_conditional_law_of_tokens_and_beat_repaint(
    build: Callable[[], Categorical], data: TokenData
) -> None:
    kernel, times, y = build(), even(5), 1
    mask = torch.tensor([True, False])
    joint = token_chain(data, kernel, times).reshape(data.table.shape)
    assert float(joint.sum()) == pytest.approx(1, abs=1e-6)
    exact = joint[y] / joint[y].sum()
    problems, K = 2000, 32

    def run(count: int, sampler: Callable[..., Any], **options: Any) -> Tensor:
        known = torch.tensor([y, 0]).expand(count, 2)
        x = kernel.prior(known).sample(seeded(0))
        drawn = last(
            sampler(data.denoise(kernel), kernel, x, times, known=known, mask=mask, generator=seeded(1), **options)
        )
        assert (drawn[:, 0] == y).all()
        return torch.bincount(drawn[:: options.get("particles", 1), 1], minlength=len(exact)) / problems

    ours = run(problems * K, particle_inpaint, particles=K)
    painted = run(problems, repaint, jump=1, resamples=1)
    noise = (exact * (1 - exact) / problems).sqrt()
    assert ((ours - exact).abs() <= 4 * noise + 0.5 / K * exact * (1 - exact)).all()
    assert float((painted - exact).abs().sum()) > 3 * float((ours - exact).abs().sum())


@torch.no_grad()
def test_problems_do_not_affect_each_other() -> None:
    kernel, K, times = Gaussian(schedules.Cosine()), 6, even(8)
    known = DATA.sample(3, seeded(4)).repeat_interleave(K, 0)

    def run(known: Tensor, positions: range) -> Tensor:
        own = example_generators(0, 0, positions)
        x = kernel.prior(known).sample(own)
        options: dict[str, Any] = {"known": known, "mask": KNOWN, "particles": K, "generator": own}
        return last(particle_inpaint(DATA.denoise(kernel), kernel, x, times, **options))

    together = run(known, range(3 * K))
    changed = torch.cat([known[: 2 * K], known[2 * K :] + 3])
    assert torch.equal(run(changed, range(3 * K))[: 2 * K], together[: 2 * K])
    assert torch.equal(run(known[K : 2 * K], range(K, 2 * K)), together[K : 2 * K])


@torch.no_grad()
def test_clouds_keep_the_known_shape_and_their_centre() -> None:
    clouds, K = Clouds(SIZES), 5
    kernel = Gaussian(schedules.Cosine(), Centred()).given(**clouds.structure)
    index = torch.arange(len(SIZES)).repeat_interleave(K)
    x_0 = clouds.sample(kernel, seeded(1))
    many, known = kernel.taken(index, x_0), kernel.take(x_0, index)
    mask = kernel.take(torch.arange(len(x_0)) % 3 > 0, index)
    denoise = clouds.denoise(many)
    options: dict[str, Any] = {"known": known, "mask": mask, "generator": seeded(2)}
    x = many.prior(known).sample(seeded(3))
    law: Any = many.noise
    shape = law.part(mask)
    runs: Any = ((repaint, {"jump": 2, "resamples": 3}), (particle_inpaint, {"particles": K}))
    for sampler, more in runs:
        steps = list(sampler(denoise, many, x, even(6), **options, **more))
        assert all(torch.allclose(many.project(step.x), step.x, atol=1e-12) for step in steps)
        assert torch.allclose(shape.project(steps[-1].x), shape.project(known), atol=1e-12)


def test_arguments_are_checked_first() -> None:
    kernel, x = Gaussian(schedules.Cosine()), torch.zeros(4, 3, dtype=torch.float64)
    denoise = DATA.denoise(kernel)
    common: dict[str, Any] = {"known": x, "mask": KNOWN}
    wrongs: list[dict[str, Any]] = [{"particles": 3}, {"particles": 0}, {"particles": 2, "threshold": 1.5}]
    for wrong in wrongs:
        with pytest.raises(ArgumentError):
            next(particle_inpaint(denoise, kernel, x, even(3), **common, **wrong))
    with pytest.raises(ArgumentError, match="known"):
        next(repaint(denoise, kernel, x, even(3), known=x[:2], mask=KNOWN))
