"""Pictures that both ends of a pipe know, so that a picture asked about again is not sent again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from vision_lm.engine.request import Image, Prompt

BUDGET = 1 << 27  # bytes of pictures that are kept


@dataclass(frozen=True)
class Known:
    """Stands for a picture that the other end has."""

    digest: bytes
    nbytes: int = 0


class Album:
    """One end's. Both do the same with the same prompts in the same order, and so keep, and drop, the same pictures."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._bytes = 0
        self._kept: OrderedDict[bytes, tuple[Image | None, int]] = (
            OrderedDict()
        )  # None: only the other end needs it

    def packed(self, prompt: Prompt) -> Prompt:
        """As it is sent: pictures that the other end knows by their digests alone."""
        return replace(prompt, images=[self._pack(image) for image in prompt.images])

    def unpacked(self, prompt: Prompt) -> Prompt:
        """As it was before it was sent."""
        return replace(prompt, images=[self._unpack(image) for image in prompt.images])

    def _pack(self, image: Image) -> Image:
        if image.digest in self._kept:
            self._kept.move_to_end(image.digest)
            return Known(image.digest)
        self._keep(image.digest, None, image.nbytes)
        return image

    def _unpack(self, image: Image) -> Image:
        if isinstance(image, Known):
            self._kept.move_to_end(image.digest)
            found, _ = self._kept[image.digest]
            assert found is not None  # this end keeps them
            return found
        self._keep(image.digest, image, image.nbytes)
        return image

    def _keep(self, digest: bytes, image: Image | None, size: int) -> None:
        self._kept[digest] = image, size
        self._bytes += size
        while self._bytes > self._budget and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped
