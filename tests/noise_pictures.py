"""Pictures of noise, each known by its number, and engines that see them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.conftest import random_phi, text_config
from vision_lm.engine import Engine, Limits, TorchDecoder

PLACEHOLDER = 90  # of the 96 rows of the random models, none of which a test's text uses
IMAGE_TOKENS = 20  # more than a page, and no multiple of it


@dataclasses.dataclass(frozen=True)
class Noise:
    """A picture: image tokens drawn from its number."""

    number: int

    @property
    def digest(self) -> bytes:
        return self.number.to_bytes(16, "little")


def encode(images: Sequence[Noise]) -> list[Tensor]:
    return [
        torch.randn(IMAGE_TOKENS, 64, generator=torch.Generator().manual_seed(image.number))
        for image in images
    ]


def random_decoder() -> TorchDecoder:
    torch.manual_seed(0)
    config = text_config()
    return TorchDecoder(config, random_phi(config).state_dict(), torch.device("cpu"), torch.float32)


def engine_of(decoder: TorchDecoder, **limits: Any) -> Engine:
    cache_tokens = limits.pop("cache_tokens", 4096)
    return Engine(decoder, encode, PLACEHOLDER, limits=Limits(**limits), cache_tokens=cache_tokens)
