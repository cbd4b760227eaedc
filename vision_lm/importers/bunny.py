"""Bunny with a Phi and SigLIP-SO400M or EVA02-CLIP-L (github.com/BAAI-DCAI/Bunny), merged or as LoRA weights.

Its Phi has no bias at the output: the base model's is left out when LoRA weights are merged, as Bunny itself does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.eva_clip import eva_tower
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row
from vision_lm.importers.lora import is_lora, merged
from vision_lm.importers.phi_text import language_table, projector_table, read_text_config
from vision_lm.importers.preprocessing import of_aspect
from vision_lm.importers.so400m import layer_read, siglip_sizes
from vision_lm.importers.source import Source
from vision_lm.importers.templates import vicuna
from vision_lm.importers.tower_files import EVA, SIGLIP
from vision_lm.importers.towers import Tower, siglip_tower
from vision_lm.model_files import CONFIG


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for what our model does not compute."""
    where, raw = source.where, source.config
    kind = raw.get("mm_projector_type", "mlp2x_gelu")
    if kind != "mlp2x_gelu" or raw.get("use_s2"):
        raise CheckpointError(
            f"{where}: mm_projector_type {kind!r}, use_s2 {raw.get('use_s2', False)} is not supported, only "
            "'mlp2x_gelu' without S2"
        )
    text = read_text_config(raw, source.folder / CONFIG)
    language = language_table(text, tensors, "model", "lm_head")
    unused = {}
    if is_lora(tensors):
        without = {name: tensor for name, tensor in tensors.items() if name != "lm_head.bias"}
        language = merged(language_table(text, without, "model", "lm_head"), source, tensors)
        unused = {r"lm_head\.bias": "of the base model; Bunny has none"}
    imported = assemble(
        source.title,
        _tower(source, tensors),
        projector_table(tensors, "model.mm_projector.0", "model.mm_projector.2"),
        text,
        language,
        vicuna(free_row(tokenizer, text, where), end_of_text(tokenizer, where)),
        tokenizer,
        tensors,
        where,
    )
    return dataclasses.replace(imported, unused=imported.unused | unused)


def _tower(source: Source, tensors: Mapping[str, Tensor]) -> Tower:
    where = source.where
    if f"{EVA}pos_embed" in tensors:
        tower = eva_tower(tensors, EVA, where)
    else:
        sizes = siglip_sizes(tensors, SIGLIP, where)
        tower = siglip_tower(sizes, SIGLIP, layer_read(sizes, tensors, SIGLIP), where)
    return dataclasses.replace(tower, config=of_aspect(tower.config, source.config, where))
