"""Pictures that look the same: a perceptual hash, and the colours that such a hash does not see."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")
HASH_BYTES = 8
GRID = 8  # colour cells a side
LOOK_BYTES = HASH_BYTES + 3 * GRID * GRID
HASH_BITS = 6  # that may differ: a picture saved again, or scaled, mostly differs in 0 to 4 of 64
CELL_MEAN, CELL_MOST = (
    6.0,
    32.0,
)  # levels of 255 by which the colours may differ, on average and in any one cell


def look_of(image: Image.Image) -> bytes:
    """An RGB picture's look: pHash (DCT of the grey picture, 64 bits) and the mean colours of an 8 x 8 grid.

    The hash alone takes a red and a blue circle for the same picture.
    """
    from imagehash import phash

    small = image.resize((GRID, GRID), Image.Resampling.BOX, reducing_gap=4.0)
    return np.packbits(phash(image).hash).tobytes() + small.tobytes()


class Looks(Generic[T]):
    """Looks seen so far, each with what it belongs to: 200 bytes a picture, compared all at once."""

    def __init__(self) -> None:
        self._looks = np.zeros((4, LOOK_BYTES), dtype=np.uint8)
        self._owners: list[T] = []

    def find(self, look: bytes) -> T | None:
        """The first picture that looks the same."""
        known = self._looks[: len(self._owners)]
        new = np.frombuffer(look, dtype=np.uint8)
        hashes = np.ascontiguousarray(known[:, :HASH_BYTES]).view(np.uint64)[:, 0]
        distance = np.bitwise_count(hashes ^ new[:HASH_BYTES].view(np.uint64))
        for place in np.flatnonzero(distance <= HASH_BITS):
            levels = np.abs(known[place, HASH_BYTES:].astype(np.int16) - new[HASH_BYTES:])
            if levels.mean() <= CELL_MEAN and levels.max() <= CELL_MOST:
                return self._owners[place]
        return None

    def add(self, look: bytes, owner: T) -> None:
        if len(self._owners) == len(self._looks):
            self._looks = np.concatenate([self._looks, np.zeros_like(self._looks)])
        self._looks[len(self._owners)] = np.frombuffer(look, dtype=np.uint8)
        self._owners.append(owner)
