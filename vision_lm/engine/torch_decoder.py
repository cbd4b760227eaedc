"""Phi in plain torch with a static key-value cache: the reference decoder, on any device.

In a block of Phi-1.5 (arXiv 2309.05463) one LayerNorm feeds attention and MLP, and both add to the residual.
So the projections that read the LayerNorm are one matrix here, and the two that write the residual another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vision_lm.config import TextConfig


@dataclass(frozen=True)
class Layer:
    """One block's weights."""

    norm: tuple[Tensor, Tensor]  # weight and bias, (Dt,) each
    into: tuple[Tensor, Tensor]  # rows q, k, v, fc1: ((Hq + 2 Hkv) hd + F, Dt)
    out: tuple[Tensor, Tensor]  # columns dense, fc2: (Dt, Hq hd + F)


class KVCache:
    """Keys and values of B sequences that advance together, one column a step.

    The prompts lie right-padded in the first columns; from there on every row writes the same column. A row's
    padding stays behind as a gap that `visible` hides, so rows of any length share every tensor operation.
    """

    def __init__(self, config: TextConfig, lengths: Tensor, columns: int, dtype: torch.dtype) -> None:
        device = lengths.device
        shape = (config.num_hidden_layers, len(lengths), config.num_key_value_heads, columns, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, Hkv, T, hd)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, Hkv, T, hd)
        self.positions = lengths.clone()  # (B,): each row's next position
        self.used = int(lengths.max())  # columns written
        self.ragged = int(lengths.min()) < self.used
        self.visible = torch.ones(len(lengths), columns, dtype=torch.bool, device=device)  # (B, T)
        self.visible[:, : self.used] = torch.arange(self.used, device=device) < lengths[:, None]

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        """Forget a finished row. The last row takes its place."""
        last = len(self.positions) - 1
        if row != last:
            for tensor in (self.keys, self.values):
                tensor[:, row, :, : self.used] = tensor[:, last, :, : self.used]
            self.positions[row] = self.positions[last]
            self.visible[row] = self.visible[last]
        self.keys, self.values = self.keys[:, :last], self.values[:, :last]
        self.positions, self.visible = self.positions[:last], self.visible[:last]


class TorchDecoder:
    """A Phi language model that turns embeddings into next-token logits."""

    def __init__(
        self, config: TextConfig, weights: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        """`weights` is PhiForCausalLM's state dict, by its own names (`model.layers.0.mlp.fc1.weight`)."""
        self.config, self.device, self.dtype = config, device, dtype

        def load(name: str) -> Tensor:
            return weights[name].to(device, dtype)

        def pair(name: str) -> tuple[Tensor, Tensor]:
            return load(f"{name}.weight"), load(f"{name}.bias")

        def layer(name: str) -> Layer:
            reads = [pair(f"{name}.{part}") for part in (*(f"self_attn.{p}_proj" for p in "qkv"), "mlp.fc1")]
            dense, fc2 = pair(f"{name}.self_attn.dense"), pair(f"{name}.mlp.fc2")
            return Layer(
                norm=pair(f"{name}.input_layernorm"),
                into=(torch.cat([weight for weight, _ in reads]), torch.cat([bias for _, bias in reads])),
                out=(torch.cat([dense[0], fc2[0]], dim=1), dense[1] + fc2[1]),
            )

        self.embedding = load("model.embed_tokens.weight")  # (V, Dt)
        self.layers = [layer(f"model.layers.{number}") for number in range(config.num_hidden_layers)]
        self.final_norm = pair("model.final_layernorm")
        self.head = pair("lm_head")  # Phi's head has a bias
        self.cos, self.sin = self._rotary_table()

    def _rotary_table(self) -> tuple[Tensor, Tensor]:
        """cos and sin (T, 1, rotary/2) of every position, shaped to broadcast over heads."""
        half = torch.arange(0, self.config.rotary_dim, 2, dtype=torch.float32)  # (rotary/2,)
        frequencies = self.config.rope_theta ** -(half / self.config.rotary_dim)
        positions = torch.arange(self.config.max_position_embeddings, dtype=torch.float32)
        angles = (positions[:, None] * frequencies)[:, None]  # (T, 1, rotary/2)
        return angles.cos().to(self.device, self.dtype), angles.sin().to(self.device, self.dtype)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids (T,) -> embeddings (T, Dt)."""
        return F.embedding(torch.tensor(ids, dtype=torch.long, device=self.device), self.embedding)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Tensor], new_tokens: int) -> tuple[Tensor, KVCache]:
        """Prompts (T_i, Dt) -> the logits (B, V) after each one's last token, float32, and their cache.

        The cache has room for `new_tokens` more. Padding is on the right, so the causal mask alone hides it.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)  # (B,)
        hidden = pad_sequence(list(prompts), batch_first=True).to(self.device, self.dtype)  # (B, T, Dt)
        batch, longest, _ = hidden.shape
        cache = KVCache(self.config, lengths, longest + new_tokens, self.dtype)
        positions = torch.arange(longest, device=self.device)  # (T,)
        hidden = self._blocks(hidden, positions, cache, slice(0, longest), None)
        last = hidden[torch.arange(batch, device=self.device), lengths - 1]  # (B, Dt)
        return self._logits(last), cache

    @torch.inference_mode()
    def step(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """One more token (B,) for each sequence -> the logits (B, V) after it, float32."""
        column = cache.used
        hidden = self.embed(ids)[:, None]  # (B, 1, Dt)
        mask = cache.visible[:, None, None, : column + 1] if cache.ragged else None  # (B, 1, 1, T)
        positions = cache.positions[:, None]  # (B, 1)
        hidden = self._blocks(hidden, positions, cache, slice(column, column + 1), mask)
        cache.used += 1
        cache.positions += 1
        return self._logits(hidden[:, 0])

    def _blocks(
        self, hidden: Tensor, positions: Tensor, cache: KVCache, columns: slice, mask: Tensor | None
    ) -> Tensor:
        """Hidden states (B, T, Dt) through every layer, their keys and values written to `columns`."""
        width, heads, shared = (
            self.config.head_dim,
            self.config.num_attention_heads,
            self.config.num_key_value_heads,
        )
        sizes = [(heads + shared) * width, shared * width, self.config.intermediate_size]
        cos, sin = self.cos[positions], self.sin[positions]  # (T, 1, rotary/2) or (B, 1, 1, rotary/2)
        batch, length, _ = hidden.shape
        causal = length > 1
        for number, layer in enumerate(self.layers):
            normed = F.layer_norm(hidden, hidden.shape[-1:], *layer.norm, self.config.layer_norm_eps)
            qk, v, fc1 = F.linear(normed, *layer.into).split(sizes, dim=-1)
            qk = rotate(qk.reshape(batch, length, heads + shared, width), cos, sin).transpose(1, 2)
            keys, values = cache.keys[number], cache.values[number]  # (B, Hkv, T_max, hd)
            keys[:, :, columns] = qk[:, heads:]
            values[:, :, columns] = v.reshape(batch, length, shared, width).transpose(1, 2)
            keys, values = keys[:, :, : columns.stop], values[:, :, : columns.stop]
            attended = attend(qk[:, :heads], keys, values, mask, causal)  # (B, Hq, T, hd)
            attended = attended.transpose(1, 2).reshape(batch, length, heads * width)
            outputs = torch.cat([attended, F.gelu(fc1, approximate="tanh")], dim=-1)
            hidden = hidden + F.linear(outputs, *layer.out)  # (B, T, Dt)
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, Dt) -> logits (B, V), float32."""
        normed = F.layer_norm(hidden, hidden.shape[-1:], *self.final_norm, self.config.layer_norm_eps)
        return F.linear(normed, *self.head).float()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) in half-split layout of (B, T, H, hd), as wide as the table."""
    half = cos.shape[-1]
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of (B, Hq, T, hd) over (B, Hkv, S, hd), its scores in float32: Phi-2's overflow float16."""
    grouped = queries.shape[1] != keys.shape[1]
    # Every backend of this function keeps its scores in float32, whatever the dtype.
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal, enable_gqa=grouped)
