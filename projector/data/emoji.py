"""The emoji that show a thing, as three vendors draw them, under the names that people use.

`emoji_names.tsv` says which emoji and what they are called: CLDR's "hot beverage" is a cup of coffee, and
a cat's face is a cat. It leaves out flags, letters, arrows, signs, skin tones, and the men and women of each
trade.

The two Fluent styles are one designer's drawings, modelled and flat: only Noto is another hand.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from projector.data.rasterise import Drawing
from vision_lm.errors import DataError

NAMES = Path(__file__).with_name("emoji_names.tsv")
VENDORS = ("fluent-3d", "noto", "fluent-flat")
_LICENCES = {"fluent-3d": "MIT", "noto": "Apache-2.0", "fluent-flat": "MIT"}
_FOLDERS = {"fluent-3d": "fluent-emoji-3d", "noto": "noto", "fluent-flat": "fluent-emoji-flat"}


@dataclass(frozen=True)
class EmojiName:
    """What people call an emoji, by its Unicode (CLDR) name."""

    unicode_name: str
    name: str
    category: str
    aliases: tuple[str, ...]  # other true names


def read_names() -> list[EmojiName]:
    """The rows of `emoji_names.tsv`."""
    with NAMES.open(encoding="utf-8", newline="") as file:
        return [
            EmojiName(
                unicode_name=row["emoji"],
                name=row["name"],
                category=row["category"],
                aliases=tuple(filter(None, row["aliases"].split("; "))),
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]


def emoji_drawings(packages: Path, vendor: str, without: Counter[str]) -> Iterator[Drawing]:
    """One vendor's drawings of the named emoji; `without[vendor]` counts those that it lacks.

    The vendors are matched by code points: their slugs follow different editions of CLDR.
    """
    folder = packages / _FOLDERS[vendor]
    listed = _json(packages / "unicode-emoji-json" / "data-by-emoji.json")
    keys = {entry["name"]: code_points(emoji) for emoji, entry in listed.items()}
    rasters: dict[str, Path] = {}
    slugs: dict[str, str] = {}
    icons: dict = {}
    if vendor == "fluent-3d":
        rasters = {vendor_key(file.stem): file for file in (folder / "assets").glob("*.webp")}
    else:
        icons = _json(folder / "icons.json")
        slugs = {vendor_key(written): slug for written, slug in _json(folder / "chars.json").items()}
    for entry in read_names():
        key = keys[entry.unicode_name]
        raster = rasters.get(key)
        svg = iconify_svg(icons, slugs[key]) if key in slugs else None
        if raster is None and svg is None:
            without[vendor] += 1
            continue
        yield Drawing(
            name=entry.name,
            aliases=entry.aliases,
            category=entry.category,
            style=vendor,
            stem=key,
            title=entry.unicode_name,
            licence=_LICENCES[vendor],
            svg=svg,
            raster=raster,
        )


def code_points(emoji: str) -> str:
    """A key for an emoji: its code points in hexadecimal, without variation selectors: "1f408-200d-2b1b"."""
    return "-".join(f"{ord(character):x}" for character in emoji if character != "\ufe0f")


def vendor_key(written: str) -> str:
    """The same key from a vendor's spelling: "0023-FE0F-20E3" → "23-20e3"."""
    points = (f"{int(point, 16):x}" for point in written.split("-"))
    return "-".join(point for point in points if point != "fe0f")


def iconify_svg(icons: dict, slug: str) -> str | None:
    """An icon of an Iconify set as an SVG document; None if it lacks it. An alias may mirror its parent."""
    mirrored = False
    while slug not in icons["icons"]:
        alias = icons.get("aliases", {}).get(slug)
        if alias is None:
            return None
        mirrored ^= alias.get("hFlip", False)
        slug = alias["parent"]
    icon = icons["icons"][slug]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = f'<g transform="translate({width} 0) scale(-1 1)">{icon["body"]}</g>' if mirrored else icon["body"]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="0 0 {width} {height}">{body}</svg>'


def _json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}: delete its folder and fetch the packages again") from error
