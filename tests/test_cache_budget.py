"""How many tokens the key-value cache keeps unless it is told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.emulator.model import config_of
from vision_lm.engine.kv_cache import default_cache_tokens

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
