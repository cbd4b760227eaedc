"""Imp-v1-3b (github.com/MILVLG/imp): Phi-2 and SigLIP-SO400M without its last layer, which is not in the file.

The first release names the Phi as Microsoft's first code did ("transformer.h.0.mixer"), later ones as transformers does.
An answer ends with `</s>`, which is a token of its own in some of the tokenizers and plain text in others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row
from vision_lm.importers.phi_text import language_table, projector_table, read_text_config
from vision_lm.importers.preprocessing import of_aspect
from vision_lm.importers.so400m import siglip_sizes
from vision_lm.importers.source import Source
from vision_lm.importers.templates import refuse_tags, vicuna
from vision_lm.importers.towers import siglip_tower
from vision_lm.model_files import CONFIG

END = "</s>"


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for what our model does not compute."""
    where = source.where
    refuse_tags(source)
    body = "transformer" if "transformer.embd.wte.weight" in tensors else "model"
    text = read_text_config(source.config, source.folder / CONFIG)
    prefix = f"{body}.vision_tower.vision_tower.vision_model."
    end = tokenizer.token_to_id(END)
    prompt = vicuna(
        free_row(tokenizer, text, where),
        end_of_text(tokenizer, where) if end is None else end,
        stop=() if end is not None else (END,),
    )
    tower = siglip_tower(siglip_sizes(tensors, prefix, where), prefix, -1, where)
    return assemble(
        source.title,
        dataclasses.replace(tower, config=of_aspect(tower.config, source.config, where)),
        projector_table(tensors, f"{body}.mm_projector.0", f"{body}.mm_projector.2"),
        text,
        language_table(text, tensors, body, "lm_head"),
        prompt,
        tokenizer,
        tensors,
        where,
    )
