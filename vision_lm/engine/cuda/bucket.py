"""The steps of one batch bucket: our kernels at fixed addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vision_lm.engine.cuda.exchange import Exchange, Found
from vision_lm.engine.cuda.graphs import Graphs
from vision_lm.engine.cuda.launch import Inputs, Kernels, Launch, Scratch, step_launches, struct
from vision_lm.engine.cuda.pack import PackedModel
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.kv_cache import KVCache

Kind = Literal["logits", "greedy", "sample"]


@dataclass(frozen=True)
class Rows:
    """Sequences that are to get one more token each."""

    ids: Sequence[int]  # (B,): the tokens to compute
    lengths: Sequence[int]  # (B,): tokens already in the cache
    pages: Sequence[Sequence[int]]  # of each sequence, the new token's included

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, some: slice) -> Rows:
        return Rows(self.ids[some], self.lengths[some], self.pages[some])


@dataclass(frozen=True)
class Draws:
    """How the rows of a step are sampled."""

    settings: Tensor  # (B, 4) float32: temperature (0 is greedy), top_p, min_p, a uniform number in [0, 1)
    top_k: Tensor  # (B,) int32: the vocabulary's size keeps all

    @classmethod
    def zeros(cls, rows: int, device: torch.device) -> Draws:
        return cls(torch.zeros(rows, 4, device=device), torch.zeros(rows, dtype=torch.int32, device=device))

    def fill(self, draws: Draws) -> None:
        self.settings[: len(draws.top_k)].copy_(draws.settings, non_blocking=True)
        self.top_k[: len(draws.top_k)].copy_(draws.top_k, non_blocking=True)

    def part(self, some: slice) -> Draws:
        return Draws(self.settings[some], self.top_k[some])


class Bucket:
    """Steps of up to `shape.batch` rows."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, pages: int, blocks: int) -> None:
        device, batch = model.embedding.device, shape.batch
        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks
        self._exchange = Exchange(batch, pages, device)
        self._logits = torch.zeros(batch, shape.vocab, device=device)
        self._draws = Draws.zeros(batch, device)
        self._scratch = Scratch.of(shape, pages, blocks, device)
        self._graphs = Graphs(device)

    @property
    def rows(self) -> int:
        return self._shape.batch

    def logits(self, rows: Rows, cache: KVCache) -> Tensor:
        """-> (n, V), the caller's own."""
        self._run("logits", rows, cache)
        return self._logits[: len(rows)].clone()

    def tokens(self, rows: Rows, cache: KVCache, draws: Draws | None) -> Found:
        """-> the next tokens of n rows, without `draws` the likeliest."""
        if draws is not None:
            self._draws.fill(draws)
        self._run("greedy" if draws is None else "sample", rows, cache)
        return self._exchange.results(len(rows))

    def try_out(self, rows: Rows, cache: KVCache) -> None:
        """One step, in no graph, until it has ended. Raises whatever is wrong with the kernels or the driver."""
        self._exchange.fill(rows.ids, rows.lengths, rows.pages)
        self._step("logits", cache)
        self._exchange.started()
        self._exchange.wait()

    def _run(self, kind: Kind, rows: Rows, cache: KVCache) -> None:
        self._exchange.fill(rows.ids, rows.lengths, rows.pages)
        self._graphs.run((kind, *cache.key), lambda: self._step(kind, cache))
        self._exchange.started()

    def _step(self, kind: Kind, cache: KVCache) -> None:
        self._exchange.take()
        self._kernels.run(self._launches(kind, cache))
        self._exchange.give()

    def _launches(self, kind: Kind, cache: KVCache) -> list[Launch]:
        e, shape = self._exchange, self._shape
        logits = None if kind == "greedy" else self._logits
        inputs = Inputs(e.ids, e.lengths, e.table, logits, e.next, e.logprobs, e.rivals)
        parts = (shape, self._model, inputs, self._scratch, cache.memory, self._blocks)
        launches = list(step_launches(*parts, shape.persistent))
        if kind == "sample":
            draws = self._draws
            sampler = struct(logits, draws.settings, draws.top_k, e.next, e.logprobs, e.rivals)
            step = launches[0].parameters[1]
            launches.append(
                Launch("sample_kernel", shape.batch, shape.streamers, shape.sample_bytes, (sampler, step))
            )
        return launches
