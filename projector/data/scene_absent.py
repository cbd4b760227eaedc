"""Questions about what is not in the scene ("What colour is the star?", where there is none), which nobody can answer.

The answer is that of VizWiz's annotators (Gurari et al. 2018, arXiv 1802.08218).

A stranger takes the place of one of the things, and the scene is asked about it in the words of all other questions: from
the wording nobody can tell that it is not there.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from projector.data.samples import QA
from projector.data.scene_attributes import ask_colour, ask_material, ask_read, ask_shape, ask_size
from projector.data.scene_grammar import is_plural
from projector.data.scene_presence import ALSO_CALLED, may_be_called
from projector.data.scene_questions import as_typed
from projector.data.scene_references import references
from projector.data.scene_relations import ask_compare, ask_place, ask_side, ask_which
from projector.data.scene_vocabulary import (
    COLOURS,
    HELD_OUT_PAIRS,
    Asked,
    Scene,
    Thing,
    colours_on,
    materials_of,
    shapes_on,
)
from vision_lm.confidence import UNANSWERABLE

_WAYS: tuple[Callable[[Scene, random.Random, Sequence[str]], Asked | None], ...] = (
    ask_colour,
    ask_shape,
    ask_material,
    ask_size,
    ask_place,
    ask_place,
    ask_which,
    ask_which,
    ask_side,
    ask_side,
    ask_compare,
)
_READ_SHARE = 0.02  # of the attempts, where nothing is written


def absent(scene: Scene, rng: random.Random, count: int, names: Sequence[str] = ()) -> list[QA]:
    """Up to `count` different questions that the scene does not answer. `names`: of cut-outs that other scenes show."""
    found: dict[str, QA] = {}
    for _ in range(count * 12):
        if len(found) >= count:
            break
        if scene.word is None and rng.random() < _READ_SHARE:
            asked = ask_read(replace(scene, word="x"), rng, names)
        else:
            asked = _about_a_stranger(scene, rng, names)
        if asked:
            question = as_typed(asked.question, rng)
            found.setdefault(question.lower().rstrip("?"), QA(question, UNANSWERABLE, "absent"))
    return list(found.values())


def _about_a_stranger(scene: Scene, rng: random.Random, names: Sequence[str]) -> Asked | None:
    place = rng.randrange(len(scene.things))
    stranger = _stranger(scene, scene.things[place], rng, names)
    if stranger is None:
        return None
    other = replace(scene, things=(*scene.things[:place], stranger, *scene.things[place + 1 :]))
    asked = rng.choice(_WAYS)(other, rng, names)
    if asked is None or asked.answer in ("yes", "no"):  # to which "no" is as good an answer
        return None
    here = {phrase for thing in scene.things for phrase in _phrases(thing)}
    nowhere = [phrase for phrase in references(stranger, other) if phrase not in here]
    said = any(re.search(rf"\bthe {re.escape(phrase)}\b(?! of)", asked.question) for phrase in nowhere)
    return asked if said else None


def _stranger(scene: Scene, known: Thing, rng: random.Random, names: Sequence[str]) -> Thing | None:
    """A thing that nobody would find in the scene, instead of this one: a shape, or one of the cut-outs' names."""
    if names and rng.random() < (0.2 if known.is_shape else 0.8):
        words = {word for thing in scene.things for word in thing.noun.split()}
        name = rng.choice(names)
        if words & set(name.split()) or name in COLOURS or is_plural(name) != is_plural(known.noun):
            return None
        return Thing(name, None, known.size, None, known.box)
    shapes = [thing for thing in scene.things if thing.is_shape]
    judging = any((thing.colour, thing.noun) in HELD_OUT_PAIRS for thing in shapes)
    pairs = [
        (colour, noun)
        for colour, noun in itertools.product(colours_on(scene.background), shapes_on(scene.background))
        if not may_be_called(noun, [one for one in shapes if one.colour == colour])
        and (judging or (colour, noun) not in HELD_OUT_PAIRS)
    ]
    if not pairs:
        return None
    colour, noun = rng.choice(pairs)
    materials = (None, *materials_of(noun, colour))
    return Thing(noun, colour, known.size, rng.choice(materials), known.box)


def _phrases(thing: Thing) -> set[str]:
    """Everything that somebody may call it."""
    attributes = [one for one in (thing.size, thing.material, thing.colour) if one is not None]
    heads = {thing.noun, "thing", "object"}
    if thing.is_shape:
        heads |= {"shape", ALSO_CALLED.get(thing.noun, "shape")}
    chosen = (
        some for count in range(len(attributes) + 1) for some in itertools.combinations(attributes, count)
    )
    return {" ".join((*some, head)) for some in chosen for head in heads}
