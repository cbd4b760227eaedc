"""From a picture's source to its image tokens: opened, brought to size, encoded and projected."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
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
BRIEF = 1 << 18  # characters or bytes whose digest is computed in a moment
GRAPHED = (
    4  # pictures at once on a GPU whose launches cost more than their arithmetic: these run as a CUDA graph
)
GRAPHS = 8  # such graphs, one for each number and size of pictures


@dataclass(frozen=True)
class FittedPicture:
    """One picture at the encoder's size. It may never be encoded: its tokens may be known."""

    pixels: np.ndarray  # (S, S, 3), or of a sheet with its parts (H, W, 3), uint8
    digest: bytes  # of the pixels: the same picture from two sources is one picture

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    def ready(self, config: VisionConfig) -> Picture:
        """For the encoder of this config."""
        return Picture(torch.from_numpy(normalise(self.pixels, config)), self.digest)


@dataclass(frozen=True)
class Picture:
    """One picture, ready for the encoder."""

    pixels: Tensor  # (3, S, S), or of a sheet with its parts (3, H, W), float32
    digest: bytes

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


@dataclass(frozen=True)
class EncodedPicture:
    """One picture that the encoder has seen already."""

    tokens: Tensor  # (M, Dt), as the language model sees them
    digest: bytes

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes


class RecentPictures:
    """Pictures that came as bytes or data URLs, fitted: a conversation over HTTP sends its picture again with every turn.

    The least recently used are dropped beyond a number of bytes. For one encoder and one set of limits. Any thread may
    use it.
    """

    def __init__(self, budget: int = 1 << 26) -> None:
        """`budget` in bytes of pixels."""
        self._budget = budget
        self._fitted: OrderedDict[bytes, FittedPicture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @staticmethod
    def key(source: object) -> bytes | None:
        """What names the content; None for a source whose content may be another next time."""
        if isinstance(source, str) and source[:5].lower() == "data:":
            source = source.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(source).digest() if isinstance(source, bytes) else None

    def get(self, key: bytes) -> FittedPicture | None:
        with self._lock:
            if key in self._fitted:
                self._fitted.move_to_end(key)
            return self._fitted.get(key)

    def keep(self, key: bytes, picture: FittedPicture) -> None:
        with self._lock:
            if key in self._fitted:
                return
            self._fitted[key] = picture
            self._bytes += picture.pixels.nbytes
            while self._bytes > self._budget:
                _, dropped = self._fitted.popitem(last=False)
                self._bytes -= dropped.pixels.nbytes


class Pictures:
    """The pictures of one call, each source opened once."""

    def __init__(
        self,
        config: VisionConfig,
        allow_url_hosts: Collection[str] = (),
        limits: ImageLimits | None = None,
        recent: RecentPictures | None = None,
    ) -> None:
        """`config`: of the encoder that they are for; `recent`: of earlier calls with the same encoder and limits."""
        self.config = config
        self.allow_url_hosts = allow_url_hosts
        self.limits = limits or ImageLimits()
        self.recent = recent
        self._opened: dict[Any, tuple[ImageSource, FittedPicture]] = {}

    def open(self, source: ImageSource | EncodedPicture) -> FittedPicture | EncodedPicture:
        """Read a picture and bring it to the encoder's size. Raises ImageError."""
        if isinstance(source, EncodedPicture):
            return source
        key = source if isinstance(source, (str, bytes, os.PathLike)) else id(source)
        if key not in self._opened:
            self._opened[key] = source, self._fitted(source)  # with the source, so that its id stays its own
            if len(self._opened) > KEPT:  # a list of any length needs the same memory
                del self._opened[next(iter(self._opened))]
        return self._opened[key][1]

    def recall(self, source: ImageSource) -> bool:
        """Whether it came as bytes or a data URL in an earlier call, so that to open it now costs next to nothing."""
        if not isinstance(source, (str, bytes)) or len(source) > BRIEF or not self.recent:
            return False
        if source not in self._opened:
            content = self.recent.key(source)
            known = self.recent.get(content) if content else None
            if known is None:
                return False
            self._opened[source] = source, known
        return True

    def _fitted(self, source: ImageSource) -> FittedPicture:
        content = self.recent.key(source) if self.recent else None
        if self.recent and content and (known := self.recent.get(content)):
            return known
        image = open_image(source, limits=self.limits, allow_url_hosts=self.allow_url_hosts)
        pixels = fit(image, self.config)
        fitted = FittedPicture(pixels, pixel_digest(pixels))
        if self.recent and content:
            self.recent.keep(content, fitted)
        return fitted


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
