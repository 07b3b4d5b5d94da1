"""Layers that the networks of several domains share: embedding of time and class, self-attention, zeroed layers."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ArgumentError

__all__ = ["Conditioning", "attend", "attention", "is_reduced_on_cpu", "sinusoids", "zeroed"]

M = TypeVar("M", nn.Linear, nn.Conv2d)


def sinusoids(c: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of numbers in about [0, 1000] (Vaswani et al. 2017; Ho et al. 2020).

    Computed in float32 even for a network in bfloat16, where 1000 and 1001 would be the same number.

    Args:
        c: (B,).
        width: number of features, even.

    Returns:
        (B, width), float32: cosines, then sines, of c times a geometric series of frequencies from 1 to 1/10000.
    """
    half = width // 2
    steps = torch.arange(half, device=c.device, dtype=torch.float32)
    angles = c.float()[:, None] * torch.exp(steps * (-math.log(10_000.0) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Multi-head self-attention of a sequence (Vaswani et al. 2017).

    Args:
        qkv: (B, N, 3 C), queries, keys and values side by side.
        heads: number of heads, a divisor of C.

    Returns:
        (B, N, C).
    """
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return attention(q, k, v).transpose(1, 2).flatten(2)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, H, N, D).
        k, v: (B, H, M, D), M >= N.
        causal: the last N of the M places are those of the queries, and none sees a later one.

    Returns:
        (B, H, N, D).
    """
    length, whole = q.shape[2], k.shape[2]
    if is_reduced_on_cpu(q) and q.requires_grad and whole <= 1024:
        # The fused kernel's backward is two to five times slower there than writing the weights out.
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        if causal:
            scores = scores.masked_fill(later(length, whole, q.device), -math.inf)
        return torch.softmax(scores, dim=3).to(v.dtype) @ v
    if causal and length != whole:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~later(length, whole, q.device))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def later(length: int, whole: int, device: torch.device) -> Tensor:
    """(N, M), True where a key comes after the query, the queries being the last N of M places."""
    return torch.ones(length, whole, dtype=torch.bool, device=device).triu(whole - length + 1)


def is_reduced_on_cpu(x: Tensor) -> bool:
    """Whether x is of 16-bit numbers on a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def zeroed(layer: M) -> M:
    """The layer with weights and bias set to zero: what it feeds starts as the identity or as zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Conditioning(nn.Module):
    """Time and class to one embedding: perceptron(sinusoids(c)) + embedding of the label (Dhariwal & Nichol 2021).

    Args:
        features: number of sinusoidal features.
        width: width of the embedding.
        num_classes: number of classes, 0 for none. Label `num_classes` and `label=None` mean "no label".
    """

    def __init__(self, features: int, width: int, num_classes: int):
        super().__init__()
        self.features, self.num_classes = features, num_classes
        self.hidden = nn.Linear(features, width)
        self.output = nn.Linear(width, width)
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None

    def forward(self, c: Tensor, label: Tensor | None = None) -> Tensor:
        """c (B,), label (B,) integers or None -> SiLU of the embedding (B, width), which is what every reader wants.

        Raises:
            ArgumentError: a label for a network without classes, of another shape, or out of range.
        """
        self.check(c, label)
        embedding = self.output(F.silu(self.hidden(sinusoids(c, self.features).to(self.hidden.weight.dtype))))
        if self.label is not None:
            null = self.label.weight[-1]
            embedding = embedding + (null if label is None else self.label(label))
        return F.silu(embedding)

    def check(self, c: Tensor, label: Tensor | None) -> None:
        """Raises ArgumentError if the label cannot be used; its range is read on the CPU only (no device sync)."""
        if label is None:
            return
        if self.label is None:
            raise ArgumentError("label", label, "None: this network has no classes")
        if label.shape != c.shape or label.dtype not in (torch.int64, torch.int32):
            raise ArgumentError("label", label, f"integers (int64 or int32) of shape {tuple(c.shape)}")
        if label.device.type == "cpu" and not torch.compiler.is_compiling() and label.numel():
            low, high = int(label.min()), int(label.max())
            if low < 0 or high > self.num_classes:
                raise ArgumentError("label", f"values from {low} to {high}", f"0 to {self.num_classes} (= no label)")
