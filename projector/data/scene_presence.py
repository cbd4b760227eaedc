"""Questions about presence ("Is there a red circle?"), half of them about things that are nearly there."""

from __future__ import annotations

import random
from collections.abc import Sequence

from projector.data.scene_grammar import is_plural, with_article
from projector.data.scene_vocabulary import (
    HELD_OUT_PAIRS,
    Asked,
    Scene,
    Thing,
    colours_on,
    materials_of,
    shapes_on,
    yes_or_no,
)

# A shape that many people would also call by the other name: never asked about as absent beside it.
ALSO_CALLED = {"square": "rectangle", "ring": "circle"}


def ask_existence(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    thing = rng.choice(scene.things)
    present = rng.random() < 0.5
    if thing.is_shape:
        phrase = _shape_phrase(scene, rng, thing, present)
    elif absent_names:
        phrase = thing.noun if present else _absent_name(scene, rng, absent_names)
    else:
        phrase = None
    if phrase is None:
        return None
    a, verb = with_article(phrase), "Are" if is_plural(phrase) else "Is"
    if (
        len(scene.things) == 1 and thing.is_shape and rng.random() < 0.3
    ):  # as easy-VQA asks the other way round
        negated = (
            f"Is there not {a} in the {{picture}}?",
            f"Is there not {a}?",
            f"Is no {phrase} present?",
            f"Does the {{picture}} not contain {a}?",
        )
        return Asked(rng.choice(negated), yes_or_no(not present))
    forms = (
        f"{verb} there {a}?",
        f"{verb} there {a}?",
        f"{verb} there {a} in the {{picture}}?",
        f"{verb} {a} present?",
        f"Can you see {a}?",
        f"Do you see {a} in this {{picture}}?",
        f"Does the {{picture}} contain {a}?",
    )
    return Asked(rng.choice(forms), yes_or_no(present))


def absent_pair(scene: Scene, rng: random.Random, thing: Thing) -> str | None:
    """A pair such as "red circle" that shares its colour or its shape with `thing`, but is not in the scene.

    In training a held-out pair is never named: the answer would always be no.
    """
    shapes = [other for other in scene.things if other.is_shape]
    judging = any((other.colour, other.noun) in HELD_OUT_PAIRS for other in shapes)
    colours = colours_on(scene.background)
    if judging and rng.random() < 0.5:
        pairs = [pair for pair in sorted(HELD_OUT_PAIRS) if pair[0] in colours]
    elif rng.random() < 0.5:
        pairs = [(thing.colour or "", noun) for noun in shapes_on(scene.background)]
    else:
        pairs = [(colour, thing.noun) for colour in colours]
    absent = [
        f"{colour} {noun}"
        for colour, noun in pairs
        if not may_be_called(noun, [other for other in shapes if other.colour == colour])
        and (judging or (colour, noun) not in HELD_OUT_PAIRS)
    ]
    return rng.choice(absent) if absent else None


def may_be_called(noun: str, shapes: Sequence[Thing]) -> bool:
    """Whether somebody might call one of the shapes so: a square is a rectangle to many."""
    return any(noun in (thing.noun, ALSO_CALLED.get(thing.noun)) for thing in shapes)


def _shape_phrase(scene: Scene, rng: random.Random, thing: Thing, present: bool) -> str | None:
    """ "red circle", "circle", "red shape" or "striped circle": there, or nearly there."""
    shapes = [other for other in scene.things if other.is_shape]
    form = rng.choice(("pair", "pair", "pair", "noun", "colour", "material" if thing.material else "pair"))
    if form == "material":
        possible = [m for m in materials_of(thing.noun, "red") if (m == thing.material) == present]
        phrases = [
            f"{material} {thing.noun}"
            for material in possible
            if present == any((other.noun, other.material) == (thing.noun, material) for other in shapes)
        ]
    elif form == "noun":
        absent = [noun for noun in shapes_on(scene.background) if not may_be_called(noun, shapes)]
        phrases = [thing.noun] if present else absent
    elif form == "colour":
        seen = {other.colour for other in shapes}
        colours = [thing.colour] if present else [c for c in colours_on(scene.background) if c not in seen]
        phrases = [f"{colour} shape" for colour in colours]
    else:
        pair = f"{thing.colour} {thing.noun}" if present else absent_pair(scene, rng, thing)
        phrases = [pair] if pair else []
    return rng.choice(phrases) if phrases else None


def _absent_name(scene: Scene, rng: random.Random, names: Sequence[str]) -> str | None:
    """A cut-out's name that shares no word with anything in the scene."""
    words = {word for thing in scene.things for word in thing.noun.split()}
    for _ in range(8):
        name = rng.choice(names)
        if not words & set(name.split()):
            return name
    return None
