"""Questions about numbers: "How many red circles are there?"."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from projector.data.scene_grammar import is_plural, plural
from projector.data.scene_presence import ALSO_CALLED, absent_pair, may_be_called
from projector.data.scene_vocabulary import Asked, Scene, Thing, colours_on, shapes_on


def ask_count(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """The number is chosen first, among those that fit this scene: small ones would prevail otherwise."""
    by_number: dict[int, list[str]] = {}
    for number, phrase in _countable(scene, rng):
        by_number.setdefault(number, []).append(phrase)
    if not by_number:
        return None
    numbers = sorted(by_number)
    number = rng.choices(numbers, [0.5 if number < 2 else 1.0 for number in numbers])[0]
    what = rng.choice(by_number[number])
    forms = (
        f"How many {what} are there?",
        f"How many {what} are there?",
        f"How many {what} are in the {{picture}}?",
        f"How many {what} can you see?",
        f"How many {what} do you see?",
        f"Count the {what}.",
        f"What is the number of {what}?",
    )
    return Asked(rng.choice(forms), str(number))


def _countable(scene: Scene, rng: random.Random) -> Iterator[tuple[int, str]]:
    """(number, plural phrase) of everything that can be counted here, with a few absent things."""
    shapes = [thing for thing in scene.things if thing.is_shape]
    sprites = [thing.noun for thing in scene.things if not thing.is_shape]
    if scene.word is None:
        yield len(scene.things), rng.choice(("things", "objects", "items"))
        if not sprites:
            yield len(shapes), "shapes"
    for name in sorted(set(sprites)):
        if not is_plural(name):
            yield sprites.count(name), plural(name)
    if shapes:
        yield from _countable_shapes(scene, shapes, rng)


def _countable_shapes(scene: Scene, shapes: Sequence[Thing], rng: random.Random) -> Iterator[tuple[int, str]]:
    colours = [thing.colour for thing in shapes if thing.colour]
    nouns = [thing.noun for thing in shapes]
    unclear = {ALSO_CALLED[noun] for noun in nouns if noun in ALSO_CALLED}
    absent_colour = rng.choice([colour for colour in colours_on(scene.background) if colour not in colours])
    generic = "shapes" if len(shapes) < len(scene.things) else rng.choice(("shapes", "things", "objects"))
    for colour in sorted({*colours, absent_colour}):
        yield colours.count(colour), f"{colour} {generic}"
    absent_nouns = [noun for noun in shapes_on(scene.background) if not may_be_called(noun, shapes)]
    for noun in sorted({*nouns, *rng.sample(absent_nouns, min(1, len(absent_nouns)))} - unclear):
        yield nouns.count(noun), plural(noun)
    pairs = list(zip(colours, nouns, strict=True))
    for colour, noun in sorted(set(pairs)):
        if noun not in unclear:
            yield pairs.count((colour, noun)), f"{colour} {plural(noun)}"
    absent = absent_pair(scene, rng, rng.choice(shapes))
    if absent:
        yield 0, plural(absent)
