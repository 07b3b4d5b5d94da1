"""GeoDiff's targets against a dense stiffness matrix, plain loops and rotations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polydiff.core.clouds import Centred
from polydiff.core.denoisers import GaussianDenoiser, flow
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Belief, Gaussian
from polydiff.core.objectives import Denoising, Look, flow_velocity, opened
from polydiff.core.schedules import RectifiedFlow
from polydiff.molecules.objectives import AlignedTarget, ChainRule, chain_rule

SIZES = (5, 2, 9)


class Pairs(nn.Module):
    """Stands for a batch of graphs."""

    def __init__(self, edge_index: Tensor):
        super().__init__()
        self.edge_index = edge_index


class Answer(nn.Module):
    """A network whose output is a parameter times x, whatever the condition."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, c: Tensor, graph: Pairs, draft: Tensor) -> Tensor:
        return self.factor * x


def centred(x: Tensor, index: Tensor) -> Tensor:
    return Centred().given(index=index, num_graphs=len(SIZES)).project(x)


def problem(drafted: bool = True):
    g = torch.Generator().manual_seed(0)
    index = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    same = index[:, None] == index
    edge_index = (same & ~torch.eye(len(index), dtype=torch.bool)).nonzero().T
    x_0 = centred(torch.randn(len(index), 3, generator=g, dtype=torch.float64), index)
    draft = centred(3 * torch.randn(len(index), 3, generator=g, dtype=torch.float64), index)
    structure = {"index": index, "num_graphs": len(SIZES)}
    batch = {"x_0": x_0, "structure": structure, "graph": Pairs(edge_index), "draft": draft if drafted else 0 * draft}
    kernel = Gaussian(RectifiedFlow(), Centred())
    return batch, kernel, GaussianDenoiser(Answer(), kernel.schedule, flow)


def rotation() -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return q * torch.linalg.det(q)


def stiffness(P: Tensor, edge_index: Tensor) -> Tensor:
    """(3 rows, 3 rows), the sum over unordered pairs of u u' on differences."""
    K = torch.zeros(len(P), 3, len(P), 3, dtype=torch.float64)
    for i, j in edge_index.T.tolist():
        u = (P[i] - P[j]) / (P[i] - P[j]).norm()
        K[i, :, i] += torch.outer(u, u)
        K[i, :, j] -= torch.outer(u, u)
    return K.view(3 * len(P), 3 * len(P))


def test_chain_rule_is_the_stiffness_matrix_times_the_noise():
    batch, *_ = problem()
    P_0, pairs = batch["x_0"] + batch["draft"], batch["graph"].edge_index
    noise = torch.randn(P_0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    K = stiffness(P_0, pairs)
    expected = (K @ noise.flatten()).view_as(noise)
    errors = []
    for small in (1e-3, 1e-4):
        alpha = torch.full((len(P_0), 1), 0.7, dtype=torch.float64)
        got = chain_rule(0.7 * P_0 + small * noise, P_0, alpha, torch.full_like(alpha, small), pairs)
        errors.append(float((got - expected).abs().max() / expected.abs().max()))
    # The error is of first order in the noise.
    assert errors[1] < 2e-3 and 8 < errors[0] / errors[1] < 12
    index = batch["structure"]["index"]
    for k, n in enumerate(SIZES):
        mine = (index == k).repeat_interleave(3)
        assert float(K[mine][:, mine].trace()) / (3 * n) == pytest.approx((n - 1) / 3)


def test_chain_rule_by_loops_far_from_the_linear_regime():
    batch, *_ = problem()
    P_0, index = batch["x_0"] + batch["draft"], batch["structure"]["index"]
    g = torch.Generator().manual_seed(3)
    P_t = 2 * torch.randn(P_0.shape, generator=g, dtype=torch.float64)
    alpha, sigma = torch.tensor([0.3, 0.0, 0.9])[index].double(), torch.tensor([0.7, 1.0, 0.4])[index].double()
    got = chain_rule(P_t, P_0, alpha[:, None], sigma[:, None], batch["graph"].edge_index)
    for i in range(len(P_0)):
        expected = torch.zeros(3, dtype=torch.float64)
        for j in (index == index[i]).nonzero().flatten().tolist():
            if j != i:
                d, d_0 = (P_t[i] - P_t[j]).norm(), (P_0[i] - P_0[j]).norm()
                expected += (d - alpha[i] * d_0) / sigma[i] * (P_t[i] - P_t[j]) / d
        assert torch.allclose(got[i], expected, rtol=1e-12, atol=1e-12)


def test_chain_rule_of_coinciding_points_is_finite():
    batch, *_ = problem()
    one = torch.ones(len(batch["x_0"]), 1, dtype=torch.float64)
    found = chain_rule(0 * batch["x_0"], batch["x_0"], one, one, batch["graph"].edge_index)
    assert not found.any()


@pytest.mark.parametrize("normalised", [True, False])
def test_loss_vanishes_for_a_belief_whose_noise_is_the_target(normalised):
    batch, kernel, denoiser = problem()
    objective = ChainRule(denoiser, kernel, normalised=normalised)
    given = opened(kernel, batch)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    look = objective.denoising.look(given, torch.Generator().manual_seed(0), t)
    index, draft, pairs = batch["structure"]["index"], batch["draft"], batch["graph"].edge_index
    alpha, sigma = (1 - t)[index][:, None], t[index][:, None]
    target = chain_rule(look.x_t + alpha * draft, batch["x_0"] + draft, alpha, sigma, pairs)
    if normalised:
        target = target * 3 / (torch.tensor(SIZES)[index].double()[:, None] - 1)
    told = look._replace(belief=Belief((look.x_t - sigma * target) / alpha))
    assert float(objective.loss(told, pairs, draft).max()) < 1e-20
    zero = objective.loss(look._replace(belief=Belief(look.x_t / alpha)), pairs, draft)
    for k, n in enumerate(SIZES):
        assert float(zero[k]) == pytest.approx(float(target[index == k].square().sum()) / (3 * (n - 1)))


def test_aligned_target_does_not_feel_rotations_of_the_noisy_sample():
    batch, kernel, denoiser = problem(drafted=False)
    objective = AlignedTarget(denoiser, kernel)
    given = opened(kernel, batch)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    look = objective.denoising.look(given, torch.Generator().manual_seed(0), t)
    q = rotation()
    turned = look._replace(x_t=look.x_t @ q.T, belief=Belief(look.belief.mean @ q.T))
    assert torch.allclose(objective.loss(turned, batch["draft"]), objective.loss(look, batch["draft"]), rtol=1e-10)
    plain = objective.denoising
    assert not torch.allclose(plain.loss(turned), plain.loss(look), rtol=1e-2)
    # No rotation of x_0 fits better, so at alpha x_0 itself, turned, the loss of the right answer is 0.
    right = look._replace(x_t=batch["x_0"] @ q.T, belief=Belief(batch["x_0"] @ q.T))
    assert float(objective.loss(right, batch["draft"]).detach().max()) < 1e-20


def test_aligned_target_with_a_draft_turns_the_positions():
    batch, kernel, denoiser = problem()
    objective, draft = AlignedTarget(denoiser, kernel), batch["draft"]
    t, q = torch.full((3,), 0.5, dtype=torch.float64), rotation()
    positions = batch["x_0"] + draft
    # Noisy positions 0.5 P_0 turned: x_t = 0.5 P_0 q' - 0.5 draft.
    x_t, answer = 0.5 * positions @ q.T - 0.5 * draft, positions @ q.T - draft
    look = Look(opened(kernel, batch).kernel, batch["x_0"], x_t, t, Belief(answer))
    assert float(objective.loss(look, draft).max()) < 1e-20


@pytest.mark.parametrize("drafted", [True, False])
def test_both_train(drafted):
    batch, kernel, denoiser = problem(drafted)
    for objective in (ChainRule(denoiser, kernel), AlignedTarget(denoiser, kernel)):
        denoiser.zero_grad()
        one = objective(batch, torch.Generator().manual_seed(0))
        assert one.shape == (3,) and bool(one.isfinite().all())
        assert torch.equal(one, objective(batch, torch.Generator().manual_seed(0)))
        one.sum().backward()
        assert denoiser.network.factor.grad != 0


def test_aligned_target_at_little_noise_is_the_denoising_loss():
    # There the best rotation is nearly the identity, and exactly so in the limit.
    batch, kernel, denoiser = problem(drafted=False)
    times = lambda schedule, count, generator: torch.full((count,), 1e-6, dtype=torch.float64)  # noqa: E731
    aligned = AlignedTarget(denoiser, kernel, lambda s, t: torch.ones_like(t), times)
    plain = Denoising(denoiser, kernel, lambda s, t: torch.ones_like(t), times)
    a, b = (one(batch, torch.Generator().manual_seed(0)).detach() for one in (aligned, plain))
    assert torch.allclose(a, b, atol=1e-10)
    assert flow_velocity(kernel.schedule, torch.tensor([0.5], dtype=torch.float64)) == 4


def test_refused():
    _, kernel, denoiser = problem()
    for make in (ChainRule, AlignedTarget):
        with pytest.raises(ArgumentError, match="kernel"):
            make(denoiser, Gaussian(RectifiedFlow()))
        with pytest.raises(ArgumentError, match="denoiser"):
            make(Answer(), kernel)  # pyright: ignore[reportArgumentType]
