"""What an export of graphs computes, as three torch modules in float32: eyes, token embeddings, and Phi with a cache.

Inputs and outputs, their names and their order are those of the image-text-to-text models that transformers.js reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projector.module import Projector
from vision_lm.checkpoint import Checkpoint
from vision_lm.config import TextConfig
from vision_lm.encoder import ImageEncoder


class Eyes(nn.Module):
    """Image encoder and projector."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.encoder = ImageEncoder(checkpoint.config.vision)
        self.projector = Projector(**dataclasses.asdict(checkpoint.config.projector))
        self.load_state_dict(
            {n: t.float() for n, t in checkpoint.tensors.items() if not n.startswith("phi.")}
        )
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixels (B, 3, S, S), normalised -> image tokens (B, M, Dt)."""
        features = self.encoder(pixel_values)
        tokens: Tensor = self.projector(features.patches, features.pooled)
        return tokens


class Embedding(nn.Module):
    """The language model's token embeddings."""

    weight: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.register_buffer("weight", checkpoint.tensors["phi.model.embed_tokens.weight"].float())

    def forward(self, input_ids: Tensor) -> Tensor:
        """ids (B, T) -> embeddings (B, T, Dt)."""
        return F.embedding(input_ids, self.weight)


class Linear(nn.Module):
    """x A + b of one layer or of several side by side, A kept as (in, out): a runtime need not turn it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], *names: str) -> None:
        super().__init__()
        rows = torch.cat([weights[f"{name}.weight"].float() for name in names])  # (out, in)
        self.register_buffer("weight", rows.T.contiguous())
        self.register_buffer("bias", torch.cat([weights[f"{name}.bias"].float() for name in names]))

    def forward(self, values: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return values @ self.weight + self.bias


class Norm(nn.Module):
    """A LayerNorm with the weights of this name."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weights: Mapping[str, Tensor], name: str, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weights[f"{name}.weight"].float())
        self.register_buffer("bias", weights[f"{name}.bias"].float())
        self.eps = eps

    def forward(self, values: Tensor) -> Tensor:
        return F.layer_norm(values, values.shape[-1:], self.weight, self.bias, self.eps)


class Block(nn.Module):
    """One layer of Phi (arXiv 2309.05463): attention and MLP read the same LayerNorm, both add to the residual."""

    def __init__(self, config: TextConfig, weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.width = config.head_dim
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.input_layernorm = Norm(weights, f"{name}.input_layernorm", config.layer_norm_eps)
        self.qkv_proj = Linear(weights, *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
        self.dense = Linear(weights, f"{name}.self_attn.dense")
        self.fc1, self.fc2 = Linear(weights, f"{name}.mlp.fc1"), Linear(weights, f"{name}.mlp.fc2")

    def forward(
        self, hidden: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (B, S, Dt), keys and values of before (B, Hkv, P, hd) -> hidden, keys and values of all (B, Hkv, P+S, hd).

        `turn`: cos and sin (B, 1, S, R/2); `seen` (B, 1, 1, S, P+S): which of all tokens each of these attends to.
        """
        normed = self.input_layernorm(hidden)
        heads = self.qkv_proj(normed).unflatten(2, (-1, self.width)).transpose(1, 2)  # (B, Hq + 2 Hkv, S, hd)
        queries, fresh_keys, fresh_values = heads.split([self.heads, self.shared, self.shared], dim=1)
        keys = torch.cat([keys, rotate(fresh_keys, *turn)], dim=2)
        values = torch.cat([values, fresh_values], dim=2)
        grouped = rotate(queries, *turn).unflatten(1, (self.shared, -1))  # (B, Hkv, G, S, hd)
        scores = (grouped * self.width**-0.5) @ keys[:, :, None].mT  # (B, Hkv, G, S, P+S)
        # Not infinitely low: of a row in which nothing is seen, infinity would make what is no number.
        weights = scores.where(seen, torch.finfo(scores.dtype).min).softmax(-1)
        attended = (weights @ values[:, :, None]).flatten(1, 2).transpose(1, 2).flatten(2)  # (B, S, Hq hd)
        hidden = hidden + self.dense(attended) + self.fc2(F.gelu(self.fc1(normed), approximate="tanh"))
        return hidden, keys, values


class Language(nn.Module):
    """Phi from embeddings to logits, with the keys and values of earlier tokens as inputs and of all as outputs."""

    cos: Tensor
    sin: Tensor

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config = checkpoint.config.text
        phi = {n.removeprefix("phi."): t for n, t in checkpoint.tensors.items() if n.startswith("phi.")}
        names = [f"model.layers.{number}" for number in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(Block(config, phi, name) for name in names)
        self.final_layernorm = Norm(phi, "model.final_layernorm", config.layer_norm_eps)
        self.lm_head = Linear(phi, "lm_head")  # Phi's has a bias
        half = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32)  # (R/2,)
        frequencies = config.rope_theta ** -(half / config.rotary_dim)
        angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies  # (T, R/2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: list[Tensor],
    ) -> list[Tensor]:
        """embeddings (B, S, Dt), mask (B, P+S) with 0 for padding, positions (B, S), keys and values (B, Hkv, P, hd) of
        each layer in turn -> logits (B, S, V), then keys and values (B, Hkv, P+S, hd) of each layer in turn.
        """
        past = past_key_values[0].shape[2]
        every = torch.arange(past + inputs_embeds.shape[1])  # (P+S,)
        torch._check(attention_mask.shape[1] == len(every))
        now = every[past:, None]  # (S, 1)
        # Each token sees itself, padding too, which nothing else sees.
        seen = ((every <= now) & (attention_mask[:, None] > 0)) | (every == now)  # (B, S, P+S)
        turn = tuple(
            F.embedding(position_ids, table)[:, None] for table in (self.cos, self.sin)
        )  # (B, 1, S, R/2) each
        hidden, present = inputs_embeds, []
        for number, layer in enumerate(self.layers):
            before = past_key_values[2 * number : 2 * number + 2]
            hidden, keys, values = layer(hidden, turn, seen[:, None, None], *before)
            present += [keys, values]
        return [self.lm_head(self.final_layernorm(hidden)), *present]


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) of the first values of heads (B, H, S, hd), in half-split layout."""
    half = cos.shape[-1]
    first, second, rest = heads.split([half, half, heads.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
