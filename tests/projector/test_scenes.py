"""Synthetic scenes: what is said about a picture is true of it, and cannot be guessed without it."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projector.data.caption_objects import hallucinated, named_things
from projector.data.corpus import Part, write_parts
from projector.data.samples import QA, Sample, iter_jsonl
from projector.data.scene_grammar import plural
from projector.data.scene_vocabulary import COLOURS, SHAPES, colours_on
from projector.data.scenes import (
    HELD_OUT_PAIRS,
    Scene,
    Sprite,
    Thing,
    caption,
    compose,
    dialogue,
    naming,
    questions,
    reasoning,
)
from tests.projector.scene_oracle import (
    SIDE_WORDS,
    fits,
    on_side,
    oracle,
    oracle_relation,
    plain,
    sides,
    size_of,
    the_one,
)
from vision_lm.errors import TrainingError

SPRITES = tuple(
    Sprite(name, Image.new("RGBA", (40 + 10 * i, 60), (40 * i, 90, 200, 255)))
    for i, name in enumerate(("coffee cup", "dog", "grapes", "person with hat", "orange", "red heart"))
)
NAMES = [sprite.name for sprite in SPRITES[:5]]


def scenes(count: int, first_seed: int = 0) -> list[tuple[Scene, random.Random]]:
    """Small pictures, every other one with cut-outs."""
    made = []
    for seed in range(first_seed, first_seed + count):
        rng = random.Random(seed)
        made.append((compose(rng, size=96, sprites=SPRITES if seed % 2 else ())[0], rng))
    return made


def test_answers_follow_from_the_boxes() -> None:
    """Every answer of every kind is what an independent reader of the question finds in the scene."""
    kinds: Counter[str] = Counter()
    for scene, rng in scenes(600):
        for qa in questions(scene, rng, 10, NAMES):
            kinds[qa.kind] += 1
            if qa.kind != "list":
                assert qa.answer == oracle(qa, scene), (qa, scene)
            else:
                parts = named_things(qa.answer, NAMES)
                expected = Counter((thing.colour, thing.noun) for thing in scene.things)
                assert {(part.colour, part.noun): part.count for part in parts} == expected, (qa, scene)
    expected_kinds = "existence colour shape count relation place compare material size read list what"
    assert set(kinds) == set(expected_kinds.split())
    assert min(kinds.values()) >= 20


def test_reasoning_follows_from_the_boxes() -> None:
    """Every question that needs two looks has the answer that an independent reader finds; no side is commoner."""
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for scene, rng in scenes(400):
        if len(scene.things) < 2:
            continue
        for qa in reasoning(scene, rng, 14):
            kinds[qa.kind] += 1
            answers[qa.answer] += qa.kind == "side"
            assert qa.answer == oracle(qa, scene), (qa, scene)
    assert set(kinds) == {"relation", "side", "place", "count", "compare"}
    assert min(kinds.values()) >= 100
    sides_said = [answers[side] for side in ("left", "right", "above", "below")]
    assert sum(sides_said) == kinds["side"] and min(sides_said) > 0.2 * kinds["side"]


def test_naming_follows_from_the_boxes() -> None:
    """Every question that names one thing by its place has the answer that an independent reader finds."""
    kinds: Counter[str] = Counter()
    for scene, rng in scenes(400):
        if len(scene.things) < 2:
            continue
        for qa in naming(scene, rng, 8):
            kinds[qa.kind] += 1
            assert qa.kind == "list" or qa.answer == oracle(qa, scene), (qa, scene)
    assert set(kinds) == {"at", "nth", "list", "count"}
    assert min(kinds.values()) >= 100


def test_no_question_twice_about_a_scene() -> None:
    """A scene's questions are all different, even in capitals and spelling of the end."""
    for scene, rng in scenes(100):
        asked = [qa.question.lower().rstrip("?") for qa in questions(scene, rng, 12, NAMES)]
        assert len(asked) == len(set(asked)) == 12


def test_yes_no_answers_cannot_be_guessed_from_the_wording() -> None:
    """A naive Bayes reader of the words, trained on half of the scenes, is right at most 60% of the time."""
    asked = [
        (plain(qa.question), qa.answer)
        for scene, rng in scenes(2400)
        for qa in questions(scene, rng, 8, NAMES)
        if qa.answer in ("yes", "no")
    ]
    train, test = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    assert 0.45 < sum(answer == "yes" for _, answer in asked) / len(asked) < 0.55
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in train:
        for feature in features(text):
            seen[feature][answer] += 1
    right = 0
    for text, answer in test:
        score = sum(
            math.log((seen[feature]["yes"] + 3) / (seen[feature]["no"] + 3)) for feature in features(text)
        )
        right += ("yes" if score > 0 else "no") == answer
    assert len(test) > 1000
    assert right / len(test) <= 0.6
    often = {feature: answers for feature, answers in seen.items() if answers.total() >= 60}
    telling = {
        feature: answers
        for feature, answers in often.items()
        if max(answers.values()) > 0.7 * answers.total()
    }
    assert len(often) > 100 and not telling


def features(text: str) -> set[str]:
    """Words and pairs of neighbouring words."""
    words = text.split()
    return {*words, *(" ".join(pair) for pair in zip(words, words[1:], strict=False))}


def test_held_out_pairs_are_never_shown_nor_named_in_training() -> None:
    """With "avoid" no picture, question or caption has a held-out pair, yet every colour and shape occurs."""
    colours: set[str | None] = set()
    nouns: set[str] = set()
    pairs = {f"{colour} {shape}" for colour, shape in HELD_OUT_PAIRS}
    for scene, rng in scenes(500):
        shapes = [thing for thing in scene.things if thing.colour]
        assert not {(thing.colour, thing.noun) for thing in shapes} & HELD_OUT_PAIRS
        colours.update(thing.colour for thing in shapes)
        nouns.update(thing.noun for thing in shapes)
        texts = [
            qa.question + " " + qa.answer for qa in questions(scene, rng, 8, NAMES) + dialogue(scene, rng)
        ]
        said = " ".join(plain(text) for text in [*texts, caption(scene, "long", rng).text])
        assert not [pair for pair in pairs if pair in said]
    assert (colours, nouns) == (set(COLOURS), set(SHAPES))


def test_required_held_out_pairs_fill_the_scene() -> None:
    """With "require" every shape is of a held-out pair, and all pairs come up."""
    shown = set()
    for seed in range(200):
        scene, _ = compose(random.Random(seed), size=64, held_out_pairs="require")
        shown |= {(thing.colour, thing.noun) for thing in scene.things}
    assert shown == HELD_OUT_PAIRS


@pytest.mark.parametrize("sprites", [(), SPRITES])
def test_same_seed_same_scene(sprites: tuple[Sprite, ...]) -> None:
    """The same seed gives the same pixels and the same words."""

    def everything(seed: int) -> tuple[Scene, bytes, list[QA], list[QA], str]:
        rng = random.Random(seed)
        scene, picture = compose(rng, size=128, sprites=sprites)
        texts = questions(scene, rng, 6, NAMES), dialogue(scene, rng), caption(scene, "long", rng).text
        return scene, picture.tobytes(), *texts

    for seed in range(40):
        assert everything(seed) == everything(seed)
    assert everything(1)[1] != everything(2)[1]


def test_counts_sizes_and_boxes_keep_their_promises() -> None:
    """1 to 8 things, more than six less often; boxes inside, apart; two separate sizes; no sprite named like a shape."""
    numbers: Counter[int] = Counter()
    for scene, _ in scenes(1200):
        numbers[len(scene.things)] += 1
        for i, thing in enumerate(scene.things):
            x0, y0, x1, y1 = thing.box
            assert -0.5 <= x0 < x1 <= scene.side + 0.5 and -0.5 <= y0 < y1 <= scene.side + 0.5
            assert size_of(thing, scene) == thing.size and thing.noun != "red heart"
            assert thing.colour is None or thing.colour in colours_on(scene.background)
            for other in scene.things[:i]:
                apart = x0 >= other.box[2] or other.box[0] >= x1 or y0 >= other.box[3] or other.box[1] >= y1
                assert apart
    assert set(numbers) == set(range(1, 9)) and min(numbers.values()) > 1200 * 0.06


def test_box_and_colour_are_those_of_the_pixels() -> None:
    """On a plain ground the pixels that differ fill the box, and their colour is nearest to the one named."""
    anchors = {
        "red": (235, 10, 20), "orange": (255, 140, 0), "yellow": (255, 235, 10), "green": (25, 160, 35),
        "teal": (5, 140, 140), "blue": (20, 70, 235), "purple": (130, 25, 180), "pink": (255, 130, 185),
        "brown": (110, 60, 25), "black": (10, 10, 10), "white": (250, 250, 250), "gray": (130, 130, 130),
    }  # fmt: skip
    checked = 0
    for seed in range(900):
        scene, picture = compose(random.Random(seed), max_things=1)
        pixels = np.asarray(picture).astype(int)  # (H, W, 3)
        thing, edge = scene.things[0], np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        ground = np.median(edge, axis=0)
        if scene.word or thing.material or (edge != ground).any():
            continue
        checked += 1
        difference = np.abs(pixels - ground).sum(2)
        rows, columns = np.nonzero(difference > 0.4 * difference.max())
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, thing.box)).max() <= 3, (found, thing)
        colour = np.median(pixels[rows, columns], axis=0)
        reddish = np.abs(colour - (150, 40, 40)).max() < 40  # as easy-VQA's brown is
        nearest = min(anchors, key=lambda name: math.dist(anchors[name], colour))
        assert thing.colour == ("brown" if reddish else nearest), (colour, thing)
    assert checked > 250


def test_dialogue_means_the_thing_of_an_earlier_turn() -> None:
    """In 2 to 4 turns, "it" read as the thing brought up before gives the stated answers."""
    lengths: Counter[int] = Counter()
    for scene, rng in scenes(500):
        turns = dialogue(scene, rng)
        lengths[len(turns)] += 1
        it: list[Thing] = []
        for turn in turns:
            text = plain(turn.question).removeprefix("and ")
            if re.search(r"\bit\b", text):
                answers = {follow_up_answer(text, turn.kind, thing, scene) for thing in it}
                assert turn.answer in answers and len(answers) == 1, (turns, scene)
            else:
                assert turn.answer == oracle(turn, scene), (turns, scene)
            it = brought_up(text, turn, it, scene)
    assert set(lengths) <= {0, 2, 3, 4} and lengths[0] < 50 and min(lengths[2], lengths[3], lengths[4]) > 50


def follow_up_answer(text: str, kind: str, it: Thing, scene: Scene) -> str:
    """The answer with "it" replaced by a noun that fits that thing alone."""
    marked = replace(it, noun="it")
    things = tuple(marked if thing is it else thing for thing in scene.things)
    if kind == "relation":
        return oracle_relation(re.sub(r"\bit\b", "the it", text), replace(scene, things=things))
    return {
        "colour": lambda: str(it.colour),
        "size": lambda: it.size,
        "material": lambda: "yes" if text == f"is it {it.material or 'solid'}" else "no",
    }[kind]()


def brought_up(text: str, turn: QA, it: list[Thing], scene: Scene) -> list[Thing]:
    """The things that "it" may mean after this turn."""
    if turn.kind == "relation" and turn.answer not in ("yes", "no"):
        side = re.search(SIDE_WORDS + r" (.+)", text)
        assert side
        others = it if side[2] == "it" else [the_one(side[2], scene)]
        return [
            t for other in others for t in scene.things if on_side(side[1]) in sides(t, other, scene.side)
        ]
    if turn.kind == "existence":
        return fits(re.sub(r"^is there (an?|the) ", "", text), scene)
    if not re.search(r"\bit\b", text):
        match = re.search(r"the (?!picture)(.+)", text)
        return fits(match[1], scene) if match else list(scene.things)
    return it


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


def test_too_many_things_are_refused() -> None:
    """A number of things that cannot fit is named in the error, instead of a search without end."""
    with pytest.raises(TrainingError, match="max_things is 20"):
        compose(random.Random(0), max_things=20)


@pytest.mark.parametrize(("name", "beside"), [("scenes", "dialogues"), ("pairs", "pairs_dialogues")])
def test_dialogues_never_replace_the_questions(tmp_path: Path, name: str, beside: str) -> None:
    """A corpus file holds the independent questions, the dialogues about the same pictures stand beside it."""
    turns = (QA("What is it?", "a star"), QA("And what colour is it?", "red"))
    parts = [Part(b, Sample((tmp_path / "a.png",), turns, bool(b))) for b in ("", "dialogues")]
    (tmp_path / "a.png").write_bytes(b"-")
    write_parts(tmp_path / f"{name}.jsonl", parts)
    assert [sample.linked for sample in iter_jsonl(tmp_path / f"{name}.jsonl")] == [False]
    assert [sample.linked for sample in iter_jsonl(tmp_path / f"{beside}.jsonl")] == [True]


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
