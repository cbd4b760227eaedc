"""From decoded pixels of any mode, depth, colour profile and orientation to plain upright RGB."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, cast

from PIL import Image

from vision_lm.errors import ImageError

if TYPE_CHECKING:
    import numpy as np

# EXIF tag 0x0112 -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """A decoded picture as a new upright RGB one. Raises ImageError, with `name`, for pixels without a known white."""
    try:
        upright = _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata must not cost a good picture
        upright = None
    profile = image.info.get("icc_profile")
    if image.mode == "I":  # 32 bits that hold 16: how Pillow reads a 16-bit PGM
        low, high = cast("tuple[int, int]", image.getextrema())
        if low < 0 or high > 65_535:
            raise ImageError(f"{name}: integers from {low} to {high}; allowed: 0 to 65535 (rescale them)")
        image = image.convert("I;16")
    if image.mode.startswith(("I;16", "F")):  # Pillow's own conversion to grey clips
        image = _eight_bit_grey(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    image = image.convert("RGB")  # a copy even of RGB: never the caller's own image
    if upright is not None:
        image = image.transpose(upright)
    image.info.clear()  # else opening the result again would turn it again
    return image


def eight_bit(pixels: np.ndarray | Image.Image, name: str) -> Image.Image:
    """Pixels of any allowed type -> 8-bit PIL image, full scale to full scale."""
    import numpy as np

    array = np.asarray(pixels)  # (H, W) or (H, W, 3|4)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = array >> 8  # the high byte: what Pillow keeps of 16-bit RGB
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # resampling may overshoot that far; NaN fails too
            raise ImageError(f"{name}: floats from {low:g} to {high:g}; allowed: 0 to 1 (rescale them)")
        array = np.rint(array.clip(0, 1).astype(np.float32) * 255)
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: pixels of type {array.dtype}; allowed: uint8, uint16, bool, floats in 0-1")
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _eight_bit_grey(image: Image.Image, name: str) -> Image.Image:
    """Deep grey of mode I;16 or F -> L, or LA where one of its values (PNG's tRNS) is transparent."""
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return eight_bit(image, name)
    import numpy as np

    grey = np.asarray(image)  # (H, W), compared before it is scaled: of two neighbours only one may be clear
    alpha = eight_bit(grey != clear, name)
    return Image.merge("LA", (eight_bit(grey, name), alpha))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        from PIL import ImageCms

        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, embedded, srgb, outputMode=mode) or image
    except Exception:  # a broken profile, one of another mode, or Pillow without ImageCms: keep the pixels
        return image
