"""Sizes of the denoising networks: frozen, torch-free descriptions that configurations and checkpoints carry.

`UNetConfig` and `DiTConfig` hold plain integers, floats and tuples, so `dataclasses.asdict` and JSON carry them;
`UNetConfig(**loaded)` accepts the lists that JSON makes of tuples. Each checks itself on construction and counts its
parameters by formula, so that an absurd size is refused before anything is allocated. `build()` makes the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from .network import DiT, UNet

__all__ = ["MAX_PARAMETERS", "DiTConfig", "UNetConfig"]

MAX_PARAMETERS = 4_000_000_000
"""No network larger than this is built: beyond the largest published image U-Nets, and 16 GB in float32."""

EMBEDDING_FACTOR = 4
"""Width of the condition embedding in units of the base width, as in DDPM and ADM."""


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raises ConfigError unless `value` is an int (not a bool) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(name, value, f"an integer from {low} to {high}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a real number in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        raise ConfigError(name, value, f"a number from {low} to below {high}")


def check_total(num_parameters: int) -> None:
    """Raises ConfigError if a network of that size would not be built."""
    if num_parameters > MAX_PARAMETERS:
        raise ConfigError("network size", f"{num_parameters} parameters", f"at most {MAX_PARAMETERS} parameters")


def integers(name: str, values: Any) -> tuple[Any, ...]:
    """`values` as a tuple; JSON turns tuples into lists. ConfigError if it is neither."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ConfigError(name, values, "a tuple of integers")
    return tuple(values)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of a `UNet` (Ho et al. 2020; Dhariwal & Nichol 2021, "ADM").

    Raises:
        ConfigError: a value out of its range, heads that do not divide the width of an attention level, or more than
            `MAX_PARAMETERS` parameters in all.
    """

    in_channels: int = 3
    """Channels of the input x."""
    out_channels: int = 3
    """Channels of the output; 2 x the image channels for a learned variance."""
    num_classes: int = 0
    """Number of classes; 0 for an unconditional network. Label `num_classes` means "no label"."""
    width: int = 64
    """Channels that the multipliers multiply."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels of each level in units of `width`; between levels the resolution halves."""
    blocks: int = 2
    """Residual blocks per level on the way down (one more on the way up)."""
    attention: tuple[int, ...] = ()
    """Levels (0 = finest) with self-attention after each residual block; the middle always has it."""
    heads: int = 4
    """Attention heads."""
    groups: int = 32
    """Largest number of groups of a group normalisation; a group never has fewer than four channels."""
    patch: int = 1
    """Pixel-unshuffle factor at the input, undone at the output: p x p pixels become channels."""
    dropout: float = 0.0
    """Probability of dropping a feature before the second convolution of each residual block."""

    def __post_init__(self):
        object.__setattr__(self, "multipliers", integers("multipliers", self.multipliers))
        object.__setattr__(self, "attention", integers("attention", self.attention))
        check_integer("in_channels", self.in_channels, 1, 4096)
        check_integer("out_channels", self.out_channels, 1, 4096)
        check_integer("num_classes", self.num_classes, 0, 1_000_000)
        check_integer("width", self.width, 4, 16_384)
        if self.width % 2:
            raise ConfigError("width", self.width, "an even number (sines and cosines of the time come in pairs)")
        check_integer("number of multipliers", len(self.multipliers), 1, 10)
        for multiplier in self.multipliers:
            check_integer("multipliers", multiplier, 1, 64)
        check_integer("blocks", self.blocks, 1, 64)
        for level in self.attention:
            check_integer("attention", level, 0, len(self.multipliers) - 1)
        if len(set(self.attention)) < len(self.attention):
            raise ConfigError("attention", self.attention, "each level at most once")
        check_integer("heads", self.heads, 1, 1024)
        for level in {*self.attention, len(self.multipliers) - 1}:
            if self.channels(level) % self.heads:
                raise ConfigError(
                    "heads", self.heads, f"a divisor of {self.channels(level)}, the width of level {level}"
                )
        check_integer("groups", self.groups, 1, 1024)
        check_integer("patch", self.patch, 1, 64)
        check_number("dropout", self.dropout, 0, 1)
        check_total(self.num_parameters)

    @property
    def embedding_width(self) -> int:
        """Width of the embedding of time and class."""
        return EMBEDDING_FACTOR * self.width

    @property
    def factor(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    def channels(self, level: int) -> int:
        """Channels of a level, 0 = finest."""
        return self.width * self.multipliers[level]

    def groups_of(self, channels: int) -> int:
        """Groups in which `channels` are normalised: a divisor of `groups`, four channels or more to each."""
        return gcd(max(channels // 4, 1), self.groups) if channels % 4 == 0 else 1

    def encoder(self) -> list[list[tuple[int, int]]]:
        """(in, out) channels of the residual blocks on the way down, per level, finest level first."""
        levels, channels = [], self.width
        for level in range(len(self.multipliers)):
            width = self.channels(level)
            levels.append([(channels if i == 0 else width, width) for i in range(self.blocks)])
            channels = width
        return levels

    def decoder(self) -> list[list[tuple[int, int, int]]]:
        """(in, skip, out) channels of the residual blocks on the way up, per level, coarsest level first."""
        skips = [self.width]
        for level, blocks in enumerate(self.encoder()):
            skips += [out for _, out in blocks] + [self.channels(level)] * (level + 1 < len(self.multipliers))
        levels, channels = [], self.channels(-1)
        for level in reversed(range(len(self.multipliers))):
            levels.append([])
            for _ in range(self.blocks + 1):
                levels[-1].append((channels, skips.pop(), self.channels(level)))
                channels = self.channels(level)
        return levels

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, by formula."""
        embedding, pixels = self.embedding_width, self.patch**2

        def residual(c_in: int, c_out: int) -> int:
            norms, modulation = 2 * (c_in + c_out), 2 * c_out * (embedding + 1)
            convolutions = c_out * (9 * c_in + 1) + c_out * (9 * c_out + 1)
            return norms + modulation + convolutions + (c_out * (c_in + 1) if c_in != c_out else 0)

        def attention(c: int) -> int:
            return 2 * c + 3 * c * (c + 1) + c * (c + 1)

        total = embedding * (self.width + 1) + embedding * (embedding + 1)
        total += (self.num_classes + 1) * embedding if self.num_classes else 0
        total += self.width * (9 * self.in_channels * pixels + 1)
        for level, blocks in enumerate(self.encoder()):
            c, attends = self.channels(level), level in self.attention
            total += sum(residual(*block) + attends * attention(c) for block in blocks)
            total += c * (9 * c + 1) if level + 1 < len(self.multipliers) else 0
        c = self.channels(-1)
        total += 2 * residual(c, c) + attention(c)
        for level, blocks in zip(reversed(range(len(self.multipliers))), self.decoder(), strict=True):
            c, attends = self.channels(level), level in self.attention
            total += sum(residual(c_in + skip, c_out) + attends * attention(c) for c_in, skip, c_out in blocks)
            total += c * (9 * c + 1) if level > 0 else 0
        c = self.channels(0)
        return total + 2 * c + self.out_channels * pixels * (9 * c + 1)

    def build(self) -> UNet:
        """A freshly initialised network of these sizes."""
        from .network import UNet

        return UNet(self)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a `DiT` (Peebles & Xie 2023).

    Raises:
        ConfigError: a value out of its range, heads that do not divide the width, or more than `MAX_PARAMETERS`
            parameters in all.
    """

    in_channels: int = 3
    """Channels of the input x."""
    out_channels: int = 3
    """Channels of the output; 2 x the image channels for a learned variance."""
    num_classes: int = 0
    """Number of classes; 0 for an unconditional network. Label `num_classes` means "no label"."""
    patch: int = 2
    """Side of the square of pixels that makes a token."""
    width: int = 192
    """Features of a token; a multiple of 4 (sines and cosines of two coordinates)."""
    depth: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    expansion: int = 4
    """Width of the hidden layer of each block's perceptron in units of `width`."""
    dropout: float = 0.0
    """Probability of dropping a feature at the end of each perceptron."""

    def __post_init__(self):
        check_integer("in_channels", self.in_channels, 1, 4096)
        check_integer("out_channels", self.out_channels, 1, 4096)
        check_integer("num_classes", self.num_classes, 0, 1_000_000)
        check_integer("patch", self.patch, 1, 64)
        check_integer("width", self.width, 4, 16_384)
        if self.width % 4:
            raise ConfigError("width", self.width, "a multiple of 4 (sines and cosines of two coordinates)")
        check_integer("depth", self.depth, 1, 256)
        check_integer("heads", self.heads, 1, 1024)
        if self.width % self.heads:
            raise ConfigError("heads", self.heads, f"a divisor of the width, {self.width}")
        check_integer("expansion", self.expansion, 1, 16)
        check_number("dropout", self.dropout, 0, 1)
        check_total(self.num_parameters)

    @property
    def factor(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.patch

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the network, by formula."""
        w, hidden, pixels = self.width, self.expansion * self.width, self.patch**2
        block = 6 * w * (w + 1) + 4 * w * (w + 1) + hidden * (w + 1) + w * (hidden + 1)
        total = 2 * w * (w + 1) + ((self.num_classes + 1) * w if self.num_classes else 0)
        total += w * (self.in_channels * pixels + 1) + 2 * w * (w + 1) + self.out_channels * pixels * (w + 1)
        return total + self.depth * block

    def build(self) -> DiT:
        """A freshly initialised network of these sizes."""
        from .network import DiT

        return DiT(self)
