"""TinyLLaVA Factory with Phi-2 (github.com/TinyLLaVA/TinyLLaVA_Factory), with a CLIP or a SigLIP tower.

Its code drops the first patch of any tower as if it were a class token; SigLIP has none, so that the model was trained
without the picture's upper left corner: 728 tokens of 729.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row, with_vision
from vision_lm.importers.phi_text import language_table, projector_table, read_text_config
from vision_lm.importers.preprocessing import of_aspect, preprocessed
from vision_lm.importers.source import Source
from vision_lm.importers.templates import vicuna
from vision_lm.importers.towers import Tower, clip_tower, siglip_tower
from vision_lm.model_files import CONFIG

PREFIX = "vision_tower._vision_tower.vision_model."


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for what our model does not compute."""
    where, kind = source.where, source.get("connector_type")
    if kind != "mlp2x_gelu":
        raise CheckpointError(f"{where}: a connector of type {kind!r} is not supported, only 'mlp2x_gelu'")
    text = read_text_config(source.get("text_config"), source.folder / CONFIG)
    return assemble(
        source.title,
        _tower(source),
        projector_table(tensors, "connector._connector.0", "connector._connector.2"),
        text,
        language_table(text, tensors, "language_model.model", "language_model.lm_head"),
        vicuna(free_row(tokenizer, text, where), end_of_text(tokenizer, where)),
        tokenizer,
        tensors,
        where,
    )


def _tower(source: Source) -> Tower:
    where, raw, vision = source.where, source.config, source.get("vision_config")
    layer, select = raw.get("vision_feature_layer", -2), raw.get("vision_feature_select_strategy", "patch")
    if select != "patch":
        raise CheckpointError(
            f"{where}: vision_feature_select_strategy {select!r} is not supported, only 'patch'"
        )
    if vision.get("model_type") == "siglip_vision_model":
        tower = with_vision(siglip_tower(vision, PREFIX, layer, where), skip_patches=1)
    elif vision.get("model_type") == "clip_vision_model":
        tower = clip_tower(vision, PREFIX, layer, where)
    else:
        raise CheckpointError(
            f"{where}: a {vision.get('model_type')} is not supported; supported are clip_vision_model and "
            "siglip_vision_model"
        )
    config = preprocessed(tower.config, source.settings, where)
    return dataclasses.replace(tower, config=of_aspect(config, raw, where))
