"""The steps of one batch bucket: our kernels at fixed addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vision_lm.engine.cuda.graphs import Graphs
from vision_lm.engine.cuda.launch import Inputs, Kernels, Launch, Scratch, step_launches, struct
from vision_lm.engine.cuda.pack import PackedModel
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.kv_cache import KVCache

PADDING = -1  # the length of an empty row
Kind = Literal["logits", "greedy", "sample"]


@dataclass(frozen=True)
class Draws:
    """How the rows of a step are sampled, on the decoder's device."""

    settings: Tensor  # (B, 4) float32: temperature (0 is greedy), top_p, min_p, a uniform number in [0, 1)
    top_k: Tensor  # (B,) int32: the vocabulary's size keeps all


class Bucket:
    """Steps of up to `shape.batch` rows."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, pages: int, blocks: int) -> None:
        device, batch = model.embedding.device, shape.batch

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks
        self._inputs = Inputs(
            ids=zeros(batch, dtype=torch.int64),
            lengths=zeros(batch, dtype=torch.int32),
            table=zeros(batch, pages, dtype=torch.int32),
            logits=zeros(batch, shape.vocab),
            next=zeros(batch, dtype=torch.int64),
            logprobs=zeros(batch),
        )
        self._draws = Draws(zeros(batch, 4), zeros(batch, dtype=torch.int32))
        self._scratch = Scratch.of(shape, pages, blocks, device)
        self._graphs = Graphs(device)

    @property
    def rows(self) -> int:
        return self._shape.batch

    def logits(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Tensor:
        """-> (n, V), the caller's own."""
        self._run("logits", ids, lengths, table, cache)
        assert self._inputs.logits is not None
        return self._inputs.logits[: len(ids)].clone()

    def tokens(
        self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache, draws: Draws | None
    ) -> tuple[Tensor, Tensor]:
        """-> the next tokens (n,), the likeliest without `draws`, and their log-probabilities (n,)."""
        rows = len(ids)
        if draws is not None:
            self._draws.settings[:rows].copy_(draws.settings, non_blocking=True)
            self._draws.top_k[:rows].copy_(draws.top_k, non_blocking=True)
        self._run("greedy" if draws is None else "sample", ids, lengths, table, cache)
        return self._inputs.next[:rows].clone(), self._inputs.logprobs[:rows].clone()

    def _run(self, kind: Kind, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> None:
        rows, pages = table.shape
        into = self._inputs
        into.ids[:rows].copy_(ids, non_blocking=True)
        into.lengths[:rows].copy_(lengths, non_blocking=True)
        into.lengths[rows:].fill_(PADDING)
        into.table[:rows, :pages].copy_(table, non_blocking=True)
        key = (kind, cache.memory.data_ptr())
        self._graphs.run(key, lambda: self._kernels.run(self._launches(kind, cache)))

    def _launches(self, kind: Kind, cache: KVCache) -> list[Launch]:
        i, shape = self._inputs, self._shape
        inputs = Inputs(i.ids, i.lengths, i.table, None if kind == "greedy" else i.logits, i.next, i.logprobs)
        parts = (shape, self._model, inputs, self._scratch, cache.memory, self._blocks)
        launches = list(step_launches(*parts))
        if kind == "sample":
            sampler = struct(i.logits, self._draws.settings, self._draws.top_k, i.next, i.logprobs)
            step = launches[0].parameters[1]
            launches.append(
                Launch("sample_kernel", shape.batch, shape.streamers, shape.sample_bytes, (sampler, step))
            )
        return launches
