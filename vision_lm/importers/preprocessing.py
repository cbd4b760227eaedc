"""transformers' `preprocessor_config.json` as what our encoder does to a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vision_lm.config import Resize, VisionConfig
from vision_lm.errors import CheckpointError

# What is done to every picture here.
_ALWAYS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
_CLOSE = 1e-8  # 0.00392156862745098 is 1 / 255
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def preprocessed(config: VisionConfig, settings: Mapping[str, Any], where: str) -> VisionConfig:
    """The tower with the preprocessing of these settings; what they leave out stays. Raises CheckpointError."""
    for key, usual in _ALWAYS.items():
        if settings.get(key, usual) != usual and abs(settings[key] - usual) > _CLOSE:
            raise CheckpointError(f"{where}: {key} {settings[key]!r} is not supported, only {usual!r}")
    changes: dict[str, Any] = {}
    for ours, key in (("mean", "image_mean"), ("std", "image_std")):
        if key in settings:
            levels = settings[key]
            if not isinstance(levels, list) or len(levels) != 3:
                raise CheckpointError(f"{where}: {key} is {levels!r}, allowed: three numbers")
            changes[ours] = tuple(float(level) for level in levels)
    if "resample" in settings:
        if settings["resample"] not in _RESAMPLE:
            raise CheckpointError(
                f"{where}: resample {settings['resample']!r} is not supported, only 2 (bilinear) and 3 (bicubic)"
            )
        changes["interpolation"] = _RESAMPLE[settings["resample"]]
    if settings.get("size") is not None:
        changes["resize"] = _resize(settings, config.image_size, where)
    changed = dataclasses.replace(config, **changes)
    return padded_first(changed) if settings.get("do_pad") else changed  # LlavaImageProcessor's


def of_aspect(config: VisionConfig, theirs: Mapping[str, Any], where: str) -> VisionConfig:
    """As LLaVA's `image_aspect_ratio` says: stretched, or padded to a square first. Raises CheckpointError."""
    aspect = theirs.get("image_aspect_ratio") or "square"
    if aspect not in ("square", "pad"):
        raise CheckpointError(f"{where}: image_aspect_ratio {aspect!r} is not supported, only square and pad")
    return padded_first(config) if aspect == "pad" else config


def padded_first(config: VisionConfig) -> VisionConfig:
    """LLaVA's padding: to a square at full size, with the mean cut down to whole levels of 255."""
    red, green, blue = (int(255 * level) / 255 for level in config.mean)
    return dataclasses.replace(config, resize="pad_first", fill=(red, green, blue))


def _resize(settings: Mapping[str, Any], side: int, where: str) -> Resize:
    size = settings["size"]
    given = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    if given == {"shortest_edge": side} and settings.get("do_center_crop", True):
        crop = settings.get("crop_size", side)
        if crop in (side, {"height": side, "width": side}):
            return "crop_floor"
    if given == {"height": side, "width": side}:
        return "squash"
    raise CheckpointError(
        f"{where}: pictures are resized to {size!r} and cut to {settings.get('crop_size')!r}, "
        f"but the tower reads squares of {side} pixels"
    )
