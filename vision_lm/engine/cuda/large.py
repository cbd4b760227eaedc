"""Large batches: the matrices by cuBLAS, attention over the pages by our kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cuda.launch import Kernels, Launch, struct
from vision_lm.engine.cuda.pack import PackedMatrix, PackedModel
from vision_lm.engine.cuda.shape import PAGE, Shape
from vision_lm.engine.kv_cache import KVCache

LOG2E = 1.4426950408889634


class LargeBatch:
    """Decoding steps of any number of rows over 16-bit weights."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, blocks: int) -> None:
        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks

    def decode(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Tensor:
        """ids (B,), lengths (B,), table (B, P) -> logits (B, V), float32."""
        shape, model, device = self._shape, self._model, self._model.embedding.device
        ids, lengths = ids.to(device), lengths.to(device, torch.int32)
        table = table.to(device, torch.int32).contiguous()
        positions = lengths.long()
        pages = table.gather(1, (positions // PAGE)[:, None])[:, 0].long()
        slots = pages * PAGE + positions % PAGE  # (B,)
        cos, sin = model.cosines[positions][:, None], model.sines[positions][:, None]  # (B, 1, rotary/2)
        sizes = [shape.queries + shape.keys, shape.keys, shape.ffn]
        hidden = F.embedding(ids, model.embedding).float()  # (B, Dt)
        attention = _Attention(shape, self._kernels, self._blocks, lengths, table)
        for number, layer in enumerate(model.layers):
            normed = self._norm(hidden, layer.gamma, layer.beta)
            qk, v, fc1 = _linear(normed, layer.into).split(sizes, dim=-1)
            qk = rotate_pairs(qk.unflatten(1, (-1, shape.head_dim)), cos, sin)  # (B, Hq + Hkv, hd)
            keys, values = cache.keys[number], cache.values[number]  # (slots, Hkv, hd)
            keys[slots] = qk[:, shape.heads :].to(keys.dtype)
            values[slots] = v.unflatten(1, (-1, shape.head_dim)).to(values.dtype)
            attended = attention(qk[:, : shape.heads], keys, values).to(shape.element)  # (B, Hq hd)
            activated = F.gelu(fc1, approximate="tanh").to(shape.element)
            hidden = hidden + _linear(attended, layer.dense) + _linear(activated, layer.fc2)
        normed = self._norm(hidden, model.gamma, model.beta)
        return _linear(normed, model.head)[:, : shape.vocab]

    def _norm(self, hidden: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], gamma, beta, self._shape.norm_eps).to(
            self._shape.element
        )


class _Attention:
    """attend_kernel for the rows of one step."""

    def __init__(self, shape: Shape, kernels: Kernels, blocks: int, lengths: Tensor, table: Tensor) -> None:
        self._shape, self._kernels, self._blocks = shape, kernels, blocks
        rows, pages = table.shape
        device = table.device
        self._lengths, self._table = lengths, table
        self._counters = torch.zeros(shape.counters_of(rows), dtype=torch.int32, device=device)
        self._parts = torch.empty(shape.part_floats(pages, rows), dtype=torch.float32, device=device)
        self._attended = torch.empty(rows, shape.queries, dtype=torch.float32, device=device)

    def __call__(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries (B, Hq, hd) over one layer's cache (slots, Hkv, hd) -> (B, Hq hd), float32."""
        scaled = (queries.float() * (LOG2E * self._shape.head_dim**-0.5)).flatten(1).contiguous()
        self._counters.zero_()
        table = self._table
        places: Sequence[Tensor | int | None] = (
            len(table),
            None,
            self._lengths,
            table,
            table.shape[1],
            None,
            None,
        )
        scratch = (None, scaled, None, self._parts, self._attended, self._counters)
        layer = struct(*[None] * 11, keys, values)
        shared = self._shape.attend_bytes
        launch = Launch(
            "attend_kernel", self._blocks, self._shape.streamers, shared, (layer, struct(*places, *scratch))
        )
        self._kernels.run([launch])
        return self._attended


def _linear(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """x (B, K) -> (B, N), its bias added in float32."""
    if x.is_cuda:
        return torch.mm(x, matrix.rows.T, out_dtype=torch.float32) + matrix.bias
    return x.float() @ matrix.rows.T.float() + matrix.bias


def rotate_pairs(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (B, H, hd) whose turned dimensions come in pairs -> in PhiForCausalLM's order."""
    half = cos.shape[-1]
    turned = heads[..., : 2 * half].unflatten(-1, (half, 2))
    a, b = turned.unbind(-1)  # (B, H, rotary/2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, heads[..., 2 * half :]], dim=-1)
