"""EVA-CLIP's image tower, restated from its code: its modules' names, and what they compute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# 4 patches a side, counted as 16; heads 64 wide; as at full size, the SwiGLU is as wide as int(width * 2.6667).
SMALL_EVA: dict[str, Any] = {"hidden_size": 128, "layers": 3, "image_size": 56, "embed_dim": 24}
EVA_L: dict[str, Any] = {"hidden_size": 1024, "layers": 24, "image_size": 336, "embed_dim": 768}
PATCH, HEAD, FIRST_SIDE = 14, 64, 16


@dataclass(frozen=True)
class Seen:
    """As transformers' towers give it: after the embeddings, and after each block."""

    hidden_states: list[Tensor]  # each (B, 1 + N, Dv), the class token first


class Eva(nn.Module):
    """Named as in EVA-CLIP's `visual`, its rotation tables in every block as there."""

    def __init__(self, hidden_size: int, layers: int, image_size: int, embed_dim: int) -> None:
        super().__init__()
        side = image_size // PATCH
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, hidden_size))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, hidden_size, PATCH, PATCH)})
        self.rope = Turn(side)
        self.blocks = nn.ModuleList(Block(hidden_size, self.rope) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.head = nn.Linear(hidden_size, embed_dim)

    def forward(self, pixels: Tensor, output_hidden_states: bool = True) -> Seen:
        """pixels (B, 3, S, S); nothing follows the last block here, for Bunny stops before it."""
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)  # (B, N, Dv)
        states = [torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed]
        for block in self.blocks:
            states.append(block(states[-1]))
        return Seen(states)


class Turn(nn.Module):
    """Pairs of a head's values as complex numbers: the first half turned by the row, the second by the column."""

    def __init__(self, side: int, span: int = FIRST_SIDE) -> None:
        super().__init__()
        at = torch.arange(side, dtype=torch.float32) * span / side
        speeds = 10_000.0 ** -(torch.arange(HEAD // 4, dtype=torch.float32) / (HEAD // 4))
        turns = torch.outer(at, speeds)  # (side, HEAD / 4)
        rows, columns = turns[:, None].expand(-1, side, -1), turns[None].expand(side, -1, -1)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # (N, HEAD / 2)
        self.register_buffer("freqs_cos", angles.cos().repeat_interleave(2, dim=-1))
        self.register_buffer("freqs_sin", angles.sin().repeat_interleave(2, dim=-1))

    def forward(self, heads: Tensor) -> Tensor:
        """(B, H, 1 + N, HEAD) -> the same, all but the class token turned."""
        table: Any = self.freqs_cos, self.freqs_sin
        factors = torch.complex(*(one[:, ::2].contiguous() for one in table))  # (N, HEAD / 2)
        pairs = torch.view_as_complex(heads[:, :, 1:].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat([heads[:, :, :1], torch.view_as_real(pairs * factors).flatten(-2)], dim=2)


class Block(nn.Module):
    """x + attention(LN(x)), then x + SwiGLU(LN(x)); in each a LayerNorm before the last linear layer."""

    def __init__(self, width: int, rope: Turn) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, rope), SwiGLU(width, int(width * 2.6667))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Queries and values have a bias of their own, keys have none."""

    def __init__(self, width: int, rope: Turn) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, width)
        self.rope = rope

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias
        q, k, v = (one.unflatten(-1, (-1, HEAD)).transpose(1, 2) for one in (q, k, v))  # (B, H, 1 + N, HEAD)
        scores = self.rope(q) @ self.rope(k).transpose(-1, -2) / math.sqrt(HEAD)
        return self.proj(self.inner_attn_ln((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.ffn_ln = nn.LayerNorm(inner, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
