"""A D3PM as public PyTorch code has it, written anew: the peer of `text_bits`.

The absorbing chain of T = 1000 steps with beta_t = 1/(T - t + 1) as a stack of K x K matrices, mask included in the
network's outputs; the network read by the product rule, its probabilities carried through the chain and multiplied with
the step's likelihood; 1e-6 added to probabilities before every logarithm; corruption by the Gumbel-max trick in
float32; the loss cross-entropy + 0.001 KL, one uniform time per example. (Austin et al. 2021, as the small public
re-implementations train it.)

`own_nats` is the bound as such code computes it: from the smoothed logarithms, the term of t = 1 a cross-entropy, no
prior. `denoiser` hands the same network to our bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polydiff.core.denoisers import TokenDenoiser, context
from polydiff.core.randomness import Randomness, rand, randint
from polydiff.core.schedules import RectifiedFlow

__all__ = ["PublicD3PM"]

EPSILON = 1e-6


class PublicD3PM(nn.Module):
    """See the module's docstring.

    Args:
        network: `network(x, c)` -> logits of all `symbols`; c = 1000 t / T.
        symbols: K, the mask being the last.
    """

    def __init__(self, network: nn.Module, symbols: int, T: int = 1000, bound_weight: float = 1e-3):
        super().__init__()
        self.network, self.T, self.K, self.bound_weight = network, T, symbols, bound_weight
        steps, whole = [], [torch.eye(symbols, dtype=torch.float64)]
        for t in range(1, T + 1):
            beta = 1 / (T - t + 1)
            step = (1 - beta) * torch.eye(symbols, dtype=torch.float64)
            step[:, -1] += beta
            steps.append(step)
            whole.append(whole[-1] @ step)
        self.register_buffer("step", torch.stack(steps).float(), persistent=False)
        self.register_buffer("whole", torch.stack(whole).float(), persistent=False)
        self.step: Tensor
        self.whole: Tensor

    @property
    def denoiser(self) -> TokenDenoiser:
        """The same network under the same product rule, for the exact bound."""
        return TokenDenoiser(self.network, RectifiedFlow(), context)

    def corrupt(self, x_0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x_t by Gumbel-max in float32."""
        law = self.whole[t][:, None].expand(-1, x_0.shape[1], -1, -1)
        law = law.gather(2, x_0[..., None, None].expand(-1, -1, 1, self.K)).squeeze(2)
        u = rand(law.shape, generator).clamp(EPSILON, 1.0)
        return ((law + EPSILON).log() - (-u.log()).log()).argmax(-1)

    def look(self, x_0: Tensor, t: Tensor, generator: Randomness) -> tuple[Tensor, Tensor]:
        """(predicted logits, KL of the step in nats by token), (B, L, K) and (B, L); t in 1 ... T."""
        x_t = self.corrupt(x_0, t, generator)
        predicted = self.network(x_t, t.float() * (1000 / self.T)).float()
        likelihood = self.step[t - 1].transpose(1, 2)  # column of x_t: from every x_{t-1}
        likelihood = torch.stack([table[row] for table, row in zip(likelihood, x_t, strict=True)])
        likelihood = (likelihood + EPSILON).log()
        before = self.whole[t - 1]
        true = F.one_hot(x_0, self.K).float() @ before
        guess = predicted.softmax(-1) @ before
        first = (t == 1)[:, None, None]
        true_logits = torch.where(first, (F.one_hot(x_0, self.K) + EPSILON).log(), likelihood + (true + EPSILON).log())
        logits = torch.where(first, predicted, likelihood + (guess + EPSILON).log())
        true_law = true_logits.log_softmax(-1)
        return predicted, (true_law.exp() * (true_law - logits.log_softmax(-1))).sum(-1)

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Per-example losses (B,) in nats per token."""
        x_0 = batch["x_0"]
        t = 1 + randint(self.T, (len(x_0),), generator)
        predicted, bound = self.look(x_0, t, generator)
        losses = F.cross_entropy(predicted.transpose(1, 2), x_0, reduction="none")
        return losses.mean(1) + self.bound_weight * bound.mean(1)

    @torch.no_grad()
    def own_nats(self, x_0: Tensor, terms: int, generator: Randomness = None) -> Tensor:
        """The bound as the recipe has it, from `terms` of its T terms at even distances, in nats, (B,)."""
        start = rand((len(x_0),), generator, dtype=torch.float64)
        total = torch.zeros(len(x_0), dtype=torch.float64)
        for k in range(terms):
            t = 1 + ((start + k) / terms * self.T).long().clamp(max=self.T - 1)
            total += self.look(x_0, t, generator)[1].double().sum(1) * (self.T / terms)
        return total
