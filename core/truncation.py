r"""Truncated diffusion: start at t < 1 from a law fitted to the data there (Zheng et al. 2023; Lyu et al. 2022).

Noise beyond t buys nothing if x_t can be drawn directly. The grid starts at t (`truncate`), samplers take x_t instead
of x_1, and in the bound KL(q(x_t | x_0) || p(x_t)) replaces the kernel's prior term: `elbo(..., prior=start)`.

Three starts have exactly the moments of q(x_t), which follow from those of x_0,

    E x_t = alpha_t E x_0,      Cov x_t = alpha_t^2 Cov x_0 + sigma_t^2 Sigma,

the closest normal laws of their kind: `Covariance` (dense states, all of it), `Variances` (its diagonal, diagonal noise
laws), `Energy` (one number per degree of freedom, any noise law: ragged clouds too). Anything else that draws x_t, such
as another generative model, starts samplers as it is; with a log-density it is a `Density` for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .distributions import Normal, Scaled
from .errors import ArgumentError
from .gaussian import Gaussian
from .grids import check_times
from .noise import Noise
from .randomness import Randomness, randn

__all__ = ["Covariance", "Density", "Energy", "Variances", "truncate"]


def truncate(times: Tensor, t: float) -> Tensor:
    """The grid from t on: t, then every later time of the grid (n + 1,) or (n + 1, B) of one common start."""
    times = check_times(times)
    if not 0 < t <= 1:
        raise ArgumentError("t", t, "a time in (0, 1]")
    kept = times < t
    rows = kept if times.ndim == 1 else kept.all(1)
    if times.ndim > 1 and bool((rows != kept.any(1)).any()):
        raise ArgumentError("t", t, "a time that cuts every column of the grid in the same row")
    return check_times(torch.cat([torch.full_like(times[:1], t), times[rows]]))


class Covariance:
    """N(alpha m, alpha^2 C + sigma^2 Sigma) on dense states with a diagonal noise law, one for all examples.

    Args:
        mean: m, the mean of x_0, in the shape of one example.
        covariance: C of the flattened x_0, (D, D); ignored where the noise law has deviation 0.
        kernel: Gaussian.
        t: where the process starts.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, kernel: Gaussian, t: float):
        alpha_t, sigma_t = numbers(kernel, t)
        if covariance.shape != (mean.numel(), mean.numel()):
            raise ArgumentError("covariance", covariance, f"({mean.numel()}, {mean.numel()}), of the flattened state")
        deviation = kernel.noise.deviation(mean.unsqueeze(0)).double().flatten()
        self.there = deviation > 0
        self.energies = deviation[self.there] ** 2
        self.shape, self.mean = mean.shape, alpha_t * mean.double()
        inner = covariance.double()[self.there][:, self.there]
        self.factor = torch.linalg.cholesky(alpha_t**2 * inner + sigma_t**2 * torch.diag(self.energies))
        self.log_det = 2 * self.factor.diagonal().log().sum()
        self.trace = (torch.linalg.inv(self.factor) ** 2 * self.energies).sum()

    @classmethod
    def fitted(cls, x_0: Tensor, kernel: Gaussian, t: float) -> Covariance:
        """From the moments of data (N, ...)."""
        rows = check_data(x_0).double().flatten(1)
        centred = rows - rows.mean(0)
        return cls(rows.mean(0).reshape(x_0.shape[1:]), centred.T @ centred / len(rows), kernel, t)

    def sample(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """x_t for as many examples as `like` has, in its type."""
        z = randn((len(like), len(self.factor)), generator, dtype=torch.float64)
        x = self.mean.flatten().repeat(len(like), 1)
        x[:, self.there] += z @ self.factor.T
        return torch.where(self.there, x, 0).reshape(len(like), *self.shape).to(like)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density on the support of the noise law, in nats, (B,)."""
        return -(self._squares(x) + self.log_det + len(self.factor) * math.log(2 * math.pi)).to(x) / 2

    def kl_from(self, law: Normal, generator: Randomness = None) -> Tensor:
        """KL(law || self) for a marginal of the kernel, in nats, (B,)."""
        scale = torch.as_tensor(law.scale, dtype=torch.float64)
        own = self.log_det - self.energies.log().sum() - len(self.factor) * (1 + 2 * scale.log())
        return ((scale**2 * self.trace + own).to(law.mean) + self._squares(law.mean).to(law.mean)) / 2

    def _squares(self, x: Tensor) -> Tensor:
        """Mahalanobis squares, (B,), on the CPU in float64."""
        error = (x.to("cpu", torch.float64) - self.mean).flatten(1)[:, self.there]
        return torch.linalg.solve_triangular(self.factor, error.T, upper=False).square().sum(0)


class Variances:
    """Independent normals with the moments of q(x_t), element by element; diagonal noise laws.

    Args:
        mean: of x_0, in the shape of one example (or of the batch at hand).
        variance: of x_0, likewise.
        kernel: Gaussian, bound to the batch.
        t: where the process starts.
    """

    def __init__(self, mean: Tensor, variance: Tensor, kernel: Gaussian, t: float):
        self.alpha_t, self.sigma_t = numbers(kernel, t)
        self.mean, self.variance, self.noise = mean, variance, kernel.noise

    @classmethod
    def fitted(cls, x_0: Tensor, kernel: Gaussian, t: float) -> Variances:
        """From the moments of data (N, ...)."""
        return cls(check_data(x_0).mean(0), x_0.var(0, unbiased=False), kernel, t)

    def sample(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """x_t for as many examples as `like` has."""
        return self._law(like).sample(generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density in nats, (B,)."""
        return self._law(x).log_prob(x)

    def kl_from(self, law: Normal, generator: Randomness = None) -> Tensor:
        """KL(law || self) for a marginal of the kernel, in nats, (B,)."""
        return law.scaled().kl(self._law(law.mean))

    def _law(self, like: Tensor) -> Scaled:
        deviation = self.noise.deviation(like)
        variance = self.alpha_t**2 * self.variance.to(like) + (self.sigma_t * deviation) ** 2
        mean = torch.where(deviation > 0, self.alpha_t * self.mean.to(like), 0)
        return Scaled(mean, torch.where(deviation > 0, variance, 0).sqrt(), self.noise)


class Energy:
    """N(0, (alpha^2 e + sigma^2) Sigma), e = E |x_0|^2/d in the metric of the noise law; any law, ragged states too.

    Args:
        energy: e.
        noise: the law, bound to the batch.
        kernel: Gaussian, bound to the batch.
        t: where the process starts.
    """

    def __init__(self, energy: float, kernel: Gaussian, t: float):
        if not energy >= 0:
            raise ArgumentError("energy", energy, "a number >= 0")
        alpha_t, sigma_t = numbers(kernel, t)
        self.scale, self.noise = math.sqrt(alpha_t**2 * energy + sigma_t**2), kernel.noise

    @classmethod
    def fitted(cls, x_0: Tensor, kernel: Gaussian, t: float) -> Energy:
        """From the second moment of a batch."""
        return cls(float(kernel.noise.squares(x_0).sum() / kernel.dims(x_0).sum()), kernel, t)

    def sample(self, like: Tensor, generator: Randomness = None) -> Tensor:
        """x_t for as many examples as `like` has."""
        return self._law(like, self.noise).sample(generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density on the law's support in nats, (B,)."""
        return self._law(x, self.noise).log_prob(x)

    def kl_from(self, law: Normal, generator: Randomness = None) -> Tensor:
        """KL(law || self) for a marginal of the kernel, in nats, (B,)."""
        return law.kl(self._law(law.mean, law.noise))

    def _law(self, like: Tensor, noise: Noise) -> Normal:
        return Normal(torch.zeros_like(like), self.scale, noise)


class Density:
    """Any law of x_t with a log-density, a normalising flow for instance; its KL is estimated from one draw.

    Args:
        log_prob: x_t -> nats, (B,).
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor]):
        self.log_prob = log_prob

    def kl_from(self, law: Normal, generator: Randomness = None) -> Tensor:
        """An unbiased estimate of KL(law || self), (B,)."""
        x_t = law.sample(generator)
        return law.log_prob(x_t) - self.log_prob(x_t)


def numbers(kernel: Gaussian, t: float) -> tuple[float, float]:
    """(alpha_t, sigma_t), or an ArgumentError unless 0 < t <= 1."""
    if not 0 < t <= 1:
        raise ArgumentError("t", t, "a time in (0, 1]")
    alpha_t, sigma_t = kernel.schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha_t), float(sigma_t)


def check_data(x_0: Tensor) -> Tensor:
    """The data, or an ArgumentError unless they are a dense floating batch."""
    if not isinstance(x_0, Tensor) or not x_0.is_floating_point() or x_0.ndim < 2 or len(x_0) == 0:
        raise ArgumentError("x_0", x_0, "a floating tensor (N, ...)")
    return x_0
