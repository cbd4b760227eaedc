"""SigLIP-SO400M/14 at 384 pixels where no config gives its sizes: all but two follow from the tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vision_lm.errors import CheckpointError

HEAD_WIDTH = 72  # 1152 / 16
LAYERS = 27
BEYOND = 6  # 384 = 27 x 14 + 6: pixels at the right and at the bottom that no patch covers


def siglip_sizes(tensors: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Any]:
    """transformers' SiglipVisionConfig of the tower whose tensors begin with `prefix`. Raises CheckpointError."""
    needed = [
        f"{prefix}embeddings.position_embedding.weight",
        f"{prefix}embeddings.patch_embedding.weight",
        f"{prefix}encoder.layers.0.mlp.fc1.weight",
    ]
    if missing := [name for name in needed if name not in tensors]:
        raise CheckpointError(f"{where}: missing tensors: {', '.join(missing)}; fetch the checkpoint again")
    positions, patch, inner = (tensors[name] for name in needed)
    return {
        "hidden_size": positions.shape[1],
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": count_layers(tensors, f"{prefix}encoder.layers."),
        "num_attention_heads": positions.shape[1] // HEAD_WIDTH,
        "image_size": math.isqrt(positions.shape[0]) * patch.shape[-1] + BEYOND,
        "patch_size": patch.shape[-1],
    }


def layer_read(sizes: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Which hidden state a model reads that takes the last but one of a whole tower, and cuts its tower off there.

    LLaVA's descendants at first deleted the last layer and the head of the tower that they loaded, and saved it so.
    """
    whole = sizes["num_hidden_layers"] == LAYERS or f"{prefix}head.probe" in tensors
    return -2 if whole else -1


def count_layers(tensors: Mapping[str, Tensor], start: str) -> int:
    """How many layers `start`0, `start`1 ... there are."""
    pattern = re.compile(re.escape(start) + r"(\d+)\.")
    return 1 + max((int(match.group(1)) for name in tensors if (match := pattern.match(name))), default=-1)
