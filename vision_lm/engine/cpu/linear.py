"""Linear layers for the CPU kernels: one copy of a weight, as C++ reads it fastest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cpu.library import INT4, INT8, KINDS, Matrix, Team, address
from vision_lm.engine.quantize import Mode
from vision_lm.engine.rounding import GROUP, int4_groups, int8_rows
from vision_lm.errors import RequestError

STEP = 32  # inputs that the kernels read at a time
PANEL = 16  # outputs whose weights for one input lie side by side
# Rows of 16-bit activations from which torch multiplies 16-bit weights faster, and tiles rounded ones.
MANY, MANY_TILED = 24, 16


@dataclass(frozen=True, eq=False)
class NativeLinear:
    """`Linear` of engine/quantize.py: x (.., K) -> x @ weight.T + bias (.., N), in x's dtype.

    Sums are float32 and in one order, so that no row depends on the others beside it; but for many rows of 16 bits that
    torch multiplies (prompts on a processor with tiles). What is computed in 16 bits, and not by tiles, lies in rows where the
    processor has AVX-512; everything else in panels (matrix.h has the layouts).
    """

    team: Team
    # (N, K); or of P panels: float (P, K, 16), bfloat16 and int8 (P, K / 2, 16, 2), uint8 (P, K' / 4, 16, 2)
    weight: Tensor
    scale: Tensor | None  # float32 (P * 16,), or (P, K' / GROUP, 16)
    zero: Tensor | None  # float32 (P, K' / GROUP, 16)
    bias: Tensor  # float32 (P * 16,)
    outputs: int  # N
    inputs: int  # K; K' is K in whole groups

    @classmethod
    def pack(
        cls, team: Team, weight: Tensor, bias: Tensor | None, mode: Mode, dtype: torch.dtype
    ) -> NativeLinear:
        """Raises RequestError for an unknown mode."""
        rows, inputs = weight.shape
        added = _panels(torch.zeros(rows) if bias is None else bias.float()).flatten()
        scale = zero = None
        if mode is None and dtype == torch.bfloat16 and (team.tiles or not team.rows):
            packed = _panels(weight.to(dtype).unflatten(1, (-1, 2)))
        elif mode is None and dtype != torch.float32 and team.rows:
            packed = weight.to(dtype).contiguous()
        elif mode is None:
            packed = _panels(_smallest(weight.to(dtype)))
        elif mode == "int8":
            codes, factor = int8_rows(weight)
            packed = _panels(codes.unflatten(1, (-1, 2)))
            scale = _panels(factor).flatten()
        elif mode == "int4":
            codes, factor, lowest = int4_groups(weight)  # (N, K'), (N, G), (N, G)
            low, high = codes.unflatten(1, (-1, 2, 2)).unbind(2)  # (N, K' / 4, 2) each
            packed = _panels(low | high << 4)
            scale, zero = _panels(factor.float()), _panels(lowest.float() - 8 * factor.float())
        else:
            raise RequestError(f"quantize {mode!r} is unknown; give None, 'int8' or 'int4'")
        return cls(team, packed, scale, zero, added, rows, inputs)

    @property
    def matrix(self) -> Matrix:
        """Valid while this layer lives."""
        kind = {torch.int8: INT8, torch.uint8: INT4}.get(self.weight.dtype)
        return Matrix(
            weight=address(self.weight),
            scale=None if self.scale is None else address(self.scale),
            zero=None if self.zero is None else address(self.zero),
            bias=address(self.bias),
            outputs=self.outputs,
            inputs=self.inputs + (-self.inputs % GROUP if kind == INT4 else 0),
            kind=KINDS[self.weight.dtype] if kind is None else kind,
            panels=self._in_panels,
            unpacked=False,
        )

    @property
    def _in_panels(self) -> bool:
        return self.weight.dim() > 2

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (R, K)
        halves = x.dtype != torch.float32
        if halves and not self._in_panels and len(rows) >= MANY:
            y = F.linear(rows, self.weight, self.bias[: self.outputs].to(x.dtype))
        else:
            matrix = self.matrix
            rounded = self.scale is not None
            matrix.unpacked = halves and rounded and self.team.tiles and len(rows) >= MANY_TILED
            rows, missing = rows.float(), matrix.inputs - self.inputs
            y = self.team.product(matrix, (F.pad(rows, (0, missing)) if missing else rows).contiguous())
        return y.to(x.dtype).reshape(*x.shape[:-1], self.outputs)

    def dequantised(self) -> Tensor:
        """The weight that it computes with, float64 (N, K)."""
        if not self._in_panels:
            return self.weight.double()
        rows = _unpanelled(self.weight)  # (P * 16, K), (P * 16, K / 2, 2), or (P * 16, K' / 4, 2)
        if self.zero is None or self.scale is None:
            weight = rows.flatten(1).double()
            return (weight if self.scale is None else weight * self.scale[:, None])[: self.outputs]
        codes = torch.stack([rows & 15, rows >> 4], 2).flatten(1).unflatten(1, (-1, GROUP)).double()
        scale, zero = (_unpanelled(part).double() for part in (self.scale, self.zero))
        return torch.addcmul(zero[..., None], codes, scale[..., None]).flatten(1)[
            : self.outputs, : self.inputs
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of weight and scales that a step reads."""
        return sum(part.nbytes for part in (self.weight, self.scale, self.zero) if part is not None)


def _panels(rows: Tensor) -> Tensor:
    """(N, K, ..) -> (P, K, 16, ..), or (N,) -> (P, 16); zeros in the rows that the last panel lacks."""
    missing = -len(rows) % PANEL
    whole = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]).unflatten(0, (-1, PANEL))
    return (whole.transpose(1, 2) if whole.dim() > 2 else whole).contiguous()


def _unpanelled(panels: Tensor) -> Tensor:
    """(P, K, 16, ..) -> (P * 16, K, ..)"""
    return panels.transpose(1, 2).flatten(0, 1)


def _smallest(weight: Tensor) -> Tensor:
    """A float32 weight that came from float16 needs no more: it is read faster, and every product is the same."""
    half = weight.half()
    exact = weight.dtype == torch.float32 and torch.equal(half.float(), weight)
    return half if exact else weight
