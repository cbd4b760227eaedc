"""Pictures of every mode, depth, orientation and colour profile come out as plain upright RGB."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.picture_files import BLUE, GREEN, RED, WHITE, encode, png, refusal
from vision_lm.images import open_image

# --- modes ---


@pytest.mark.parametrize("colour", [WHITE, RED, (0, 0, 0), (10, 200, 30)])
def test_cmyk_jpeg(colour: tuple[int, int, int]) -> None:
    """A CMYK JPEG, stored inverted with Adobe's marker as every printing program does, is not a negative."""
    image = Image.new("RGB", (16, 16), colour).convert("CMYK")
    data = encode(image, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    assert np.abs(np.asarray(open_image(data), int) - colour).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_is_scaled(format: str) -> None:
    """65,535 is white and 32,896 the middle: a plain conversion would clip all above 255 to white."""
    values = np.array([[0, 255, 0x8080, 65535]], np.uint16)
    image = open_image(encode(Image.fromarray(values), format))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 0, 128, 255)]


def test_deep_grey_outside_its_scale_is_refused() -> None:
    """32-bit integers and floats without a known white are refused, not clipped."""
    assert "integers from 0 to 1000000" in refusal(Image.fromarray(np.array([[0, 1_000_000]], np.int32)))
    assert "floats from 0 to 300" in refusal(
        encode(Image.fromarray(np.array([[0, 300]], np.float32)), "TIFF")
    )
    half = open_image(encode(Image.fromarray(np.array([[0, 0.5]], np.float32)), "TIFF"))
    assert half.getpixel((1, 0)) == (128, 128, 128)


def test_png_of_16_bits() -> None:
    """16-bit RGB, RGBA and grey with alpha keep their high bytes."""
    rgb = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0xFFFF, 0x8080, 0))
    assert open_image(rgb).getpixel((0, 0)) == (255, 128, 0)
    rgba = png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0xFFFF, 0x8080, 0, 0xFFFF))
    assert open_image(rgba).getpixel((0, 0)) == (255, 128, 0)
    grey = png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 0x8080, 0xFFFF, 0x8080, 0))
    assert [open_image(grey).getpixel((x, 0)) for x in (0, 1)] == [(128, 128, 128), WHITE]


def test_transparency_is_laid_on_white(picture: Image.Image) -> None:
    """RGBA, LA, palettes and single transparent colours: clear is white, and partly clear is partly white."""
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)])
    la = Image.new("LA", (3, 1))
    la.putdata([(10, 255), (10, 0), (0, 51)])
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 0])
    palette.putdata([0, 1, 2])
    for data, expected in [
        (encode(rgba, "PNG"), [RED, WHITE, (204, 204, 204)]),
        (encode(rgba, "WEBP", lossless=True, exact=True), [RED, WHITE, (204, 204, 204)]),
        (encode(la, "PNG"), [(10, 10, 10), WHITE, (204, 204, 204)]),
        (encode(palette, "PNG", transparency=b"\xff\x00\x33"), [RED, WHITE, (204, 204, 204)]),
        (encode(palette, "PNG", transparency=1), [RED, WHITE, (0, 0, 0)]),
        (encode(palette, "GIF", transparency=1), [RED, WHITE, (0, 0, 0)]),
        (encode(palette, "PNG"), [RED, GREEN, (0, 0, 0)]),
        (encode(picture.crop((0, 0, 3, 1)), "PNG", transparency=GREEN), [RED, WHITE, BLUE]),
        (encode(la.getchannel("L"), "PNG", transparency=0), [(10, 10, 10), (10, 10, 10), WHITE]),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = open_image(data)
        assert [image.getpixel((x, 0)) for x in range(3)] == expected


def test_a_transparent_value_of_16_bit_grey_is_laid_on_white() -> None:
    """PNG's tRNS names one of 65,536 values: its neighbour, the same after scaling, is not clear."""
    rows = b"\0" + struct.pack(">3H", 0x8080, 0x8081, 0)
    image = open_image(png(3, 1, 16, 0, rows, clear=struct.pack(">H", 0x8080)))
    assert [image.getpixel((x, 0)) for x in range(3)] == [WHITE, (128, 128, 128), (0, 0, 0)]


def test_grey_and_one_bit() -> None:
    """Grey spreads to three equal channels; one bit is black and white."""
    assert open_image(encode(Image.new("L", (2, 2), 99), "JPEG")).getpixel((1, 1)) == (99, 99, 99)
    assert open_image(encode(Image.new("1", (2, 2), 1), "PNG")).getpixel((1, 1)) == WHITE


# --- orientation ---

# EXIF 2.32, tag 0x0112: where the stored row 0 and column 0 belong in the upright picture.
STORED_AS = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format: str, picture: Image.Image) -> None:
    """All eight orientations come out upright, once: opening the result again does not turn it again."""
    upright = np.asarray(picture)
    stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    opened_lazily = Image.open(io.BytesIO(data))
    for image in (open_image(data), open_image(open_image(data)), open_image(opened_lazily)):
        assert np.array_equal(np.asarray(image), upright)


def test_exif_orientation_of_a_jpeg() -> None:
    """A phone's photograph: orientation 6 says that the stored right edge is the top."""
    stored = Image.new("RGB", (64, 32), RED)
    stored.paste(BLUE, (48, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_image(encode(stored, "JPEG", exif=exif, quality=95))
    assert image.size == (32, 64)
    stored = stored.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(image, int) - np.asarray(stored, int)).mean() < 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_costs_nothing(picture: Image.Image) -> None:
    """A picture whose metadata is garbage opens as it is stored."""
    for exif in (b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"\0"):
        image = open_image(encode(picture, "WEBP", exif=exif, lossless=True))
        assert image.tobytes() == picture.tobytes()


# --- colour profiles ---


def linear_profile() -> bytes:
    """An ICC v2 profile made by hand: the primaries of sRGB (D50-adapted), but linear light."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    identity = b"curv" + bytes(8)
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": identity,
        b"gTRC": identity,
        b"bTRC": identity,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += struct.pack(">4sII", tag, start + len(body), len(value))
        body += value
    header = struct.pack(">I4xI", start + len(body), 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    illuminant = struct.pack(">iii", 63190, 65536, 54061)  # D50
    header = header.ljust(68, b"\0") + illuminant
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def srgb(linear: float) -> int:
    """IEC 61966-2-1: linear light in 0-1 -> an 8-bit sRGB value."""
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


def test_icc_profile_becomes_srgb() -> None:
    """Linear pixels under a linear profile come out as the sRGB standard's own curve says."""
    profile = linear_profile()
    for value in (0, 20, 55, 128, 255):
        image = Image.new("RGB", (4, 4), (value,) * 3)
        for stored in (image, image.convert("RGBA"), image.quantize(2)):
            pixel = open_image(encode(stored, "PNG", icc_profile=profile)).getpixel((0, 0))
            assert np.abs(np.array(pixel) - srgb(value / 255)).max() <= 1


def test_icc_profile_keeps_transparency() -> None:
    """The profile changes the colours and not the alpha: what is clear is still white."""
    data = encode(Image.new("RGBA", (2, 2), (55, 55, 55, 0)), "PNG", icc_profile=linear_profile())
    assert open_image(data).getpixel((0, 0)) == WHITE


def test_an_icc_profile_that_does_not_fit_is_ignored(picture: Image.Image) -> None:
    """A broken profile, or one for another colour space, leaves the pixels as they are."""
    for profile in (b"garbage", linear_profile()[:200]):
        data = encode(picture, "PNG", icc_profile=profile)
        assert open_image(data).tobytes() == picture.tobytes()
    grey = encode(Image.new("L", (2, 2), 55), "PNG", icc_profile=linear_profile())
    assert open_image(grey).getpixel((0, 0)) == (55, 55, 55)
