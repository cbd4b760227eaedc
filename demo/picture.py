"""A visitor's picture: its file, and a small view of it for the page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vision_lm.errors import ImageError
from vision_lm.images import open_image

SHOWN_SIDE = 480  # pixels of the longest side


@dataclass(frozen=True)
class Picture:
    """A file that can be read. The view is part of the page: browsers do not know every format that we read."""

    path: Path
    view: str  # a data URL

    @property
    def name(self) -> str:
        return self.path.name

    def figure(self, number: int) -> str:
        """HTML, with words for those who cannot see it; the pictures of a conversation are counted from 1."""
        name = html.escape(self.name)
        return f'<img class="picture" src="{self.view}" alt="Picture {number}: {name}" title="{name}">'


def open_picture(path: Path, longest_side: int = SHOWN_SIDE) -> Picture:
    """Raises ImageError, which calls the file by its name."""
    image = open_image(path, name=path.name)
    image.thumbnail((longest_side, longest_side))
    return Picture(path, jpeg(image))


def open_pictures(paths: Sequence[Path]) -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """The pictures among some files, and what is wrong with each of the others."""
    pictures, wrong = [], []
    for path in paths:
        try:
            pictures.append(open_picture(path))
        except ImageError as error:
            wrong.append(str(error))
    return tuple(pictures), tuple(wrong)


def jpeg(image: Image.Image, quality: int = 80) -> str:
    """As a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
