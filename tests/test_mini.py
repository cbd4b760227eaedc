"""The embedded model: what a newcomer sees first. Figures with intervals are in docs/mini.md."""

from __future__ import annotations

import random

import pytest
from PIL import Image

import vision_lm
from projector.data import easy_vqa
from vision_lm.model import VisionLM

data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def mini() -> VisionLM:
    return vision_lm.load(device="cpu")


def test_the_readmes_photograph_is_named(mini: VisionLM) -> None:
    """A real photograph, not seen in training: the caption names the cat."""
    assert mini.caption(Image.fromarray(data.chelsea()), length="short").text == "A cat."


def test_existence_in_a_photograph(mini: VisionLM) -> None:
    """The README's question: a cat is a cat and no dog."""
    cat = Image.fromarray(data.chelsea())
    assert mini.ask(cat, "Is there a cat?").text == "yes"
    assert mini.ask(cat, "Is there a dog?").text == "no"


@pytest.mark.slow
def test_easy_vqa(mini: VisionLM) -> None:
    """Three hundred questions of easy-VQA's official test split, far above the 67.0% of guessing blind."""
    questions = random.Random(0).sample(list(easy_vqa.test()), 300)
    answers = mini.ask(
        [question.image for question in questions], [question.question for question in questions]
    )
    right = sum(str(answer) == question.answer for answer, question in zip(answers, questions, strict=True))
    assert right / len(questions) >= 0.97
