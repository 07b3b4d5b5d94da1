"""The denoising network of text: a bidirectional transformer that is told the time; causal, the baseline's network.

Pre-norm blocks of self-attention with rotary positions (Su et al. 2021, arXiv:2104.09864) and a perceptron, each after
a layer norm with scale and shift and before a gate that start at zero (adaLN-zero, Peebles & Xie 2023). The six numbers
of a feature are one function of the time, the same for all blocks, plus a table of each (adaLN-single, Chen et al.
2023, arXiv:2310.00426, section 2.3): a product per block would hold half of a small network's parameters.

Called `network(x, c)`: x (B, L) tokens 0 … vocabulary, where `vocabulary` itself is the mask; c (B,) in about
[0, 1000]. Positions are relative, so any length will do at run time. The output starts at zero: all tokens alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import Range, check_fields
from ..core.errors import ArgumentError, ConfigError
from ..core.layers import Conditioning, attention, zeroed

__all__ = ["Cache", "Transformer", "TransformerConfig"]

MAX_PARAMETERS = 4_000_000_000
ROTARY_BASE = 10_000.0


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a `Transformer`.

    Raises:
        ConfigError: a value out of its range, heads that do not divide the width into even parts, more than four
            billion parameters.
    """

    vocabulary: Annotated[int, Range(1, 10_000_000)]
    """Tokens of the text, V; the network also takes the token V, the mask."""
    outputs: Annotated[int, Range(1, 10_000_001)] | None = None
    """Logits of each place: V (the default), or V + 1 where a kernel's chain has the mask among the data."""
    width: Annotated[int, Range(2, 16_384)] = 160
    """Features of a token."""
    depth: Annotated[int, Range(1, 256)] = 6
    """Blocks."""
    heads: Annotated[int, Range(1, 1024)] = 5
    """Attention heads."""
    expansion: Annotated[int, Range(1, 16)] = 4
    """Width of the hidden layer of each block's perceptron in units of `width`."""
    length: Annotated[int, Range(1, 1_000_000)] = 256
    """Tokens of a training window; other lengths work too."""
    causal: bool = False
    """Whether a place sees only itself and what is before it: the autoregressive baseline."""
    tied: bool = False
    """Whether the output layer is the embedding of the tokens; saves V * width parameters of a large vocabulary."""
    dropout: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability of dropping a feature at the end of each attention and perceptron."""

    def __post_init__(self):
        if self.outputs is None:
            object.__setattr__(self, "outputs", self.vocabulary)
        check_fields(self)
        if self.num_outputs not in (self.vocabulary, self.vocabulary + 1):
            raise ConfigError("outputs", self.outputs, f"{self.vocabulary} or, with the mask, {self.vocabulary + 1}")
        if self.width % (2 * self.heads):
            raise ConfigError("heads", self.heads, f"heads of an even number of the {self.width} features")
        if self.num_parameters > MAX_PARAMETERS:
            raise ConfigError("network size", f"{self.num_parameters} parameters", f"at most {MAX_PARAMETERS}")

    @property
    def num_outputs(self) -> int:
        """Logits of each place."""
        return self.vocabulary if self.outputs is None else self.outputs

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, by formula."""
        w, hidden = self.width, self.expansion * self.width
        block = 4 * w * (w + 1) + hidden * (w + 1) + w * (hidden + 1) + 6 * w
        total = 2 * w * (w + 1) + 6 * w * (w + 1) + 2 * w * (w + 1)
        total += (self.vocabulary + 1) * w + self.num_outputs * (1 if self.tied else w + 1)
        return total + self.depth * block

    def build(self) -> Transformer:
        """A freshly initialised network of these sizes."""
        return Transformer(self)


class Cache:
    """Keys and values of the places that a causal network has seen, of each block (B, H, capacity, D).

    Args:
        capacity: of places in all.
    """

    def __init__(self, capacity: int):
        self.capacity, self.used = capacity, 0
        self.blocks: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, N, D) put behind those before -> all of them, (B, H, used + N, D)."""
        end = self.used + k.shape[2]
        if end > self.capacity:
            raise ArgumentError("x", f"place {end}", f"at most {self.capacity} places, the capacity of the cache")
        if block not in self.blocks:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.blocks[block] = k.new_empty(shape), v.new_empty(shape)
        for store, new in zip(self.blocks[block], (k, v), strict=True):
            store[:, :, self.used : end] = new
        return tuple(store[:, :, :end] for store in self.blocks[block])  # pyright: ignore[reportReturnType]


class Block(nn.Module):
    """Self-attention and perceptron, each after a layer norm with scale and shift and before a gate."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width, hidden = config.width, config.expansion * config.width
        self.width, self.heads, self.causal, self.dropout = width, config.heads, config.causal, config.dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.hidden = nn.Linear(width, hidden)
        self.perceptron = nn.Linear(hidden, width)
        self.table = nn.Parameter(torch.zeros(6 * width))

    def forward(
        self, x: Tensor, modulation: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None, index: int
    ) -> Tensor:
        """x (B, L, C); modulation (B, 6 C): scale - 1, shift, gate of attention, then of the perceptron."""
        numbers = (modulation + self.table).to(x.dtype)[:, None].chunk(6, dim=2)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = numbers
        h = torch.addcmul(shift_1, F.layer_norm(x, x.shape[2:], eps=1e-6), 1 + scale_1)
        qk, v = self.qkv(h).split([2 * self.width, self.width], dim=2)
        qk = qk.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = Rotation.apply(qk, *rotation).unbind(0)  # pyright: ignore[reportOptionalMemberAccess]
        v = v.unflatten(2, (self.heads, -1)).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(index, k, v)
        h = self.output(attention(q, k, v, self.causal).transpose(1, 2).flatten(2))
        x = torch.addcmul(x, gate_1, self.drop(h))
        h = torch.addcmul(shift_2, F.layer_norm(x, x.shape[2:], eps=1e-6), 1 + scale_2)
        h = self.perceptron(F.gelu(self.hidden(h)))
        return torch.addcmul(x, gate_2, self.drop(h))

    def drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h


class Transformer(nn.Module):
    """See the module's docstring.

    Args:
        config: sizes.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocabulary + 1, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.conditioning = Conditioning(width, width, 0)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.last = zeroed(nn.Linear(width, 2 * width))
        if config.tied:
            self.bias = nn.Parameter(torch.zeros(config.num_outputs))
        else:
            self.output = zeroed(nn.Linear(width, config.num_outputs))

    def forward(self, x: Tensor, c: Tensor, cache: Cache | None = None) -> Tensor:
        """The logits of every place.

        Args:
            x: tokens (B, L), long, 0 … vocabulary.
            c: noise level (B,), in about [0, 1000].
            cache: of a causal network: x are the places after those seen before.

        Returns:
            (B, L, outputs), in the dtype of c.

        Raises:
            ArgumentError: a shape, dtype or token that does not fit, or a cache for a network that sees both ways.
        """
        self.check(x, c, cache)
        device, kind = x.device.type, self.modulation.weight.dtype
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else kind
        condition = self.conditioning(c)
        modulation, last = self.modulation(condition), self.last(condition).to(kind)
        h = self.embedding(x).to(kind)
        rotation = self.rotation(x.shape[1], 0 if cache is None else cache.used, kind)
        for index, block in enumerate(self.blocks):
            h = block(h, modulation, rotation, cache, index)
        if cache is not None:
            cache.used += x.shape[1]
        scale, shift = last[:, None].chunk(2, dim=2)
        h = torch.addcmul(shift, F.layer_norm(h, h.shape[2:], eps=1e-6), 1 + scale)
        if self.config.tied:
            logits = F.linear(h, self.embedding.weight[: self.config.num_outputs], self.bias)
        else:
            logits = self.output(h)
        return logits.to(c.dtype)

    def rotation(self, length: int, start: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles of places `start` … start + length - 1, (L, D / 2) each."""
        half = self.config.width // self.config.heads // 2
        device = self.embedding.weight.device
        frequencies = ROTARY_BASE ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angles = torch.arange(start, start + length, device=device, dtype=torch.float32)[:, None] * frequencies
        return angles.cos().to(kind), angles.sin().to(kind)

    def check(self, x: Tensor, c: Tensor, cache: Cache | None) -> None:
        """Raises ArgumentError for input that does not fit; tokens are looked at on the CPU only (no device sync)."""
        if x.ndim != 2 or x.dtype != torch.long or 0 in x.shape:
            raise ArgumentError("x", x, "tokens (B, L), long, B and L > 0")
        if c.shape != x.shape[:1] or not c.is_floating_point():
            raise ArgumentError("c", c, f"one number per example, shape ({x.shape[0]},), floating")
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(x.min()), int(x.max())
            if low < 0 or high > self.config.vocabulary:
                raise ArgumentError("x", f"tokens {low} … {high}", f"tokens 0 … {self.config.vocabulary} (the mask)")
        if cache is not None and not self.config.causal:
            raise ArgumentError("cache", cache, "None: this network sees both ways")


class Rotation(torch.autograd.Function):
    """Each pair (feature i, feature i + D/2) turned by the angle of its place; backward turns it the other way.

    A third of the time of what autograd would make of it, which spends it on copies and sums of halves.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x (..., L, D) of any strides, cosine and sine (L, D / 2) -> (..., L, D), contiguous."""
        ctx.save_for_backward(cosine, sine)
        turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        first, second = x.chunk(2, dim=-1)
        new_first, new_second = turned.chunk(2, dim=-1)
        torch.mul(first, cosine, out=new_first).addcmul_(second, sine, value=-1)
        torch.mul(second, cosine, out=new_second).addcmul_(first, sine)
        return turned

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient by x."""
        cosine, sine = ctx.saved_tensors
        return Rotation.apply(grad, cosine, -sine), None, None
