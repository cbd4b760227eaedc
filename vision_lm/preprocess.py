"""From an RGB picture to the pixels that the image encoder reads. Without torch: a process that only decodes starts at once."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vision_lm.config import VisionConfig
from vision_lm.crop_sheet import sheet


def fit(image: Image.Image, config: VisionConfig) -> np.ndarray:
    """RGB picture of any size -> pixels (S, S, 3), uint8; with its parts, where the config asks for them, a sheet (H, W, 3)."""
    size = config.image_size
    if config.crops is not None:
        return sheet(image, config.crops, size, config.tower["patch_size"], _FILTERS[config.interpolation])
    pixels = np.asarray(_resized(image, config), dtype=np.uint8)
    if pixels.shape != (size, size, 3):
        raise ValueError(f"expected an RGB picture, found shape {pixels.shape}")
    return pixels


def normalise(pixels: np.ndarray, config: VisionConfig) -> np.ndarray:
    """Pixels (H, W, 3), uint8 -> what the tower reads (3, H, W), float32."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in (config.mean, config.std))
    scaled = (pixels.astype(np.float32) / 255.0 - mean) / std  # (H, W, 3)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def levels(config: VisionConfig) -> np.ndarray:
    """What `normalise` makes of each value that a pixel can have: (3, 256), float32."""
    every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)  # (1, 256, 3)
    return normalise(every, config)[:, 0]


def pixel_digest(pixels: np.ndarray) -> bytes:
    """16 bytes of a fitted picture's pixels (H, W, 3), uint8, and of its shape: the same bytes high and wide are two pictures."""
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    if pixels.shape[0] != pixels.shape[1]:  # no square, whose size the number of bytes tells
        digest.update(repr(pixels.shape).encode())
    return digest.digest()


def _resized(image: Image.Image, config: VisionConfig) -> Image.Image:
    """Bring a picture to S x S: stretched, cut to its centre square, or padded to a square."""
    size = config.image_size
    resample = _FILTERS[config.interpolation]
    if config.resize == "pad":
        return _padded(image, size, resample, config)
    if config.resize == "pad_first":
        longest = max(image.size)
        if longest > _PADDED:  # a picture of 1 x 60,000 pixels must not become one of 60,000 x 60,000
            longest = _PADDED
            image = _scaled(image, longest, resample)
        image = _on_square(image, longest, config)
    box = _centre(image.size, size, config.resize) if config.resize.startswith("crop") else None
    return image.resize((size, size), resample, box=box)


_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_PADDED = 9_000  # pixels a side: what a square of the most pixels that a picture may have measures


def _centre(picture: tuple[int, int], size: int, resize: str) -> tuple[float, float, float, float]:
    """What the centre square shows of a picture (W, H) whose shorter side is scaled to `size`.

    open_clip and transformers scale the whole picture and then cut, which for 1 x 50,000 pixels would fill the memory.
    """
    width, height = picture
    wide, high = (int(size * side / min(picture)) for side in picture)
    if resize == "crop_floor":
        left, top = (wide - size) // 2, (high - size) // 2
    else:
        left, top = round((wide - size) / 2), round((high - size) / 2)
    right, bottom = left + size, top + size
    # Multiplied first, these are whole at the picture's edges, which a box must not pass.
    return left * width / wide, top * height / high, right * width / wide, bottom * height / high


def _padded(image: Image.Image, size: int, resample: Image.Resampling, config: VisionConfig) -> Image.Image:
    return _on_square(_scaled(image, size, resample), size, config)


def _scaled(image: Image.Image, longest: int, resample: Image.Resampling) -> Image.Image:
    ratio = max(image.size) / longest
    width, height = (max(1, round(side / ratio)) for side in image.size)
    return image.resize((width, height), resample)


def _on_square(image: Image.Image, side: int, config: VisionConfig) -> Image.Image:
    fill = config.mean if config.fill is None else config.fill
    square = Image.new("RGB", (side, side), tuple(round(255 * level) for level in fill))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
