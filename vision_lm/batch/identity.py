"""What makes two runs the same run: everything that an answer depends on, the weights included."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from vision_lm.batch.questions import Question
from vision_lm.batch.settings import Settings
from vision_lm.checkpoint import Checkpoint
from vision_lm.model import VisionLM


def identity(settings: Settings, questions: Sequence[Question], vlm: VisionLM) -> dict[str, Any]:
    """By the names that people know them by."""
    return {
        "model": f"{vlm.config.name} {digest(vlm.checkpoint)}",
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "quantize": settings.quantize,
        "questions": {one.name: one.length or one.text for one in questions},
        "json schema": settings.json_schema,
        "max tokens": settings.max_tokens,
        "checked": settings.checked or None,  # None: as in journals from before there was a choice
        "dedupe": settings.dedupe,
    }


def digest(checkpoint: Checkpoint) -> str:
    """A hash of the config, the tokenizer and every weight."""
    found = hashlib.blake2b(checkpoint.config.to_json().encode(), digest_size=8)
    found.update(checkpoint.tokenizer.to_str().encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
