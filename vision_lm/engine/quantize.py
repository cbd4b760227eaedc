"""The linear layers that a decoder calls, their weights dense, int8 or int4.

On a CPU each layer keeps its weight as torch's fastest kernel wants it; benchmarks/linear_kernels.py measures the
choice. Where a kernel is missing or inexact (a GPU, a CPU without VNNI) an int8 or int4 weight is dequantised a
block at a time for the float product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.rounding import CHUNK, GROUP, int4_groups, int8_rows
from vision_lm.errors import RequestError

Mode = Literal["int8", "int4"] | None
BLOCK = 64  # rows in a tile of torch's int4 kernel
FEW = 4  # oneDNN's products of 1 or 2 rows are slower than its product of 4
LONG = 48  # rows from which one dequantisation costs less than the int4 kernel, which repeats it every 4 rows
DIGITS = 32_639  # largest code of two signed base-256 digits, 127 * 256 + 127
# The float32 2**23 + n keeps n in its low bits. 32896 = 128 * 257 makes both digits of n unsigned.
MAGIC = float(2**23 + 32_896)


class Linear(Protocol):
    """x (.., K) -> x @ weight.T + bias (.., N), in x's dtype."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def dequantised(self) -> Tensor:
        """The weight that it computes with, float64 (N, K)."""

    @property
    def nbytes(self) -> int:
        """Bytes of weight and scales that a step reads."""


def quantised(
    weight: Tensor, bias: Tensor | None, mode: Mode, dtype: torch.dtype, device: torch.device
) -> Linear:
    """Weight (N, K) and bias (N,) as a layer for inputs of `dtype` on `device`. RequestError: an unknown mode."""
    if mode is None:
        return DenseLinear.pack(weight, bias, dtype, device)
    if mode == "int8":
        return Int8Linear.pack(weight, bias, device)
    if mode == "int4":
        return Int4Linear.pack(weight, bias, dtype, device)
    raise RequestError(f"quantize {mode!r} is unknown; give None, 'int8' or 'int4'")


@dataclass(frozen=True, eq=False)
class DenseLinear:
    """The weight in the model's own dtype."""

    weight: Tensor  # (N, K), or oneDNN's packing of it
    bias: Tensor | None  # (N,)

    @classmethod
    def pack(
        cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> DenseLinear:
        weight = weight.to(device, dtype)
        if device.type == "cpu" and dtype == torch.bfloat16 and _packs_bfloat16():
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), FEW)
        elif device.type == "cpu" and dtype == torch.float32:
            weight = weight.t().contiguous().t()  # a vector times (K, N) is faster than (N, K) times a vector
        return cls(weight, None if bias is None else bias.to(device, dtype))

    def __call__(self, x: Tensor) -> Tensor:
        if not self.weight.is_mkldnn:
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])  # (R, K)
        count = len(rows)
        if count < FEW:
            rows = F.pad(rows, (0, 0, 0, FEW - count))
        y = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return y[:count].reshape(*x.shape[:-1], self.weight.shape[0])

    def dequantised(self) -> Tensor:
        weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        return weight.double()

    @property
    def nbytes(self) -> int:
        return self.weight.numel() * self.weight.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Int8Linear:
    """weight = codes * scale, one scale a row.

    The CPU kernel multiplies bytes by bytes. A row of activations becomes two base-256 digits a value, two rows of
    bytes, within max|x| / 65,278 of the truth: finer than bfloat16. At batch 1 the second digit is free, as the
    kernel is fastest with four rows. Sums are integers: no row depends on another.
    """

    codes: Tensor  # int8 (N, K), or oneDNN's packing of its transpose
    scale: Tensor  # float32 (N,)
    bias: Tensor | None  # float32 (N,)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None, device: torch.device) -> Int8Linear:
        codes, scale = int8_rows(weight.to(device))
        # An int32 holds the sum of this many products of bytes.
        if device.type == "cpu" and codes.shape[1] <= 65_000 and _multiplies_bytes():
            codes = torch.ops.onednn.qlinear_prepack(codes, None)
        return cls(codes, scale, None if bias is None else bias.to(device, torch.float32))

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (R, K)
        y = self._bytes(rows.float()) if self.codes.is_mkldnn else self._floats(rows)
        return y.to(x.dtype).reshape(*x.shape[:-1], len(self.scale))

    def _bytes(self, rows: Tensor) -> Tensor:
        """Float32 rows (R, K) -> (R, N) by the byte kernel."""
        count = len(rows)
        if count == 1:
            rows = rows.expand(FEW // 2, -1)
        step = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / DIGITS  # (R, 1)
        bits = (rows / step).add_(MAGIC).view(torch.int32)  # (R, K)
        digits = torch.cat([bits, bits >> 8]).to(torch.uint8)  # (2R, K): low, high
        y = _byte_product(digits, self.codes, self.scale)  # (2R, N)
        low, high = y.unflatten(0, (2, len(rows)))[:, :count]
        y = torch.add(low, high, alpha=256)
        return y * step[:count] if self.bias is None else torch.addcmul(self.bias, y, step[:count])

    def _floats(self, rows: Tensor) -> Tensor:
        """Rows (R, K) -> (R, N) by the float product, a block of the weight at a time."""
        size = max(1, CHUNK // rows.shape[1])
        blocks = zip(self.codes.split(size), self.scale.split(size), strict=True)
        y = torch.cat([rows @ (codes * scale[:, None]).to(rows.dtype).t() for codes, scale in blocks], 1)
        return y if self.bias is None else y + self.bias

    def dequantised(self) -> Tensor:
        codes = self.codes.to_dense().t() if self.codes.is_mkldnn else self.codes
        return codes.double() * self.scale.double()[:, None]

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + self.scale.nbytes


@dataclass(frozen=True, eq=False)
class Int4Linear:
    """weight = (code - 8) * scale + zero, one scale and one zero a group of 128 inputs.

    On a CPU activations are rounded to bfloat16, the only dtype in which torch's kernel is vectorised, and many
    rows take a bfloat16 product with the dequantised weight. Inputs are padded to whole groups, rows to whole tiles.
    """

    # uint8 (N' / 64, K', 32): rows 0-31 of a tile in the low halves of bytes, 32-63 in the high.
    codes: Tensor
    scales: Tensor  # bfloat16 (K' / 128, N', 2): scale, zero
    bias: Tensor | None  # (N,)
    shape: tuple[int, int]  # N, K
    kernel: bool

    @classmethod
    def pack(
        cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device
    ) -> Int4Linear:
        size, inputs = weight.shape
        codes, scale, zero = int4_groups(weight.to(device))  # (N, K'), (N, G), (N, G)
        rows = -size % BLOCK
        scales = torch.stack([scale.t(), zero.t()], -1)  # (G, N, 2)
        return cls(
            codes=_tiles(F.pad(codes, (0, 0, 0, rows))),
            scales=F.pad(scales, (0, 0, 0, rows)),
            bias=None if bias is None else bias.to(device, dtype),
            shape=(size, inputs),
            kernel=device.type == "cpu" and _reads_tiles(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        size, inputs = self.shape
        on_cpu = x.device.type == "cpu"
        rows = x.reshape(-1, inputs).to(torch.bfloat16 if on_cpu else x.dtype)  # (R, K)
        rows = F.pad(rows, (0, -inputs % GROUP)) if inputs % GROUP else rows  # (R, K')
        if self.kernel and len(rows) < LONG:
            flat = self.codes.view(-1, rows.shape[1] // 2)  # (N', K' / 2)
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, flat, GROUP, self.scales)
        else:
            y = torch.cat([rows @ weight for weight in self._weights(rows.dtype)], 1)
        y = y[:, :size].to(x.dtype)  # (R, N)
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], size)

    def _weights(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The weight's transpose, some columns (K', n) at a time."""
        tiles = max(1, CHUNK // (self.codes.shape[1] * BLOCK))
        blocks = zip(self.codes.split(tiles), self.scales.split(tiles * BLOCK, dim=1), strict=True)
        for packed, scales in blocks:
            codes = torch.cat([packed & 15, packed >> 4], -1).to(dtype).sub_(8)  # (t, K', 64)
            codes = codes.transpose(0, 1).reshape(len(scales), GROUP, -1)  # (G, 128, n)
            scale, zero = scales.to(dtype)[:, None].unbind(-1)  # (G, 1, n) each
            yield torch.addcmul(zero, codes, scale).flatten(0, 1)

    def dequantised(self) -> Tensor:
        size, inputs = self.shape
        return torch.cat(list(self._weights(torch.float64)), 1).t()[:size, :inputs]

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes


def _tiles(codes: Tensor) -> Tensor:
    """Codes (N', K') -> bytes (N' / 64, K', 32)."""
    low, high = codes.unflatten(0, (-1, 2, BLOCK // 2)).unbind(1)  # (N' / 64, 32, K') each
    return (low | high << 4).transpose(1, 2).contiguous()


def _byte_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x (R, K) uint8, 128 meaning 0, times oneDNN's packing of (N, K) -> float32 (R, N), columns scaled."""
    zeros = torch.zeros(1, dtype=torch.long).expand(len(scale))  # of the weight, which is symmetric
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, codes, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def _packs_bfloat16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def _multiplies_bytes() -> bool:
    """Whether sums of byte products are exact here: before VNNI, x86 saturates every pair of them at 16 bits."""
    try:
        codes = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
        y = _byte_product(torch.full((FEW, 64), 255, dtype=torch.uint8), codes, torch.ones(16))
    except (AttributeError, RuntimeError):
        return False
    return bool((y == 64 * 127 * 127).all())


@cache
def _reads_tiles() -> bool:
    """Whether torch's int4 kernel takes weights in our tiles here, as it does with AVX-512."""
    codes = torch.arange(BLOCK * GROUP).view(BLOCK, GROUP) * 7 % 16
    try:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(packed.flatten(), _tiles(codes.to(torch.uint8)).flatten())
