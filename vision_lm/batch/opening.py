"""What a worker process does with one picture: read, hash, decode, bring to size. No torch, so that it starts at once."""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vision_lm.batch.archives import Archives
from vision_lm.batch.look import look_of
from vision_lm.batch.sources import Item, Source
from vision_lm.config import VisionConfig
from vision_lm.errors import ImageError
from vision_lm.images import ImageLimits, ImageWarning, open_image, read_image
from vision_lm.preprocess import fit, pixel_digest

THUMBNAIL = 160  # pixels, the longer side


@dataclass(frozen=True)
class Opening:
    """How pictures are to be opened, the same for all of a run."""

    vision: VisionConfig
    limits: ImageLimits
    allow_url_hosts: tuple[str, ...]
    look: bool  # whether they are compared by their look


@dataclass(frozen=True)
class Job:
    """One picture to open."""

    item: Item
    known: str | None = None  # `content` of the bytes that were answered already: these need no pixels
    thumbnail: bool = False


@dataclass(frozen=True)
class Opened:
    """What became of a job."""

    content: str | None = None  # hash of the bytes; None: they could not be read
    pixels: np.ndarray | None = (
        None  # (S, S, 3), uint8; None where the content is known, or there is an error
    )
    digest: bytes = b""  # of the pixels
    look: bytes = b""  # what pictures that look the same have nearly the same of
    thumbnail: bytes | None = None  # JPEG
    more_frames: bool = False  # there are several, and only the first is read
    cause: str | None = None  # the error's class
    error: str | None = None
    seconds: float = 0.0


class Opener:
    """Opens pictures one after the other."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._archives = Archives()

    def open(self, job: Job) -> Opened:
        """Whatever is wrong with a picture is in what it returns."""
        start = time.perf_counter()
        content: str | None = None
        try:
            data = self._read(job.item)
            content = hashlib.blake2b(data, digest_size=16).hexdigest()
            if content == job.known and not job.thumbnail:
                return Opened(content, seconds=time.perf_counter() - start)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ImageWarning)
                image = open_image(data, limits=self.opening.limits, name=job.item.image)
            pixels = fit(image, self.opening.vision)
            return Opened(
                content,
                None if content == job.known else pixels,
                pixel_digest(pixels),
                look_of(image) if self.opening.look else b"",
                _thumbnail(image) if job.thumbnail else None,
                any(issubclass(one.category, ImageWarning) for one in caught),
                seconds=time.perf_counter() - start,
            )
        except ImageError as error:
            cause, message = type(error).__name__, str(error)
        except MemoryError:
            cause, message = (
                "MemoryError",
                f"{job.item.image}: memory ran out while it was opened; scale it down",
            )
        except Exception as error:  # a library's fault costs one picture
            reason = " ".join(str(error).split())[:120]
            cause = type(error).__name__
            message = f"{job.item.image}: it could not be opened ({cause}: {reason}); save it anew"
        return Opened(content, cause=cause, error=message, seconds=time.perf_counter() - start)

    def _read(self, item: Item) -> bytes:
        source: Source = item.source
        if source.member:
            return self._archives.read(source.path, source.member, item.image, self.opening.limits.max_bytes)
        return read_image(
            source.path,
            limits=self.opening.limits,
            allow_url_hosts=self.opening.allow_url_hosts,
            name=item.image,
        )


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    written = io.BytesIO()
    small.save(written, "JPEG", quality=70)
    return written.getvalue()
