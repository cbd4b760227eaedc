"""Pixels are normalised on a GPU by a table: the same bits as in numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import VIT
from vision_lm.encoder import normalise_by
from vision_lm.preprocess import levels, normalise

CLIP = dataclasses.replace(
    VIT, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)


@pytest.mark.parametrize("config", [VIT, CLIP], ids=["halves", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_gives_the_bits_of_normalise(config: object, dtype: torch.dtype) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 28, 3), dtype=np.uint8)
    expected = torch.stack([torch.from_numpy(normalise(one, config)) for one in pixels]).to(dtype)  # type: ignore[arg-type]
    table = torch.from_numpy(levels(config)).to(dtype)  # type: ignore[arg-type]
    found = normalise_by(table, torch.from_numpy(pixels))
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last), "as convolutions want it"
