"""Captions that name only what one is sure of: what is left unnamed is said in general words, and nothing untrue is."""

from __future__ import annotations

import random

import pytest

from projector.data.caption_objects import hallucinated, named_things
from projector.data.scene_captions import CaptionLength
from projector.data.scenes import Scene, Thing, caption, left_unnamed

SCENE = Scene(
    (
        Thing("teapot", None, "small", None, (10, 10, 60, 60)),
        Thing("circle", "red", "large", "striped", (90, 20, 180, 110)),
        Thing("cat", None, "large", None, (20, 150, 110, 240)),
        Thing("cat", None, "small", None, (120, 180, 180, 240)),
        Thing("star", "blue", "small", None, (200, 190, 240, 230)),
    ),
    "white",
    None,
)
NAMES = ("teapot", "cat")
LENGTHS: tuple[CaptionLength, ...] = ("short", "normal", "long")


@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_unnamed_is_not_named_and_nothing_untrue_is_said(length: CaptionLength) -> None:
    rng = random.Random(1)
    general = 0
    for _ in range(60):
        unnamed = left_unnamed(SCENE, rng, 0.5)
        text = caption(SCENE, length, rng, unnamed).text
        named = {f"{thing.colour or ''} {thing.noun}".strip() for thing in named_things(text, NAMES)}
        assert named.isdisjoint(unnamed)
        assert hallucinated(text, SCENE, NAMES)[1] == 0, text
        general += "drawing" in text or "shape" in text
    assert general > 40


def test_things_of_one_name_are_one_decision() -> None:
    """How many there are is said of the unnamed as of the others."""
    rng = random.Random(2)
    everything = left_unnamed(SCENE, rng, 1.0)
    assert everything == {"teapot", "red circle", "cat", "blue star"}
    assert caption(SCENE, "short", rng, everything).text == "A drawing, two drawings, a shape and a shape."
    assert (
        caption(SCENE, "short", rng, {"cat"}).text == "A teapot, two drawings, a red circle and a blue star."
    )
    assert caption(SCENE, "short", rng).text == "A teapot, two cats, a red circle and a blue star."
    assert left_unnamed(SCENE, rng, 0.0) == frozenset()


def test_the_picture_itself_is_no_thing_in_it() -> None:
    """There is a drawing of a framed picture, and half of the captions begin with "The picture shows"."""
    names = (*NAMES, "picture")
    assert [one.noun for one in named_things("The picture shows a picture and a cat.", names)] == [
        "picture",
        "cat",
    ]
    assert hallucinated("The picture shows a teapot.", SCENE, names) == (1, 0)
    assert hallucinated("The picture shows a picture.", SCENE, names) == (1, 1)


def test_the_long_caption_keeps_size_pattern_and_place() -> None:
    text = caption(SCENE, "long", random.Random(3), left_unnamed(SCENE, random.Random(3), 1.0)).text
    assert "a large striped shape" in text and "small drawing at the top left" in text
    assert "left of" not in text and "above" not in text  # which drawing would it be?
