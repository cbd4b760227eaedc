"""SigLIP as timm builds it, at a size for tests."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from vision_lm.config import VisionConfig

SIGLIP = VisionConfig(
    embed_dim=32,
    tower={
        "image_size": 32,
        "timm_model_name": "vision_lm_tiny_siglip",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@timm.models.register_model
def vision_lm_tiny_siglip(pretrained: bool = False, **settings: Any) -> torch.nn.Module:
    """timm's SigLIP (no class token, attention pooling) at a size for tests."""
    small = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "class_token": False,
    }
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        settings.pop(key, None)
    return VisionTransformer(**(small | {"global_pool": "map"} | settings))
