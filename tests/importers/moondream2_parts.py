"""A picture's parts, as moondream2's code cuts it and puts together what is seen of them; and pictures of several shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.importers.parity import picture


def nearest_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Height and width, as in preprocess() of moondream/vision_encoder.py."""
    width, height = image.size
    if max(image.size) < 512:
        return side, side
    shapes = [(high, wide) for high in (side, 2 * side) for wide in (side, 2 * side)]
    return min(
        shapes,
        key=lambda size: (
            abs(size[1] / size[0] - width / height),
            abs(size[0] - width) + abs(size[1] - height),
        ),
    )


def overlapping(image: Image.Image, side: int, margin: int) -> tuple[list[Image.Image], tuple[int, int]]:
    """The whole and the parts, and rows and columns, as in overlap_crop_image() of moondream/torch/image_crops.py.

    It resizes with libvips, or where that is missing (since 2025-05-16) as here.
    """
    edge = 14 * margin
    window = side - 2 * edge
    height, width = image.height - 2 * edge, image.width - 2 * edge
    tiles = (1, 1)
    if height > window and width > window:
        high, wide = math.ceil(height / window), math.ceil(width / window)
        if high * wide > 12:
            ratio = math.sqrt(12 / (high * wide))
            tiles = max(1, math.floor(high * ratio)), max(1, math.floor(wide * ratio))
        else:
            high = max(math.floor(math.sqrt(12 * height / width)), high)
            wide = max(math.floor(math.sqrt(12 * width / height)), wide)
            if high * wide > 12 and wide > high:
                wide = math.floor(12 / high)
            elif high * wide > 12:
                high = math.floor(12 / wide)
            tiles = max(1, high), max(1, wide)
    size = tiles[1] * window + 2 * edge, tiles[0] * window + 2 * edge
    fine = image.resize(size, Image.Resampling.LANCZOS)
    crops = [image.resize((side, side), Image.Resampling.LANCZOS)]
    for y, x in itertools.product(range(tiles[0]), range(tiles[1])):
        crops.append(fine.crop((x * window, y * window, x * window + side, y * window + side)))
    return crops, tiles


def reconstructed(maps: list[Tensor], rows: int, columns: int, margin: int) -> Tensor:
    """Maps (g, g, Dv) of the parts -> the picture's (Dv, h, w), as in reconstruct_from_crops()."""
    grid, _, width = maps[0].shape
    step = grid - 2 * margin
    whole = torch.full((rows * step + 2 * margin, columns * step + 2 * margin, width), math.nan)
    for number, one in enumerate(maps):
        y, x = divmod(number, columns)
        top, left = (0 if place == 0 else margin for place in (y, x))
        bottom = grid if y == rows - 1 else grid - margin
        right = grid if x == columns - 1 else grid - margin
        whole[y * step + top : y * step + bottom, x * step + left : x * step + right] = one[
            top:bottom, left:right
        ]
    return whole.permute(2, 0, 1)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = {"small": picture(), "wide": noise(640, 300), "high": noise(90, 520), "tall": noise(96, 117)}
