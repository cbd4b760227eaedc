"""Rounding a weight (N, K) to int8 with one scale a row, or to int4 with a scale and a zero for 128 inputs of a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 128  # inputs that share an int4 scale
CHUNK = 1 << 21  # weights in floating point at a time


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (N, K) -> codes int8 (N, K) and scales float32 (N,); every weight is within half a scale."""
    codes, scales = [], []
    for rows in weight.split(max(1, CHUNK // weight.shape[1])):
        rows = rows.float()
        scale = rows.abs().amax(1, keepdim=True).div_(127).clamp_min_(torch.finfo(torch.float32).tiny)
        codes.append((rows / scale).round_().to(torch.int8))
        scales.append(scale[:, 0])
    return torch.cat(codes), torch.cat(scales)


def int4_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (N, K) -> codes 0-15 uint8 (N, K'), scales and zeros bfloat16 (N, K' / 128), K' = K in whole groups.

    Every weight is within 16/30 of a scale: half, and up to 1/30 because the zero is rounded to bfloat16.
    """
    parts = [_int4_groups(rows) for rows in weight.split(max(1, CHUNK // weight.shape[1]))]
    codes, scales, zeros = (torch.cat(part) for part in zip(*parts, strict=True))
    return codes, scales, zeros


def _int4_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = F.pad(weight.float(), (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))  # (N, G, 128)
    low = groups.amin(-1, keepdim=True).clamp_max_(0)
    high = groups.amax(-1, keepdim=True).clamp_min_(0)
    # Sixteen equal bins over the range have the finest step: on Gaussian weights 5% less error than levels at both
    # ends, 14% less than a symmetric code. But no level is 0, which costs where an outlier stretches the step over
    # many small weights. The other fit has a level that is exactly 0: bfloat16 holds 8 multiples of 5 bits.
    bins = _rounded_up((high - low) / 16, bits=8)
    levels = _rounded_up((high - low) / 15, bits=5)
    first = _fit(groups, bins, (low + high + bins) / 2)
    second = _fit(groups, levels, (8 + (low / _divisor(levels)).round_()) * levels)
    better = second[0] < first[0]  # (N, G, 1)
    _, codes, scale, zero = (torch.where(better, b, a) for a, b in zip(first, second, strict=True))
    return codes.flatten(1), scale[..., 0].bfloat16(), zero[..., 0].bfloat16()


def _fit(groups: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups (N, G, 128) -> squared error (N, G, 1), codes, scale, and the zero that bfloat16 can hold."""
    zero = zero.bfloat16().float()
    codes = ((groups - zero) / _divisor(scale)).round_().add_(8).clamp_(0, 15)
    error = torch.addcmul(zero, codes - 8, scale).sub_(groups).square_().sum(-1, keepdim=True)
    return error, codes.to(torch.uint8), scale, zero


def _rounded_up(scale: Tensor, bits: int) -> Tensor:
    """To so many significant bits. Rounded down, the steps would not reach the ends of the range."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**bits).ceil() / 2**bits, exponent)


def _divisor(scale: Tensor) -> Tensor:
    """A group of zeros has scale 0."""
    return scale.clamp_min(torch.finfo(torch.float32).tiny)
