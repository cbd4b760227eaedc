"""Phi decoded as gpt-fast decodes Llama (github.com/meta-pytorch/gpt-fast): plain modules, a static cache, torch.compile.

A yardstick, not a part of the engine: one batch of equal prompts, greedy, no pages, no sharing, nothing joins or leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_lm.config import TextConfig


class Block(nn.Module):
    """One layer, its keys and values in buffers of fixed size."""

    keys: Tensor  # (B, Hkv, S, hd)
    values: Tensor

    def __init__(self, config: TextConfig, batch: int, length: int) -> None:
        super().__init__()
        width, head, inner = config.hidden_size, config.head_dim, config.intermediate_size
        self.sizes = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.input_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.qkv = nn.Linear(width, sum(self.sizes) * head)
        self.dense = nn.Linear(self.sizes[0] * head, width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.empty(batch, self.sizes[1], length, head), persistent=False)

    def forward(self, hidden: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """hidden (B, T, Dt) at positions (T,), which see what `mask` (T, S) says."""
        normed = self.input_layernorm(hidden)
        parts = self.qkv(normed).unflatten(-1, (sum(self.sizes), -1)).transpose(1, 2)
        q, k, v = parts.split(self.sizes, dim=1)  # (B, H, T, hd) each
        self.keys[:, :, positions] = rotate(k, cos, sin)
        self.values[:, :, positions] = v
        grouped = self.sizes[0] != self.sizes[1]
        attended = F.scaled_dot_product_attention(
            rotate(q, cos, sin), self.keys, self.values, mask, enable_gqa=grouped
        )  # (B, Hq, T, hd)
        inner = self.fc2(F.gelu(self.fc1(normed), approximate="tanh"))
        return hidden + self.dense(attended.transpose(1, 2).flatten(2)) + inner


class StaticPhi(nn.Module):
    """Every step has the same shapes, so one graph serves them all."""

    cos: Tensor  # (S, rotary/2)
    sin: Tensor
    visible: Tensor  # (S, S)

    def __init__(self, config: TextConfig, batch: int, length: int) -> None:
        super().__init__()
        width, vocabulary = config.hidden_size, config.vocab_size
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(config, batch, length) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.lm_head = nn.Linear(width, vocabulary)
        for name in ("cos", "sin", "visible"):
            self.register_buffer(name, None, persistent=False)

    @classmethod
    def load(cls, config: TextConfig, weights: Mapping[str, Tensor], batch: int, length: int) -> StaticPhi:
        """`weights`: PhiForCausalLM's state dict; `length`: tokens of prompt and answer together."""
        like = weights["lm_head.weight"]
        with torch.device("meta"):
            phi = cls(config, batch, length).to(like.dtype)
        named = {re.sub(r"model\.|self_attn\.|mlp\.", "", name): one for name, one in weights.items()}
        for number, layer in enumerate(phi.layers):
            assert isinstance(layer, Block)
            for kind in ("weight", "bias"):  # queries, keys and values in one matrix, as gpt-fast has them
                parts = [named.pop(f"layers.{number}.{part}_proj.{kind}") for part in "qkv"]
                named[f"layers.{number}.qkv.{kind}"] = torch.cat(parts)
            layer.keys, layer.values = (
                torch.zeros_like(one, device=like.device) for one in (layer.keys, layer.values)
            )
        phi.load_state_dict(named, assign=True)
        half = torch.arange(0, config.rotary_dim, 2, device=like.device) / config.rotary_dim
        angles = torch.arange(length, device=like.device)[:, None] * config.rope_theta**-half
        phi.cos, phi.sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
        phi.visible = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
        return phi.eval().requires_grad_(False)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (B, T) at positions (T,) -> the likeliest token after the last of them (B, 1)."""
        hidden = self.embed_tokens(ids)  # (B, T, Dt)
        cos, sin, mask = self.cos[positions], self.sin[positions], self.visible[positions]
        for layer in self.layers:
            hidden = layer(hidden, positions, cos, sin, mask)
        return self.lm_head(self.final_layernorm(hidden[:, -1])).argmax(-1, keepdim=True)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (B, H, T, hd) in half-split layout, as wide as the table (T, rotary/2)."""
    half = cos.shape[-1]
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


@torch.inference_mode()
def decode(phi: StaticPhi, step: Callable[..., Tensor], prompts: Tensor, tokens: int) -> Iterator[Tensor]:
    """Greedy tokens (B, 1) one after the other; `step` is `phi`, compiled or not, and `phi` itself reads the prompt."""
    length = prompts.shape[1]
    following = phi(prompts, torch.arange(length, device=prompts.device))
    yield following
    for place in range(length, length + tokens - 1):
        # A graph overwrites its output when it runs again.
        following = step(following, torch.tensor([place], device=prompts.device)).clone()
        yield following
