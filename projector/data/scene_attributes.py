"""Questions about what a thing is and looks like: colour, shape, pattern, size, name; and the word."""

from __future__ import annotations

import random
from collections.abc import Sequence

from projector.data.scene_captions import inventory
from projector.data.scene_grammar import is_plural, listed
from projector.data.scene_pointing import looked_at, unmarked
from projector.data.scene_references import describe, the
from projector.data.scene_vocabulary import (
    MATERIALS,
    SIZES,
    Asked,
    Scene,
    Thing,
    materials_of,
    yes_or_no,
)


def ask_colour(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    thing = _any_of([thing for thing in scene.things if thing.is_shape], rng)
    the_thing = None if thing is None else the(thing, scene, rng, hide=("colour",))
    if thing is None or thing.colour is None or the_thing is None:
        return None
    forms = (
        f"What colour is {the_thing}?",
        f"What colour is {the_thing}?",
        f"What is the colour of {the_thing}?",
        f"Which colour is {the_thing}?",
        f"What colour does {the_thing} have?",
        f"Tell me the colour of {the_thing}.",
    )
    return Asked(rng.choice(forms), thing.colour)


def ask_shape(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    thing = _any_of([thing for thing in scene.things if thing.is_shape], rng)
    the_thing = None if thing is None else the(thing, scene, rng, hide=("noun",))
    if thing is None or the_thing is None:
        return None
    if the_thing == "the shape":
        forms = ["What is the shape?"]
    elif the_thing.endswith(" shape"):
        adjectives = the_thing.removeprefix("the ").removesuffix(" shape")
        forms = [f"What is {the_thing}?", f"What is {the_thing}?", f"Which shape is {adjectives}?"]
    else:
        forms = [f"What shape is {the_thing}?", f"What is the shape of {the_thing}?"]
    if len(scene.things) == 1:
        forms += [
            "What shape is in the {picture}?",
            "What shape does the {picture} contain?",
            "What shape is present?",
            "Which shape do you see?",
            "Which shape is this?",
        ]
    return Asked(rng.choice(forms), thing.noun)


def ask_material(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """Asked only where something is patterned; solid things are then asked about as often as patterned."""
    by_material: dict[str, list[Thing]] = {}
    for thing in scene.things:
        if thing.colour and materials_of(thing.noun, thing.colour):
            by_material.setdefault(thing.material or "solid", []).append(thing)
    if not set(by_material) & set(MATERIALS):
        return None
    material = rng.choice(sorted(by_material))
    thing = rng.choice(by_material[material])
    the_thing = the(thing, scene, rng, hide=("material",))
    if the_thing is None:
        return None
    if rng.random() < 0.4:
        yes = rng.random() < 0.5
        others = [other for other in (*MATERIALS, "solid") if other != material]
        return Asked(
            f"Is {the_thing} {material if yes else rng.choice(others)}?",
            yes_or_no(yes),
            looked_at(scene, thing),
        )
    forms = (
        f"Is {the_thing} striped, dotted, outlined or solid?",
        f"What pattern does {the_thing} have?",
        f"What is the pattern of {the_thing}?",
        f"How is {the_thing} filled?",
    )
    return Asked(rng.choice(forms), material, looked_at(scene, thing))


def ask_size(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    size = rng.choice(SIZES)
    thing = _any_of([thing for thing in scene.things if thing.size == size], rng)
    the_thing = None if thing is None else the(thing, scene, rng, hide=("size",))
    if thing is None or the_thing is None:
        return None
    verb = "are" if is_plural(the_thing) else "is"
    if rng.random() < 0.4:
        asked = rng.choice(SIZES)
        return Asked(
            f"{verb.capitalize()} {the_thing} {asked}?", yes_or_no(asked == size), looked_at(scene, thing)
        )
    forms = (
        f"{verb.capitalize()} {the_thing} small or large?",
        f"{verb.capitalize()} {the_thing} large or small?",
        f"What size {verb} {the_thing}?",
        f"What is the size of {the_thing}?",
        f"How big {verb} {the_thing}?",
    )
    return Asked(rng.choice(forms), size, looked_at(scene, thing))


def ask_read(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    if scene.word is None:
        return None
    forms = (
        "What does it say?",
        "What word is written?",
        "What is written in the {picture}?",
        "Which word is in the {picture}?",
        "What does the text say?",
        "Read the word.",
        "What word can you read?",
    )
    return Asked(rng.choice(forms), scene.word)


def ask_list(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """What there is: each kind of thing once with its number, from left to right."""
    if scene.word is not None or len(scene.things) < 2:
        return None
    forms = (
        "What is in the {picture}?",
        "What is in the {picture}?",
        "What do you see?",
        "What can you see in the {picture}?",
        "What things are there?",
        "List the things in the {picture}.",
        "Which things are in the {picture}?",
    )
    text, points = unmarked(listed(inventory(scene)), scene)
    return Asked(rng.choice(forms), text, points)


def ask_what(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """What the only thing is."""
    if scene.word is not None or len(scene.things) != 1:
        return None
    forms = (
        "What is this?",
        "What is this?",
        "What is in the {picture}?",
        "What do you see?",
        "What is shown in the {picture}?",
        "What does the {picture} show?",
        "What can you see?",
    )
    return Asked(rng.choice(forms), describe(scene.things[0]))


def _any_of(things: Sequence[Thing], rng: random.Random) -> Thing | None:
    return rng.choice(things) if things else None
