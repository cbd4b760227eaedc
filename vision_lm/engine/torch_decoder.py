"""Phi in plain torch over the paged cache: the reference decoder, on any device.

In a block of Phi-1.5 (arXiv 2309.05463) one LayerNorm feeds attention and MLP, and both add to the residual.
So the projections that read the LayerNorm are one matrix here, and the two that write the residual another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.config import TextConfig
from vision_lm.engine.kv_cache import KVCache, slots_of
from vision_lm.engine.pages import pages_for
from vision_lm.engine.quantize import Linear, Mode, quantised
from vision_lm.engine.sampling import Token
from vision_lm.errors import VisionLMError


@dataclass(frozen=True)
class Layer:
    """One block's weights."""

    norm: tuple[Tensor, Tensor]  # weight and bias, (Dt,) each
    into: Linear  # rows q, k, v, fc1: ((Hq + 2 Hkv) hd + F, Dt)
    out: Linear  # columns dense, fc2: (Dt, Hq hd + F)


@dataclass(frozen=True)
class Chunk:
    """A run of one sequence's tokens to prefill: `count` tokens from position `start` on."""

    start: int
    count: int
    slots: Tensor  # (start + count,): where the sequence's tokens up to the last of these are in the cache
    complete: bool  # whether the logits after its last token are wanted
    prefix: int = 0  # the sequence's first tokens that see each other in both directions, never cut

    def __post_init__(self) -> None:
        stop = self.start + self.count
        if self.start < self.prefix > stop:
            raise ValueError(
                f"a chunk ends at {stop}, inside of the {self.prefix} tokens that see each other"
            )


class TorchDecoder:
    """A Phi language model that turns embeddings into next-token logits."""

    def __init__(
        self,
        config: TextConfig,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        quantize: Mode = None,
    ) -> None:
        """`weights` is PhiForCausalLM's state dict, by its own names (`model.layers.0.mlp.fc1.weight`).

        Raises RequestError for an unknown `quantize`.
        """
        self.config, self.device, self.dtype = config, device, dtype

        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{name}.weight"].to(device, dtype), weights[f"{name}.bias"].to(device, dtype)

        def linear(weight: Tensor, bias: Tensor) -> Linear:
            return self._linear(weight, bias, quantize)

        def layer(name: str) -> Layer:
            reads = [pair(f"{name}.{part}") for part in (*(f"self_attn.{p}_proj" for p in "qkv"), "mlp.fc1")]
            dense, fc2 = pair(f"{name}.self_attn.dense"), pair(f"{name}.mlp.fc2")
            return Layer(
                norm=pair(f"{name}.input_layernorm"),
                into=linear(
                    torch.cat([weight for weight, _ in reads]), torch.cat([bias for _, bias in reads])
                ),
                out=linear(torch.cat([dense[0], fc2[0]], dim=1), dense[1] + fc2[1]),
            )

        self.embedding = weights["model.embed_tokens.weight"].to(device, dtype)  # (V, Dt)
        with torch.inference_mode():
            self.layers = [layer(f"model.layers.{number}") for number in range(config.num_hidden_layers)]
            self.final_norm = pair("model.final_layernorm")
            self.head = linear(*pair("lm_head"))  # Phi's head has a bias
        self.rotary = self._rotary_table()

    def _linear(self, weight: Tensor, bias: Tensor, quantize: Mode) -> Linear:
        return quantised(weight, bias, quantize, self.dtype, self.device)

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self.head.nbytes + sum(layer.into.nbytes + layer.out.nbytes for layer in self.layers)

    def _rotary_table(self) -> Tensor:
        """cos and sin (2, T, hd) of every position: x * cos + swapped(x) * sin is x turned; 1 and 0 where nothing turns."""
        half = torch.arange(0, self.config.rotary_dim, 2, dtype=torch.float32)  # (rotary/2,)
        frequencies = self.config.rope_theta ** -(half / self.config.rotary_dim)
        angles = torch.arange(self.config.max_position_embeddings)[:, None] * frequencies  # (T, rotary/2)
        rest = torch.zeros(len(angles), self.config.head_dim - self.config.rotary_dim)
        cos = torch.cat([angles.cos(), angles.cos(), rest + 1], dim=1)
        sin = torch.cat([-angles.sin(), angles.sin(), rest], dim=1)
        return torch.stack([cos, sin]).to(self.device, self.dtype)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids (T,) -> embeddings (T, Dt)."""
        return F.embedding(torch.tensor(ids, dtype=torch.long, device=self.device), self.embedding)

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor, chunks: Sequence[Chunk], cache: KVCache) -> Tensor:
        """Embeddings (N, Dt) of all chunks, one after the other -> logits (R, V) after the complete ones, float32."""
        counts = [chunk.count for chunk in chunks]
        positions = torch.cat(
            [torch.arange(chunk.start, chunk.start + chunk.count, device=self.device) for chunk in chunks]
        )  # (N,)
        written = torch.cat([chunk.slots[chunk.start :] for chunk in chunks])  # (N,)
        masks = [seen_mask(chunk) for chunk in chunks]

        def attend(queries: Tensor, layer: int) -> Tensor:
            parts = queries.split(counts)  # (C, Hq, hd) each
            attended = [
                attend_chunk(part, *cache.gather(layer, chunk.slots), mask)
                for part, chunk, mask in zip(parts, chunks, masks, strict=True)
            ]
            return torch.cat(attended)  # (N, Hq, hd)

        hidden = embeddings.to(self.device, self.dtype)
        hidden = self._blocks(hidden, positions, cache, written, attend)
        ends = itertools.accumulate(counts)
        last = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.complete]
        return self._logits(hidden[last])

    @torch.inference_mode()
    def decode(
        self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]], cache: KVCache
    ) -> Tensor:
        """One more token for each of B sequences -> the logits (B, V) after it, float32.

        `lengths`: how many of each sequence's tokens are in the cache; `pages`: its pages, the new token's included.
        """
        longest = max(lengths) + 1
        positions = torch.tensor(lengths, device=self.device)  # (B,)
        width = pages_for(longest)
        table = [[*row[:width], *[row[0]] * (width - len(row))] for row in pages]
        slots = slots_of(torch.tensor(table, device=self.device))[:, :longest]  # (B, T)
        written = slots.gather(1, positions[:, None])[:, 0]  # (B,)
        unseen = None
        if min(lengths) + 1 < longest:
            visible = torch.arange(longest, device=self.device) <= positions[:, None]  # (B, T)
            slots = slots.where(visible, slots[:, :1])  # nothing unwritten is read: 0 times NaN is NaN
            unseen = ~visible[:, None]  # (B, 1, T)
        gathered = slots.flatten()  # (B * T,)

        def attend(queries: Tensor, layer: int) -> Tensor:
            return attend_rows(queries, *cache.gather(layer, gathered), unseen)

        hidden = self._blocks(self.embed(ids), positions, cache, written, attend)  # (B, Dt)
        return self._logits(hidden)

    def decode_greedy(
        self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]], cache: KVCache
    ) -> list[Token | VisionLMError] | None:
        """The same step -> what greedy `choose` says of its logits, where that is cheaper without them; else None."""
        return None

    def _blocks(
        self,
        hidden: Tensor,
        positions: Tensor,
        cache: KVCache,
        written: Tensor,
        attention: Callable[[Tensor, int], Tensor],
    ) -> Tensor:
        """Hidden states (N, Dt) at `positions` (N,) through every layer.

        Keys and values are written to the slots `written` (N,); `attention` takes queries (N, Hq, hd) and the layer.
        """
        width, heads = self.config.head_dim, self.config.num_attention_heads
        turned = heads + self.config.num_key_value_heads  # queries and keys; the values follow
        every = turned + self.config.num_key_value_heads
        sizes = [every * width, self.config.intermediate_size]
        cos, sin = self.rotary[:, positions, None]  # (N, 1, hd)
        count = len(hidden)
        for number, layer in enumerate(self.layers):
            normed = F.layer_norm(hidden, hidden.shape[-1:], *layer.norm, self.config.layer_norm_eps)
            qkv, fc1 = layer.into(normed).split(sizes, dim=-1)
            qkv = qkv.reshape(count, every, width)
            qk = rotate(qkv[:, :turned], cos, sin, self.config.rotary_dim)  # (N, Hq + Hkv, hd)
            cache.write(number, written, torch.cat([qk[:, heads:], qkv[:, turned:]], dim=1))
            attended = attention(qk[:, :heads], number).reshape(count, heads * width)
            outputs = torch.cat([attended, F.gelu(fc1, approximate="tanh")], dim=-1)
            hidden = hidden + layer.out(outputs)  # (N, Dt)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, Dt) -> logits (B, V), float32."""
        normed = F.layer_norm(hidden, hidden.shape[-1:], *self.final_norm, self.config.layer_norm_eps)
        return self.head(normed).float()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor, dims: int) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of the first `dims` of (N, H, hd), in half-split layout."""
    half = dims // 2
    swapped = torch.cat([heads[..., half:dims], heads[..., :half], heads[..., dims:]], dim=-1)
    return torch.addcmul(heads * cos, swapped, sin)


def seen_mask(chunk: Chunk) -> Tensor | None:
    """Which tokens (C, S) a chunk's tokens see; None where the plain causal mask, or none, says the same."""
    stop = chunk.start + chunk.count
    if chunk.start >= chunk.prefix and (chunk.start == 0 or chunk.count == 1):
        return None
    positions = torch.arange(stop, device=chunk.slots.device)  # (S,)
    last = positions[chunk.start :].clamp(min=chunk.prefix - 1)  # (C,): each token sees up to here
    return positions <= last[:, None]


def attend_chunk(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one sequence's last tokens (C, Hq, hd) over all of its keys and values (Hkv, S, hd): (C, Hq, hd)."""
    grouped, causal = queries.shape[1] != keys.shape[0], mask is None and len(queries) > 1
    # Every backend of this function keeps its scores in float32, whatever the dtype: Phi-2's overflow float16.
    attended = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None], keys[None], values[None], mask, is_causal=causal, enable_gqa=grouped
    )  # (1, Hq, C, hd)
    return attended[0].transpose(0, 1)


def attend_rows(queries: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None) -> Tensor:
    """Attention of one token of each of B sequences (B, Hq, hd) over keys and values (Hkv, B * T, hd): (B, Hq, hd).

    `unseen` (B, 1, T): what a sequence must not see. Two batched matrix products: for single queries on a CPU many
    times faster in bfloat16 than the fused kernels.
    """
    batch, heads, width = queries.shape
    keys, values = (part.unflatten(1, (batch, -1)) for part in (keys, values))  # (Hkv, B, T, hd)
    if queries.dtype == torch.float16:  # Phi-2's scores overflow it
        keys, values = keys.float(), values.float()
    grouped = queries.reshape(batch, len(keys), -1, width).transpose(0, 1)  # (Hkv, B, G, hd)
    scores = (grouped.to(keys.dtype) * width**-0.5) @ keys.mT  # (Hkv, B, G, T)
    if unseen is not None:
        scores = scores.masked_fill_(unseen, -math.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    attended = (weights @ values).to(queries.dtype)  # (Hkv, B, G, hd)
    return attended.transpose(0, 1).reshape(batch, heads, width)
