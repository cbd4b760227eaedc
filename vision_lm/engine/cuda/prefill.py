"""Prefill over the weights that the decoding kernels read: layers.py with torch's attention, in graphs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from vision_lm.engine.cuda.launch import Kernels
from vision_lm.engine.cuda.layers import Layers, Tokens
from vision_lm.engine.cuda.pack import PackedModel
from vision_lm.engine.cuda.recent_graphs import RecentGraphs
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.torch_decoder import Chunk

GRAPHS = 8  # kept, of single chunks
MULTIPLE = 32  # tokens of a single chunk: questions of many lengths share a graph
PADDING = -1  # the slot of a token that is not kept
# cuDNN's attention, which torch may prefer, plans for tens of milliseconds at every length that it has not seen.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Prefill:
    """`TorchDecoder.prefill` over packed weights of 16 bits."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels) -> None:
        self._shape, self._model = shape, model
        self._layers = Layers(shape, model, kernels)
        self._graphs = RecentGraphs(model.embedding.device, GRAPHS)

    def __call__(self, embeddings: Tensor, chunks: Sequence[Chunk], cache: KVCache) -> Tensor:
        """Embeddings (N, Dt) of all chunks, one after the other -> logits (R, V) after the complete ones, float32."""
        embeddings = embeddings.to(self._model.embedding.device, self._shape.element)
        ends = itertools.accumulate(chunk.count for chunk in chunks)
        last = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.complete]
        if len(chunks) == 1:
            return self._single(embeddings, chunks[0], len(last), cache)
        slots = [chunk.slots for chunk in chunks]
        return self._logits(chunks, cache, embeddings, embeddings.new_tensor(last, dtype=torch.long), *slots)

    def _single(self, embeddings: Tensor, chunk: Chunk, wanted: int, cache: KVCache) -> Tensor:
        """One chunk, with padding behind it, which it does not see."""
        size = -(-chunk.count // MULTIPLE) * MULTIPLE
        slots = F.pad(chunk.slots, (0, size - chunk.count), value=PADDING)  # (start + size,)
        embeddings = F.pad(embeddings, (0, 0, 0, size - chunk.count))  # (size, Dt)
        last = slots.new_full((wanted,), chunk.count - 1)
        padded = Chunk(chunk.start, size, slots, chunk.complete, chunk.prefix)
        key = (chunk.start, size, chunk.prefix, wanted, *cache.key)

        def work(embeddings: Tensor, last: Tensor, slots: Tensor) -> Tensor:
            return self._logits([padded], cache, embeddings, last, slots)

        return self._graphs.run(key, work, embeddings, last, slots)

    def _logits(
        self, chunks: Sequence[Chunk], cache: KVCache, embeddings: Tensor, last: Tensor, *slots: Tensor
    ) -> Tensor:
        """`slots`: the chunks'; those in the chunks themselves are not looked at. `last` (R,): rows whose logits are wanted."""
        model, memory = self._model, cache.memory
        counts = [chunk.count for chunk in chunks]
        runs = [
            torch.arange(chunk.start, chunk.start + chunk.count, device=embeddings.device) for chunk in chunks
        ]
        positions = torch.cat(runs).clamp(max=len(model.cosines) - 1)  # (N,): padding may lie beyond
        places = torch.cat([some[chunk.start :] for some, chunk in zip(slots, chunks, strict=True)])  # (N,)
        # Padding reads what is written: 0 times NaN is NaN.
        read = [some.where(some >= 0, some[:1]) for some in slots]
        tokens = Tokens(positions, places)

        def attend(rows: Tensor, number: int) -> Tensor:
            attended = [
                self._attend(some, memory[number], chunk, their_slots)
                for some, chunk, their_slots in zip(rows.split(counts), chunks, read, strict=True)
            ]
            return attended[0] if len(attended) == 1 else torch.cat(attended)

        with sdpa_kernel(BACKENDS):
            hidden = self._layers(embeddings.clone(), tokens, cache, attend)
        return self._layers.logits(hidden.index_select(0, last), tokens, cache)

    def _attend(self, rows: Tensor, memory: Tensor, chunk: Chunk, slots: Tensor) -> Tensor:
        """One chunk's finished rows (C, q k v fc1) over one layer's cache (2 Hkv, slots, hd) -> (C, Hq hd)."""
        shape = self._shape
        heads = rows[:, : shape.queries + 2 * shape.keys].unflatten(1, (-1, shape.head_dim)).transpose(0, 1)
        queries, fresh = heads[: shape.heads], heads[shape.heads :]  # (Hq, C, hd), (2 Hkv, C, hd)
        if chunk.start:
            fresh = memory.index_select(1, slots)  # (2 Hkv, start + C, hd)
        keys, values = fresh.chunk(2)
        return attend(queries, keys, values, max(chunk.prefix - chunk.start, 0))


def attend(queries: Tensor, keys: Tensor, values: Tensor, prefix: int) -> Tensor:
    """Attention of a sequence's last tokens (Hq, C, hd) over all of it (Hkv, S, hd) -> (C, Hq hd).

    A token sees those before it and itself; the first `prefix` of the C see each other too. In two parts then: torch's
    fast kernels take no masks.
    """
    count, seen = queries.shape[1], keys.shape[1]
    grouped, parts = len(queries) != len(keys), []
    if prefix:
        stop = seen - count + prefix
        part = queries[None, :, :prefix], keys[None, :, :stop], values[None, :, :stop]
        parts.append(F.scaled_dot_product_attention(*part, enable_gqa=grouped))
    if prefix < count:
        mask = causal_lower_right(count - prefix, seen)
        part = queries[None, :, prefix:], keys[None], values[None]
        parts.append(F.scaled_dot_product_attention(*part, mask, enable_gqa=grouped))
    attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (1, Hq, C, hd)
    return attended[0].transpose(0, 1).flatten(1)
