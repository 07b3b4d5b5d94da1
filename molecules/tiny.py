"""The smallest real case of molecules: displacements from drafts of three of them, and a network of few weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.case import Case
from .data import Conformers
from .drafts import Problem, parse
from .graphs import assemble
from .model import ConformerConfig, build, kernel_of
from .network import EquivariantConfig
from .preparing import Entry, Options, prepare

__all__ = ["case"]

SMILES = ("CO", "C[C@H](F)O", "N/C=C/O")
"""Small, ragged, with a centre and a double bond whose configuration is asked for."""


def case(smiles: Sequence[str] = SMILES) -> Case:
    """One pair of draft and MMFF94 minimum of each molecule, centred noise; always the same weights."""
    entries = [Entry(one, mol, relaxed=True) for one in smiles if not isinstance(mol := parse(one), Problem)]
    table = prepare(entries, len(entries), "tiny", Options(drafts=1, attempts=1), None)
    config = ConformerConfig(network=EquivariantConfig(width=8, depth=1, radial=4, scale=0.25))
    data = Conformers(table, drafts=1, name="tiny", start=config.start, scale=config.scale)
    batch = data.batch(range(len(data)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = build(config)
        for parameter in denoiser.parameters():  # last layers start at zero, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.1)
    kernel = kernel_of(config, denoiser.schedule).given(**batch["structure"])

    def choose(condition: Mapping[str, Any], index: Tensor) -> Mapping[str, Any]:
        chosen = assemble([data.graph(k) for k in index.tolist()])
        return {
            "graph": chosen,
            "level": condition["level"][index],
            "draft": kernel.take(condition["draft"], index),
        }

    condition = {name: batch[name] for name in ("graph", "level", "draft")}
    return Case("molecules", kernel, denoiser.eval(), batch["x_0"], condition, choose)
