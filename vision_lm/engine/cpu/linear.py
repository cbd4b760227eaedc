"""Linear layers for the CPU kernels: one copy of a weight, row by row, that C++ and torch both read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cpu.library import INT4, INT8, KINDS, Matrix, Team, address
from vision_lm.engine.quantize import Mode
from vision_lm.engine.rounding import CHUNK, GROUP, int4_groups, int8_rows
from vision_lm.errors import RequestError

STEP = 32  # inputs that the kernels read at a time, and int4 codes in the low halves of as many bytes
# Rows from which a bfloat16 product by torch, with its tiles for matrices, is faster: rounded weights must be
# dequantised for it first.
MANY, MANY_INT8, MANY_INT4 = 24, 64, 128


@dataclass(frozen=True, eq=False)
class NativeLinear:
    """`Linear` of engine/quantize.py: x (.., K) -> x @ weight.T + bias (.., N), in x's dtype.

    Sums are float32 and in one order, so that no row depends on the others beside it.
    """

    team: Team
    weight: Tensor  # (N, K) in a float dtype; int8 (N, K); or uint8 (N, K' / 2), two codes a byte
    scale: Tensor | None  # float32 (N,), or (N, K' / GROUP)
    zero: Tensor | None  # float32 (N, K' / GROUP)
    bias: Tensor  # float32 (N,)
    inputs: int  # K; K' is K in whole groups

    @classmethod
    def pack(
        cls, team: Team, weight: Tensor, bias: Tensor | None, mode: Mode, dtype: torch.dtype
    ) -> NativeLinear:
        """Raises RequestError for an unknown mode."""
        rows, inputs = weight.shape
        added = torch.zeros(rows) if bias is None else bias.float().contiguous()
        if mode is None:
            return cls(team, _smallest(weight.to(dtype)), None, None, added, inputs)
        if mode == "int8":
            codes, scale = int8_rows(weight)
            return cls(team, codes.contiguous(), scale.contiguous(), None, added, inputs)
        if mode == "int4":
            codes, scale, zero = int4_groups(weight)  # (N, K'), (N, G), (N, G)
            low, high = codes.unflatten(1, (-1, 2, STEP)).unbind(2)  # (N, K' / 64, 32) each
            packed = (low | high << 4).flatten(1).contiguous()
            scale = scale.float()
            return cls(
                team, packed, scale.contiguous(), (zero.float() - 8 * scale).contiguous(), added, inputs
            )
        raise RequestError(f"quantize {mode!r} is unknown; give None, 'int8' or 'int4'")

    @property
    def matrix(self) -> Matrix:
        """Valid while this layer lives."""
        kind = {torch.int8: INT8, torch.uint8: INT4}.get(self.weight.dtype)
        return Matrix(
            weight=address(self.weight),
            scale=None if self.scale is None else address(self.scale),
            zero=None if self.zero is None else address(self.zero),
            bias=address(self.bias),
            outputs=len(self.bias),
            inputs=self.inputs + (-self.inputs % GROUP if kind == INT4 else 0),
            kind=KINDS[self.weight.dtype] if kind is None else kind,
        )

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (R, K)
        many = {torch.int8: MANY_INT8, torch.uint8: MANY_INT4}.get(self.weight.dtype, MANY)
        if x.dtype == torch.float32 or len(rows) < many:
            matrix = self.matrix
            rows, missing = rows.float(), matrix.inputs - self.inputs
            y = self.team.product(matrix, (F.pad(rows, (0, missing)) if missing else rows).contiguous())
        elif self.weight.dtype == x.dtype:
            y = F.linear(rows, self.weight, self.bias.to(x.dtype))
        else:
            size = max(1, CHUNK // rows.shape[1])
            blocks = (self._rows(first, size, x.dtype) for first in range(0, len(self.bias), size))
            y = torch.cat([rows @ block.t() for block in blocks], 1) + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], len(self.bias))

    def _rows(self, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """Rows of the weight that it computes with."""
        weight = self.weight[first : first + count]
        if self.scale is None:
            return weight.to(dtype)
        scale = self.scale[first : first + count].to(dtype)
        if self.zero is None:
            return weight.to(dtype) * scale[:, None]
        halves = weight.unflatten(1, (-1, STEP))  # (n, K' / 64, 32)
        codes = torch.cat([halves & 15, halves >> 4], -1).flatten(1).unflatten(1, (-1, GROUP)).to(dtype)
        zero = self.zero[first : first + count].to(dtype)
        return torch.addcmul(zero[..., None], codes, scale[..., None]).flatten(1)[:, : self.inputs]

    def dequantised(self) -> Tensor:
        """The weight that it computes with, float64 (N, K)."""
        return self._rows(0, len(self.bias), torch.float64)

    @property
    def nbytes(self) -> int:
        """Bytes of weight and scales that a step reads."""
        return sum(part.nbytes for part in (self.weight, self.scale, self.zero) if part is not None)


def _smallest(weight: Tensor) -> Tensor:
    """A float32 weight that came from float16 needs no more: it is read faster, and every product is the same."""
    half = weight.half()
    exact = weight.dtype == torch.float32 and torch.equal(half.float(), weight)
    return (half if exact else weight).contiguous()
