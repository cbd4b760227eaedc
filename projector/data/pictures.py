"""Drawings of named things, in many styles: emoji and icons of several vendors, clip-art, and stamps.

`build_pictures` turns the unpacked packages (projector/data/registries.py) into trimmed PNG files with one
index, and `load_pictures` reads it. A thing has one name in every style, so that training on some styles and
testing on another asks about the thing and not about the wording.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from projector.data.clipart import clipart_drawings
from projector.data.emoji import emoji_drawings
from projector.data.rasterise import Drawing, Renderer
from projector.data.stamps import stamp_drawings
from projector.data.vendors import COLOUR_VENDORS, VENDORS
from vision_lm.errors import DataError

CLIPART, STAMPS = "openclipart", "tuxpaint"
STYLES = (*(vendor.style for vendor in VENDORS), CLIPART, STAMPS)
INDEX = Path("pictures", "index.jsonl")


@dataclass(frozen=True)
class Picture:
    """One drawing: an RGBA PNG of at most 256 pixels a side, trimmed to its content."""

    name: str  # a noun phrase: "cat", "cup of coffee"
    style: str  # one of STYLES
    path: Path
    category: str | None  # "animal", "food", "vehicle", …
    aliases: tuple[str, ...] = ()  # other true names


@dataclass(frozen=True)
class Built:
    """What a build made, and what it left out."""

    pictures: Mapping[str, int]  # by style
    without: Mapping[
        str, int
    ]  # emoji that a vendor lacks; clip-art with no clear title or licence; stamps with none
    broken: Mapping[str, int]  # drawings that could not be rendered
    repeated: Mapping[str, int]  # drawings that are the same as an earlier one, pixel for pixel
    names: int
    shared_by_two: int  # names drawn in at least two styles
    shared_by_vendors: int  # names drawn by all vendors of coloured emoji

    def __str__(self) -> str:
        styles = "".join(
            f"{style}: {self.pictures[style]} pictures ({self.without[style]} left out, "
            f"{self.broken[style]} broken, {self.repeated[style]} repeated)\n"
            for style in STYLES
        )
        return (
            f"{styles}{self.names} names: {self.shared_by_two} in two styles or more, "
            f"{self.shared_by_vendors} by all vendors of coloured emoji"
        )


def load_pictures(root: Path, styles: Collection[str] | None = None) -> list[Picture]:
    """The pictures that `build_pictures(root)` made, in its order; only those of `styles` if given."""
    for style in styles or ():
        if style not in STYLES:
            raise DataError(f"no picture style {style!r}: there are {', '.join(STYLES)}")
    index = root / INDEX
    if not index.is_file():
        raise DataError(f"{index} is missing: `vision-lm data build --out {root}` makes it")
    pictures = []
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            path = index.parent / row["path"]
            picture = Picture(row["name"], row["style"], path, row["category"], tuple(row["aliases"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{index}, line {number}: no picture ({error}): build the index again") from error
        if styles is None or picture.style in styles:
            pictures.append(picture)
    return pictures


def build_pictures(root: Path) -> Built:
    """Rasterise every named drawing of root/packages into root/pictures. PNG files already there are kept."""
    packages, out = root / "packages", root / INDEX.parent
    without: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    rows: list[dict] = []
    seen: set[tuple[str, bytes]] = set()
    with Renderer() as renderer:
        for drawing in (
            *(drawing for vendor in VENDORS for drawing in emoji_drawings(packages, vendor, without)),
            *clipart_drawings(packages, without),
            *stamp_drawings(packages, without),
        ):
            file = out / drawing.style / f"{drawing.stem}.png"
            if not file.is_file():
                if (png := renderer.png(drawing)) is None:
                    broken[drawing.style] += 1
                    continue
                _write(file, png)
            same = (drawing.style, hashlib.sha256(file.read_bytes()).digest())
            if same in seen:
                repeated[drawing.style] += 1
                continue
            seen.add(same)
            rows.append(_row(drawing, file.relative_to(out)))
    _write(root / INDEX, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    styles: dict[str, set[str]] = {}
    for row in rows:
        styles.setdefault(row["name"], set()).add(row["style"])
    coloured = {vendor.style for vendor in COLOUR_VENDORS}
    return Built(
        pictures=Counter(row["style"] for row in rows),
        without=without,
        broken=broken,
        repeated=repeated,
        names=len(styles),
        shared_by_two=sum(len(found) >= 2 for found in styles.values()),
        shared_by_vendors=sum(found >= coloured for found in styles.values()),
    )


def _row(drawing: Drawing, path: Path) -> dict:
    """A line of the index."""
    return {
        "name": drawing.name,
        "aliases": drawing.aliases,
        "style": drawing.style,
        "category": drawing.category,
        "path": path.as_posix(),
        "title": drawing.title,
        "licence": drawing.licence,
    }


def _write(file: Path, content: bytes) -> None:
    """Write whole or not at all: an interrupted build leaves no half file that the next one would keep."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, file)
