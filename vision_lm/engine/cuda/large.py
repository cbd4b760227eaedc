"""Large batches: the matrices by cuBLAS, attention over the pages and sampling by our kernels, in graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cuda.bucket import Draws
from vision_lm.engine.cuda.graphs import Graphs
from vision_lm.engine.cuda.launch import Kernels, Launch, Struct, struct
from vision_lm.engine.cuda.pack import PackedMatrix, PackedModel
from vision_lm.engine.cuda.shape import PAGE, Shape
from vision_lm.engine.kv_cache import KVCache

LOG2E = 1.4426950408889634
MULTIPLE = 16  # rows of a graph


@dataclass(frozen=True)
class Rows:
    """A step's inputs and outputs at fixed addresses, and attention's scratch memory."""

    ids: Tensor  # (B,) int64
    lengths: Tensor  # (B,) int32
    table: Tensor  # (B, P) int32
    logits: Tensor  # (B, V) float32
    attended: Tensor  # (B, Hq hd) float32
    parts: Tensor
    counters: Tensor

    @classmethod
    def of(cls, shape: Shape, rows: int, pages: int, device: torch.device) -> Rows:
        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            ids=zeros(rows, dtype=torch.int64),
            lengths=zeros(rows, dtype=torch.int32),
            table=zeros(rows, pages, dtype=torch.int32),
            logits=zeros(rows, shape.vocab),
            attended=zeros(rows, shape.queries),
            parts=zeros(shape.part_floats(pages, rows)),
            counters=zeros(shape.counters_of(rows), dtype=torch.int32),
        )

    def fill(self, ids: Tensor, lengths: Tensor, table: Tensor) -> None:
        """The rows that are left over repeat the first one: they write what it writes, where it writes it."""
        rows, pages = table.shape
        for into, given in ((self.ids, ids), (self.lengths, lengths), (self.table[:, :pages], table)):
            into[:rows].copy_(given, non_blocking=True)
            into[rows:] = into[:1]


class LargeBatch:
    """Decoding steps of any number of rows over 16-bit weights."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, pages: int, blocks: int) -> None:
        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks
        self._pages = pages
        self._rows: dict[int, Rows] = {}
        self._graphs = Graphs(model.embedding.device)

    def logits(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Tensor:
        """ids (B,), lengths (B,), table (B, P) -> (B, V), float32."""
        return self._run(ids, lengths, table, cache).logits[: len(ids)].clone()

    def tokens(
        self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache, draws: Draws | None
    ) -> tuple[Tensor, Tensor]:
        """-> the next tokens (B,) and their log-probabilities (B,)."""
        rows = self._run(ids, lengths, table, cache)
        count, shape = len(ids), self._shape
        best = rows.logits[:count].max(-1)
        tokens, logprobs = best.indices, best.values - rows.logits[:count].logsumexp(-1)
        if draws is not None:
            settings, top_k = (one.to(tokens.device).contiguous() for one in (draws.settings, draws.top_k))
            sampler = struct(rows.logits, settings, top_k, tokens, logprobs)
            parameters = (sampler, self._step(rows))
            self._kernels.run(
                [Launch("sample_kernel", count, shape.streamers, shape.sample_bytes, parameters)]
            )
        return tokens, logprobs

    def _run(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Rows:
        size = -(-len(ids) // MULTIPLE) * MULTIPLE
        if size not in self._rows:
            self._rows[size] = Rows.of(self._shape, size, self._pages, self._model.embedding.device)
        rows = self._rows[size]
        rows.fill(ids, lengths, table)
        key = (size, cache.memory.data_ptr())
        self._graphs.run(key, lambda: self._decode(rows, cache))
        return rows

    def _decode(self, rows: Rows, cache: KVCache) -> None:
        shape, model = self._shape, self._model
        positions = rows.lengths.long()
        pages = rows.table.gather(1, (positions // PAGE)[:, None])[:, 0].long()
        slots = pages * PAGE + positions % PAGE  # (B,)
        cos, sin = model.cosines[positions][:, None], model.sines[positions][:, None]  # (B, 1, rotary/2)
        sizes = [shape.queries + shape.keys, shape.keys, shape.ffn]
        hidden = F.embedding(rows.ids, model.embedding).float()  # (B, Dt)
        for number, layer in enumerate(model.layers):
            normed = self._norm(hidden, layer.gamma, layer.beta)
            qk, v, fc1 = linear(normed, layer.into).split(sizes, dim=-1)
            qk = rotate_pairs(qk.unflatten(1, (-1, shape.head_dim)), cos, sin)  # (B, Hq + Hkv, hd)
            new = torch.cat([qk[:, shape.heads :], v.unflatten(1, (-1, shape.head_dim))], dim=1)
            cache.write(number, slots, new.to(shape.element))
            attended = self._attend(rows, qk[:, : shape.heads], cache.memory[number]).to(shape.element)
            activated = F.gelu(fc1, approximate="tanh").to(shape.element)
            hidden = hidden + linear(attended, layer.dense) + linear(activated, layer.fc2)
        normed = self._norm(hidden, model.gamma, model.beta)
        rows.logits.copy_(linear(normed, model.head)[:, : shape.vocab])

    def _norm(self, hidden: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        normed = F.layer_norm(hidden, hidden.shape[-1:], gamma, beta, self._shape.norm_eps)
        return normed.to(self._shape.element)

    def _attend(self, rows: Rows, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries (B, Hq, hd) over one layer's cache (2 Hkv, slots, hd) -> (B, Hq hd), float32."""
        shape = self._shape
        scaled = (queries * (LOG2E * shape.head_dim**-0.5)).flatten(1).contiguous()
        rows.counters.zero_()
        parameters = (struct(*[None] * 11, *memory.chunk(2)), self._step(rows, scaled, memory.shape[1]))
        self._kernels.run(
            [Launch("attend_kernel", self._blocks, shape.streamers, shape.attend_bytes, parameters)]
        )
        return rows.attended

    def _step(self, rows: Rows, queries: Tensor | None = None, slots: int = 0) -> Struct:
        count, pages = rows.table.shape
        places = (count, rows.ids, rows.lengths, rows.table, pages, slots, None, None)
        return struct(*places, None, queries, None, rows.parts, rows.attended, rows.counters)


def linear(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """x (B, K) -> (B, N), summed and biased in float32."""
    if x.is_cuda:
        return torch.mm(x, matrix.rows.T, out_dtype=torch.float32) + matrix.bias
    return x.float() @ matrix.rows.T.float() + matrix.bias


def rotate_pairs(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (B, H, hd) whose turned dimensions come in pairs -> in PhiForCausalLM's order."""
    half = cos.shape[-1]
    turned = heads[..., : 2 * half].unflatten(-1, (half, 2))
    a, b = turned.unbind(-1)  # (B, H, rotary/2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, heads[..., 2 * half :]], dim=-1)
