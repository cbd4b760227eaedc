"""From an RGB picture to the pixels that the image encoder reads. Without torch: a process that only decodes starts at once."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vision_lm.config import VisionConfig


def fit(image: Image.Image, config: VisionConfig) -> np.ndarray:
    """RGB picture of any size -> pixels (S, S, 3), uint8."""
    size = config.image_size
    pixels = np.asarray(_resized(image, config), dtype=np.uint8)
    if pixels.shape != (size, size, 3):
        raise ValueError(f"expected an RGB picture, found shape {pixels.shape}")
    return pixels


def normalise(pixels: np.ndarray, config: VisionConfig) -> np.ndarray:
    """Pixels (S, S, 3), uint8 -> what the tower reads (3, S, S), float32."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in (config.mean, config.std))
    scaled = (pixels.astype(np.float32) / 255.0 - mean) / std  # (S, S, 3)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _resized(image: Image.Image, config: VisionConfig) -> Image.Image:
    """Bring a picture to S x S as open_clip does: stretched, cut to its centre square, or padded to a square."""
    size, (width, height) = config.image_size, image.size
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    box = None
    if config.resize == "crop":
        # open_clip scales the whole picture and then cuts, which for 1 x 50,000 pixels would fill the memory:
        # this box is what its cut shows.
        wide, high = (int(size * side / min(image.size)) for side in image.size)
        left, top = round((wide - size) / 2), round((high - size) / 2)
        right, bottom = left + size, top + size
        # Multiplied first, these are whole at the picture's edges, which a box must not pass.
        box = (left * width / wide, top * height / high, right * width / wide, bottom * height / high)
    elif config.resize == "pad":
        fill = config.mean if config.fill is None else config.fill
        square = Image.new("RGB", (size, size), tuple(round(255 * level) for level in fill))
        ratio = max(image.size) / size
        scaled = image.resize(
            (max(1, round(width / ratio)), max(1, round(height / ratio))), filters[config.interpolation]
        )
        square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
        return square
    return image.resize((size, size), filters[config.interpolation], box=box)
