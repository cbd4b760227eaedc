"""TinyLLaVA of before its Factory, with Phi-2 (github.com/TinyLLaVA/TinyLLaVA_Factory, branch tinyllava_bench).

bczhou/TinyLLaVA-3.1B: the names are LLaVA's, the Phi has no bias at the output, and of SigLIP every patch is seen. Its
class for the tower cuts off SigLIP's last layer and its head and gives what is left, whichever layer the config names.
The tower is loaded from a repository of its own; a file that holds it too is read alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.imported import Imported, assemble, end_of_text, free_row
from vision_lm.importers.phi_text import language_table, projector_table, read_text_config
from vision_lm.importers.preprocessing import of_aspect
from vision_lm.importers.so400m import layer_read, siglip_sizes
from vision_lm.importers.source import Source
from vision_lm.importers.templates import refuse_tags, vicuna
from vision_lm.importers.tower_files import SIGLIP
from vision_lm.importers.towers import Tower, siglip_tower
from vision_lm.model_files import CONFIG


def convert(source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
    """Raises CheckpointError for what our model does not compute."""
    where = source.where
    refuse_tags(source)
    kind = source.config.get("mm_projector_type", "linear")
    if kind != "mlp2x_gelu":
        raise CheckpointError(f"{where}: a projector of type {kind!r} is not supported, only 'mlp2x_gelu'")
    text = read_text_config(source.config, source.folder / CONFIG)
    return assemble(
        source.title,
        _tower(source, tensors),
        projector_table(tensors, "model.mm_projector.0", "model.mm_projector.2"),
        text,
        language_table(text, tensors, "model", "lm_head"),
        vicuna(free_row(tokenizer, text, where), end_of_text(tokenizer, where)),
        tokenizer,
        tensors,
        where,
    )


def _tower(source: Source, tensors: Mapping[str, Tensor]) -> Tower:
    where, name = source.where, str(source.config.get("mm_vision_tower"))
    if "siglip" not in name.lower():  # as their code looks; others are CLIPs
        raise CheckpointError(f"{where}: a tower {name!r} is not supported, only a SigLIP")
    sizes = siglip_sizes(tensors, SIGLIP, where)
    tower = siglip_tower(sizes, SIGLIP, layer_read(sizes, tensors, SIGLIP), where)
    return dataclasses.replace(tower, config=of_aspect(tower.config, source.config, where))
