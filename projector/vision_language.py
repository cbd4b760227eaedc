"""The model as it is trained: tower, projector and Phi as one module with a loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from projector.module import Projector
from projector.packing import IGNORED, Packed
from vision_lm.encoder import Features, ImageEncoder


class VisionLanguage(nn.Module):
    """encoder -> projector -> spliced into the prompt -> Phi -> cross entropy on the answers."""

    def __init__(self, encoder: ImageEncoder, projector: Projector, phi: Any, image_token_id: int) -> None:
        super().__init__()
        self.encoder, self.projector, self.phi = encoder, projector, phi
        self.image_token_id = image_token_id

    def forward(self, batch: Packed, pixels: Tensor | None, features: Features | None) -> Tensor:
        """Weighted mean loss of the answer tokens; pictures as pixels (I, 3, S, S), as cached features, or none at all."""
        causal_lm: Any = self.phi.get_base_model() if hasattr(self.phi, "get_base_model") else self.phi
        embeddings = causal_lm.get_input_embeddings()(batch.ids)  # (B, T, Dt)
        if pixels is not None:
            features = self.encoder(pixels)
        if features is not None:
            tokens = self.projector(features.patches, features.pooled)  # (I, P + N, Dt)
            embeddings = splice(embeddings, batch.ids == self.image_token_id, tokens)
        else:  # text alone. Several processes wait for each other's gradient of every trained weight: give them zeros
            embeddings = embeddings + 0.0 * sum(p.sum() for p in self._seeing() if p.requires_grad)
        hidden = causal_lm.model(
            inputs_embeds=embeddings,
            attention_mask=batch.attention_mask(),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state  # (B, T, Dt)
        answered = batch.labels != IGNORED
        logits = causal_lm.lm_head(hidden[answered])  # (answer tokens, V): the head runs where it is needed
        losses = F.cross_entropy(logits.float(), batch.labels[answered], reduction="none")  # (answer tokens,)
        weights = batch.weights[answered]
        return (losses * weights).sum() / weights.sum()

    def _seeing(self) -> Iterator[nn.Parameter]:
        """The weights that only pictures need."""
        yield from self.encoder.parameters()
        yield from self.projector.parameters()


def splice(embeddings: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Put image tokens (I, M, Dt) where `places` (B, T) is true, in order. Raises ValueError if they do not fit."""
    count = int(places.sum())
    if count != tokens.shape[0] * tokens.shape[1]:
        raise ValueError(
            f"{tokens.shape[0]} pictures of {tokens.shape[1]} tokens for {count} places in the prompt"
        )
    return embeddings.masked_scatter(places[..., None], tokens.to(embeddings.dtype))
