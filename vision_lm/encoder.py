"""The image encoder: an open_clip, SigLIP or EVA tower, from an RGB picture to patch features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vision_lm.config import VisionConfig
from vision_lm.crop_features import merge, views
from vision_lm.preprocess import fit, normalise

CPU_BATCH = 4  # pictures whose activations stay in a processor's cache
VIEWS = 16  # parts of pictures that the tower sees at once: a picture may have a dozen
# How much the middle's evidence counts: the subject is mostly there, and classifiers are scored on centre crops.
CENTRE = 2 / 3


@dataclass(frozen=True)
class Features:
    """What the tower says about B pictures."""

    patches: Tensor  # (B, N, Dv)
    pooled: Tensor | None = None  # (B, P, E): CLIP embeddings, one for each entry of VisionConfig.pooled


class ImageEncoder(nn.Module):
    """An image tower (open_clip's VisionTransformer, a timm trunk, SigLIP's, EVA's) read at chosen hidden states."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower: Any = build_tower(config)  # open_clip's towers have no common type
        self.layers = hidden_states(self.tower, config)
        if not config.pooled:
            _drop_unread_layers(self.tower, max(self.layers), config.normed)

    def preprocess(self, image: Image.Image) -> Tensor:
        """RGB picture of any size -> normalised pixels (3, S, S), float32; with parts, those of its sheet (3, H, W)."""
        return torch.from_numpy(normalise(fit(image, self.config), self.config))

    def forward(self, pixels: Tensor) -> Features:
        """pixels (B, 3, S, S) -> patches (B, N, Dv) and, if the config asks for them, pooled tokens.

        With parts: sheets (B, 3, H, W) of one shape -> patches (B, N, 2 Dv), the whole's features first.
        """
        crops = self.config.crops
        if crops is None:
            return self._seen(pixels)
        wholes, parts = views(pixels, crops, self.config.image_size)
        features = self._seen(wholes).patches  # (B, N, Dv)
        if parts is None:
            return Features(torch.cat([features, features], dim=-1))
        side = self.config.image_size // self.config.tower["patch_size"]
        split = parts.flatten(0, 2).split(VIEWS)
        fine = torch.cat([self._seen(some).patches for some in split])  # (B r c, N, Dv)
        fine = merge(fine.unflatten(1, (side, side)).unflatten(0, parts.shape[:3]), crops)  # (B, N, Dv)
        return Features(torch.cat([features, fine], dim=-1))

    def _seen(self, pixels: Tensor) -> Features:
        """The tower's features of squares (B, 3, S, S)."""
        indices = list(self.layers)
        if not self.config.pooled:
            maps = self.tower.forward_intermediates(
                pixels,
                indices=indices,
                stop_early=True,
                normalize_intermediates=self.config.normed,
                intermediates_only=True,
            )["image_intermediates"]
            return Features(concatenate(maps)[:, self.config.skip_patches :])
        trunk = self.tower.trunk
        final, maps = trunk.forward_intermediates(pixels, indices=indices)  # (B, C, H, W), list of maps
        mixed = "subject" in self.config.pooled
        windows = ("all", "centre") if mixed else self.config.pooled
        read = {window: trunk.forward_head(_window(final, window)) for window in windows}  # (B, E) each
        if mixed:
            read["subject"] = subject(read["all"], read["centre"])
        pooled = torch.stack([read[view] for view in self.config.pooled], dim=1)  # (B, P, E)
        return Features(concatenate(maps), pooled)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Features:
        """`forward` for inference: on the tower's device, in its precision, and in parts that suit a processor."""
        weight = next(self.parameters())
        pixels = pixels.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        size = CPU_BATCH if weight.device.type == "cpu" else len(pixels)
        parts = [self(part) for part in pixels.split(size)]
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Features(torch.cat([part.patches for part in parts]), torch.cat(pooled) if pooled else None)


def normalise_by(levels: Tensor, pixels: Tensor) -> Tensor:
    """Pixels (B, H, W, 3), uint8 -> what the tower reads (B, 3, H, W), from each channel's levels (3, 256)."""
    first = torch.arange(
        0, levels.numel(), levels.shape[1], device=levels.device
    )  # (3,): where a channel's begin
    return levels.take(pixels + first).permute(0, 3, 1, 2)


def build_tower(config: VisionConfig) -> nn.Module:
    """The bare tower, weights untouched. The text tower is never built: it would double the load time."""
    if config.kind == "siglip":
        from vision_lm.siglip import SiglipTower

        return SiglipTower(config.tower)
    if config.kind == "eva":
        from vision_lm.eva import EvaTower

        return EvaTower(config.tower)
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    return _build_vision_tower(config.embed_dim, CLIPVisionCfg(**config.tower), quick_gelu=config.quick_gelu)


def concatenate(maps: list[Tensor]) -> Tensor:
    """Feature maps of several stages (B, C, H, W) -> patches (B, N, Dv) on the coarsest grid.

    A finer map is brought to that grid by pixel-unshuffle, which keeps every value.
    """
    coarsest = min(m.shape[-1] for m in maps)
    maps = [F.pixel_unshuffle(m, m.shape[-1] // coarsest) if m.shape[-1] > coarsest else m for m in maps]
    return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)  # (B, N, Dv)


def feature_width(encoder: ImageEncoder) -> tuple[int, int]:
    """Number of patches N and their width Dv, found by running the tower's shapes."""
    with torch.no_grad():
        size = encoder.config.image_size
        parameter = next(encoder.parameters())
        pixels = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
        patches = encoder(pixels).patches
    return patches.shape[1], patches.shape[2]


def subject(whole: Tensor, centre: Tensor) -> Tensor:
    """Class logits of the whole picture and of its centre (..., E) -> those of the mean of their probabilities."""
    parts = [whole.log_softmax(-1) + math.log(1 - CENTRE), centre.log_softmax(-1) + math.log(CENTRE)]
    return torch.logaddexp(*parts)  # (..., E)


def _window(final: Tensor, window: str) -> Tensor:
    """The part of the final feature map that a pooled token averages: all of it, or without its border."""
    return final if window == "all" else final[:, :, 1:-1, 1:-1]  # (B, C, H, W) or (B, C, H-2, W-2)


def hidden_states(tower: Any, config: VisionConfig) -> tuple[int, ...]:
    """The hidden states to read, counted from 0. -1 is the last layer's output, -2 the one before, as in transformers."""
    trunk = getattr(tower, "trunk", None)
    depth = len(tower.transformer.resblocks) if trunk is None else len(trunk.feature_info)
    return tuple(layer + depth if layer < 0 else layer for layer in config.features)


def _drop_unread_layers(tower: Any, last: int, normed: bool) -> None:
    """A ViT read at its second to last layer needs neither its last layer nor its head: save their memory."""
    if hasattr(tower, "drop_unread_layers"):
        tower.drop_unread_layers(last, normed)
    elif not hasattr(tower, "trunk"):
        tower.transformer.resblocks = tower.transformer.resblocks[: last + 1]
        tower.proj = None
        if not normed:
            tower.ln_post = nn.Identity()
