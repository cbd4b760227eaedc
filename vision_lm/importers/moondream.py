"""moondream1 (github.com/vikhyat/moondream, January and February 2024): SigLIP-SO400M/14 and Phi-1.5.

The tower is timm's, its patch embedding a matrix over (channel, row, column); features are taken after its last
LayerNorm. January's projector is two MLPs with a LayerNorm between; it stretched pictures to 384 pixels and cut the
last 6 off, which is what a tower of 384 pixels does not see anyway. February's is one MLP, for pictures of 378 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.config import PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row, with_vision
from vision_lm.importers.phi_text import mixer_table, read_text_config
from vision_lm.importers.so400m import BEYOND, HEAD_WIDTH, count_layers
from vision_lm.importers.source import Source
from vision_lm.importers.tensor_table import Table, copy, shaped
from vision_lm.importers.towers import Tower, siglip_config
from vision_lm.model_files import CONFIG

CHANNELS = 3


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for a layout of neither generation."""
    where = source.where
    january = "vision_encoder.model.projection.mlp1.fc1.weight" in tensors
    stem = "vision_encoder.model" if january else "vision_encoder"
    text = read_text_config(source.config.get("phi_config") or {"n_embd": 2048}, source.folder / CONFIG)
    end = end_of_text(tokenizer, where)
    prompt = PromptConfig(
        free_row(tokenizer, text, where),
        end,
        # February's prompt ends with a blank, a token of its own.
        question="{images}\n\nQuestion: {question}\n\nAnswer:" + ("" if january else " "),
        answer=" {answer}" if january else "{answer}",
        image="<image>{image}</image>",  # plain text, several tokens each
        bos_token_id=end,
        stop=("<END>",),
    )
    return assemble(
        source.folder.resolve().name,
        _tower(tensors, f"{stem}.encoder.model.visual.", BEYOND if january else 0, where),
        _projector(f"{stem}.projection", january),
        text,
        mixer_table(text, "text_model.transformer", "text_model.lm_head"),
        prompt,
        tokenizer,
        tensors,
        where,
        residual=f"{stem}.projection.mlp2.fc1.weight" if january else None,
    )


def _tower(tensors: Mapping[str, Tensor], prefix: str, beyond: int, where: str) -> Tower:
    positions, patch = f"{prefix}pos_embed", f"{prefix}patch_embed.linear.weight"
    inner = f"{prefix}blocks.0.mlp.fc1.weight"
    if missing := [name for name in (positions, patch, inner) if name not in tensors]:
        raise CheckpointError(f"{where}: missing tensors: {', '.join(missing)}; fetch the checkpoint again")
    _, patches, width = tensors[positions].shape  # (1, N, Dv)
    side = math.isqrt(tensors[patch].shape[1] // CHANNELS)
    layers = count_layers(tensors, f"{prefix}blocks.")
    sizes = {
        "hidden_size": width,
        "intermediate_size": tensors[inner].shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": math.isqrt(patches) * side + beyond,
        "patch_size": side,
        "hidden_act": "gelu",
    }
    ours = "encoder.tower.trunk"
    table: Table = {
        f"{ours}.pos_embed": copy(positions),
        f"{ours}.patch_embed.proj.weight": shaped(patch, width, CHANNELS, side, side),
        f"{ours}.patch_embed.proj.bias": copy(f"{prefix}patch_embed.linear.bias"),
    }
    for end in ("weight", "bias"):
        table[f"{ours}.norm.{end}"] = copy(f"{prefix}norm.{end}")
        for layer in range(layers):
            for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
                table[f"{ours}.blocks.{layer}.{name}.{end}"] = copy(f"{prefix}blocks.{layer}.{name}.{end}")
    return with_vision(Tower(siglip_config(sizes, (-1,)), table, {}), normed=True)


def _projector(prefix: str, january: bool) -> Table:
    parts = {"patches.0": "mlp.fc1", "patches.2": "mlp.fc2"}
    if january:
        parts = {
            "patches.0": "mlp1.fc1",
            "patches.2": "mlp1.fc2",
            "norm": "ln",
            "residual.0": "mlp2.fc1",
            "residual.2": "mlp2.fc2",
        }
    return {
        f"projector.{ours}.{end}": copy(f"{prefix}.{theirs}.{end}")
        for ours, theirs in parts.items()
        for end in ("weight", "bias")
    }
