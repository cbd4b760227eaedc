"""The image tower in the words of transformers: a CLIP or a SigLIP of so many layers, its tensors renamed.

Only the layers that are read are carried. What these architectures do not compute is refused, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vision_lm.config import VisionConfig
from vision_lm.errors import ExportError
from vision_lm.skeleton import build_encoder_on_meta

# What open_clip's vision_cfg may say of a plain CLIP; the last five concern only the head, which is never read.
_PLAIN = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "patch_dropout"}
_PLAIN |= {"pool_type", "final_ln_after_pool", "output_tokens", "attentional_pool", "attn_pooler_queries"}
_UNREAD = ("norm.", "fc_norm.", "attn_pool.", "head.", "ln_post.", "proj")  # what follows the layers


@dataclass(frozen=True)
class Tower:
    """A vision transformer, its tensors named as in transformers' CLIPVisionModel or SiglipVisionModel."""

    kind: Literal["clip", "siglip"]  # with a class token, or without one
    width: int  # Dv
    inner: int  # of the MLP
    layers: int
    heads: int
    image_size: int
    patch_size: int
    activation: str  # transformers' hidden_act
    eps: float
    read: tuple[int, ...]  # hidden states, counted from the end: -1 is the last layer's output
    tensors: dict[str, Tensor]

    @property
    def patches(self) -> int:
        """N, those of one picture."""
        return (self.image_size // self.patch_size) ** 2


def read_tower(config: VisionConfig, tensors: Mapping[str, Tensor]) -> Tower:
    """The tower of a checkpoint, from its `encoder.tower.*` tensors. Raises ExportError naming what is in the way."""
    encoder = build_encoder_on_meta(config)
    own = {name: t for name, t in encoder.tower.state_dict().items() if t.ndim}
    given = {name: tensors[f"encoder.tower.{name}"] for name in own}
    layers = encoder.layers  # counted before the unread ones were dropped
    if config.pooled:
        raise ExportError("pooled tokens beside the patches, which no Llava has")
    if config.crops is not None:
        raise ExportError("parts of a picture beside the whole, which no Llava sees")
    if config.normed:
        raise ExportError("features after the tower's last LayerNorm, which a Llava reads before it")
    if list(layers) != sorted(set(layers)):
        raise ExportError(f"vision.features {list(config.features)}, allowed: from early to late")
    trunk = getattr(encoder.tower, "trunk", None)
    if trunk is None:
        return _open_clip(encoder.tower, config, layers, given)
    return _timm(trunk, config, layers, given)


def _open_clip(tower: Any, config: VisionConfig, layers: tuple[int, ...], given: dict[str, Tensor]) -> Tower:
    """open_clip's own VisionTransformer: OpenAI's CLIP."""
    if strange := config.tower.keys() - _PLAIN:
        raise ExportError(f"vision.tower.{min(strange)}, which transformers' CLIP does not compute")
    block = tower.transformer.resblocks[0]
    names = {
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
        "conv1.weight": "embeddings.patch_embedding.weight",
        "ln_pre": "pre_layrnorm",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
        "attn.in_proj_weight": "weight",
        "attn.in_proj_bias": "bias",
    }
    return _tower(
        "clip",
        config,
        layers,
        _renamed(given, "transformer.resblocks.", layers[-1], names),
        heads=block.attn.num_heads,
        activation="quick_gelu" if config.quick_gelu else "gelu",
        eps=block.ln_1.eps,
    )


def _timm(trunk: Any, config: VisionConfig, layers: tuple[int, ...], given: dict[str, Tensor]) -> Tower:
    """timm's VisionTransformer, which open_clip takes for SigLIP."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(trunk, VisionTransformer):
        name = config.tower.get("timm_model_name", config.kind)
        raise ExportError(f"the image tower {name}, which is neither a CLIP nor a SigLIP transformer")
    if trunk.num_prefix_tokens:
        raise ExportError(f"{trunk.num_prefix_tokens} tokens before the patches; SigLIP has none")
    block: Any = trunk.blocks[0]
    names = {
        "trunk.pos_embed": "embeddings.position_embedding.weight",
        "trunk.patch_embed.proj": "embeddings.patch_embedding",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "attn.proj": "self_attn.out_proj",
        "attn.qkv.weight": "weight",
        "attn.qkv.bias": "bias",
    }
    return _tower(
        "siglip",
        config,
        layers,
        _renamed(given, "trunk.blocks.", layers[-1], names),
        heads=block.attn.num_heads,
        activation=_activation(block.mlp.act),
        eps=block.norm1.eps,
    )


def _activation(module: Any) -> str:
    """The name that transformers gives an activation."""
    tanh = getattr(module, "approximate", "none") == "tanh" or type(module).__name__ == "GELUTanh"
    if not tanh and not isinstance(module, nn.GELU):
        raise ExportError(f"the activation {type(module).__name__} in the image tower; allowed: GELU")
    return "gelu_pytorch_tanh" if tanh else "gelu"


def _renamed(given: dict[str, Tensor], blocks: str, last: int, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors up to layer `last` under transformers' names; q, k and v apart. Raises ExportError for one unknown."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in given.items():
        lead, rest = "", name
        if name.startswith(blocks):
            number, _, rest = name.removeprefix(blocks).partition(".")
            if int(number) > last:
                continue
            lead = f"encoder.layers.{number}."
        elif name.removeprefix("trunk.").startswith(_UNREAD):
            continue
        stem, _, leaf = rest.rpartition(".")
        if rest in names and rest.startswith("attn."):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{lead}self_attn.{part}_proj.{names[rest]}"] = rows
        elif rest in names:
            renamed[lead + names[rest]] = tensor
        elif stem in names:
            renamed[f"{lead}{names[stem]}.{leaf}"] = tensor
        else:
            raise ExportError(f"the tensor encoder.tower.{name}, which has no place in a CLIP or SigLIP")
    return renamed


def _tower(
    kind: Literal["clip", "siglip"],
    config: VisionConfig,
    layers: tuple[int, ...],
    tensors: dict[str, Tensor],
    **rest: Any,
) -> Tower:
    patch = tensors["embeddings.patch_embedding.weight"]  # (Dv, 3, P, P)
    position = "embeddings.position_embedding.weight"
    tensors[position] = tensors[position].reshape(-1, patch.shape[0])  # timm's has a batch of one
    count = layers[-1] + 1
    if any(f"encoder.layers.{n}.self_attn.q_proj.bias" not in tensors for n in range(count)):
        raise ExportError("attention without biases in the image tower; CLIP and SigLIP have them")
    # It follows the last layer, and is not read: hidden states are taken before it.
    tensors["post_layernorm.weight"] = torch.ones_like(patch[:, 0, 0, 0])
    tensors["post_layernorm.bias"] = torch.zeros_like(patch[:, 0, 0, 0])
    return Tower(
        kind=kind,
        width=patch.shape[0],
        inner=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        layers=count,
        image_size=config.image_size,
        patch_size=patch.shape[-1],
        read=tuple(layer - count for layer in layers),
        tensors=tensors,
        **rest,
    )
