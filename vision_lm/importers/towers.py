"""CLIP and SigLIP image towers as transformers names them, as our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vision_lm.config import VisionConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.tensor_table import From, Table, copy, stacked

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)

# What transformers leaves out of a config.json because it is its default (CLIPVisionConfig, SiglipVisionConfig).
CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = CLIP | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

Layers = int | list[int]


@dataclass(frozen=True)
class Tower:
    """An image tower of another project: what it is, and where its tensors are."""

    config: VisionConfig
    table: Table
    unused: dict[str, str]  # regular expressions of the tensors that are left, and why


def clip_tower(raw: Mapping[str, Any], prefix: str, layer: Layers, where: str) -> Tower:
    """A CLIPVisionModel of this config whose tensors begin with `prefix`, read at these hidden states of transformers."""
    sizes = _checked(CLIP | dict(raw), where, ("quick_gelu", "gelu"), 1e-5)
    depth = sizes["num_hidden_layers"]
    config = VisionConfig(
        embed_dim=int(raw.get("projection_dim", 512)),
        tower=tower_settings(sizes),
        image_size=sizes["image_size"],
        mean=CLIP_MEAN,
        std=CLIP_STD,
        quick_gelu=sizes["hidden_act"] == "quick_gelu",
        resize="crop_floor",
        features=_features(layer, depth, where),
    )
    ours, last = "encoder.tower", max(one % depth for one in config.features)
    table: Table = {
        f"{ours}.class_embedding": copy(f"{prefix}embeddings.class_embedding"),
        f"{ours}.conv1.weight": copy(f"{prefix}embeddings.patch_embedding.weight"),
        f"{ours}.positional_embedding": copy(f"{prefix}embeddings.position_embedding.weight"),
    }
    for end in ("weight", "bias"):
        table[f"{ours}.ln_pre.{end}"] = copy(f"{prefix}pre_layrnorm.{end}")
        for number in range(last + 1):
            block, theirs = f"{ours}.transformer.resblocks.{number}", f"{prefix}encoder.layers.{number}"
            table[f"{block}.attn.in_proj_{end}"] = _qkv(theirs, end)
            table[f"{block}.attn.out_proj.{end}"] = copy(f"{theirs}.self_attn.out_proj.{end}")
            table[f"{block}.ln_1.{end}"] = copy(f"{theirs}.layer_norm1.{end}")
            table[f"{block}.ln_2.{end}"] = copy(f"{theirs}.layer_norm2.{end}")
            table[f"{block}.mlp.c_fc.{end}"] = copy(f"{theirs}.mlp.fc1.{end}")
            table[f"{block}.mlp.c_proj.{end}"] = copy(f"{theirs}.mlp.fc2.{end}")
    return Tower(config, table, _unread(prefix, last, depth))


def siglip_tower(raw: Mapping[str, Any], prefix: str, layer: Layers, where: str) -> Tower:
    """The same for a SiglipVisionModel, which has no class token, so that every patch is a feature."""
    sizes = _checked(_SIGLIP | dict(raw), where, ("gelu_pytorch_tanh", "gelu"), 1e-6)
    depth = sizes["num_hidden_layers"]
    config = siglip_config(sizes, _features(layer, depth, where))
    last, ours = max(one % depth for one in config.features), "encoder.tower.trunk"
    table: Table = {
        f"{ours}.pos_embed": From((f"{prefix}embeddings.position_embedding.weight",), _batched, "as a batch")
    }
    for end in ("weight", "bias"):
        table[f"{ours}.patch_embed.proj.{end}"] = copy(f"{prefix}embeddings.patch_embedding.{end}")
        for number in range(last + 1):
            block, theirs = f"{ours}.blocks.{number}", f"{prefix}encoder.layers.{number}"
            table[f"{block}.attn.qkv.{end}"] = _qkv(theirs, end)
            table[f"{block}.attn.proj.{end}"] = copy(f"{theirs}.self_attn.out_proj.{end}")
            table[f"{block}.norm1.{end}"] = copy(f"{theirs}.layer_norm1.{end}")
            table[f"{block}.norm2.{end}"] = copy(f"{theirs}.layer_norm2.{end}")
            table[f"{block}.mlp.fc1.{end}"] = copy(f"{theirs}.mlp.fc1.{end}")
            table[f"{block}.mlp.fc2.{end}"] = copy(f"{theirs}.mlp.fc2.{end}")
    return Tower(config, table, _unread(prefix, last, depth))


def siglip_config(sizes: Mapping[str, Any], features: tuple[int, ...]) -> VisionConfig:
    """A SigLIP tower of these sizes, in transformers' words, read at these layers."""
    tower = tower_settings(sizes)
    if sizes["hidden_act"] == "gelu_pytorch_tanh":
        tower["act_kwargs"] = {"approximate": "tanh"}
    return VisionConfig(
        embed_dim=sizes["hidden_size"],
        tower=tower,
        image_size=sizes["image_size"],
        mean=SIGLIP_MEAN,
        std=SIGLIP_STD,
        features=features,
        kind="siglip",
    )


def tower_settings(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`VisionConfig.tower` of these sizes, given in transformers' words."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    ratio = inner / width
    if int(width * ratio) != inner:  # of 4304 / 1152 the product is 4303.99...
        ratio = (inner + 0.5) / width
    return {
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
        "width": width,
        "layers": sizes["num_hidden_layers"],
        "head_width": width // sizes["num_attention_heads"],
        "mlp_ratio": ratio,
    }


def _checked(sizes: dict[str, Any], where: str, acts: tuple[str, ...], eps: float) -> dict[str, Any]:
    if sizes["hidden_act"] not in acts:
        raise CheckpointError(
            f"{where}: vision hidden_act {sizes['hidden_act']!r} is not supported, only {' and '.join(acts)}"
        )
    if sizes["layer_norm_eps"] != eps:
        raise CheckpointError(
            f"{where}: vision layer_norm_eps {sizes['layer_norm_eps']} is not supported, only {eps}"
        )
    for key in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    ):
        if not isinstance(sizes[key], int) or sizes[key] < 1:
            raise CheckpointError(f"{where}: vision {key} is {sizes[key]!r}, allowed: a whole number above 0")
    return sizes


def _features(layers: Layers, depth: int, where: str) -> tuple[int, ...]:
    """transformers counts the embeddings as hidden state 0; ours are the layers' outputs alone."""
    given = layers if isinstance(layers, list) else [layers]
    if not given or not all(isinstance(one, int) and one != 0 and -depth <= one <= depth for one in given):
        raise CheckpointError(
            f"{where}: vision feature layer {layers!r} of {depth} layers; allowed: one of them, or a list"
        )
    features = [one if one < 0 else one - 1 for one in given]
    if sorted(places := [one % depth for one in features]) != places or len(set(places)) < len(places):
        raise CheckpointError(f"{where}: vision feature layers {layers}; only ascending ones are supported")
    return tuple(features)


def _qkv(layer: str, end: str) -> From:
    return stacked(*(f"{layer}.self_attn.{name}_proj.{end}" for name in "qkv"))


def _batched(tensors: Any) -> Any:
    return tensors[0][None]  # (N, Dv) -> (1, N, Dv)


def _unread(prefix: str, last: int, depth: int) -> dict[str, str]:
    numbers = "|".join(str(number) for number in range(last + 1, depth))
    start = prefix.replace(".", r"\.")
    return {
        rf"{start}encoder\.layers\.({numbers or '(?!)'})\..*": "a layer after the one that is read",
        rf"{start}(post_layernorm|head)\..*": "comes after the layer that is read",
        rf"{start}embeddings\.position_ids": "counts upwards",
    }
