"""One network read part by part, and losses weighed part by part, on ragged clouds beside ragged symbols."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.bounds import elbo
from polydiff.core.categorical import absorbing, uniform
from polydiff.core.clouds import Centred
from polydiff.core.denoisers import GaussianDenoiser, TokenDenoiser, context, edm, flow, index, log_snr, logits, time, v
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.objectives import Denoising, flow_velocity, plain, velocity
from polydiff.core.objectives import uniform as uniform_times
from polydiff.core.parts import PartwiseDenoising, ProductDenoiser
from polydiff.core.product import Product
from polydiff.core.randomness import example_generators, randn, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Cosine, LinearBeta, RectifiedFlow, Schedule
from polydiff.core.score_entropy import unmasking
from polydiff.core.vdm import LearnedSchedule

SIZES = [3, 1, 4]
INDEX = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
STRUCTURE = {"index": INDEX, "num_graphs": 3}
WHOLE = {"part_0": STRUCTURE, "part_1": STRUCTURE}
K, MASK = 4, 3
POSITIONS, TYPES = Cosine(), RectifiedFlow()


class Coupled(nn.Module):
    """Positions see types and types see positions; c and a condition change both."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.b = nn.Parameter(torch.linspace(-1, 1, K - 1, dtype=torch.float64))

    def forward(self, xs: tuple[Tensor, Tensor], c: Tensor, *, hint: float = 0.0) -> tuple[Tensor, Tensor]:
        x, types = xs
        far = x.square().sum(1, keepdim=True) + c.double()[INDEX, None] / 500 + hint
        return self.a * x * (1 + types[:, None]), self.b * far


def kernel() -> Product:
    return Product([Gaussian(POSITIONS, Centred()), absorbing(TYPES, K, MASK)]).given(**WHOLE)


def denoiser(
    parametrisation: Any = v, reading: Any = logits, conditioning: Any = time, network: nn.Module | None = None
) -> ProductDenoiser:
    nothing = nn.Identity()
    readings = [
        GaussianDenoiser(nothing, POSITIONS, parametrisation, conditioning),
        TokenDenoiser(nothing, TYPES, reading),
    ]
    return ProductDenoiser(Coupled() if network is None else network, readings)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    whole = kernel()
    x = whole.parts[0].project(randn((len(INDEX), 3), seeded(seed), dtype=torch.float64))  # pyright: ignore
    return x, torch.randint(MASK, (len(INDEX),), generator=seeded(seed))


@pytest.mark.parametrize("t", [0.4, torch.tensor([0.4, 0.1, 0.9], dtype=torch.float64)], ids=["one", "each"])
@pytest.mark.parametrize("conditioning", [time, log_snr, index(100)])
@pytest.mark.parametrize(("parametrisation", "reading"), [(v, logits), (flow, context)])
def test_each_part_is_read_as_by_a_denoiser_of_its_own(
    parametrisation: Any, reading: Any, conditioning: Any, t: Any
) -> None:
    whole, x_t, hint = kernel(), kernel().marginal(data(), 0.4).sample(seeded(1)), 0.3
    joint = denoiser(parametrisation, reading, conditioning)
    positions, types = joint.given(whole, hint=hint)(x_t, t)
    each = torch.as_tensor(t, dtype=torch.float64).expand(3)
    c = conditioning(each, POSITIONS.log_snr(each)).float()

    class First(nn.Module):
        def forward(self, x: Tensor, own: Tensor) -> Tensor:
            torch.testing.assert_close(own.float(), c)
            return joint.network((x, x_t[1]), own, hint=hint)[0]

    class Second(nn.Module):
        def forward(self, types: Tensor, own: Tensor) -> Tensor:
            return joint.network((x_t[0], types), c, hint=hint)[1]

    first = GaussianDenoiser(First(), POSITIONS, parametrisation, conditioning)
    second = TokenDenoiser(Second(), TYPES, reading)
    mean = first.given(whole.parts[0])(x_t[0], t).mean
    torch.testing.assert_close(positions.mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(types, second.given(whole.parts[1])(x_t[1], t), rtol=1e-6, atol=1e-6)
    # In training it is called with the kernel and times (B,).
    again = joint(x_t, each, whole, hint=hint)
    torch.testing.assert_close(again[0].mean, mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(again[1], types, rtol=1e-10, atol=1e-10)


def test_two_gaussian_parts_keep_their_own_schedule_and_preconditioning() -> None:
    """Each part's c_in and c_skip are those of its own schedule: none is 1, and no two are equal."""
    schedules, widths = (POSITIONS, TYPES), (0.3, 0.8)
    whole = Product([Gaussian(schedule, Centred()) for schedule in schedules]).given(**WHOLE)
    x_t = whole.marginal((data()[0], data(1)[0]), 0.4).sample(seeded(1))

    class Scaled(nn.Module):
        def forward(self, xs: tuple[Tensor, Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tanh(xs[0]), torch.tanh(xs[1])

    class Alone(nn.Module):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return torch.tanh(x)

    def readings(network: nn.Module) -> list[GaussianDenoiser]:
        return [GaussianDenoiser(network, s, edm(width)) for s, width in zip(schedules, widths, strict=True)]

    joint = ProductDenoiser(Scaled(), readings(nn.Identity())).given(whole)
    for t in (0.4, torch.tensor([0.4, 0.1, 0.9], dtype=torch.float64)):
        for i, reading in enumerate(readings(Alone())):
            expected = reading.given(whole.parts[i])(x_t[i], t).mean
            torch.testing.assert_close(joint(x_t, t)[i].mean, expected, rtol=1e-10, atol=1e-10)


def test_taken_products_are_bound_to_the_examples_taken() -> None:
    whole, x_0, index_ = kernel(), data(), torch.tensor([2, 0])
    x_t = whole.marginal(x_0, 0.4).sample(seeded(1))
    some = whole.taken(index_, x_0)
    few, noisy = whole.take(x_0, index_), whole.take(x_t, index_)
    assert [part.examples(y) for part, y in zip(some.parts, few, strict=True)] == [2, 2]  # pyright: ignore
    expected = whole.marginal(x_0, 0.4).log_prob(x_t)[index_]
    torch.testing.assert_close(some.marginal(few, 0.4).log_prob(noisy), expected)


def test_an_exact_network_gives_the_exact_belief_and_a_tight_bound() -> None:
    """Independent parts with closed forms: the bound is the sum of the parts' expected bounds (5 standard errors)."""
    deviation, p = 0.7, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    class Exact(nn.Module):
        def forward(self, xs: tuple[Tensor, Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = POSITIONS(c.double() / 1000)
            power = (alpha * deviation) ** 2 + sigma**2
            # v = alpha x_1 - sigma x_0 in the mean: x_0 = alpha d^2/power x_t, x_1 = sigma/power x_t.
            of_x = alpha * sigma / power - sigma * alpha * deviation**2 / power
            return of_x[self.index][:, None] * xs[0], p.log().expand(len(xs[1]), 3)

        index = torch.zeros(0, dtype=torch.long)

    count, size = 4000, 3
    rows = {"index": torch.arange(count).repeat_interleave(size), "num_graphs": count}
    whole = Product([Gaussian(POSITIONS, Centred()), absorbing(TYPES, K, MASK)]).given(part_0=rows, part_1=rows)
    network = Exact()
    network.index = rows["index"]
    g = seeded(5)
    like = torch.zeros(count * size, 3, dtype=torch.float64)
    x_0 = deviation * whole.parts[0].pair(like, g), torch.multinomial(p, count * size, True, generator=g)  # pyright: ignore
    times = grids.uniform(6)
    nats = elbo(denoiser(network=network).given(whole), whole, x_0, times, generator=g).total
    # Gaussian: KLs with the posterior's variance in closed form, 6 degrees of freedom each.
    alpha, sigma = POSITIONS(times[:-1])
    snr = (alpha / sigma) ** 2
    left = deviation**2 * sigma**2 / ((alpha * deviation) ** 2 + sigma**2)  # variance of x_0 given x_t
    gaps = ((snr[1:] - snr[:-1]) / 2 * left[:-1]).sum()
    end = (2 * math.pi / snr[-1]).log() / 2 + snr[-1] * left[-1] / 2
    expected = 6 * float(gaps + end) + size * float(-(p * p.log()).sum())
    assert float(alpha[0]) == 0  # no prior's part
    assert abs(float(nats.mean()) - expected) < 5 * float(nats.std()) / count**0.5
    assert float(nats.std()) / count**0.5 < 0.02 * expected


def test_loss_is_the_sum_of_the_weighted_errors_per_dimension() -> None:
    whole, own = kernel(), denoiser()
    x_0, generators = data(), example_generators(0, 0, range(3))
    objective = PartwiseDenoising(own, whole, [velocity, unmasking], [1.0, 0.25], uniform_times(0.2, 0.9))
    losses = objective({"x_0": x_0, "hint": 0.1}, generators)
    generators = example_generators(0, 0, range(3))
    t = uniform_times(0.2, 0.9)(POSITIONS, 3, generators)
    x_t = whole.marginal(x_0, t).sample(generators)
    belief = own(x_t, t, whole, hint=0.1)
    squared = torch.stack([(belief[0].mean - x_0[0])[k == INDEX].square().sum() for k in range(3)])
    entropy = -torch.stack([belief[1][r, x_0[1][r]] for r in range(len(INDEX))])
    entropy = torch.stack([entropy[k == INDEX].sum() for k in range(3)])
    sizes = torch.tensor(SIZES)
    expected = velocity(POSITIONS, t) * squared / (3 * (sizes - 1)).clamp_min(1)
    expected = expected + 0.25 * unmasking(TYPES, t) * entropy / sizes
    assert float(squared[1].detach()) == 0  # one atom has no position
    torch.testing.assert_close(losses, expected.to(losses), rtol=1e-6, atol=1e-9)
    first, second = torch.autograd.grad(losses.sum(), list(own.network.parameters()))
    assert float(first) != 0 and bool((second != 0).any())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_conditions_are_dropped(share: float) -> None:
    heard = []

    class Listening(Coupled):
        def forward(self, xs: tuple[Tensor, Tensor], c: Tensor, *, hint: Any = 0.0) -> tuple[Tensor, Tensor]:
            heard.append(hint)
            return super().forward(xs, c)

    own = denoiser(network=Listening())
    objective = PartwiseDenoising(own, kernel(), [velocity, plain], drop={"hint": (share, 7)})
    objective({"x_0": data(), "hint": torch.arange(3)}, seeded(0))
    assert heard[0].tolist() == ([7, 7, 7] if share else [0, 1, 2])


def test_a_batch_may_carry_its_structure() -> None:
    bare = Product([Gaussian(POSITIONS, Centred()), absorbing(TYPES, K, MASK)])
    mine, bound = (PartwiseDenoising(denoiser(), k, [velocity, plain]) for k in (bare, kernel()))
    first = mine({"x_0": data(), "structure": WHOLE}, example_generators(1, 0, range(3)))
    second = bound({"x_0": data()}, example_generators(1, 0, range(3)))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.shape == (3,)


def test_one_part_alone_is_the_plain_loss() -> None:
    one = Product([kernel().parts[0]])  # pyright: ignore

    class Single(nn.Module):
        def forward(self, xs: tuple[Tensor], c: Tensor) -> tuple[Tensor]:
            return (0.3 * xs[0],)

    own = ProductDenoiser(Single(), [GaussianDenoiser(nn.Identity(), POSITIONS)])
    batch = {"x_0": (data()[0],)}
    mine = PartwiseDenoising(own, one, [flow_velocity])(batch, example_generators(2, 0, range(3)))
    theirs = Denoising(own, one, flow_velocity)(batch, example_generators(2, 0, range(3)))
    torch.testing.assert_close(mine, theirs)


def test_sampling_needs_nothing_else() -> None:
    whole, own = kernel(), denoiser()
    own.network.requires_grad_(False)
    runs = []
    for _ in range(2):
        generators = example_generators(3, 0, range(3))
        x = whole.prior(data()).sample(generators)
        runs.append(last(ancestral(own.given(whole), whole, x, grids.uniform(5), generator=generators)))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert bool((runs[0][1] < MASK).all()) and bool(runs[0][0].isfinite().all())


def test_a_copy_of_the_objective_stands_alone() -> None:
    """As the average of the weights does: its denoiser and kernel have one schedule, its own."""
    objective = copy.deepcopy(PartwiseDenoising(denoiser(), kernel(), [velocity, plain]))
    losses = objective({"x_0": data()}, example_generators(1, 0, range(3)))
    assert bool(losses.isfinite().all())


def other(positions: Schedule = POSITIONS, types: Schedule = TYPES) -> Product:
    return Product([Gaussian(positions, Centred()), uniform(types, K)]).given(**WHOLE)


def test_what_does_not_fit_is_named() -> None:
    nothing, x_0, t = nn.Identity(), data(), torch.full((3,), 0.5, dtype=torch.float64)

    def answers(*outputs: Tensor) -> ProductDenoiser:
        class Fixed(nn.Module):
            def forward(self, xs: Any, c: Tensor) -> Any:
                return outputs if len(outputs) != 1 else outputs[0]

        return denoiser(network=Fixed())

    vectors, types = torch.zeros(len(INDEX), 3), torch.zeros(len(INDEX), K)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("readings", lambda: ProductDenoiser(nothing, [])),
        ("readings", lambda: ProductDenoiser(nothing, [GaussianDenoiser(nothing, LearnedSchedule())])),
        ("kernel", lambda: denoiser()(x_0, t, other(positions=LinearBeta()))),
        ("kernel", lambda: denoiser()(x_0, t, other(types=Cosine()))),
        ("kernel", lambda: denoiser().given(other(positions=Cosine()))(x_0, 0.5)),
        ("x_t", lambda: denoiser()(x_0[:1], t, kernel())),
        ("network", lambda: answers(vectors)(x_0, t, kernel())),
        ("network", lambda: answers(vectors, types, types)(x_0, t, kernel())),
        ("network", lambda: answers(types, vectors)(x_0, t, kernel())),
        ("network", lambda: answers(vectors, types[1:])(x_0, t, kernel())),
        ("kernel", lambda: PartwiseDenoising(denoiser(), kernel().parts[0], [plain])),  # pyright: ignore
        ("weights", lambda: PartwiseDenoising(denoiser(), kernel(), [plain])),
        ("shares", lambda: PartwiseDenoising(denoiser(), kernel(), [plain, plain], [1.0])),
        ("shares", lambda: PartwiseDenoising(denoiser(), kernel(), [plain, plain], [1.0, -1.0])),
        ("shares", lambda: PartwiseDenoising(denoiser(), kernel(), [plain, plain], [0.0, 0.0])),
    ]
    for name, call in calls:
        with pytest.raises(ArgumentError, match=f"^{name}"):
            call()
    belief = answers(vectors, types)(x_0, t, kernel())
    assert isinstance(belief[0], Belief)
