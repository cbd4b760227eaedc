"""Drawings to PNG, in a child process: one that hangs or crashes the renderer costs that drawing only."""

from __future__ import annotations

import io
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import resvg_py
from PIL import Image

from vision_lm.errors import DataError

LONG_SIDE = 256  # pixels, of the trimmed picture
SECONDS = 60.0  # of processor time for one drawing, so that a slow or busy machine keeps the same ones; most take 0.03 s
WAITS = 10  # times as long on the clock
START_SECONDS = 120.0  # for the process itself; an idle machine takes 1


@dataclass(frozen=True)
class Drawing:
    """A named drawing as its package holds it: an SVG document, or a raster file."""

    name: str
    aliases: tuple[str, ...]
    category: str
    style: str
    stem: str  # of its PNG file, unique in its style
    title: str  # what its package calls it
    licence: str
    svg: str | None = None
    raster: Path | None = None


def rasterise(drawing: Drawing) -> Image.Image | None:
    """The drawing without its margins: RGBA, about `LONG_SIDE` pixels long; None if nothing can be seen.

    Text is left out: it would depend on the fonts of the machine. ValueError or OSError for a broken drawing.
    """
    if drawing.svg is None:
        assert drawing.raster is not None
        with Image.open(drawing.raster) as file:
            picture = trim(file.convert("RGBA"))
    else:
        picture = trim(_draw(drawing.svg, 2 * LONG_SIDE))
        if picture is not None and max(picture.size) < LONG_SIDE:  # a small drawing on a large page
            magnified = 2 * LONG_SIDE * LONG_SIDE // max(picture.size) + 1
            picture = trim(_draw(drawing.svg, min(8 * LONG_SIDE, magnified)))
    if picture is not None:
        picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return picture


def trim(picture: Image.Image) -> Image.Image | None:
    """Crop an RGBA picture to what can be seen; None if nothing can."""
    visible = picture.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    return None if visible is None else picture.crop(visible)


def _draw(svg: str, side: int) -> Image.Image:
    # CSS's 96 dots an inch: the renderer refuses drawings measured in points or millimetres until told
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, dpi=96.0, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


class Renderer:
    """`rasterise`, guarded: one child process, replaced when a drawing takes too long or kills it."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def png(self, drawing: Drawing, seconds: float = SECONDS) -> bytes | None:
        """→ a PNG file; None for a drawing that is empty, broken or takes more processor time."""
        try:
            self._connection.send((drawing, seconds))
            if self._connection.poll(WAITS * seconds):
                return self._connection.recv()
        except (EOFError, OSError):
            pass  # the child died of it
        self._stop()
        self._start()
        return None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would break a parent that holds threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        try:
            ready = self._connection.poll(START_SECONDS) and self._connection.recv()
        except (EOFError, OSError):
            ready = False
        if not ready:  # else every drawing would be counted as broken
            self._stop()
            raise DataError(
                "the process that renders drawings does not start; a script that builds the data needs "
                "`if __name__ == '__main__':` around what it runs"
            )

    def _stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    """The child process: True once, then drawings in, PNG files or None out, until the pipe is closed."""
    connection.send(True)
    while True:
        try:
            drawing, seconds = connection.recv()
        except EOFError:
            return
        # It ends this process, even within the renderer; where there is none the clock alone does.
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            picture = rasterise(drawing)
        except (ValueError, OSError):
            picture = None
        if picture is None:
            connection.send(None)
            continue
        file = io.BytesIO()
        picture.save(file, format="PNG")
        connection.send(file.getvalue())
