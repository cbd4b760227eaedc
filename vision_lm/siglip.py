"""SigLIP's image tower (arXiv 2303.15343) without its pooling head, of any size, built with timm.

open_clip knows the published sizes by name alone; an imported checkpoint says its own. Pixels beyond the last whole
patch (384 = 27 x 14 + 6) are not seen, as in every published implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vision_lm.trunk import TrunkTower, refuse_unknown


class SiglipTower(TrunkTower):
    """A vision transformer without a class token: patches plus positions, pre-norm blocks, a last LayerNorm."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: sizes in the words of open_clip's vision_cfg; each must be given. Raises KeyError, TypeError."""
        super().__init__()
        from timm.layers import LayerNorm
        from timm.models.vision_transformer import VisionTransformer

        refuse_unknown(settings, _SETTINGS)
        eps = settings.get("norm_kwargs", {}).get("eps", 1e-6)
        tanh = settings.get("act_kwargs", {}).get("approximate") == "tanh"
        self.trunk = VisionTransformer(
            img_size=settings["image_size"],
            patch_size=settings["patch_size"],
            embed_dim=settings["width"],
            depth=settings["layers"],
            num_heads=settings["width"] // settings["head_width"],
            mlp_ratio=settings["mlp_ratio"],
            act_layer="gelu_tanh" if tanh else "gelu",
            norm_layer=partial(LayerNorm, eps=eps),
            class_token=False,
            global_pool="",
            num_classes=0,
        )


_SETTINGS = {
    "image_size",
    "patch_size",
    "width",
    "layers",
    "head_width",
    "mlp_ratio",
    "act_kwargs",
    "norm_kwargs",
}
