"""What `vision-lm info` says of memory is what the loaded weights need."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import VIT, random_checkpoint, text_config
from vision_lm.describe import memory
from vision_lm.model import VisionLM

# No matrix needs padding.
TEXT = text_config(
    vocab_size=512, hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_key_value_heads=4
)


@pytest.mark.parametrize(("mode", "name"), [(None, "bf16"), ("int8", "int8"), ("int4", "int4")])
def test_the_weights_as_they_are_kept(mode: Any, name: str) -> None:
    """The decoder counts the bytes of its matrices, torch those of the other parts.

    The rest, a few hundredths, are norms, biases, and what each kind of kernel adds.
    """
    checkpoint = random_checkpoint(VIT, TEXT)
    vlm = VisionLM(checkpoint, "cpu", "bfloat16", mode)
    embeddings = checkpoint.tensors["phi.model.embed_tokens.weight"].numel()
    others = [one for part in (vlm.encoder, vlm.projector) for one in part.state_dict().values()]
    kept = vlm.engine.decoder.step_bytes + 2 * (embeddings + sum(one.numel() for one in others))
    assert memory(checkpoint)[name] == pytest.approx(kept, rel=0.05)
