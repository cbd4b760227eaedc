"""Captions of synthetic scenes: everything is named, nothing else is, and what is spoken of is pointed at."""

from __future__ import annotations

import re
from collections import Counter

from projector.data.caption_objects import NamedThing, hallucinated, named_things
from projector.data.scene_grammar import plural
from projector.data.scenes import Scene, Thing, caption, naming, questions
from tests.projector.small_scenes import NAMES, scenes


def test_captions_name_everything_and_nothing_else() -> None:
    """Captions end in a full stop, name nothing that is absent and, from "normal" on, every thing."""
    for scene, rng in scenes(400):
        for length in ("short", "normal", "long"):
            text = caption(scene, length, rng).text
            named, wrong = hallucinated(text, scene, NAMES)
            assert text[0].isupper() and text.endswith(".") and wrong == 0, (text, scene)
            if length == "short":
                assert len(text.split()) <= 12
            else:
                present = Counter((thing.colour, thing.noun) for thing in scene.things)
                told: Counter[tuple[str | None, str]] = Counter()
                for mention in named_things(text, NAMES):
                    if not mention.definite:
                        told[mention.colour, mention.noun] += mention.count
                assert told == present, (text, scene)
                assert scene.word is None or f'"{scene.word}"' in text


def test_hallucination_is_counted() -> None:
    """Absent nouns, wrong colours and too many of a kind count; re-mentions and quoted text do not."""
    box = (0.0, 0.0, 9.0, 9.0)
    scene = Scene(
        (
            Thing("star", "red", "small", None, box),
            Thing("star", "red", "small", None, box),
            Thing("coffee cup", None, "large", None, box),
            Thing("orange", None, "large", None, box),
        ),
        "white",
        "dog",
    )
    names = [*NAMES, "cup"]
    assert hallucinated("Two red stars, a coffee cup and an orange.", scene, names) == (4, 0)
    assert hallucinated("A red star and a star. The star is left of the orange.", scene, names) == (4, 0)
    assert hallucinated("Three red stars and a blue star.", scene, names) == (4, 2)
    assert hallucinated("A dog on a red background, two coffee cups.", scene, names) == (3, 2)
    assert hallucinated('An orange circle and the word "dog".', scene, names) == (1, 1)
    assert hallucinated("A cup.", scene, names) == (1, 1)
    # Two emoji are called "hearts"; of two hearts in a scene one may be named.
    assert named_things("Two teal hearts.", {*names, "hearts"}) == [NamedThing("teal", "heart", 2, False)]


def test_answers_point_at_what_they_speak_of() -> None:
    """A count points at as many things as it counts, and a caption, before its words for a thing, at that thing."""
    counted = named = 0
    for scene, rng in scenes(150):
        for qa in [*questions(scene, rng, 8, NAMES), *naming(scene, rng, 6)]:
            if qa.kind == "count" and qa.points:
                assert len(qa.points) == int(qa.answer) and all(point.at == 0 for point in qa.points)
                order = [(int(8 * point.x), point.y) for point in qa.points]
                assert order == sorted(order), "column by column, and down each"
                counted += 1
        text, points = caption(scene, "normal", rng)
        assert sorted((point.x, point.y) for point in points) == sorted(
            (thing.centre[0] / scene.side, thing.centre[1] / scene.side) for thing in scene.things
        )
        for point in points:
            (thing,) = (one for one in scene.things if one.centre[0] / scene.side == point.x)
            names = "|".join(map(re.escape, (plural(thing.noun), thing.noun)))
            words = text[point.at :].lstrip(" ")
            # "two red stars ...": a number or an article, a colour, the thing.
            assert re.match(rf"(\w+ )?({thing.colour} )?({names})\b", words, re.IGNORECASE), (
                text,
                point,
                thing,
            )
            named += 1
    assert counted > 100 and named > 300
