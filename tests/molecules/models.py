"""Small models of conformers whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polydiff.molecules.model import ConformerConfig, Level
from polydiff.molecules.network import EquivariantConfig
from polydiff.molecules.pipeline import ConformerPipeline

__all__ = ["Said", "saying", "still", "untrained"]

ELEMENTS = ("H", "C", "N", "O", "F", "S", "Cl", "Br")


def config(**changes: Any) -> ConformerConfig:
    """B3LYP for H, C, N, O; MMFF94 for more; in units of 0.25 Å."""
    levels = (Level("B3LYP", ELEMENTS[:4]), Level("MMFF94", ELEMENTS))
    scale = changes.pop("scale", 0.25)
    network = EquivariantConfig(width=8, depth=1, scale=scale)
    return ConformerConfig(
        **({"network": network, "levels": levels, "parametrisation": "x0", "scale": scale} | changes)
    )


def untrained(**changes: Any) -> ConformerPipeline:
    """With weights that do something: no output is 0."""
    made = config(**changes)
    pipeline = ConformerPipeline(made, ConformerPipeline.build(made))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    pipeline.model.eval()
    return pipeline


class Said(nn.Module):
    """A network that answers by a function of its arguments."""

    def __init__(self, answer: Callable[..., Tensor], dtype: torch.dtype):
        super().__init__()
        self.answer = answer
        self.unused = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor, c: Tensor, graph: Any, level: Tensor, draft: Tensor) -> Tensor:
        return self.answer(x, c, graph, level, draft)


def saying(answer: Callable[..., Tensor], dtype: torch.dtype = torch.float32, **changes: Any) -> ConformerPipeline:
    """A model whose network is a function (x, c, graph, level, draft) -> x_0."""
    made = config(**changes)
    model = ConformerPipeline.build(made)
    model.network = Said(answer, dtype)
    return ConformerPipeline(made, model.eval())


def still(**changes: Any) -> ConformerPipeline:
    """Says that nothing moves: conformers are the drafts."""
    return saying(lambda x, c, graph, level, draft: torch.zeros_like(x), **changes)
