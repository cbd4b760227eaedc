"""Captions of a scene in three lengths: only what is there and, from "normal" on, everything.

What is `unnamed` they call what anybody sees: "a drawing", "a shape". Where training captions leave a share r of the
names out, whatever they are, the likeliest words for a thing that has its right name with probability p among (1 - r) p
for the name and r for the general word are the name only if p > r / (1 - r): a model that learns from such captions and
says the likeliest word names what it is that sure of, and nothing else (the rule of the reject option: Chow 1970).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Literal

from projector.data.scene_grammar import counted, is_plural, listed, with_article
from projector.data.scene_pointing import Pointed, marked, marked_sentence, unmarked, words
from projector.data.scene_references import clear_relations, from_left_to_right, name_of, place_of, references
from projector.data.scene_vocabulary import EASY_VQA_BACKGROUND, Scene, Thing

CaptionLength = Literal["short", "normal", "long"]
_SHORT_WORDS = 12
UNNAMED = 0.3  # a name is said from 43% on; projector.caution moves that afterwards


def caption(
    scene: Scene, length: CaptionLength, rng: random.Random, unnamed: Collection[str] = ()
) -> Pointed:
    """Full sentences about the scene: short (at most 12 words), normal or long. `unnamed`: names as of `name_of`."""
    if length == "short":
        text = _short(scene, unnamed)
    elif length == "normal":
        text = _normal(scene, rng, unnamed)
    else:
        text = _long(scene, rng, unnamed)
    return unmarked(text, scene)


def left_unnamed(scene: Scene, rng: random.Random, share: float = UNNAMED) -> frozenset[str]:
    """That share of the scene's names: things of one name together, so that their number stays one decision."""
    names = sorted({name_of(thing) for thing in scene.things})
    return frozenset(name for name in names if rng.random() < share)


def inventory(scene: Scene, unnamed: Collection[str] = ()) -> list[str]:
    """The things grouped by name with their numbers, from left to right, marked: ["two red stars", "a cup"]."""
    groups: dict[str, list[Thing]] = {}
    for thing in from_left_to_right(scene.things, scene):
        groups.setdefault(name_of(thing), []).append(thing)
    return [marked(counted(_said(group[0], unnamed), len(group)), group, scene) for group in groups.values()]


def _said(thing: Thing, unnamed: Collection[str]) -> str:
    if name_of(thing) in unnamed:
        return "shape" if thing.is_shape else "drawing"
    return name_of(thing)


def _short(scene: Scene, unnamed: Collection[str]) -> str:
    groups = inventory(scene, unnamed)
    text = listed(groups)
    if len(text.split()) > _SHORT_WORDS - 1:
        text = _summary(scene, groups, unnamed)
    return marked_sentence(text)


def _summary(scene: Scene, groups: Sequence[str], unnamed: Collection[str]) -> str:
    """The things in fewer words: what they have in common, or the first few and that there are more."""
    every = from_left_to_right(scene.things, scene)
    nouns = {thing.noun for thing in scene.things}
    colours = {thing.colour for thing in scene.things}
    colour = next(iter(colours))
    if not unnamed and len(nouns) == 1:
        return marked(f"{counted(nouns.pop(), len(every))} of different colours", every, scene)
    if not unnamed and len(colours) == 1 and colour is not None:
        return marked(f"{counted(f'{colour} shape', len(every))} of different kinds", every, scene)
    for shown in range(len(groups) - 1, 0, -1):
        text = f"{', '.join(groups[:shown])} and other things"
        if len(text.split()) <= _SHORT_WORDS:
            return text
    return marked(counted("thing", len(every)), every, scene)


def _normal(scene: Scene, rng: random.Random, unnamed: Collection[str]) -> str:
    text = listed(inventory(scene, unnamed))
    forms = [text, f"there {_verb(text)} {text}", f"the picture shows {text}"]
    if scene.background != EASY_VQA_BACKGROUND:
        forms.append(f"{text} on {with_article(scene.background)} background")
    written = f" {_written(scene)}" if scene.word else ""
    return marked_sentence(rng.choice(forms)) + written


def _long(scene: Scene, rng: random.Random, unnamed: Collection[str]) -> str:
    """Background, then every thing with size, material and place, then one relation."""
    ground = f"{with_article(scene.background)} background"
    parts = [
        marked(f"{with_article(_full_name(thing, unnamed))} {place_of(thing, scene.side)}", [thing], scene)
        for thing in from_left_to_right(scene.things, scene)
    ]
    opening = rng.choice(
        (f"on {ground} there {_verb(parts[0])} {parts[0]}", f"the picture shows {parts[0]} on {ground}")
    )
    sentences = [marked_sentence(opening)]
    if parts[1:]:
        joined = listed(parts[1:])
        sentences.append(
            marked_sentence(rng.choice((f"there {_verb(joined)} also {joined}", f"it also shows {joined}")))
        )
    if scene.word:
        sentences.append(_written(scene))
    relation = _relation(scene, rng, unnamed)
    return " ".join([*sentences, relation] if relation else sentences)


def _verb(text: str) -> str:
    """ "is" before "a red star …", "are" before "two red stars …"."""
    return "is" if words(text).startswith(("a ", "an ")) else "are"


def _full_name(thing: Thing, unnamed: Collection[str]) -> str:
    return " ".join(part for part in (thing.size, thing.material, _said(thing, unnamed)) if part)


def _relation(scene: Scene, rng: random.Random, unnamed: Collection[str]) -> str | None:
    """ "The circle is left of the star.", when two things can be told apart and clearly stand so."""
    named = [thing for thing in scene.things if name_of(thing) not in unnamed]
    pairs = clear_relations(named, scene.side)
    rng.shuffle(pairs)
    for thing, direction, other in pairs:
        names = [
            [name for name in references(one, scene, hide=("size", "material")) if one.noun in name]
            for one in (thing, other)
        ]
        if names[0] and names[1]:
            verb = "are" if is_plural(thing.noun) else "is"
            first, second = (
                marked(f"the {some[0]}", [one], scene)
                for some, one in zip(names, (thing, other), strict=True)
            )
            return marked_sentence(f"{first} {verb} {direction} {second}")
    return None


def _written(scene: Scene) -> str:
    return f'The word "{scene.word}" is written on it.'
