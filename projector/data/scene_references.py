"""Where things are: phrases that single out one thing of a scene, its place, and clear relations between things."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable, Sequence

from projector.data.scene_grammar import with_article
from projector.data.scene_vocabulary import Scene, Thing

COLUMNS = 8
CLEAR_MARGIN = 0.12  # of the picture's side, between two centres
_NEAR = 0.04  # of the picture's side, to the border of two thirds
DIRECTIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def describe(thing: Thing) -> str:
    """The canonical noun phrase of an answer: "a red star", "a coffee cup"."""
    return with_article(name_of(thing))


def name_of(thing: Thing) -> str:
    """ "red star", "coffee cup"."""
    return f"{thing.colour} {thing.noun}" if thing.colour else thing.noun


def from_left_to_right(things: Iterable[Thing], scene: Scene) -> tuple[Thing, ...]:
    """The order in which captions name things, and counts count them: column by column, and down each.

    By columns as wide as a patch of mini's, since what stands one above the other has no order from left to right that a
    model could tell.
    """
    return tuple(
        sorted(things, key=lambda thing: (int(COLUMNS * thing.centre[0] / scene.side), thing.centre[1]))
    )


def references(thing: Thing, scene: Scene, hide: Collection[str] = ()) -> list[str]:
    """The noun phrases (no article) that fit this thing and no other, without the attributes in `hide`.

    `hide` holds any of "noun", "colour", "size", "material": what a question must not give away. The colours
    of cut-outs are unknown, so beside cut-outs a colour goes only with "shape", never with "thing".
    """
    attributes = [
        name
        for name in ("size", "material", "colour")
        if name not in hide and getattr(thing, name) is not None
    ]
    phrases = []
    for count in range(len(attributes) + 1):
        for chosen in itertools.combinations(attributes, count):
            adjectives = "".join(f"{getattr(thing, name)} " for name in chosen)
            alike = [
                other
                for other in scene.things
                if all(getattr(other, name) == getattr(thing, name) for name in chosen)
            ]
            if "noun" not in hide and sum(other.noun == thing.noun for other in alike) == 1:
                phrases.append(adjectives + thing.noun)
            if thing.is_shape and sum(other.is_shape for other in alike) == 1:
                phrases.append(adjectives + "shape")
            certain = all(other.is_shape for other in scene.things) or set(chosen) <= {"size"}
            if certain and len(alike) == 1 and (chosen or len(scene.things) == 1):
                phrases.extend((adjectives + "thing", adjectives + "object"))
    return phrases


def the(thing: Thing, scene: Scene, rng: random.Random, hide: Collection[str] = ()) -> str | None:
    """ "the red circle": one of the `references`, short ones more often; None if there is none."""
    phrases = references(thing, scene, hide)
    if not phrases:
        return None
    return "the " + rng.choices(phrases, [0.4 ** phrase.count(" ") for phrase in phrases])[0]


def place_of(thing: Thing, side: int) -> str:
    """Which third of the picture the thing's centre is in, in words."""
    return third_at(*thing.centre, side)


def third_at(x: float, y: float, side: int) -> str:
    """ "at the top left", "on the right", "in the middle": the third of the picture with this point."""
    across = ("left", "", "right")[min(2, int(3 * x / side))]
    down = ("top", "", "bottom")[min(2, int(3 * y / side))]
    if across and down:
        return f"at the {down} {across}"
    if across or down:
        return f"on the {across}" if across else f"at the {down}"
    return "in the middle"


def thirds_near(thing: Thing, side: int) -> set[str]:
    """The third with the thing's centre, and every other that it is too close to for the first to be beyond doubt."""
    x, y = thing.centre
    about = (-_NEAR * side, 0, _NEAR * side)
    return {third_at(x + right, y + down, side) for right in about for down in about}


def clearly(direction: str, thing: Thing, other: Thing, side: int) -> bool:
    """Whether `thing` is beyond doubt left of / right of / above / below `other`.

    Their centres are apart by the margin, and neither reaches past the other's centre.
    """
    if direction in ("right of", "below"):
        return clearly(OPPOSITE[direction], other, thing, side)
    axis = 0 if direction == "left of" else 1
    return (
        other.centre[axis] - thing.centre[axis] >= CLEAR_MARGIN * side
        and thing.box[axis + 2] <= other.centre[axis]
        and other.box[axis] >= thing.centre[axis]
    )


def clear_relations(things: Sequence[Thing], side: int) -> list[tuple[Thing, str, Thing]]:
    """Every (thing, direction, other) that is beyond doubt among these."""
    return [
        (thing, direction, other)
        for thing in things
        for other in things
        if thing is not other
        for direction in DIRECTIONS
        if clearly(direction, thing, other, side)
    ]


def only_thing(direction: str, other: Thing, scene: Scene) -> Thing | None:
    """The one thing that is clearly in this direction from `other`; None if there are more, or doubts."""
    found = [thing for thing in scene.things if clearly(direction, thing, other, scene.side)]
    doubtful = [
        thing
        for thing in scene.things
        if thing is not other and thing not in found and leans(direction, thing, other)
    ]
    return found[0] if len(found) == 1 and not doubtful else None


def leans(direction: str, thing: Thing, other: Thing) -> bool:
    """Whether the centre of `thing` is at all in this direction from the centre of `other`."""
    if direction in ("right of", "below"):
        return leans(OPPOSITE[direction], other, thing)
    axis = 0 if direction == "left of" else 1
    return thing.centre[axis] < other.centre[axis]
