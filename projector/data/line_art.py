"""A drawing in one ink, which is all shape and no colour, as a pen, a child with crayons or a button has it.

Icons are transparent but for their lines. On a ground of any colour black lines may not be seen at all, and most line
drawings that people have are on paper, or coloured in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

INK = 128  # alpha from which on a pixel is ink
SPECK = 24  # pixels: smaller gaps between lines are left as the rest is
CRAYONS = 4  # colours of one drawing


def drawn_in_ink(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """An RGBA drawing, of which alpha alone counts, as line art: RGBA, of the same size but for a button's rim."""
    return rng.choice(MANNERS)(cut_out, rng)


def on_paper(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """Dark lines; all that they enclose is paper."""
    ink = cut_out.getchannel("A")
    paper = Image.new("RGB", cut_out.size, "white" if rng.random() < 0.6 else _light(rng))
    enclosed = _inside(ink) > 0
    paper.putalpha(_mask(enclosed | _is_ink(ink)))
    return _inked(paper, ink, _dark(rng))


def coloured_in(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """Dark lines; each area that they enclose has one of a few colours."""
    ink = cut_out.getchannel("A")
    areas = _inside(ink)  # (H, W)
    crayons = [[rng.randint(70, 255) for _ in range(3)] for _ in range(CRAYONS - 1)] + [[255, 255, 255]]
    chosen = [rng.choice(crayons) for _ in range(int(areas.max()) + 1)]
    colours = np.asarray(chosen, dtype=np.uint8)[areas]  # (H, W, 3)
    picture = Image.fromarray(colours).convert("RGB")
    picture.putalpha(_mask((areas > 0) | _is_ink(ink)))
    return _inked(picture, ink, _dark(rng))


def as_button(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """Ink of any colour on a plate that it stands out from, or a light drawing on a dark one."""
    ink = cut_out.getchannel("A")
    rim = round(max(cut_out.size) * rng.uniform(0.05, 0.2))
    width, height = cut_out.width + 2 * rim, cut_out.height + 2 * rim
    colours = [_dark(rng, 130), _light(rng)]
    rng.shuffle(colours)
    plate = Image.new("RGBA", (width, height))
    radius = rng.uniform(0, 0.5) * min(width, height)
    ImageDraw.Draw(plate).rounded_rectangle((0, 0, width - 1, height - 1), radius, fill=(*colours[0], 255))
    wider = Image.new("L", (width, height))
    wider.paste(ink, (rim, rim))
    return _inked(plate, wider, colours[1])


MANNERS: tuple[Callable[[Image.Image, random.Random], Image.Image], ...] = (on_paper, coloured_in, as_button)


def _inside(ink: Image.Image) -> np.ndarray:
    """(H, W), the areas that lines enclose, numbered from 1; 0 outside, under the ink, and of specks."""
    free = np.pad(~_is_ink(ink), 1, constant_values=True)  # whatever touches the rim is outside
    areas, _ = ndimage.label(free)
    areas = areas[1:-1, 1:-1] * (areas[1:-1, 1:-1] != areas[0, 0])
    small = np.bincount(areas.ravel()) < SPECK
    return np.where(small[areas], 0, areas)


def _is_ink(ink: Image.Image) -> np.ndarray:
    return np.asarray(ink) >= INK


def _mask(visible: np.ndarray) -> Image.Image:
    return Image.fromarray(visible.astype(np.uint8) * 255)


def _inked(picture: Image.Image, ink: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    drawn = Image.new("RGBA", picture.size, (*colour, 0))
    drawn.putalpha(ink)
    return Image.alpha_composite(picture, drawn)


def _dark(rng: random.Random, most: int = 60) -> tuple[int, ...]:
    return tuple(rng.randint(0, most) for _ in range(3))


def _light(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(200, 255) for _ in range(3))
