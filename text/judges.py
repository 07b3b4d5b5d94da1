"""Judges of samples: causal language models, and the generative perplexity of text under them.

e to the mean negative log-probability of a token under a judge, the mean being over all tokens of all texts together
(others average each text's own perplexity, which is larger). Dull text pleases a judge (Zheng et al. 2024,
arXiv:2409.02908), so the figure is never printed without the entropy of the same samples, nor without the judge's name
and number type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, Self, final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ArgumentError, DataError

__all__ = ["Causal", "Judge", "perplexity"]


class Judge(Protocol):
    """A causal model that scores text."""

    @property
    def name(self) -> str:
        """Which model, for instance "gpt2"."""
        ...

    @property
    def dtype(self) -> str:
        """The number type it computes in, for instance "float32"."""
        ...

    def nats(self, texts: Sequence[str], /) -> tuple[Tensor, Tensor]:
        """-log p of each text, float64 (N,), and the number of tokens that it is the sum over, (N,)."""
        ...


def perplexity(texts: Sequence[str], judge: Judge) -> float:
    """e^(mean negative log-probability of a token), over all tokens of all texts; see the module's docstring."""
    nats, tokens = judge.nats(texts)
    if int(tokens.sum()) < 1:
        raise ArgumentError("texts", len(texts), "texts with tokens to score")
    return math.exp(float(nats.double().sum() / tokens.sum()))


@final
class Causal:
    """A causal language model of transformers as a judge.

    The tokenizer's beginning-of-text token goes before every text, so that all of the text's own tokens are scored;
    where there is none, the first token is not. A text beyond the model's context is an error: none is cut.

    Args:
        name: to be printed beside figures. model: such as `AutoModelForCausalLM` gives. tokenizer: its own.
        batch_size: texts of equal numbers of tokens in the model at once.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, batch_size: int = 8):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.name, self.batch_size = name, batch_size

    @classmethod
    def from_pretrained(cls, name: str, device: torch.device | str = "cpu") -> Self:
        """A model by name, from a folder or a Hugging Face repository, in float32.

        Raises:
            DataError: it cannot be read or reached.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: no causal language model to judge with ({error})") from error
        return cls(name, model.to(device), tokenizer)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @torch.no_grad()
    def nats(self, texts: Sequence[str], /) -> tuple[Tensor, Tensor]:
        start = self.tokenizer.bos_token_id
        first = [] if start is None else [start]
        encoded = [first + self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max((len(ids) for ids in encoded), default=0)
        if limit is not None and longest > limit:
            raise DataError(f"{self.name}: a text of {longest} tokens is beyond its context of {limit}")
        nats = torch.zeros(len(texts), dtype=torch.float64)
        counts = torch.tensor([max(0, len(ids) - 1) for ids in encoded])
        # Texts of one length together: padding would have to be kept out of the attention.
        for length in sorted({len(ids) for ids in encoded if len(ids) > 1}):
            alike = [i for i, ids in enumerate(encoded) if len(ids) == length]
            for part in range(0, len(alike), self.batch_size):
                chosen = alike[part : part + self.batch_size]
                ids = torch.tensor([encoded[i] for i in chosen], device=self.model.device)
                logits = self.model(input_ids=ids).logits[:, :-1].double()
                losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
                nats[chosen] = losses.sum(1).cpu()
        return nats, counts
