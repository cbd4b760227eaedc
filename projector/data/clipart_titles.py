"""From the title of a clip-art drawing to the noun that people say: "Coffee (B and W)" → "cup of coffee".

`clipart_words.tsv` holds the vocabulary: words, the name that they stand for, its category, and whether
they must end the title ("last": English, "soft blue COUCH") or open it ("first": Italian and French,
"GATTO nero"). An empty name forbids: a "corn dog" is no dog. A title that matches nothing is dropped: no name
is better than a wrong one.
"""

from __future__ import annotations

import csv
import functools
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORDS = Path(__file__).with_name("clipart_words.tsv")

# After these words a title speaks of a second thing: "owl on branch", "raccoon opening box".
_LINK = re.compile(
    r"on|in|into|of|with|under|against|from|for|by|opening|and|at|drawn|jumping|style|driving|to|plays|playing"
)
_NOT_WORDS = re.compile(r"\(.*?\)|[^a-zà-ÿ' ]")
_FILLERS = re.compile(r"\b(?:an?|the|my|another|clip ?art|ganson|zazou|architetto|rollandin|francesco)\b")
_STYLE = re.compile(
    r" (?:outline|contour|silhouett?e?|silhouet|symbol|icons?|head|cartoon|sketch|illustration|profile|"
    r"simple|slice|half|wedge|whole|rectangular|generic|clothing|aj|b|w|v|bw|ii|hash|lit|"
    r"black|white|red|green|blue|yellow|grey|gray|brown|purple|pink)$"
)


@dataclass(frozen=True)
class Noun:
    """What one drawing shows."""

    name: str
    category: str


@dataclass(frozen=True)
class Vocabulary:
    """Known words → noun (None: forbidden), by where in a title they must stand."""

    last: Mapping[str, Noun | None]
    first: Mapping[str, Noun | None]


@functools.cache
def curated() -> Vocabulary:
    """The words of `clipart_words.tsv`."""
    places: dict[str, dict[str, Noun | None]] = {"last": {}, "first": {}}
    with WORDS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            places[row["place"]][row["words"]] = Noun(row["name"], row["category"]) if row["name"] else None
    return Vocabulary(**places)


def normalise(title: str) -> str:
    """Lowercase words: no numbers, brackets, underscores, CamelCase, articles or artists' names."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])|\.svg", " ", html.unescape(title))
    text = _NOT_WORDS.sub(" ", re.sub(r"[_\-.:,;!?]", " ", text.lower()))
    return " ".join(_FILLERS.sub(" ", text).split())


def noun_of(title: str, known: Vocabulary) -> Noun | None:
    """The noun that a title means; None when it is not known, or forbidden."""
    whole = normalise(title).split()
    for end in range(len(whole), 0, -1):
        if (start := " ".join(whole[:end])) in known.first:
            return known.first[start]
    for words in (whole, whole[: _link(whole)]):
        text = " ".join(words)
        while True:
            if (ending := _ending(text.split(), known.last)) is not None:
                return known.last[ending]
            if (plainer := _STYLE.sub("", text)) == text:
                break
            text = plainer
    return None


def _link(words: list[str]) -> int:
    """Where the first thing's words end."""
    return next((place for place, word in enumerate(words) if _LINK.fullmatch(word)), len(words))


def _ending(words: list[str], known: Mapping[str, Noun | None]) -> str | None:
    """The longest known ending that does not name a second thing."""
    for start in range(min(_link(words) + 1, len(words))):
        if (ending := " ".join(words[start:])) in known:
            return ending
    return None
