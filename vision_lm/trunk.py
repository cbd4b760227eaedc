"""An image tower that is one of timm's vision transformers, of any size, read at its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from torch import Tensor, nn


class TrunkTower(nn.Module):
    """What `ImageEncoder` asks of a tower, for a trunk of blocks with a last LayerNorm. A subclass builds the trunk."""

    trunk: Any  # timm's transformers have no common type

    def drop_unread_layers(self, last: int, normed: bool) -> None:
        """Keep the blocks up to `last`, and the LayerNorm only if it is applied."""
        self.trunk.blocks = self.trunk.blocks[: last + 1]
        if not normed:
            self.trunk.norm = nn.Identity()

    def forward_intermediates(
        self,
        pixels: Tensor,
        *,
        indices: list[int],
        stop_early: bool,
        normalize_intermediates: bool,
        intermediates_only: bool,
    ) -> dict[str, Any]:
        """pixels (B, 3, S, S) -> the feature maps (B, C, H, W) of these blocks, as open_clip's towers give them."""
        maps = self.trunk.forward_intermediates(
            pixels,
            indices=indices,
            norm=normalize_intermediates,
            stop_early=stop_early,
            intermediates_only=intermediates_only,
        )
        return {"image_intermediates": maps}


def refuse_unknown(settings: Mapping[str, Any], known: Set[str]) -> None:
    """Raise TypeError for a setting that the tower would ignore."""
    if rest := settings.keys() - known:
        raise TypeError(f"unknown settings {sorted(rest)}; allowed: {sorted(known)}")
