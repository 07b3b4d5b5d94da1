"""The layers of CSDI's network and the tables that describe its steps and times; `csdi` has the mathematics."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import attention, per_state

__all__ = ["Encoder", "Layer", "kaiming", "step_table", "time_table"]


def kaiming(layer: nn.Linear) -> nn.Linear:
    """The layer with weights of variance 2 / inputs (He et al. 2015)."""
    nn.init.kaiming_normal_(layer.weight)
    return layer


def step_table(steps: int, width: int) -> Tensor:
    """(steps, width), sines then cosines of the steps times 1 ... 10^4; in float32, whose rounding the weights know."""
    half = width // 2
    rates = 10.0 ** (torch.arange(half, dtype=torch.float32) / (half - 1) * 4.0)
    angles = torch.arange(steps)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def time_table(stamps: Tensor, width: int) -> Tensor:
    """(..., width) of stamps (...): sine and cosine in turn, of frequencies 1 to 1/10000 (Vaswani et al. 2017)."""
    stamps = stamps.to(torch.promote_types(stamps.dtype, torch.float32))
    rates = 10_000.0 ** -(torch.arange(0, width, 2, device=stamps.device, dtype=stamps.dtype) / width)
    angles = stamps.unsqueeze(-1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class Layer(nn.Module):
    """A residual layer of CSDI.

    Args:
        channels: C.
        step: numbers that describe the step.
        side: numbers that describe a cell.
        heads, hidden, dropout: of the two transformer layers.
    """

    def __init__(self, channels: int, step: int, side: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        c = channels
        self.step = nn.Linear(step, c)
        self.time, self.feature = (Encoder(c, heads, hidden, dropout) for _ in range(2))
        self.middle = kaiming(nn.Linear(c, 2 * c))
        self.side = kaiming(nn.Linear(side, 2 * c))
        self.output = kaiming(nn.Linear(c, 2 * c))

    def forward(self, h: Tensor, step: Tensor, added: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """h (R, L, K, C), step (R, E), added (B, L, K, 2 C), mask (R, 1, 1, L) -> h and what is skipped ahead."""
        R, L, K, C = h.shape
        y = h + self.step(step)[:, None, None]
        # Neighbouring dimensions merge without a copy: the columns act as heads, or the rows as examples.
        if L > 1:
            mixed = self.time(y, mask)
            # As published, a row that is alone skips the layer; padding is no company.
            y = mixed if mask is None else torch.where(mask.sum(3, keepdim=True) > 1, mixed, y)
        if K > 1:
            y = self.feature(y.view(R * L, K, 1, C), None).view(R, L, K, C)
        y = self.middle(y)
        per_state(y, added.shape[0]).add_(added.to(y.dtype).unsqueeze(1))  # a fresh product: nobody else reads it
        gate, value = y.chunk(2, dim=3)
        more, skip = self.output(torch.sigmoid(gate) * torch.tanh(value)).chunk(2, dim=3)
        return (h + more) * math.sqrt(0.5), skip


class Encoder(nn.Module):
    """A post-norm transformer layer along dimension 1 of (rows, length, many, C), each of `many` by itself.

    Args:
        channels: C.
        heads: of the attention, a divisor of C.
        hidden: width inside the perceptron.
        dropout: probability, in training, of attention weights and of features after each product.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        c = channels
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.norm_1, self.norm_2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.hidden, self.perceptron = nn.Linear(c, hidden), nn.Linear(hidden, c)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, many, _ = x.shape
        dropout = self.dropout if self.training else 0.0
        q, k, v = (
            F.linear(x, w, b).view(rows, length, many * self.heads, -1).transpose(1, 2)
            for w, b in zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        )
        y = attention(q, k, v, mask, dropout)
        y = self.out(y.transpose(1, 2).reshape(x.shape))
        x = self.norm_1(x + F.dropout(y, dropout))
        y = F.dropout(F.gelu(self.hidden(x)), dropout)
        return self.norm_2(x + F.dropout(self.perceptron(y), dropout))
