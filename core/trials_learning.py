"""How objectives, bounds and likelihoods are tried on a domain's smallest case; see `trials`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .bounds import elbo
from .case import Case
from .consistency import Consistency, plain
from .denoisers import GaussianDenoiser, v
from .dequantisation import Uniform, dequantised
from .distillation import Distillation
from .estimates import continuous_elbo, elbo_estimate, importance_weighted, path_weight
from .gaussian import Gaussian
from .hybrid import Hybrid
from .importance import LogSnrUniform
from .likelihood import adaptive_log_likelihood, log_likelihood, rademacher
from .objectives import Denoising, flow_velocity, likelihood
from .ode import euler
from .prior import mismatch
from .rectified import couple, straightness
from .trials import check, check_state, denoise, generators, grid, late
from .truncation import Energy, truncate
from .vdm import VDM, LearnedSchedule

__all__ = ["trained", "weighted"]


def trained(objective: Callable[[Case], Callable[[Mapping[str, Any], Any], Tensor]]) -> Callable[[Case], None]:
    """How an objective is run: objective(case)(batch, generators) -> losses (B,), finite, with finite gradients."""

    def run(case: Case) -> None:
        with torch.enable_grad():
            losses = objective(case)({"x_0": case.x_0, **case.condition}, generators(case))
            check(losses.shape == (case.kernel.examples(case.x_0),), f"losses of shape {tuple(losses.shape)}")
            check(losses.isfinite().all(), "losses that are not finite")
            parameters = [parameter for parameter in case.denoiser.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        check(all(g is None or bool(g.isfinite().all()) for g in gradients), "gradients that are not finite")
        check(any(g is not None and bool((g != 0).any()) for g in gradients), "no gradient")

    return run


def bound(case: Case) -> None:
    """The full bound on a grid: KLs are not negative, and one who knows x_0 pays nothing for the gaps."""

    def at(belief: Callable[[Any, Any], Any]) -> Any:
        return elbo(belief, case.kernel, case.x_0, grid(case), generator=generators(case))

    mine, knowing = at(denoise(case)), at(lambda x, t: case.kernel.certain(case.x_0))
    check(mine.total.isfinite().all() & (mine.prior >= 0).all() & (mine.gaps >= -1e-6).all(), "not a bound")
    check((knowing.gaps.abs() < 1e-3).all(), "certainty costs")


def weighted(weight: Callable[..., Tensor]) -> Callable[[Case], None]:
    """How a weight of the loss is run."""
    return trained(lambda case: Denoising(case.denoiser, case.kernel, weight))


def finite(case: Case, nats: Tensor, what: str) -> None:
    """One finite number per example."""
    check(nats.shape == (case.kernel.examples(case.x_0),), f"{what} of shape {tuple(nats.shape)}")
    check(nats.isfinite().all(), f"{what}: not finite")


def estimated(case: Case) -> None:
    """The bound from a few of its gaps: with all of them it has as many as the full bound."""
    for terms in (1, 3):
        bound = elbo_estimate(denoise(case), case.kernel, case.x_0, grid(case), terms=terms, generator=generators(case))
        finite(case, bound.total, "the estimate")
        check(len(bound.gaps) == terms, "the wrong number of gaps")


def continuous(case: Case) -> None:
    """The continuous bound: who knows x_0 pays nothing for the diffusion."""
    kernel: Any = case.kernel
    finite(case, continuous_elbo(denoise(case), kernel, case.x_0, generator=generators(case)).total, "the bound")
    knowing = continuous_elbo(lambda x, t: kernel.certain(case.x_0), kernel, case.x_0, generator=generators(case))
    check((knowing.gaps.abs() < 1e-3).all(), "certainty costs")


def weighed(case: Case) -> None:
    """The importance-weighted bound from two paths lies between the smaller and the larger weight."""
    own = generators(case)
    paths = torch.stack(
        [path_weight(denoise(case), case.kernel, case.x_0, grid(case), generator=own) for _ in range(2)]
    )
    bound = importance_weighted(paths)
    finite(case, bound, "the bound")
    check((bound <= paths.amax(0) + 1e-6).all() & (bound >= paths.amin(0) - 1e-6).all(), "not a mean of weights")


def exact(case: Case) -> None:
    """log-likelihood by the flow, on a fixed grid and adaptively, with one fixed probe."""
    kernel: Any = case.kernel
    times, probes = grid(case, 6), rademacher()
    found = [
        log_likelihood(denoise(case), kernel, case.x_0, times, probes=probes, generator=generators(case)).nats
        for _ in range(2)
    ]
    finite(case, found[0], "the likelihood")
    check(torch.equal(found[0], found[1]), "another likelihood from the same seed")
    loose = adaptive_log_likelihood(
        denoise(case),
        kernel,
        case.x_0,
        rtol=0.1,
        atol=0.1,
        first=float(late(case)[0]),
        probes=probes,
        generator=generators(case),
    )
    finite(case, loose.nats, "the adaptive likelihood")


def dequantise(case: Case) -> None:
    """A bound of log P of the data's signs as integers, from the exact likelihood of a continuous state."""
    kernel: Any = case.kernel
    signs = torch.where(case.x_0 > 0, 1.0, -1.0).to(case.x_0)

    def log_prob(x: Tensor) -> Tensor:
        return log_likelihood(
            denoise(case), kernel, x, grid(case), probes=rademacher(), generator=generators(case)
        ).nats

    finite(case, dequantised(log_prob, Uniform(2), signs, samples=2, generator=generators(case)), "the bound")


def far(case: Case) -> None:
    """The prior's mismatch: not negative, one number per example."""
    found = mismatch([(case.kernel, case.x_0)])
    finite(case, found.nats, "the mismatch")
    check((found.nats >= -1e-9).all(), "a negative divergence")


def shortened(case: Case) -> None:
    """The bound of a truncated process with a fitted start."""
    kernel: Any = case.kernel
    start = Energy.fitted(case.x_0, kernel, 0.5)
    bound = elbo(denoise(case), kernel, case.x_0, truncate(grid(case, 6), 0.5), prior=start, generator=generators(case))
    finite(case, bound.total, "the bound")
    check((bound.prior >= -1e-9).all(), "a negative divergence")


def hybrid(case: Case) -> Hybrid:
    """Denoising and bound on one draw."""
    return Hybrid(case.denoiser, case.kernel, grid(case), stop=None)


def importance(case: Case) -> Denoising:
    """The likelihood weighting with times drawn by it."""
    law = LogSnrUniform()
    return Denoising(case.denoiser, case.kernel, law.weight(likelihood), law)


def variational(case: Case) -> None:
    """VDM: network, ends and inner schedule all learn."""
    kernel: Any = case.kernel
    schedule = LearnedSchedule()
    denoiser = GaussianDenoiser(case.denoiser.network, schedule, v)
    objective = VDM(denoiser, Gaussian(schedule, kernel.noise))
    trained(lambda case: objective)(case)
    with torch.enable_grad():
        losses = objective({"x_0": case.x_0, **case.condition}, generators(case))
        gradients = torch.autograd.grad(losses.sum(), list(schedule.parameters()))
    check(all(bool(g.isfinite().all() and (g != 0).any()) for g in gradients), "a schedule that does not learn")


def distilled(case: Case) -> Distillation:
    """Half the steps of the case's own denoiser."""
    kernel: Any = case.kernel
    return Distillation(case.denoiser, case.denoiser, kernel, grid(case))


def consistent(taught: bool) -> Callable[[Case], Consistency]:
    """Consistency distillation or training on four intervals."""

    def objective(case: Case) -> Consistency:
        kernel: Any = case.kernel
        times = torch.cat([late(case)[:-1], late(case)[-2:-1] / 2, torch.zeros(1, dtype=torch.float64)])
        teacher = case.denoiser if taught else None
        return Consistency(case.denoiser, kernel, lambda n: times, lambda step: len(times) - 2, teacher, weight=plain)

    return objective


def reflowed(case: Case) -> None:
    """Pairs by the flow, their straightness, and training on them."""
    kernel: Any = case.kernel
    pairs = couple(denoise(case), kernel, euler, case.x_0, grid(case), generators(case))
    check_state(case, pairs["x_0"])
    x_1 = kernel.combine((float(kernel.schedule(torch.ones((), dtype=torch.float64))[1]), pairs["x_1"]))
    bend = straightness(kernel, x_1, 1.0, euler(denoise(case), kernel, x_1, grid(case)))
    check((bend > -1e-3 * (1 + bend.abs())).all(), "straighter than a line")
    given = replace(case, x_0=pairs["x_0"], condition={**case.condition, "x_1": pairs["x_1"]})
    trained(lambda case: Denoising(case.denoiser, case.kernel, flow_velocity))(given)
