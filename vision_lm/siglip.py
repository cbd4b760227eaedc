"""SigLIP's image tower (arXiv 2303.15343) without its pooling head, of any size, built with timm.

open_clip knows the published sizes by name alone; an imported checkpoint says its own. Pixels beyond the last whole
patch (384 = 27 x 14 + 6) are not seen, as in every published implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class SiglipTower(nn.Module):
    """A vision transformer without a class token: patches plus positions, pre-norm blocks, a last LayerNorm."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: sizes in the words of open_clip's vision_cfg; each must be given. Raises KeyError, TypeError."""
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        rest = settings.keys() - _SETTINGS
        if rest:
            raise TypeError(f"unknown settings {sorted(rest)}; allowed: {sorted(_SETTINGS)}")
        tanh = settings.get("act_kwargs", {}).get("approximate") == "tanh"
        self.trunk = VisionTransformer(
            img_size=settings["image_size"],
            patch_size=settings["patch_size"],
            embed_dim=settings["width"],
            depth=settings["layers"],
            num_heads=settings["width"] // settings["head_width"],
            mlp_ratio=settings["mlp_ratio"],
            act_layer="gelu_tanh" if tanh else "gelu",
            class_token=False,
            global_pool="",
            num_classes=0,
        )

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


_SETTINGS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "act_kwargs"}
