"""What is said of a photograph is as sure as the probabilities of its classes: a tie is said as a tie."""

from __future__ import annotations

import random

import numpy as np
import pytest

from projector.data.imagenet_names import CLASSES
from projector.data.photo_facts import caption, photo_facts


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
    facts = photo_facts(probabilities(**given))
    assert caption(facts, "short", random.Random(0)) == short
    assert caption(facts, "normal", random.Random(0)) == normal
