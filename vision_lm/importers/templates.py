"""The prompts that other projects trained with, as ours."""

from __future__ import annotations

from typing import Any

from vision_lm.config import PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.source import Source

ASSISTANT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna(image_token_id: int, eos_token_id: int, **changes: Any) -> PromptConfig:
    """Vicuna's, as LLaVA and what came of it use it: the pictures come after "USER: ", a line for each."""
    settings: dict[str, Any] = {
        "question": "USER: {images}{question} ASSISTANT:",
        "image": "{image}\n",
        "system": ASSISTANT + " ",
    }
    return PromptConfig(image_token_id, eos_token_id, **settings | changes)


def refuse_tags(source: Source) -> None:
    """LLaVA's code can put tags of its own around a picture; no published Phi was trained so. Raises CheckpointError."""
    if source.config.get("mm_use_im_start_end"):
        raise CheckpointError(
            f"{source.where}: mm_use_im_start_end is not supported: tags around the picture's tokens"
        )
