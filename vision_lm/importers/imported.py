"""What an importer makes of a source: our config, our tokenizer, and the table of the tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.config import Config, ProjectorConfig, PromptConfig, TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers import phi_text
from vision_lm.importers.tensor_table import Table, one_row_more
from vision_lm.importers.towers import Tower
from vision_lm.importers.transformers_phi import END_OF_TEXT, NEW_ROW

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class Imported:
    """A checkpoint of another project in our words. `tensors` are still theirs; `table` makes ours of them."""

    config: Config
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    table: Table
    unused: dict[str, str] = field(default_factory=dict)


def free_row(tokenizer: Tokenizer, text: TextConfig, where: str) -> int:
    """The first id that is no token, for the image placeholder: `assemble` adds a row where they are all tokens.

    Raises CheckpointError where there are fewer rows than tokens. Most published Phis have 51,200 for 50,295 tokens.
    """
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= text.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has a token {largest}, but there are {text.vocab_size} embedding rows; "
            "the vocabulary is of another model"
        )
    return largest + 1


def end_of_text(tokenizer: Tokenizer, where: str) -> int:
    """The token that ends an answer. Raises CheckpointError."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is None:
        raise CheckpointError(f"{where}: the tokenizer has no {END_OF_TEXT}; it is not a Phi's")
    return int(end)


def assemble(
    name: str,
    tower: Tower,
    projector: Table,
    text: TextConfig,
    language: Table,
    prompt: PromptConfig,
    tokenizer: Tokenizer,
    tensors: Mapping[str, Tensor],
    where: str,
    residual: str | None = None,
) -> Imported:
    """The parts as one checkpoint. The projector's width is that of its tensors; `residual`: of the second MLP's."""
    table = tower.table | projector | language
    first = tensors.get(projector["projector.patches.0.weight"].names[0])
    head = tensors.get(language["phi.lm_head.weight"].names[0])
    second = tensors.get(residual) if residual else None
    if first is None or head is None or (residual and second is None):
        missing = [projector["projector.patches.0.weight"], language["phi.lm_head.weight"]]
        names = ", ".join(name for one in missing for name in one.names if name not in tensors)
        raise CheckpointError(f"{where}: missing tensors: {names or residual}; fetch the checkpoint again")
    if head.dtype not in _DTYPES:
        raise CheckpointError(
            f"{where}: weights of type {head.dtype}; allowed: {', '.join(_DTYPES.values())}"
        )
    if head.shape[0] != text.vocab_size:
        raise CheckpointError(
            f"{where}: vocab_size is {text.vocab_size}, but the language model's head has {head.shape[0]} rows"
        )
    if prompt.image_token_id == text.vocab_size:
        text = dataclasses.replace(text, vocab_size=text.vocab_size + 1)
        for ours, fill in NEW_ROW.items():
            table[f"phi.{ours}"] = one_row_more(table[f"phi.{ours}"], fill)
    config = Config(
        name=name,
        vision=tower.config,
        projector=ProjectorConfig(
            in_features=first.shape[1],
            hidden_features=first.shape[0],
            out_features=text.hidden_size,
            residual_features=0 if second is None else second.shape[0],
        ),
        text=text,
        prompt=prompt,
        projector_trained=True,
        dtype=_DTYPES[head.dtype],
    )
    return Imported(config, tokenizer, tensors, table, tower.unused | phi_text.UNUSED)


def with_vision(tower: Tower, **changes: Any) -> Tower:
    """The same tower, differently read or fed."""
    return dataclasses.replace(tower, config=dataclasses.replace(tower.config, **changes))
