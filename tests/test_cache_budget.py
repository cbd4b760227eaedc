"""How many tokens the key-value cache keeps unless it is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.emulator.model import config_of
from vision_lm.checkpoint import Checkpoint
from vision_lm.engine.kv_cache import default_cache_tokens
from vision_lm.engine.pages import PAGE
from vision_lm.errors import RequestError
from vision_lm.model import VisionLM

GIB = 1 << 30
CPU, GPU = torch.device("cpu"), torch.device("cuda")
# phi-1.5's: 192 KiB a token in 16 bits.
LARGE = dataclasses.replace(
    config_of(width=2048, heads=32, kv_heads=32, ffn=8192, vocab=51200, layers=24, rotary=0.5),
    max_position_embeddings=2048,
)
SMALL = config_of(width=256, heads=4, kv_heads=4, ffn=512, vocab=301, layers=2, rotary=0.5)


def test_on_a_cpu_it_is_two_gib_at_most() -> None:
    assert default_cache_tokens(LARGE, torch.bfloat16, CPU) == 2 * GIB // (192 << 10)
    assert default_cache_tokens(SMALL, torch.bfloat16, CPU) == 16_384


@pytest.mark.parametrize(
    ("free", "unused", "tokens"),
    [
        (70 * GIB, 0, 131_072),  # 64 full contexts: more would be of no use
        (10 * GIB, 0, 32_768),  # 6 GiB
        (8 * GIB, 2 * GIB, 32_768),  # torch holds some of it, and uses none of that
        (GIB // 4, 0, 2_048),  # one full context, whatever there is
    ],
)
def test_on_a_gpu_it_is_a_share_of_what_the_weights_leave(
    free: int, unused: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GIB + unused)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GIB)
    assert default_cache_tokens(LARGE, torch.bfloat16, GPU) == tokens


def test_a_budget_that_is_given_is_kept_and_changes_no_answer(vit_checkpoint: Checkpoint) -> None:
    """Eight answers in a cache for two of them: some wait, or are computed again, and all are what they were."""
    questions = [f"What colour is the cube? {number}" for number in range(8)]
    tight = VisionLM(vit_checkpoint, device="cpu", dtype="float32", cache_tokens=96)
    roomy = VisionLM(vit_checkpoint, device="cpu", dtype="float32")
    assert tight.engine.pages.count * PAGE == 96 < roomy.engine.pages.count * PAGE
    found, expected = ([str(one) for one in vlm.ask([None] * 8, questions)] for vlm in (tight, roomy))
    assert found == expected and tight.engine.stats.peak_pages <= 96 // PAGE
    with pytest.raises(RequestError, match="cache_tokens is 0: give a whole number of at least 1"):
        VisionLM(vit_checkpoint, device="cpu", cache_tokens=0)
