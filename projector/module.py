"""The trained projection: tower features into the language model's embedding space.

LLaVA-1.5's mlp2x_gelu (arXiv 2310.03744) for the patches, and a second small one for pooled tokens. A tower that
does not tell its patches where they are (a convolutional one) gets learned position embeddings here. moondream's first
generation has a second MLP on top, around which the tokens pass as well.

A token that carries a thousand probabilities at once says poorly which of two near ones is larger. So the likeliest
nouns of class evidence may have tokens of their own, the likeliest first, as if nothing else were possible: a place in
the order tells them apart, and how likely they are, the token of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

TINY = 1e-30  # as good as never


class Projector(nn.Module):
    """Linear, GELU, Linear on every patch; pooled tokens, if any, get weights of their own and go first."""

    nouns: Tensor  # (E,), for each class the first one that people call by the same noun
    mean: Tensor  # (Dv,), of the tower's features
    spread: Tensor  # (Dv,), their standard deviation

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        pooled_features: int = 0,
        pooled_softmax: bool = False,
        likeliest: int = 0,
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
        self.likeliest = likeliest
        if likeliest:
            self.register_buffer("nouns", torch.arange(pooled_features))
        self.standardise = standardise
        if standardise:
            self.register_buffer("mean", torch.zeros(in_features))
            self.register_buffer("spread", torch.ones(in_features))
        self.positions = nn.Parameter(torch.zeros(positions, out_features)) if positions else None

    def forward(self, patches: Tensor, pooled: Tensor | None = None) -> Tensor:
        """patches (B, N, Dv), pooled (B, P, E) or None -> image tokens (B, L + P + N, Dt), L of the likeliest nouns."""
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
            pooled = pooled.float().softmax(-1)  # (B, P, E) class probabilities
        if self.likeliest:
            pooled = torch.cat([*self._likeliest(pooled[:, 0]), pooled], dim=1)  # (B, L + P, E)
        return torch.cat([self.pooled(pooled.to(patches.dtype)), tokens], dim=1)  # (B, L + P + N, Dt)

    def _likeliest(self, rest: Tensor) -> Iterator[Tensor]:
        """Probabilities (B, E) -> those of the likeliest noun's classes, if it is that one (B, 1, E), of the next, ..."""
        for _ in range(self.likeliest):
            sums = torch.zeros_like(rest).scatter_add(1, self.nouns.expand_as(rest), rest)  # (B, E), by noun
            own = rest * (self.nouns == sums.argmax(1, keepdim=True))  # (B, E)
            sum_of_own = own.sum(1, keepdim=True).clamp(min=TINY)  # 0 where one noun before had everything
            yield (own / sum_of_own)[:, None]
            rest = rest - own


def _mlp(in_features: int, hidden_features: int, out_features: int, tanh_gelu: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.GELU("tanh" if tanh_gelu else "none"),
        nn.Linear(hidden_features, out_features),
    )
