r"""CSDI's network (Tashiro et al. 2021, arXiv:2107.03502), the same function as the published one, computed our way.

Every cell (l, k) of a window has C channels h, started as relu(W [observed, x_t]) of its value if it is given and of
its noisy state if not. A layer adds the step's embedding, attends over time for every feature and over features for
every time (one post-norm transformer layer each, Vaswani et al. 2017), and ends in a gate:

    y = M T_feature(T_time(h + e(c))) + A side,      side = [time embedding of l, feature embedding of k, known]
    [r, s] = O (sigmoid(y_1) tanh(y_2)),             h <- (h + r) / sqrt 2,        output = F(sum of s / sqrt layers)

What differs from the published code is only the work: A side is linear in three parts, of which one varies with the
row, one with the column and one with the cell, so it is the sum of three small products and the side information of
145 channels is never formed (it took 20 % of the arithmetic); it does not depend on x or c, and is computed once for
all steps and states of a window. Channels come last, so that nothing is transposed, and attention is fused.

The network was trained on whole steps c = 0 ... steps - 1; their sinusoids reach 10^4 radians per step, which means
nothing in between. There the embeddings of the two nearest steps are interpolated. Padding rows are masked out of the
attention over time, which the published network cannot do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, final

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.config import Range, check_fields
from ..core.errors import CheckpointError, ConfigError
from .csdi_blocks import Layer, kaiming, step_table, time_table
from .layers import Cells, Network, cells
from .recipes import Recipe

__all__ = ["CSDI", "CSDIConfig", "CSDISide", "official"]

MAX_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class CSDIConfig:
    """Sizes of a `CSDI` network; all but `features` are the paper's by default.

    Raises:
        ConfigError: a value out of its range, heads that do not divide the channels, odd embeddings.
    """

    recipe: ClassVar[Recipe] = Recipe(
        "csdi", "eps", "index-50", "simple", settled="CSDI's network has a schedule of its own"
    )
    """The published one."""
    terms: ClassVar[Mapping[str, str]] = {"width": "channels", "blocks": "layers"}
    """What commands call otherwise -> field."""

    features: Annotated[int, Range(1, 100_000)]
    """K."""
    channels: Annotated[int, Range(1, 4096)] = 64
    """Of a cell, C."""
    layers: Annotated[int, Range(1, 64)] = 4
    """Residual layers."""
    heads: Annotated[int, Range(1, 256)] = 8
    """Of every attention."""
    hidden: Annotated[int, Range(1, 16_384)] = 64
    """Width inside the transformers' perceptrons."""
    steps: Annotated[int, Range(1, 100_000)] = 50
    """Steps of the chain it is trained on; c runs from 0 to steps - 1."""
    step_embedding: Annotated[int, Range(4, 4096)] = 128
    """Numbers that describe the step."""
    time_embedding: Annotated[int, Range(2, 4096)] = 128
    """Numbers that describe a row's time."""
    feature_embedding: Annotated[int, Range(1, 4096)] = 16
    """Learned numbers that describe a column."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.1
    """Of the transformer layers, in training."""

    def __post_init__(self):
        check_fields(self)
        if self.channels % self.heads:
            raise ConfigError("heads", self.heads, f"a divisor of the {self.channels} channels")
        for name in ("step_embedding", "time_embedding"):
            if getattr(self, name) % 2:
                raise ConfigError(name, getattr(self, name), "an even number")
        if self.num_parameters > MAX_PARAMETERS:
            raise ConfigError("network size", f"{self.num_parameters} parameters", f"at most {MAX_PARAMETERS}")

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, by formula."""
        c, e = self.channels, self.step_embedding
        side = self.time_embedding + self.feature_embedding + 1
        encoder = 4 * c * (c + 1) + 4 * c + self.hidden * (c + 1) + c * (self.hidden + 1)
        layer = 2 * encoder + c * (e + 1) + 2 * c * (side + 1) + 4 * c * (c + 1)
        return self.layers * layer + self.features * self.feature_embedding + 2 * e * (e + 1) + c * (c + 5) + 1

    @property
    def work(self) -> float:
        """What the network costs for each cell, in the units of `SeriesNetConfig.work`."""
        return 2.0 * self.channels * self.layers

    @property
    def indices(self) -> int | None:
        """T, for the network knows the times i/T only, i = 1 ... T."""
        return self.steps

    def build(self) -> CSDI:
        """A freshly initialised network of these sizes."""
        return CSDI(self)


@dataclass(frozen=True)
class CSDISide:
    """What a `CSDI` network knows of B windows before it sees a state.

    Attributes:
        cells: given values, masks.
        rows: of every layer, (B, L, 1, 2 C), what it adds for a row.
        columns: of every layer, (K, 2 C), what it adds for a column.
        known: of every layer, (2 C,), what it adds for a given cell.
    """

    cells: Cells
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    known: tuple[Tensor, ...]


@final
class CSDI(Network[CSDISide]):
    """See the module's docstring; called as every `Network`.

    Args:
        config: sizes.
    """

    def __init__(self, config: CSDIConfig):
        super().__init__()
        self.config = config
        c, e = config.channels, config.step_embedding
        self.embedding = nn.Embedding(config.features, config.feature_embedding)
        self.step_1, self.step_2 = nn.Linear(e, e), nn.Linear(e, e)
        self.input = kaiming(nn.Linear(2, c))
        side = config.time_embedding + config.feature_embedding + 1
        self.layers = nn.ModuleList(
            Layer(c, e, side, config.heads, config.hidden, config.dropout) for _ in range(config.layers)
        )
        self.output_1, self.output_2 = kaiming(nn.Linear(c, c)), nn.Linear(c, 1)
        nn.init.zeros_(self.output_2.weight)
        self.register_buffer("steps", step_table(config.steps, e), persistent=False)
        self.steps: Tensor

    def side(self, observed: Tensor, known: Tensor, stamps: Tensor, present: Tensor | None = None) -> CSDISide:
        """What does not depend on the state; arguments as of `forward`."""
        found = cells(observed, known, stamps, present, self.config.features)
        times = time_table(stamps, self.config.time_embedding).to(self.embedding.weight.dtype)
        rows, columns, flags = [], [], []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            of_row, of_column, of_flag = layer.side.weight.split([times.shape[2], self.embedding.embedding_dim, 1], 1)
            rows.append(F.linear(times, of_row, layer.side.bias).unsqueeze(2))
            columns.append(F.linear(self.embedding.weight, of_column))
            flags.append(of_flag[:, 0])
        return CSDISide(found, tuple(rows), tuple(columns), tuple(flags))

    def output_of(self, states: Tensor, c: Tensor, side: CSDISide, mask: Tensor | None) -> Tensor:
        known = side.cells.known.to(states.dtype)
        observed = side.cells.observed.to(states.dtype)[:, None].expand_as(states)
        inputs = torch.stack([observed, states], dim=4).flatten(0, 1)
        h = F.relu(self.input(inputs))
        step = self.embedded(c).to(h.dtype)
        total = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            added = torch.addcmul(side.rows[index] + side.columns[index], known.unsqueeze(3), side.known[index])
            h, skip = layer(h, step, added, mask)
            total = skip if total is None else total + skip
        assert total is not None
        return self.output_2(F.relu(self.output_1(total / math.sqrt(len(self.layers))))).squeeze(3)

    def embedded(self, c: Tensor) -> Tensor:
        """Steps (R,) to what the layers project, (R, step_embedding); linear between whole steps."""
        table = F.silu(self.step_2(F.silu(self.step_1(self.steps.to(self.step_1.weight.dtype)))))
        c = c.clamp(0, self.config.steps - 1)
        low = c.floor().long()
        part = (c - low).unsqueeze(1).to(table.dtype)
        return torch.lerp(table[low], table[(low + 1).clamp(max=self.config.steps - 1)], part)


def official(path: str | os.PathLike[str], *, heads: int = 8, steps: int = 50) -> CSDI:
    """A network with the weights that the authors published, from a safetensors file with their names.

    Args:
        path: the file; its tensors say all sizes but the following.
        heads: of the attentions.
        steps: of the chain.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, a tensor is missing, unknown, of another shape or type, or not finite.
    """
    path = Path(path)
    try:
        found = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
    network = sizes(path, found, heads, steps).build()
    own = dict(network.named_parameters())
    names = dict(official_names(network))
    problems = [f"{theirs} is missing" for theirs in names if theirs not in found]
    problems += [f"{name} is not part of the network" for name in found if name not in names]
    for theirs, ours in names.items():
        if theirs in found:
            value, wanted = found[theirs], tuple(own[ours].shape)
            shape = tuple(value.shape)
            if shape != wanted and shape != (*wanted, 1):  # convolutions of size one have a dimension more
                problems.append(f"{theirs} has shape {shape}, expected {wanted}")
            elif not value.is_floating_point() or not bool(value.isfinite().all()):
                problems.append(f"{theirs} is not of finite floating numbers")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise CheckpointError(f"{path}: is not a CSDI network: {'; '.join(sorted(problems)[:8])}{more}")
    with torch.no_grad():
        for theirs, ours in names.items():
            own[ours].copy_(found[theirs].view_as(own[ours]))
    return network.eval()


def sizes(path: Path, found: dict[str, Tensor], heads: int, steps: int) -> CSDIConfig:
    """The configuration that the tensors of an official file have."""
    stem = "diffmodel.residual_layers."
    layers, block = {name.split(".")[2] for name in found if name.startswith(stem)}, stem + "0."
    keys = ("embed_layer.weight", block + "diffusion_projection.weight", block + "cond_projection.weight")
    keys += (block + "time_layer.layers.0.linear1.weight",)
    for key, ndim in zip(keys, (2, 2, 3, 2), strict=True):
        if key not in found or found[key].ndim != ndim:
            raise CheckpointError(f"{path}: is not a CSDI network: {key} is missing or has not {ndim} dimensions")
    (features, embedding), (channels, step) = found[keys[0]].shape, found[keys[1]].shape
    side, hidden = found[keys[2]].shape[1], found[keys[3]].shape[0]
    try:
        return CSDIConfig(
            features=features, channels=channels, layers=len(layers), heads=heads, hidden=hidden, steps=steps,
            step_embedding=step, time_embedding=side - embedding - 1, feature_embedding=embedding,
        )  # fmt: skip
    except ConfigError as error:
        raise CheckpointError(f"{path}: has sizes that no CSDI network has ({error})") from error


def official_names(network: CSDI) -> Iterator[tuple[str, str]]:
    """Pairs of the published name of a parameter and ours."""
    inner = {"step": "diffusion_projection", "middle": "mid_projection", "side": "cond_projection"}
    inner |= {"output": "output_projection"}
    encoder = {"out": "self_attn.out_proj", "norm_1": "norm1", "norm_2": "norm2"}
    encoder |= {"hidden": "linear1", "perceptron": "linear2"}
    outer = {"step_1": "diffusion_embedding.projection1", "step_2": "diffusion_embedding.projection2"}
    outer |= {"input": "input_projection", "output_1": "output_projection1", "output_2": "output_projection2"}
    for name, _ in network.named_parameters():
        *owner, kind = name.split(".")
        if owner[0] == "embedding":
            yield "embed_layer.weight", name
        elif owner[0] != "layers":
            yield f"diffmodel.{outer[owner[0]]}.{kind}", name
        elif owner[2] not in ("time", "feature"):
            yield f"diffmodel.residual_layers.{owner[1]}.{inner[owner[2]]}.{kind}", name
        else:
            base = f"diffmodel.residual_layers.{owner[1]}.{owner[2]}_layer.layers.0."
            joined = f"self_attn.in_proj_{kind}" if owner[3] == "qkv" else f"{encoder[owner[3]]}.{kind}"
            yield base + joined, name
