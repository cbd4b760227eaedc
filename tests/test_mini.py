"""The embedded model: what a newcomer sees first. Figures with intervals are in docs/mini.md."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

import vision_lm
from vision_lm.model import VisionLM

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def mini() -> VisionLM:
    return vision_lm.load(device="cpu")


@pytest.mark.parametrize(
    ("photograph", "words"),
    [
        ("chelsea", {"cat"}),
        ("coffee", {"coffee", "espresso", "cup"}),
        ("rocket", {"rocket", "missile", "shuttle"}),
        ("astronaut", {"person", "astronaut", "suit"}),
    ],
)
def test_photographs_are_named(mini: VisionLM, photograph: str, words: set[str]) -> None:
    """Real photographs, none of them seen in training: the caption names what they show."""
    caption = mini.caption(Image.fromarray(getattr(data, photograph)()))
    assert words & set(caption.text.lower().replace(".", " ").replace(",", " ").split()), caption.text


def test_existence_in_a_photograph(mini: VisionLM) -> None:
    """The README's question: a cat is a cat and no dog."""
    cat = Image.fromarray(data.chelsea())
    assert mini.ask(cat, "Is there a cat?").text == "yes"
    assert mini.ask(cat, "Is there a dog?").text == "no"


@pytest.mark.slow
def test_easy_vqa(mini: VisionLM) -> None:
    """Four hundred questions of easy-VQA's official test split, far above the 67.0% of guessing blind."""
    easy_vqa = pytest.importorskip("projector.data.easy_vqa")
    questions = random.Random(0).sample(list(easy_vqa.test()), 400)
    answers = mini.ask([Path(q.image) for q in questions], [q.question for q in questions])
    right = sum(str(answer) == q.answer for answer, q in zip(answers, questions, strict=True))
    assert right / len(questions) >= 0.95
