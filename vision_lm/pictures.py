"""From a picture's source to its image tokens: opened, brought to size, encoded and projected."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projector.module import Projector
from vision_lm.config import VisionConfig
from vision_lm.encoder import ImageEncoder
from vision_lm.images import ImageLimits, ImageSource, open_image
from vision_lm.preprocess import fit, normalise, pixel_digest

KEPT = 64  # pictures remembered from one part of a long list to the next


@dataclass(frozen=True)
class FittedPicture:
    """One picture at the encoder's size. It may never be encoded: its tokens may be known."""

    pixels: np.ndarray  # (S, S, 3), or of a sheet with its parts (H, W, 3), uint8
    digest: bytes  # of the pixels: the same picture from two sources is one picture

    def ready(self, config: VisionConfig) -> Picture:
        """For the encoder of this config."""
        return Picture(torch.from_numpy(normalise(self.pixels, config)), self.digest)


@dataclass(frozen=True)
class Picture:
    """One picture, ready for the encoder."""

    pixels: Tensor  # (3, S, S), or of a sheet with its parts (3, H, W), float32
    digest: bytes


@dataclass(frozen=True)
class EncodedPicture:
    """One picture that the encoder has seen already."""

    tokens: Tensor  # (M, Dt), as the language model sees them
    digest: bytes


class Pictures:
    """The pictures of one call, each source opened once."""

    def __init__(
        self,
        encoder: ImageEncoder,
        allow_url_hosts: Collection[str] = (),
        limits: ImageLimits | None = None,
    ) -> None:
        self.encoder = encoder
        self.allow_url_hosts = allow_url_hosts
        self.limits = limits or ImageLimits()
        self._opened: dict[Any, tuple[ImageSource, FittedPicture]] = {}

    def open(self, source: ImageSource | EncodedPicture) -> FittedPicture | EncodedPicture:
        """Read a picture and bring it to the encoder's size. Raises ImageError."""
        if isinstance(source, EncodedPicture):
            return source
        key = source if isinstance(source, (str, bytes, os.PathLike)) else id(source)
        if key not in self._opened:
            image = open_image(source, limits=self.limits, allow_url_hosts=self.allow_url_hosts)
            pixels = fit(image, self.encoder.config)
            # With the source, so that its id stays its own.
            self._opened[key] = source, FittedPicture(pixels, pixel_digest(pixels))
            if len(self._opened) > KEPT:  # a list of any length needs the same memory
                del self._opened[next(iter(self._opened))]
        return self._opened[key][1]


class PictureEncoder:
    """Pictures -> image tokens, as the language model sees them."""

    def __init__(self, encoder: ImageEncoder, projector: Projector) -> None:
        self.encoder, self.projector = encoder, projector

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[FittedPicture | Picture | EncodedPicture]) -> list[Tensor]:
        """The image tokens (M, Dt) of each picture; those that are not encoded yet are computed in one batch."""
        ready = [
            one.ready(self.encoder.config) if isinstance(one, FittedPicture) else one for one in pictures
        ]
        encoded = iter(self._encoded([one.pixels for one in ready if isinstance(one, Picture)]))
        return [one.tokens if isinstance(one, EncodedPicture) else next(encoded) for one in pictures]

    def _encoded(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pixels of pictures -> the image tokens (M, Dt) of each; those of one shape together."""
        found: dict[int, Tensor] = {}
        for shape in {one.shape: None for one in pictures}:
            places = [place for place, one in enumerate(pictures) if one.shape == shape]
            found |= zip(places, self._batch([pictures[place] for place in places]), strict=True)
        return [found[place] for place in range(len(pictures))]

    def _batch(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pixels (3, H, W) of B pictures -> image tokens (B, M, Dt)."""
        features = self.encoder.encode(torch.stack(list(pictures)))
        return self.projector(features.patches, features.pooled)
