"""EVA-02's image tower as EVA-CLIP trained it (arXiv 2303.11331, 2303.15389), of any size, built with timm.

Beside learned positions, queries and keys of the patches are turned by their row and column. A picture of more patches
than the tower was first trained with counts them in fractions, so that the last one lies where it lay then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lm.trunk import TrunkTower, refuse_unknown


class EvaTower(TrunkTower):
    """A vision transformer with a class token, SwiGLU, and a LayerNorm within each attention and each MLP.

    The class token takes part and is not given: features are the patches.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings`: sizes in the words of EVA-CLIP's vision_cfg; each must be given. Raises KeyError, TypeError."""
        super().__init__()
        from timm.models.eva import Eva

        refuse_unknown(settings, _SETTINGS)
        side = settings["pt_hw_seq_len"]
        self.trunk = Eva(
            img_size=settings["image_size"],
            patch_size=settings["patch_size"],
            embed_dim=settings["width"],
            depth=settings["layers"],
            num_heads=settings["width"] // settings["head_width"],
            mlp_ratio=settings["mlp_ratio"],
            qkv_fused=False,
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(side, side),
            global_pool="",
            num_classes=0,
        )


# pt_hw_seq_len: patches a side in whose units a patch's row and column are counted
_SETTINGS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "pt_hw_seq_len"}
