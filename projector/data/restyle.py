"""One drawing in the manner of other artists: flat, outlined, line art, grey or paler, so that its name outlives its style.

What a drawing is called does not depend on who drew it. A model that sees each thing in three styles learns the styles;
these are cheap ones more. Geirhos et al. 2019 (arXiv 1811.12231) do the same to photographs, by style transfer.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from projector.data.pictures import Picture
from projector.data.scene_vocabulary import COLOURS

OPAQUE = 128  # alpha from which on a pixel belongs to the drawing
COLOUR_WORDS = frozenset(COLOURS) | {"grey", "gold", "golden", "silver", "rainbow"}
EDGE = 24  # of 255: differences of lightness that a pen would draw


def restyle(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """An RGBA cut-out in another manner, RGBA; a contour makes it a few pixels larger."""
    return rng.choice(MANNERS)(cut_out, rng)


def without_colour_names(picture: Picture) -> Picture | None:
    """The same without names that other colours would make untrue; none if that leaves no name."""
    if _tells_colour(picture.name):
        return None
    aliases = tuple(alias for alias in picture.aliases if not _tells_colour(alias))
    return dataclasses.replace(picture, aliases=aliases)


def flat(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """A few even colours, no shading, no soft rim."""
    even = _on_white(cut_out).filter(ImageFilter.ModeFilter(rng.choice((3, 5, 7))))
    return _cut(even.quantize(rng.randint(3, 8)).convert("RGB"), _shape(cut_out))


def outlined(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """Even colours within a dark contour, as stickers and comics have it."""
    width = rng.randint(1, 4)
    colours = flat(_margin(cut_out, width), rng)
    shape = colours.getchannel("A")
    pen = ImageChops.subtract(_grown(shape, width), shape)
    if rng.random() < 0.5:  # what lies within has contours, too
        pen = ImageChops.lighter(pen, ImageChops.multiply(_grown(_edges(colours), width // 2), shape))
    return _drawn(colours, pen, rng)


def lines(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """A pen's lines on paper, as in colouring books and icons."""
    width = rng.randint(1, 3)
    drawing = _margin(cut_out, width)
    colours = flat(drawing, rng)
    shape = colours.getchannel("A")
    contour = ImageChops.subtract(_grown(shape, width), shape)
    pen = ImageChops.lighter(contour, ImageChops.multiply(_grown(_edges(colours), width // 2), shape))
    paper = Image.new("RGB", drawing.size, "white" if rng.random() < 0.6 else _light(rng))
    return _drawn(_cut(paper, shape), pen, rng)


def grey(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """Without colours, as a pencil or a newspaper has it."""
    lightness = ImageEnhance.Contrast(_on_white(cut_out).convert("L")).enhance(rng.uniform(0.6, 1.6))
    return _cut(lightness.convert("RGB"), cut_out.getchannel("A"))


def paler(cut_out: Image.Image, rng: random.Random) -> Image.Image:
    """Other colours near its own, and weaker ones."""
    hue, saturation, value = _on_white(cut_out).convert("HSV").split()
    turn, share = rng.randint(-12, 12), rng.uniform(0.3, 0.9)
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    weaker = saturation.point([round(level * share) for level in range(256)])
    colours = Image.merge("HSV", (turned, weaker, value)).convert("RGB")
    return _cut(colours, cut_out.getchannel("A"))


MANNERS: tuple[Callable[[Image.Image, random.Random], Image.Image], ...] = (
    flat,
    outlined,
    lines,
    grey,
    paler,
)


def _tells_colour(name: str) -> bool:
    return not COLOUR_WORDS.isdisjoint(name.lower().split())


def _on_white(cut_out: Image.Image) -> Image.Image:
    """RGB: what is transparent has colours, too, which nobody ever saw."""
    paper = Image.new("RGB", cut_out.size, "white")
    paper.paste(cut_out, mask=cut_out.getchannel("A"))
    return paper


def _shape(cut_out: Image.Image) -> Image.Image:
    return cut_out.getchannel("A").point([255 * (level >= OPAQUE) for level in range(256)])


def _margin(cut_out: Image.Image, width: int) -> Image.Image:
    """With room for a contour around it."""
    wider = Image.new("RGBA", (cut_out.width + 2 * width, cut_out.height + 2 * width))
    wider.paste(cut_out, (width, width))
    return wider


def _edges(colours: Image.Image) -> Image.Image:
    """Where neighbours differ in lightness: 255, elsewhere 0."""
    lightness = _on_white(colours).convert("L")
    change = ImageChops.difference(
        lightness.filter(ImageFilter.MaxFilter(3)), lightness.filter(ImageFilter.MinFilter(3))
    )
    return change.point([255 * (level >= EDGE) for level in range(256)])


def _grown(mask: Image.Image, width: int) -> Image.Image:
    return mask.filter(ImageFilter.MaxFilter(2 * width + 1)) if width else mask


def _cut(colours: Image.Image, shape: Image.Image) -> Image.Image:
    result = colours.convert("RGBA")
    result.putalpha(shape)
    return result


def _drawn(colours: Image.Image, pen: Image.Image, rng: random.Random) -> Image.Image:
    """With dark ink where the pen was."""
    ink = Image.new("RGB", colours.size, tuple(rng.randint(0, 60) for _ in range(3)))
    result = colours.copy()
    result.paste(ink, mask=pen)
    result.putalpha(ImageChops.lighter(colours.getchannel("A"), pen))
    return result


def _light(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(200, 255) for _ in range(3))
