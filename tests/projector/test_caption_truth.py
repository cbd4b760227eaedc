"""How true captions of scenes are: counted by hand for two of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from projector.caption_truth import caption_truth
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.samples import QA, Sample
from vision_lm.answer import Answer

TRUE = ("A red circle, two blue stars and a cat.", "A green square.")
SAID = {
    "short": ("A red circle and a dog.", "A green square."),
    "normal": ("A red circle and two blue stars.", "A drawing."),
    "long": ("There is a cat. The cat is left of the dog.", "A green square and a red square."),
}
SURE = 0.75


class Described:
    """A model that says what stands above."""

    def caption(self, pictures: Sequence[Path], length: str, *, checked: bool) -> list[Answer]:
        assert not checked
        return [Answer(SAID[length][int(path.stem)], SURE, "stop", (), ()) for path in pictures]


def test_objects_that_are_there_and_those_that_are_named() -> None:
    """Of what is said, what is there, with an interval that is over pictures; of what is there, what is said."""
    samples = [
        Sample((Path(f"{number}.png"),), (QA(CAPTION_REQUESTS["normal"], text, "caption"),))
        for number, text in enumerate(TRUE)
    ]
    silent = Sample((Path("9.png"),), (QA("What is this?", "a cat", "name"),))
    vlm: Any = Described()
    found = caption_truth(vlm, [*samples, silent], {"cat", "dog"})
    short, normal, long = found["short"], found["normal"], found["long"]
    assert (short.named, short.true, short.recall) == (3, pytest.approx(2 / 3), pytest.approx(2 / 5))
    assert (short.low, short.high) == (0.5, 1.0)  # one picture alone, or the other
    assert (normal.named, normal.true, normal.recall) == (3, 1.0, pytest.approx(3 / 5))
    assert (normal.low, normal.high) == (0.0, 1.0)  # of the second alone nothing is named
    assert (long.named, long.true, long.recall) == (5, pytest.approx(3 / 5), pytest.approx(2 / 5))
    # Of two short captions one is wholly true, of the normal ones both, of the long ones the first has a dog beside its cat.
    assert (short.whole, short.calibration_error) == (0.5, pytest.approx(0.25))
    assert (normal.whole, normal.calibration_error) == (1.0, pytest.approx(0.25))
    assert (long.whole, long.calibration_error) == (0.0, pytest.approx(0.75))
