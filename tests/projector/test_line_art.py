"""Drawings in one ink: what lies between the lines, and that it can be seen on any ground."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from projector.data.line_art import MANNERS, as_button, coloured_in, drawn_in_ink, on_paper


def spectacles() -> Image.Image:
    """Two rings side by side, 96 by 64 pixels, that enclose two areas, and a speck of ink in the left one."""
    ink = Image.new("L", (96, 64))
    draw = ImageDraw.Draw(ink)
    for left in (4, 48):
        draw.ellipse((left, 12, left + 40, 52), outline=255, width=5)
    draw.rectangle((22, 30, 26, 34), fill=255)
    drawing = Image.new("RGBA", ink.size)
    drawing.putalpha(ink)
    return drawing


LEFT, RIGHT, OUTSIDE, SPECK = (15, 32), (68, 32), (2, 2), (24, 32)


@pytest.mark.parametrize("seed", range(5))
def test_paper_lies_within_the_lines_only(seed: int) -> None:
    """Dark lines, light areas, and nothing around them, so that the drawing can be told on any ground."""
    drawn = on_paper(spectacles(), random.Random(seed))
    assert drawn.size == (96, 64)
    for place in (LEFT, RIGHT):
        *colour, alpha = drawn.getpixel(place)
        assert min(colour) >= 200 and alpha == 255
    *ink, alpha = drawn.getpixel(SPECK)
    assert max(ink) <= 60 and alpha == 255
    assert drawn.getpixel(OUTSIDE)[3] == 0


def test_areas_have_colours_of_their_own() -> None:
    """Each area is one colour; not always the same one, nor always another than its neighbour."""
    pairs = set()
    for seed in range(20):
        drawn = coloured_in(spectacles(), random.Random(seed))
        pixels = np.asarray(drawn)
        inside = pixels[26:38, 11:19, :].reshape(-1, 4)
        assert len(np.unique(inside, axis=0)) == 1
        assert drawn.getpixel(OUTSIDE)[3] == 0
        pairs.add(drawn.getpixel(LEFT) == drawn.getpixel(RIGHT))
    assert pairs == {True, False}


@pytest.mark.parametrize("seed", range(8))
def test_a_button_stands_out_from_its_plate(seed: int) -> None:
    """Ink and plate differ in lightness by what anybody sees, dark on light or light on dark."""
    drawn = as_button(spectacles(), random.Random(seed))
    rim = (drawn.width - 96) // 2
    ink, plate = (drawn.getpixel((rim + x, rim + y)) for x, y in (SPECK, LEFT))
    assert ink[3] == plate[3] == 255
    assert abs(sum(ink[:3]) - sum(plate[:3])) >= 3 * 70


def test_every_manner_is_drawn_and_chance_decides() -> None:
    drawn = [drawn_in_ink(spectacles(), random.Random(seed)) for seed in range(40)]
    assert len({one.tobytes() for one in drawn}) > 30
    assert len(MANNERS) == 3 and {one.size == (96, 64) for one in drawn} == {True, False}
    again = drawn_in_ink(spectacles(), random.Random(7))
    assert again.tobytes() == drawn[7].tobytes()
