"""From a picture's source to its image tokens: opened, encoded and projected once in a call."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projector.module import Projector
from vision_lm.encoder import ImageEncoder
from vision_lm.images import ImageSource, open_image

IMAGES_PER_BATCH = 16
KEPT = 64  # pictures remembered from one part of a long list to the next


@dataclass(frozen=True)
class Picture:
    """One picture, ready for the encoder."""

    pixels: Tensor  # (3, S, S)
    digest: bytes  # of the pixels: the same picture from two sources is one picture


class Pictures:
    """The pictures of one call."""

    def __init__(
        self, encoder: ImageEncoder, projector: Projector, allow_url_hosts: Collection[str] = ()
    ) -> None:
        self.encoder = encoder
        self.projector = projector
        self.allow_url_hosts = allow_url_hosts
        self._opened: dict[Any, Picture] = {}  # by source
        self._tokens: dict[bytes, Tensor] = {}  # by digest: (M, Dt)

    def open(self, source: ImageSource) -> Picture:
        """Read a picture and bring it to the encoder's size. Raises ImageError."""
        key = source if isinstance(source, (str, bytes, os.PathLike)) else id(source)
        if key not in self._opened:
            image = open_image(source, allow_url_hosts=self.allow_url_hosts)
            pixels = self.encoder.preprocess(image)
            self._opened[key] = Picture(pixels, hashlib.blake2b(pixels.numpy().tobytes()).digest())
        return self._opened[key]

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """The image tokens (M, Dt) of each picture; those not seen before are encoded in batches."""
        unseen = list({one.digest: one for one in pictures if one.digest not in self._tokens}.values())
        weight = next(self.encoder.parameters())
        for start in range(0, len(unseen), IMAGES_PER_BATCH):
            batch = unseen[start : start + IMAGES_PER_BATCH]
            pixels = torch.stack([one.pixels for one in batch]).to(
                weight.device, weight.dtype
            )  # (B, 3, S, S)
            features = self.encoder(pixels)
            tokens = self.projector(features.patches, features.pooled)  # (B, M, Dt)
            self._tokens |= zip([one.digest for one in batch], tokens, strict=True)
        return [self._tokens[one.digest] for one in pictures]

    def forget(self) -> None:
        """Keep the latest pictures only, so that a list of any length needs the same memory."""
        self._opened = dict(list(self._opened.items())[-KEPT:])
        self._tokens = dict(list(self._tokens.items())[-KEPT:])
