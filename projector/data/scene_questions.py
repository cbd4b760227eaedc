"""Questions about a scene, each with exactly one right answer that cannot be guessed from its wording.

Yes/no questions pick the answer first (even odds) and then something to ask; what a "no" asks about is drawn
from the same colours and shapes as what a "yes" asks about.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from projector.data.samples import QA
from projector.data.scene_attributes import (
    ask_colour,
    ask_list,
    ask_material,
    ask_read,
    ask_shape,
    ask_size,
    ask_what,
)
from projector.data.scene_counts import ask_count
from projector.data.scene_presence import ask_existence
from projector.data.scene_relations import ask_compare, ask_place, ask_relation
from projector.data.scene_vocabulary import Asked, Scene

Asker = Callable[[Scene, random.Random, Sequence[str]], Asked | None]

# Each kind with its weight. Existence and relations are the slowest to learn; "read" fits few scenes.
_ASKERS: dict[str, tuple[Asker, float]] = {
    "existence": (ask_existence, 5),
    "colour": (ask_colour, 3),
    "shape": (ask_shape, 2.5),
    "count": (ask_count, 4),
    "relation": (ask_relation, 7),
    "place": (ask_place, 4),
    "compare": (ask_compare, 2),
    "material": (ask_material, 3),
    "size": (ask_size, 1.5),
    "read": (ask_read, 6),
    "list": (ask_list, 1.5),
    "what": (ask_what, 1.5),
}


def questions(scene: Scene, rng: random.Random, count: int, absent_names: Sequence[str] = ()) -> list[QA]:
    """Up to `count` different questions of mixed kinds; fewer where the scene has no more to ask about.

    `absent_names` are the names of cut-outs that other scenes show. Without them, no question asks whether a
    cut-out is there: the answer would always be yes. The kinds are the keys of `_ASKERS`; "what" asks what
    the only thing is, "list" what the several things are.
    """
    found: dict[str, QA] = {}
    kinds, weights = list(_ASKERS), [weight for _, weight in _ASKERS.values()]
    for _ in range(count * 12):
        if len(found) >= count:
            break
        kind = rng.choices(kinds, weights)[0]
        asked = _ASKERS[kind][0](scene, rng, absent_names)
        if asked:
            question = as_typed(asked.question, rng)
            found.setdefault(question.lower().rstrip("?"), QA(question, asked.answer, kind))
    return list(found.values())


def as_typed(question: str, rng: random.Random) -> str:
    """The question as one of many people would type it: spelling, capitals, question mark, synonyms."""
    picture = rng.choice(("picture", "picture", "image", "image", "scene"))
    question = question.replace("{picture}", picture)
    if rng.random() < 0.5:
        question = question.replace("colour", "color")
    if rng.random() < 0.3:
        question = question.replace("gray", "grey")
    if rng.random() < 0.2:
        question = question.replace("large ", "big ")
    if rng.random() < 0.3:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip("?")
    return question
