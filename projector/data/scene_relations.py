"""Questions about where things are and about two things at once: which side one is on, and which is larger."""

from __future__ import annotations

import random
from collections.abc import Sequence

from projector.data.scene_grammar import is_plural
from projector.data.scene_pointing import looked_at
from projector.data.scene_references import (
    DIRECTIONS,
    OPPOSITE,
    clear_relations,
    describe,
    only_thing,
    place_of,
    the,
    thirds_near,
)
from projector.data.scene_vocabulary import Asked, Scene, Thing, yes_or_no

_CLEARLY_LARGER = 1.6  # ratio of box areas: a long thin thing beside a compact one is not


def ask_place(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """ "Where is the star?", in thirds of the picture; not where the thing's centre is close to their border."""
    thing = rng.choice(scene.things)
    the_thing = the(thing, scene, rng)
    if the_thing is None or len(thirds_near(thing, scene.side)) > 1:
        return None
    verb = "are" if is_plural(the_thing) else "is"
    forms = (
        f"Where {verb} {the_thing}?",
        f"Where {verb} {the_thing}?",
        f"Where in the {{picture}} {verb} {the_thing}?",
        f"In which part of the {{picture}} {verb} {the_thing}?",
    )
    return Asked(rng.choice(forms), place_of(thing, scene.side), looked_at(scene, thing))


def ask_relation(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """Even odds of the two sorts below."""
    if rng.random() < 0.5:
        return ask_whether(scene, rng, absent_names)
    return ask_which(scene, rng, absent_names)


def ask_whether(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """ "Is the circle left of the star?"; both are there, and one is clearly on one side of the other."""
    true = clear_relations(_told_apart(scene, rng), scene.side)
    if not true:
        return None
    thing, direction, other = rng.choice(true)
    yes = rng.random() < 0.5
    where = _in_words(direction if yes else OPPOSITE[direction], rng)
    the_thing, the_other = the(thing, scene, rng), the(other, scene, rng)
    verb = "Are" if is_plural(thing.noun) else "Is"
    return Asked(f"{verb} {the_thing} {where} {the_other}?", yes_or_no(yes), looked_at(scene, thing, other))


def ask_which(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """ "What is left of the star?", where exactly one thing is."""
    found = [
        (thing, direction, other)
        for other in _told_apart(scene, rng)
        for direction in DIRECTIONS
        if (thing := only_thing(direction, other, scene)) is not None
    ]
    if not found:
        return None
    thing, direction, other = rng.choice(found)
    the_other, where = the(other, scene, rng), _in_words(direction, rng)
    if thing.colour and rng.random() < 0.35:
        attribute, answer = rng.choice((("shape", thing.noun), ("colour", thing.colour)))
        return Asked(
            f"What {attribute} is the thing {where} {the_other}?", answer, looked_at(scene, other, thing)
        )
    forms = (
        f"What is {where} {the_other}?",
        f"What is {where} {the_other}?",
        f"What do you see {where} {the_other}?",
        f"Which thing is {where} {the_other}?",
        f"What can be seen {where} {the_other} in the {{picture}}?",
    )
    return Asked(rng.choice(forms), describe(thing), looked_at(scene, other, thing))


def ask_side(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """ "Is the circle left or right of the star?", "On which side of the star is the circle?": four answers, not two."""
    true = clear_relations(_told_apart(scene, rng), scene.side)
    if not true:
        return None
    thing, direction, other = rng.choice(true)
    the_thing, the_other = the(thing, scene, rng), the(other, scene, rng)
    verb = "are" if is_plural(thing.noun) else "is"
    answer = direction.removesuffix(" of")
    across = direction in ("left of", "right of")
    either = ["left or right of", "right or left of"] if across else ["above or below", "below or above"]
    forms = [f"{verb.capitalize()} {the_thing} {rng.choice(either)} {the_other}?"]
    aside, along = (abs(thing.centre[axis] - other.centre[axis]) for axis in ((0, 1) if across else (1, 0)))
    if aside > 2 * along:  # beyond doubt on this side rather than above or below, or the other way round
        forms += [
            f"On which side of {the_other} {verb} {the_thing}?",
            f"Where {verb} {the_thing} from {the_other}?",
        ]
    return Asked(rng.choice(forms), answer, looked_at(scene, thing, other))


def ask_compare(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    pairs = [
        (lesser, greater)
        for lesser in scene.things
        for greater in scene.things
        if lesser.size == "small"
        and greater.size == "large"
        and _area(greater) >= _CLEARLY_LARGER * _area(lesser)
    ]
    if not pairs:
        return None
    lesser, greater = rng.choice(pairs)
    the_lesser, the_greater = (the(thing, scene, rng, hide=("size",)) for thing in (lesser, greater))
    if the_lesser is None or the_greater is None:
        return None
    word, answer = rng.choice((("larger", the_greater), ("bigger", the_greater), ("smaller", the_lesser)))
    asked = rng.sample(((the_lesser, lesser), (the_greater, greater)), 2)
    (first, _), (second, _) = asked
    forms = (
        f"Which is {word}, {first} or {second}?",
        f"Which is {word}, {first} or {second}?",
        f"Which one is {word}: {first} or {second}?",
        f"What is {word}, {first} or {second}?",
        f"Of {first} and {second}, which is {word}?",
    )
    return Asked(rng.choice(forms), answer, looked_at(scene, *(thing for _, thing in asked)))


def _told_apart(scene: Scene, rng: random.Random) -> list[Thing]:
    return [thing for thing in scene.things if the(thing, scene, rng) is not None]


def _in_words(direction: str, rng: random.Random) -> str:
    if direction == "above":
        return rng.choice(("above", "above", "higher than"))
    if direction == "below":
        return rng.choice(("below", "below", "under"))
    return rng.choice((direction, direction, f"to the {direction}", f"on the {direction.split()[0]} side of"))


def _area(thing: Thing) -> float:
    x0, y0, x1, y1 = thing.box
    return (x1 - x0) * (y1 - y0)
