"""The stamps of Tux Paint that show a thing: photographs and drawings by many people, each with a sentence that says what it is.

"A great blue heron." They are by nobody whose work is trained on, and most are photographs: what people bring.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from projector.data.clipart import title_vocabulary
from projector.data.clipart_titles import noun_of
from projector.data.emoji import read_names
from projector.data.rasterise import Drawing

# No things: coins, letters, signs, mascots, models of molecules; and the mirror images of stamps that must not be mirrored.
_LEFT_OUT = re.compile(r"^symbols/|^town/(flags|roadsigns)/|tux|_mirror(_flip)?$|_flip$", re.IGNORECASE)
_PAIR = re.compile(r"^an? (?:pair|bunch|kind|type|piece) of ", re.IGNORECASE)


def stamp_drawings(packages: Path, without: Counter[str]) -> Iterator[Drawing]:
    """The usable stamps; `without["tuxpaint"]` counts those whose sentence names nothing that a vocabulary knows."""
    folder = packages / "tuxpaint-stamps" / "usr" / "share" / "tuxpaint" / "stamps"
    known = title_vocabulary(read_names())
    for file in sorted([*folder.rglob("*.png"), *folder.rglob("*.svg")]):
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if _LEFT_OUT.search(stem):
            continue
        title = _sentence(file.with_suffix(".txt"))
        noun = noun_of(_PAIR.sub("", title), known)
        if noun is None or (
            stem.startswith("animals/") and noun.category != "animal"
        ):  # "A mouse.", "A baby …"
            without["tuxpaint"] += 1
            continue
        drawn = file.suffix == ".svg"
        yield Drawing(
            name=noun.name,
            aliases=(),
            category=noun.category,
            style="tuxpaint",
            stem=stem,
            title=title,
            licence="GPL-2.0",
            svg=file.read_bytes().decode("utf-8", errors="replace") if drawn else None,
            raster=None if drawn else file,
        )


def _sentence(file: Path) -> str:
    """The first line of a stamp's text, which is English; "" if it has none."""
    if not file.is_file():
        return ""
    return next(iter(file.read_text(encoding="utf-8", errors="replace").splitlines()), "").strip()
