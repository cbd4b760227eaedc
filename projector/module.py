"""The trained projection: tower features into the language model's embedding space.

LLaVA-1.5's mlp2x_gelu (arXiv 2310.03744) for the patches, and a second small one for pooled tokens. A tower that
does not tell its patches where they are (a convolutional one) gets learned position embeddings here. moondream's first
generation has a second MLP on top, around which the tokens pass as well.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, GELU, Linear on every patch; pooled tokens, if any, get weights of their own and go first."""

    mean: Tensor  # (Dv,), of the tower's features
    spread: Tensor  # (Dv,), their standard deviation

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        pooled_features: int = 0,
        pooled_softmax: bool = False,
        standardise: bool = False,
        positions: int = 0,
        residual_features: int = 0,
        tanh_gelu: bool = False,
    ) -> None:
        super().__init__()
        mlp = partial(_mlp, out_features=out_features, tanh_gelu=tanh_gelu)
        self.patches = mlp(in_features, hidden_features)
        self.pooled = mlp(pooled_features, hidden_features) if pooled_features else None
        self.norm = nn.LayerNorm(out_features) if residual_features else None
        self.residual = mlp(out_features, residual_features) if residual_features else None
        self.pooled_softmax = pooled_softmax
        self.standardise = standardise
        if standardise:
            self.register_buffer("mean", torch.zeros(in_features))
            self.register_buffer("spread", torch.ones(in_features))
        self.positions = nn.Parameter(torch.zeros(positions, out_features)) if positions else None

    def forward(self, patches: Tensor, pooled: Tensor | None = None) -> Tensor:
        """patches (B, N, Dv), pooled (B, P, E) or None -> image tokens (B, P + N, Dt)."""
        if self.standardise:
            patches = (patches - self.mean) / self.spread  # (B, N, Dv)
        tokens = self.patches(patches)  # (B, N, Dt)
        if self.norm is not None and self.residual is not None:
            tokens = self.norm(tokens)
            tokens = tokens + self.residual(tokens)  # (B, N, Dt)
        if self.positions is not None:
            tokens = tokens + self.positions  # (B, N, Dt) + (N, Dt)
        if self.pooled is None:
            return tokens
        if pooled is None:
            raise ValueError("this projector expects pooled tokens beside the patches")
        if self.pooled_softmax:
            pooled = pooled.float().softmax(-1).to(patches.dtype)  # (B, P, E) class probabilities
        return torch.cat([self.pooled(pooled), tokens], dim=1)  # (B, P + N, Dt)


def _mlp(in_features: int, hidden_features: int, out_features: int, tanh_gelu: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.GELU("tanh" if tanh_gelu else "none"),
        nn.Linear(hidden_features, out_features),
    )
