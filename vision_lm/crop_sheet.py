"""A picture and its parts on one sheet of pixels. Without torch, as `vision_lm.preprocess`.

moondream2 looks at a picture twice: as a whole, and in parts that the tower sees at its full resolution. Its code is
the source of both ways (github.com/vikhyat/moondream): `grid` in moondream/vision_encoder.py from 2024-05-20 on,
`overlap` in moondream/torch/image_crops.py from 2025-01-02 on. A sheet is one array, so that pictures in parts are
handed on, hashed and cached as others are; its shape says how many parts it holds, S being the tower's square:

- `grid`, (r S, c S, 3): the picture stretched over its parts. The whole is the sheet, scaled down.
- `overlap`, (S + r S, c S, 3): a row of the whole, as often as there are columns, and below it the parts. A picture of
  one part is its whole alone: (S, S, 3).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from vision_lm.config import Crops


def sheet(image: Image.Image, crops: Crops, size: int, patch: int, resample: Image.Resampling) -> np.ndarray:
    """RGB picture of any size -> its sheet, uint8. `size`: S, of which a patch has `patch` pixels a side."""
    if crops.kind == "grid":
        rows, columns = grid_tiling(image.size, crops, size)
        return np.asarray(image.resize((columns * size, rows * size), resample))
    whole = np.asarray(image.resize((size, size), resample))
    margin = crops.margin * patch
    window = size - 2 * margin
    rows, columns = overlap_tiling(image.height - 2 * margin, image.width - 2 * margin, window, crops.most)
    if rows * columns == 1:
        return whole
    fine = np.asarray(image.resize((columns * window + 2 * margin, rows * window + 2 * margin), resample))
    parts = [
        [fine[y * window : y * window + size, x * window : x * window + size] for x in range(columns)]
        for y in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in [[whole] * columns, *parts]])


def grid_tiling(picture: tuple[int, int], crops: Crops, size: int) -> tuple[int, int]:
    """Rows and columns of a picture (W, H): the nearest of four to its shape, then to its size.

    The published code compares the height of the parts with the picture's width there, and the width with its height.
    """
    width, height = picture
    if max(picture) < crops.smallest:
        return 1, 1

    def distance(tiling: tuple[int, int]) -> tuple[float, int]:
        rows, columns = tiling
        return abs(columns / rows - width / height), abs(rows * size - width) + abs(columns * size - height)

    return min([(1, 1), (1, 2), (2, 1), (2, 2)], key=distance)


def overlap_tiling(height: int, width: int, window: int, most: int) -> tuple[int, int]:
    """Rows and columns of windows for a picture without its margins: at most `most`, as near to its shape as they allow."""
    if height <= window or width <= window:
        return 1, 1
    least_rows, least_columns = math.ceil(height / window), math.ceil(width / window)
    if least_rows * least_columns > most:
        share = math.sqrt(most / (least_rows * least_columns))
        return max(1, math.floor(least_rows * share)), max(1, math.floor(least_columns * share))
    rows = max(math.floor(math.sqrt(most * height / width)), least_rows)
    columns = max(math.floor(math.sqrt(most * width / height)), least_columns)
    if rows * columns > most:
        if columns > rows:
            columns = math.floor(most / rows)
        else:
            rows = math.floor(most / columns)
    return max(1, rows), max(1, columns)
