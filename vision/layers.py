"""Layers that the image networks share: normalisation, and the checks of their input.

Images run through the networks channels-last: a feature map (B, C, H, W) then is (B, H W, C) in memory, so attention
reads it as a sequence without a copy, and the convolutions of CPUs and GPUs are at their fastest.

In bfloat16 a CPU multiplies matrices so fast that convolutions are no longer what takes the time: normalisation and
attention are, whose kernels read channels-last maps slowly, above all backward. `Normalisation` and `attend` therefore
have a second way through, made of whole-array operations at memory speed; the result is the same up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.errors import ArgumentError
from ..core.layers import is_reduced_on_cpu

__all__ = ["Normalisation", "check_images"]


def spatial_sum(x: Tensor) -> Tensor:
    """(B, C, H, W) channels-last -> (B, C) float32; rows are summed in x's dtype (float32 inside), then in float32."""
    return x.permute(0, 2, 3, 1).sum(2).float().sum(1)


def group_mean(sums: Tensor, groups: int, pixels: int) -> Tensor:
    """(B, C) sums over `pixels` pixels -> (B, C) means over pixels and the channels of each group."""
    return (
        sums.unflatten(1, (groups, -1))
        .mean(2, keepdim=True)
        .div(pixels)
        .expand(-1, -1, sums.shape[1] // groups)
        .flatten(1)
    )


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B, C, H, W) times scale (B, C) plus shift (B, C), in the dtype of x."""
    return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])


def statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of the group of every channel, (B, C) each, float32."""
    pixels = x.shape[2] * x.shape[3]
    mean = group_mean(spatial_sum(x), groups, pixels)
    square = group_mean(spatial_sum(x.square()), groups, pixels)
    return mean, torch.rsqrt((square - mean.square()).clamp_min(0) + eps)


class FusedNormalisation(torch.autograd.Function):
    """silu(scale * (x - mean) / std + shift) with few passes over the data, forward and backward.

    With n = (x - mean) / std, z = scale n + shift and g = dL/dz, the gradients are dL/dscale = sum g n,
    dL/dshift = sum g over pixels, and dL/dx = (scale g - mean(scale g) - n mean(scale g n)) / std with means over the
    group. All but two passes are folded into coefficients of shape (B, C).
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        """x (B, C, H, W), scale and shift (B, C) or (1, C) float32 -> (B, C, H, W)."""
        mean, inverse = statistics(x, groups, eps)
        gain = scale * inverse
        z = affine(x, gain, shift - mean * gain)
        ctx.save_for_backward(x, z if silu else None, mean, inverse, scale)
        ctx.groups, ctx.shapes = groups, (scale.shape, shift.shape)
        return F.silu(z) if silu else z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients by x, scale and shift."""
        x, z, mean, inverse, scale = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        grad = grad if z is None else torch.ops.aten.silu_backward(grad, z)
        by_shift = spatial_sum(grad)
        by_scale = inverse * (spatial_sum(grad * x) - mean * by_shift)
        slope = -inverse.square() * group_mean(scale * by_scale, ctx.groups, pixels)
        offset = -inverse * group_mean(scale * by_shift, ctx.groups, pixels) - mean * slope
        by_x = affine(x, slope, offset).addcmul_(grad, (scale * inverse).to(x.dtype)[:, :, None, None])
        return by_x, by_scale.sum_to_size(ctx.shapes[0]), by_shift.sum_to_size(ctx.shapes[1]), None, None, None


def check_images(x: Tensor, c: Tensor, channels: int, factor: int) -> None:
    """Raises ArgumentError unless x is (B, channels, H, W), H and W multiples of `factor`, and c is (B,)."""
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
        raise ArgumentError("x", x, f"floating-point images of shape (B, {channels}, H, W)")
    height, width = x.shape[2], x.shape[3]
    if height == 0 or width == 0 or height % factor or width % factor:
        raise ArgumentError("x", x, f"height and width that are multiples of {factor}")
    if c.shape != x.shape[:1]:
        raise ArgumentError("c", c, f"one number per image, shape ({x.shape[0]},)")


class Normalisation(nn.GroupNorm):
    """Group normalisation (Wu & He 2018), then an optional scale and shift per example, then an optional SiLU."""

    def forward(self, input: Tensor, modulation: Tensor | None = None, silu: bool = False) -> Tensor:
        """input (B, C, H, W), modulation (B, 2 C): scale - 1, then shift -> (B, C, H, W)."""
        if input.device.type == "cpu" and torch.compiler.is_compiling():
            return self.traced(input, modulation, silu)
        if is_reduced_on_cpu(input):
            return self.fused(input, modulation, silu)
        x = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            x = torch.addcmul(shift, x, 1 + scale)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if silu else x

    def coefficients(self, modulation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift that follow the normalisation, (B, C) or (1, C) each, float32."""
        scale, shift = self.weight.float()[None], self.bias.float()[None]
        if modulation is not None:
            extra, offset = modulation.float().chunk(2, dim=1)
            scale, shift = scale * (1 + extra), torch.addcmul(offset, shift, 1 + extra)
        return scale, shift

    def traced(self, x: Tensor, modulation: Tensor | None, silu: bool) -> Tensor:
        """The same, for torch.compile on a CPU: one pass for the sums, one for all the rest.

        Its own reading of a group norm sums over pixels and channels at once, ten times slower for a channels-last map.
        Groups are gathered and spread by matrix products because the compiler does not fuse those into the loop over
        pixels, which then has no root and no division left.
        """
        pixels = x.shape[2] * x.shape[3]
        scale, shift = self.coefficients(modulation)
        members = torch.eye(self.num_groups, device=x.device).repeat_interleave(x.shape[1] // self.num_groups, dim=0)
        rows = x.permute(0, 2, 3, 1).flatten(1, 2).float()
        with torch.autocast("cpu", enabled=False):
            sums = torch.cat([rows.sum(1), rows.square().sum(1)]) @ members
            mean, square = (sums / (pixels * x.shape[1] // self.num_groups)).chunk(2)
            inverse = torch.rsqrt((square - mean.square()).clamp_min(0) + self.eps)
            inverse, mean = (torch.cat([inverse, mean * inverse]) @ members.T).chunk(2)
        z = torch.addcmul((shift - scale * mean)[:, None], rows, (scale * inverse)[:, None])
        z = (F.silu(z) if silu else z).to(x.dtype)
        return z.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def fused(self, x: Tensor, modulation: Tensor | None, silu: bool) -> Tensor:
        """The same, for 16-bit numbers on a CPU; statistics and coefficients in float32."""
        scale, shift = self.coefficients(modulation)
        if torch.is_grad_enabled():
            return FusedNormalisation.apply(x, scale, shift, self.num_groups, self.eps, silu)  # type: ignore[return-value]
        mean, inverse = statistics(x, self.num_groups, self.eps)
        gain = scale * inverse
        z = affine(x, gain, shift - mean * gain)
        return F.silu(z, inplace=True) if silu else z
