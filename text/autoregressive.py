r"""The autoregressive baseline: the same transformer, causal, trained on the same windows by the same loop.

    log p(x) = sum_i log p(x_i | x_1 ... x_(i-1)),

exact where diffusion has a bound, one network call a token where diffusion takes as many as one likes. A window begins
with the token V, the diffusion model's mask, which stands for "nothing before"; the time that the network is told is 0.

Each figure of a diffusion model is given beside this one's at equal size, data and steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from ..core.distributions import Discrete
from ..core.errors import ArgumentError
from ..core.pipeline import Pipeline
from ..core.randomness import Randomness, example_generators
from .network import Cache, Transformer, TransformerConfig
from .vocabulary import TOKENIZER, AnyVocabulary

__all__ = ["Autoregressive", "AutoregressiveConfig", "AutoregressivePipeline"]


@final
class Autoregressive(nn.Module):
    """A causal network and its chain rule.

    Args:
        network: causal, one logit for each of the V tokens.

    Raises:
        ArgumentError: a network that sees both ways, or that predicts the mask too.
    """

    def __init__(self, network: Transformer):
        super().__init__()
        config = network.config
        if not config.causal or config.num_outputs != config.vocabulary:
            raise ArgumentError("network", config, "a causal one with as many outputs as tokens")
        self.network = network

    def forward(self, batch: Mapping[str, Any], generator: Randomness = None) -> Tensor:
        """Losses (B,) in nats a token; what training minimises.

        Args:
            batch: "x_0", tokens (B, L).
            generator: not needed; every objective takes one.
        """
        x_0 = batch["x_0"]
        return -self.log_prob(x_0) / x_0.shape[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,), of tokens (B, L): exact."""
        return self.log_probs(x).sum(1)

    def log_probs(self, x: Tensor) -> Tensor:
        """log p(x_i | x_1 … x_(i-1)) of every place, (B, L)."""
        first = x.new_full((len(x), 1), self.network.config.vocabulary)
        logits = self.network(torch.cat([first, x[:, :-1]], dim=1), self.time(x))
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none")
        return -losses.view(x.shape)

    @torch.no_grad()
    def sample(
        self,
        count: int,
        length: int,
        temperature: float = 1.0,
        generator: Randomness = None,
        *,
        prompt: Tensor | None = None,
    ) -> Tensor:
        """Draw texts, token by token, with a cache of keys and values.

        Args:
            count: of texts, B.
            length: of each in tokens, the prompt included.
            temperature: divides the logits; 0 takes the likeliest token.
            generator: one, or a list with one per text.
            prompt: tokens (P,) or (B, P) that every text begins with, P < length.

        Returns:
            (B, length), long.

        Raises:
            ArgumentError: a size, a temperature or a prompt that cannot be used.
        """
        device = next(self.parameters()).device
        if count < 1:
            raise ArgumentError("count", count, "a positive number of texts")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ArgumentError("temperature", temperature, "a number >= 0")
        start = torch.full((count, 1), self.network.config.vocabulary, device=device)
        if prompt is not None:
            if prompt.dtype != torch.long or prompt.ndim not in (1, 2) or (prompt.ndim == 2 and len(prompt) != count):
                raise ArgumentError("prompt", prompt, f"tokens (P,) or ({count}, P), long")
            start = torch.cat([start, prompt.to(device).expand(count, -1)], dim=1)
        if length < start.shape[1]:
            raise ArgumentError("length", length, f"more than the {start.shape[1] - 1} tokens of the prompt")
        x, cache, time = start, Cache(length), self.time(start)
        while x.shape[1] <= length:
            logits = self.network(x[:, cache.used :], time, cache)[:, -1:].to(torch.float64)
            if temperature == 0:
                new = logits.argmax(-1)
            else:
                new = Discrete((logits / temperature).log_softmax(-1)).sample(generator)
            x = torch.cat([x, new], dim=1)
        return x[:, 1:]

    def time(self, x: Tensor) -> Tensor:
        """The number that the network is told, (B,): it is not used, and always 0."""
        return torch.zeros(len(x), dtype=self.network.embedding.weight.dtype, device=x.device)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig:
    """What an `AutoregressivePipeline` is made of."""

    vocabulary: AnyVocabulary
    """How text becomes tokens."""
    network: TransformerConfig
    """Sizes; causal."""
    data: str = ""
    """What it was trained on."""


@final
class AutoregressivePipeline(Pipeline[AutoregressiveConfig]):
    """A trained baseline: generates, continues and scores texts."""

    config_class: ClassVar[type[Any]] = AutoregressiveConfig
    beside: ClassVar[tuple[str, ...]] = (TOKENIZER,)
    model: Autoregressive

    @classmethod
    def build(cls, config: AutoregressiveConfig) -> Autoregressive:
        if config.network.vocabulary != config.vocabulary.size:
            raise ArgumentError(
                "network.vocabulary", config.network.vocabulary, f"{config.vocabulary.size}, the vocabulary's size"
            )
        return Autoregressive(config.network.build())

    def __call__(
        self,
        prompt: str = "",
        *,
        count: int = 1,
        length: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Texts that begin with `prompt`.

        Args:
            prompt: brought into the vocabulary's form first.
            count: of texts; text i depends on (seed, i) alone.
            length: of each in tokens, the prompt included; the network's training length by default.
            temperature, seed: of the draws.
        """
        vocabulary = self.config.vocabulary
        tokens = torch.tensor(vocabulary.encode(vocabulary.normalise(prompt)), dtype=torch.long)
        generators = example_generators(seed, 0, range(count))
        length = self.config.network.length if length is None else length
        drawn = self.model.sample(count, length, temperature, generators, prompt=tokens)
        return [vocabulary.decode(row) for row in drawn.tolist()]

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """-log p in nats of each text, brought into the vocabulary's form; texts must not be empty."""
        vocabulary, device = self.config.vocabulary, next(self.model.parameters()).device
        rows = [vocabulary.encode(vocabulary.normalise(text)) for text in texts]
        for place, row in enumerate(rows):
            if not row:
                raise ArgumentError(f"texts[{place}]", texts[place], "a text of one token or more")
        return [-float(self.model.log_prob(torch.tensor([row], device=device))) for row in rows]

    def write_beside(self, folder: Path) -> None:
        self.config.vocabulary.save(folder)

    def read_beside(self, folder: Path) -> None:
        self.config = replace(self.config, vocabulary=self.config.vocabulary.at(folder))
