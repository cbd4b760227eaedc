"""Questions about synthetic scenes: their answers are true of the picture, and cannot be guessed without it."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from projector.data.caption_objects import named_things
from projector.data.corpus import Part, write_parts
from projector.data.samples import QA, Sample, iter_jsonl
from projector.data.scene_vocabulary import COLOURS, MATERIALS, SHAPES, SIZES
from projector.data.scenes import Scene, Thing, absent, dialogue, naming, questions, reasoning
from tests.projector.scene_oracle import (
    SIDE_WORDS,
    fits,
    on_side,
    oracle,
    oracle_relation,
    plain,
    sides,
    the_one,
)
from tests.projector.small_scenes import NAMES, scenes


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


@pytest.mark.parametrize(("name", "beside"), [("scenes", "dialogues"), ("pairs", "pairs_dialogues")])
def test_dialogues_never_replace_the_questions(tmp_path: Path, name: str, beside: str) -> None:
    """A corpus file holds the independent questions, the dialogues about the same pictures stand beside it."""
    turns = (QA("What is it?", "a star"), QA("And what colour is it?", "red"))
    parts = [Part(b, Sample((tmp_path / "a.png",), turns, bool(b))) for b in ("", "dialogues")]
    (tmp_path / "a.png").write_bytes(b"-")
    write_parts(tmp_path / f"{name}.jsonl", parts)
    assert [sample.linked for sample in iter_jsonl(tmp_path / f"{name}.jsonl")] == [False]
    assert [sample.linked for sample in iter_jsonl(tmp_path / f"{beside}.jsonl")] == [True]


def test_what_is_not_there_is_unanswerable() -> None:
    """Each of these questions speaks of something that an independent reader does not find in the scene, or of a word
    where none is written, in the wordings of questions that have an answer, and never to be answered yes or no.
    """
    heads = "|".join((*sorted(NAMES, key=len, reverse=True), *SHAPES, "thing", "object", "shape"))
    adjectives = "|".join((*SIZES, *MATERIALS, *COLOURS))
    asked = read = 0
    for scene, rng in scenes(300):
        for qa in absent(scene, rng, 6, NAMES):
            assert (qa.answer, qa.kind) == ("unanswerable", "absent")
            text = plain(qa.question)
            assert not re.match(r"(is|are) (?!.* (or|striped))", text), qa
            phrases = re.findall(rf"\bthe ((?:(?:{adjectives}) )*(?:{heads}))\b(?! of)", text)
            if any(not fits(phrase, scene) for phrase in phrases):
                asked += 1
            else:
                assert re.search(r"\b(say|word|written|text)\b", text) and scene.word is None, (qa, scene)
                read += 1
    assert asked > 1000 and 10 < read < 0.2 * asked
