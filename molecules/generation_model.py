r"""What a model of whole molecules is made of: positions and types of atoms, diffused side by side.

A molecule of N atoms is a pair (x, a): centred positions x (N, 3), and a type a_i for every atom. The forward process
is the product of two (`core.product`), which share the time and nothing else,

    x_t = alpha_t x_0 + sigma_t x_1,  x_1 ~ N(0, P) on the 3 (N - 1) centred dimensions, x in units of `scale`
    a_t   keeps a type with probability alpha'_t, else it is masked (absorbing), or drawn anew (uniform, marginal).

Types are tokens with a law of their own, not numbers with Gaussian noise as in EDM (Hoogeboom et al. 2022), whose bound
needs a rounding step; discrete types beside continuous positions are the choice of MiDi (Vignac et al. 2023). N comes
from the histogram of the training set. Batches are ragged: rows of all molecules one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn

from ..core.categorical import Tokens, absorbing, marginal, uniform
from ..core.clouds import Centred
from ..core.config import Range
from ..core.denoisers import GaussianDenoiser, TokenDenoiser, time
from ..core.errors import ArgumentError, ConfigError
from ..core.gaussian import Gaussian
from ..core.methods import PARAMETRISATIONS, READINGS, SCHEDULES
from ..core.names import ParametrisationName, ReadingName, ScheduleName
from ..core.parts import ProductDenoiser
from ..core.product import Product
from ..core.schedules import Schedule
from .generation_network import GeneratorConfig
from .generation_options import TypeNoiseName
from .stability import VALENCIES

__all__ = ["LARGEST", "MoleculeConfig", "MoleculeModel", "checked_sizes", "kernel_of", "structure_of"]

LARGEST = 1024
"""Atoms of a molecule."""


@dataclass(frozen=True, kw_only=True)
class MoleculeConfig:
    """All that is needed to build the model, as `config.json` holds it."""

    elements: tuple[str, ...]
    """Symbols; a type is a place among them."""
    counts: tuple[Annotated[int, Range(0, 2**62)], ...]
    """How often each element occurs in the training set."""
    sizes: tuple[Annotated[int, Range(0, 2**62)], ...]
    """How many molecules of the training set have 0, 1, 2, ... atoms."""
    network: GeneratorConfig
    """Sizes of the network; its `scale` is the Angstrom in one unit of the positions."""
    noise: TypeNoiseName = "absorbing"
    """How noise changes types."""
    schedule: ScheduleName = "cosine"
    """Of the positions."""
    type_schedule: ScheduleName = "rectified-flow"
    """Of the types: rectified-flow is a survival of 1 - t."""
    parametrisation: ParametrisationName = "v"
    """How the vectors are read."""
    reading: ReadingName = "logits"
    """How the logits are read."""

    def __post_init__(self):
        unknown = [element for element in self.elements if element not in VALENCIES]
        if unknown or not self.elements or len(set(self.elements)) != len(self.elements):
            raise ConfigError("elements", self.elements, f"different symbols among {', '.join(VALENCIES)}")
        if len(self.counts) != len(self.elements) or sum(self.counts) < 1:
            raise ConfigError("counts", self.counts, f"{len(self.elements)} counts, not all 0")
        if not 2 <= len(self.sizes) <= LARGEST + 1 or self.sizes[0] or not any(self.sizes):
            raise ConfigError("sizes", self.sizes, f"counts of molecules of 0 (none), 1, ..., at most {LARGEST} atoms")
        if self.network.types != len(self.elements):
            raise ConfigError("network.types", self.network.types, f"{len(self.elements)}, the elements")
        ends = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
        alpha = SCHEDULES[self.type_schedule]()(ends)[0]
        if not bool((alpha.diff() < 0).all()) or (float(alpha[-1]) != 0 and self.noise != "uniform"):
            raise ConfigError("type_schedule", self.type_schedule, f"one whose alpha falls to 0 (noise {self.noise})")


CHAINS: Mapping[TypeNoiseName, Callable[[Schedule, MoleculeConfig], Tokens]] = {
    "absorbing": lambda schedule, c: absorbing(schedule, len(c.elements) + 1, len(c.elements)),
    "uniform": lambda schedule, c: uniform(schedule, len(c.elements)),
    "marginal": lambda schedule, c: marginal(schedule, torch.tensor(c.counts)),
}


@final
class MoleculeModel(nn.Module):
    """The denoiser of a configuration, untrained: one network, read twice."""

    def __init__(self, config: MoleculeConfig):
        super().__init__()
        # The network is told t itself, which the two schedules share.
        of_positions = GaussianDenoiser(
            nn.Identity(), SCHEDULES[config.schedule](), PARAMETRISATIONS[config.parametrisation], time
        )
        of_types = TokenDenoiser(nn.Identity(), SCHEDULES[config.type_schedule](), READINGS[config.reading])
        self.denoiser = ProductDenoiser(config.network.build(), [of_positions, of_types])


def kernel_of(config: MoleculeConfig, model: MoleculeModel) -> Product:
    """The forward process of a model, on its device; bind it to a batch by `given(**structure_of(sizes))`."""
    of_positions, of_types = (reading.schedule for reading in model.denoiser.readings)
    assert isinstance(of_positions, Schedule) and isinstance(of_types, Schedule)
    kernel = Product([Gaussian(of_positions, Centred()), CHAINS[config.noise](of_types, config)])
    return kernel.to(next(model.parameters()).device)


def structure_of(sizes: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The structure of a batch of molecules of so many atoms: for `kernel.given`."""
    sizes = torch.as_tensor(sizes, dtype=torch.long)
    index = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
    rows = {"index": index, "num_graphs": len(sizes)}
    return {"part_0": rows, "part_1": rows}


def checked_sizes(name: str, sizes: Sequence[int]) -> list[int]:
    """The sizes as a list, or an ArgumentError unless all are whole numbers from 1 to `LARGEST`."""
    found = list(sizes)
    if any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= LARGEST for n in found):
        raise ArgumentError(name, found, f"whole numbers of atoms from 1 to {LARGEST}")
    return found
