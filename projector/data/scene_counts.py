"""Questions about numbers: "How many red circles are there?"."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from projector.data.scene_grammar import is_plural, plural
from projector.data.scene_pointing import looked_at
from projector.data.scene_presence import ALSO_CALLED, absent_pair, may_be_called
from projector.data.scene_references import from_left_to_right
from projector.data.scene_vocabulary import Asked, Scene, Thing, colours_on, shapes_on


def ask_count(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """The number is chosen first, among those that fit this scene: small ones would prevail otherwise."""
    by_number: dict[int, list[tuple[str, Sequence[Thing]]]] = {}
    for things, phrase in _countable(scene, rng):
        by_number.setdefault(len(things), []).append((phrase, things))
    if not by_number:
        return None
    numbers = sorted(by_number)
    number = rng.choices(numbers, [0.5 if number < 2 else 1.0 for number in numbers])[0]
    what, things = rng.choice(by_number[number])
    forms = (
        f"How many {what} are there?",
        f"How many {what} are there?",
        f"How many {what} are in the {{picture}}?",
        f"How many {what} can you see?",
        f"How many {what} do you see?",
        f"Count the {what}.",
        f"What is the number of {what}?",
    )
    return Asked(rng.choice(forms), str(number), looked_at(scene, *from_left_to_right(things, scene)))


def _countable(scene: Scene, rng: random.Random) -> Iterator[tuple[Sequence[Thing], str]]:
    """(the things, plural phrase) of everything that can be counted here, with a few absent things."""
    shapes = [thing for thing in scene.things if thing.is_shape]
    sprites = [thing for thing in scene.things if not thing.is_shape]
    if scene.word is None:
        yield scene.things, rng.choice(("things", "objects", "items"))
        if not sprites:
            yield shapes, "shapes"
    for name in sorted({sprite.noun for sprite in sprites}):
        if not is_plural(name):
            yield [sprite for sprite in sprites if sprite.noun == name], plural(name)
    if shapes:
        yield from _countable_shapes(scene, shapes, rng)


def _countable_shapes(
    scene: Scene, shapes: Sequence[Thing], rng: random.Random
) -> Iterator[tuple[Sequence[Thing], str]]:
    colours = [thing.colour for thing in shapes if thing.colour]
    nouns = [thing.noun for thing in shapes]
    unclear = {ALSO_CALLED[noun] for noun in nouns if noun in ALSO_CALLED}
    absent_colours = [colour for colour in colours_on(scene.background) if colour not in colours]
    absent_colours = rng.sample(absent_colours, min(1, len(absent_colours)))  # a scene may have every colour
    generic = "shapes" if len(shapes) < len(scene.things) else rng.choice(("shapes", "things", "objects"))
    for colour in sorted({*colours, *absent_colours}):
        yield [thing for thing in shapes if thing.colour == colour], f"{colour} {generic}"
    absent_nouns = [noun for noun in shapes_on(scene.background) if not may_be_called(noun, shapes)]
    for noun in sorted({*nouns, *rng.sample(absent_nouns, min(1, len(absent_nouns)))} - unclear):
        yield [thing for thing in shapes if thing.noun == noun], plural(noun)
    pairs = list(zip(colours, nouns, strict=True))
    for colour, noun in sorted(set(pairs)):
        if noun not in unclear:
            yield (
                [thing for thing in shapes if (thing.colour, thing.noun) == (colour, noun)],
                f"{colour} {plural(noun)}",
            )
    absent = absent_pair(scene, rng, rng.choice(shapes))
    if absent:
        yield (), plural(absent)
