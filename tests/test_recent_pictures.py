"""Pictures that are sent again: neither decoded nor resized twice, and never taken for others."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_lm import VisionLM, pictures
from vision_lm.errors import ImageError
from vision_lm.images import ImageSource
from vision_lm.pictures import FittedPicture, Pictures, RecentPictures


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[ImageSource]:
    """What was opened, in order."""
    sources: list[ImageSource] = []
    real = pictures.open_image

    def counting(source: ImageSource, **options: Any) -> Image.Image:
        sources.append(source)
        return real(source, **options)

    monkeypatch.setattr(pictures, "open_image", counting)
    return sources


def fitted(vlm: VisionLM, source: ImageSource, recent: RecentPictures | None) -> FittedPicture:
    """As a request of its own gets it."""
    found = Pictures(vlm.config.vision, recent=recent).open(source)
    assert isinstance(found, FittedPicture)
    return found


def test_what_is_sent_again_is_opened_once(vlm: VisionLM, opened: list[ImageSource]) -> None:
    """Bytes and data URLs, each other's turns between them; and they are what they would be without a memory."""
    recent = RecentPictures()
    red, blue = png((200, 30, 20)), png((20, 30, 200))
    url = "data:image/png;base64," + base64.b64encode(blue).decode()
    for _ in range(3):
        for source in (red, url):
            known, alone = fitted(vlm, source, recent), fitted(vlm, source, None)
            assert known.digest == alone.digest and np.array_equal(known.pixels, alone.pixels)
    assert len(opened) == 2 + 6  # of those without a memory each


def test_a_file_is_read_again(vlm: VisionLM, tmp_path: Path) -> None:
    """Its content may be another next time."""
    recent, path = RecentPictures(), tmp_path / "picture.png"
    path.write_bytes(png((200, 30, 20)))
    first = fitted(vlm, path, recent)
    path.write_bytes(png((20, 30, 200)))
    assert fitted(vlm, path, recent).digest != first.digest


def test_memory_is_bounded(vlm: VisionLM, opened: list[ImageSource]) -> None:
    """Room for two: the one that was used longest ago goes, the others stay. What cannot be opened takes none."""
    files = [png((number, 0, 0)) for number in (1, 2, 3)]
    recent = RecentPictures(2 * fitted(vlm, files[0], None).pixels.nbytes)
    for file in (files[0], files[1], files[0], files[2]):
        fitted(vlm, file, recent)
    for _ in range(2):
        with pytest.raises(ImageError):
            fitted(vlm, b"no picture", recent)
    opened.clear()
    for file in (files[0], files[2], files[1]):
        fitted(vlm, file, recent)
    assert opened == [files[1]]


def test_only_what_is_at_hand_is_recalled(vlm: VisionLM, tmp_path: Path, opened: list[ImageSource]) -> None:
    """What a service may do without a thread: never a file, a new picture, or one whose digest alone takes a while."""
    recent, large = RecentPictures(), b"\0" * (pictures.BRIEF + 1)
    path = tmp_path / "picture.png"
    path.write_bytes(png((200, 30, 20)))
    red = png((200, 30, 20))
    assert not Pictures(vlm.config.vision).recall(red)
    assert not Pictures(vlm.config.vision, recent=recent).recall(red)
    known = fitted(vlm, red, recent)
    opened.clear()
    again = Pictures(vlm.config.vision, recent=recent)
    assert again.recall(red) and again.open(red) is known
    assert not any(again.recall(source) for source in (str(path), path, large, "https://example.com/a.png"))
    assert not opened
