"""The clip-art drawings that are clearly free and whose title names a thing (Open Clip Art Library)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from projector.data.clipart_titles import Noun, Vocabulary, curated, noun_of
from projector.data.emoji import EmojiName, read_names
from projector.data.imagenet_names import CLASSES
from projector.data.rasterise import Drawing

# No things: icons, shapes, signs. And not clearly free: mascots, characters and brands belong to somebody.
_LEFT_OUT = re.compile(
    r"icons/|^shapes/|flags|cards/|patterns|gradients|map_symbols|/led/|roadsigns|aiga|buttons|^special|^logos"
    r"|pantyhose|smilies|diagrams|connectors|computer/bb_|coat_of_arms|gnome-|stripper|sexy|bullet_hole"
    r"|fan ?art|tux|pac_?k?man|domo|game_?boy|xbox|porcinet|emule|mcoon|what_s_up|evel_knievel|rubik"
    r"|spaghetti_monster",
    re.IGNORECASE,
)
# The drawings of a set carry the set's title, or their artist's name: their file names tell them apart.
_SET_TITLE = re.compile(
    r"clip ?arts?\b|sibmission|etiquette|collection|theme|sallite|^moons$|^open clip|^jose hevia|rollandin$"
    r"|^\W*$",
    re.IGNORECASE,
)
_PUBLIC_DOMAIN = re.compile(r"/publicdomain/?$", re.IGNORECASE)


def clipart_drawings(packages: Path, without: Counter[str]) -> Iterator[Drawing]:
    """The usable drawings; `without["openclipart"]` counts those without a licence or a clear title."""
    folder = packages / "openclipart" / "usr" / "share" / "openclipart" / "svg"
    known = title_vocabulary(read_names())
    for file in sorted(folder.rglob("*.svg")):
        relative = file.relative_to(folder).as_posix()
        if file.is_symlink() or _LEFT_OUT.search(relative):
            continue
        svg = file.read_bytes().decode("utf-8", errors="replace")
        title, free = title_and_rights(svg)
        noun = noun_of(file.stem if _SET_TITLE.search(title) else title, known) if free else None
        if noun is None:
            without["openclipart"] += 1
            continue
        yield Drawing(
            name=noun.name,
            aliases=(),
            category=noun.category,
            style="openclipart",
            stem=relative.removesuffix(".svg"),
            title=title or file.stem,
            licence="public domain",
            svg=svg,
        )


def title_vocabulary(emoji: Sequence[EmojiName]) -> Vocabulary:
    """The words that a title may end in: the curated ones, else an emoji's name, else an ImageNet class."""
    last: dict[str, Noun | None] = {}
    for one in CLASSES:
        for words in (one.noun, one.basic):
            last.setdefault(words.lower(), Noun(words, one.group))
    for entry in emoji:
        for alias in entry.aliases:
            last[alias.lower()] = Noun(alias, entry.category)
    for entry in emoji:
        last[entry.name.lower()] = Noun(entry.name, entry.category)
    return Vocabulary(last | dict(curated().last), curated().first)


def title_and_rights(svg: str) -> tuple[str, bool]:
    """A drawing's title, and whether its own metadata puts it into the public domain."""
    try:
        tree = ElementTree.fromstring(svg.encode())
    except ElementTree.ParseError:
        return "", False
    work = next((element for element in tree.iter() if element.tag.endswith("}Work")), None)
    title, free = "", False
    for element in work if work is not None else ():
        if element.tag.endswith("}title"):
            title = " ".join((element.text or "").split())
        if element.tag.endswith("}license"):
            free = any(_PUBLIC_DOMAIN.search(value) for value in element.attrib.values())
    return title, free
