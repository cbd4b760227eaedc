"""How readily a checkpoint says a word, moved without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from vision_lm.checkpoint import Checkpoint

BIAS = "phi.lm_head.bias"  # (V,)


def with_more_bias(checkpoint: Checkpoint, tokens: Iterable[int], shift: float) -> Checkpoint:
    """The same checkpoint with that much more output bias for each of these tokens."""
    bias = checkpoint.tensors[BIAS].clone()  # (V,)
    bias[list(tokens)] += shift
    return dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, BIAS: bias})
