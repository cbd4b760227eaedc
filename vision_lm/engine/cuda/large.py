"""Large batches: the matrices by cuBLAS, attention over the pages and sampling by our kernels, in graphs."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cuda.bucket import Draws, Kind, Rows
from vision_lm.engine.cuda.exchange import Exchange, Found
from vision_lm.engine.cuda.graphs import Graphs
from vision_lm.engine.cuda.launch import Kernels, Launch, Struct, struct
from vision_lm.engine.cuda.pack import PackedMatrix, PackedModel
from vision_lm.engine.cuda.shape import PAGE, Shape
from vision_lm.engine.kv_cache import KVCache

LOG2E = 1.4426950408889634
MULTIPLE = 16  # rows of a graph


class Memory:
    """Where a step of B rows has its inputs and outputs, and attention's scratch memory."""

    def __init__(self, shape: Shape, rows: int, pages: int, device: torch.device) -> None:
        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float32, device=device)

        self.exchange = Exchange(rows, pages, device)
        self.logits = zeros(rows, shape.vocab)
        self.draws = Draws.zeros(rows, device)
        self.attended = zeros(rows, shape.queries)
        self.parts = zeros(shape.part_floats(pages, rows))
        self.counters = torch.zeros(shape.counters_of(rows), dtype=torch.int32, device=device)


class LargeBatch:
    """Decoding steps of any number of rows over 16-bit weights."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, pages: int, blocks: int) -> None:
        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks
        self._pages = pages
        self._memories: dict[int, Memory] = {}  # by rows
        self._graphs = Graphs(model.embedding.device)

    def logits(self, rows: Rows, cache: KVCache) -> Tensor:
        """-> (B, V), float32, the caller's own."""
        memory = self._memory(len(rows))
        self._run("logits", memory, rows, cache)
        return memory.logits[: len(rows)].clone()

    def tokens(self, rows: Rows, cache: KVCache, draws: Draws | None) -> Found:
        """-> the next tokens of B rows, without `draws` the likeliest."""
        memory = self._memory(len(rows))
        if draws is not None:
            memory.draws.fill(draws)
        self._run("greedy" if draws is None else "sample", memory, rows, cache)
        return memory.exchange.results(len(rows))

    def _memory(self, count: int) -> Memory:
        size = -(-count // MULTIPLE) * MULTIPLE
        if size not in self._memories:
            self._memories[size] = Memory(self._shape, size, self._pages, self._model.embedding.device)
        return self._memories[size]

    def _run(self, kind: Kind, memory: Memory, rows: Rows, cache: KVCache) -> None:
        def step() -> None:
            memory.exchange.take()
            self._decode(memory, cache)
            if kind != "logits":
                self._choose(memory)
            if kind == "sample":
                self._draw(memory)
            memory.exchange.give()

        size = len(memory.logits)
        # The rows that are left over repeat the first one: they write what it writes, where it writes it.
        ids, lengths, pages = (
            [*part, *[part[0]] * (size - len(rows))] for part in (rows.ids, rows.lengths, rows.pages)
        )
        memory.exchange.fill(ids, lengths, pages)
        self._graphs.run((kind, size, cache.memory.data_ptr()), step)
        memory.exchange.started()

    def _choose(self, memory: Memory) -> None:
        """The likeliest tokens, and their rivals: as K3 and `choose` say."""
        exchange, logits = memory.exchange, memory.logits
        best = logits.max(-1, keepdim=True)  # of equal ones the first
        total = logits.logsumexp(-1)  # (B,)
        others = logits.scatter(-1, best.indices, -math.inf)  # (B, V)
        exchange.next.copy_(best.indices[:, 0])
        exchange.logprobs.copy_(best.values[:, 0] - total)
        exchange.rivals.copy_(others.amax(-1) - total)

    def _draw(self, memory: Memory) -> None:
        shape, exchange, draws = self._shape, memory.exchange, memory.draws
        sampler = struct(
            *(memory.logits, draws.settings, draws.top_k),
            *(exchange.next, exchange.logprobs, exchange.rivals),
        )
        parameters = (sampler, self._step(memory))
        self._kernels.run(
            [Launch("sample_kernel", len(draws.top_k), shape.streamers, shape.sample_bytes, parameters)]
        )

    def _decode(self, memory: Memory, cache: KVCache) -> None:
        shape, model, inputs = self._shape, self._model, memory.exchange
        positions = inputs.lengths.long()
        pages = inputs.table.gather(1, (positions // PAGE)[:, None])[:, 0].long()
        slots = pages * PAGE + positions % PAGE  # (B,)
        cos, sin = model.cosines[positions][:, None], model.sines[positions][:, None]  # (B, 1, rotary/2)
        sizes = [shape.queries + shape.keys, shape.keys, shape.ffn]
        hidden = F.embedding(inputs.ids, model.embedding).float()  # (B, Dt)
        for number, layer in enumerate(model.layers):
            normed = self._norm(hidden, layer.gamma, layer.beta)
            qk, v, fc1 = linear(normed, layer.into).split(sizes, dim=-1)
            qk = rotate_pairs(qk.unflatten(1, (-1, shape.head_dim)), cos, sin)  # (B, Hq + Hkv, hd)
            new = torch.cat([qk[:, shape.heads :], v.unflatten(1, (-1, shape.head_dim))], dim=1)
            cache.write(number, slots, new.to(shape.element))
            attended = self._attend(memory, qk[:, : shape.heads], cache.memory[number]).to(shape.element)
            activated = F.gelu(fc1, approximate="tanh").to(shape.element)
            hidden = hidden + linear(attended, layer.dense) + linear(activated, layer.fc2)
        normed = self._norm(hidden, model.gamma, model.beta)
        memory.logits.copy_(linear(normed, model.head)[:, : shape.vocab])

    def _norm(self, hidden: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        normed = F.layer_norm(hidden, hidden.shape[-1:], gamma, beta, self._shape.norm_eps)
        return normed.to(self._shape.element)

    def _attend(self, memory: Memory, queries: Tensor, cached: Tensor) -> Tensor:
        """Queries (B, Hq, hd) over one layer's cache (2 Hkv, slots, hd) -> (B, Hq hd), float32."""
        shape = self._shape
        scaled = (queries * (LOG2E * shape.head_dim**-0.5)).flatten(1).contiguous()
        memory.counters.zero_()
        parameters = (struct(*[None] * 11, *cached.chunk(2)), self._step(memory, scaled, cached.shape[1]))
        self._kernels.run(
            [Launch("attend_kernel", self._blocks, shape.attenders, shape.attend_bytes, parameters)]
        )
        return memory.attended

    def _step(self, memory: Memory, queries: Tensor | None = None, slots: int = 0) -> Struct:
        inputs = memory.exchange
        count, pages = inputs.table.shape
        places = (count, inputs.ids, inputs.lengths, inputs.table, pages, slots, None, None)
        return struct(*places, None, queries, None, memory.parts, memory.attended, memory.counters)


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
