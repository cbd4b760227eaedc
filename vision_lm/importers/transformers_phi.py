"""A Phi as transformers saves it: `config.json`, safetensors (one file or several), `tokenizer.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.model_files import (
    CONFIG,
    FILES,
    TOKENIZER,
    find_folder,
    one_line,
    read_tensors,
    read_tokenizer,
)
from vision_lm.skeleton import check_tensors, phi_shapes

END_OF_TEXT = "<|endoftext|>"  # of every GPT-2 tokenizer, Phi's among them
# What a row that is no token is filled with: its output is so low that it is never said, and float16 holds it.
NEW_ROW = {"model.embed_tokens.weight": 0.0, "lm_head.weight": 0.0, "lm_head.bias": -1e4}


@dataclass(frozen=True)
class Phi:
    """A language model, its tensors named as in PhiForCausalLM's state dict."""

    config: TextConfig
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer
    eos_token_id: int


def read_phi(source: str) -> Phi:
    """The Phi of a folder or a hub id ("microsoft/phi-1_5"). Raises CheckpointError."""
    folder = find_folder(source, FILES)
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({one_line(error)}); give a transformers Phi"
        ) from None
    config = phi_text_config(raw, path)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    # Older files also hold a table that follows from the config.
    tensors = {name: t for name, t in read_tensors(folder).items() if not name.endswith(".inv_freq")}
    check_tensors(tensors, phi_shapes(config), folder)
    end = tokenizer.token_to_id(END_OF_TEXT)
    end = raw.get("eos_token_id") if end is None else end
    if not isinstance(end, int):
        raise CheckpointError(f"{folder}: {TOKENIZER} has no {END_OF_TEXT}, and {CONFIG} no eos_token_id")
    return Phi(config, tensors, tokenizer, end)


def phi_text_config(raw: Any, path: Path) -> TextConfig:
    """transformers' config of a Phi as ours. What our decoder does not compute is refused, never ignored."""
    kind = raw.get("model_type") if isinstance(raw, Mapping) else None
    if kind != "phi":
        raise CheckpointError(f"{path}: model_type is {kind!r}, not 'phi' (phi-1, phi-1_5 and phi-2 are)")
    from transformers import PhiConfig

    from vision_lm.phi import text_config

    config = PhiConfig.from_dict(dict(raw))
    rotary = (getattr(config, "rope_parameters", None) or raw.get("rope_scaling") or {}).get("rope_type")
    allowed: dict[str, tuple[Any, list[Any]]] = {
        "qk_layernorm": (config.qk_layernorm, [False]),
        "tie_word_embeddings": (config.tie_word_embeddings, [False]),
        "hidden_act": (config.hidden_act, ["gelu_new", "gelu_pytorch_tanh"]),
        "rope_type": (rotary or "default", ["default"]),
    }
    for key, (value, values) in allowed.items():
        if value not in values:
            raise CheckpointError(f"{path}: {key} {value!r} is not supported, only {values[0]!r}")
    return text_config(config)


def with_free_row(phi: Phi) -> tuple[Phi, int]:
    """The Phi and the id of an embedding row that no text encodes to, for the image placeholder.

    Phi has more rows than its tokenizer has tokens; where every row is a token, one is added.
    """
    free = max(phi.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    if free < phi.config.vocab_size:
        return phi, free
    tensors = dict(phi.tensors)
    for name, fill in NEW_ROW.items():
        tensors[name] = torch.cat([tensors[name], torch.full_like(tensors[name][:1], fill)])
    config = dataclasses.replace(phi.config, vocab_size=phi.config.vocab_size + 1)
    return dataclasses.replace(phi, config=config, tensors=tensors), free
