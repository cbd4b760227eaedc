"""Drawings in the manner of other artists: what changes, and what they still show."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from projector.data.pictures import Picture
from projector.data.restyle import MANNERS, flat, grey, lines, outlined, paler, restyle, without_colour_names


def ball() -> Image.Image:
    """A shaded orange ball with a dark stripe, on nothing: 96 pixels a side, 8 of them left free all around."""
    shade = Image.linear_gradient("L").resize((96, 96))
    ball = Image.merge(
        "RGB", (shade.point(lambda v: 160 + v // 3), shade.point(lambda v: 60 + v // 3), shade)
    )
    ImageDraw.Draw(ball).rectangle((30, 44, 66, 52), fill=(20, 20, 60))
    shape = Image.new("L", (96, 96))
    ImageDraw.Draw(shape).ellipse((8, 8, 87, 87), fill=255)
    ball.putalpha(shape)
    return ball


def seen(drawing: Image.Image) -> np.ndarray:
    """Its visible colours (N, 3)."""
    pixels = np.asarray(drawing)
    return pixels[pixels[..., 3] > 0][:, :3]


@pytest.mark.parametrize("manner", MANNERS)
def test_the_shape_stays(manner: object) -> None:
    """Whatever the manner: the ball is where it was, but for a contour around it, and drawn again from the same chance."""
    assert callable(manner)
    before = ball()
    after = manner(before, random.Random(1))
    margin = (after.width - before.width) // 2
    assert after.mode == "RGBA" and 0 <= margin <= 4
    old = np.pad(np.asarray(before)[..., 3] > 127, margin)
    new = np.asarray(after)[..., 3] > 127
    assert not (old & ~new).any()
    assert (new & ~old).sum() <= 4 * 88 * margin  # a ring of that width
    assert after.tobytes() == manner(before, random.Random(1)).tobytes()


def test_flat_has_few_colours_and_no_soft_rim() -> None:
    drawing = flat(ball(), random.Random(2))
    assert len(np.unique(seen(ball()), axis=0)) > 50
    assert 2 <= len(np.unique(seen(drawing), axis=0)) <= 8
    assert set(np.unique(np.asarray(drawing)[..., 3])) == {0, 255}


@pytest.mark.parametrize("manner", [outlined, lines])
def test_a_contour_is_dark_and_lies_around(manner: object) -> None:
    """From outside, along every row, the first thing met is ink."""
    assert callable(manner)
    drawing = np.asarray(manner(ball(), random.Random(3))).astype(int)
    for row in drawing[12:-12]:
        first = row[np.argmax(row[:, 3] > 0)]
        assert first[3] == 255 and first[:3].max() <= 60


def test_lines_draw_what_is_within() -> None:
    """The stripe, too: ink on light paper, and more paper than ink."""
    drawing = lines(ball(), random.Random(4))
    dark = seen(drawing).max(1) <= 60
    assert 0.02 < dark.mean() < 0.5 and seen(drawing)[~dark].min() >= 200
    middle = np.asarray(drawing)[drawing.height // 2 - 10 : drawing.height // 2 + 10, drawing.width // 2, :3]
    assert (middle.max(1) <= 60).any() and (middle.min(1) >= 200).any()


def test_grey_has_no_colours_and_paler_has_weaker_ones() -> None:
    def colourfulness(drawing: Image.Image) -> float:
        return float(np.ptp(seen(drawing).astype(int), axis=1).mean())

    assert colourfulness(grey(ball(), random.Random(5))) == 0
    assert 0 < colourfulness(paler(ball(), random.Random(5))) < colourfulness(ball())


def test_all_manners_come_up() -> None:
    """One of them at a time, each as often as the others."""
    drawn = {restyle(ball(), random.Random(seed)).tobytes() for seed in range(40)}
    assert len(drawn) >= 30


def test_what_is_called_by_its_colour_is_left_alone() -> None:
    """A red envelope that is drawn in grey is none."""
    envelope = Picture("red envelope", "noto", Path("a.png"), None)
    apple = Picture("apple", "noto", Path("b.png"), "food", ("red apple", "fruit"))
    assert without_colour_names(envelope) is None
    kept = without_colour_names(apple)
    assert kept is not None and (kept.name, kept.aliases) == ("apple", ("fruit",))
