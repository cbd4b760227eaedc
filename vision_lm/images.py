"""Open a picture from anywhere as upright RGB. Every limit is checked before the pixels are decoded."""

from __future__ import annotations

import base64
import importlib
import io
import os
import re
import stat
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from vision_lm.errors import ImageError, ImageTooLargeError, UnsupportedImageError
from vision_lm.upright_rgb import eight_bit, upright_rgb

if TYPE_CHECKING:
    import numpy as np

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"


class ImageWarning(UserWarning):
    """The picture was opened, but only the first of its several frames or pages."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost. `PIL.Image.MAX_IMAGE_PIXELS` counts too: to go higher, raise both."""

    max_bytes: int = 64 * 2**20  # of the encoded file
    max_pixels: int = 2**28 // 3  # width x height, about 89 million: Pillow's own limit
    max_side: int = 65_535  # the longest that JPEG knows


# The only formats that reach a decoder: how the file starts, and the module and class in Pillow. Naming
# the class keeps Pillow from trying its other decoders (EPS runs Ghostscript) and from importing them all.
_DECODERS = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile"),
    "JPEG": (rb"\xff\xd8\xff", "JpegImagePlugin", "JpegImageFile"),
    "WEBP": (rb"RIFF....WEBP", "WebPImagePlugin", "WebPImageFile"),
    "GIF": (rb"GIF8[79]a", "GifImagePlugin", "GifImageFile"),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", "TiffImagePlugin", "TiffImageFile"),
    "BMP": (rb"BM", "BmpImagePlugin", "BmpImageFile"),
    "PPM": (rb"P[1-6]\s", "PpmImagePlugin", "PpmImageFile"),
    "AVIF": (rb"....ftyp(avi[fs]|m[is]f1.{0,48}avif)", "AvifImagePlugin", "AvifImageFile"),
}
_ALLOWED = ", ".join(_DECODERS)
COUNTED_GIF = 1 << 20  # bytes, up to which a GIF's frames are counted

# What else people hand over, so that the error can name it.
_NOT_ALLOWED = {
    "a PDF": rb"%PDF",
    "PostScript": rb"%!PS",
    "HEIC": rb"....ftyp(he|m[is]f1)",
    "SVG, XML or HTML": rb"(\xef\xbb\xbf)?\s*<",
    "text": rb"[\x09-\x0d\x20-\x7e\x80-\xff]+\Z",
}


def open_image(
    source: ImageSource,
    *,
    limits: ImageLimits = ImageLimits(),
    allow_url_hosts: Collection[str] = (),
    name: str | None = None,
) -> Image.Image:
    """Open one picture as a new upright RGB image that carries no metadata.

    `source` is a path, the bytes of a file, a `data:image/...;base64,` URL, an http(s) URL whose host is in
    `allow_url_hosts` (see `vision_lm.fetch`), a PIL image, or an array (H, W) or (H, W, 1|3|4) of uint8,
    uint16, bool, or floats in 0-1. Transparency is laid on white; a colour profile is converted to sRGB.
    Of an animation or a document the first frame is read, and an `ImageWarning` says so.
    Raises `ImageError` with one line for anything else; `name` is what it calls the picture, if not by its source.
    """
    name = name or _name(source)
    if isinstance(source, Image.Image):
        _check_size(source.size, name, limits)
        return _decode(source, name)
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, (str, os.PathLike)):
        data = read_image(source, limits=limits, allow_url_hosts=allow_url_hosts, name=name)
    else:
        return upright_rgb(_from_array(source, name, limits), name)
    return _decode(_read_header(data, name, limits), name)


def read_image(
    source: str | os.PathLike[str],
    *,
    limits: ImageLimits = ImageLimits(),
    allow_url_hosts: Collection[str] = (),
    name: str | None = None,
) -> bytes:
    """The bytes of a picture's file, as they are: of a path, a data URL or a permitted http(s) URL. Raises `ImageError`."""
    name = name or _name(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _read_data_url(source, name, limits)
    if isinstance(source, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", source):
        from vision_lm.fetch import fetch_url

        return fetch_url(source, allow_hosts=allow_url_hosts, max_bytes=limits.max_bytes)
    return _read_file(source, name, limits)


def open_images(
    sources: Iterable[ImageSource],
    *,
    limits: ImageLimits = ImageLimits(),
    allow_url_hosts: Collection[str] = (),
) -> list[Image.Image | ImageError]:
    """Open every source in order; one that cannot be opened gives its error in its place."""
    opened: list[Image.Image | ImageError] = []
    for source in sources:
        try:
            opened.append(open_image(source, limits=limits, allow_url_hosts=allow_url_hosts))
        except ImageError as error:
            opened.append(error)
    return opened


def _name(source: object) -> str:
    """What messages call the source: printable, short, and without a URL's query, which may hold a secret."""
    if isinstance(source, bytes):
        return f"image of {len(source):,} bytes"
    if not isinstance(source, (str, os.PathLike)):
        return f"image given as {type(source).__name__}"
    name = os.fsdecode(source)
    if name[:5].lower() == "data:":
        return "data URL"
    if "://" in name:
        name = re.split(r"[?#]", name, maxsplit=1)[0]
    name = name if len(name) <= 200 else f"{name[:90]}...{name[-90:]}"
    return "".join(character if character.isprintable() else "?" for character in name) or "''"


def _check_bytes(count: int, name: str, limits: ImageLimits) -> None:
    if count > limits.max_bytes:
        allowed = f"{limits.max_bytes:,} bytes (scale it down)"
        raise ImageTooLargeError(f"{name}: {count:,} bytes is too large; allowed: {allowed}")


def _check_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    pixels = min(limits.max_pixels, Image.MAX_IMAGE_PIXELS or limits.max_pixels)
    if min(size) < 1:
        raise ImageError(f"{name}: {size[0]} x {size[1]} pixels is empty; give at least 1 x 1")
    if size[0] * size[1] > pixels or max(size) > limits.max_side:
        allowed = f"{pixels:,} pixels, {limits.max_side:,} a side (scale it down)"
        raise ImageTooLargeError(f"{name}: {size[0]:,} x {size[1]:,} pixels is too large; allowed: {allowed}")


def _read_file(source: str | os.PathLike[str], name: str, limits: ImageLimits) -> bytes:
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, and a device never ends
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{name}: this is {kind}; give the path of a picture ({_ALLOWED})")
        _check_bytes(status.st_size, name, limits)
        with Path(source).open("rb") as file:
            return file.read(limits.max_bytes + 1)  # it may have grown since
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; give the path of a picture ({_ALLOWED})") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be read ({reason}); give the path of a readable picture") from error


def _read_data_url(url: str, name: str, limits: ImageLimits) -> bytes:
    allowed = "allowed: data:image/TYPE;base64,DATA"
    media_type, _, payload = url.partition(",")
    if not re.fullmatch(r"data:image/[^,]*;base64", media_type, re.IGNORECASE):
        raise ImageError(f"{name}: it starts with {media_type[:40]!r}; {allowed}")
    _check_bytes(len(payload) // 4 * 3 - 2, name, limits)  # up to two are padding
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise ImageError(f"{name}: not valid base64 ({error}); {allowed}") from error


def _from_array(array: Any, name: str, limits: ImageLimits) -> Image.Image:
    """Array (H, W) or (H, W, 1|3|4) -> PIL image of mode L, RGB or RGBA."""
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ImageError(f"{name}: allowed: a path, bytes, a URL, a PIL image or a numpy array")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ImageError(f"{name}: shape {array.shape} is not a picture; allowed: (H, W) or (H, W, 1|3|4)")
    _check_size((array.shape[1], array.shape[0]), name, limits)
    return eight_bit(array, name)


def _read_header(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """The bytes of a file -> a PIL image within the limits, its pixels not decoded yet."""
    _check_bytes(len(data), name, limits)
    if not data:
        raise ImageError(f"{name}: the file is empty; give a picture ({_ALLOWED})")
    kind = _format(data[:64], name)
    _, module, decoder = _DECODERS[kind]
    try:
        if kind in ("GIF", "WEBP"):  # Pillow allocates their canvas already when it opens them
            _check_size(_gif_size(data) if kind == "GIF" else _webp_size(data), name, limits)
        image: Image.Image = getattr(importlib.import_module(f"PIL.{module}"), decoder)(io.BytesIO(data))
        _check_size(image.size, name, limits)
        if kind == "TIFF":  # a tile is decoded whole, and may be far larger than the picture
            tags = image.tag_v2  # type: ignore[attr-defined]
            _check_size((tags.get(322, 1), tags.get(323, 1)), name, limits)  # TileWidth, TileLength
        frames = _frame_count(image)
    except ImageError:
        raise
    except Exception as error:  # broken bytes make Pillow raise nearly any built-in exception
        raise _damaged(kind, name, error) from error
    if frames != "1":
        warnings.warn(f"{name}: {frames} frames or pages, only the first is read", ImageWarning, stacklevel=3)
    return image


def _format(start: bytes, name: str) -> str:
    for kind, (signature, _, _) in _DECODERS.items():
        if re.match(signature, start, re.DOTALL):
            return kind
    matches = (kind for kind, signature in _NOT_ALLOWED.items() if re.match(signature, start, re.DOTALL))
    found = next(matches, f"unknown data (it starts with the bytes {start[:4].hex(' ')})")
    raise UnsupportedImageError(
        f"{name}: this is {found}, not a picture that can be read; allowed: {_ALLOWED}"
    )


def _gif_size(data: bytes) -> tuple[int, int]:
    """A GIF's screen, widened to hold its first frame."""
    width, height = (int.from_bytes(data[i : i + 2], "little") for i in (6, 8))
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)  # past the palette
    while data[at] == 0x21:  # an extension: its label, then blocks up to an empty one
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    left, top, wide, high = (int.from_bytes(data[i : i + 2], "little") for i in range(at + 1, at + 9, 2))
    return max(width, left + wide), max(height, top + high)


def _webp_size(data: bytes) -> tuple[int, int]:
    """The canvas of an extended WebP; the simple kinds cannot exceed 16,383 a side, and say 1 x 1 here."""
    if data[12:16] != b"VP8X":
        return 1, 1
    return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")


def _length(file: Any) -> int:
    """Bytes of an open file, which stays where it is."""
    at = file.tell()
    try:
        return int(file.seek(0, 2))
    finally:
        file.seek(at)


def _frame_count(image: Image.Image) -> str:
    if not getattr(image, "is_animated", False):
        return "1"
    file: Any = getattr(image, "fp", None)
    if (
        image.format == "GIF" and _length(file) > COUNTED_GIF
    ):  # counted one by one, of which it may have millions
        return "several"
    if image.format != "TIFF":
        return str(image.n_frames)  # type: ignore[attr-defined]
    try:  # Pillow's own count of TIFF pages takes quadratic time: a crafted file would run for hours
        for page in range(1, 100):
            image.seek(page)
    except EOFError:
        return str(page)
    finally:
        image.seek(0)
    return "100 or more"


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise _damaged(image.format or "picture", name, error) from error
    return upright_rgb(image, name)


def _damaged(kind: str, name: str, error: Exception) -> ImageError:
    detail = " ".join(str(error).split())[:100] or type(error).__name__
    state = "truncated" if "truncated" in detail.lower() else "truncated or damaged"
    return ImageError(f"{name}: the {kind} data is {state} ({detail}); give a complete file")
