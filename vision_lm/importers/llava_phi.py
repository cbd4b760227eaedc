"""LLaVA-Phi (Phi-2) and Mipha (Phi-1.5 and Phi-2) of github.com/zhuyiche/llava-phi: a CLIP or SigLIP tower inside.

config.json is a Phi's, with `vision_config` beside: the sizes of `vision_tower` and of `mm_projector`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row
from vision_lm.importers.phi_text import language_table, projector_table, read_text_config
from vision_lm.importers.preprocessing import of_aspect, preprocessed
from vision_lm.importers.source import Source
from vision_lm.importers.templates import refuse_tags, vicuna
from vision_lm.importers.towers import CLIP, Tower, clip_tower, siglip_tower
from vision_lm.model_files import CONFIG

PREFIX = "model.vision_tower.vision_model."


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for what our model does not compute."""
    where = source.where
    refuse_tags(source)
    kind = source.get("vision_config", "mm_projector").get("mm_projector_type", "linear")
    if kind != "mlp2x_gelu":
        raise CheckpointError(f"{where}: a projector of type {kind!r} is not supported, only 'mlp2x_gelu'")
    text = read_text_config(source.config, source.folder / CONFIG)
    prompt = vicuna(free_row(tokenizer, text, where), end_of_text(tokenizer, where))
    return assemble(
        source.title,
        _tower(source),
        projector_table(tensors, "model.mm_projector.0", "model.mm_projector.2"),
        text,
        language_table(text, tensors, "model", "lm_head"),
        prompt,
        tokenizer,
        tensors,
        where,
    )


def _tower(source: Source) -> Tower:
    where = source.where
    raw = CLIP | source.get(
        "vision_config", "vision_tower"
    )  # their one class has CLIP's defaults for every tower
    name, select = (
        str(raw.get("vision_model_name_or_path", "clip")),
        raw.get("mm_vision_select_feature", "patch"),
    )
    layer = raw.get("mm_vision_select_layer", -2)
    # As their code looks: "siglip" has no "clip" in it.
    if "siglip" in name:
        tower = siglip_tower(raw, PREFIX, layer, where)
    elif "clip" in name and select == "patch":
        tower = clip_tower(raw, PREFIX, layer, where)
    else:
        raise CheckpointError(
            f"{where}: a tower {name!r} with mm_vision_select_feature {select!r} is not supported; supported are "
            "clip with 'patch', and siglip"
        )
    config = preprocessed(tower.config, source.settings, where)
    return dataclasses.replace(tower, config=of_aspect(config, source.config, where))
