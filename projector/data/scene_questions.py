"""Questions about a scene, each with exactly one right answer that cannot be guessed from its wording.

Yes/no questions pick the answer first (even odds) and then something to ask; what a "no" asks about is drawn
from the same colours and shapes as what a "yes" asks about.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from projector.data.scene_naming import ask_at, ask_nth
from projector.data.scene_presence import ask_existence
from projector.data.scene_relations import (
    ask_compare,
    ask_place,
    ask_relation,
    ask_side,
    ask_whether,
    ask_which,
)
from projector.data.scene_vocabulary import Asked, Scene


@dataclass(frozen=True)
class _Way:
    """One way to ask, and how often it is tried beside the others."""

    kind: str
    ask: Callable[[Scene, random.Random, Sequence[str]], Asked | None]
    weight: float


# The share of answers that point where they can. The others teach to answer at once, as an answer of a given form must.
POINTED = 0.9

# Existence and relations are the slowest to learn; "read" fits few scenes.
_MIXED = (
    _Way("existence", ask_existence, 5),
    _Way("colour", ask_colour, 3),
    _Way("shape", ask_shape, 2.5),
    _Way("count", ask_count, 4),
    _Way("relation", ask_relation, 7),
    _Way("place", ask_place, 4),
    _Way("compare", ask_compare, 2),
    _Way("material", ask_material, 3),
    _Way("size", ask_size, 1.5),
    _Way("read", ask_read, 6),
    _Way("list", ask_list, 1.5),
    _Way("what", ask_what, 1.5),
)
# What two looks are needed for. After 5,400 steps on `_MIXED`, "Is A left of B?" was hardly better than chance,
# though "What is left of B?" was mostly right: one bit an answer teaches too little.
_REASONING = (
    _Way("relation", ask_whether, 6),
    _Way("side", ask_side, 5),
    _Way("relation", ask_which, 2),
    _Way("place", ask_place, 4),
    _Way("count", ask_count, 4),
    _Way("compare", ask_compare, 3),
)

# What a caption needs, one step at a time. After 11,400 steps on the others, captions named shapes twice and one
# drawing in two wrongly.
_NAMING = (
    _Way("at", ask_at, 5),
    _Way("nth", ask_nth, 5),
    _Way("list", ask_list, 2),
    _Way("count", ask_count, 3),
)


def questions(scene: Scene, rng: random.Random, count: int, absent_names: Sequence[str] = ()) -> list[QA]:
    """Up to `count` different questions of mixed kinds; fewer where the scene has no more to ask about.

    `absent_names` are the names of cut-outs that other scenes show. Without them, no question asks whether a
    cut-out is there: the answer would always be yes. "what" asks what the only thing is, "list" what the several
    things are.
    """
    return _ask(_MIXED, scene, rng, count, absent_names)


def reasoning(scene: Scene, rng: random.Random, count: int) -> list[QA]:
    """Up to `count` different questions that need two looks: relations, sides, places, counts, comparisons."""
    return _ask(_REASONING, scene, rng, count, ())


def naming(scene: Scene, rng: random.Random, count: int) -> list[QA]:
    """Up to `count` different questions about what is where and how many: the steps of a caption."""
    return _ask(_NAMING, scene, rng, count, ())


def _ask(
    ways: Sequence[_Way], scene: Scene, rng: random.Random, count: int, absent_names: Sequence[str]
) -> list[QA]:
    found: dict[str, QA] = {}
    weights = [way.weight for way in ways]
    for _ in range(count * 12):
        if len(found) >= count:
            break
        way = rng.choices(ways, weights)[0]
        asked = way.ask(scene, rng, absent_names)
        if asked:
            question = as_typed(asked.question, rng)
            points = asked.points if rng.random() < POINTED else ()
            found.setdefault(question.lower().rstrip("?"), QA(question, asked.answer, way.kind, points))
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
