"""Answers about a scene by reading the question and looking at the boxes.

It shares nothing with the code that it is to judge but the scene and its vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from projector.data.samples import QA
from projector.data.scene_vocabulary import SHAPES
from projector.data.scenes import Scene, Thing

PLURALS = {"crosses": "cross", "boxes": "box", "people with hat": "person with hat"}
SIDE_WORDS = r"(?:to the |on the )?(left|right|above|below|under|higher)(?: side)?(?: of| than)?"


def plain(question: str) -> str:
    """The question in one spelling."""
    text = question.lower().rstrip("?.")
    for variant, word in (("color", "colour"), ("grey", "gray"), ("big ", "large "), ("image", "picture")):
        text = text.replace(variant, word)
    return re.sub(r"\bscene\b", "picture", text)


def fits(phrase: str, scene: Scene) -> list[Thing]:
    """The things that a phrase like "the small red circle" or "coffee cup" fits."""
    phrase = re.sub(r"^(the|an|a) ", "", phrase)
    found = []
    for thing in scene.things:
        said = phrase
        for attribute in (thing.size, thing.material, thing.colour):
            if attribute:
                said = re.sub(rf"^{attribute} (?=.)", "", said)
        generic = ("thing", "object", "item") + (("shape",) if thing.noun in SHAPES else ())
        if said in (thing.noun, *generic):
            found.append(thing)
    return found


def the_one(phrase: str, scene: Scene) -> Thing:
    found = fits(phrase, scene)
    assert len(found) == 1, f"{phrase!r} fits {len(found)} things of {scene}"
    return found[0]


def sides(thing: Thing, other: Thing, side: int) -> set[str]:
    """On which sides of `other` the thing's centre is, by at least 12% of the picture."""
    dx = ((thing.box[0] + thing.box[2]) - (other.box[0] + other.box[2])) / 2 / side
    dy = ((thing.box[1] + thing.box[3]) - (other.box[1] + other.box[3])) / 2 / side
    tests = {"left": dx <= -0.12, "right": dx >= 0.12, "above": dy <= -0.12, "below": dy >= 0.12}
    return {name for name, true in tests.items() if true}


def on_side(word: str) -> str:
    return {"under": "below", "higher": "above"}.get(word, word)


def oracle_existence(text: str, scene: Scene) -> str:
    patterns = (
        r"(?:is|are) there (?P<no>not )?(?P<what>.+?)(?: in (?:the|this) picture)?",
        r"(?:is|are) (?P<no>no )?(?P<what>.+) present",
        r"can you see (?P<what>.+)",
        r"do you see (?P<what>.+?) in this picture",
        r"does the picture (?P<no>not )?contain (?P<what>.+)",
    )
    match = next(found for pattern in patterns if (found := re.fullmatch(pattern, text)))
    present = bool(fits(match["what"], scene))
    return "yes" if present != bool(match.groupdict().get("no")) else "no"


def oracle_count(text: str, scene: Scene) -> str:
    phrase = re.sub(r"^(how many|count the|what is the number of) ", "", text)
    phrase = re.sub(r" (are there|are in the picture|can you see|do you see)$", "", phrase)
    phrase = PLURALS.get(phrase) or re.sub(r"crosses$", "cross", phrase)
    return str(len(fits(phrase if phrase.endswith(("cross", "hat")) else phrase.removesuffix("s"), scene)))


def oracle_relation(text: str, scene: Scene) -> str:
    whether = re.fullmatch(rf"(?:is|are) (the .+?) {SIDE_WORDS} (the .+)", text)
    if whether:
        here = sides(the_one(whether[1], scene), the_one(whether[3], scene), scene.side)
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[on_side(whether[2])]
        assert (on_side(whether[2]) in here) != (opposite in here), f"{text}: neither side clearly"
        return "yes" if on_side(whether[2]) in here else "no"
    which = re.fullmatch(
        r"(?:what (colour|shape) is the thing|what is|what do you see|which thing is|what can be seen) "
        rf"{SIDE_WORDS} (the .+?)(?: in the picture)?",
        text,
    )
    assert which, text
    other = the_one(which[3], scene)
    there = [t for t in scene.things if t is not other and on_side(which[2]) in sides(t, other, scene.side)]
    assert len(there) == 1, f"{text}: {len(there)} candidates"
    if which[1]:
        return str(there[0].colour if which[1] == "colour" else there[0].noun)
    return article(there[0])


def oracle_side(text: str, scene: Scene) -> str:
    either = re.fullmatch(
        r"(?:is|are) (the .+?) (left|right|above|below) or (left|right|above|below)(?: of)? (the .+)", text
    )
    if either:
        here = sides(the_one(either[1], scene), the_one(either[4], scene), scene.side)
        (side,) = {either[2], either[3]} & here
        return side
    which = re.fullmatch(r"on which side of (?P<other>the .+?) (?:is|are) (?P<thing>the .+)", text)
    which = which or re.fullmatch(r"where (?:is|are) (?P<thing>the .+?) from (?P<other>the .+)", text)
    assert which, text
    thing, other = the_one(which["thing"], scene), the_one(which["other"], scene)
    dx, dy = (sum(thing.box[axis::2]) - sum(other.box[axis::2]) for axis in (0, 1))
    assert max(abs(dx), abs(dy)) > 2 * min(abs(dx), abs(dy)), f"{text}: neither side clearly"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def oracle_where(text: str, scene: Scene) -> str:
    """ "What is at the top left?", "What is the second thing from the right?"; never in doubt."""
    place = re.search(
        r"(in the middle|(?:at|on) the (?:(?:top|bottom) (?:left|right)|top|bottom|left|right))\b", text
    )
    if place:
        there = [thing for thing in scene.things if place_words(thing, scene, 0) == place[1]]
        place_words(*there, scene)
        return article(*there)
    nth = re.search(r"the (\w+) thing from the (left|right|top|bottom)", text)
    end = re.search(r"furthest to the (\w+)|closest to the (\w+) edge", text)
    assert nth or end, text
    number, side = nth.groups() if nth else ("first", end[1] or end[2]) if end else ("", "")
    along = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
    places = sorted(along[1] * sum(thing.box[along[0] :: 2]) / 2 for thing in scene.things)
    at = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"].index(number)
    (found,) = (t for t in scene.things if along[1] * sum(t.box[along[0] :: 2]) / 2 == places[at])
    gaps = [abs(one - places[at]) for one in places[max(0, at - 1) : at] + places[at + 1 : at + 2]]
    assert min(gaps) >= 0.06 * scene.side, f"{text}: in doubt"
    return article(found)


def article(thing: Thing) -> str:
    name = f"{thing.colour} {thing.noun}" if thing.colour else thing.noun
    return name if name == "grapes" else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def oracle_compare(text: str, scene: Scene) -> str:
    ask = re.fullmatch(r"(?:which|what)(?: one)? is (larger|bigger|smaller)[,:] (the .+) or (the .+)", text)
    ask = ask or re.fullmatch(
        r"of (?P<b>the .+) and (?P<c>the .+), which is (?P<a>larger|bigger|smaller)", text
    )
    assert ask, text
    word, *phrases = (ask["a"], ask["b"], ask["c"]) if "a" in ask.groupdict() else ask.groups()
    areas = [
        math.prod((t.box[2] - t.box[0], t.box[3] - t.box[1])) for t in (the_one(p, scene) for p in phrases)
    ]
    assert max(areas) > 1.5 * min(areas)
    return phrases[areas.index(min(areas) if word == "smaller" else max(areas))]


def size_of(thing: Thing, scene: Scene) -> str:
    longer = max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1])
    crowd = 1.0 if len(scene.things) <= 6 else 0.8  # more are drawn smaller
    return "large" if longer / scene.side > 0.3 * crowd else "small"


def place_words(thing: Thing, scene: Scene, doubt: float = 0.1) -> str:
    """The words for the third of the picture that holds the centre; never in `doubt` between two thirds."""
    thirds = [3 * centre / scene.side for centre in thing.centre]
    assert all(abs(third - border) >= doubt for third in thirds for border in (1, 2)), thing
    column, row = (int(third) for third in thirds)
    words = (
        ("at the top left", "at the top", "at the top right"),
        ("on the left", "in the middle", "on the right"),
        ("at the bottom left", "at the bottom", "at the bottom right"),
    )
    return words[row][column]


def oracle_attribute(attribute: Callable[[Thing], str], text: str, scene: Scene) -> str:
    """The attribute of the one thing that "the …" fits, or whether it is the one asked for."""
    shapes = [thing for thing in scene.things if thing.noun in SHAPES]
    which = re.fullmatch(r"which shape is (?!this)(.+)", text)
    match = re.search(r"\bthe (?!(?:colour|shape|size|pattern) of |picture)(.+)", text)
    if which:
        return attribute(the_one(f"{which[1]} shape", scene))
    if match is None:
        assert len(shapes) == len(scene.things) == 1, text
        return attribute(shapes[0])
    words = match[1].split()
    for end in range(len(words), 0, -1):
        if fits(" ".join(words[:end]), scene):
            answer, rest = attribute(the_one(" ".join(words[:end]), scene)), " ".join(words[end:])
            closed = text.startswith(("is ", "are ")) and " or " not in rest
            return ("yes" if rest == answer else "no") if closed else answer
    raise AssertionError(f"{text}: about nothing in {scene}")


def oracle(qa: QA, scene: Scene) -> str:
    text = plain(qa.question)
    if qa.kind in ("existence", "count", "relation", "compare"):
        oracles = (oracle_existence, oracle_count, oracle_relation, oracle_compare)
        return dict(zip(("existence", "count", "relation", "compare"), oracles, strict=True))[qa.kind](
            text, scene
        )
    if qa.kind == "side":
        return oracle_side(text, scene)
    if qa.kind in ("at", "nth"):
        return oracle_where(text, scene)
    if qa.kind == "read":
        return str(scene.word)
    if qa.kind == "what":
        return article(scene.things[0])
    attributes: dict[str, Callable[[Thing], str]] = {
        "colour": lambda thing: str(thing.colour),
        "shape": lambda thing: thing.noun,
        "material": lambda thing: thing.material or "solid",
        "size": lambda thing: size_of(thing, scene),
        "place": lambda thing: place_words(thing, scene),
    }
    return oracle_attribute(attributes[qa.kind], text, scene)
