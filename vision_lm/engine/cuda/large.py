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
from vision_lm.engine.cuda.layers import Layers, Tokens
from vision_lm.engine.cuda.pack import PackedModel
from vision_lm.engine.cuda.shape import PAGE, Shape
from vision_lm.engine.kv_cache import KVCache

MULTIPLE = 16  # rows of a graph


class Memory:
    """Where a step of B rows has its inputs and outputs, and attention's scratch memory."""

    def __init__(self, shape: Shape, rows: int, pages: int, device: torch.device) -> None:
        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float32, device=device)

        self.exchange = Exchange(rows, pages, device)
        self.logits = zeros(rows, shape.vocab)
        self.draws = Draws.zeros(rows, device)
        self.attended = torch.zeros(rows, shape.queries, dtype=shape.element, device=device)
        self.parts = zeros(shape.part_floats(pages, rows))
        counters = (shape.layers, shape.counters_of(rows))
        self.counters = torch.zeros(counters, dtype=torch.int32, device=device)


class LargeBatch:
    """Decoding steps of any number of rows over 16-bit weights."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, pages: int, blocks: int) -> None:
        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks
        self._layers = Layers(shape, model, kernels)
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

    def try_out(self, rows: Rows, cache: KVCache) -> None:
        """One step, in no graph, until it has ended. Raises whatever is wrong with the kernels or the driver."""
        memory = self._memory(len(rows))
        self._fill(memory, rows)
        self._compute("greedy", memory, cache)
        memory.exchange.started()
        memory.exchange.wait()

    def _run(self, kind: Kind, memory: Memory, rows: Rows, cache: KVCache) -> None:
        self._fill(memory, rows)
        key = (kind, len(memory.logits), *cache.key)
        self._graphs.run(key, lambda: self._compute(kind, memory, cache))
        memory.exchange.started()

    def _fill(self, memory: Memory, rows: Rows) -> None:
        size = len(memory.logits)
        # The rows that are left over repeat the first one: they write what it writes, where it writes it.
        ids, lengths, pages = (
            [*part, *[part[0]] * (size - len(rows))] for part in (rows.ids, rows.lengths, rows.pages)
        )
        memory.exchange.fill(ids, lengths, pages)

    def _compute(self, kind: Kind, memory: Memory, cache: KVCache) -> None:
        memory.exchange.take()
        self._decode(memory, cache)
        if kind != "logits":
            self._choose(memory)
        if kind == "sample":
            self._draw(memory)
        memory.exchange.give()

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
        tokens = Tokens(positions, pages * PAGE + positions % PAGE)
        memory.counters.zero_()

        def attend(rows: Tensor, number: int) -> Tensor:
            parts = struct(rows, memory.attended, *cache.memory[number].chunk(2))
            step = self._step(memory, number, cache.memory.shape[2])
            self._kernels.run(
                [Launch("attend_kernel", self._blocks, shape.attenders, shape.attend_bytes, (parts, step))]
            )
            return memory.attended

        hidden = F.embedding(inputs.ids, model.embedding)  # (B, Dt)
        hidden = self._layers(hidden, tokens, cache, attend)
        memory.logits.copy_(self._layers.logits(hidden, tokens, cache))

    def _step(self, memory: Memory, layer: int = 0, slots: int = 0) -> Struct:
        inputs = memory.exchange
        count, pages = inputs.table.shape
        places = (count, inputs.ids, inputs.lengths, inputs.table, pages, slots, None, None)
        return struct(*places, None, None, None, None, memory.parts, memory.counters[layer])
