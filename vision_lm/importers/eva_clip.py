"""EVA02-CLIP-L/14-336 (github.com/baaivision/EVA, "EVA-CLIP") as our own tower: its names, its sizes, its one file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vision_lm.config import VisionConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.so400m import count_layers
from vision_lm.importers.source import read_pickle, state_dict
from vision_lm.importers.tensor_table import Table, copy
from vision_lm.importers.towers import CLIP_MEAN, CLIP_STD, Tower, tower_settings
from vision_lm.model_files import find_folder

FILE = "EVA02_CLIP_L_336_psz14_s6B.pt"  # in the hub's QuanSun/EVA-CLIP, which holds many
HEAD_WIDTH = 64
SIDE = 16  # 224 / 14: rows and columns are counted as in the pictures of its first training


def read_eva_clip(name: str) -> dict[str, Tensor]:
    """The image tower of an EVA-CLIP, named as within the tower. Raises CheckpointError.

    `name`: the file, or a folder or hub repository that holds it. Its text tower is left out.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        path = find_folder(name, (FILE,)) / FILE
    loaded = read_pickle(path)
    if isinstance(loaded, dict):  # a training's file wraps the state dict, beside the optimiser's state
        loaded = next((loaded[key] for key in ("model", "module", "state_dict") if key in loaded), loaded)
    tensors = {one.removeprefix("module."): tensor for one, tensor in state_dict(loaded, path).items()}
    visual = {one: tensor for one, tensor in tensors.items() if one.startswith("visual.")}
    if not visual:
        raise CheckpointError(f"{path}: no tensor named visual.*; give an EVA-CLIP's file")
    return {one.removeprefix("visual."): tensor for one, tensor in visual.items()}


def eva_tower(tensors: Mapping[str, Tensor], prefix: str, where: str) -> Tower:
    """The tower whose tensors begin with `prefix`, read before its last layer, without the class token.

    Its centre is cut out of a picture as torchvision cuts. Raises CheckpointError.
    """
    sizes = _sizes(tensors, prefix, where)
    depth = sizes["num_hidden_layers"]
    config = VisionConfig(
        embed_dim=sizes["hidden_size"],
        tower=tower_settings(sizes) | {"pt_hw_seq_len": SIDE},
        image_size=sizes["image_size"],
        mean=CLIP_MEAN,
        std=CLIP_STD,
        resize="crop",
        features=(-2,),
        kind="eva",
    )
    ours = "encoder.tower.trunk"
    table: Table = {f"{ours}.{name}": copy(f"{prefix}{name}") for name in ("cls_token", "pos_embed")}
    table |= {f"{ours}.patch_embed.proj.{end}": copy(f"{prefix}patch_embed.proj.{end}") for end in _ENDS}
    for number in range(depth - 1):
        block, theirs = f"{ours}.blocks.{number}", f"{prefix}blocks.{number}"
        for name, their_name in _BLOCK.items():
            table |= {f"{block}.{name}.{end}": copy(f"{theirs}.{their_name}.{end}") for end in _ENDS}
        for one in "qkv":
            table[f"{block}.attn.{one}_proj.weight"] = copy(f"{theirs}.attn.{one}_proj.weight")
        for one in "qv":  # keys have no bias
            table[f"{block}.attn.{one}_proj.bias"] = copy(f"{theirs}.attn.{one}_bias")
    start = prefix.replace(".", r"\.")
    unused = {
        rf"{start}blocks\.{depth - 1}\..*": "a layer after the one that is read",
        rf"{start}(norm|head)\..*": "comes after the layer that is read",
        rf"{start}(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)": "follows from the config",
    }
    return Tower(config, table, unused)


_ENDS = ("weight", "bias")
# Ours, in timm's names, and theirs: each a weight and a bias.
_BLOCK = {
    "norm1": "norm1",
    "attn.norm": "attn.inner_attn_ln",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1_g": "mlp.w1",  # the half that goes through SiLU
    "mlp.fc1_x": "mlp.w2",
    "mlp.norm": "mlp.ffn_ln",
    "mlp.fc2": "mlp.w3",
}


def _sizes(tensors: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, int]:
    """What no config says; the words are those of transformers."""
    needed = [
        f"{prefix}{name}" for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.w1.weight")
    ]
    if missing := [name for name in needed if name not in tensors]:
        raise CheckpointError(f"{where}: missing tensors: {', '.join(missing)}; fetch the tower again")
    positions, patch, inner = (tensors[name] for name in needed)  # (1, 1 + N, Dv), (Dv, 3, P, P), (inner, Dv)
    return {
        "hidden_size": positions.shape[-1],
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": count_layers(tensors, f"{prefix}blocks."),
        "num_attention_heads": positions.shape[-1] // HEAD_WIDTH,
        "image_size": math.isqrt(positions.shape[1] - 1) * patch.shape[-1],
        "patch_size": patch.shape[-1],
    }
