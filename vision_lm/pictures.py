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
from vision_lm.encoder import ImageEncoder, normalise_by
from vision_lm.engine.cuda.recent_graphs import RecentGraphs
from vision_lm.images import ImageLimits, ImageSource, open_image
from vision_lm.preprocess import fit, levels, normalise, pixel_digest

KEPT = 64  # pictures remembered from one part of a long list to the next
GRAPHED = (
    4  # pictures at once on a GPU whose launches cost more than their arithmetic: these run as a CUDA graph
)
GRAPHS = 8  # such graphs, one for each number and size of pictures


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
    """Pictures -> image tokens, as the language model sees them. Any thread may call it."""

    def __init__(self, encoder: ImageEncoder, projector: Projector) -> None:
        self.encoder, self.projector = encoder, projector
        weight = next(encoder.parameters())
        self._device = weight.device
        self._levels = torch.from_numpy(levels(encoder.config)).to(weight.device, weight.dtype)  # (3, 256)
        self._graphs = RecentGraphs(weight.device, GRAPHS)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[FittedPicture | Picture | EncodedPicture]) -> list[Tensor]:
        """The image tokens (M, Dt) of each picture; those that are not encoded yet are computed in one batch."""
        encoded = iter(self._encoded([one for one in pictures if not isinstance(one, EncodedPicture)]))
        return [one.tokens if isinstance(one, EncodedPicture) else next(encoded) for one in pictures]

    def _encoded(self, pictures: Sequence[FittedPicture | Picture]) -> list[Tensor]:
        """The image tokens (M, Dt) of each; those of one shape together."""
        pixels = [self._pixels(one) for one in pictures]
        kinds = [(one.shape, one.dtype) for one in pixels]
        found: dict[int, Tensor] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, one in enumerate(kinds) if one == kind]
            found |= zip(places, self._batch([pixels[place] for place in places]), strict=True)
        return [found[place] for place in range(len(pictures))]

    def _pixels(self, picture: FittedPicture | Picture) -> Tensor:
        """(3, H, W), normalised; for a GPU that does it itself (H, W, 3), uint8."""
        if isinstance(picture, Picture):
            return picture.pixels
        if self._device.type == "cuda":
            return torch.from_numpy(picture.pixels.copy())  # Pillow's own memory is read-only
        return picture.ready(self.encoder.config).pixels

    def _batch(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pixels of B pictures -> image tokens (B, M, Dt)."""
        pixels = torch.stack(list(pictures))
        if self._device.type != "cuda":
            return self._tokens(pixels)
        pixels = pixels.pin_memory().to(self._device, non_blocking=True)
        if len(pixels) > GRAPHED:
            return self._tokens(pixels)
        return self._graphs.run((pixels.shape, pixels.dtype), self._tokens, pixels)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W), or uint8 (B, H, W, 3) -> image tokens (B, M, Dt)."""
        if pixels.dtype == torch.uint8:
            pixels = normalise_by(self._levels, pixels)
        features = self.encoder.encode(pixels)
        return self.projector(features.patches, features.pooled)
