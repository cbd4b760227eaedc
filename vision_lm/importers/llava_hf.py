"""transformers' LlavaForConditionalGeneration with a Phi inside: CLIP or SigLIP, two linear layers, the Phi.

Names on disk are those of `save_pretrained`, with and without the `vision_model.` that transformers 5.6 dropped.
transformers itself leaves `lm_head.bias` out; where the file has it, it is part of the model and is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.config import PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.chat_template import find_template, prompt_settings
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row, with_vision
from vision_lm.importers.phi_text import language_table, projector_table, read_text_config
from vision_lm.importers.preprocessing import preprocessed
from vision_lm.importers.source import Source
from vision_lm.importers.tokenizer_files import without_token
from vision_lm.importers.towers import Tower, clip_tower, siglip_tower
from vision_lm.importers.transformers_phi import END_OF_TEXT
from vision_lm.model_files import CONFIG

IMAGE = "<image>"
_LLAVA_1_5 = {
    "question": "USER: {images}{question} ASSISTANT:",
    "image": "{image}\n",
}  # where no template is given


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for what our model does not compute."""
    where, raw = source.where, source.config
    for key, default, allowed in (
        ("projector_hidden_act", "gelu", ("gelu",)),
        ("model_type", "llava", ("llava",)),
    ):
        if raw.get(key, default) not in allowed:
            raise CheckpointError(f"{where}: {key} {raw[key]!r} is not supported, only {allowed[0]!r}")
    text = read_text_config(source.get("text_config"), source.folder / CONFIG)
    tower = _tower(source, tensors)
    placeholder = int(raw.get("image_token_index", raw.get("image_token_id", 32_000)))
    if tokenizer.token_to_id(IMAGE) == placeholder:
        tokenizer = without_token(tokenizer, IMAGE)  # in our layout no text may encode to it
    free = free_row(tokenizer, text, where)
    if not 0 <= placeholder < text.vocab_size or tokenizer.id_to_token(placeholder) is not None:
        placeholder = free
    end = end_of_text(tokenizer, where)
    template = find_template(source.folder)
    settings = prompt_settings(source, template, END_OF_TEXT) if template else _LLAVA_1_5
    prompt = PromptConfig(placeholder, end, **settings)  # type: ignore[arg-type]
    projector = projector_table(
        tensors,
        f"{_stem(tensors)}multi_modal_projector.linear_1",
        f"{_stem(tensors)}multi_modal_projector.linear_2",
    )
    language = _language(tensors)
    return assemble(
        source.title,
        tower,
        projector,
        text,
        language_table(text, tensors, *language),
        prompt,
        tokenizer,
        tensors,
        where,
    )


def _tower(source: Source, tensors: Mapping[str, Tensor]) -> Tower:
    where, raw, vision = source.where, source.config, source.get("vision_config")
    prefix = f"{_stem(tensors)}vision_tower."
    if any(name.startswith(f"{prefix}vision_model.") for name in tensors):
        prefix += "vision_model."
    kind, layer = vision.get("model_type", "clip_vision_model"), raw.get("vision_feature_layer", -2)
    strategy = raw.get("vision_feature_select_strategy", "default")
    if kind == "clip_vision_model" and strategy == "default":
        tower = clip_tower(vision, prefix, layer, where)
    elif kind == "siglip_vision_model" and strategy in ("default", "full"):
        tower = siglip_tower(vision, prefix, layer, where)
        # "default" drops what it takes for a class token: SigLIP has none and loses its first patch.
        tower = with_vision(tower, skip_patches=1 if strategy == "default" else 0)
    else:
        raise CheckpointError(
            f"{where}: a {kind} with vision_feature_select_strategy {strategy!r} is not supported; "
            "supported are clip_vision_model with 'default' and siglip_vision_model"
        )
    return dataclasses.replace(tower, config=preprocessed(tower.config, source.settings, where))


def _stem(tensors: Mapping[str, Tensor]) -> str:
    """On disk there is none; a state dict that was saved by hand has "model."."""
    return "model." if any(name.startswith("model.vision_tower.") for name in tensors) else ""


def _language(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """Where the Phi's body and head are."""
    if _stem(tensors):
        return "model.language_model", "lm_head"
    return "language_model.model", "language_model.lm_head"
