"""moondream1 and moondream2 (github.com/vikhyat/moondream, January 2024 to April 2025): SigLIP-SO400M/14 and Phi-1.5.

In every release the patch embedding is a matrix over (channel, row, column), and features are taken after the tower's
last LayerNorm. January's projector is two MLPs with a LayerNorm between; it stretched pictures to 384 pixels and cut
the last 6 off, which is what a tower of 384 pixels does not see anyway. All others' is one MLP, for pictures of 378
pixels; since 2024-05-20 it reads the features of a picture's parts beside the whole's. The language model is causal until
2024-08-26, and since 2025-01-09 sees its picture in both directions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.config import PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row, with_vision
from vision_lm.importers.moondream_layouts import MARK, Layout, crops_2025, layout_2024, layout_2025
from vision_lm.importers.moondream_releases import JANUARY, Release, find_release
from vision_lm.importers.so400m import BEYOND, HEAD_WIDTH, count_layers
from vision_lm.importers.source import Source
from vision_lm.importers.tensor_table import Table, copy, shaped
from vision_lm.importers.towers import Tower, siglip_config

CHANNELS = 3


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for a layout, or a release, that is not known."""
    where, release = source.where, find_release(source, tensors)
    if MARK in tensors:
        layout = layout_2025(source, tensors)
        release = dataclasses.replace(release, crops=crops_2025(source))
    else:
        layout = layout_2024(source, release is JANUARY)
    end = end_of_text(tokenizer, where)
    prompt = PromptConfig(
        free_row(tokenizer, layout.text, where),
        end,
        question=release.question,
        answer=release.answer,
        image=release.image,
        bos_token_id=end,
        stop=release.stop,
    )
    imported = assemble(
        source.title,
        _tower(tensors, layout, release, where),
        _projector(layout),
        layout.text,
        layout.language,
        prompt,
        tokenizer,
        tensors,
        where,
        residual=f"{layout.projector['residual.0']}.weight" if release is JANUARY else None,
    )
    projector = dataclasses.replace(imported.config.projector, tanh_gelu=not release.timm)
    config = dataclasses.replace(imported.config, projector=projector)
    return dataclasses.replace(imported, config=config, unused=imported.unused | layout.unused)


def _tower(tensors: Mapping[str, Tensor], layout: Layout, release: Release, where: str) -> Tower:
    positions, patch = layout.positions, f"{layout.patch}.weight"
    inner = f"{layout.block}0.mlp.fc1.weight"
    if missing := [name for name in (positions, patch, inner) if name not in tensors]:
        raise CheckpointError(f"{where}: missing tensors: {', '.join(missing)}; fetch the checkpoint again")
    _, patches, width = tensors[positions].shape  # (1, N, Dv)
    side = math.isqrt(tensors[patch].shape[1] // CHANNELS)
    layers = count_layers(tensors, layout.block)
    sizes = {
        "hidden_size": width,
        "intermediate_size": tensors[inner].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": math.isqrt(patches) * side + (BEYOND if release is JANUARY else 0),
        "patch_size": side,
        "hidden_act": "gelu" if release.timm else "gelu_pytorch_tanh",
    }
    config = siglip_config(sizes, (-1,))
    if not release.timm:
        config = dataclasses.replace(config, tower=config.tower | {"norm_kwargs": {"eps": 1e-5}})
    return with_vision(
        Tower(config, _tower_table(layout, layers, (width, CHANNELS, side, side)), {}),
        normed=True,
        crops=release.crops,
        interpolation=release.interpolation,
    )


def _tower_table(layout: Layout, layers: int, patch: tuple[int, ...]) -> Table:
    ours, names = "encoder.tower.trunk", ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    table: Table = {
        f"{ours}.pos_embed": copy(layout.positions),
        f"{ours}.patch_embed.proj.weight": shaped(f"{layout.patch}.weight", *patch),
        f"{ours}.patch_embed.proj.bias": copy(f"{layout.patch}.bias"),
    }
    pairs = {**dict(zip(("norm1", "norm2"), layout.norms, strict=True)), **{name: name for name in names}}
    for end in ("weight", "bias"):
        table[f"{ours}.norm.{end}"] = copy(f"{layout.norm}.{end}")
        for layer in range(layers):
            for name, theirs in pairs.items():
                table[f"{ours}.blocks.{layer}.{name}.{end}"] = copy(f"{layout.block}{layer}.{theirs}.{end}")
    return table


def _projector(layout: Layout) -> Table:
    return {
        f"projector.{ours}.{end}": copy(f"{theirs}.{end}")
        for ours, theirs in layout.projector.items()
        for end in ("weight", "bias")
    }
