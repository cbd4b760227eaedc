"""The two layouts of moondream's files: that of transformers' code (2024), and that of its own torch code (2025).

github.com/vikhyat/moondream: moondream/vision_encoder.py and modeling_phi.py, and the folder moondream/torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vision_lm.config import Crops, TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.phi_text import mixer_table, read_text_config
from vision_lm.importers.source import Source
from vision_lm.importers.tensor_table import Table, copy, part
from vision_lm.model_files import CONFIG

MARK = "model.vision.pos_emb"  # only 2025's layout has it


@dataclass(frozen=True)
class Layout:
    """Where the tower and the projector are, and the language model in our words."""

    positions: str
    patch: str
    block: str  # and then the layer's number
    norms: tuple[str, str]  # of a block
    norm: str  # after the last block
    projector: dict[str, str]  # our parts of it -> theirs
    text: TextConfig
    language: Table
    unused: dict[str, str]  # regular expressions of the tensors that are left, and why


def layout_2024(source: Source, january: bool) -> Layout:
    """Names of timm's tower and of Microsoft's first Phi. January's has one module more around its eyes."""
    stem = "vision_encoder.model" if january else "vision_encoder"
    visual, projection = f"{stem}.encoder.model.visual", f"{stem}.projection"
    config = source.config
    raw = config.get("text_config") or config.get("phi_config") or {"n_embd": 2048}
    text = read_text_config(raw, source.folder / CONFIG)
    projector = {"patches.0": f"{projection}.mlp.fc1", "patches.2": f"{projection}.mlp.fc2"}
    if january:
        projector = {
            "patches.0": f"{projection}.mlp1.fc1",
            "patches.2": f"{projection}.mlp1.fc2",
            "norm": f"{projection}.ln",
            "residual.0": f"{projection}.mlp2.fc1",
            "residual.2": f"{projection}.mlp2.fc2",
        }
    return Layout(
        positions=f"{visual}.pos_embed",
        patch=f"{visual}.patch_embed.linear",
        block=f"{visual}.blocks.",
        norms=("norm1", "norm2"),
        norm=f"{visual}.norm",
        projector=projector,
        text=text,
        language=mixer_table(text, "text_model.transformer", "text_model.lm_head"),
        unused={r"region_model\..*": "for boxes, not for text"},  # 2024-08-26 has them
    )


def layout_2025(source: Source, tensors: Mapping[str, Tensor]) -> Layout:
    """Short names; the language model sees the first token and the picture in both directions. Raises CheckpointError."""
    text = _text_config(source, patches=tensors[MARK].shape[1])
    return Layout(
        positions=MARK,
        patch="model.vision.patch_emb",
        block="model.vision.blocks.",
        norms=("ln1", "ln2"),
        norm="model.vision.post_ln",
        projector={"patches.0": "model.vision.proj_mlp.fc1", "patches.2": "model.vision.proj_mlp.fc2"},
        text=text,
        language=_language(text),
        unused={
            r"model\.region\..*": "for boxes and points, not for text",
            r"model\.text\.blocks\.\d+\.kv_cache\..*": "what was asked last",
        },
    )


def crops_2025(source: Source) -> Crops:
    """The parts of a picture as the config wants them, where it says something."""
    vision = _settings(source, "vision", _VISION)
    return Crops("overlap", most=vision["max_crops"], margin=vision["overlap_margin"])


# What the code takes where config.json, whose "config" is empty in what was published, does not say.
_TEXT = {
    "dim": 2048,
    "ff_dim": None,  # four times as much
    "n_layers": 24,
    "vocab_size": 51_200,
    "max_context": 2048,
    "n_heads": 32,
    "n_kv_heads": 32,
    "prefix_attn": 730,
}
_VISION = {
    "enc_dim": 1152,
    "enc_patch_size": 14,
    "enc_n_layers": 27,
    "enc_ff_dim": 4304,
    "enc_n_heads": 16,
    "proj_out_dim": 2048,
    "crop_size": 378,
    "in_channels": 3,
    "max_crops": 12,
    "overlap_margin": 4,
    "proj_inner_dim": 8192,
}


def _settings(source: Source, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
    given = (source.config.get("config") or {}).get(name) or {}
    if strange := sorted(set(given) - set(known)):
        raise CheckpointError(
            f"{source.folder / CONFIG}: config.{name}.{strange[0]} is of no known release of moondream2; allowed: "
            f"{', '.join(known)}"
        )
    return {**known, **given}


def _text_config(source: Source, patches: int) -> TextConfig:
    text = _settings(source, "text", _TEXT)
    if text["prefix_attn"] != 1 + patches:
        raise CheckpointError(
            f"{source.folder / CONFIG}: prefix_attn is {text['prefix_attn']}, allowed: {1 + patches}, which are the first "
            "token and the picture"
        )
    return TextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["dim"],
        intermediate_size=text["ff_dim"] or 4 * text["dim"],
        num_hidden_layers=text["n_layers"],
        num_attention_heads=text["n_heads"],
        num_key_value_heads=text["n_kv_heads"],
        max_position_embeddings=text["max_context"],
        attention="prefix",
    )


def _language(config: TextConfig) -> Table:
    """The rows of `attn.qkv` are queries, keys, values."""
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    ends = [one * config.head_dim for one in (0, heads, heads + keys, heads + 2 * keys)]
    table: Table = {"phi.model.embed_tokens.weight": copy("model.text.wte")}
    for end in ("weight", "bias"):
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"phi.model.layers.{layer}", f"model.text.blocks.{layer}"
            for name, start, stop in zip("qkv", ends[:-1], ends[1:], strict=True):
                table[f"{ours}.self_attn.{name}_proj.{end}"] = part(f"{theirs}.attn.qkv.{end}", start, stop)
            table[f"{ours}.self_attn.dense.{end}"] = copy(f"{theirs}.attn.proj.{end}")
            table[f"{ours}.mlp.fc1.{end}"] = copy(f"{theirs}.mlp.fc1.{end}")
            table[f"{ours}.mlp.fc2.{end}"] = copy(f"{theirs}.mlp.fc2.{end}")
            table[f"{ours}.input_layernorm.{end}"] = copy(f"{theirs}.ln.{end}")
        table[f"phi.model.final_layernorm.{end}"] = copy(f"model.text.post_ln.{end}")
        table[f"phi.lm_head.{end}"] = copy(f"model.text.lm_head.{end}")
    return table
