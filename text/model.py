"""What a diffusion model of text is made of: its configuration, its weights, and the kernel that both describe.

The weights are those of the denoiser and, beside them, the statistics of the training text that some kernels are made
of: how often each token occurs (marginal), or where each lies among the others (neighbours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from ..core.categorical import Tokens, absorbing, marginal, uniform
from ..core.config import Range
from ..core.denoisers import TokenDenoiser
from ..core.errors import ArgumentError, ConfigError
from ..core.methods import READINGS, SCHEDULES
from ..core.names import ReadingName, ScheduleName
from ..core.schedules import Schedule
from .kernel import band, gaussian_walk, nearest_neighbours
from .network import TransformerConfig
from .vocabulary import AnyVocabulary

__all__ = ["DEFAULT_NEAR", "STATISTICS", "ChainName", "TextConfig", "TextModel", "kernel_of", "neighbourhood"]

ChainName: TypeAlias = Literal["absorbing", "uniform", "marginal", "band", "gaussian", "neighbours"]

FEATURES = 16
"""Numbers that place a token among the others."""

DEFAULT_NEAR: Mapping[str, int] = {"band": 3, "gaussian": 3, "neighbours": 8}
"""How far tokens move by kernel: places at most, the standard deviation in places, neighbours."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """All that is needed to build the model, as `config.json` holds it."""

    vocabulary: AnyVocabulary
    """What the tokens mean."""
    network: TransformerConfig
    """Sizes of the network; its `length` is the window that it was trained on."""
    kernel: ChainName = "absorbing"
    """How noise changes tokens."""
    schedule: ScheduleName = "rectified-flow"
    """Of training; sampling may use another."""
    reading: ReadingName = "logits"
    """What the network's output means."""
    near: Annotated[int, Range(1, 100_000)] | None = None
    """How far tokens move, see `DEFAULT_NEAR`; None for the default, and for kernels that do not ask."""

    def __post_init__(self):
        if self.network.vocabulary != self.vocabulary.size:
            raise ConfigError("network.vocabulary", self.network.vocabulary, f"{self.vocabulary.size}, the vocabulary")
        if self.network.num_outputs != self.network.vocabulary:
            raise ConfigError("network.outputs", self.network.outputs, f"{self.network.vocabulary}: no mask among data")
        if self.network.causal:
            raise ConfigError("network.causal", True, "False: denoisers see both ways")
        if not runs_on(self.kernel, SCHEDULES[self.schedule]()):
            why = "alpha_1 = 0: every token ends masked" if self.kernel == "absorbing" else "an alpha that falls"
            able = ", ".join(name for name, make in SCHEDULES.items() if runs_on(self.kernel, make()))
            raise ConfigError("schedule", self.schedule, f"one with {why} (kernel {self.kernel}): {able}")
        if self.near is not None and self.kernel not in DEFAULT_NEAR:
            raise ConfigError("near", self.near, f"None: only the kernels {', '.join(DEFAULT_NEAR)} move tokens nearby")
        if self.near is not None and self.near >= self.vocabulary.size:
            raise ConfigError("near", self.near, f"less than the {self.vocabulary.size} tokens")


STATISTICS: Mapping[str, Mapping[str, Callable[[int], Tensor]]] = {
    "marginal": {"counts": lambda V: torch.ones(V, dtype=torch.float64)},
    "neighbours": {"embeddings": lambda V: torch.zeros(V, FEATURES, dtype=torch.float64)},
}
"""Kernel -> name of a statistic -> V -> a tensor of its shape."""


@final
class TextModel(nn.Module):
    """A denoiser of text and the statistics that its kernel is made of.

    Args:
        config: of the model.
        statistics: by name, as `STATISTICS` says for the kernel; of a model whose weights are read they come with them.
    """

    def __init__(self, config: TextConfig, statistics: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.denoiser = TokenDenoiser(
            config.network.build(), SCHEDULES[config.schedule](), READINGS[config.reading]
        )  # fmt: skip
        wanted = STATISTICS.get(config.kernel, {})
        if statistics is not None and statistics.keys() != wanted.keys():
            raise ArgumentError("statistics", sorted(statistics), f"exactly {sorted(wanted)} for {config.kernel}")
        for name, make in wanted.items():
            blank = make(config.vocabulary.size)
            value = blank if statistics is None else statistics[name].to(blank)
            if value.shape != blank.shape:
                raise ArgumentError(name, value, f"shape {tuple(blank.shape)}")
            self.register_buffer(name, value)


CHAINS: dict[ChainName, Callable[[TextConfig, TextModel], Tokens]] = {
    "absorbing": lambda c, m: absorbing(m.denoiser.schedule, c.vocabulary.size + 1, c.vocabulary.size),
    "uniform": lambda c, m: uniform(m.denoiser.schedule, c.vocabulary.size),
    "marginal": lambda c, m: marginal(m.denoiser.schedule, m.get_buffer("counts").cpu()),
    "band": lambda c, m: band(m.denoiser.schedule, c.vocabulary.size, near(c)),
    "gaussian": lambda c, m: gaussian_walk(m.denoiser.schedule, c.vocabulary.size, near(c)),
    "neighbours": lambda c, m: nearest_neighbours(m.denoiser.schedule, m.get_buffer("embeddings").cpu(), near(c)),
}


def kernel_of(config: TextConfig, model: TextModel) -> Tokens:
    """The forward process of a model, on the model's device."""
    return CHAINS[config.kernel](config, model).to(next(model.parameters()).device)


def runs_on(kernel: ChainName, schedule: Schedule) -> bool:
    """Whether a schedule's alpha, the survival of a token, does for a kernel: it has to fall at all times, and to 0
    where the prior is a point mass, since what survived could not have come from there."""
    alpha = schedule(torch.linspace(0, 1, 33, dtype=torch.float64))[0]
    return bool((alpha.diff() < 0).all()) and (kernel != "absorbing" or float(alpha[-1]) == 0)


def near(config: TextConfig) -> int:
    """How far tokens move, at most as far as there are others."""
    return config.near if config.near is not None else min(DEFAULT_NEAR[config.kernel], config.vocabulary.size - 1)


def neighbourhood(tokens: Tensor, vocabulary: int) -> Tensor:
    """A place for every token, by the company it keeps: tokens that stand between the same ones are near each other.

    The square roots of the shares of the tokens before and after each token, in their principal directions: distances
    are Hellinger's, and those directions lose least of them (Lebret and Collobert 2014, "Word Embeddings through
    Hellinger PCA"). For large vocabularies only the 250 most frequent ones count as company.

    Args:
        tokens: (N,) integers 0 ... vocabulary - 1.
        vocabulary: V.

    Returns:
        (V, 16) float64; tokens that do not occur lie at the origin.
    """
    tokens = tokens.long()
    counts = torch.bincount(tokens, minlength=vocabulary)
    most = min(vocabulary, 250)
    place = torch.full((vocabulary,), most)
    place[counts.argsort(descending=True, stable=True)[:most]] = torch.arange(most)
    pairs: list[Tensor] = []
    for here, there in ((tokens[1:], tokens[:-1]), (tokens[:-1], tokens[1:])):
        index = here * (most + 1) + place[there]
        table = torch.bincount(index, minlength=vocabulary * (most + 1)).view(vocabulary, most + 1).double()
        pairs.append((table / table.sum(1, keepdim=True).clamp_min(1)).sqrt())
    rows = torch.cat(pairs, 1)
    seen = counts > 0
    rows[seen] -= rows[seen].mean(0)
    rank = min(FEATURES, *rows.shape)
    _, _, directions = torch.linalg.svd(rows.T @ rows)
    found = torch.zeros(vocabulary, FEATURES, dtype=torch.float64)
    found[:, :rank] = rows @ directions[:rank].T
    return found
