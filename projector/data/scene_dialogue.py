"""Short conversations about a scene in which a later question says "it" for the thing of an earlier turn."""

from __future__ import annotations

import random

from projector.data.samples import QA
from projector.data.scene_grammar import with_article
from projector.data.scene_presence import absent_pair
from projector.data.scene_questions import as_typed
from projector.data.scene_references import DIRECTIONS, OPPOSITE, clearly, describe, only_thing, the
from projector.data.scene_vocabulary import MATERIALS, Scene, Thing, materials_of, yes_or_no

_LONGEST = 4


def dialogue(scene: Scene, rng: random.Random) -> list[QA]:
    """A conversation of 2 to 4 turns; empty when nothing in the scene can be singled out.

    The opening brings one thing up, and "it" is that thing until a turn asks what is beside it: from then on
    "it" is the answer.
    """
    turns, it = _opening(scene, rng)
    wanted = rng.randint(len(turns) + 1, _LONGEST)
    asked = {turn.kind for turn in turns}
    for _ in range(30):
        if it is None or len(turns) == wanted:
            break
        topic = rng.choice(("colour", "size", "material", "beside", "relation"))
        if topic in asked:
            continue
        turn, new_it = _follow_up(topic, scene, it, rng)
        if turn is not None:
            asked = {"beside"} if new_it is not it else asked | {topic}
            turns.append(turn)
            it = new_it
    return turns if len(turns) > 1 else []


def _opening(scene: Scene, rng: random.Random) -> tuple[list[QA], Thing | None]:
    """One or two turns and the thing that they end on; no turns if nothing can be talked about."""
    for thing in rng.sample(scene.things, len(scene.things)):
        ways = [_open_beside, _open_existence, _open_shape, _open_what]
        for way in rng.sample(ways, len(ways)):
            turns = way(scene, thing, rng)
            if turns:
                return turns, thing
    return [], None


def _open_beside(scene: Scene, thing: Thing, rng: random.Random) -> list[QA]:
    for direction in rng.sample(DIRECTIONS, len(DIRECTIONS)):
        for other in scene.things:
            the_other = the(other, scene, rng)
            if the_other is not None and only_thing(direction, other, scene) is thing:
                return [_turn(f"what is {direction} {the_other}?", describe(thing), "relation", rng)]
    return []


def _open_existence(scene: Scene, thing: Thing, rng: random.Random) -> list[QA]:
    """ "Is there a star?", "yes"; or "Is there a blue star?", "no", and then what colour the star has."""
    if thing.colour is None or sum(other.noun == thing.noun for other in scene.things) > 1:
        return []
    if rng.random() < 0.5:
        return [_turn(f"is there {with_article(thing.noun)}?", "yes", "existence", rng)]
    absent = absent_pair(scene, rng, thing)
    if absent is None or not absent.endswith(f" {thing.noun}"):
        return []
    return [
        _turn(f"is there {with_article(absent)}?", "no", "existence", rng),
        _turn(f"what colour is the {thing.noun}?", thing.colour, "colour", rng),
    ]


def _open_shape(scene: Scene, thing: Thing, rng: random.Random) -> list[QA]:
    the_thing = the(thing, scene, rng, hide=("noun",))
    if the_thing is None or not thing.is_shape:
        return []
    return [_turn(f"what shape is {the_thing}?", thing.noun, "shape", rng)]


def _open_what(scene: Scene, thing: Thing, rng: random.Random) -> list[QA]:
    if len(scene.things) > 1 or scene.word is not None:
        return []
    return [_turn("what is in the {picture}?", describe(thing), "what", rng)]


def _follow_up(topic: str, scene: Scene, it: Thing, rng: random.Random) -> tuple[QA | None, Thing]:
    """A turn about `it`, if the topic suits it, and the thing that is "it" afterwards."""
    lead = rng.choice(("and ", "", ""))
    if topic == "colour" and it.colour:
        return _turn(f"{lead}what colour is it?", it.colour, "colour", rng), it
    if topic == "size":
        form = rng.choice(("is it small or large?", "what size is it?", "how big is it?"))
        return _turn(lead + form, it.size, "size", rng), it
    if topic == "material" and it.colour and materials_of(it.noun, it.colour):
        return _ask_pattern(lead, it, rng), it
    if topic == "beside":
        direction = rng.choice(DIRECTIONS)
        found = only_thing(direction, it, scene)
        if found is not None:
            return _turn(f"{lead}what is {direction} it?", describe(found), "relation", rng), found
    if topic == "relation":
        return _ask_side(lead, scene, it, rng), it
    return None, it


def _ask_pattern(lead: str, it: Thing, rng: random.Random) -> QA:
    pattern, yes = it.material or "solid", rng.random() < 0.5
    others = [other for other in (*MATERIALS, "solid") if other != pattern]
    asked = pattern if yes else rng.choice(others)
    return _turn(f"{lead}is it {asked}?", yes_or_no(yes), "material", rng)


def _ask_side(lead: str, scene: Scene, it: Thing, rng: random.Random) -> QA | None:
    for other in rng.sample(scene.things, len(scene.things)):
        true = [direction for direction in DIRECTIONS if clearly(direction, it, other, scene.side)]
        the_other = the(other, scene, rng)
        if true and the_other is not None:
            direction, yes = rng.choice(true), rng.random() < 0.5
            where = direction if yes else OPPOSITE[direction]
            return _turn(f"{lead}is it {where} {the_other}?", yes_or_no(yes), "relation", rng)
    return None


def _turn(question: str, answer: str, kind: str, rng: random.Random) -> QA:
    return QA(as_typed(question[:1].upper() + question[1:], rng), answer, kind)
