"""An image tower out of open_clip's weights: by model name and tag, from a folder, or from the hub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vision_lm.config import VisionConfig
from vision_lm.encoder import build_tower
from vision_lm.errors import CheckpointError
from vision_lm.hub import download
from vision_lm.model_files import find_folder, read_safetensors
from vision_lm.skeleton import build_encoder_on_meta, check_tensors

CONFIG, TENSORS = "open_clip_config.json", "open_clip_model.safetensors"  # open_clip's layout of a folder
_RESIZE: dict[str, Literal["squash", "crop", "pad"]] = {
    "shortest": "crop",
    "longest": "pad",
    "squash": "squash",
}


@dataclass(frozen=True)
class Tower:
    """An image tower, its tensors named as in its own state dict."""

    name: str
    config: VisionConfig
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class _Clip:
    """A whole CLIP in open_clip's own words, and the file of its weights."""

    name: str
    model: Mapping[str, Any]  # embed_dim, vision_cfg, quick_gelu
    preprocessing: Mapping[str, Any]  # mean, std, interpolation, resize_mode
    weights: Path


def read_tower(source: str) -> Tower:
    """The image tower of an open_clip model and tag ("ViT-L-14-336/openai"), or of a folder or hub id in its layout.

    A folder wins over a model of the same name. Raises CheckpointError.
    """
    clip = _find(source)
    config = _vision_config(clip)
    read = build_encoder_on_meta(config).tower.state_dict()
    with torch.device("meta"):
        whole = build_tower(config).state_dict()
    tensors = {name: t for name, t in read_safetensors(clip.weights).items() if name.startswith("visual.")}
    # All of the tower must fit, also the layers after the last one that is read.
    check_tensors(tensors, {f"visual.{name}": t.shape for name, t in whole.items()}, clip.weights)
    return Tower(clip.name, config, {name: tensors[f"visual.{name}"] for name in read})


def _find(source: str) -> _Clip:
    from open_clip import get_pretrained_cfg, list_models, list_pretrained_tags_by_model

    name, _, tag = source.partition("/")
    if Path(source).expanduser().is_dir() or name not in list_models():
        return _open_folder(find_folder(source, (CONFIG, TENSORS)))
    published = get_pretrained_cfg(name, tag)
    if not published:
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise CheckpointError(f"{source}: {tag!r} is no folder and no tag of {name}; its tags: {tags}")
    repository, file = published["hf_hub"].rsplit("/", 1)
    weights = file.removesuffix(".bin") + ".safetensors" if file else TENSORS
    return _Clip(name, trained_model(name, tag), published, download(repository, [weights]) / weights)


def trained_model(name: str, tag: str) -> Mapping[str, Any]:
    """open_clip's config of a model with the activation that the tag's weights were trained with.

    OpenAI's weights, and a few others, need QuickGELU, which only the configs named `-quickgelu` have; open_clip
    itself warns of a mismatch and goes on. Raises CheckpointError where no config fits.
    """
    from open_clip import get_model_config, get_pretrained_cfg

    wanted = bool(get_pretrained_cfg(name, tag).get("quick_gelu"))
    for model in (get_model_config(name), get_model_config(f"{name}-quickgelu")):
        if model is not None and bool(model.get("quick_gelu")) == wanted:
            return model
    activation = "QuickGELU" if wanted else "GELU"
    raise CheckpointError(
        f"{name}/{tag}: trained with {activation}, and open_clip has no such config of {name}"
    )


def _open_folder(folder: Path) -> _Clip:
    """A folder describes itself: its config says how the weights beside it were trained."""
    from open_clip.transform import PreprocessCfg

    path = folder / CONFIG
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        model = {key: saved["model_cfg"][key] for key in ("embed_dim", "vision_cfg")}
        model["quick_gelu"] = saved["model_cfg"].get("quick_gelu", False)
        preprocessing = dataclasses.asdict(PreprocessCfg()) | saved.get("preprocess_cfg", {})
    except OSError:
        raise CheckpointError(f"{path}: no such file; it says how the weights were trained") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not an open_clip config ({error!r})") from error
    return _Clip(folder.resolve().name, model, preprocessing, folder / TENSORS)


def _vision_config(clip: _Clip) -> VisionConfig:
    tower = dict(clip.model["vision_cfg"])
    if "timm_model_name" in tower:
        tower["timm_model_pretrained"] = False
    size, resize = tower.get("image_size", 224), clip.preprocessing["resize_mode"]
    if not isinstance(size, int):
        raise CheckpointError(f"{clip.name}: takes pictures of {size} pixels; only square ones are supported")
    if resize not in _RESIZE:
        raise CheckpointError(f"{clip.name}: resize_mode {resize!r} is not one of {', '.join(_RESIZE)}")
    return VisionConfig(
        embed_dim=clip.model["embed_dim"],
        tower=tower,
        image_size=size,
        mean=_channels(clip, "mean"),
        std=_channels(clip, "std"),
        quick_gelu=bool(clip.model.get("quick_gelu")),
        resize=_RESIZE[resize],
        fill=_channels(clip, "fill_color", scale=255) if resize == "longest" else None,
        interpolation="bilinear" if clip.preprocessing["interpolation"] == "bilinear" else "bicubic",
    )


def _channels(clip: _Clip, key: str, scale: float = 1.0) -> tuple[float, float, float]:
    """A setting that open_clip takes as one number for all three channels or as one for each."""
    given = clip.preprocessing.get(key, 0)
    levels = given if isinstance(given, (list, tuple)) else [given] * 3
    try:
        red, green, blue = (float(level) / scale for level in levels)
    except (TypeError, ValueError):
        raise CheckpointError(f"{clip.name}: {key} is {given!r}, allowed: a number or three") from None
    return red, green, blue
