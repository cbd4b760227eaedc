"""Reads the objects that a caption names, to count those that are not in the picture (hallucination)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from projector.data.scene_grammar import NUMBERS, plural
from projector.data.scene_vocabulary import COLOURS, MATERIALS, SHAPES, SIZES, Scene

_SPELLINGS = {"grey": "gray", "big": "large"}
_NUMBERS = {word: number for number, word in enumerate(NUMBERS)}
_GENERIC = {"shape", "shapes", "thing", "things", "object", "objects", "one", "background"}
# "The picture shows": unlike "a picture", no thing in it.
_ITSELF = {"picture", "image", "photo", "photograph"}
_ADJECTIVES = {*COLOURS, *MATERIALS, *SIZES, "other"}


@dataclass(frozen=True)
class NamedThing:
    """One mention in a caption; `definite` ("the circle") points back at something named before."""

    colour: str | None
    noun: str
    count: int
    definite: bool


def named_things(caption: str, vocabulary: Collection[str] = ()) -> list[NamedThing]:
    """The shapes, and the cut-outs of `vocabulary` (names without article), named in any caption, in order.

    Singular and plural are both known; of names that contain one another the longest that fits is read.
    Quoted text is what is written in the picture, no object.
    """
    words = [_SPELLINGS.get(word, word) for word in _words(caption)]
    nouns = _forms(frozenset((*SHAPES, *vocabulary)))
    longest = max(map(len, nouns))
    found = []
    at = 0
    while at < len(words):
        length = _noun_at(words, at, nouns, longest)
        if length:
            mention = _mention(words, at, nouns[tuple(words[at : at + length])])
            if not (mention.definite and mention.noun in _ITSELF):
                found.append(mention)
        at += length or 1
    return found


def hallucinated(caption: str, scene: Scene, vocabulary: Collection[str]) -> tuple[int, int]:
    """(objects named, how many of them are not in the scene).

    "three red stars" names three objects; with two red stars in the scene, one of them is wrong. Mentions of
    the same kind of thing with "a" or a number add up; "the red star" only has to exist.
    """
    named: Counter[tuple[str | None, str]] = Counter()
    wrong = pointed = 0
    for mention in named_things(caption, vocabulary):
        key = (mention.colour, mention.noun)
        if mention.definite:
            pointed += 1
            wrong += _present(scene, *key) == 0
        else:
            named[key] += mention.count
    wrong += sum(max(0, count - _present(scene, *key)) for key, count in named.items())
    return pointed + named.total(), wrong


def _present(scene: Scene, colour: str | None, noun: str) -> int:
    return sum(
        thing.noun.lower() == noun and (colour is None or thing.colour == colour) for thing in scene.things
    )


def _words(text: str) -> list[str]:
    """Lower-case words, and the punctuation between them: "an orange, grapes" names no orange grapes."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[.,;:]", re.sub(r'["“”][^"“”]*["“”]', " ", text).lower())


@functools.lru_cache(maxsize=4)
def _forms(names: frozenset[str]) -> dict[tuple[str, ...], str]:
    """Every singular and plural, as words → the name; a name itself goes before the plural of another, but not of a shape's.

    Two emoji are called "hearts" and "rings"; what scenes have two of are shapes.
    """
    plurals = {tuple(_words(plural(name))): name.lower() for name in sorted(names)}
    shapes = {(plural(name),): name for name in SHAPES}
    return plurals | {tuple(_words(name)): name.lower() for name in sorted(names)} | shapes


def _noun_at(words: list[str], at: int, nouns: dict[tuple[str, ...], str], longest: int) -> int:
    """How many words the longest name that starts here has, or 0. "orange" before a noun is a colour."""
    if words[at] in COLOURS and at + 1 < len(words):
        rest = at + 1
        while rest < len(words) - 1 and words[rest] in _ADJECTIVES:
            rest += 1
        compound = any(tuple(words[at : at + n]) in nouns for n in range(2, longest + 1))
        if not compound and (
            words[rest] in _GENERIC
            or any(tuple(words[rest : rest + n]) in nouns for n in range(1, longest + 1))
        ):
            return 0
    for length in range(min(longest, len(words) - at), 0, -1):
        if tuple(words[at : at + length]) in nouns:
            return length
    return 0


def _mention(words: list[str], at: int, noun: str) -> NamedThing:
    """Read the adjectives, the number and the article that stand before the noun at `at`."""
    colour, count = None, 1
    before = at - 1
    while before >= 0 and words[before] in _ADJECTIVES:
        colour = words[before] if words[before] in COLOURS else colour
        before -= 1
    word = words[before] if before >= 0 else ""
    if word in _NUMBERS or word.isdigit():
        count = _NUMBERS[word] if word in _NUMBERS else min(int(word), 99)
        before -= 1
    return NamedThing(colour, noun, count, before >= 0 and words[before] == "the")
