"""What is said of a photograph is as sure as the probabilities of its classes: a tie is said as a tie."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from projector.data.imagenet_names import CLASSES
from projector.data.photo_facts import caption, photo_facts, questions


def probabilities(**nouns: float) -> np.ndarray:
    """(1000,): each everyday noun's probability on its first class, the rest spread over all the others."""
    p = np.full(len(CLASSES), (1 - sum(nouns.values())) / len(CLASSES))
    for noun, share in nouns.items():
        p[next(i for i, entry in enumerate(CLASSES) if entry.basic == noun.replace("_", " "))] += share
    return p


@pytest.mark.parametrize(
    ("given", "short", "normal"),
    [
        ({"banana": 0.9}, "A banana.", "A photo of a banana."),
        ({"banana": 0.5, "teapot": 0.4}, "A banana or a teapot.", "A photo of a banana or a teapot."),
        ({"banana": 0.5, "teapot": 0.2}, "A banana.", "A photo of a banana."),
        ({"banana": 0.3, "teapot": 0.25}, "A banana or a teapot.", "A photo, perhaps of a banana or a teapot."),
        ({"banana": 0.3, "teapot": 0.1}, "A banana.", "A photo, perhaps of a banana."),
    ],
)  # fmt: skip
def test_a_caption_is_as_sure_as_the_probabilities(given: dict[str, float], short: str, normal: str) -> None:
    """Of many captions of one photograph most name what it most likely shows, and hedge where that is not likely."""
    facts = photo_facts(probabilities(**given))
    rng = random.Random(0)
    for length, expected in (("short", short), ("normal", normal)):
        said = Counter(caption(facts, length, rng) for _ in range(400))
        assert said.most_common(1)[0][0] == expected
        if " or " in expected:
            assert len(said) == 1


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_thing_is_named_as_often_as_it_is_likely(share: float) -> None:
    """So that a model's confidence in a photograph's name is its tower's, and gravel is not surely a dog."""
    facts = photo_facts(probabilities(banana=share))
    rng = random.Random(0)
    turns = [turn for _ in range(1000) for turn in questions(facts, rng, 4)]
    named = [turn.answer == "a banana" for turn in turns if turn.kind == "name"]
    assert np.mean(named) == pytest.approx(share, abs=0.06)
    short = [caption(facts, "short", rng) == "A banana." for _ in range(1000)]
    assert np.mean(short) == pytest.approx(share, abs=0.06)
    there = [turn.answer == "yes" for turn in turns if turn.kind == "existence" and "banana" in turn.question]
    assert np.mean(there) == pytest.approx(min(1.0, share / 0.7), abs=0.06)
    if share == 0.9:  # of which next to nothing is left for others
        assert not any(turn.answer == "yes" for turn in turns if "person" in turn.question)


def test_several_weak_signs_are_somebody() -> None:
    """A helmet, a sledge and a jersey, none of them likely: captions, names and "Is there a person?" all say a person."""
    signs = [n for n, entry in enumerate(CLASSES) if entry.person_likely and entry.group != "person"][:3]
    p = np.full(len(CLASSES), (1 - 0.36) / (len(CLASSES) - 3))
    p[signs] = 0.12
    facts = photo_facts(p)
    rng = random.Random(0)
    turns = [turn for _ in range(300) for turn in questions(facts, rng, 12)]
    yes = [turn.answer == "yes" for turn in turns if turn.kind == "existence" and "person" in turn.question]
    named = [turn.answer == "a person" for turn in turns if turn.kind == "name"]
    said = [caption(facts, "short", rng) == "A person." for _ in range(300)]
    assert np.mean(yes) > 0.8 and np.mean(named) > 0.8 and np.mean(said) > 0.8
