"""Which pictures are the same as an earlier one of the run, or look the same, and are asked the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vision_lm.batch.look import Looks
from vision_lm.batch.settings import Dedupe


@dataclass(frozen=True)
class Original:
    """A picture whose answers serve its duplicates."""

    position: int
    key: bytes
    image: str


class Duplicates:
    """The originals so far. Pictures must come in their order: then every run finds the same."""

    def __init__(self, dedupe: Dedupe | None) -> None:
        self._dedupe = dedupe
        self._same: dict[tuple[bytes, int], Original] = {}
        self._alike: dict[int, Looks[Original]] = {}
        self._asked: dict[tuple[str, ...], int] = {}

    def find(self, pixels: bytes, look: bytes, asked: Sequence[str]) -> Original | None:
        """The original of a picture with these pixels' digest and this look."""
        if self._dedupe is None:
            return None
        number = self._number(asked)
        same = self._same.get((pixels, number))
        if same is None and self._dedupe == "perceptual" and number in self._alike:
            return self._alike[number].find(look)
        return same

    def add(self, pixels: bytes, look: bytes, asked: Sequence[str], original: Original) -> None:
        if self._dedupe is not None:
            number = self._number(asked)
            self._same[pixels, number] = original
            if self._dedupe == "perceptual":
                self._alike.setdefault(number, Looks()).add(look, original)

    def _number(self, asked: Sequence[str]) -> int:
        return self._asked.setdefault(tuple(asked), len(self._asked))
