"""What each colour name looks like: samples of RGB shades for things and backgrounds."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Mapping, Sequence

Colour = tuple[int, int, int]
Range = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # hue, saturation, lightness

# Hue (degrees), saturation and lightness of each colour. The gaps between the ranges are the point: no sample
# of one colour can be taken for its neighbour. Brown has two: easy-VQA's reddish brown and the common one.
_HSL: Mapping[str, Sequence[Range]] = {
    "red": [((-6, 5), (0.85, 1.0), (0.44, 0.53))],
    "orange": [((26, 35), (0.92, 1.0), (0.48, 0.56))],
    "yellow": [((51, 60), (0.92, 1.0), (0.48, 0.58))],
    "green": [((100, 145), (0.6, 1.0), (0.27, 0.5))],
    "teal": [((175, 184), (0.8, 1.0), (0.24, 0.33))],
    "blue": [((212, 240), (0.8, 1.0), (0.42, 0.56))],
    "purple": [((270, 292), (0.6, 0.95), (0.32, 0.47))],
    "pink": [((326, 346), (0.85, 1.0), (0.7, 0.8))],
    "brown": [((0, 4), (0.54, 0.62), (0.33, 0.41)), ((18, 27), (0.5, 0.75), (0.24, 0.33))],
    "black": [((0, 360), (0.0, 0.1), (0.0, 0.08))],
    "white": [((0, 360), (0.0, 0.1), (0.97, 1.0))],
    "gray": [((0, 360), (0.0, 0.03), (0.43, 0.6))],
}
_BACKGROUND_HSL: Mapping[str, Range] = {
    "white": ((0, 360), (0.0, 0.2), (0.985, 1.0)),
    "light gray": ((0, 360), (0.0, 0.04), (0.8, 0.87)),
    "pale yellow": ((48, 60), (0.6, 0.9), (0.85, 0.91)),
    "pale pink": ((338, 355), (0.6, 0.9), (0.88, 0.93)),
    "pale green": ((100, 140), (0.4, 0.7), (0.83, 0.9)),
    "pale blue": ((195, 220), (0.5, 0.85), (0.83, 0.91)),
    "pale purple": ((262, 282), (0.5, 0.8), (0.87, 0.92)),
    "black": ((0, 360), (0.0, 0.1), (0.0, 0.04)),
    "dark gray": ((0, 360), (0.0, 0.05), (0.17, 0.23)),
    "dark blue": ((222, 240), (0.5, 0.8), (0.12, 0.18)),
    "dark green": ((125, 150), (0.4, 0.7), (0.1, 0.15)),
    "dark purple": ((275, 292), (0.4, 0.7), (0.12, 0.18)),
    "dark red": ((350, 360), (0.5, 0.8), (0.12, 0.17)),
    "very pale": ((0, 360), (0.2, 1.0), (0.91, 1.0)),
}
EASY_VQA_RGB: Mapping[str, Colour] = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0),
    "gray": (128, 128, 128), "teal": (0, 128, 128), "brown": (165, 42, 42), "yellow": (255, 255, 0),
}  # fmt: skip


def shade_of(colour: str, rng: random.Random) -> Colour:
    """An RGB shade of the named colour of a thing."""
    return _sample(rng.choice(_HSL[colour]), rng)


def ground_shade(background: str, rng: random.Random) -> Colour:
    """An RGB shade of the named background."""
    return _sample(_BACKGROUND_HSL[background], rng)


def _sample(ranges: Range, rng: random.Random) -> Colour:
    hue, saturation, lightness = (rng.uniform(*ends) for ends in ranges)
    red, green, blue = colorsys.hls_to_rgb(hue / 360 % 1.0, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)
