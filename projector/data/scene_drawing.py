"""The pixels of a scene: backgrounds, shapes with their colours and patterns, cut-outs, written words."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from projector.data.scene_palette import EASY_VQA_RGB, Colour, ground_shade
from projector.data.scene_shapes import Point

Box = tuple[float, float, float, float]

_SUPERSAMPLE = 3


def background(name: str, style: str, side: int, rng: random.Random) -> Image.Image:
    """A picture ground of the named shade; `style` is plain, gradient or noise."""
    first = ground_shade(name, rng)
    if style == "plain":
        return Image.new("RGB", (side, side), first)
    noise = np.random.default_rng(rng.getrandbits(64))
    if style == "gradient":
        second = ground_shade(name, rng)
        shift = 14 if sum(first) > 384 else -10  # toward the middle: a gradient that can be seen
        second = (max(0, second[0] - shift), max(0, second[1] - shift), max(0, second[2] - shift))
        angle = rng.uniform(0, 2 * math.pi)
        axis = np.linspace(-0.5, 0.5, side, dtype=np.float32)
        ramp = np.clip(axis[None] * math.cos(angle) + axis[:, None] * math.sin(angle) + 0.5, 0, 1)[..., None]
        pixels = np.asarray(first, np.float32) * (1 - ramp) + np.asarray(second, np.float32) * ramp
    else:
        clouds = Image.fromarray(noise.integers(0, 256, (9, 9), dtype=np.uint8))
        cloud = np.asarray(clouds.resize((side, side), Image.Resampling.BICUBIC), np.float32)[..., None]
        grain = noise.integers(-6, 7, (side, side, 1)).astype(np.float32)
        pixels = np.asarray(first, np.float32) + (cloud - 128) * 0.1 + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_shape(
    picture: Image.Image,
    points: Sequence[Point],
    box: Box,
    *,
    colour: Colour,
    material: str | None,
    hole: bool,
    rng: random.Random,
) -> None:
    """Paint one shape into the picture, smooth at the edges.

    `points` is an `outline`, to be scaled to the box (x0, y0, x1, y1 in pixels); `hole` cuts the middle out.
    """
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    x0, y0 = int(left), int(top)
    wide, high = math.ceil(right) - x0 + 1, math.ceil(bottom) - y0 + 1
    fine = _SUPERSAMPLE
    corners = [((left - x0 + x * side) * fine, (top - y0 + y * side) * fine) for x, y in points]
    mask = Image.new("L", (wide * fine, high * fine), 0)
    draw = ImageDraw.Draw(mask)
    rim = max(2, round(side * fine * 0.075))
    if material == "outlined":
        draw.polygon(corners, outline=255, width=rim)
    else:
        draw.polygon(corners, fill=255)
    if hole:
        middle_x, middle_y = (left - x0 + side / 2) * fine, (top - y0 + side / 2) * fine
        inner = side * fine * rng.uniform(0.26, 0.34)
        draw.ellipse((middle_x - inner, middle_y - inner, middle_x + inner, middle_y + inner), fill=0)
    paint = Image.new("RGB", mask.size, colour)
    if material in ("striped", "dotted"):
        _pattern(paint, corners, material, side * fine, colour, rim // 2, rng)
    picture.paste(paint.reduce(fine), (x0, y0), mask.reduce(fine))


def draw_easy_vqa(side: int, ground: Colour, shape: str, colour: str, box: Box) -> Image.Image:
    """One upright shape on easy-VQA's 64-pixel canvas, scaled up; `box` is in canvas pixels."""
    picture = Image.new("RGB", (256, 256), ground)
    draw = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = (4 * edge for edge in box)
    corners = (x0, y0, x1 - 1, y1 - 1)
    if shape == "circle":
        draw.ellipse(corners, fill=EASY_VQA_RGB[colour])
    elif shape == "rectangle":
        draw.rectangle(corners, fill=EASY_VQA_RGB[colour])
    else:
        draw.polygon([(x0, y1 - 1), (x1 - 1, y1 - 1), ((x0 + x1) / 2, y0)], fill=EASY_VQA_RGB[colour])
    return picture.reduce(4).resize((side, side), Image.Resampling.BICUBIC)


def sprite_outline(image: Image.Image) -> list[Point]:
    """The corners of the cut-out's visible part, in a box from (0, 0) whose longer side is 1."""
    left, top, right, bottom = _visible(image)
    longer = max(right - left, bottom - top)
    wide, high = (right - left) / longer, (bottom - top) / longer
    return [(0, 0), (wide, 0), (wide, high), (0, high)]


def draw_sprite(picture: Image.Image, image: Image.Image, box: Box) -> None:
    """Paste the visible part of the cut-out into the box (x0, y0, x1, y1 in pixels)."""
    extent = (max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1])))
    fitted = image.resize(extent, Image.Resampling.BILINEAR, _visible(image), reducing_gap=2.0)
    picture.paste(fitted, (round(box[0]), round(box[1])), fitted)


def _visible(image: Image.Image) -> tuple[int, int, int, int]:
    """The box of what is not (nearly) transparent."""
    opaque = image.getchannel("A").point([0] * 24 + [255] * 232)
    return opaque.getbbox() or (0, 0, image.width, image.height)


def word_image(word: str, height: float, picture: Image.Image) -> Image.Image:
    """The word in letters that stand out from the picture's ground; `height` is the font size in pixels."""
    light_ground = np.asarray(picture).mean() > 128
    colour = (20, 20, 30) if light_ground else (245, 245, 235)
    font = ImageFont.load_default(height)
    left, top, right, bottom = font.getbbox(word)
    image = Image.new("RGBA", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2), (*colour, 0))
    ImageDraw.Draw(image).text((1 - left, 1 - top), word, font=font, fill=(*colour, 255))
    return image


def _pattern(
    paint: Image.Image,
    corners: Sequence[Point],
    material: str,
    side: float,
    colour: Colour,
    rim: int,
    rng: random.Random,
) -> None:
    """Lay near-white stripes or dots on the paint, and a rim of the thing's own colour around them."""
    draw = ImageDraw.Draw(paint)
    pale = tuple(round(0.15 * channel + 0.85 * 255) for channel in colour)
    pitch = side / rng.uniform(4.2, 5.5)
    if material == "striped":
        angle = math.radians(rng.choice((0, 45, 90, 135)))
        reach = paint.width + paint.height
        cos, sin = math.cos(angle), math.sin(angle)
        steps = math.ceil(reach / pitch)
        for step in range(-steps, steps + 1):
            x, y = paint.width / 2 + step * pitch * cos, paint.height / 2 + step * pitch * sin
            line = (x - sin * reach, y + cos * reach, x + sin * reach, y - cos * reach)
            draw.line(line, fill=pale, width=round(pitch * 0.42))
    else:
        radius = pitch * 0.27
        for row in range(math.ceil(paint.height / pitch) + 1):
            for column in range(math.ceil(paint.width / pitch) + 1):
                x, y = (column + 0.5 * (row % 2)) * pitch, row * pitch + pitch * 0.3
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=pale)
    draw.polygon(corners, outline=colour, width=max(2, rim))
