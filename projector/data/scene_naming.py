"""Questions that name one thing by where it is: the steps a caption takes from left to right, one at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence

from projector.data.scene_pointing import looked_at
from projector.data.scene_references import CLEAR_MARGIN, describe, thirds_near
from projector.data.scene_vocabulary import Asked, Scene

_CLEARLY_NEXT = CLEAR_MARGIN / 2  # between the centres of neighbours in a row
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
# The axis along which one counts, and whether from its far end.
_ENDS = {"left": (0, False), "right": (0, True), "top": (1, False), "bottom": (1, True)}


def ask_at(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """ "What is at the top left?", where beyond doubt one thing is there and no other."""
    thing = rng.choice(scene.things)
    here = thirds_near(thing, scene.side)
    others = (thirds_near(other, scene.side) for other in scene.things if other is not thing)
    if scene.word is not None or len(here) > 1 or not here.isdisjoint(set().union(*others)):
        return None
    (place,) = here
    forms = (
        f"What is {place}?",
        f"What is {place} of the {{picture}}?",
        f"What do you see {place}?",
        f"What can be seen {place} of the {{picture}}?",
        f"Which thing is {place}?",
    )
    return Asked(rng.choice(forms), describe(thing), looked_at(scene, thing))


def ask_nth(scene: Scene, rng: random.Random, absent_names: Sequence[str]) -> Asked | None:
    """ "What is the second thing from the left?", where its place in the row is beyond doubt."""
    if scene.word is not None or len(scene.things) < 2:
        return None
    end = rng.choice(("left", "left", *_ENDS))  # captions go from left to right
    axis, backwards = _ENDS[end]
    row = sorted(scene.things, key=lambda thing: thing.centre[axis], reverse=backwards)
    at = rng.randrange(len(row))
    thing = row[at]
    neighbours = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    if any(abs(other.centre[axis] - thing.centre[axis]) < _CLEARLY_NEXT * scene.side for other in neighbours):
        return None
    nth = f"the {_ORDINALS[at]} thing from the {end}"
    forms = [f"What is {nth}?", f"What is {nth} in the {{picture}}?"]
    if at == 0:
        forms += [f"What is furthest to the {end}?", f"Which thing is closest to the {end} edge?"]
    return Asked(rng.choice(forms), describe(thing), looked_at(scene, *row[: at + 1]))
