"""Captions that name only what one is sure of: what is left unnamed is said in general words, and nothing untrue is."""

from __future__ import annotations

import random

import pytest

from projector.data.caption_objects import hallucinated, named_things
from projector.data.scene_captions import CaptionLength
from projector.data.scenes import Scene, Thing, caption, unsure

SCENE = Scene(
    (
        Thing("teapot", None, "small", None, (10, 10, 60, 60)),
        Thing("circle", "red", "large", "striped", (90, 20, 180, 110)),
        Thing("cat", None, "large", None, (20, 150, 110, 240)),
        Thing("star", "blue", "small", None, (200, 190, 240, 230)),
    ),
    "white",
    None,
)
LENGTHS: tuple[CaptionLength, ...] = ("short", "normal", "long")


@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_unnamed_is_not_named_and_nothing_untrue_is_said(length: CaptionLength) -> None:
    rng = random.Random(1)
    general = 0
    for _ in range(60):
        seen = unsure(SCENE, rng, 0.5)
        text = caption(seen, length, rng)
        named = {thing.noun for thing in named_things(text, ("teapot", "cat"))}
        assert named <= {thing.noun for thing in seen.things}
        assert hallucinated(text, SCENE, ("teapot", "cat"))[1] == 0, text
        general += "drawing" in text or "shape" in text
    assert general > 40


def test_how_many_there_are_is_said_of_the_unnamed_too() -> None:
    rng = random.Random(2)
    assert caption(unsure(SCENE, rng, 1.0), "short", rng) == "Two drawings and two shapes."
    assert caption(unsure(SCENE, rng, 0.0), "short", rng) == "A teapot, a cat, a red circle and a blue star."


def test_the_long_caption_keeps_size_pattern_and_place() -> None:
    text = caption(unsure(SCENE, random.Random(3), 1.0), "long", random.Random(3))
    assert "a large striped shape" in text and "small drawing at the top left" in text
    assert "left of" not in text and "above" not in text  # which drawing would it be?
