"""Image tokens of the pictures seen last: each picture is encoded once, together with others that wait."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vision_lm.engine.request import Image

IMAGES_PER_BATCH = 16
BUDGET = 1 << 28  # bytes: 113 pictures of 576 tokens for phi-1.5 in 16 bits, 3,800 for mini


class ImageCache:
    """Encodings by digest, the least recently used dropped beyond a number of bytes. Any thread may call it."""

    def __init__(self, encode: Callable[[Sequence[Any]], Sequence[Tensor]], budget: int = BUDGET) -> None:
        """`encode`: pictures -> their image tokens (M, Dt) each; `budget` in bytes. What alone is more than that is never kept."""
        self.encoded = 0  # pictures, so far
        self._encode, self._budget = encode, budget
        self._tokens: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, images: Sequence[Image]) -> list[Tensor]:
        """The image tokens (M, Dt) of each picture; those not here are encoded in batches."""
        with self._lock:
            wanted = {image.digest: image for image in images}
            found = {digest: self._tokens[digest] for digest in wanted if digest in self._tokens}
            unseen = [image for digest, image in wanted.items() if digest not in found]
            for start in range(0, len(unseen), IMAGES_PER_BATCH):
                batch = unseen[start : start + IMAGES_PER_BATCH]
                for image, tokens in zip(batch, self._encode(batch), strict=True):
                    found[image.digest] = tokens
                self.encoded += len(batch)
            for digest, tokens in found.items():
                self._keep(digest, tokens)
            return [found[image.digest] for image in images]

    @property
    def nbytes(self) -> int:
        """Of the encodings that it keeps: never more than the budget."""
        return self._bytes

    def _keep(self, digest: bytes, tokens: Tensor) -> None:
        if digest in self._tokens:
            self._tokens.move_to_end(digest)
            return
        if tokens.nbytes > self._budget:
            return
        while self._bytes + tokens.nbytes > self._budget:
            _, dropped = self._tokens.popitem(last=False)
            self._bytes -= dropped.nbytes
        # A copy: a row of a batch would keep the whole batch in memory.
        self._tokens[digest] = tokens.clone()
        self._bytes += tokens.nbytes
