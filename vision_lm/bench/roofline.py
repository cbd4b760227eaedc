"""The least that a decoding step reads from memory, and so the least time that it can take.

One token at batch 1 has next to no arithmetic for each byte, so the limit is the memory: every weight of the
language model is read once a step (of the embedding one row), and the keys and values of every token before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vision_lm.config import TextConfig
from vision_lm.engine import Mode
from vision_lm.engine.kv_cache import bytes_per_token
from vision_lm.engine.rounding import GROUP
from vision_lm.skeleton import phi_shapes

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Roofline:
    """Of one decoded token, and how much of it was reached."""

    weight_bytes: int
    cache_bytes: int  # keys and values of `context` tokens
    context: int  # tokens before the one that is decoded
    bytes_per_token: int
    least_token_s: float  # at the read bandwidth measured in the same run
    share: float  # of that bandwidth, that the measured time of a token makes use of

    @classmethod
    def of(
        cls,
        config: TextConfig,
        dtype: torch.dtype,
        quantize: Mode,
        context: int,
        bytes_per_s: float,
        token_s: float,
    ) -> Roofline:
        row = config.hidden_size * dtype.itemsize  # of the embedding
        weights = weight_bytes(config, dtype, quantize) + row
        cache = context * bytes_per_token(config, dtype)
        least = (weights + cache) / bytes_per_s
        return cls(weights, cache, context, weights + cache, least, least / token_s)


def weight_bytes(config: TextConfig, dtype: torch.dtype, quantize: Mode) -> int:
    """Bytes of a language model's weights as they are kept, without the embedding, of which a step reads a row."""
    shapes = phi_shapes(config)
    return sum(stored_bytes(shape, dtype, quantize) for name, shape in shapes.items() if name != EMBEDDING)


def stored_bytes(shape: torch.Size, dtype: torch.dtype, quantize: Mode) -> int:
    """Bytes of one tensor: matrices are rounded, norms and biases are not."""
    if quantize is None or len(shape) < 2:
        return shape.numel() * dtype.itemsize
    rows, inputs = shape
    if quantize == "int8":
        return rows * (inputs + 4)  # a float32 scale a row
    groups = -(-inputs // GROUP)
    return rows * groups * (GROUP // 2 + 4)  # a bfloat16 scale and zero a group
