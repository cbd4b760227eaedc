"""Phi's layers over the weights that the decoding kernels read: matrices by cuBLAS, kernels of ours between them.

A layer is six launches: LayerNorm, q k v fc1 in one product, what finishes them in place, attention, and two products
that add to the residual. dense's and fc2's bias waits for the next LayerNorm, which adds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.engine.cuda.launch import Kernels, Launch, Struct, struct
from vision_lm.engine.cuda.pack import PackedMatrix, PackedModel
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.kv_cache import KVCache


@dataclass(frozen=True)
class Tokens:
    """Where tokens stand."""

    positions: Tensor  # (N,) int64, in their sequences
    places: Tensor  # (N,) int64, slots of the cache; below 0 a token is padding and is not kept


class Layers:
    """Any number of tokens through all layers, in the weights' 16 bits."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels) -> None:
        self._shape, self._model, self._kernels = shape, model, kernels
        self._biases = [layer.into.bias.to(shape.element) for layer in model.layers]  # as cuBLAS adds them

    def __call__(
        self, hidden: Tensor, tokens: Tokens, cache: KVCache, attend: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """`hidden` (N, Dt), which is overwritten, -> that of the last layer, less its last biases: for `logits`.

        `attend` takes finished rows (N, q k v fc1) and a layer's number, and gives (N, Hq hd).
        """
        normed, biases = torch.empty_like(hidden), None  # biases: those of the layer before
        where = self._where(tokens, cache)
        for number, layer in enumerate(self._model.layers):
            residual = struct(hidden, biases, layer.gamma, layer.beta, normed)
            self._launch("norm_kernel", 32, residual, where, len(hidden))
            rows = F.linear(normed, layer.into.rows, self._biases[number])  # (N, q k v fc1)
            projected = struct(rows, *cache.memory[number].chunk(2))
            self._launch("finish_kernel", self._shape.streamers, projected, where, 3 * len(hidden))
            hidden.addmm_(attend(rows, number), layer.dense.rows.T)
            hidden.addmm_(rows[:, -self._shape.ffn :], layer.fc2.rows.T)
            biases = layer.dense.bias
        return hidden

    def logits(self, hidden: Tensor, tokens: Tokens, cache: KVCache) -> Tensor:
        """Some of what the layers gave (R, Dt), R at most N -> (R, V), float32."""
        model = self._model
        normed, biases = torch.empty_like(hidden), model.layers[-1].dense.bias
        residual = struct(hidden, biases, model.gamma, model.beta, normed)
        self._launch("norm_kernel", 32, residual, self._where(tokens, cache, len(hidden)), len(hidden))
        return linear(normed, model.head)[:, : self._shape.vocab]

    def _where(self, tokens: Tokens, cache: KVCache, count: int | None = None) -> Struct:
        count = len(tokens.positions) if count is None else count
        tables = (cache.memory.shape[2], self._model.cosines, self._model.sines)
        return struct(count, tokens.positions, tokens.places, *tables)

    def _launch(self, kernel: str, threads: int, what: Struct, where: Struct, blocks: int) -> None:
        if blocks:
            self._kernels.run([Launch(kernel, blocks, threads, 0, (what, where))])


def linear(x: Tensor, matrix: PackedMatrix) -> Tensor:
    """x (B, K) -> (B, N), summed and biased in float32."""
    if x.is_cuda:
        return torch.mm(x, matrix.rows.T, out_dtype=torch.float32) + matrix.bias
    return x.float() @ matrix.rows.T.float() + matrix.bias
