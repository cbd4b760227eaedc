"""Sequences over scattered pages of a cache, and what a decoder says of tokens that are forced on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine import TorchDecoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.pages import pages_for
from vision_lm.engine.torch_decoder import Chunk

CPU = torch.device("cpu")


def filled_cache(
    config: TextConfig, decoder: TorchDecoder, prompts: list[Tensor]
) -> tuple[KVCache, list[list[int]]]:
    """A cache in which nothing is finite but what the prompts wrote, and the sequences' scattered pages."""
    lengths = [len(prompt) + 24 for prompt in prompts]
    total = sum(map(pages_for, lengths)) + 1
    cache = KVCache(config, total, CPU, decoder.dtype)
    cache.memory.fill_(float("nan"))
    free = torch.randperm(total, generator=torch.Generator().manual_seed(3)).tolist()
    pages = [[free.pop() for _ in range(pages_for(length))] for length in lengths]
    for prompt, own in zip(prompts, pages, strict=True):
        decoder.prefill(prompt, [Chunk(0, len(prompt), cache.slots(own, len(prompt)), True)], cache)
    return cache, pages


def steps(config: TextConfig, decoder: TorchDecoder, prompts: list[Tensor], count: int) -> Tensor:
    """Logits (count, B, V) of forced tokens after the prompts."""
    cache, pages = filled_cache(config, decoder, prompts)
    return torch.stack(
        [
            decoder.decode(
                [(7 * step + 3 * len(prompt)) % config.vocab_size for prompt in prompts],
                [len(prompt) + step for prompt in prompts],
                pages,
                cache,
            )
            for step in range(count)
        ]
    )


LAYOUTS: dict[str, dict[str, Any]] = {
    "heads of 32": {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4},
    "heads of 64": {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4},
    "heads of 80, two fifths turned": {
        "hidden_size": 640,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.4,
    },
    "shared keys": {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2},
}
