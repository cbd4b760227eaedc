"""Opening pictures: where they may come from, what is refused, and that refusing costs nothing."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.picture_files import BLUE, GREEN, RED, WHITE, encode, png, refusal
from vision_lm import images
from vision_lm.errors import ImageError
from vision_lm.images import ImageLimits, ImageSource, ImageWarning, open_image, open_images

# --- sources ---


def test_every_kind_of_source_gives_the_same_pixels(picture: Image.Image, tmp_path: Path) -> None:
    """A path, a Path, bytes, a data URL, a PIL image and an array are one picture."""
    data = encode(picture, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.encodebytes(data).decode()  # with MIME's line breaks
    for source in (str(path), path, data, url, picture, np.asarray(picture)):
        image = open_image(source)
        assert (image.mode, image.size, image.tobytes()) == ("RGB", (3, 2), picture.tobytes())


def test_the_result_is_not_the_callers_image(picture: Image.Image) -> None:
    """Drawing on the result leaves a PIL image that was passed in alone."""
    open_image(picture).putpixel((0, 0), WHITE)
    assert picture.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.array([[0, 128, 255]], np.uint8), [0, 128, 255]),
        (np.array([[[0], [128], [255]]], np.uint8), [0, 128, 255]),
        (np.array([[0, 0x80FF, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 0.2, 1.0001]], np.float32), [0, 51, 255]),
        (np.array([[False, True]]), [0, 255]),
        (np.array([[[0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8), [255, 0]),
        (np.arange(0, 250, 10).astype(np.uint8).reshape(5, 5).T[:1], [0, 50, 100, 150, 200]),
    ],
)
def test_arrays(array: np.ndarray, expected: list[int]) -> None:
    """Every allowed type and shape runs from black to white, also where its memory is strided."""
    image = open_image(array)
    assert [image.getpixel((x, 0)) for x in range(image.width)] == [(value,) * 3 for value in expected]


@pytest.mark.parametrize(
    "array, said",
    [
        (np.zeros((2, 2, 2), np.uint8), "shape (2, 2, 2)"),
        (np.zeros((3, 8, 8), np.uint8), "shape (3, 8, 8)"),
        (np.zeros(4, np.uint8), "shape (4,)"),
        (np.zeros((0, 4), np.uint8), "empty"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.array([[0.0, 255.0]]), "floats from 0 to 255"),
        (np.array([[0.0, np.nan]]), "floats from nan"),
        (np.broadcast_to(np.uint8(0), (60_000, 60_000)), "too large"),
        ([[0, 255]], "given as list"),
        (None, "given as NoneType"),
    ],
)
def test_arrays_that_are_not_pictures_are_refused(array: object, said: str) -> None:
    """A wrong shape, type or range is named, not guessed at."""
    assert said in refusal(array)


def test_open_images_keeps_the_others(picture: Image.Image, tmp_path: Path) -> None:
    """One bad picture in a list gives its own error, in its place, and costs no other."""
    first, missing, last = open_images([picture, tmp_path / "missing.jpg", encode(picture, "PNG")])
    assert isinstance(missing, ImageError) and "missing.jpg" in str(missing)
    assert isinstance(first, Image.Image) and isinstance(last, Image.Image)
    assert first.tobytes() == last.tobytes() == picture.tobytes()


# --- refused ---


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "the file is empty"),
        (b"just some words\n" * 9, "this is text"),
        ("Grüße\n".encode(), "this is text"),
        (b"%PDF-1.7\n", "this is a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "this is PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "this is HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is SVG"),
        (b"\x00\x01\x02\x03 whatever", "00 01 02 03"),
        (b"\x89PNG\r\n\x1a\n", "the PNG data is truncated"),
        (b"GIF89a", "the GIF data is truncated"),
        (png(0, 1, 8, 2, b""), "photo.png"),
    ],
)
def test_what_is_not_a_picture_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    """The message names the file and what it is, whatever its ending claims."""
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    message = refusal(path)
    assert said in message and str(path) in message


def test_formats_outside_the_list_are_not_decoded(picture: Image.Image) -> None:
    """What Pillow could open but we do not allow is refused by its first bytes, and the list is given."""
    for format in ("EPS", "PDF", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "DDS"):
        assert "allowed: PNG, JPEG, WEBP, GIF, TIFF, BMP, PPM, AVIF" in refusal(encode(picture, format))


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe and an impossible name are each said, and none of them blocks."""
    assert "no such file" in refusal(tmp_path / "nothing.jpg")
    assert "a directory" in refusal(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in refusal(pipe)
    assert "cannot be read" in refusal("photo\0.jpg")
    assert "cannot be read (File name too long)" in refusal("line\n" * 10_000)
    assert "''" in refusal("")


@pytest.mark.parametrize(
    "url, said",
    [
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,", "the file is empty"),
        ("data:text/plain;base64,aGk=", "it starts with 'data:text/plain;base64'"),
        ("data:image/png,raw", "allowed: data:image/TYPE;base64,DATA"),
        ("data:", "allowed: data:image/TYPE;base64,DATA"),
    ],
)
def test_data_urls_that_hold_no_picture(url: str, said: str) -> None:
    """A data URL is refused by its own syntax, never taken for a path."""
    assert said in refusal(url)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"])
def test_truncated_files_are_refused(format: str) -> None:
    """Half a picture is never captioned: every allowed format, cut at many places, says that it is cut."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = encode(Image.fromarray(noise), format)
    open_image(data)
    for keep in np.linspace(16, len(data) * 0.98, 25, dtype=int):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Truncated File Read|Corrupt EXIF data")
            with pytest.raises(ImageError, match=f"the {format} data is truncated"):
                open_image(data[:keep])


def test_damaged_files_never_escape_as_another_error() -> None:
    """A thousand corrupted files open or raise `ImageError`; nothing of Pillow's reaches the caller."""
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
        options = {} if format in ("GIF", "BMP", "PPM") else {"exif": exif}
        data = encode(noise, format, **options)
        for _ in range(125):
            damaged = bytearray(data)
            for at in random.integers(0, len(data) if random.random() < 0.5 else 80, 3):
                damaged[at] = random.integers(0, 256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                (result,) = open_images([bytes(damaged)])
            assert isinstance(result, ImageError) or result.mode == "RGB"


# --- limits ---


def test_a_file_over_the_byte_limit_is_not_read(tmp_path: Path) -> None:
    """The size comes from the directory entry: a sparse 1 TiB file is refused at once."""
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "1,099,511,627,776 bytes is too large; allowed: 67,108,864 bytes" in refusal(path)


def test_limits_are_the_callers(picture: Image.Image) -> None:
    """Every limit holds for every source that it can concern, and what is exactly on the limit opens."""
    data = encode(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (data, url):
        assert "too large" in refusal(source, limits=ImageLimits(max_bytes=len(data) - 3))
        open_image(source, limits=ImageLimits(max_bytes=len(data)))
    undecodable = "data:image/png;base64," + "@" * 200  # so its length was judged before it was decoded
    assert "too large" in refusal(undecodable, limits=ImageLimits(max_bytes=100))
    sized: list[ImageSource] = [data, picture, np.asarray(picture)]
    for sized_source in sized:
        message = refusal(sized_source, limits=ImageLimits(max_pixels=5))
        assert "3 x 2 pixels is too large; allowed: 5 pixels" in message
        assert "3 x 2 pixels is too large" in refusal(sized_source, limits=ImageLimits(max_side=2))
        open_image(sized_source, limits=ImageLimits(max_pixels=6, max_side=3))


def bombs() -> dict[str, bytes]:
    """Small files that ask for 3.6 billion pixels."""
    pixel = encode(Image.new("L", (1, 1)), "TIFF")
    tiff = bytearray(pixel)
    directory = struct.unpack_from("<I", pixel, 4)[0]
    for entry in range(struct.unpack_from("<H", pixel, directory)[0]):
        at = directory + 2 + 12 * entry
        if struct.unpack_from("<H", pixel, at)[0] in (256, 257):  # ImageWidth, ImageLength
            struct.pack_into("<HII", tiff, at + 2, 4, 1, 60_000)
    tile = [(256, 10), (257, 10), (258, 8), (259, 5), (262, 1), (277, 1), (322, 60_000), (323, 60_000)]
    tile += [(324, 8 + 2 + 12 * 10 + 4), (325, 100)]  # where its 100 bytes of LZW are
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tile)
    gif = encode(Image.new("P", (1, 1)), "GIF")
    frame = gif.index(b",\0\0\0\0\1\0\1\0")
    gif = gif[: frame + 5] + struct.pack("<HH", 60_000, 60_000) + gif[frame + 9 :]
    dispose = b"!\xf9\x04\x08\0\0\0\0"  # "restore to background": a second buffer of the frame's size
    other = Image.new("RGB", (1, 1), RED)
    webp = encode(Image.new("RGB", (1, 1)), "WEBP", save_all=True, append_images=[other])
    return {
        "png": png(60_000, 60_000, 8, 2, bytes(10_000)),
        "tiff": bytes(tiff),
        "tiled.tiff": b"II*\0\x08\0\0\0" + struct.pack("<H", len(tile)) + entries + bytes(4) + bytes(100),
        "gif": gif[:6] + struct.pack("<HH", 1, 1) + gif[10:frame] + dispose + gif[frame:],
        "webp": webp[:24] + 2 * (59_999).to_bytes(3, "little") + webp[30:],  # the canvas of the animation
        "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
        "ppm": b"P6 60000 60000 255\n" + bytes(100),
        "jpeg": encode(Image.new("RGB", (1, 1)), "JPEG").replace(  # precision, height, width
            b"\x08\0\1\0\1", b"\x08\xea\x60\xea\x60"
        ),
    }


def test_bombs_are_refused_from_their_headers(tmp_path: Path) -> None:
    """60,000 x 60,000 pixels are refused in our words, Pillow silent, for less than 20 MB in all."""
    for format, data in bombs().items():
        (tmp_path / f"bomb.{format}").write_bytes(data)
    program = (
        "import re, sys, warnings\n"
        "from pathlib import Path\n"
        "from vision_lm.images import open_images\n"
        "warnings.simplefilter('error')\n"
        "def peak(): return int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "print(*open_images(sys.argv[1:]), sep='\\n')\n"
        "print(peak() - before)\n"
    )
    paths = sorted(tmp_path.iterdir())
    run = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    *messages, grown = run.stdout.splitlines()
    for path, message in zip(paths, messages, strict=True):
        assert f"{path}: 60,000 x 60,000 pixels is too large; allowed: 89,478,485 pixels" in message
    assert int(grown) < 20_000  # KiB


def test_pillows_own_limit_is_never_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow would warn (2 pixels) or raise (3), we refuse; without its limit, ours alone counts."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
        for width in (2, 3):
            data = encode(Image.new("RGB", (width, 1)), format)
            assert "allowed: 1 pixels" in refusal(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    open_image(data)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    """The smallest picture and the thinnest ones open at their own size."""
    for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        assert open_image(encode(Image.new("RGB", size, RED), format)).size == size


# --- several frames ---


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_first_of_several_frames(format: str, tmp_path: Path) -> None:
    """The first frame is read, and one warning names the file and the count, at the caller's line."""
    path = tmp_path / f"moving.{format.lower()}"
    lossless = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "AVIF" else {}
    later = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, BLUE)]
    Image.new("RGB", (8, 8), RED).save(path, format, save_all=True, append_images=later, **lossless)
    with pytest.warns(ImageWarning) as caught:
        image = open_image(path)
    said = [str(warning.message) for warning in caught]
    assert said == [f"{path}: 3 frames or pages, only the first is read"]
    assert caught[0].filename == __file__
    assert np.abs(np.asarray(image, int) - RED).max() <= (2 if format == "AVIF" else 0)


def test_one_frame_is_not_warned_about(picture: Image.Image) -> None:
    """Formats that can hold several frames stay silent over one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
            open_image(encode(picture, format, save_all=True))


def test_counting_pages_is_bounded() -> None:
    """Of a TIFF of 3,000 pages no more than a hundred are visited, and the first is read."""
    tiff = bytearray(encode(Image.new("L", (1, 1), 7), "TIFF"))
    start = struct.unpack_from("<I", tiff, 4)[0]
    ifd = tiff[start : start + 2 + 12 * struct.unpack_from("<H", tiff, start)[0]]  # then the link to the next
    link = start + len(ifd)
    for _ in range(3_000):
        struct.pack_into("<I", tiff, link, len(tiff))
        link = len(tiff) + len(ifd)
        tiff += ifd + bytes(4)
    with pytest.warns(ImageWarning, match="100 or more frames or pages"):
        assert open_image(bytes(tiff)).getpixel((0, 0)) == (7, 7, 7)


def test_the_frames_of_a_large_gif_are_not_counted() -> None:
    """Twelve bytes are enough for one, and Pillow visits each: a file of some megabytes would run for a long time."""
    frame = b"\x2c" + bytes(4) + struct.pack("<HHB", 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    gif = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\xff\x00\x00" * 2 + frame * 70_000 + b";"
    assert len(gif) > 1 << 20
    with pytest.warns(ImageWarning, match="several frames or pages"):
        assert open_image(gif).getpixel((0, 0)) == (255, 0, 0)


# --- cost ---


def test_importing_is_cheap() -> None:
    """A command that opens one PNG loads neither numpy, torch, an HTTP client nor Pillow's other decoders."""
    program = (
        "import sys, types\n"
        "package = sys.modules['vision_lm'] = types.ModuleType('vision_lm')\n"  # not its __init__
        "package.__path__ = [sys.argv[1]]\n"
        "from vision_lm.images import open_image\n"
        "open_image(bytes.fromhex(sys.argv[2]))\n"
        "costly = ('numpy', 'torch', 'http.client', 'ssl', 'PIL.EpsImagePlugin')\n"
        "print([name for name in costly if name in sys.modules])\n"
    )
    folder = Path(images.__file__).parent
    data = encode(Image.new("RGB", (2, 2)), "PNG").hex()
    run = subprocess.run(
        [sys.executable, "-c", program, folder, data], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
