"""Where the words of a caption point: things of a scene, marked in a text that is still being put together.

A mark is one character of Unicode's private use area for each thing of the scene, before the words for it. So phrases can
be joined, listed and made into sentences like any others, and `unmarked` says at the end what stands where.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from projector.data.scene_grammar import sentence
from projector.data.scene_vocabulary import Scene, Thing
from vision_lm.pointing import Point

_FIRST = 0xE000
_MARKS = "".join(map(chr, range(_FIRST, _FIRST + 64)))


class Pointed(NamedTuple):
    """A text, and where in the scene its words point."""

    text: str
    points: tuple[Point, ...]


def marked(phrase: str, things: Iterable[Thing], scene: Scene) -> str:
    """The phrase, which points at these things in this order."""
    return "".join(chr(_FIRST + scene.things.index(thing)) for thing in things) + phrase


def words(text: str) -> str:
    """What comes after the marks that the text begins with."""
    return text.lstrip(_MARKS)


def marked_sentence(text: str) -> str:
    """The text with a capital first letter and a full stop; marks stay before it."""
    return text[: len(text) - len(words(text))] + sentence(words(text))


def unmarked(text: str, scene: Scene) -> Pointed:
    """The text without its marks. A point stands before the blank before its words: word and blank are one token."""
    plain, points = "", []
    for character in text:
        if character in _MARKS:
            points.append(_middle(scene.things[ord(character) - _FIRST], scene, len(plain.rstrip(" "))))
        else:
            plain += character
    return Pointed(plain, tuple(points))


def looked_at(scene: Scene, *things: Thing) -> tuple[Point, ...]:
    """What an answer points at before its first word."""
    return tuple(_middle(thing, scene, 0) for thing in things)


def _middle(thing: Thing, scene: Scene, at: int) -> Point:
    x, y = (min(max(one / scene.side, 0.0), 1.0) for one in thing.centre)
    return Point(at, x, y)
