"""What a kernel is compiled for: one model, one number format, one batch size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from vision_lm.config import TextConfig
from vision_lm.engine.cuda.errors import CudaDecoderError

Bits = Literal[16, 8, 4]
ELEMENTS = {torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16"}
BUCKETS = (1, 2, 4, 8)  # rows a compiled step has
PAGE = 16  # tokens of a cache page
TILE = 8  # rows of a matrix that are multiplied together
MOST_RING = {16: 14, 8: 11, 4: 11}  # units by bits of a weight: with more, an H100's step took longer
# Streaming warps, attention warps, and chunks of 32 tokens of an attention item: what a row's bits depend on.
WARPS = ((8, 4, 6), (8, 2, 4), (8, 2, 2), (4, 2, 2))
SEGMENT = 256  # weights along a row that are summed before the sum is kept


@dataclass(frozen=True)
class Shape:
    """The defines of a build. Widths are in numbers, not bytes."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: int
    vocab: int
    layers: int
    norm_eps: float
    element: torch.dtype
    bits: Bits = 16
    batch: int = 1
    warps: int = 8  # that stream weights
    attention_warps: int = 4
    chunks: int = 6  # of 32 tokens, of one attention item
    ring: int = 6  # units of 1 KiB in flight to a warp, and one being read
    activation_kib: int = 64  # of shared memory for K2's activations
    attend_warps: int = 8  # of the kernel that is attention alone
    persistent: bool = False  # the step is one kernel

    def __post_init__(self) -> None:
        chunk = 128 // self.bits
        wrong = [
            self.element not in ELEMENTS and f"dtype {self.element}",
            self.batch not in BUCKETS and f"batch {self.batch}",
            self.head_dim not in (32, 64, 80) and f"head size {self.head_dim}",
            self.heads % self.kv_heads != 0 and f"{self.heads} heads over {self.kv_heads}",
            any(width % chunk for width in (self.hidden, self.ffn, self.queries))
            and f"widths {self.hidden}, {self.ffn}, {self.queries} in rows of {chunk} weights",
            (self.into_rows % TILE or self.hidden % TILE)
            and f"{self.into_rows} and {self.hidden} rows in tiles of {TILE}",
        ]
        if reasons := [reason for reason in wrong if reason]:
            raise CudaDecoderError(f"the CUDA kernels are not made for {', '.join(reasons)}")

    @classmethod
    def of(cls, config: TextConfig, element: torch.dtype, bits: Bits = 16, batch: int = 1) -> Shape:
        return cls(
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rotary=config.rotary_dim,
            vocab=config.vocab_size,
            layers=config.num_hidden_layers,
            norm_eps=config.layer_norm_eps,
            element=element,
            bits=bits,
            batch=batch,
        )

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def into_rows(self) -> int:
        return self.queries + 2 * self.keys + self.ffn

    @property
    def streamers(self) -> int:
        return self.warps * 32

    @property
    def threads(self) -> int:
        return (self.warps + self.attention_warps) * 32

    @property
    def split(self) -> int:
        """Tokens of one attention item."""
        return self.chunks * 32

    @property
    def attenders(self) -> int:
        return self.attend_warps * 32

    # Shared memory of the kernels, by the sums in their sources.

    @property
    def ring_bytes(self) -> int:
        return self.warps * self.ring * (1024 + (64 if self.bits == 4 else 0))

    def _activation_bytes(self, width: int) -> int:
        if self.bits == 16:
            return self.batch * 16 * (width // 4 + 4)
        groups = (width + 127) // 128  # with a sum and a scale each
        return self.batch * 16 * (width // 8 + 4 + (groups + 1) // 2)

    def _sums_bytes(self, tiles: int, segments: int) -> int:
        return 4 * tiles * segments * self.batch * TILE

    @property
    def project_bytes(self) -> int:  # of K1, and of K3
        scratch = 2 * self.warps * self.batch * 4
        norm = 2 * self.hidden * 4 + self._activation_bytes(self.hidden) + scratch
        raw = 0 if self.bits == 16 else self.batch * self.hidden * 4
        sums = 2 * self._sums_bytes(max(1, 16 // self.batch), -(-self.hidden // SEGMENT))
        return self.ring_bytes + norm + max(sums, raw)

    @property
    def _attention_bytes(self) -> int:  # of a warp
        return 2 * 32 * (2 * self.head_dim + 16) + 4 * self.head_dim

    @property
    def sample_bytes(self) -> int:
        return 256 * 16 + self.streamers * 16 + 64

    @property
    def attend_bytes(self) -> int:
        return self.attend_warps * self._attention_bytes

    @property
    def _attenders_bytes(self) -> int:
        return self.chunks * self._attention_bytes + self.attention_warps * 8 * (self.head_dim + 4)

    def _mix_rows_bytes(self, blocks: int) -> int:
        most = max(-(-width // SEGMENT) for width in (self.ffn, self.queries))
        segments = min(most, max(1, self.activation_kib * 1024 // (SEGMENT * 4 * self.batch)))
        kept = sum(-(-width // SEGMENT) for width in (self.ffn, self.queries))
        sums = self._sums_bytes(-(-self.hidden // TILE // blocks), kept)
        return self._activation_bytes(segments * SEGMENT) + sums

    def mix_bytes(self, blocks: int) -> int:
        return self.ring_bytes + self._mix_rows_bytes(blocks) + self._attenders_bytes

    def step_bytes(self, blocks: int) -> int:
        """Of the persistent kernel."""
        affine = 2 * self.hidden * 4
        rows = max(self.project_bytes - self.ring_bytes - affine, self._mix_rows_bytes(blocks))
        return self.ring_bytes + affine + rows + self._attenders_bytes

    def fitting(self, blocks: int, shared: int, choices: Sequence[tuple[int, int, int]] = ()) -> Shape:
        """The same kernels with less in flight, where a block has only `shared` bytes of shared memory.

        `choices` of WARPS; without any its own, then smaller ones. Raises CudaDecoderError.
        """
        warps = choices or ((self.warps, self.attention_warps, self.chunks), *WARPS[1:])
        attend_warps = min(24, shared // self._attention_bytes)
        smaller = [
            dataclasses.replace(
                self,
                warps=streaming,
                attention_warps=attending,
                chunks=chunks,
                activation_kib=kib,
                ring=ring,
                attend_warps=attend_warps,
            )
            for (streaming, attending, chunks), kib, ring in itertools.product(
                warps, (64, 32, 16), range(MOST_RING[self.bits] if self.persistent else self.ring, 1, -1)
            )
        ]
        if self.persistent:
            fitting, beside = [one for one in smaller if one.step_bytes(blocks) <= shared], []
        else:
            fitting = [one for one in smaller if max(one.project_bytes, one.mix_bytes(blocks)) <= shared]
            # Best is room for the next kernel beside the one that runs; a block takes 1 KiB more than it asks for.
            beside = [
                one
                for one in fitting
                if (one.warps, one.attention_warps, one.chunks) == warps[0]
                and one.ring >= 4
                and one.project_bytes + one.mix_bytes(blocks) <= shared - 1024
            ]
        if not fitting:
            raise CudaDecoderError(
                f"a GPU of {shared >> 10} KiB of shared memory is too small for {self.batch} rows"
            )
        return (beside or fitting)[0]

    def part_floats(self, pages: int, rows: int) -> int:
        """Attention's intermediate results for block tables of so many pages."""
        return rows * self.heads * (pages * PAGE // self.split + 1) * (self.head_dim + 4)

    def counters_of(self, rows: int) -> int:
        return 8 + rows * self.heads

    def defines(self) -> dict[str, str]:
        return {
            f"ELEMENT_{ELEMENTS[self.element]}": "1",
            "BITS": str(self.bits),
            "BATCH": str(self.batch),
            "HIDDEN": str(self.hidden),
            "FFN": str(self.ffn),
            "HEADS": str(self.heads),
            "KV_HEADS": str(self.kv_heads),
            "HEAD_DIM": str(self.head_dim),
            "ROTARY": str(self.rotary),
            "VOCAB": str(self.vocab),
            "LAYERS": str(self.layers),
            "NORM_EPS": f"{self.norm_eps!r}f",
            "QUERY_SCALE": f"{self.head_dim**-0.5!r}f",
            "WARPS": str(self.warps),
            "ATTENTION_WARPS": str(self.attention_warps),
            "CHUNKS": str(self.chunks),
            "PERSISTENT": str(int(self.persistent)),
            "ATTEND_WARPS": str(self.attend_warps),
            "RING": str(self.ring),
            "ACTIVATION_BYTES": str(self.activation_kib * 1024),
        }
