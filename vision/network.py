"""Denoising networks for images: an ADM-style U-Net and a diffusion transformer.

Both are called `network(x, c, label=None)`: x (B, C, H, W) is the noisy image, already scaled by the denoiser; c (B,)
tells the noise level as a number in about [0, 1000]; label (B,) holds classes, `num_classes` (or `label=None`) meaning
"no label", which classifier-free guidance needs. Time and class enter every block as a scale and a shift after a
normalisation; the layers that make these scales and shifts are one matrix product for the whole network. Last layers
start at zero, so that each block starts as the identity and the network at output zero.

The computation runs in the dtype of the weights (or of autocast) and channels-last; the output has the dtype of x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layers import Conditioning, attend, sinusoids, zeroed
from .architectures import DiTConfig, UNetConfig
from .layers import Normalisation, check_images

__all__ = ["DiT", "UNet"]


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution; norm with scale and shift, SiLU, dropout, convolution; plus the input."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm_1 = Normalisation(config.groups_of(in_channels), in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_2 = Normalisation(config.groups_of(out_channels), out_channels)
        self.conv_2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.dropout = config.dropout

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, C_in, H, W), modulation (B, 2 C_out) -> (B, C_out, H, W)."""
        h = self.conv_1(self.norm_1(x, silu=True))
        h = self.norm_2(h, modulation, silu=True)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return self.shortcut(x) + self.conv_2(h)


class SelfAttention(nn.Module):
    """Self-attention over the pixels of a feature map, plus the input."""

    def __init__(self, config: UNetConfig, channels: int):
        super().__init__()
        self.heads = config.heads
        self.norm = Normalisation(config.groups_of(channels), channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        # As convolutions, whose bias costs no pass of its own; a channels-last map is a sequence without a copy.
        qkv = pointwise(self.qkv, self.norm(x)).permute(0, 2, 3, 1).flatten(1, 2)
        sequence = attend(qkv, self.heads).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + pointwise(self.output, sequence)


def pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer at every pixel, (B, C, H, W) -> (B, C_out, H, W)."""
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


class Stage(nn.Module):
    """A residual block, then self-attention where its level has it."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, attention: bool):
        super().__init__()
        self.residual = ResidualBlock(config, in_channels, out_channels)
        self.attention = SelfAttention(config, out_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, C_in, H, W), modulation (B, 2 C_out) -> (B, C_out, H, W)."""
        return self.attention(self.residual(x, modulation))


class Upsample(nn.Conv2d):
    """Each pixel becomes 2 x 2 equal ones, then a 3 x 3 convolution.

    Computed as one transposed convolution of stride 2: an output pixel meets four different input pixels, not nine,
    so the exact same map takes 16 multiplications where the plain form takes 36, and the large image is never stored.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2 H, 2 W)."""
        # Tap m of the four sums the taps of the three that fall on the same input pixel: rows 2; 1, 2; 0, 1; 0.
        flipped = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        rows = flipped[:, :, 1:] + flipped[:, :, :-1]
        kernel = (rows[..., 1:] + rows[..., :-1]).transpose(0, 1)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


class UNet(nn.Module):
    """U-Net with residual blocks, self-attention and adaptive group normalisation (Dhariwal & Nichol 2021, "ADM").

    Args:
        config: sizes; `config.factor` must divide height and width of the images.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        pixels, last = config.patch**2, len(config.multipliers) - 1
        self.conditioning = Conditioning(config.width, config.embedding_width, config.num_classes)
        self.input = nn.Conv2d(config.in_channels * pixels, config.width, 3, padding=1)
        self.encoder = nn.ModuleList()
        for level, blocks in enumerate(config.encoder()):
            c, attention = config.channels(level), level in config.attention
            self.encoder.append(nn.ModuleList(Stage(config, *block, attention) for block in blocks))
        self.downsample = nn.ModuleList(
            nn.Conv2d(config.channels(level), config.channels(level), 3, stride=2, padding=1) for level in range(last)
        )
        c = config.channels(-1)
        self.middle = nn.ModuleList([Stage(config, c, c, True), Stage(config, c, c, False)])
        self.decoder = nn.ModuleList()
        for level, blocks in zip(range(last, -1, -1), config.decoder(), strict=True):
            attention = level in config.attention
            self.decoder.append(nn.ModuleList(Stage(config, c + skip, out, attention) for c, skip, out in blocks))
        self.upsample = nn.ModuleList(
            Upsample(config.channels(level), config.channels(level), 3, padding=1) for level in range(last, 0, -1)
        )
        c = config.channels(0)
        self.norm = Normalisation(config.groups_of(c), c)
        self.output = zeroed(nn.Conv2d(c, config.out_channels * pixels, 3, padding=1))
        stages = [stage for stage in self.modules() if isinstance(stage, ResidualBlock)]
        self.splits = [2 * stage.conv_2.out_channels for stage in stages]
        self.modulation = nn.Linear(config.embedding_width, sum(self.splits))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            x: noisy images (B, in_channels, H, W), H and W multiples of `config.factor`.
            c: noise level (B,), in about [0, 1000].
            label: classes (B,), integers in [0, num_classes]; `num_classes` or None for no label.

        Returns:
            (B, out_channels, H, W) in the dtype of x.

        Raises:
            ArgumentError: a shape, dtype or label that does not fit.
        """
        check_images(x, c, self.config.in_channels, self.config.factor)
        modulations = iter(self.modulation(self.conditioning(c, label)).split(self.splits, dim=1))
        h = F.pixel_unshuffle(x, self.config.patch).to(self.input.weight.dtype)
        h = self.input(h.contiguous(memory_format=torch.channels_last))
        h = h.contiguous(memory_format=torch.channels_last)  # a single channel has no layout to pass on
        skips = [h]
        for level, stages in enumerate(self.encoder):
            for stage in stages.children():
                h = stage(h, next(modulations))
                skips.append(h)
            if level < len(self.downsample):
                h = self.downsample[level](h)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, next(modulations))
        for level, stages in enumerate(self.decoder):
            for stage in stages.children():
                h = stage(torch.cat([h, skips.pop()], dim=1), next(modulations))
            if level < len(self.upsample):
                h = self.upsample[level](h)
        return F.pixel_shuffle(self.output(self.norm(h, silu=True)), self.config.patch).to(x.dtype)


class TransformerBlock(nn.Module):
    """Self-attention and perceptron, each after a layer norm with scale and shift and before a gate (adaLN-zero)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, hidden = config.width, config.expansion * config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.hidden = nn.Linear(width, hidden)
        self.perceptron = nn.Linear(hidden, width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, N, C), modulation (B, 6 C): scale - 1, shift, gate of attention, then of the perceptron."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulation[:, None].chunk(6, dim=2)
        h = torch.addcmul(shift_1, F.layer_norm(x, x.shape[2:], eps=1e-6), 1 + scale_1)
        x = torch.addcmul(x, gate_1, self.output(attend(self.qkv(h), self.heads)))
        h = torch.addcmul(shift_2, F.layer_norm(x, x.shape[2:], eps=1e-6), 1 + scale_2)
        h = self.perceptron(F.gelu(self.hidden(h), approximate="tanh"))
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        return torch.addcmul(x, gate_2, h)


class DiT(nn.Module):
    """Diffusion transformer over patches of the image (Peebles & Xie 2023), with adaLN-zero conditioning.

    Args:
        config: sizes; `config.patch` must divide height and width of the images.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        width, pixels = config.width, config.patch**2
        self.conditioning = Conditioning(width, width, config.num_classes)
        self.input = nn.Linear(config.in_channels * pixels, width)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.depth))
        self.output = zeroed(nn.Linear(width, config.out_channels * pixels))
        self.splits = [6 * width] * config.depth + [2 * width]
        self.modulation = zeroed(nn.Linear(width, sum(self.splits)))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output.

        Args:
            x: noisy images (B, in_channels, H, W), H and W multiples of `config.patch`.
            c: noise level (B,), in about [0, 1000].
            label: classes (B,), integers in [0, num_classes]; `num_classes` or None for no label.

        Returns:
            (B, out_channels, H, W) in the dtype of x.

        Raises:
            ArgumentError: a shape, dtype or label that does not fit.
        """
        check_images(x, c, self.config.in_channels, self.config.factor)
        *modulations, last = self.modulation(self.conditioning(c, label)).split(self.splits, dim=1)
        h = F.pixel_unshuffle(x, self.config.patch).permute(0, 2, 3, 1)
        batch, height, width, _ = h.shape
        h = self.input(h.flatten(1, 2).to(self.input.weight.dtype))
        h = h + self.positions(height, width, h.device).to(h.dtype)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = block(h, modulation)
        scale, shift = last[:, None].chunk(2, dim=2)
        h = self.output(torch.addcmul(shift, F.layer_norm(h, h.shape[2:], eps=1e-6), 1 + scale))
        h = h.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return F.pixel_shuffle(h, self.config.patch).to(x.dtype)

    def positions(self, height: int, width: int, device: torch.device) -> Tensor:
        """(height width, C): sinusoids of the row in the first half of the features, of the column in the second."""
        rows = sinusoids(torch.arange(height, device=device), self.config.width // 2)
        columns = sinusoids(torch.arange(width, device=device), self.config.width // 2)
        return torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=1)
