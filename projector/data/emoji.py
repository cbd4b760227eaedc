"""The emoji that show a thing, as each vendor draws them, under the names that people use.

`emoji_names.tsv` says which emoji and what they are called: CLDR's "hot beverage" is a cup of coffee, and
a cat's face is a cat. It leaves out flags, letters, arrows, signs, skin tones, and the men and women of each
trade.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from projector.data.rasterise import Drawing
from projector.data.registries import PACKAGES
from projector.data.vendors import Vendor
from vision_lm.errors import DataError

NAMES = Path(__file__).with_name("emoji_names.tsv")


_LICENCES = {package.folder: package.licence for package in PACKAGES}


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


def emoji_drawings(packages: Path, vendor: Vendor, without: Counter[str]) -> Iterator[Drawing]:
    """One vendor's drawings of the named emoji; `without[vendor.style]` counts those that it lacks.

    An emoji is found by its code points where the package lists them, for slugs follow different editions of CLDR;
    otherwise by what it is called. A vendor may have drawn it more than once.
    """
    listed = _json(packages / "unicode-emoji-json" / "data-by-emoji.json")
    characters = {entry["name"]: emoji for emoji, entry in listed.items()}
    drawn = _rasters(packages / vendor.folder) or _vectors(packages / vendor.folder)
    for entry in read_names():
        character = characters[entry.unicode_name]
        key = code_points(character)
        keys = [] if entry.unicode_name in vendor.misnamed else [key, *_called(character, entry)]
        found = next((drawn[one] for one in keys if one in drawn), [])
        without[vendor.style] += not found
        for number, source in enumerate(found, start=1):
            yield Drawing(
                name=entry.name,
                aliases=entry.aliases,
                category=entry.category,
                style=vendor.style,
                stem=key if number == 1 else f"{key}_{number}",
                title=entry.unicode_name,
                licence=_LICENCES[vendor.folder],
                svg=source if isinstance(source, str) else None,
                raster=source if isinstance(source, Path) else None,
            )


def _rasters(folder: Path) -> Mapping[str, list[str | Path]]:
    """A package's raster files by the code points that they are called by; empty if it has none."""
    return {vendor_key(file.stem): [file] for file in (folder / "assets").glob("*.webp")}


def _vectors(folder: Path) -> Mapping[str, list[str | Path]]:
    """An Iconify set's SVG documents: by code points if it lists those, else by the letters of what they are called.

    "cactus-1" and "cactus-2" are two drawings of one thing.
    """
    icons, listed = _json(folder / "icons.json"), _json(folder / "chars.json")
    drawn: dict[str, list[str | Path]] = {}
    if listed:
        keys = [(vendor_key(written), slug) for written, slug in listed.items()]
    else:
        slugs = sorted([*icons["icons"], *icons.get("aliases", {})])
        keys = [(_letters(re.sub(r"-\d$", "", slug)), slug) for slug in slugs]
    for key, slug in keys:
        if (svg := iconify_svg(icons, slug)) is not None and svg not in drawn.get(key, []):
            drawn.setdefault(key, []).append(svg)
    return drawn


def _called(character: str, entry: EmojiName) -> Iterator[str]:
    """What an emoji is called: by CLDR, and by Unicode, whose names of single characters never changed."""
    yield _letters(entry.unicode_name)
    single = character.removesuffix("\ufe0f")
    if len(single) == 1:
        yield _letters(unicodedata.name(single, entry.unicode_name))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


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
